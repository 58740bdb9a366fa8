"""Other data than yesterday's: what is drawn by name, what a fingerprint sees, and what old runs keep."""

import hashlib
import inspect
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxres import data, workdir
from jaxres.analysis import runs
from jaxres.data import fingerprints, sampler
from jaxres.data.sources import csv_file, folder
from jaxres.errors import InputError
from jaxres.train import loop
from tests.data import sets
from tests.helpers import save_as_before


def write(path: pathlib.Path, level: int = 0, size: int = 8) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  noise = np.random.default_rng(level).integers(0, 256, (size, size, 3), np.uint8)
  Image.fromarray(noise).save(path)
  return path


def photos(root: pathlib.Path, count: int = 20, classes: str = 'ab') -> pathlib.Path:
  for k, name in enumerate(classes):
    for i in range(count):
      write(root / name / f'{i:03d}.png', 1000 * k + i)
  return root


def members(files) -> set[str]:
  paths = [pathlib.Path(files.name_of(i)) for i in range(len(files.labels))]
  return {f'{path.parent.name}/{path.name}' for path in paths}


def test_the_order_of_names_is_that_of_their_sha256() -> None:
  names = ['a/1.png', 'a/2.png', 'b/\udcff.png', 'b/é.png']
  key = lambda name: hashlib.sha256(b'7\0test\0' + name.encode('utf-8', 'surrogateescape')).hexdigest()
  assert [names[at] for at in sampler.order_by_name(names, 7, 'test')] == sorted(names, key=key)
  assert sampler.order_by_name([], 0, 'test').tolist() == []


def test_a_file_less_and_one_more_moves_at_most_one_of_a_class(tmp_path) -> None:
  root = photos(tmp_path, 40)
  before = folder.read_folder(str(root), seed=0)
  for name in 'ab':
    (root / name / '000.png').unlink()
    write(root / name / 'new.png', 77)
  after = folder.read_folder(str(root), seed=0)
  moved = members(after.test) & members(before.train)
  assert len(moved) <= 2  # the border of each class; by place it was most of them
  by_place = [folder.read_folder(str(root), seed=0, split_rule=1)]
  assert len(members(by_place[0].test) & members(before.train)) > 4


def test_who_is_held_out_does_not_depend_on_other_names(tmp_path) -> None:
  """The reference: of each class the examples with the smallest SHA-256."""
  root = photos(tmp_path, 25)
  for name in ('a', 'b'):
    key = lambda path, name=name: hashlib.sha256(f'3\0test\0{name}/{path.name}'.encode()).hexdigest()
    expected = {f'{name}/{path.name}' for path in sorted((root / name).glob('*'), key=key)[:5]}
    assert {m for m in members(folder.read_folder(str(root), seed=3).test) if m.startswith(name)} == expected


def test_val_limit_and_folds_of_files_are_drawn_by_name(tmp_path) -> None:
  root = photos(tmp_path / 'here', 20)
  load = lambda **options: data.load('folder', path=str(root), batch_size=4, **options)
  first = load(val=0.25, limit=8)
  assert (first.train.size, first.val.size, first.test.size) == (8, 8, 8)
  moved = tmp_path / 'elsewhere'
  root.rename(moved)
  again = data.load('folder', path=str(moved), batch_size=4, val=0.25, limit=8)
  assert again.info == first.info  # the place of the folder is no part of a name
  rows = lambda p: {image.tobytes() for image in np.asarray(p.device_data['image'])}
  folds = [data.load('folder', path=str(moved), batch_size=4, fold=(k, 4)) for k in range(4)]
  assert len(set.union(*(rows(fold.val) for fold in folds))) == sum(fold.val.size for fold in folds) == 32
  assert not any(rows(fold.train) & rows(fold.val) for fold in folds)


