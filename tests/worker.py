"""One process of a training of the tiny model, as main.py is one: python tests/worker.py WORK.json PROCESS.

WORK.json has the ``config``, the ``workdir``, the ``coordinator``, how many processes there are, and which one dies in
which of its evaluations (``victim``, ``evaluation``), or the file that all wait for there (``gate``), or which is asked
to stop behind which step (``asked``, ``step``). What the process read goes to ``read<i>.json`` beside it.
"""

import functools
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable

from jaxres import evaluate
from jaxres.data.stream import Stream
from jaxres.errors import one_line
from jaxres.models import blocks, resnet
from jaxres.runtime import distributed, signals
from jaxres.train import loop
from jaxres.train.meter import Meter


def main(path: pathlib.Path, process: int) -> None:
  work = json.loads(path.read_text())
  resnet.MODELS['tiny'] = functools.partial(resnet.ResNet, (1,), (8,), blocks.BasicBlock, stem_type='cifar')
  read: dict[str, list[int]] = {'train': [], 'eval': []}
  record_reads(read)
  if process == work.get('victim'):
    in_evaluation(work['evaluation'], lambda: os.kill(os.getpid(), signal.SIGKILL))
  if 'gate' in work:
    in_evaluation(work['evaluation'], lambda: wait_for(pathlib.Path(work['gate'])))
  if process == work.get('asked'):
    ask_to_stop(work['step'])
  with one_line(), distributed.join(work['coordinator'], work['processes'], process), signals.exit_on_preemption():
    loop.train_and_evaluate(work['config'], work['workdir'])
    path.with_name(f'read{process}.json').write_text(json.dumps(read))


def record_reads(read: dict[str, list[int]]) -> None:
  ahead = Stream._prefetch

  def record(self, tasks):
    def see():
      for index, draws, extra in tasks:
        rows = extra['mask'] if extra else slice(None)
        read['eval' if extra else 'train'].append(index[rows].tolist())
        yield index, draws, extra

    return ahead(self, see())

  Stream._prefetch = record


def wait_for(file: pathlib.Path) -> None:
  while not file.exists():
    time.sleep(0.05)


def in_evaluation(number: int, act: Callable[[], None]) -> None:
  calls, real = [], evaluate.evaluate_state

  def evaluate_state(*args):
    calls.append(1)
    if len(calls) == number:
      act()
    return real(*args)

  evaluate.evaluate_state = evaluate_state


def ask_to_stop(step: int) -> None:
  """Have SIGTERM come to this process behind ``step``, once."""
  add = Meter.add

  def note(self, number, sums, *, last):
    add(self, number, sums, last=last)
    if number >= step and not asked:
      asked.append(number)
      os.kill(os.getpid(), signal.SIGTERM)

  asked: list[int] = []
  Meter.add = note


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
