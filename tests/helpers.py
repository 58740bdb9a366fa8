"""What tests of several modules share: no test module imports from another."""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxres import tasks
from jaxres.checkpoint.manager import Manager

ROOT = pathlib.Path(__file__).parents[1]
CLASS_NAMES = ['ant', 'bee', 'cat', 'dog']
MAIN_ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'TFDS_DATA_DIR')}


def make_arrays(sizes: tuple[int, int] = (96, 40), shape: tuple[int, ...] = (8, 8, 3), classes: int = 4) -> dict:
  """Return random images whose brightest channel tells the class: learnable in a few steps."""
  rng = np.random.default_rng(0)
  arrays = {}
  for split, size in zip(('train', 'test'), sizes, strict=True):
    labels = np.arange(size) % classes
    images = rng.integers(0, 80, (size, *shape))
    images[np.arange(size), labels] += 150  # a bright row
    arrays |= {f'{split}_x': images.astype(np.uint8), f'{split}_y': labels}
  return arrays


def merge(config: dict, **changes: dict) -> dict:
  return {section: config.get(section, {}) | changes.get(section, {}) for section in config | changes}


def classification(loss: str = 'softmax_xent', **fields: float) -> tasks.Task:
  """Return the task of telling classes."""
  return tasks.make('classification', loss=loss, **fields)


def rows(workdir: pathlib.Path) -> list[dict]:
  actual = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in row.items() if k != 'train/images_per_s'} for row in actual]


def main_command(*arguments: str) -> list[str]:
  return [sys.executable, 'main.py', *arguments]


def run_main(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    main_command(*arguments), cwd=ROOT, env=MAIN_ENVIRONMENT, capture_output=True, text=True, timeout=300
  )


def benchmark_arguments(*words: str, model: str) -> argparse.Namespace:
  """Return the arguments of a side of a benchmark, of little work."""
  from benchmarks import sides

  parser = argparse.ArgumentParser()
  sides.add_arguments(parser)
  return parser.parse_args(['--model', model, '--batch_size', '8', '--image_size', '8', *words])


def save_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
  """Have checkpoints saved without the digest of ``data.json``, as an older jaxres saved them."""
  monkeypatch.setattr(Manager, 'data', property(lambda _: None, lambda *_: None))
