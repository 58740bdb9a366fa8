import csv
import io
import pathlib
import random

import numpy as np
import pytest
from PIL import Image

from jaxres import data
from jaxres.data import decode, images
from jaxres.data.sources import csv_file, folder
from jaxres.errors import InputError


def write(path: pathlib.Path, size: tuple[int, int] = (12, 10), level: int = 100) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size, (level, 0, 255 - level)).save(path)
  return path


def write_classes(root: pathlib.Path, **counts: int) -> pathlib.Path:
  """Write ``count`` images of each class; the level of red tells which."""
  for label, (name, count) in enumerate(sorted(counts.items())):
    for i in range(count):
      write(root / name / f'{i:03d}.png', level=60 * label + i)
  return root


def paths(files) -> list[pathlib.Path]:
  return [pathlib.Path(files.name_of(i)) for i in range(len(files.labels))]


def names(files) -> list[str]:
  return [f'{p.parent.name}/{p.stem}' for p in paths(files)]


def test_a_flat_folder_loses_a_stratified_fifth_to_test(tmp_path, capsys) -> None:
  write_classes(tmp_path, dog=20, cat=10, eel=5)
  (tmp_path / 'cat/notes.txt').write_text('no image')
  (tmp_path / 'cat/.hidden.png').write_bytes(b'')
  (tmp_path / '.git').mkdir()
  source = folder.read_folder(str(tmp_path), seed=0)
  output = capsys.readouterr().err
  assert 'has no test split: 7 of its training images, a stratified fifth, are held out (seed 0)' in output
  assert f'1 files are no images by their names and left out, such as {tmp_path}/cat/notes.txt' in output
  assert source.class_names == ('cat', 'dog', 'eel')
  assert np.bincount(source.train.labels).tolist() == [8, 16, 4]
  assert np.bincount(source.test.labels).tolist() == [2, 4, 1]
  actual = names(source.train) + names(source.test)
  assert len(set(actual)) == 35
  for files in (source.train, source.test):
    assert [name.split('/')[0] for name in names(files)] == [source.class_names[k] for k in files.labels]
  assert names(folder.read_folder(str(tmp_path), seed=0).test) == names(source.test)
  assert names(folder.read_folder(str(tmp_path), seed=1).test) != names(source.test)


@pytest.mark.parametrize('suffix', ['jpg', 'JPEG', 'png', 'bmp', 'webp', 'gif', 'tif', 'TIFF'])
def test_suffixes(suffix: str, tmp_path) -> None:
  for name in 'ab':
    for i in range(3):
      write(tmp_path / name / f'{i}.{suffix}')
  source = folder.read_folder(str(tmp_path), seed=0)
  assert len(source.train.labels) + len(source.test.labels) == 6


def test_a_folder_with_its_own_splits(tmp_path, capsys) -> None:
  for split, count in (('train', 6), ('val', 2), ('test', 3), ('runs', 1)):
    write_classes(tmp_path / split, a=count, b=count)
  dataset = data.load('folder', path=str(tmp_path), batch_size=4, image_size=8)
  assert (dataset.train.size, dataset.val.size, dataset.test.size) == (12, 4, 6)
  assert capsys.readouterr().err == f'{tmp_path}: runs: no split, left out\n'
  with pytest.raises(InputError, match='data.val: 0.5, but the data has its own val split; leave it at 0'):
    data.load('folder', path=str(tmp_path), image_size=8, val=0.5)


def test_a_folder_with_train_and_val_loses_a_fifth_of_train(tmp_path, capsys) -> None:
  write_classes(tmp_path / 'train', a=10, b=5)
  write_classes(tmp_path / 'val', a=1, b=1)
  dataset = data.load('folder', path=str(tmp_path), batch_size=4)
  assert (dataset.train.size, dataset.val.size, dataset.test.size) == (12, 2, 3)
  assert '3 of its training images, a stratified fifth' in capsys.readouterr().err