def test_arrays_are_drawn_by_place_as_before() -> None:
  labels = np.arange(60) % 3
  assert (
    sampler.draw_stratified(labels, 15, 4).tolist()
    == sampler.draw_stratified(labels, 15, 4, sampler.permutation(4, 0, 60)).tolist()
  )
  old, new = (data.load(**fields(), split_rule=rule) for rule in (1, 2))
  np.testing.assert_array_equal(old.val.device_data['image'], new.val.device_data['image'])
  assert old.info.splits == new.info.splits
  assert (old.info.split_rule, new.info.split_rule) == (1, 2)


def fields(**changes: object) -> dict:
  from jaxres import config as config_lib

  return config_lib.to_dict(config_lib.complete({}))['data'] | {'name': 'digits', 'val': 0.2, 'batch_size': 8} | changes


@pytest.mark.parametrize('change', ['content', 'name', 'label', 'removed', 'added', 'size'])
def test_a_fingerprint_sees_every_change_of_files(tmp_path, change: str) -> None:
  root = photos(tmp_path, 6)
  load = lambda: data.load('folder', path=str(root), batch_size=4, image_size=8).info.splits
  before, target = load(), root / 'a/003.png'
  assert load() == before
  if change == 'content':
    content = bytearray(target.read_bytes())
    content[-20] ^= 1
    target.write_bytes(content)
    with pytest.raises(InputError, match=r'003.png'):  # the CRC of the PNG is wrong, but one image in another's place:
      load()
    target.write_bytes((root / 'b/003.png').read_bytes())
  elif change == 'name':
    target.rename(root / 'a/other.png')
  elif change == 'label':
    target.rename(root / 'b/moved.png')
  elif change == 'removed':
    target.unlink()
  elif change == 'added':
    write(root / 'a/new.png', 5)
  else:
    write(target, 3, size=9)
  assert load() != before


def test_the_fingerprint_of_files_is_the_sha256_of_what_it_says(tmp_path) -> None:
  root = photos(tmp_path / 'train', 2).parent
  photos(tmp_path / 'test', 1)
  output = data.load('folder', path=str(root), batch_size=4).info.splits['train']
  files = sorted((root / 'train').glob('*/*'))
  digest = lambda content: hashlib.sha256(content).hexdigest()[:12]
  names = [path.relative_to(root).as_posix() for path in files]
  drawn = sorted(files, key=lambda p: hashlib.sha256(f'0\0contents\0{p.relative_to(root)}'.encode()).hexdigest())
  assert output == ', '.join(
    [
      '4 examples',
      f'labels {digest(np.array([0, 0, 1, 1], "<i4").tobytes())}',
      f'names {digest(b"".join(name.encode() + bytes(1) for name in names))}',
      f'sizes {digest(np.array([path.stat().st_size for path in files], "<i8").tobytes())}',
      f'contents {digest(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in drawn))}',
    ]
  )


def test_of_much_data_a_sample_is_read_and_all_sizes(tmp_path, monkeypatch) -> None:
  root = photos(tmp_path, 300)
  monkeypatch.setattr(fingerprints, 'MAX_BYTES', 50_000)
  splits, _ = folder.find(str(root))
  actual = fingerprints.fingerprint(splits['train'])
  count = int(actual.rpartition(' of ')[2])
  assert 100 < count < 400
  assert fingerprints.fingerprint(splits['train']) == actual
  write(root / 'a/150.png', 9, size=10)
  assert fingerprints.differences(actual, fingerprints.fingerprint(splits['train']))[0].startswith('sizes ')


def test_images_that_cannot_be_read_are_part_of_the_fingerprint(tmp_path) -> None:
  splits, _ = folder.find(str(photos(tmp_path, 3)))
  before = fingerprints.fingerprint(splits['train'])
  (tmp_path / 'a/001.png').unlink()
  assert fingerprints.differences(before, fingerprints.fingerprint(splits['train']))[0].startswith('sizes ')


def test_pixels_of_arrays_are_fingerprinted(npz) -> None:
  from tests.helpers import make_arrays

  content = make_arrays()
  first = data.load('arrays', path=npz(**content), batch_size=8).info.splits
  expected = hashlib.sha256(b'(96, 8, 8, 3)' + content['train_x'].tobytes()).hexdigest()[:12]
  assert first['train'].endswith(f'contents {expected}')
  content['train_x'][5, 0, 0, 0] ^= 1
  second = data.load('arrays', path=npz(**content), batch_size=8).info.splits
  assert (first['test'] == second['test'], first['train'] == second['train']) == (True, False)


