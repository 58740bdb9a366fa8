"""Bundles that `jaxres export` writes: ``bundle.json`` says what the network is, and the SHA-256 of each file."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxres import schema
from jaxres.checkpoint import digests
from jaxres.errors import InputError
from jaxres.files import DamagedError, read_json, sha256_of
from jaxres.weights import directories
from jaxres.weights.network import Pretrained

NAME, WEIGHTS = 'bundle.json', 'weights.safetensors'
SCHEMA = 1  # of bundle.json
AGAIN = 'export it again'
_OBJECT = schema.Check('an object', lambda x: isinstance(x, dict))
FIELDS = {
  'schema': schema.integer(1, SCHEMA),
  'network': _OBJECT,  # as model.json of `jaxres convert`: options, classes, preprocessing
  'task': schema.text(),
  'temperature': schema.either(schema.number(1e-6, 1e6), schema.NOTHING),
  'thresholds': schema.either(schema.array_of(schema.number()), schema.NOTHING),
  'source': schema.text(),
  'step': schema.either(schema.integer(0, 2**63 - 1), schema.NOTHING),
  'data': schema.either(schema.text(), schema.NOTHING),
  'versions': schema.object_of(schema.text()),
  'files': schema.object_of(schema.SHA256, min_items=1),
  'sha256': schema.SHA256,  # of all the others
}


def is_bundle(directory: pathlib.Path) -> bool:
  """Return whether ``directory`` is a bundle, intact or not."""
  return (directory / NAME).is_file()


def write_description(path: pathlib.Path, description: Mapping[str, Any]) -> None:
  """Write ``bundle.json`` with the SHA-256 of what it says.

  Args:
    path: of the file.
    description: the fields of ``FIELDS`` but for ``sha256``.
  """
  described = {**description, 'sha256': digests.json_digest(description)}
  path.write_text(json.dumps(described, indent=2) + '\n', encoding='utf-8')


def read_description(directory: pathlib.Path) -> dict[str, Any]:
  """Return the content of the ``bundle.json`` in ``directory``.

  Raises:
    InputError: there is none, it is of a newer jaxres, or damaged.
  """
  path = directory / NAME
  given = read_json(path, fix=AGAIN)
  if given is None:
    raise InputError(directory, 'no bundle', expected=f'{NAME}, as `jaxres export` writes it')
  number = given.get('schema') if isinstance(given, dict) else None
  if type(number) is int and number > SCHEMA:
    raise InputError(path, f'schema {number:,} of a newer jaxres; this one reads {SCHEMA}', fix='upgrade jaxres')
  schema.check_fields(given, FIELDS, path, closed=True, fix=AGAIN)
  rest = {name: value for name, value in given.items() if name != 'sha256'}
  if digests.json_digest(rest) != given['sha256']:
    raise DamagedError(path, 'damaged: it was edited, or its SHA-256 was', fix=AGAIN)
  if odd := [name for name in given['files'] if name.startswith('/') or {'..', '\0'} & {*name, *name.split('/')}]:
    raise DamagedError(f'{path}: files', expected='paths of files below it', found=f'{odd[0]!r:.80}', fix=AGAIN)
  directories.check_description(given['network'], f'{path}: network')
  return given


def check_file(directory: pathlib.Path, description: Mapping[str, Any], name: str) -> pathlib.Path:
  """Return the path of a file of a bundle, whose SHA-256 is what ``bundle.json`` says.

  Raises:
    InputError: the bundle has no such file, or it is damaged.
  """
  path = directory / name
  if name not in description['files']:
    raise InputError(directory, f'it has no {name}', fix=f'it has {", ".join(description["files"])}')
  if sha256_of(path) != description['files'][name]:
    raise DamagedError(path, f'damaged: its sha256 is not that in {directory / NAME}', fix=AGAIN)
  return path


def read(directory: pathlib.Path) -> Pretrained:
  """Return the network of the bundle in ``directory``, from its weights.

  Raises:
    InputError: it cannot be read, is damaged, or of a newer jaxres.
  """
  description = read_description(directory)
  return directories.read_weights(check_file(directory, description, WEIGHTS), description['network'], directory / NAME)


def digest_files(directory: pathlib.Path) -> dict[str, str]:
  """Return the SHA-256 of every file in ``directory``, at any depth, by its path from there."""
  files = [path for path in sorted(directory.rglob('*')) if path.is_file()]
  return {path.relative_to(directory).as_posix(): sha256_of(path) for path in files}