def test_a_folder_is_loaded_as_the_reference_decodes_it(tmp_path) -> None:
  rng = np.random.default_rng(0)
  for name in ('a', 'b'):
    for i in range(5):
      path = tmp_path / 'train' / name / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (20 + i, 33 - i, 3), np.uint8)).save(path)
  write_classes(tmp_path / 'test', a=1, b=1)
  dataset = data.load('folder', path=str(tmp_path), batch_size=4, image_size=16, center_crop=0.8)
  files = sorted((tmp_path / 'train').glob('*/*.png'))
  expected = np.stack([decode.decode_image(path.read_bytes(), 16, 0.8) for path in files])
  np.testing.assert_array_equal(dataset.train.device_data['image'], expected)
  np.testing.assert_array_equal(dataset.train.device_data['label'], [0] * 5 + [1] * 5)
  assert dataset.info.image_shape == (16, 16, 3)


@pytest.mark.parametrize('pipeline', ['resident', 'stream'])
def test_a_folder_is_normalized_by_imagenets_statistics(tmp_path, pipeline: str) -> None:
  write_classes(tmp_path, a=5, b=5)
  info = data.load('folder', path=str(tmp_path), pipeline=pipeline, image_size=8).info
  assert (info.mean, info.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
  assert info.image_shape == (8, 8, 3)


def test_limit_val_and_classes_choose_files(tmp_path) -> None:
  write_classes(tmp_path, a=10, b=10, c=10)
  dataset = data.load('folder', path=str(tmp_path), classes=('c', 'a'), val=0.25, limit=4)
  assert (dataset.train.size, dataset.val.size, dataset.test.size) == (4, 4, 4)
  assert dataset.info.class_names == ('c', 'a')
  red = np.asarray(dataset.test.device_data['image'])[:, 0, 0, 0]
  np.testing.assert_array_equal(np.asarray(dataset.test.device_data['label']), (red < 60).astype(int))


def test_images_of_one_size_keep_it_and_others_are_named(tmp_path) -> None:
  write_classes(tmp_path / 'train', a=4, b=4)
  write_classes(tmp_path / 'test', a=1, b=1)
  load = lambda **options: data.load('folder', path=str(tmp_path), **options)
  assert load().info.image_shape == (10, 12, 3)
  write(tmp_path / 'train/b/big.png', (30, 20))
  with pytest.raises(InputError, match=r'b/big.png: it has 30x20 pixels, and the first has 12x10; set data.image_size'):
    load()
  assert load(image_size=8).info.image_shape == (8, 8, 3)
  (tmp_path / 'train/b/big.png').unlink()
  for path in (tmp_path / 'test').glob('*/*'):
    write(path, (30, 20))
  with pytest.raises(InputError, match='data.image_size: the splits differ'):
    load()
  with pytest.raises(InputError, match=r'data.image_size: data.pipeline=stream needs it'):
    load(pipeline='stream')


@pytest.mark.parametrize('change', ['truncate', 'garbage', 'empty', 'gone', 'animate'])
def test_a_bad_image_is_named_and_replaced_by_the_next(change: str, tmp_path, capsys) -> None:
  write_classes(tmp_path / 'train', a=4, b=4)
  write_classes(tmp_path / 'test', a=1, b=1)
  bad = tmp_path / 'train/a/003.png'
  content = bad.read_bytes()
  actual = images.Images(folder.read_folder(str(tmp_path), 0).train, 8, max_bad=1)
  if change == 'animate':
    Image.new('L', (4, 4)).save(bad, 'GIF', save_all=True, append_images=[Image.new('L', (4, 4), 255)])
  elif change == 'gone':
    bad.unlink()
  else:
    bad.write_bytes({'truncate': content[:45], 'garbage': b'<html>', 'empty': b''}[change])
  decoded = images.decode_all(actual, workers=2)
  assert f'bad training example 1 of at most 1: {bad}: ' in capsys.readouterr().err
  assert decoded.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
  np.testing.assert_array_equal(decoded.images[3], decoded.images[4])
  assert not np.array_equal(decoded.images[3], decoded.images[2])
  actual.max_bad, actual._bad = 0, {}
  with pytest.raises(
    InputError, match=r'a/003.png: (cannot|it is an animation) .*; repair or remove it; data.max_bad is 0'
  ):
    images.decode_all(actual, workers=2)


def test_more_bad_images_than_allowed(tmp_path, capsys) -> None:
  write_classes(tmp_path / 'train', a=4, b=4)
  write_classes(tmp_path / 'test', a=1, b=1)
  load = lambda **options: data.load('folder', path=str(tmp_path), image_size=8, **options)
  for name in ('000', '002', '003'):
    (tmp_path / f'train/a/{name}.png').write_bytes(b'')
  with pytest.raises(InputError, match=r'train/a/00\d.png: .*; repair or remove it; data.max_bad is 2'):
    load(max_bad=2)
  assert load(max_bad=3).train.size == 8
  for path in (tmp_path / 'train').glob('*/*'):
    path.write_bytes(b'')
  with pytest.raises(InputError, match='000.png: none of the 8 images can be decoded'):
    load(max_bad=8)
  write_classes(tmp_path / 'train', a=4, b=4)


@pytest.mark.parametrize('pipeline', ['resident', 'stream'])
def test_a_bad_evaluation_image_is_detected_at_once_and_left_out(tmp_path, capsys, pipeline: str) -> None:
  write_classes(tmp_path / 'train', a=4, b=4)
  write_classes(tmp_path / 'val', a=1, b=3)
  write_classes(tmp_path / 'test', a=2, b=2)
  complete = (tmp_path / 'test/b/000.png').read_bytes()
  (tmp_path / 'test/b/000.png').write_bytes(complete[:-30])
  (tmp_path / 'val/b/002.png').write_bytes(b'<html>')
  load = lambda max_bad: data.load('folder', path=str(tmp_path), image_size=8, pipeline=pipeline, max_bad=max_bad)
  with pytest.raises(InputError, match=r'test/b/000.png, in the test split: .*; data.max_bad is 0 a split'):
    load(0)
  dataset = load(1)
  assert (dataset.train.size, dataset.val.size, dataset.test.size) == (8, 3, 3)
  output = capsys.readouterr().err
  assert f'bad test example 1 of at most 1, left out: {tmp_path}/test/b/000.png: ' in output
  assert f'bad val example 1 of at most 1, left out: {tmp_path}/val/b/002.png: ' in output


def test_what_does_not_fit_into_memory_is_told(tmp_path) -> None:
  write_classes(tmp_path, a=5, b=5)
  actual = images.Images(folder.read_folder(str(tmp_path), 0).train, 8)
  actual.size = 1 << 44
  with pytest.raises(InputError, match=r'images take \d+ GB; set data.pipeline=stream'):
    images.decode_all(actual, workers=1)


def layout(root: pathlib.Path, paths: str) -> None:
  for path in paths.split():
    if path.endswith('/'):
      (root / path).mkdir(parents=True)
    else:
      write(root / path)


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ('', r'expected a sub-folder of images per class, found none \(and 0 files\)'),
    ('a.png b.png', r'expected a sub-folder of images per class, found none \(and 2 files\)'),
    ('train/1.png test/2.png', 'the sub-folders are test, train, with images directly in them'),
    ('Train/a/1.png Train/b/1.png Test/a/1.png', 'the sub-folders are Test, Train; splits are called train, val, test'),
    ('a/1.png b/', '/b: no images: expected files that end in .jpg.* found 0 others'),
    ('a/1.png a/2.png a/3.png', 'expected at least two classes, found 1: a'),
    ('a/1.png b/2.png', '2 images are too few to hold a fifth out'),
    ('train/a/1.png train/b/1.png test/a/1.png', "the class 'b' is in train but not in test"),
    ('train/a/1.png train/b/1.png val/a/1.png val/b/1.png val/c/1.png', "the class 'c' is in val but not in train"),
    ('val/a/1.png val/b/1.png', 'there is val but no train folder'),
    ('train/a/1.png train/b/1.png valid/a/1.png', "'valid' is no split; did you mean 'val'"),
    ('train/a/1.png train/b/1.png Test/a/1.png', "'Test' is no split; did you mean 'test'"),
    ('train/a/1.png train/b/', 'train/b: no images'),
  ],
)
def test_wrong_folders_are_explained(files: str, message: str, tmp_path) -> None:
  layout(tmp_path, files)
  with pytest.raises(InputError, match=message):
    data.load('folder', path=str(tmp_path))


