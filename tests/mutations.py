"""Files that jaxres wrote, changed in ways that a person, a disk or an enemy may, and what reading them must be."""

import json
import math
import os
import pathlib
import random
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxres import config as config_lib
from jaxres import files, models, workdir
from jaxres.errors import InputError
from jaxres.log import rows
from jaxres.weights import directories
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
  actual, left = [], [content]
  while left:
    node = left.pop()
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    actual += [(node, key) for key in keys]
    left += [node[key] for key in keys]
  return actual


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
    'model.json',
    json.dumps(MODEL).encode(),
    lambda path: directories.read_description(path / 'model.json'),
    check_model,
  ),
]
ERRORS = (files.DamagedError, InputError)


def outcome(read: Callable[[pathlib.Path], Any], directory: pathlib.Path) -> tuple[str, Any]:
  """Return whether a reader accepts or refuses what is there, and its content or line; other errors are raised."""
  start = time.perf_counter()
  try:
    result = 'accepted', read(directory)
  except ERRORS as error:
    result = 'refused', str(error)
    assert '\n' not in result[1]
    assert result[1].isprintable(), ascii(result[1])
    assert len(result[1].replace(str(directory), '')) < LONGEST
  assert time.perf_counter() - start < 20  # a second on an idle core
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
