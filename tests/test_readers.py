"""Files that jaxres wrote and somebody changed: the same content, a harmless other one, or one short line."""

import json
import math
import os
import pathlib
import random
import resource
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import checkpoint, files, models, tasks, workdir
from jaxres import config as config_lib
from jaxres.checkpoint import digests, reader
from jaxres.checkpoint import steps as steps_lib
from jaxres.errors import InputError
from jaxres.log import rows
from jaxres.log import run_log as run_log_lib
from jaxres.log.curves import draw_curves
from jaxres.state import TrainState
from jaxres.train import nonfinite
from jaxres.weights import sources
from jaxres.weights.names import Dialect

MUTATIONS = 2_000  # of each kind of file
LONGEST = 500  # characters of a line beside the path
MEGABYTES = 400  # that reading may add
DIGITS = '@digits@'  # becomes a number too long for JSON in Python

HASHES = [f'{k:064x}' for k in range(3)]
CONFIG = config_lib.to_json(config_lib.make(model=dict(name='resnet20'), data=dict(classes=('cat', 3)))).encode()
DATA = json.dumps(
  {
    'class_names': ['ant', 'bee', 'caf\udce9'],
    'image_shape': [8, 8, 3],
    'mean': [0.4, 0.5, 0.6],
    'std': [0.2, 0.2, 0.3],
    'splits': {'train': '96 0a1b', 'test': '40 2c3d'},
  }
).encode()
ENVIRONMENT = json.dumps(
  {'jaxres': '0.2.0', 'jax': '0.10.2', 'devices': 1, 'processes': 1, 'device': 'cpu', 'cpus': None}
).encode()
ROWS = b''.join(
  json.dumps({'step': 10 * k, 'epoch': k / 2, 'train/loss': 2.0 / k, 'test/top1': 0.1 * k}).encode() + b'\n'
  for k in range(1, 7)
)
MODEL: dict[str, Any] = {
  'format': 1,
  'model': {'name': 'resnet20', 'num_classes': 3, 'dropout': 0.1},
  'channels': 3,
  'names': Dialect()._asdict(),
  'num_batches_tracked': {'bn1.num_batches_tracked': 7},
  'class_names': ['ant', 'bee', 'cat'],
  'origin': 'runs/a, step 7',
  'sha256': HASHES[1],
}
VALUES = [
  None, True, -1, 0, 3, 2**31, 10**30, -(10**299), 1e308, 0.5, math.nan, math.inf, -math.inf, '', 'x', 'x' * 9_000,
  '\ud800', '\x1b[2J\n', DIGITS, [], {}, [[]], [1, 2, 3], {'a': 1}, [100_000, 100_000, 3], ['a'] * 3,
  [0.5, math.nan, 1],
  [10**9] * 3, ['x'] * 5_000, HASHES[2],
]  # fmt: skip
OTHERS = [
  b'', b'\n', b'null', b'3', b'[]', b'{}', b'"x"', b'\x00' * 300, b'\x89PNG\r\n\x1a\n' + b'\xff' * 90, b'PK\x03\x04',
  b'[' * 200_000,
  b'{"a":' * 50_000, b'[' * 40 + b']' * 40, b'\xff\xfe{\x00}\x00', b'caf\xe9', b'<html>', b'NaN', b'1e999',
  b'{"a": 1, "a": 2}',
  b'9' * 5_000, b'-', b'\xef\xbb\xbf{}', b'[' + b'[],' * 100_000 + b'[]]',
]  # fmt: skip


def nodes(content: Any) -> list[tuple[Any, Any]]:
  """Return every place of a JSON value: what holds it, and its key or index there."""
  found, left = [], [content]
  while left:
    node = left.pop()
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    found += [(node, key) for key in keys]
    left += [node[key] for key in keys]
  return found


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
  """Return ``raw`` with bits flipped, cut off, or with a part deleted, doubled, zeroed or put in its place."""
  at, size = rng.randrange(len(raw)), rng.choice([1, 2, 8, 60])
  match rng.randrange(7):
    case 0 | 1:
      flipped = bytearray(raw)
      for _ in range(rng.choice([1, 1, 3])):
        flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
      return bytes(flipped)
    case 2:
      return raw[:at]
    case 3:
      return raw[:at] + raw[at + size :]
    case 4:
      return raw[: at + size] + raw[at:]
    case 5:
      return raw[:at] + bytes(size) + raw[at + size :]
    case _:
      return raw[:at] + rng.randbytes(size) + raw[at:]