def test_records_of_tfds_are_fingerprinted_in_either_form(tmp_path) -> None:
  for varies, changed in ((True, 0), (True, 1), (False, 0), (False, 1)):
    examples = sets.examples(12, side=8)
    if changed:
      examples[4]['image'] = sets.examples(13, side=8)[0]['image']
    shape = (None, None, 3) if varies else (8, 8, 3)
    sets.write(tmp_path / f'{varies}{changed}', sets.features(shape), {'train': examples, 'test': examples[:4]})
  load = lambda where: data.load('tiny', data_dir=str(tmp_path / where), image_size=8, batch_size=4).info.splits
  for varies in (True, False):
    before, after = load(f'{varies}0'), load(f'{varies}1')
    assert before['train'].split(', ')[:2] == after['train'].split(', ')[:2]
    assert before['train'] != after['train']
    assert before['test'] == after['test']


@pytest.mark.parametrize(
  ('old', 'new', 'expected'),
  [
    ('3 examples, labels a', '3 examples, labels a, names b, contents c', ('', '')),
    ('3 examples, labels a', '4 examples, labels a, names b', ('3 examples', '4 examples')),
    ('3 examples, labels a, names b', '3 examples, labels a, names c', ('names b', 'names c')),
    ('3 examples, contents b of 2', '3 examples, contents b', ('contents b of 2', 'contents b')),
    ('3 examples, names b', '3 examples', ('names b', '')),
    ('', '3 examples', ('', '3 examples')),
  ],
)
def test_only_what_was_stored_is_compared(old: str, new: str, expected: tuple) -> None:
  assert fingerprints.differences(old, new) == expected


@pytest.fixture
def trained(tmp_path, tiny: str) -> tuple[dict, pathlib.Path]:
  """A run of an epoch on a folder of photos."""
  root = photos(tmp_path / 'photos', 20)
  config = {
    'model': {'name': tiny},
    'data': {'name': 'folder', 'path': str(root), 'image_size': 8, 'batch_size': 8},
    'train': {'epochs': 1, 'eval_batch_size': 8},
  }
  loop.train_and_evaluate(config, tmp_path / 'run')
  return config, tmp_path / 'run'


def test_a_run_refuses_to_go_on_with_other_files(trained) -> None:
  config, run = trained
  stored = json.loads((run / 'data.json').read_text())
  assert stored['split_rule'] == 2
  root = pathlib.Path(config['data']['path'])
  for name in 'ab':
    (root / name / '000.png').unlink()
    write(root / name / 'new.png', 77)
  again = {**config, 'train': {**config['train'], 'epochs': 2}}
  with pytest.raises(InputError, match=r'other data: splits was .*names [0-9a-f]{12}.* there and is .*names') as caught:
    loop.train_and_evaluate(again, run)
  assert 'labels' not in str(caught.value)  # these are the same
  with pytest.raises(InputError, match='the data is not that of the run: splits was'):
    runs.read_runs([str(run)])


def test_runs_on_other_test_images_of_the_same_labels_are_not_compared(trained, tmp_path) -> None:
  config, run = trained
  loop.train_and_evaluate({**config, 'data': {**config['data'], 'seed': 1}}, tmp_path / 'other')
  first, second = runs.read_runs([str(run), str(tmp_path / 'other')])
  labels = [np.asarray(each.dataset.test.device_data['label']) for each in (first, second)]
  np.testing.assert_array_equal(*labels)
  with pytest.raises(InputError, match='have other test examples'):
    runs.check_same_examples([first, second], labels, 'test')
  runs.check_same_examples([first, first], [labels[0]] * 2, 'test')


