"""Train and evaluate a ResNet.

python main.py --config configs/digits.py --workdir runs/digits

Any field of the config is overridden as --config.section.field=value; the same command again continues the run. With
--seeds 5 it trains five times, and says the mean and the spread of every metric.

Several processes, on one machine or on many, train together: started by srun, mpirun or a Job of Kubernetes, or each
told of the others as --coordinator=HOST:PORT --num_processes=N --process_id=I; see docs/distributed.md.
"""

from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from jaxres import command_line
from jaxres import config as config_lib
from jaxres.errors import one_line
from jaxres.runtime import outputs, xla_flags

CONFIG = config_flags.DEFINE_config_file('config', None, 'The config file, such as configs/digits.py.')
WORKDIR = flags.DEFINE_string('workdir', '', 'The directory of the run, such as runs/digits.')
SEEDS = flags.DEFINE_integer('seeds', 1, 'Number of runs, of one seed each, in <workdir>/seed0, seed1, ...', 1)
COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where there are several.')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.', 1)
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.', 0)
DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')

NEXT = """\
next: python main.py --config configs/resnet20_cifar_quick.py --workdir runs/quick
      trains on CIFAR-10 (170 MB, downloaded once) and reaches 83 % in a quarter of an hour on 2 CPU cores"""


def parse(argv: Sequence[str]) -> list[str]:
  """Parse the command line, before anything slow is imported."""
  with one_line():
    command_line.parse_flags(argv, required=['config', 'workdir'])
  return [argv[0]]


def main(_: Sequence[str]) -> None:
  """Train."""
  logging.set_verbosity(logging.INFO if DEBUG.value else logging.FATAL)  # of Orbax, which also raises its errors
  ends: dict[str, Any] = {'debug': DEBUG.value, 'interrupted': 'interrupted; the same command continues the run'}
  with one_line(**ends):
    config = config_lib.complete(CONFIG.value)
    xla_flags.disable_ynnpack()
    from jaxres.runtime import distributed, signals
    from jaxres.train import (
      loop,
      seeds,  # import JAX, which is slow
    )

    with (
      distributed.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, **ends),
      signals.exit_on_preemption(),
    ):
      if SEEDS.value == 1:
        loop.train_and_evaluate(config, WORKDIR.value)
      else:
        seeds.train_and_evaluate(config, WORKDIR.value, SEEDS.value)
      if config.data.name == 'digits' and distributed.is_main_process():
        print(NEXT)


if __name__ == '__main__':
  outputs.guard(needed=False)
  app.run(main, flags_parser=parse)
