"""How many images a second the ``stream`` pipeline makes of JPEG files: decode, random-resized crop, batch.

python benchmarks/input.py --images 512 --workers 2

Prints one JSON line per result. The JPEGs are smooth noise of a photograph's size (500x375, about 70 kB); they are
read once before the clock starts, so that the disk is not what is measured.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from jaxres import data
from jaxres.data import decode

WIDTH, HEIGHT, BYTES = 500, 375, 70_000
OCTAVES = ((4, 60), (8, 40), (16, 30), (32, 20), (64, 14), (128, 9))  # grid points a side, amplitude in levels


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=512)
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--workers', type=int, nargs='+', default=[2])
  parser.add_argument('--seconds', type=float, default=4.0, help='a round')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--pillow', action='store_true', help='also without simplejpeg and OpenCV')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    size = write_images(pathlib.Path(folder), args.images)
    for fast in (True, False) if args.pillow else (True,):
      if not fast:
        decode.fast = lambda: None
      for workers in args.workers:
        for feeds in ('train', 'eval'):
          print(json.dumps(measure(folder, feeds, workers, args) | {'mean_jpeg_bytes': round(size)}), flush=True)


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


def measure(folder: str, feeds: str, workers: int, args: argparse.Namespace) -> dict[str, object]:
  options = {'batch_size': args.batch_size, 'image_size': args.image_size, 'workers': workers}
  pipeline = data.load('folder', path=folder, pipeline='stream', center_crop=0.875, **options).train
  for _ in pipeline.train_feeds(0, 3):  # warm up: imports, the files in memory
    pass
  rounds = [images_per_second(pipeline, feeds, args.batch_size, args.seconds) for _ in range(args.rounds)]
  rates, cpu = zip(*rounds, strict=True)
  commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, check=False)
  return {
    'benchmark': f'input/{feeds}',
    'images_per_s': round(statistics.median(rates)),
    'spread': [round(min(rates)), round(max(rates))],
    'cpu_ms_per_image': round(statistics.median(cpu), 3),
    'decoder': 'simplejpeg+opencv' if decode.fast() and feeds == 'train' else 'pillow',
    'rounds': args.rounds,
    'image': [WIDTH, HEIGHT],
    'cores': os.cpu_count(),
    'load_before': os.getloadavg()[0],
    'device': platform.processor() or platform.machine(),
    'versions': {name: version(name) for name in ('pillow', 'simplejpeg', 'opencv-python-headless', 'numpy')},
    'commit': commit.stdout.strip(),
  } | options


def images_per_second(pipeline: data.Pipeline, feeds: str, batch_size: int, seconds: float) -> tuple[float, float]:
  """Return images a second and milliseconds of CPU time an image; the first batches, that fill it, not counted."""
  source = pipeline.train_feeds(0, 1 << 30) if feeds == 'train' else repeat(pipeline, batch_size)
  next(source)
  count, start, cpu = 0, time.perf_counter(), time.process_time()
  while time.perf_counter() - start < seconds:
    next(source)
    count += batch_size
  rate, cpu = count / (time.perf_counter() - start), time.process_time() - cpu
  source.close()
  return rate, 1e3 * cpu / count


def repeat(pipeline: data.Pipeline, batch_size: int):
  while True:
    for feed in pipeline.eval_feeds(batch_size):
      if feed['mask'].all():
        yield feed


def version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


if __name__ == '__main__':
  main()