def mutate_json(rng: random.Random, raw: bytes) -> bytes:
  """Return JSON with a value, a key or the order of two values changed."""
  content = json.loads(raw)
  holder, key = rng.choice(nodes(content))
  text = None
  match rng.randrange(6):
    case 0 | 1:
      holder[key] = rng.choice(VALUES)
    case 2:
      del holder[key]
    case 3 if isinstance(holder, dict):
      holder[rng.choice(['new', '', 'x' * 900, '\n\x1b[2J', f'{key}s'])] = holder.pop(key) if rng.randrange(2) else 1
    case 4:
      other, place = rng.choice(nodes(content))
      holder[key], other[place] = json.loads(json.dumps([other[place], holder[key]]))
    case _:
      holder[key] = '@'
      deep = rng.choice([10, 31, 40, 900, 90_000])
      inside = rng.choice(
        ['[' * deep + ']' * deep, '{"a":' * deep + '1' + '}' * deep, '1, "a": 2', '-1e999', '1' * 400]
      )
      text = json.dumps(content).replace('"@"', inside, 1)
  return (text or json.dumps(content)).replace(f'"{DIGITS}"', '7' * 6_000).encode()


def mutations(raw: bytes, seed: int, *, is_json: bool = True) -> Iterator[bytes]:
  """Yield ``MUTATIONS`` contents of a file that was ``raw``."""
  rng = random.Random(seed)
  yield from OTHERS
  for k in range(MUTATIONS - len(OTHERS)):
    yield mutate_json(rng, raw) if is_json and k % 2 else mutate_bytes(rng, raw)


def mutate_lines(raw: bytes, seed: int) -> Iterator[bytes]:
  """Yield ``MUTATIONS`` contents of a log that was ``raw``: as bytes, and with lines changed as JSON."""
  rng = random.Random(seed)
  yield from OTHERS
  for k in range(MUTATIONS - len(OTHERS)):
    lines = raw.split(b'\n')
    at = rng.randrange(len(lines) - 1)
    lines[at] = rng.choice([mutate_json(rng, lines[at]), rng.choice(OTHERS), b''])
    yield b'\n'.join(lines) if k % 2 else mutate_bytes(rng, raw)


class Kind(NamedTuple):
  """A kind of file that jaxres writes."""

  name: str  # in the directory
  raw: bytes
  read: Callable[[pathlib.Path], Any]  # given the directory
  check: Callable[[Any], None]  # of what is accepted, by other means than the reader's
  is_strict: bool = False  # what is accepted must be what was written
  mutations: Callable[..., Iterator[bytes]] = mutations


def is_number(value: Any) -> bool:
  return not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) < float('inf')


def check_config(config: Any) -> None:
  assert config.keys() == config_lib.SECTIONS.keys()
  for section, fields in config.items():
    assert fields.keys() == config_lib.schema(section).keys()
  json.dumps(config, allow_nan=False)
  assert config_lib.to_dict(config_lib.make(**config)) == config


def check_data(content: Any) -> None:
  names, shape = content['class_names'], content['image_shape']
  assert len(names) == 3
  assert all(isinstance(name, str) for name in names)
  assert np.zeros(shape, np.uint8).nbytes <= 3 << 24
  assert len(shape) == len(content['mean']) == shape[2] == 3
  assert np.isfinite(1 / np.array(content['std'], np.float32)).all()
  assert np.isfinite(np.array(content['mean'], np.float64)).all()


def read_data(directory: pathlib.Path) -> Any:
  names = workdir.class_names(directory, 3, 3)
  content = workdir.read_data(directory, 'image_shape', 'mean', 'std')
  return content if names is None or content is None else content | {'class_names': list(names)}


