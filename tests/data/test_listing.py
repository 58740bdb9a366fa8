"""Which files are images: the same in training and in predicting; what is left out is named or refused."""

import os
import pathlib

import pytest
from PIL import Image

from jaxres import predict
from jaxres.data import listing
from jaxres.data.sources import folder
from jaxres.errors import InputError


def write(path: pathlib.Path, form: str = 'PNG') -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (8, 8), (hash(path.name) % 256, 0, 0)).save(path, form)
  return path


def test_predict_and_training_see_the_same_files(tmp_path) -> None:
  for name in 'ab':
    for file, form in (('1.jpg', 'JPEG'), ('2.TIF', 'TIFF'), ('3.tiff', 'TIFF'), ('4.JPEG', 'JPEG'), ('5.PNG', 'PNG')):
      write(tmp_path / name / file, form)
    for file in ('._1.jpg', '.hidden.png', 'notes.txt', 'Thumbs.db', 'png'):
      (tmp_path / name / file).write_bytes(b'x')
    write(tmp_path / name / '.cache/6.png')
  (tmp_path / 'a/7.png').symlink_to(tmp_path / 'b/1.jpg')
  outside = write(tmp_path.parent / f'{tmp_path.name}-c/1.png').parent
  (tmp_path / 'c').symlink_to(outside)
  splits, names = folder.find(str(tmp_path))
  trained = {splits['train'].name_of(i) for i in range(len(splits['train'].labels))}
  assert {str(path) for path in predict.find_images([str(tmp_path)])} == trained
  assert names == ('a', 'b', 'c')
  assert len(trained) == 12


def test_a_loop_of_links_is_walked_once(tmp_path) -> None:
  write(tmp_path / 'a/1.png')
  (tmp_path / 'a/up').symlink_to(tmp_path)
  (tmp_path / 'b').symlink_to(tmp_path / 'b')
  (tmp_path / 'c.png').symlink_to(tmp_path / 'c.png')
  assert [path.name for path in predict.find_images([str(tmp_path)])] == ['1.png']


def test_predict_says_what_is_a_link_to_nothing(tmp_path, capsys) -> None:
  write(tmp_path / '1.png')
  (tmp_path / '2.png').symlink_to('/none')
  os.mkfifo(tmp_path / '3.png')
  assert len(predict.find_images([str(tmp_path)])) == 1
  assert (
    f'2 images are links to nothing, or no files, and left out, such as {tmp_path}/2.png' in capsys.readouterr().err
  )
  (tmp_path / '1.png').unlink()
  with pytest.raises(InputError, match='no images there'):
    predict.find_images([str(tmp_path)])


def fill(root: pathlib.Path, good: int, deep: int = 0, dangling: int = 0) -> None:
  for name in 'ab':
    for i in range(good):
      write(root / name / f'{i}.png')
    for i in range(deep):
      write(root / name / 'more' / 'yet' / f'{i}.png')
    for i in range(dangling):
      (root / name / f'x{i}.png').parent.mkdir(parents=True, exist_ok=True)
      (root / name / f'x{i}.png').symlink_to(f'/none/{i}')


@pytest.mark.parametrize('rooted', ['', 'train'])
@pytest.mark.parametrize(
  ('good', 'deep', 'dangling', 'expected'),
  [
    (1, 9, 0, '1 images are directly in it and 9 are left out, such as .*: 9 lie in its sub-folders: move them up'),
    (
      5,
      0,
      5,
      '5 images are directly in it and 5 are left out, such as .*x0.png: 5 are links to nothing that can be read',
    ),
    (2, 2, 1, '2 images .* 3 are left out.*: 1 are links to nothing.*repair or remove them; 2 lie in its sub-folders'),
    (0, 4, 0, '0 images are directly in it and 4 are left out'),
    (0, 0, 3, '0 images are directly in it and 3 are left out'),
  ],
)
def test_a_class_most_of_which_is_left_out_is_refused(
  tmp_path, rooted: str, good: int, deep: int, dangling: int, expected: str
) -> None:
  fill(tmp_path / rooted, good, deep, dangling)
  with pytest.raises(InputError, match=expected):
    folder.find(str(tmp_path))


def test_a_class_a_few_of_which_are_left_out_is_told(tmp_path, capsys) -> None:
  fill(tmp_path, 5, 2, 1)
  write(tmp_path / 'loose.png')
  splits, _ = folder.find(str(tmp_path))
  output = capsys.readouterr().err
  assert len(splits['train'].labels) == 10
  assert f'4 images are in sub-folders of a class and left out, such as {tmp_path}/a/more/yet/0.png' in output
  assert f'2 images are links to nothing, or no files, and left out, such as {tmp_path}/a/x0.png' in output
  assert f'1 images are in no folder of a class and left out, such as {tmp_path}/loose.png' in output


def test_loose_images_beside_the_splits_are_told(tmp_path, capsys) -> None:
  fill(tmp_path / 'train', 2)
  write(tmp_path / 'one.png')
  write(tmp_path / 'train/two.png')
  folder.find(str(tmp_path))
  assert '1 images are in no folder of a class and left out, such as ' in capsys.readouterr().err


def test_an_old_run_goes_on_with_what_it_saw(tmp_path) -> None:
  fill(tmp_path, 1, 9)
  write(tmp_path / 'a/9.tif', 'TIFF')
  splits, _ = folder.find(str(tmp_path), split_rule=1)
  assert len(splits['train'].labels) == 2
  assert splits['train'].names is None


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads every folder')
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path) -> None:
  fill(tmp_path, 2)
  (tmp_path / 'a').chmod(0)
  with pytest.raises(InputError, match=f'{tmp_path}/a: cannot read: Permission denied'):
    folder.find(str(tmp_path))


def test_a_folder_that_is_gone_is_one_line(tmp_path) -> None:
  with pytest.raises(InputError, match='gone: cannot read: No such file or directory'):
    listing.list_folder(tmp_path / 'gone')