def test_a_missing_path() -> None:
  with pytest.raises(InputError, match="data.path: data.name='folder' reads a folder .* give its path"):
    data.load('folder')
  with pytest.raises(InputError, match='data.path: no such folder: /none; expected a folder with'):
    data.load('folder', path='/none')
  with pytest.raises(InputError, match='data.path: no such file: /none.csv; expected a file with the columns'):
    data.load('csv', path='/none.csv')


def write_csv(root: pathlib.Path, text: str) -> str:
  for i in range(12):
    write(root / f'images/{i}.png', level=i)
  (root / 'list.csv').write_text(text, encoding='utf-8-sig')
  return str(root / 'list.csv')


def test_a_csv_with_splits_and_relative_paths(tmp_path) -> None:
  rows = [f'images/{i}.png,{"ab"[i % 2]},{split}' for i, split in enumerate(['train'] * 4 + [''] * 2 + ['val', 'val'])]
  rows += [f'{tmp_path}/images/{i}.png,b,test' for i in (8, 9)]
  source = csv_file.read_csv(write_csv(tmp_path, '\n'.join(['path,label,split', *rows])), seed=0)
  assert source.class_names == ('a', 'b')
  assert [p.stem for p in paths(source.train)] == list('012345')
  assert source.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
  assert [p.stem for p in paths(source.val)] == ['6', '7']
  assert source.test.labels.tolist() == [1, 1]
  assert paths(source.test)[0] == tmp_path / 'images/8.png'


