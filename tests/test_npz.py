"""Arrays in .npz files: read as they were written, or one short line, and no more memory than the file has."""

import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxres import npz
from jaxres.errors import InputError
from tests.mutations import LONGEST, Kind, limited, mutations, try_all


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_mutations_of_npz(save: Callable[..., None], tmp_path) -> None:
  arrays = {'labels': np.arange(40, dtype=np.int32), 'names': np.array(['a', 'bc']), 'x': np.full((4, 3, 3), 0.5)}
  save(tmp_path / 'a.npz', **arrays)

  def read(directory: pathlib.Path) -> Any:
    try:
      return npz.load_npz(directory / 'a.npz')
    except ValueError as error:
      raise InputError(str(error)) from None

  def check(content: Any) -> None:
    assert all(isinstance(array, np.ndarray) for array in content.values())

  raw = (tmp_path / 'a.npz').read_bytes()
  kind = Kind('a.npz', raw, read, check, True, lambda raw, seed: mutations(raw, seed, is_json=False))
  print(try_all(kind, tmp_path))


def member(shape: tuple[int, ...], data: bytes = b'') -> bytes:
  """Return an array's file whose header says ``shape`` and whose content is ``data``."""
  header = repr({'descr': '<f8', 'fortran_order': False, 'shape': shape}).encode() + b'\n'
  return b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header + data


@pytest.mark.parametrize(
  ('name', 'content', 'line'),
  [
    ('x.npy', b'not an array', 'is no array'),
    ('readme.txt', b'hello', 'is no array'),
    ('x.npy', member((100_000, 20_000)), 'says that it has 16,000,000,000 bytes, and has 0'),
    ('x.npy', member((2**31, 2**31, 2**31), bytes(64)), 'says that it has'),
    ('x.npy', member((-1, 8), bytes(64)), 'says that it has'),
    ('x.npy', member((2,), bytes(24)), 'says that it has 16 bytes, and has 24'),
    ('x.npy', b'\x93NUMPY\x09\x00', 'another version of NumPy'),
    ('x.npy', b'\x93NUMPY\x01\x00\xff\xff' + b'(' * 60_000, '.'),
  ],
)
def test_members_that_are_no_arrays_or_too_large(tmp_path, name: str, content: bytes, line: str) -> None:
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
    archive.writestr(name, content)
  with limited(), pytest.raises(ValueError, match=line) as caught:
    npz.load_npz(tmp_path / 'a.npz')
  assert len(str(caught.value)) < LONGEST


# what is no file, or has no end
