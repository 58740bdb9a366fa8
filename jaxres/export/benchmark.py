"""`jaxres benchmark`: size, accuracy, agreement, latency and memory of every format of a bundle, side by side."""

import concurrent.futures
import io
import math
import multiprocessing
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from jaxres import data, files, tasks, workdir
from jaxres.errors import InputError, print_status
from jaxres.export import engines
from jaxres.runtime import sharding
from jaxres.weights import bundle

BATCHES = (1, 32)
CPU_FLAGS = ('avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_bf16', 'neon', 'asimd')


class Measured(NamedTuple):
  """What an engine did.

  Attributes:
    logits: float32 ``[N, K]`` of the images.
    seconds: of each call, by the batch.
    peak_bytes: of the process, everything that it imports too.
  """

  logits: np.ndarray
  seconds: dict[int, list[float]]
  peak_bytes: int


def read_examples(run: pathlib.Path, split: str, **moved: str | None) -> tuple[np.ndarray, np.ndarray]:
  """Return images, uint8 ``[N, H, W, C]``, and labels, int32 ``[N]``, of a split of the data of a run.

  Args:
    run: its workdir.
    split: ``'test'`` or ``'val'``.
    **moved: ``data_dir`` or ``path``, where the data is now; None where it was.

  Raises:
    InputError: there is no such run, data or split.
  """
  config = workdir.read_config(run)
  if config is None:
    raise InputError(run, 'no run there', expected='a workdir, with config.json', fix='say where by --run')
  fields = config['data'] | {name: value for name, value in moved.items() if value is not None}
  labels = tasks.make_from(config['train']).labels
  dataset = data.load(**fields, split_rule=workdir.split_rule(run), labels=labels)
  dataset.place(sharding.make_mesh())
  pipeline = getattr(dataset, split)
  if pipeline is None:
    raise InputError(run, f'no {split} split')
  size = 64 * jax.device_count()
  batches = [jax.device_get(pipeline.get_batch(pipeline.device_data, feed)) for feed in pipeline.eval_inputs(size)]
  mask = np.concatenate([batch['mask'] for batch in batches])
  images, targets = (np.concatenate([batch[name] for batch in batches])[mask] for name in ('image', 'label'))
  return images, targets


def measure(directory: pathlib.Path, name: str, images_path: str, seconds: float) -> Measured:
  """Run one engine on the images of an .npy file, then on batches of ``BATCHES`` of them for some seconds each."""
  images = np.load(images_path, mmap_mode='r')
  engine = engines.open_engine(directory, name)
  size = max(BATCHES)
  logits = [engine(np.resize(images[i : i + size], (size, *images.shape[1:])))[0] for i in range(0, len(images), size)]
  times: dict[int, list[float]] = {}
  for batch in BATCHES:
    part = np.resize(images[:batch], (batch, *images.shape[1:]))
    engine(part)  # what is compiled, is compiled here
    times[batch] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[batch]) < 3:
      start = time.perf_counter()
      engine(part)
      times[batch].append(time.perf_counter() - start)
  return Measured(np.concatenate(logits)[: len(images)], times, read_peak_bytes())


def read_peak_bytes() -> int:
  """Return the most memory that this process has had.

  Where the system says so in /proc, it is that of this program alone: ``ru_maxrss`` is not less than what the parent
  had when it started this process.
  """
  try:
    status = pathlib.Path('/proc/self/status').read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith('VmHWM'))) * 1024
  except (OSError, StopIteration):
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def run(directory: pathlib.Path, images: np.ndarray, labels: np.ndarray | None, seconds: float) -> dict[str, Any]:
  """Return what every engine of a bundle did, each in a separate process.

  Args:
    directory: the bundle.
    images: uint8 ``[N, H, W, C]``.
    labels: int32 ``[N]``; None leaves out the top-1.
    seconds: of the measurement of a batch size.

  Returns:
    ``cpu_flags``, ``examples`` and ``formats``, rows by name; ready for JSON.
  """
  rows: dict[str, Any] = {}
  answers: np.ndarray | None = None
  with tempfile.TemporaryDirectory() as folder:
    path = f'{folder}/images.npy'
    np.save(path, images)
    for name in engines.list_engines(directory):
      print_status(f'{name}: {len(images):,} images, then batches of {" and ".join(map(str, BATCHES))}')
      context = multiprocessing.get_context('spawn')
      with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        measured = pool.submit(measure, directory, name, path, seconds).result()
      answers = measured.logits if answers is None else answers
      file = directory / engines.FILES.get(name, bundle.WEIGHTS)
      rows[name] = summarize(measured, answers, labels) | {'bytes': file.stat().st_size}
  return {'examples': len(images), 'cpu_flags': read_cpu_flags(), 'formats': rows}


