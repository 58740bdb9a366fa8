import zipfile

import numpy as np
import pytest

from jaxres import weights
from jaxres.errors import InputError
from tests.weights.files import assert_same, make_state


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.th', '.safetensors'])
def test_what_is_written_is_read_and_written_again_the_same(tmp_path, suffix):
  state = make_state(4)
  first, second = tmp_path / f'a{suffix}', tmp_path / f'b{suffix}'
  weights.write(first, state)
  actual = weights.read(first)
  assert_same(actual, state, ordered=suffix != '.safetensors')  # the library sorts
  weights.write(second, actual)
  assert first.read_bytes() == second.read_bytes()
  assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]


@pytest.mark.torch
@pytest.mark.parametrize('mapped', [False, True])
def test_torch_loads_it(tmp_path, mapped):
  torch = pytest.importorskip('torch')
  state = make_state(4) | {'empty': np.zeros((0, 3), np.float32), 'é': np.full((2, 70000), 2, np.float32)}
  weights.write(tmp_path / 'x.pth', state)
  actual = torch.load(tmp_path / 'x.pth', weights_only=True, mmap=mapped)
  assert_same({name: value.numpy() for name, value in actual.items()}, state)


def test_storages_are_aligned_and_the_archive_is_sound(tmp_path):
  weights.write(tmp_path / 'x.pth', make_state(4))
  raw = (tmp_path / 'x.pth').read_bytes()
  with zipfile.ZipFile(tmp_path / 'x.pth') as archive:
    assert archive.testzip() is None
    for info in archive.infolist():
      at = info.header_offset
      start = (
        at + 30 + int.from_bytes(raw[at + 26 : at + 28], 'little') + int.from_bytes(raw[at + 28 : at + 30], 'little')
      )
      assert start % 64 == 0, info.filename


def test_bad_targets_are_one_line(tmp_path):
  state = make_state(4)
  with pytest.raises(InputError, match='ends in .pth, .pt, .th, .safetensors'):
    weights.write(tmp_path / 'x.bin', state)
  with pytest.raises(InputError, match='fc.bias is float64'):
    weights.write(tmp_path / 'x.pth', state | {'fc.bias': np.zeros(3)})
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='cannot write'):
    weights.write(tmp_path / 'file' / 'x.pth', state)
  assert [path.name for path in tmp_path.iterdir()] == ['file']