def check_environment(content: Any) -> None:
  assert all(isinstance(value, (str, int, float, list, type(None))) for value in content.values())
  assert len(str(content)) < 100_000


def check_rows(known: Any) -> None:
  for row in known:
    assert type(row['step']) is int
    assert is_number(row['epoch'])
    assert all(map(is_number, row.values()))
    assert np.isfinite(np.float64(1.05) * np.array([*row.values()], np.float64)).all()


def read_rows(directory: pathlib.Path) -> Any:
  known, damage = rows.read(directory / 'metrics.jsonl')
  assert len(damage) < LONGEST + len(str(directory))
  assert '\n' not in damage
  assert damage.isprintable()
  return known


def check_model(content: Any) -> None:
  options = content['model']
  created = models.create(**options)
  assert created.num_classes == options['num_classes'] >= 1
  assert isinstance(Dialect(**content['names']).average, bool)
  assert content['class_names'] is None or all(isinstance(name, str) for name in content['class_names'])
  assert 1 <= content['channels'] <= 1024


KINDS = [
  Kind('config.json', CONFIG, workdir.read_config, check_config),
  Kind('data.json', DATA, read_data, check_data),
  Kind('environment.json', ENVIRONMENT, workdir.read_environment, check_environment),
  Kind('metrics.jsonl', ROWS, read_rows, check_rows, mutations=mutate_lines),
  Kind(
    'model.json', json.dumps(MODEL).encode(), lambda path: sources.read_description(path / 'model.json'), check_model
  ),
]
ERRORS = (files.DamagedError, InputError)


def outcome(read: Callable[[pathlib.Path], Any], directory: pathlib.Path) -> tuple[str, Any]:
  """Return whether a reader accepts or refuses what is there, and its content or line; other errors are raised."""
  begin = time.perf_counter()
  try:
    result = 'accepted', read(directory)
  except ERRORS as error:
    result = 'refused', str(error)
    assert '\n' not in result[1]
    assert result[1].isprintable(), ascii(result[1])
    assert len(result[1].replace(str(directory), '')) < LONGEST
  assert time.perf_counter() - begin < 20  # a second on an idle core
  return result


def try_all(kind: Kind, directory: pathlib.Path, seed: int = 0) -> dict[str, int]:
  """Try every mutation of a kind of file; return how many were accepted as they were or otherwise, and refused."""
  path = directory / kind.name
  path.write_bytes(kind.raw)
  original = kind.read(directory)
  kind.check(original)
  counts = {'same': 0, 'other': 0, 'refused': 0}
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for number, mutated in enumerate(kind.mutations(kind.raw, seed)):
    path.write_bytes(mutated)
    try:
      verdict, content = outcome(kind.read, directory)
      if verdict == 'accepted' and content is not None:
        kind.check(content)
    except Exception as error:
      error.add_note(f'{kind.name}: mutation {number}: {mutated[:2_000]!r}')
      raise
    same = verdict == 'accepted' and repr(content) == repr(original)
    assert same or verdict == 'refused' or not kind.is_strict, (number, mutated[:2_000])
    counts['same' if same else 'refused' if verdict == 'refused' else 'other'] += 1
  path.write_bytes(kind.raw)
  assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
  assert sum(counts.values()) == MUTATIONS
  return counts


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.name)
def test_mutations(kind: Kind, tmp_path) -> None:
  counts = try_all(kind, tmp_path)
  print(kind.name, counts)
  assert counts['same'] > 0
  assert counts['refused' if kind.name != 'metrics.jsonl' else 'other'] > 500


def test_a_model_json_with_its_digest_is_what_was_written_or_refused(tmp_path) -> None:
  content = MODEL | {'format': 2}
  content |= {'description_sha256': digests.json_digest(content)}
  kind = next(kind for kind in KINDS if kind.name == 'model.json')
  counts = try_all(kind._replace(raw=json.dumps(content).encode(), is_strict=True), tmp_path)
  print(counts)
  assert counts['other'] == 0


