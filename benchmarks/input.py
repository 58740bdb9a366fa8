"""How many images a second the ``stream`` pipeline makes of JPEG files: read, decode, random-resized crop, batch.

python benchmarks/input.py --images 512 --workers 2

Prints one JSON line per result and a table. ``train`` and ``eval`` are what training and evaluation are fed with;
``decode`` stands beside them in the same rounds: as many threads that do nothing but decode the same JPEGs, in full and
by simplejpeg. The JPEGs are smooth noise of a photograph's size (500x375, about 70 kB); they are read once before the
clock starts, so that the disk is not what is measured.
"""

import argparse
import concurrent.futures
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness
from jaxres import data
from jaxres.data import decode
from jaxres.runtime.memory import keep_freed_memory

WIDTH, HEIGHT, BYTES = 500, 375, 70_000
OCTAVES = ((4, 60), (8, 40), (16, 30), (32, 20), (64, 14), (128, 9))  # grid points a side, amplitude in levels


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=512)
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--workers', type=int, nargs='+', default=[2])
  parser.add_argument('--seconds', type=float, default=4.0, help='of a round')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--pillow', action='store_true', help='also without simplejpeg and OpenCV')
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  args = parser.parse_args()
  keep_freed_memory()  # as training does
  with tempfile.TemporaryDirectory() as folder:
    context = {'mean_jpeg_bytes': round(write_images(pathlib.Path(folder), args.images))} | harness.machine()
    rows = []
    for workers in args.workers:
      rows += [row | context for row in measure(folder, workers, args)]
  harness.report(rows, args.out)


def write_images(folder: pathlib.Path, count: int) -> float:
  """Write ``count`` JPEGs in two classes; return their mean size in bytes."""
  rng = np.random.default_rng(0)
  for label in ('a', 'b'):
    (folder / label).mkdir()
  for number in range(count):
    planes = [
      sum(
        np.asarray(Image.fromarray(amplitude * noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        for amplitude, noise in ((a, rng.standard_normal((k, k), np.float32)) for k, a in OCTAVES)
      )
      for _ in range(3)
    ]
    image = Image.fromarray(np.clip(np.stack(planes, 2) + 128, 0, 255).astype(np.uint8))
    file = folder / 'ab'[number % 2] / f'{number:06d}.jpg'
    low, high = 1, 100
    while low < high:  # the lowest quality that makes so large a file
      quality = (low + high) // 2
      image.save(file, quality=quality)
      low, high = (low, quality) if file.stat().st_size >= BYTES else (quality + 1, high)
    image.save(file, quality=low)
  return statistics.mean(file.stat().st_size for file in folder.glob('*/*.jpg'))


def measure(folder: str, workers: int, args: argparse.Namespace) -> list[dict[str, object]]:
  """Return a row for each kind of work, done in turns."""
  options = {'batch_size': args.batch_size, 'image_size': args.image_size, 'workers': workers}
  pipeline = data.load('folder', path=folder, pipeline='stream', center_crop=0.875, **options).train
  files = [file.read_bytes() for file in sorted(pathlib.Path(folder).glob('*/*.jpg'))]
  kinds = {
    'decode': lambda: decode_only(files, workers, args.seconds),
    'train': lambda: feed(pipeline.step_inputs(0, 1 << 30), args.batch_size, args.seconds),
    'eval': lambda: feed(repeat(pipeline, args.batch_size), args.batch_size, args.seconds),
  }
  if args.pillow:
    kinds |= {'train, pillow': lambda: without_fast(kinds['train'])}
  rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
  for _ in range(args.rounds):
    for kind, work in kinds.items():
      rounds[kind].append(work())
  rows = harness.summarize(rounds, 'decode')
  return [{'benchmark': 'input'} | row | options | {'image': [WIDTH, HEIGHT]} for row in rows]


def feed(source: Iterator[Any], batch_size: int, seconds: float) -> dict[str, float]:
  """Return the speed at which ``source`` yields; the first batches, that fill it, not counted."""
  next(source)
  count, start, cpu = 0, time.perf_counter(), time.process_time()
  while time.perf_counter() - start < seconds:
    next(source)
    count += batch_size
  row = speed(count, start, cpu)
  source.close()
  return row


def decode_only(files: list[bytes], workers: int, seconds: float) -> dict[str, float]:
  """Return the speed of threads that decode full JPEGs into memory that each keeps."""

  def work(number: int) -> int:
    pixels, count = np.empty((HEIGHT, WIDTH, 3), np.uint8), 0
    while time.perf_counter() - start < seconds:
      simplejpeg.decode_jpeg(files[(number + count * workers) % len(files)], buffer=pixels)
      count += 1
    return count

  start, cpu = time.perf_counter(), time.process_time()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    count = sum(pool.map(work, range(workers)))
  return speed(count, start, cpu)


def speed(count: int, start: float, cpu: float) -> dict[str, float]:
  took = time.perf_counter() - start
  return {'images_per_s': count / took, 'cpu_ms_per_image': 1e3 * (time.process_time() - cpu) / count}


def without_fast(work: Callable[[], dict[str, float]]) -> dict[str, float]:
  """Do ``work`` as where the extra ``data`` is not installed."""
  fast, decode.fast_modules = decode.fast_modules, lambda: None
  try:
    return work()
  finally:
    decode.fast_modules = fast


def repeat(pipeline: data.Pipeline, batch_size: int) -> Iterator[Any]:
  while True:
    for batch in pipeline.eval_inputs(batch_size):
      if batch['mask'].all():
        yield batch


if __name__ == '__main__':
  main()