def test_integer_labels_are_in_the_order_of_their_values(tmp_path, capsys) -> None:
  rows = [f'{"10" if i % 2 else "9"},ignored,"images/{i}.png"' for i in range(10)]
  dataset = data.load('csv', path=write_csv(tmp_path, '\n'.join(['label,other,path', *rows])), batch_size=2)
  assert dataset.info.class_names == ('9', '10')
  assert (dataset.train.size, dataset.test.size) == (8, 2)
  red = np.asarray(dataset.train.device_data['image'])[:, 0, 0, 0]
  np.testing.assert_array_equal(np.asarray(dataset.train.device_data['label']), red % 2)
  assert 'a stratified fifth' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'expected the columns path, label and optionally split, separated by commas, found none'),
    ('file,label\nimages/0.png,a', "found 'file', 'label'"),
    ('path;label\nimages/0.png;a', "separated by commas, found 'path;label'"),
    ('path,label\nimages/0.png,--5\nimages/1.png,7', 'too few to hold a fifth out'),
    ('path,label\n', 'it lists no training images'),
    ('path,label\nimages/0.png,a\nimages/none.png,b', r'list.csv:3: no such file: .*images/none.png'),
    ('path,label\nimages/0.png', 'list.csv:2: no label'),
    ('path,label\n,a', 'list.csv:2: no path'),
    ('path,label\nimages/0.png,a\n./images/0.png,b', r'list.csv:3: ./images/0.png is listed in line 2 too'),
    ('path,label,split\nimages/0.png,a,tests', "list.csv:2: unknown split 'tests'; did you mean 'test'"),
    ('path,label,split\nimages/0.png,dog,train\nimages/1.png,dogs,test', "'dogs' is in test but not in train; did"),
    ('path,label,split\nimages/0.png,a,train\nimages/1.png,a,test', 'at least two classes, found 1: a'),
    ('path,label\n"images/0.png,a', 'list.csv:2: not a readable CSV file: '),
    (
      'path,label\nimages/0.png,cat, black',
      r'list.csv:2: 3 cells, and the header has 2; quote a cell that has a comma',
    ),
    ('path,label,Label\nimages/0.png,a,b', '2 columns are called label; expected one'),
    ('path,label\nimages/0.png,a\nimages/0.png,a', 'list.csv:3: images/0.png is listed in line 2 too'),
  ],
)
def test_wrong_csv_files_are_explained(text: str, message: str, tmp_path) -> None:
  path = write_csv(tmp_path, text)
  with pytest.raises(InputError, match=message):
    csv_file.read_csv(path, seed=0)


