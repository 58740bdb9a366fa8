import io
import pathlib
import shlex
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxres import cli, command_line, data
from jaxres import config as config_lib
from jaxres.data import decode
from jaxres.data.prepare import folder as prepare_folder
from jaxres.data.sources import tfds as tfds_lib
from jaxres.errors import InputError
from jaxres.train import loop
from tests.helpers import ROOT

KINDS = {  # file name: mode, and whether the file is stored as it is
  'rgb.jpg': ('RGB', True),
  'grey.jpg': ('L', True),
  'cmyk.jpg': ('CMYK', False),
  'rgb.png': ('RGB', True),
  'grey.png': ('L', True),
  'palette.png': ('P', True),
  'alpha.png': ('RGBA', True),
  'deep.png': ('I;16', False),
  'windows.bmp': ('RGB', False),
  'web.webp': ('RGB', False),
  'still.gif': ('P', False),
}


def picture(seed: int, mode: str = 'RGB') -> Image.Image:
  pixels = np.random.default_rng(seed).integers(0, 256, (14 + seed % 9, 12 + seed % 7, 3), np.uint8)
  if mode == 'I;16':
    return Image.fromarray(pixels[..., 0].astype(np.uint16) << 8)
  return Image.fromarray(pixels).convert(mode)


def write(path: pathlib.Path, seed: int = 0, mode: str = 'RGB') -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  picture(seed, mode).save(path)


def photos(root: pathlib.Path, **counts: int) -> pathlib.Path:
  """Write ``count`` images of each of three classes to each split; '' is no split."""
  seed = 0
  for split, count in counts.items():
    for label in ('cat', 'cat-x', 'dog'):  # as text, cat-x/ comes before cat/
      for i in range(count):
        seed += 1
        write(root / split.strip('_') / label / f'{"a b"[i % 3]}{i}.{["png", "jpg"][i % 2]}', seed)
  return root


def complaint(*words: object) -> str:
  with pytest.raises(InputError) as caught:
    prepare_folder.pack(*words)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  'counts', [{'train': 7, 'val': 2, 'test': 3}, {'train': 7, 'test': 3}, {'train': 9, 'val': 2}, {'_': 8}]
)
@pytest.mark.parametrize('pipeline', ['resident', 'stream'])
def test_the_set_gives_the_batches_of_the_folder(tmp_path, counts, pipeline) -> None:
  root = photos(tmp_path / 'photos', **counts)
  made = prepare_folder.pack(str(root), 'animals', str(tmp_path / 'sets'))
  assert made == tmp_path / 'sets/animals/1.0.0'
  options = {'image_size': 10, 'batch_size': 5, 'pipeline': pipeline, 'seed': 3}
  ours = data.load('animals', data_dir=str(tmp_path / 'sets'), **options)
  theirs = data.load('folder', path=str(root), **options)
  if 'val' in counts and 'test' not in counts:  # a set with validation alone is evaluated on it, as ImageNet
    assert (ours.train.size, ours.val, ours.test.size) == (27, None, 6)
    return
  assert ours.info._replace(splits={}) == theirs.info._replace(splits={})
  if '_' in counts:  # a folder's own fifth is drawn by name, a set's by place
    assert (ours.train.size, ours.test.size) == (theirs.train.size, theirs.test.size)
    return
  for split in ('train', 'val', 'test'):
    a, b = getattr(ours, split), getattr(theirs, split)
    assert (a is None) == (b is None) == (split == 'val' and 'val' not in counts)
    if a is None:
      continue
    for x, y in zip(
      list(a.eval_inputs(5)) + list(a.step_inputs(0, 9)),
      list(b.eval_inputs(5)) + list(b.step_inputs(0, 9)),
      strict=True,
    ):
      x, y = (p.get_batch(p.device_data, feed) for p, feed in ((a, x), (b, y)))
      np.testing.assert_array_equal(x['image'], y['image'])
      np.testing.assert_array_equal(x['label'], y['label'])