# .npz files: arrays of a user's, of the cache, of a bad step


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_mutations_of_npz(save: Callable[..., None], tmp_path) -> None:
  arrays = {'labels': np.arange(40, dtype=np.int32), 'names': np.array(['a', 'bc']), 'x': np.full((4, 3, 3), 0.5)}
  save(tmp_path / 'a.npz', **arrays)

  def read(directory: pathlib.Path) -> Any:
    try:
      return files.load_npz(directory / 'a.npz')
    except ValueError as error:
      raise InputError(str(error)) from None

  def check(content: Any) -> None:
    assert all(isinstance(array, np.ndarray) for array in content.values())

  raw = (tmp_path / 'a.npz').read_bytes()
  kind = Kind('a.npz', raw, read, check, True, lambda raw, seed: mutations(raw, seed, is_json=False))
  print(try_all(kind, tmp_path))


ABOUT = {
  'config': json.loads(CONFIG),
  'found': {'step': 3, 'loss': math.nan, 'bad': ['gradients/stem/conv/kernel'], 'counts': {'gradients': '3 of 62'}},
}


def write_bad_step(path: pathlib.Path, about: str, ids: Any = (1, 2, 3)) -> None:
  np.savez(path, **{'state/step': np.int32(3)}, ids=np.array(ids), about=np.array(about))


def test_mutations_of_a_bad_step(tmp_path) -> None:
  path = tmp_path / 'bad_step_3.npz'
  write_bad_step(path, json.dumps(ABOUT))
  assert nonfinite.read(path)[1].step == 3
  counts = {'accepted': 0, 'refused': 0}
  for mutated in mutations(json.dumps(ABOUT).encode(), 1):
    write_bad_step(path, mutated.decode(errors='surrogateescape').encode('ascii', 'replace').decode())
    verdict, content = outcome(lambda directory: nonfinite.read(directory / path.name), tmp_path)
    counts[verdict] += 1
    if verdict == 'accepted':
      check_config(content[2])
      assert 0 <= content[1].step < 2**31
      assert content[1].describe()
  print(counts)
  assert counts['refused'] > 500


@pytest.mark.parametrize('ids', [[], [0.5], [[1]], ['a'], 3])
def test_the_ids_of_a_bad_step_are_whole_numbers(tmp_path, ids: Any) -> None:
  write_bad_step(tmp_path / 'bad.npz', json.dumps(ABOUT), ids)
  with pytest.raises(InputError, match=r'ids: expected whole numbers \[B\], found'):
    nonfinite.read(tmp_path / 'bad.npz')


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
    files.load_npz(tmp_path / 'a.npz')
  assert len(str(caught.value)) < LONGEST


# what is no file, or has no end


class limited:  # noqa: N801
  """A context in which the process may take 1 GB more of address space."""

  def __enter__(self) -> None:
    size = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    self._before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), self._before[1]))

  def __exit__(self, *_: object) -> None:
    resource.setrlimit(resource.RLIMIT_AS, self._before)


def put_sparse(path: pathlib.Path) -> None:
  with path.open('wb') as file:
    file.truncate(20 << 30)


ODD_FILES = {
  'fifo': os.mkfifo,
  'directory': lambda path: path.mkdir(),
  'endless': lambda path: path.symlink_to('/dev/zero'),
  'loop': lambda path: path.symlink_to(path.name),
  'sparse': put_sparse,
}


@pytest.mark.parametrize('odd', ODD_FILES)
@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.name)
def test_what_is_no_file_is_one_line_and_takes_neither_time_nor_memory(kind: Kind, odd: str, tmp_path) -> None:
  ODD_FILES[odd](tmp_path / kind.name)
  with limited():
    verdict, content = outcome(kind.read, tmp_path)
    if kind.name == 'metrics.jsonl':
      assert 'cannot be read: ' in rows.read(tmp_path / kind.name)[1]
      assert (verdict, content) == ('accepted', [])
    else:
      assert verdict == 'refused'
      assert f'{kind.name}: cannot be read: ' in content
      assert content.endswith('; put it back as jaxres wrote it')
    with pytest.raises(ValueError, match='.'):
      files.load_npz(tmp_path / kind.name)