@pytest.mark.parametrize(
  'form',
  [
    '{path}, "{label}"',
    '{path} ,  {label} ',
    '"{path}","{label}"',
    ' "{path}", {label}\t',
    '{path},"{label} "',
    '"{path}" ,{label}',
    '"{path}"\t,\t"{label}"  ',
    '{path},\t"{label}"\t',
    '\u00a0"{path}"\u00a0,\u00a0"{label}"\u00a0',
    ' "{path}" , "{label}" ',
  ],
)
@pytest.mark.parametrize('header', ['path,label', 'Path, Label', ' "PATH", "label"'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r', '\n\n'])
def test_space_around_a_cell_is_no_part_of_it(tmp_path, form: str, header: str, end: str) -> None:
  rows = [form.format(path=f'images/{i}.png', label='cat' if i % 2 else 'dog') for i in range(6)]
  rows += [f'images/{i}.png,{"cat" if i % 2 else "dog"}' for i in range(6, 12)]
  file = write_csv(tmp_path, '')
  pathlib.Path(file).write_bytes(b'\xef\xbb\xbf' + end.join([header, *rows]).encode())
  source = csv_file.read_csv(file, seed=0)
  assert source.class_names == ('cat', 'dog')
  actual = {
    path.stem: label for s in (source.train, source.test) for path, label in zip(paths(s), s.labels, strict=True)
  }
  assert actual == {str(i): 1 - i % 2 for i in range(12)}


BLANKS = ['', '', ' ', '  ', '\t', '\u00a0', '\u3000', '\x0b']
PIECES = ['a', 'b"c', '""', '"', ',', ' ', '\n', '\r\n', 'é', '\t', '"\n', '" ,', '",', ', "']


def test_cells_are_what_was_written_less_the_space_around(tmp_path) -> None:
  """Random cells, quoted where they must be or by chance, with space about them, in files of either end of line."""
  rng = random.Random(0)
  for _ in range(2000):
    rows = [[''.join(rng.choices(PIECES, k=rng.randrange(4))) for _ in range(3)] for _ in range(4)]
    text = ''
    for row in rows:
      cells = []
      for cell in row:
        quoted = rng.random() < 0.5 or any(mark in cell for mark in ',"\r\n')
        form = '"' + cell.replace('"', '""') + '"' if quoted else cell
        cells.append(rng.choice(BLANKS) + form + rng.choice(BLANKS))
      text += ','.join(cells) + rng.choice(['\n', '\r\n'])
    lines = io.StringIO(text, newline='')
    read = [[cell.strip() for cell in row] for row in csv.reader(csv_file._without_blanks(lines), strict=True)]
    assert read == [[cell.strip() for cell in row] for row in rows], text


def test_what_python_writes_is_left_as_it_is() -> None:
  rng = random.Random(1)
  for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
    file = io.StringIO(newline='')
    writer = csv.writer(file, quoting=quoting)
    writer.writerows([''.join(rng.choices(PIECES, k=4)).strip() or 'x' for _ in range(3)] for _ in range(500))
    lines = file.getvalue().splitlines(keepends=True)
    assert [*csv_file._without_blanks(lines)] == lines


@pytest.mark.parametrize(
  'row',
  ['images/1.png,"a"b', 'images/1.png,"a" b', 'images/1.png,"a" "b"', 'images/1.png,"a" ""', 'images/1.png,"a" "'],
)
def test_what_stands_beside_quotes_is_no_part_of_a_cell(tmp_path, row: str) -> None:
  with pytest.raises(InputError, match=r'list.csv:\d: not a readable CSV file: '):
    csv_file.read_csv(write_csv(tmp_path, f'path,label\nimages/0.png,a\n{row}\n'), seed=0)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    (f'images/1.png,{"x" * 130_000},test', "the class 'xxx.*xxx' is in test but not in train"),
    (f'images/1.png,{"x" * 140_000},test', 'field larger than field limit'),
    (f'images/1.png,a,{"x" * 130_000}', "unknown split 'xxx"),
    (f'{"x/" * 60_000},a,test', r'cannot be read: File name too long: .*\[...\]'),
    ('images/1.png/x,a,test', 'cannot be read: Not a directory: .*1.png/x'),
    ('images,a,test', 'no regular file: .*images'),
    ('images/1.png\0,a,test', 'no path of a file|contains NUL'),
  ],
)
def test_what_a_csv_says_never_makes_a_long_line(tmp_path, row: str, message: str) -> None:
  file = write_csv(tmp_path, f'path,label,split\nimages/0.png,a,train\nimages/2.png,b,train\n{row}\n')
  with pytest.raises(InputError, match=message) as caught:
    csv_file.read_csv(file, seed=0)
  assert len(str(caught.value).replace(str(tmp_path), '')) < 400