def summarize(measured: Measured, expected: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
  """Return the row of an engine.

  Args:
    measured: of ``measure``.
    expected: logits of jaxres from the weights, float32 ``[N, K]``.
    labels: int32 ``[N]`` or None.
  """
  answers = measured.logits.argmax(1)
  row: dict[str, Any] = {'agreement': float((answers == expected.argmax(1)).mean())}
  row['logit_error'] = float(np.abs(measured.logits - expected).max() / np.abs(expected).max())
  if labels is not None:
    right = int((answers == labels).sum())
    interval = stats.binomtest(right, len(labels)).proportion_ci(method='wilson')
    row |= {'top1': right / len(labels), 'top1_interval': (float(interval.low), float(interval.high))}
  for batch, seconds in measured.seconds.items():
    p50, p95 = (float(np.percentile(seconds, q)) for q in (50, 95))
    row[f'batch{batch}'] = {'p50_ms': 1e3 * p50, 'p95_ms': 1e3 * p95, 'images_per_s': batch / p50}
  return row | {'peak_bytes': measured.peak_bytes}


def read_cpu_flags() -> list[str]:
  """Return the instructions of this CPU that matter for networks, where the system says so."""
  try:
    words = set(pathlib.Path('/proc/cpuinfo').read_text().split())
  except OSError:
    return []
  return [flag for flag in CPU_FLAGS if flag in words]


def format_table(result: dict[str, Any]) -> list[str]:
  """Return the lines of a table of ``run``."""
  head = (
    'format',
    'MB',
    'top-1',
    '95 %',
    'agrees',
    'p50 ms',
    'p95 ms',
    'p50 ms, 32',
    'p95 ms, 32',
    'images/s',
    'peak MB',
  )
  lines = [head]
  for name, row in result['formats'].items():
    one, many = row['batch1'], row['batch32']
    low, high = row.get('top1_interval', (math.nan, math.nan))
    top1 = (f'{row["top1"]:.2%}', f'{low:.1%}-{high:.1%}') if 'top1' in row else ('-', '-')
    times = [f'{each[key]:.2f}' for each in (one, many) for key in ('p50_ms', 'p95_ms')]
    rest = (f'{many["images_per_s"]:,.0f}', f'{row["peak_bytes"] / 1e6:,.0f}')
    lines.append((name, f'{row["bytes"] / 1e6:.2f}', *top1, f'{row["agreement"]:.2%}', *times, *rest))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return ['  '.join(word.rjust(width) for word, width in zip(line, widths, strict=True)) for line in lines]


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
  """Draw latency at both batch sizes and peak memory of each format."""
  import matplotlib.figure

  names, rows = [*result['formats']], [*result['formats'].values()]
  figure = matplotlib.figure.Figure(figsize=(12, 3), layout='constrained')
  *latency, memory = figure.subplots(1, len(BATCHES) + 1)
  for axes, batch in zip(latency, BATCHES, strict=True):
    p50, p95 = (np.array([row[f'batch{batch}'][key] for row in rows]) for key in ('p50_ms', 'p95_ms'))
    axes.barh(names, p50, xerr=[np.zeros_like(p50), p95 - p50])
    axes.set(title=f'batch {batch}: p50, to p95', xlabel='ms')
  memory.barh(names, [row['peak_bytes'] / 1e6 for row in rows])
  memory.set(title='peak memory of the process', xlabel='MB')
  picture = io.BytesIO()
  figure.savefig(picture, dpi=120)
  files.write_atomic(path, picture.getvalue())