def test_a_shape_takes_no_memory(tmp_path) -> None:
  (tmp_path / 'data.json').write_bytes(DATA.replace(b'[8, 8, 3]', b'[100000, 100000, 3]'))
  with (
    limited(),
    pytest.raises(files.DamagedError, match=r'image_shape: expected .* pixels, found \[100000, 100000, 3\]'),
  ):
    read_data(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch) -> None:
  def refuse(*_: object) -> int:
    raise PermissionError(13, 'Permission denied')

  for kind in KINDS[:3]:
    (tmp_path / kind.name).touch()
  monkeypatch.setattr(os, 'open', refuse)
  for kind in KINDS[:3]:
    assert f'{kind.name}: cannot be read: Permission denied' in outcome(kind.read, tmp_path)[1]
  monkeypatch.setattr(os, 'listdir', refuse)
  with pytest.raises(InputError, match='cannot be read: Permission denied; expected a directory of checkpoints'):
    steps_lib.numbered(tmp_path)


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    ({'class_names': ['ant', 'bee']}, 'class_names: expected 3 as the checkpoint has, found 2'),
    ({'image_shape': [8, 8, 1], 'mean': [0.5], 'std': [0.5]}, 'channels: expected 3 as the checkpoint has, found 1'),
    ({'image_shape': [8, 8, 1]}, 'mean, std and image_shape are of different channels'),
    ({'std': [0.2, 0.2, 0]}, 'std: expected a list of 1 values or more, each a finite number from '),
    ({'mean': [0.2, 0.2, math.nan]}, 'cannot be read: NaN is no finite number'),
    ({'class_names': [1, 2, 3]}, r'class_names: expected a list of 1 values or more, each a text, found \[1, 2, 3\]'),
  ],
)
def test_data_json_is_that_of_the_network(tmp_path, change: dict, line: str) -> None:
  (tmp_path / 'data.json').write_text(json.dumps(json.loads(DATA) | change))
  with pytest.raises(files.DamagedError, match=line):
    read_data(tmp_path)


@pytest.mark.parametrize(
  ('text', 'line'),
  [
    (b'[]', r'config.json: expected an object, found \[\]'),
    (b'{"model": 3}', 'config.json: model: expected an object, found 3'),
    (b'{"modle": {}}', "config.json: 'modle': unknown field"),
    (b'{"model": {"nmae": 1}}', r"config.json: model.nmae: unknown field; did you mean 'name'\?"),
    (b'{"train": {"epochs": "many"}}', "config.json: train.epochs: expected float, found 'many'"),
    (b'{"model": {"name": "caf\xe9"}}', 'config.json: cannot be read: it is not UTF-8, at byte 23'),
    (b'{"train": {"seed": 1, "seed": 2}}', 'a key occurs twice in an object'),
    (b'{"train": {"epochs": 1e999}}', '1e999 is no finite number'),
    (b'{"a":' * 100_000, 'lists and objects lie too deep in each other'),
    (b'[' * 40 + b']' * 40, 'more than 32 lists and objects lie in each other'),
    (b'7' * 9_000, 'a number of 9,000 digits'),
  ],
)
def test_the_line_names_the_file_and_the_field(tmp_path, text: bytes, line: str) -> None:
  (tmp_path / 'config.json').write_bytes(text)
  with pytest.raises(files.DamagedError, match=line):
    workdir.read_config(tmp_path)


# the log


DAMAGED = [
  b'', b'garbage', b'{"step": ', b'{"epoch": 1.0}', b'[1, 2]', b'{"step": true, "epoch": 1}',
  b'{"step": 1e3, "epoch": 1}',
  b'{"step": ' + b'7' * 400 + b', "epoch": 1}', b'\xff\xfe\x00', b'[' * 60_000, b'x' * 70_000,
  b'{"step": -1, "epoch": 1}',
]  # fmt: skip


