"""Restore the newest checkpoint of the tiny network on the devices that are here, and save it in another directory.

python tests/faults/resave.py FROM TO sharded|whole
"""

import pathlib
import sys

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from jaxres import checkpoint
from jaxres import config as config_lib
from jaxres.train.plan import make_plan
from jaxres.train.setup import make_parts, make_programs
from tests.faults import tiny


def main(source: str, to: str, optimizer: str) -> None:
  """Restore and save."""
  parts = make_parts(config_lib.to_dict(tiny.get_config()))
  schedule = make_plan(parts.dataset.train, 2.0, 1.0, False, False)
  made = make_programs(parts, schedule, 'softmax_xent', 0.0, 0.0, 1, 0.9, optimizer == 'sharded')
  template = jax.eval_shape(made.create, jax.random.key(0))
  with checkpoint.open(source) as manager:
    state, progress = checkpoint.restore(manager, template, made.shardings)
  assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {jax.device_count()}
  with checkpoint.open(to) as manager:
    checkpoint.save(manager, state, progress, {}, parts.config)


if __name__ == '__main__':
  main(*sys.argv[1:])
