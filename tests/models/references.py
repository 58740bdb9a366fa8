"""What torch computes of the networks that jaxres is compared with, kept for a Python that has no torch.

torch_references.npz holds at most 128 values of each array, drawn by a fixed rule. Where torch is installed the tests
compare with torch itself, on every value, and hold the file against it. Write the file again, with torch, after a
case was added or changed, by

    python -m tests.models.references
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

PATH = pathlib.Path(__file__).with_name('torch_references.npz')
SAMPLE = 128
Arrays = Mapping[str, np.ndarray]


def sample(array: Any) -> np.ndarray:
  """Return at most 128 values of ``array``, float32, always from the same places."""
  values = np.asarray(array, np.float32).ravel()
  if values.size <= SAMPLE:
    return values
  return values[np.arange(SAMPLE) * 2654435761 % values.size]  # Knuth's multiplicative hash


@functools.cache
def read_stored() -> dict[str, dict[str, np.ndarray]]:
  """Return the samples in the file, by case and name."""
  with np.load(PATH) as file:
    index, values = json.loads(file['index'].tobytes()), file['values']
  cases: dict[str, dict[str, np.ndarray]] = {}
  start = 0
  for case, sizes in index.items():
    cases[case] = {}
    for name, size in sizes.items():
      cases[case][name] = values[start : start + size]
      start += size
  return cases


def store(cases: Mapping[str, Arrays]) -> None:
  """Write the file: all values in a row, and how many of them each name has, in the order of the row."""
  samples = {case: {name: sample(array) for name, array in arrays.items()} for case, arrays in cases.items()}
  index = {case: {name: values.size for name, values in arrays.items()} for case, arrays in samples.items()}
  values = np.concatenate([values for arrays in samples.values() for values in arrays.values()])
  np.savez_compressed(PATH, index=np.frombuffer(json.dumps(index).encode(), np.uint8), values=values)


def assert_as_stored(arrays: Arrays, kept: Arrays) -> None:
  """Assert that what torch computes is what was stored, but for the rounding of another CPU."""
  assert arrays.keys() == kept.keys()
  largest = max(np.abs(values).max() for values in kept.values())
  for name, values in kept.items():
    error = np.abs(sample(arrays[name]) - values).max()
    assert error < 1e-3 * np.abs(values).max() + 1e-5 * largest, f'{name} is not what was stored'


class Recorder:
  """A plugin of pytest that keeps what torch computed."""

  def __init__(self) -> None:
    self.cases: dict[str, Arrays] = {}

  def add(self, case: str, compute: Callable[[], Arrays]) -> Arrays:
    self.cases[case] = compute()
    return self.cases[case]


def main() -> None:
  """Run the tests that compare with torch, and store what it returned."""
  import pytest

  from tests.models import references  # as the tests import it: run as a script, this module is another

  recorder = references.Recorder()
  status = pytest.main([str(PATH.parent), '-q', '-m', 'torch and not slow'], plugins=[recorder])
  if status:
    sys.exit('not stored: a test failed')
  store(dict(sorted(recorder.cases.items())))
  print(f'{PATH}: {len(recorder.cases)} cases, {PATH.stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
  main()