@pytest.mark.parametrize('bad', DAMAGED, ids=range(len(DAMAGED)))
def test_a_log_never_blocks_a_resume_and_no_row_is_lost(tmp_path, bad: bytes, capsys) -> None:
  lines = ROWS.split(b'\n')
  raw = b'\n'.join([*lines[:2], bad, *lines[2:]])
  (tmp_path / 'metrics.jsonl').write_bytes(raw)
  with run_log_lib.RunLog(tmp_path, 40, 60, 20.0) as run_log:
    run_log.write(50, {'train/loss': 0.25})
  found = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in found] == [10, 20, 30, 40, 50]
  assert found[:4] == [json.loads(line) for line in lines[:4]]
  said = capsys.readouterr().out
  if bad:
    assert (tmp_path / 'metrics.jsonl.bad').read_bytes() == raw
    assert 'metrics.jsonl: left out: line 3: ' in said.replace('\n', '')
  else:
    assert 'left out' not in said
  assert workdir.read_metrics(tmp_path)[-1] == {'step': 50, 'epoch': 2.5, 'train/loss': 0.25}
  assert draw_curves(tmp_path, tasks.make('classification').metrics, 'top1').is_file()


@pytest.mark.parametrize('odd', ODD_FILES)
def test_a_log_that_is_no_file_is_put_aside(tmp_path, odd: str, capsys) -> None:
  ODD_FILES[odd](tmp_path / 'metrics.jsonl')
  with limited(), run_log_lib.RunLog(tmp_path, 40, 60, 20.0) as run_log:
    run_log.write(50, {'train/loss': 0.25})
  assert json.loads((tmp_path / 'metrics.jsonl').read_text())['step'] == 50
  assert os.path.lexists(tmp_path / 'metrics.jsonl.bad')
  assert 'cannot be read' in capsys.readouterr().out


def test_a_last_row_without_its_end_is_kept_where_it_is_whole(tmp_path) -> None:
  path = tmp_path / 'metrics.jsonl'
  for raw, steps in ((ROWS[:-1], 6), (ROWS[:-2], 5), (ROWS + b'{"st', 6), (ROWS.replace(b'\n', b'\r\n'), 6)):
    path.write_bytes(raw)
    assert (len(rows.read(path)[0]), rows.read(path)[1]) == (steps, '')
    assert rows.cut(path, 60)[1] == ''
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
      json.loads(line) for line in ROWS.splitlines()[:steps]
    ]


def test_values_that_are_no_numbers_stay_in_the_file_and_out_of_the_curves(tmp_path) -> None:
  path = tmp_path / 'metrics.jsonl'
  raw = b'{"step": 1, "epoch": 0.1, "test/loss": NaN, "test/top1": 0.5, "train/loss": 1e300, "note": "x"}\n'
  path.write_bytes(raw)
  assert rows.read(path) == ([{'step': 1, 'epoch': 0.1, 'test/top1': 0.5}], '')
  rows.cut(path, 1)
  assert path.read_bytes() == raw
  assert draw_curves(tmp_path, tasks.make('classification').metrics, 'top1').is_file()


# checkpoints


def make_state(step: int) -> TrainState:
  leaf = lambda k: jnp.arange(6.0).reshape(2, 3) * k + step
  return TrainState(jnp.asarray(step, jnp.int32), {'a': leaf(1)}, {'b': leaf(2)}, ())


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
  """A directory with the checkpoints 1 and 2."""
  directory = tmp_path_factory.mktemp('saved') / 'c'
  with checkpoint.open(directory, keep_latest=3) as manager:
    for step in (1, 2):
      progress = {'last': {'test/loss': math.nan}, 'best': {}, 'stale': step}
      checkpoint.save(manager, make_state(step), progress, {'val/top1': 0.5}, {'train': {'seed': 3}}, commit=True)
  return directory


@pytest.fixture
def copy(saved: pathlib.Path, tmp_path) -> pathlib.Path:
  return shutil.copytree(saved, tmp_path / 'c')


