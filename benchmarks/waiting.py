"""What reading images costs a training: the step fed by the ``stream`` pipeline beside the same step on one batch.

python benchmarks/waiting.py --model resnet18 --batch_size 64

The JPEGs are those of ``input.py``, cropped at random to ``--image_size``. Both sides take turns in one process;
``streamed`` is slower by what it waits for batches and by what the threads that read take from the step on a CPU.
Prints one JSON line a side and a table.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness
from benchmarks.input import write_images
from jaxres import config as config_lib
from jaxres.analysis import profile


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', default='resnet18')
  parser.add_argument('--images', type=int, default=512)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--steps', type=int, default=4, help='of a round of one side')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    write_images(pathlib.Path(folder), args.images)
    harness.report(measure(folder, args), args.out)


def measure(folder: str, args: argparse.Namespace) -> list[dict[str, Any]]:
  """Return a row for each side."""
  work = {'batch_size': args.batch_size, 'image_size': args.image_size, 'workers': args.workers}
  data = {'name': 'folder', 'path': folder, 'pipeline': 'stream', 'center_crop': 0.875, **work}
  options = config_lib.make(model={'name': args.model}, data=data)
  context = {'benchmark': 'waiting', 'model': args.model} | work | harness.machine()
  sides = {'one batch': profile.prepare(options, one_batch=True), 'streamed': profile.prepare(options)}
  rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
  for number in range(args.rounds + 1):
    for side, step in sides.items():
      start, cpu = time.perf_counter(), time.process_time()
      step.run(args.steps)
      count = args.steps * step.images
      row = {
        'images_per_s': count / (time.perf_counter() - start),
        'cpu_ms_per_image': 1e3 * (time.process_time() - cpu) / count,
      }
      if number:  # the first round warms up
        rounds[side].append(row)
  return [row | context for row in harness.summarize(rounds, 'one batch')]


if __name__ == '__main__':
  main()