def test_files_are_stored_as_they_are_or_as_rgb_png(tmp_path, capsys) -> None:
  for seed, (name, (mode, _)) in enumerate(KINDS.items()):
    for split in ('train', 'test'):
      for label in 'ab':
        write(tmp_path / 'photos' / split / label / name, seed, mode)
  prepare_folder.pack(str(tmp_path / 'photos'), 'kinds', str(tmp_path))
  assert f'writing 22 train images, 22 test images to {tmp_path}/kinds/1.0.0' in capsys.readouterr().err
  stored = tfds.data_source(
    'kinds', split='test', data_dir=tmp_path, download=False, decoders={'image': tfds.decode.SkipDecoding()}
  )
  assert stored.dataset_info.features['label'].names == ['a', 'b']
  actual = {example['id'].decode(): example for example in stored}
  assert sorted(actual) == sorted(f'test/{label}/{name}' for label in 'ab' for name in KINDS)
  for place, example in actual.items():
    content = (tmp_path / 'photos' / place).read_bytes()
    as_it_is = KINDS[place.split('/')[2]][1]
    assert (example['image'] == content) == as_it_is, place
    assert example['label'] == 'ab'.index(place.split('/')[1])
    np.testing.assert_array_equal(decode.decode_image(example['image'], None), decode.decode_image(content, None))
    image = Image.open(io.BytesIO(example['image']))
    assert image.format in ('JPEG', 'PNG')
    assert as_it_is or (image.format, image.mode) == ('PNG', 'RGB')


def test_bad_images_are_named_or_left_out(tmp_path, capsys) -> None:
  root = photos(tmp_path / 'photos', train=5, test=2)
  for name in ('train/cat/ 1.jpg', 'test/dog/a0.png'):
    (root / name).write_bytes((root / name).read_bytes()[:60])
  Image.new('L', (4, 4)).save(
    root / 'train/dog/a0.png', 'GIF', save_all=True, append_images=[Image.new('L', (4, 4), 9)]
  )
  sets = str(tmp_path / 'sets')
  line = complaint(str(root), 'animals', sets)
  assert line.startswith(f'{root}/train/cat/ 1.jpg: cannot decode the image')
  assert line.endswith('repair or remove it, or leave such out with --max_bad N')
  assert complaint(str(root), 'animals', sets, 2).endswith('repair or remove it, and --max_bad is 2')
  assert not (tmp_path / 'sets').exists()
  capsys.readouterr()
  prepare_folder.pack(str(root), 'animals', sets, 3)
  output = capsys.readouterr().err
  assert 'left out 2 of at most 3: ' in output
  assert f'{root}/train/dog/a0.png: it is an animation of 2 frames' in output
  assert 'writing 13 train images, 5 test images' in output
  source = tfds_lib.read('animals', sets)
  assert np.bincount(source.train.labels).tolist() == [4, 5, 4]
  assert len(source.test.labels) == 5


def test_wrong_input_is_explained(tmp_path, monkeypatch) -> None:
  root = photos(tmp_path / 'photos', train=2, test=1)
  for name in ('My-Set', '1st', '', 'a/b'):
    assert f'--name {name}: expected lower-case letters' in complaint(str(root), name, str(tmp_path))
  for name in ('folder', 'cifar10'):
    assert f'--name {name}: expected another word than digits' in complaint(str(root), name, str(tmp_path))
  assert '/none: no such folder' in complaint('/none', 'x', str(tmp_path))
  assert '--max_bad: expected 0 or more, found -1' in complaint(str(root), 'x', str(tmp_path), -1)
  (tmp_path / 'empty').mkdir()
  assert 'expected a sub-folder of images per class, found none' in complaint(
    str(tmp_path / 'empty'), 'x', str(tmp_path)
  )
  assert 'at least two classes, found 1: dog' in complaint(_only(tmp_path, root), 'x', str(tmp_path))
  for path in (root / 'train/dog').iterdir():
    path.write_bytes(b'')
  assert 'a class of the split train has no image' in complaint(str(root), 'x', str(tmp_path), 9)
  (tmp_path / 'x/1.0.0').mkdir(parents=True)
  assert 'x/1.0.0: it exists; move it away' in complaint(str(root), 'x', str(tmp_path))
  monkeypatch.setitem(sys.modules, 'array_record', None)
  assert 'use --npz FILE --image_size S' in complaint(str(root), 'y', str(tmp_path))