def test_columns_of_a_hundred_thousand_letters(tmp_path) -> None:
  with pytest.raises(InputError, match='expected the columns path, label') as caught:
    csv_file.read_csv(write_csv(tmp_path, 'x' * 100_000), seed=0)
  assert len(str(caught.value).replace(str(tmp_path), '')) < 400


def test_a_class_not_in_train_among_thousands_is_a_short_line(tmp_path) -> None:
  for i in range(1000):
    write(tmp_path / f'images/{i}.png')
  rows = [f'images/{i}.png,class{i},train' for i in range(999)]
  with pytest.raises(InputError, match="'zzz' is in test but not in train; known: class0, .* more$") as caught:
    csv_file.read_csv(write_csv(tmp_path, '\n'.join(['path,label,split', *rows, 'images/999.png,zzz,test'])), seed=0)
  assert len(str(caught.value)) < 1300


def test_labels_that_look_alike_are_told(tmp_path, capsys) -> None:
  labels = ['Cat', 'cat', 'caf\u00e9', 'cafe\u0301', 'dog']
  rows = [f'images/{i}.png,{labels[i % 5]}' for i in range(10)]
  source = csv_file.read_csv(write_csv(tmp_path, '\n'.join(['path,label', *rows])), seed=0)
  assert len(source.class_names) == 5
  output = capsys.readouterr().err
  assert "'Cat' and 'cat' are 2 classes; write them alike if they are one" in output
  assert 'caf' in output
  assert 'dog' not in output


def test_a_line_separator_in_a_cell_is_no_end_of_a_row(tmp_path) -> None:
  rows = [f'images/{i}.png,a\u2028b' if i % 2 else f'images/{i}.png,"a\nb"' for i in range(10)]
  source = csv_file.read_csv(write_csv(tmp_path, '\n'.join(['path,label', *rows])), seed=0)
  assert source.class_names == ('a\nb', 'a\u2028b')


def test_examples_of_a_list_are_named_as_they_are_written(tmp_path) -> None:
  rows = [f'./images/../images/{i}.png,{"ab"[i % 2]},train' for i in range(4)]
  rows += [f'{tmp_path}/images/{i}.png,{"ab"[i % 2]},test' for i in (4, 5)]
  source = csv_file.read_csv(write_csv(tmp_path, '\n'.join(['path,label,split', *rows])), seed=0)
  assert source.train.order_names == [f'images/{i}.png' for i in range(4)]
  assert source.test.order_names == [f'{tmp_path}/images/{i}.png' for i in (4, 5)]


def test_a_csv_that_is_no_text(tmp_path) -> None:
  (tmp_path / 'list.csv').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(InputError, match='not a readable CSV file'):
    csv_file.read_csv(str(tmp_path / 'list.csv'), seed=0)