@pytest.mark.parametrize('item', ['progress', 'about', 'metrics', 'digests'])
def test_mutations_of_the_items_of_a_checkpoint(copy: pathlib.Path, item: str) -> None:
  name = f'{item}/{reader.JSON_ITEMS.get(item, "metadata")}'
  read = lambda directory: [field for field in reader.read(directory) if not isinstance(field, np.ndarray)][1:]
  raw = (copy / '2' / name).read_bytes()
  kind = Kind(name, raw, read, lambda content: None, is_strict=True)
  print(item, try_all(kind, copy / '2'))


def test_a_leaf_that_the_digests_do_not_know_is_damage(copy: pathlib.Path) -> None:
  file = copy / '2/digests/metadata'
  content = json.loads(file.read_text())
  del content['state']['batch_stats/b']
  file.write_text(json.dumps(content))
  with pytest.raises(reader.DamagedError, match='digests: none of 1 arrays that are there, the first batch_stats.b'):
    reader.read(copy / '2')


def test_a_digest_of_another_shape_takes_no_memory(copy: pathlib.Path) -> None:
  file = copy / '2/digests/metadata'
  file.write_text(file.read_text().replace('float32[2,3]', 'float32[100000,100000]', 1))
  with pytest.raises(reader.DamagedError, match=r'leaf .*: it is not what was saved \(float32\[2,3\]\)'):
    reader.read(copy / '2')


@pytest.mark.parametrize('text', ['{}', '[]', '{"state": {}}', '[' * 200_000, '{"a":' * 900 + '1' + '}' * 900, 'null'])
@pytest.mark.parametrize('item', ['digests', 'progress', 'about', 'metrics'])
def test_a_run_falls_back_behind_a_damaged_item(copy: pathlib.Path, item: str, text: str, capfd) -> None:
  (copy / '2' / item / reader.JSON_ITEMS.get(item, 'metadata')).write_text(text)
  with checkpoint.open(copy, keep_latest=3) as manager:
    assert manager.all_steps() == [1]
  assert 'checkpoint 2 is damaged: ' in capfd.readouterr().err
  assert (copy / '2.bad').is_dir()


def test_without_digests_it_must_be_known_that_there_were_none(copy: pathlib.Path) -> None:
  described = copy / '2/_CHECKPOINT_METADATA'
  content = json.loads(described.read_text())
  for item in ('digests', 'about'):
    shutil.rmtree(copy / '2' / item)
  for text in ('', '[]', '{}', '{"item_handlers": 3}', json.dumps(content), '[' * 9_000):
    described.write_text(text)
    with pytest.raises(reader.DamagedError, match='digests: '):
      reader.read(copy / '2')
  for item in ('digests', 'about'):
    del content['item_handlers'][item]
  described.write_text(json.dumps(content))
  assert not reader.read(copy / '2').verified


def put_file(path: pathlib.Path) -> None:
  path.write_text('x')


ODD_ENTRIES = {
  '007': lambda path: path.mkdir(),
  '0009': lambda path: shutil.copytree(path.with_name('2'), path),
  '\u0665': lambda path: path.mkdir(),  # a digit, not of ASCII
  '9' * 40: lambda path: path.mkdir(),
  '5': put_file,
  '3': lambda path: path.symlink_to('3'),
  '8': lambda path: path.symlink_to('nowhere'),
  '6': os.mkfifo,
}


@pytest.mark.parametrize('name', ODD_ENTRIES)
def test_odd_entries_are_no_step(copy: pathlib.Path, name: str, capfd) -> None:
  ODD_ENTRIES[name](copy / name)
  assert steps_lib.numbered(copy) == [1, 2]
  with checkpoint.open(copy, keep_latest=3) as manager:
    places = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state, _ = checkpoint.restore(manager, jax.eval_shape(lambda: make_state(0)), places)
    assert int(state.step) == 2
    step = int(name) if name.isascii() and len(name) == 1 else 10
    checkpoint.save(manager, make_state(step), {}, {}, commit=True)
  assert max(steps_lib.numbered(copy)) == step
  assert f'{copy / name} is no checkpoint; it is now ' in capfd.readouterr().err


