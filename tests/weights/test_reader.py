import io
import json
import pickle
import random
import tarfile
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxres import weights
from jaxres.errors import InputError
from jaxres.weights import sources
from tests.weights.files import HEADER, assert_same, complaint, make_state, safetensors


def torch_state(state):
  import torch

  return {name: torch.tensor(value) for name, value in state.items()}


@pytest.mark.torch
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('protocol', [2, 4])
def test_what_torch_saves_is_read(tmp_path, zipped, protocol):
  torch = pytest.importorskip('torch')
  state = make_state(4)
  path = tmp_path / 'x.pth'
  torch.save(torch_state(state), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
  assert_same(weights.read(path), state)


@pytest.mark.torch
@pytest.mark.parametrize('zipped', [True, False])
def test_modules_parameters_views_and_wrappers(tmp_path, zipped):
  torch = pytest.importorskip('torch')
  state = make_state(4)
  tensors = torch_state(state)
  tensors['fc.weight'] = torch.tensor(state['fc.weight'].T.copy()).T  # strides
  complete = torch.cat([tensors['bn1.weight'], tensors['bn1.bias']])
  tensors['bn1.weight'], tensors['bn1.bias'] = complete[:8], complete[8:]  # views of one storage
  tensors['fc.bias'] = torch.nn.Parameter(tensors['fc.bias'])
  content = {
    'epoch': 3, 'best': 0.5, 'arch': 'tiny', 'flags': (True, None, [1, 2]), 'top1': torch.tensor(0.5),
    'optimizer': {'state': {0: {'momentum_buffer': torch.zeros(3)}}, 'param_groups': [{'lr': 0.1}]},
    'state_dict': {f'module.{name}': value for name, value in tensors.items()},
  }  # fmt: skip
  torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
  assert_same(weights.read(tmp_path / 'x.pth'), state)


@pytest.mark.torch
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64', 'int8', 'uint8', 'bool', 'int32'])
def test_other_dtypes(tmp_path, dtype, zipped):
  torch = pytest.importorskip('torch')
  tensors = torch_state(make_state(4))
  values = torch.tensor([0.0, -0.0, 1.1, -3e-8, 65504.0, float('inf'), float('nan'), 6e-8]).nan_to_num(nan=7.0)
  tensors['bn1.bias'] = (values if dtype.endswith('float16') else torch.arange(8)).to(getattr(torch, dtype))
  torch.save(tensors, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
  if dtype.startswith(('float', 'bfloat')):
    actual = weights.read(tmp_path / 'x.pth')['bn1.bias']
    assert actual.dtype == np.float32
    assert actual.tobytes() == tensors['bn1.bias'].float().numpy().tobytes()
  else:
    assert f'bn1.bias is {dtype}' in complaint(tmp_path / 'x.pth')


@pytest.mark.torch
def test_a_complete_module_and_torchscript_are_refused(tmp_path):
  torch = pytest.importorskip('torch')
  torch.save(torch.nn.Linear(2, 2), tmp_path / 'module.pth')
  assert 'torch.nn.modules.linear.Linear' in complaint(tmp_path / 'module.pth')
  torch.save({'state_dict': torch_state(make_state(4)), 'size': torch.Size([1])}, tmp_path / 'size.pth')
  assert 'torch.Size' in complaint(tmp_path / 'size.pth')


@pytest.mark.torch
def test_a_file_without_checksums_is_read(tmp_path):
  torch = pytest.importorskip('torch')
  state = make_state(4)
  torch.serialization.set_crc32_options(False)
  try:
    torch.save(torch_state(state), tmp_path / 'x.pth')
  finally:
    torch.serialization.set_crc32_options(True)
  assert_same(weights.read(tmp_path / 'x.pth'), state)


@pytest.mark.parametrize(
  'prefix', ['', 'module.', 'backbone.', 'module.backbone.', 'model.', '_orig_mod.', 'encoder.net.']
)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_prefixes(tmp_path, prefix, suffix):
  state = make_state(4)
  weights.write(tmp_path / f'x{suffix}', {prefix + name: value for name, value in state.items()})
  assert_same(weights.read(tmp_path / f'x{suffix}'), state, ordered=suffix != '.safetensors')


def test_a_head_beside_the_backbone(tmp_path):
  state = make_state(4)
  named = {f'module.head.{n}' if n.startswith('fc') else f'module.backbone.{n}': v for n, v in state.items()}
  weights.write(tmp_path / 'x.pth', named)
  actual = weights.read(tmp_path / 'x.pth')
  assert weights.dialect_of(actual).head == 'head.fc'
  assert {n.removeprefix('head.') for n in actual} == {*state}


def test_two_networks_are_ambiguous(tmp_path):
  state = make_state(4)
  weights.write(tmp_path / 'x.pth', {f'{p}.{n}': v for p in ('encoder_q', 'encoder_k') for n, v in state.items()})
  assert "2 networks, with prefixes 'encoder_q.', 'encoder_k.'" in complaint(tmp_path / 'x.pth')
  weights.write(tmp_path / 'x.pth', {f'net.{n}': v for n, v in state.items()} | {'fc.bias': state['fc.bias']})
  assert 'two tensors are called fc.bias' in complaint(tmp_path / 'x.pth')


@pytest.mark.parametrize(
  ('content', 'expected'),
  [
    (b'', 'the file is empty'),
    (b'<!DOCTYPE html><html>', 'an HTML page'),
    (b'\n<html lang="en">', 'an HTML page'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
    (b'\x1f\x8b\x08', 'gzip'),
    (b'hello', 'neither of torch.save nor safetensors'),
    (b'PK\x03\x04 cut off', 'cut off or damaged'),
    (pickle.dumps({'a': 1}, 2), 'not of torch.save'),
    (HEADER[:20], 'torch.save'),
    (HEADER + pickle.dumps({'epoch': 1, 'lr': 0.1}, 2) + pickle.dumps([], 2), 'found keys epoch, lr'),
    (HEADER + pickle.dumps([1], 2) + pickle.dumps([], 2), 'found a list'),
    (safetensors(b'{}')[:9] + b'x', 'the safetensors header cannot be read'),
  ],
)
def test_what_is_no_weights_file_is_one_line(tmp_path, content, expected):
  (tmp_path / 'x.pth').write_bytes(content)
  assert expected in complaint(tmp_path / 'x.pth')


def test_tar_directory_and_nothing(tmp_path):
  with tarfile.open(tmp_path / 'x.pth', 'w') as tar:
    tar.addfile(tarfile.TarInfo('storages'), io.BytesIO())
  assert 'a tar archive' in complaint(tmp_path / 'x.pth')
  assert 'a directory' in complaint(tmp_path)
  assert 'No such file' in complaint(tmp_path / 'nothing.pth')
  with zipfile.ZipFile(tmp_path / 'z.pth', 'w') as archive:
    archive.writestr('x.txt', 'x')
  assert 'no data.pkl' in complaint(tmp_path / 'z.pth')


def damage(content: bytes, expected, path) -> int:
  """Read the content cut off and with flipped bits; return how many reads were refused."""
  rng = random.Random(0)
  refused = 0
  cuts = [content[: rng.randrange(1, len(content))] for _ in range(40)]
  flips = []
  for _ in range(80):
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    flips.append(bytes(flipped))
  for i, bad in enumerate(cuts + flips):
    path.write_bytes(bad)
    try:
      actual = weights.read(path)
    except InputError:
      refused += 1
      continue
    assert i >= len(cuts), 'a file that is cut off was read'
    if expected is not None:
      assert_same(actual, expected)  # the flip was in bytes that say nothing
  return refused


def test_damage_is_seen(tmp_path):
  state = make_state(4)
  weights.write(tmp_path / 'good.pth', state)
  assert damage((tmp_path / 'good.pth').read_bytes(), state, tmp_path / 'bad.pth') > 80
  weights.write(tmp_path / 'good.safetensors', state)
  damage((tmp_path / 'good.safetensors').read_bytes(), None, tmp_path / 'bad.safetensors')  # it has no checksum


@pytest.mark.torch
def test_damage_to_the_legacy_format_is_one_line(tmp_path):
  torch = pytest.importorskip('torch')
  torch.save(torch_state(make_state(4)), tmp_path / 'good.pth', _use_new_zipfile_serialization=False)
  damage((tmp_path / 'good.pth').read_bytes(), None, tmp_path / 'bad.pth')  # it has no checksum


F32 = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}


def test_safetensors_as_the_format_says(tmp_path):
  path = tmp_path / 'x.safetensors'
  bf16 = {'dtype': 'BF16', 'shape': [1, 2], 'data_offsets': [8, 12]}
  data = np.array([1.5, -2], '<f4').tobytes() + bytes([0x80, 0x3F, 0x49, 0x40])  # 1.0 and 3.140625
  path.write_bytes(safetensors({'__metadata__': {'a': 'b'}, 'w': F32, 'h': bf16}, data))
  actual = weights.read(path)
  assert [*actual] == ['w', 'h']
  np.testing.assert_array_equal(actual['w'], [1.5, -2])
  np.testing.assert_array_equal(actual['h'], np.array([[1, 3.140625]], np.float32))
  assert actual['h'].dtype == np.float32


@pytest.mark.parametrize(
  ('content', 'expected'),
  [
    (safetensors({'w': F32}, b'1234567'), 'cut off'),
    (safetensors({'w': F32}, b'123456789'), 'belong to no tensor'),
    (safetensors({'w': F32 | {'shape': [3]}}, b'12345678'), 'damaged'),
    (safetensors({'w': F32, 'v': F32}, b'12345678'), 'damaged'),
    (safetensors({'w': F32 | {'shape': [-2]}}, b'12345678'), '0 or more'),
    (safetensors({'w': F32 | {'dtype': 'I8', 'shape': [8]}}, b'12345678'), 'w is int8'),
    (safetensors({'w': F32 | {'dtype': 'F8_E4M3'}}, b'12345678'), 'w is F8_E4M3'),
    (safetensors(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":1}', b'12345678'), 'occurs twice'),
    (safetensors(b'{"w":' + b'[' * 100_000, b''), 'damaged'),
    (safetensors(b'{"w":1}', b''), 'damaged'),
    ((1 << 39).to_bytes(8, 'little') + b'{', 'cut off'),
  ],
)
def test_bad_safetensors_are_one_line(tmp_path, content, expected):
  (tmp_path / 'x.safetensors').write_bytes(content)
  assert expected in complaint(tmp_path / 'x.safetensors')


def test_an_index_of_shards_says_what_it_is(tmp_path):
  content = {'metadata': {'total_size': 9}, 'weight_map': {'conv1.weight': 'model-00001-of-00002.safetensors'}}
  for form in (json.dumps(content), json.dumps(content, indent=2)):
    (tmp_path / 'model.safetensors.index.json').write_text(form)
    with pytest.raises(InputError, match='an index of the parts of a network; read all parts by .* write one file'):
      weights.read(tmp_path / 'model.safetensors.index.json')


def test_a_part_of_a_network_says_what_it_is(tmp_path):
  weights.write(tmp_path / 'model-00001-of-00002.safetensors', make_state(4))
  with pytest.raises(InputError, match='part 1 of 2 of a network; read all parts by .* write one file'):
    weights.read(tmp_path / 'model-00001-of-00002.safetensors')
  (tmp_path / 'model-00001-of-00002.safetensors').rename(tmp_path / 'model-00001-of-00001.safetensors')
  assert_same(weights.read(tmp_path / 'model-00001-of-00001.safetensors'), make_state(4), ordered=False)


@pytest.mark.torch
@pytest.mark.filterwarnings('ignore:.*torch.jit.*:DeprecationWarning')
def test_what_torch_jit_saves_is_named(tmp_path):
  """Its code is compressed, which is not what it is refused for."""
  torch = pytest.importorskip('torch')
  torch.jit.script(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))).save(str(tmp_path / 'jit.pt'))
  assert 'a TorchScript archive, which holds code' in complaint(tmp_path / 'jit.pt')


@pytest.mark.parametrize('order', ['<', '>'])
def test_the_order_of_bytes_is_that_which_the_file_names(tmp_path, order):
  """Of an archive in zip64 too."""
  weights.write(tmp_path / 'x.pth', make_state(4))
  with zipfile.ZipFile(tmp_path / 'x.pth') as old, zipfile.ZipFile(tmp_path / 'y.pth', 'w') as new:
    states = iter(make_state(4).values())
    for name in sorted(old.namelist(), key=lambda name: int(name.split('/')[-1]) if '/data/' in name else -1):
      content = old.read(name)
      if name.endswith('byteorder'):
        continue
      if '/data/' in name:
        value = next(states)
        content = value.astype(value.dtype.newbyteorder(order)).tobytes()
      with new.open(name, 'w', force_zip64=True) as file:
        file.write(content)
    with new.open('archive/byteorder', 'w') as file:
      file.write({'<': b'little', '>': b'big'}[order])
  assert_same(weights.read(tmp_path / 'y.pth'), make_state(4))


def test_a_head_that_is_a_convolution_and_counts_of_one_number_are_read(tmp_path):
  state = make_state(4)
  wrapped = {name: value.reshape(1) if name.endswith('tracked') else value for name, value in state.items()}
  wrapped['fc.weight'] = state['fc.weight'][:, :, None, None]
  save_file(wrapped, tmp_path / 'x.safetensors')
  file = weights.read_file(tmp_path / 'x.safetensors')
  assert_same(file.tensors, state, ordered=False)
  assert file.notes == ('fc.weight is a 1x1 convolution: read as a dense layer, which does the same',)
  wrapped['fc.weight'] = np.zeros((4, 8, 3, 3), np.float32)
  save_file(wrapped, tmp_path / 'x.safetensors')
  assert weights.read(tmp_path / 'x.safetensors')['fc.weight'].shape == (4, 8, 3, 3)


@pytest.mark.parametrize(
  ('name', 'shape'), [('conv1.weight', (8, 0, 3, 3)), ('fc.weight', (0, 8)), ('layer1.0.conv1.weight', (8, 8, 0, 3))]
)
def test_a_tensor_without_numbers_is_one_line(tmp_path, tiny, name, shape):
  save_file({**make_state(4), name: np.zeros(shape, np.float32)}, tmp_path / 'x.safetensors')
  with pytest.raises(InputError) as caught:
    sources.read(str(tmp_path / 'x.safetensors'))
  assert str(caught.value) == f'{tmp_path}/x.safetensors: {name} {list(shape)} has no numbers'


def test_a_dict_of_a_key_without_a_value_is_damaged(tmp_path):
  key = b'X\x01\0\0\0a'
  (tmp_path / 'x.pth').write_bytes(HEADER + b'\x80\x02}(' + key + b'u.')
  assert 'a key without a value' in complaint(tmp_path / 'x.pth')