def as_of_old(run: pathlib.Path) -> None:
  """Make ``data.json`` what it was before there was a rule."""
  stored = json.loads((run / 'data.json').read_text())
  del stored['split_rule']
  stored['splits'] = {part: ', '.join(text.split(', ')[:2]) for part, text in stored['splits'].items()}
  (run / 'data.json').write_text(json.dumps(stored))


def test_a_run_without_a_rule_keeps_the_first(trained, tmp_path, monkeypatch) -> None:
  config, _ = trained
  run = tmp_path / 'old'
  with monkeypatch.context() as patch:  # a run as it was before
    patch.setattr(data, 'SPLIT_RULE', 1)
    save_as_before(patch)
    loop.train_and_evaluate(config, run)
  as_of_old(run)
  assert workdir.split_rule(run) == 1
  loop.train_and_evaluate({**config, 'train': {**config['train'], 'epochs': 2}}, run)
  stored = json.loads((run / 'data.json').read_text())
  assert stored['split_rule'] == 1
  assert 'contents' in stored['splits']['train']  # from now on these too are compared
  (read,) = runs.read_runs([str(run)])
  by_place, _ = folder.find(config['data']['path'], split_rule=1)
  held_out = sampler.draw_stratified(by_place['train'].labels, 8, 0)
  np.testing.assert_array_equal(
    np.asarray(read.dataset.test.device_data['image']),
    [np.asarray(Image.open(by_place['train'].name_of(at))) for at in held_out],
  )


@pytest.mark.parametrize('rule', [0, 3, '2', None, 1.5, [2]])
def test_an_unknown_rule_is_one_line(tmp_path, rule: object) -> None:
  (tmp_path / 'checkpoints/1').mkdir(parents=True)
  (tmp_path / 'data.json').write_text(json.dumps({'class_names': ['a', 'b'], 'split_rule': rule}))
  with pytest.raises(InputError, match=r'data.json: split_rule: expected 1 or 2, found .*newer jaxres'):
    workdir.split_rule(tmp_path)


def test_a_workdir_with_no_run_takes_the_rule_of_today(tmp_path) -> None:
  assert workdir.split_rule(tmp_path / 'none') == 2
  (tmp_path / 'data.json').write_text('{}')
  assert workdir.split_rule(tmp_path) == 2  # it has no checkpoint


NUMBERS = [str(k) for k in range(12)]


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (NUMBERS, NUMBERS),
    (['10', '9', '-1'], ['-1', '9', '10']),
    (['01', '1', '2'], ['01', '1', '2']),
    (['10', '9', 'a'], ['10', '9', 'a']),
    (['b', 'a'], ['a', 'b']),
    (['²', '1'], ['1', '²']),
  ],
)
def test_classes_have_one_order_in_every_reader(tmp_path, names: list[str], expected: list[str]) -> None:
  for k, name in enumerate(names):
    for i in range(5):
      write(tmp_path / 'photos' / name / f'{i}.png', 5 * k + i)
  rows = [f'photos/{name}/{i}.png,{name}' for name in names for i in range(5)]
  (tmp_path / 'list.csv').write_text('\n'.join(['path,label', *rows]), encoding='utf-8')
  of_folder = folder.read_folder(str(tmp_path / 'photos'), seed=0)
  of_list = csv_file.read_csv(str(tmp_path / 'list.csv'), seed=0)
  assert list(of_folder.class_names) == list(of_list.class_names) == expected
  for source in (of_folder, of_list):
    for files in (source.train, source.test):
      assert [pathlib.Path(files.name_of(i)).parent.name for i in range(len(files.labels))] == [
        source.class_names[label] for label in files.labels
      ]


def test_an_old_run_on_numbered_folders_keeps_its_order(tmp_path) -> None:
  for name in NUMBERS:
    write(tmp_path / name / '1.png')
  assert folder.find(str(tmp_path), split_rule=1)[1] == tuple(sorted(NUMBERS))
  assert folder.find(str(tmp_path))[1] == tuple(NUMBERS)


def test_the_rule_of_today_is_that_of_load() -> None:
  assert inspect.signature(data.load).parameters['split_rule'].default == data.SPLIT_RULE