def _only(tmp_path: pathlib.Path, root: pathlib.Path) -> str:
  (tmp_path / 'one').mkdir()
  (tmp_path / 'one/dog').symlink_to(root / 'train/dog')
  return str(tmp_path / 'one')


@pytest.mark.parametrize(
  ('folder', 'name'), [('My-Photos 2', 'my_photos_2'), ('pets/', 'pets'), ('2024', 'set_2024'), ('Ä', 'set_')]
)
def test_a_set_is_called_as_its_folder(tmp_path, folder, name) -> None:
  assert prepare_folder.name_of(f'{tmp_path}/{folder}') == name


def test_a_place_that_cannot_be_written_is_one_line(tmp_path) -> None:
  root = photos(tmp_path / 'photos', train=2, test=1)
  (tmp_path / 'file').write_text('')
  assert f'{tmp_path}/file/x/1.0.0: cannot write: ' in complaint(str(root), 'x', str(tmp_path / 'file'))


def test_npz_holds_the_resized_images(tmp_path, monkeypatch) -> None:
  monkeypatch.setitem(sys.modules, 'array_record', None)  # this is for machines without it
  root = photos(tmp_path / 'photos', train=6, val=2, test=3)
  file = prepare_folder.pack_npz(str(root), str(tmp_path / 'out/x.npz'), 9)
  ours = data.load('arrays', path=str(file), batch_size=4)
  theirs = data.load('folder', path=str(root), image_size=9, batch_size=4)
  without = {'mean': (), 'std': (), 'splits': {}}  # names and files are of the folder alone
  assert ours.info._replace(**without) == theirs.info._replace(**without)
  for split in ('train', 'val', 'test'):
    for key in ('image', 'label'):
      np.testing.assert_array_equal(getattr(ours, split).device_data[key], getattr(theirs, split).device_data[key])
  assert [p.name for p in file.parent.iterdir()] == ['x.npz']
  for arguments, message in (
    ((str(root), str(file), 9), 'x.npz: it exists; remove it'),
    ((str(root), 'x.zip', 9), 'ends in .npz'),
    ((str(root), 'x.npz', 0), '--image_size: expected pixels'),
  ):
    with pytest.raises(InputError, match=message):
      prepare_folder.pack_npz(*arguments)
  flat = photos(tmp_path / 'flat', _=5)
  with np.load(prepare_folder.pack_npz(str(flat), str(tmp_path / 'flat.npz'), 4)) as content:
    assert {k: len(v) for k, v in content.items()} == {
      'class_names': 3,
      'train_x': 12,
      'train_y': 12,
      'test_x': 3,
      'test_y': 3,
    }


@pytest.mark.parametrize(
  'words',
  ['--name animals --data_dir "{0}/my sets"', '--data_dir "{0}/sets"', '--npz "{0}/an imals.npz" --image_size 16'],
)
def test_the_printed_command_trains(tmp_path, capsys, tiny, words) -> None:
  root = photos(tmp_path / 'photos', train=4, test=2)
  cli.main(shlex.split(f'prepare folder "{root}" {words.format(tmp_path)}'))
  where, command = capsys.readouterr().out.splitlines()
  assert ' is in ' + str(tmp_path) in where
  start, file, option, _, *overrides = shlex.split(command.removeprefix('train on it: python main.py '))
  assert (start, option) == ('--config', '--workdir')
  assert all(word.startswith('--config.data.') for word in overrides)
  little = [f'--config.model.name={tiny}', '--config.data.batch_size=8', '--config.train.dry_run=True']
  options = config_lib.to_dict(command_line.load(str(ROOT / file), [*overrides, *little]))
  assert 0 <= loop.train_and_evaluate(options, tmp_path / 'run')['test/top1'] <= 1