@pytest.mark.parametrize('put', [put_file, lambda path: path.symlink_to(path.name), os.mkfifo])
def test_checkpoints_that_are_no_directory(tmp_path, put: Callable[[pathlib.Path], None]) -> None:
  put(tmp_path / 'c')
  with pytest.raises(InputError, match='c: cannot be read: .*; expected a directory of checkpoints'):
    checkpoint.open(tmp_path / 'c').__enter__()


# a run's weights are of the network that was trained


@pytest.fixture
def run(tmp_path, tiny: str) -> pathlib.Path:
  """A run of the network ``tiny`` with three classes."""
  from jaxres.models import blocks, resnet

  same = lambda **options: resnet.ResNet(
    (1,), (8,), blocks.BasicBlock, **{'stem_type': 'cifar', 'act': 'silu'} | options
  )
  resnet.MODELS['twin'] = same  # the same names and shapes, and another function
  model = models.create(tiny, num_classes=3)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
  config = config_lib.make(model=dict(name=tiny))
  with checkpoint.open(tmp_path / 'run/checkpoints') as manager:
    state = TrainState(jnp.int32(7), variables['params'], variables['batch_stats'], ())
    checkpoint.save(manager, state, {}, {}, config)
  (tmp_path / 'run/config.json').write_text(config_lib.to_json(config))
  (tmp_path / 'run/data.json').write_bytes(DATA)
  yield tmp_path / 'run'
  del resnet.MODELS['twin']


def test_a_run_of_another_network_is_refused(run: pathlib.Path) -> None:
  from jaxres.tools import convert as convert_tool

  assert sources.read(str(run)).class_names == ('ant', 'bee', 'caf\udce9')
  path = run / 'config.json'
  written = json.loads(path.read_text())
  for field, value in (('name', 'twin'), ('name', 'resnet20'), ('act', 'silu'), ('stem', 'deep'), ('shortcut', 'pad')):
    path.write_text(json.dumps(written | {'model': written['model'] | {field: value}}))
    with pytest.raises(InputError, match=f'of another run: model.{field} was .* there, and is .* in this run'):
      convert_tool.run(arguments(convert_tool, str(run), str(run.parent / 'out')))
    assert not (run.parent / 'out').exists()
  path.write_text(json.dumps(written | {'train': written['train'] | {'epochs': 99.0}}))
  assert sources.read(str(run)).options['name'] == 'tiny'


def arguments(tool: Any, *argv: str) -> Any:
  import argparse

  parser = argparse.ArgumentParser()
  tool.add_arguments(parser)
  return parser.parse_args(argv)


def test_what_is_written_has_a_digest_of_its_own_and_the_old_form_loads(run: pathlib.Path, tmp_path) -> None:
  sources.write(tmp_path / 'out', sources.read(str(run)))
  path = tmp_path / 'out/model.json'
  content = json.loads(path.read_text())
  for field, value in (('class_names', ['x', 'y', 'z']), ('origin', 'elsewhere'), ('channels', 1)):
    path.write_text(json.dumps(content | {field: value}))
    with pytest.raises(files.DamagedError, match='it was edited, or its SHA-256 was'):
      sources.read(str(tmp_path / 'out'))
  del content['description_sha256']
  path.write_text(json.dumps(content))
  with pytest.raises(files.DamagedError, match='description_sha256: missing'):
    sources.read(str(tmp_path / 'out'))
  content['format'] = 1
  path.write_text(json.dumps(content))
  assert sources.read(str(tmp_path / 'out')).class_names == ('ant', 'bee', 'caf\udce9')
  for change, line in (
    ({'class_names': ['x']}, 'class_names: expected 3 as the weights have, found 1'),
    ({'channels': 1}, 'channels: expected 3 as the weights have, found 1'),
    ({'model': content['model'] | {'num_classes': 10**9}}, 'model.num_classes: expected 3 as the weights have'),
    ({'model': content['model'] | {'name': 'resnet20'}}, 'no resnet20: it holds '),
  ):
    path.write_text(json.dumps(content | change))
    with limited(), pytest.raises(InputError, match=line):
      sources.read(str(tmp_path / 'out'))
