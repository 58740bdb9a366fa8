"""Directories that `jaxres convert` writes: ``weights.safetensors``, and ``model.json`` that says what they are."""

import hashlib
import json
import pathlib
from typing import Any

import flax.traverse_util
import numpy as np

from jaxres import models, schema, workdir
from jaxres.checkpoint import digests
from jaxres.errors import InputError
from jaxres.files import PUT_BACK, DamagedError, complete, file_errors, read_json
from jaxres.paths import open_regular, user_path
from jaxres.weights import preprocessing as preprocessing_lib
from jaxres.weights import safetensors
from jaxres.weights.names import HEADS, SHORTCUTS, Dialect
from jaxres.weights.network import Pretrained, check_network, count_channels

FORMAT = 2  # of model.json: 1 had no digest of itself
NAMES = {  # the fields of a Dialect
  'shortcut': schema.one_of(SHORTCUTS),
  'head': schema.one_of(HEADS),
  'average': schema.YES_OR_NO,
}
_COUNT = schema.integer(0, 2**63 - 1)
MODEL = {  # the fields of model.json; those of "model" are the section of that name of the config
  'format': schema.integer(1, FORMAT),
  'model': schema.Check('an object', lambda x: isinstance(x, dict)),
  'channels': schema.integer(1, workdir.MAX_CHANNELS),
  'names': schema.Check('an object', lambda x: isinstance(x, dict)),
  'num_batches_tracked': schema.either(_COUNT, schema.object_of(_COUNT)),
  'class_names': schema.either(schema.array_of(schema.text(), min_items=1), schema.NOTHING),
  'origin': schema.text(),
  'preprocessing': schema.either(schema.Check('an object', lambda x: isinstance(x, dict)), schema.NOTHING),
  'sha256': schema.SHA256,
  'description_sha256': schema.SHA256,  # of all the others
}


def write(directory: str | pathlib.Path, pretrained: Pretrained) -> None:
  """Write ``weights.safetensors`` and ``model.json`` to ``directory``, the latter last.

  Raises:
    InputError: they cannot be written.
  """
  directory = user_path(directory)
  tensors = {
    path: np.asarray(value) for path, value in flax.traverse_util.flatten_dict(pretrained.variables, sep='/').items()
  }
  with file_errors(directory):
    with complete(directory / 'weights.safetensors') as part:
      safetensors.write(pathlib.Path(part.name), tensors, {'format': 'jaxres'})
      digest = hashlib.sha256(pathlib.Path(part.name).read_bytes()).hexdigest()
    with complete(directory / 'model.json') as part:
      part.write((json.dumps(describe(pretrained, digest), indent=2) + '\n').encode())


def describe(pretrained: Pretrained, digest: str) -> dict[str, Any]:
  """Return the content of ``model.json``.

  Args:
    pretrained: the network.
    digest: SHA-256 of the file of its weights.
  """
  description = {
    'format': FORMAT,
    'model': pretrained.options,
    'channels': pretrained.channels,
    'names': pretrained.dialect._asdict(),
    'num_batches_tracked': pretrained.batches,
    'class_names': pretrained.class_names,
    'origin': pretrained.origin,
    'preprocessing': pretrained.preprocessing and pretrained.preprocessing._asdict(),
    'sha256': digest,
  }
  return description | {'description_sha256': digests.json_digest(description)}


def read(directory: pathlib.Path) -> Pretrained:
  """Return the network that ``write`` wrote to ``directory``.

  Raises:
    InputError: it cannot be read, is damaged, or the two files do not belong together.
  """
  described = directory / 'model.json'
  return read_weights(directory / 'weights.safetensors', read_description(described), described)


def read_weights(path: pathlib.Path, given: dict[str, Any], described: object) -> Pretrained:
  """Return the network of a description and the file of its weights.

  Args:
    path: of the weights.
    given: the description, of ``check_description``.
    described: where it is, for the error.

  Raises:
    InputError: they cannot be read, are damaged, or do not belong together.
  """
  try:
    with open_regular(path) as file:
      data = file.read()
  except OSError as error:
    raise InputError(path, f'cannot be read: {error.strerror or error}') from None
  if hashlib.sha256(data).hexdigest() != given['sha256']:
    raise InputError(path, f'damaged, or of another model.json: its sha256 is not that in {described}')
  variables = flax.traverse_util.unflatten_dict(safetensors.read(data, str(path)), sep='/')
  options, classes = given['model'], given['class_names']
  check_network(variables, options, described)
  if given['channels'] != count_channels(variables):
    expected = f'{count_channels(variables)} as the weights have'
    raise InputError(f'{described}: channels', expected=expected, found=given['channels'], fix=PUT_BACK)
  if classes and len(classes) != options['num_classes']:
    expected = f'{options["num_classes"]:,} as the weights have'
    raise InputError(f'{described}: class_names', expected=expected, found=f'{len(classes):,}', fix=PUT_BACK)
  dialect, origin = Dialect(**given['names']), given['origin']
  batches = given['num_batches_tracked']
  names, seen = classes and tuple(classes), given.get('preprocessing')
  read = Pretrained(variables, options, count_channels(variables), dialect, batches, names, origin)
  return read._replace(preprocessing=seen and preprocessing_lib.parse(seen, f'{described}: preprocessing'))


def read_description(path: pathlib.Path) -> dict[str, Any]:
  """Return the content of a ``model.json``, compared with its own digest, which an older jaxres did not write."""
  return check_description(read_json(path), path)


def check_description(given: Any, path: object) -> dict[str, Any]:
  """Return ``given``, the content of a ``model.json``, checked; ``path`` says where it is, for the error.

  Raises:
    InputError: it is that of a newer jaxres, or not what was written.
  """
  if isinstance(given, dict) and given.get('format', 1) not in (1, FORMAT):
    raise InputError(path, f'format {schema.brief(given["format"])}', fix=f'this jaxres reads 1 and {FORMAT}')
  older = isinstance(given, dict) and given.get('format', 1) == 1
  optional = ('preprocessing', *(('description_sha256', 'format') if older else ()))
  schema.check_fields(given, MODEL, path, optional=optional, closed=True)
  schema.check_fields(given['names'], NAMES, f'{path}: names', closed=True)
  rest = {name: value for name, value in given.items() if name != 'description_sha256'}
  if given.get('description_sha256', digests.json_digest(rest)) != digests.json_digest(rest):
    raise DamagedError(path, 'damaged: it was edited, or its SHA-256 was', fix=PUT_BACK)
  options = workdir.as_config({'model': given['model']}, path)['model']
  if 'dtype' in given['model'] or options['num_classes'] is None:
    raise DamagedError(f'{path}: model', expected='num_classes, and no dtype', fix=PUT_BACK)
  try:
    models.create(**given['model'], dtype='float32')
  except InputError as error:
    raise DamagedError(path, f'{f"{error}":.240}', fix=PUT_BACK) from None
  return given