@pytest.mark.parametrize(
  ('kind', 'suffix'), [('L', 'jpg'), ('P', 'png'), ('RGBA', 'png'), ('CMYK', 'jpg'), ('LA', 'png')]
)
def test_a_folder_of_other_kinds_becomes_rgb(kind: str, suffix: str, tmp_path) -> None:
  noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)).convert(kind)
  for split in ('train', 'test'):
    for name in 'ab':
      (tmp_path / split / name).mkdir(parents=True)
      noise.save(tmp_path / split / name / f'1.{suffix}')
  dataset = data.load('folder', path=str(tmp_path))
  expected = np.asarray(Image.open(tmp_path / f'test/a/1.{suffix}').convert('RGB'))
  assert np.ptp(expected) > 100
  np.testing.assert_array_equal(dataset.test.device_data['image'], [expected, expected])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'image_size': 0}, 'data.image_size: expected pixels, 1 or more, found 0'),
    ({'center_crop': 0.0}, r'data.center_crop: expected a value in \(0, 1\], found 0.0'),
    ({'crop_scale': (0.5, 0.2)}, r'data.crop_scale: expected \(\) or two ascending shares'),
    ({'crop_scale': (0.5,)}, 'data.crop_scale'),
    ({'crop_scale': (0.0, 1.0)}, 'data.crop_scale'),
    ({'workers': 0}, 'data.workers: expected 1 or more, found 0'),
    ({'max_bad': -1}, 'data.max_bad: expected 0 or more, found -1'),
  ],
)
def test_bad_fields(options: dict, message: str) -> None:
  with pytest.raises(InputError, match=message):
    data.load('digits', **options)


def test_folders_that_look_alike_are_told_once(tmp_path, capsys) -> None:
  for root in (tmp_path / 'flat', tmp_path / 'split/train', tmp_path / 'split/test'):
    write_classes(root, Cat=5, cat=5, dog=5)
  folder.read_folder(str(tmp_path / 'flat'), seed=0)
  assert "'Cat' and 'cat' are 2 classes; write them alike if they are one" in capsys.readouterr().err
  folder.read_folder(str(tmp_path / 'split'), seed=0)
  assert capsys.readouterr().err.count("'Cat' and 'cat' are 2 classes") == 1


def test_classes_of_one_folder_are_refused(tmp_path) -> None:
  write_classes(tmp_path, cat=5, dog=5)
  (tmp_path / 'eel').symlink_to('cat')
  with pytest.raises(InputError, match="eel: the classes 'cat' and 'eel' have one folder, by a link; remove the link"):
    folder.read_folder(str(tmp_path), seed=0)


def test_splits_of_one_folder_and_other_folders_are_told(tmp_path, capsys) -> None:
  for part in ('train', 'extra'):
    write_classes(tmp_path / part, cat=5, dog=5)
  (tmp_path / 'test').symlink_to('train')
  folder.read_folder(str(tmp_path), seed=0)
  output = capsys.readouterr().err
  assert f'{tmp_path}: extra: no split, left out' in output
  assert 'have one folder, by a link: the same images are in both' in output
  (tmp_path / 'test').unlink()
  write_classes(tmp_path / 'test', dog=5)
  (tmp_path / 'test/cat').symlink_to(tmp_path / 'train/cat')
  folder.read_folder(str(tmp_path), seed=0)
  assert f'{tmp_path}/test/cat: test and train have one folder' in capsys.readouterr().err


def test_numbers_written_in_several_ways_are_told(tmp_path, capsys) -> None:
  for k in range(12):
    write(tmp_path / f'{k}.png')
  rows = [f'{k}.png,{label}' for k, label in enumerate(['1', '01', '1.0', '2'] * 3)]
  (tmp_path / 'list.csv').write_text('\n'.join(['path,label', *rows]))
  csv_file.read_csv(str(tmp_path / 'list.csv'), seed=0)
  assert "'01' and '1' and '1.0' are 3 classes; write them alike if they are one" in capsys.readouterr().err
