"""Restore the newest checkpoint of the tiny network on the devices that are here, and save it in another directory.

python tests/faults/resave.py FROM TO sharded|replicated
"""

import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from jaxres import checkpoint
from jaxres import config as config_lib
from jaxres.train.setup import make_setup
from tests.faults import tiny


def main(source: str, to: str, optimizer: str) -> None:
  """Restore and save."""
  config = config_lib.to_dict(tiny.get_config())
  config['train'] |= {'epochs': 2.0, 'ema': 0.9, 'shard_optimizer': optimizer == 'sharded'}
  setup = make_setup(config)
  template = jax.eval_shape(setup.create, setup.key)
  with checkpoint.open_manager(source) as manager:
    state, progress = checkpoint.restore(manager, template, setup.shardings)
  assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {jax.device_count()}
  with checkpoint.open_manager(to) as manager:
    checkpoint.save(manager, state, progress, {}, setup.config)


if __name__ == '__main__':
  main(*sys.argv[1:])
