"""Networks with their weights, from wherever they come: torch files, published ones, directories and runs of jaxres."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np

from jaxres import checkpoint, models, schema, weights, workdir
from jaxres.checkpoint import digests, reader
from jaxres.checkpoint.about import check_made_by
from jaxres.errors import InputError
from jaxres.files import PUT_BACK, DamagedError, complete, file_errors, read_json
from jaxres.log.console import format_value
from jaxres.models import ResNet
from jaxres.paths import MAX_TEXT_BYTES, check_utf8, open_regular, read_regular, user_path
from jaxres.weights import preprocessing as preprocessing_lib
from jaxres.weights import published, safetensors
from jaxres.weights.names import HEADS, SHORTCUTS, Dialect
from jaxres.weights.preprocessing import Preprocessing

FORMAT = 2  # of model.json: 1 had no digest of itself
SNAPSHOT = ('model.safetensors', 'pytorch_model.bin')  # what a directory of Hugging Face's hub has
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
SOURCES = ('torchvision', 'jaxres')
DEFAULT_STEP = 'best'  # of every tool that reads a run
STEP_HELP = "'best' by validation, without one the latest (default); 'latest'; or a number"


class Pretrained(NamedTuple):
  """A network and its weights.

  Attributes:
    variables: ``{'params': ..., 'batch_stats': ...}`` of float32 NumPy arrays.
    options: the arguments of ``models.create``, but for ``dtype``.
    channels: of the images.
    dialect: how torch names them.
    batches: ``num_batches_tracked`` by torch's name, or of every BatchNorm.
    class_names: in the order of the logits; None where the source does not say.
    origin: what was read, for a person.
    preprocessing: of the images; None where the source does not say.
    notes: what else a person should know of the source.
  """

  variables: dict[str, Any]
  options: dict[str, Any]
  channels: int
  dialect: Dialect
  batches: dict[str, int] | int
  class_names: tuple[str, ...] | None
  origin: str
  preprocessing: Preprocessing | None = None
  notes: tuple[str, ...] = ()

  def model(self) -> ResNet:
    """Return the network, computing in float32."""
    return models.create(**self.options, dtype='float32')

  def state_dict(self) -> dict[str, np.ndarray]:
    """Return the weights by torch's names and in torch's layout."""
    return weights.from_variables(self.variables, self.model(), self.dialect, batches=self.batches)


def read(
  source: str, step: str = DEFAULT_STEP, skip: Sequence[str] = (), prefix: str | None = None, stem: str | None = None
) -> Pretrained:
  """Return the network at ``source``.

  Args:
    source: ``'torchvision:NAME'`` (published weights, downloaded once), ``'torchvision:PATH'`` or ``'PATH'`` (a file
      of any torch ResNet, or a directory of Hugging Face's hub), ``'jaxres:DIR'`` or ``'DIR'`` (of ``write``, or the
      workdir of a run).
    step: of a run with several checkpoints: ``'latest'``, ``'best'`` (by validation) or a number.
    skip: regular expressions of what in a torch file is not part of the network, such as ``'aux.*'``.
    prefix: of the network in a torch file with several, such as ``'ema_model'``.
    stem: of a torch file: ``'cifar_pool'`` where a max-pool follows a 3x3 stem, which no tensor shows.

  Raises:
    InputError: there is nothing there, or nothing that can be read.
  """
  kind, place = _parse(source)
  step = str(step)
  directory = user_path(place)
  is_written = (directory / 'model.json').is_file()
  if step not in ('latest', 'best') and (kind == 'torchvision' or is_written):
    raise InputError(f'{place}: it is no run, and has no step {step}; leave the step out')
  if kind == 'torchvision':
    path = _file(place)
    return _of_torch(weights.read_file(path, skip, prefix), path, skip, stem)
  for word, value in {'skip': skip, 'prefix': prefix, 'stem': stem}.items():
    if value:
      raise InputError(f'{place}: {word} is for tensors of torch files; leave it out')
  if is_written:
    return _read_written(directory)
  if directory.is_file():
    raise InputError(f'{directory}: a file; leave out "jaxres:", which is for directories')
  if (directory / 'config.json').is_file():
    return _read_run(directory, step)._replace(preprocessing=preprocessing_of(directory), notes=_choice(step))
  if inside := runs_in(directory):
    raise InputError(f'{directory}: {len(inside)} runs are in it; name one: {" ".join(map(str, inside[:8]))}')
  raise InputError(f'{directory}: no weights of jaxres: expected model.json, or config.json and checkpoints/ of a run')


def runs_in(directory: pathlib.Path) -> list[pathlib.Path]:
  """Return the runs of a series in ``directory``, such as ``seed0`` and ``seed1``; none where it is a run itself."""
  if (directory / 'config.json').exists():
    return []
  found = [
    (re.fullmatch(r'(seed|fold)([0-9]+)', path.parent.name), path.parent) for path in directory.glob('*/config.json')
  ]
  return [path for _, _, path in sorted((match[1], int(match[2]), path) for match, path in found if match)]


def read_class_names(path: str, found: Pretrained) -> tuple[str, ...]:
  """Return the class names in a text file, one a line.

  Raises:
    InputError: it cannot be read, or has not as many as ``found`` has classes.
  """
  try:
    names = tuple(read_regular(user_path(path, '--class_names'), MAX_TEXT_BYTES).decode('utf-8-sig').split('\n'))
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise InputError(f'--class_names {path}: cannot be read: {reason}') from None
  names = names[:-1] if names[-1] == '' else names
  if len(names) != found.options['num_classes']:
    raise InputError(
      f'--class_names {path}: {len(names)} names, but the network has {found.options["num_classes"]} classes'
    )
  return names


def write(directory: str | pathlib.Path, found: Pretrained) -> None:
  """Write ``weights.safetensors`` and ``model.json`` to ``directory``, the latter last.

  Raises:
    InputError: they cannot be written.
  """
  directory = user_path(directory)
  tensors = {
    path: np.asarray(value) for path, value in flax.traverse_util.flatten_dict(found.variables, sep='/').items()
  }
  with file_errors(directory):
    with complete(directory / 'weights.safetensors') as part:
      safetensors.write(pathlib.Path(part.name), tensors, {'format': 'jaxres'})
      digest = hashlib.sha256(pathlib.Path(part.name).read_bytes()).hexdigest()
    description = {
      'format': FORMAT,
      'model': found.options,
      'channels': found.channels,
      'names': found.dialect._asdict(),
      'num_batches_tracked': found.batches,
      'class_names': found.class_names,
      'origin': found.origin,
      'preprocessing': found.preprocessing and found.preprocessing._asdict(),
      'sha256': digest,
    }
    description['description_sha256'] = digests.json_digest(description)
    with complete(directory / 'model.json') as part:
      part.write((json.dumps(description, indent=2) + '\n').encode())


def _parse(source: str) -> tuple[str, str]:
  """Return the kind of a source and where it is.

  Raises:
    InputError: it is no text or path.
  """
  if not isinstance(source, str | os.PathLike) or not os.fspath(source):
    raise InputError(f'source: expected a path, torchvision:NAME or jaxres:DIR, found {source!r:.80}')
  source = os.fspath(source)
  kind, colon, place = source.partition(':')
  if colon and kind in SOURCES:
    return kind, place
  path = user_path(source)
  if not path.is_dir():
    return 'torchvision', source
  if not ((path / 'model.json').exists() or (path / 'checkpoints').exists()):  # it has a config.json of its own
    for name in SNAPSHOT:
      if (path / name).is_file():
        return 'torchvision', str(path / name)
  return 'jaxres', source


def _file(place: str) -> pathlib.Path:
  """Return the path of a file, or of the published weights of that name."""
  path = user_path(place)
  is_name = place in published.DIGITS or not (path.exists() or path.suffix or '/' in place)
  return published.find(place) if is_name else path


def _of_torch(file: weights.File, path: pathlib.Path, skip: Sequence[str], stem: str | None) -> Pretrained:
  found = weights.recognise(file.tensors, str(path), stem)
  options = {'name': found.name, **found.options}
  dialect = weights.dialect_of(file.tensors)
  if f'{dialect.head}.weight' not in file.tensors:
    fix = f'a training gives it one: --config.init.source={path} --config.init.new_head=True'
    raise InputError(f'{path}: a {found.name} without a classifier; {fix}')
  model = models.create(**options, dtype='float32')
  variables = weights.to_variables(file.tensors, model, skip=skip, skipped=file.skipped, where=str(path))
  notes = (*file.notes, *_guesses(model, stem))
  counters = weights.batches(file.tensors)
  return Pretrained(variables, options, found.channels, dialect, counters, None, str(path), notes=notes)


def _guesses(model: ResNet, stem: str | None) -> tuple[str, ...]:
  """Return what was taken for granted of a network that no tensor shows, where another one is likely."""
  if model.stem_type != 'cifar' or stem or len(model.stage_sizes) < 4:
    return ()
  return ('its 3x3 stem is taken to have no max-pool after it, which no tensor shows; else give --stem cifar_pool',)


def _choice(step: str) -> tuple[str, ...]:
  """Return how the checkpoint of a run was chosen."""
  how = {'best': 'the best by validation, or the latest where there was none', 'latest': 'the latest checkpoint'}
  return (f'taken: {how.get(step, f"step {step}")}',)


def _read_written(directory: pathlib.Path) -> Pretrained:
  path, described = directory / 'weights.safetensors', directory / 'model.json'
  given = read_description(described)
  try:
    with open_regular(path) as file:
      data = file.read()
  except OSError as error:
    raise InputError(f'{path}: cannot be read: {error.strerror or error}') from None
  if hashlib.sha256(data).hexdigest() != given['sha256']:
    raise InputError(f'{path}: damaged, or of another model.json: its sha256 is not that in {described}')
  variables = flax.traverse_util.unflatten_dict(safetensors.read(data, str(path)), sep='/')
  options, classes = given['model'], given['class_names']
  _check_network(variables, options, described)
  if given['channels'] != _channels(variables):
    found = f'channels: expected {_channels(variables)} as the weights have, found {given["channels"]}'
    raise InputError(f'{described}: {found}; {PUT_BACK}')
  if classes and len(classes) != options['num_classes']:
    found = f'class_names: expected {options["num_classes"]:,} as the weights have, found {len(classes):,}'
    raise InputError(f'{described}: {found}; {PUT_BACK}')
  dialect, origin = Dialect(**given['names']), given['origin']
  batches = given['num_batches_tracked']
  names, seen = classes and tuple(classes), given.get('preprocessing')
  read = Pretrained(variables, options, _channels(variables), dialect, batches, names, origin)
  return read._replace(preprocessing=seen and preprocessing_lib.parse(seen, f'{described}: preprocessing'))


def read_description(path: pathlib.Path) -> dict[str, Any]:
  """Return the content of a ``model.json``, compared with its own digest, which an older jaxres did not write."""
  given = read_json(path)
  if isinstance(given, dict) and given.get('format', 1) not in (1, FORMAT):
    raise InputError(f'{path}: format {schema.brief(given["format"])}; this jaxres reads 1 and {FORMAT}')
  older = isinstance(given, dict) and given.get('format', 1) == 1
  optional = ('preprocessing', *(('description_sha256', 'format') if older else ()))
  schema.check_fields(given, MODEL, path, optional=optional, closed=True)
  schema.check_fields(given['names'], NAMES, f'{path}: names', closed=True)
  rest = {name: value for name, value in given.items() if name != 'description_sha256'}
  if given.get('description_sha256', digests.json_digest(rest)) != digests.json_digest(rest):
    raise DamagedError(f'{path}: damaged: it was edited, or its SHA-256 was; {PUT_BACK}')
  options = workdir.as_config({'model': given['model']}, path)['model']
  if 'dtype' in given['model'] or options['num_classes'] is None:
    raise DamagedError(f'{path}: model: expected num_classes, and no dtype; {PUT_BACK}')
  try:
    models.create(**given['model'], dtype='float32')
  except InputError as error:
    raise DamagedError(f'{path}: {f"{error}":.240}; {PUT_BACK}') from None
  return given


def _read_run(directory: pathlib.Path, step: str) -> Pretrained:
  """Read the weights of a run: their moving average where it keeps one."""
  config = workdir.read_config(directory) or {}
  number, saved = _restore(directory, step, config)
  options = {key: value for key, value in config['model'].items() if value is not None}
  options.pop('dtype')
  tree = flax.traverse_util.unflatten_dict(saved.state, sep='/')
  variables = tree.get('ema') or {key: tree.get(key, {}) for key in ('params', 'batch_stats')}
  variables = jax.tree.map(np.asarray, variables)
  where = f'{directory}, step {number}'
  options['num_classes'] = _head(variables, where).shape[1]
  _check_network(variables, options, where)
  channels = _channels(variables)
  names = workdir.class_names(directory, options['num_classes'], channels)
  dialect = Dialect.of_model(models.create(**options).shortcut)
  origin = f'{where} ({_why(directory, number, step)})' + (', moving average' if 'ema' in tree else '')
  return Pretrained(variables, options, channels, dialect, number, names, origin)


def preprocessing_of(run: pathlib.Path) -> Preprocessing | None:
  """Return what the run in ``run`` does to an image; None where a jaxres made it that did not write its data.

  Raises:
    DamagedError: its config or the description of its data is not what was written.
  """
  info, config = workdir.read_data(run), workdir.read_config(run)
  if info is None or config is None or {'image_shape', 'mean', 'std'} - {*info}:
    return None
  fields = config['data']
  size = fields['eval_image_size'] or fields['image_size']
  shape = (size, size) if size else (info['image_shape'][0], info['image_shape'][1])
  return Preprocessing(tuple(info['mean']), tuple(info['std']), shape, fields['center_crop'] if size else 1.0)


def _head(variables: Mapping[str, Any], where: object) -> np.ndarray:
  """Return the kernel of the classifier."""
  try:
    kernel: np.ndarray = variables['params']['head']['fc']['kernel']
  except (LookupError, TypeError):
    raise DamagedError(f'{where}: it has no params/head/fc/kernel: no network of jaxres') from None
  if getattr(kernel, 'ndim', 0) != 2:
    raise DamagedError(f'{where}: params/head/fc/kernel is no matrix: no network of jaxres')
  return kernel


def _check_network(variables: Mapping[str, Any], options: Mapping[str, Any], where: object) -> None:
  """Raise InputError where ``variables`` are not those of the network of ``options``, by name, dtype and shape."""
  classes = _head(variables, where).shape[1]
  if options['num_classes'] != classes:
    found = f'model.num_classes: expected {classes:,} as the weights have, found {options["num_classes"]:,}'
    raise InputError(f'{where}: {found}; {PUT_BACK}')
  model = models.create(**options, dtype='float32')
  try:
    wanted = weights.abstract(model, _channels(variables))
  except (LookupError, TypeError, AttributeError):
    raise DamagedError(f'{where}: its stem is that of no network of jaxres') from None
  digests.check_like(digests.kinds(variables), digests.kinds(wanted), f'{where}: no {options["name"]}')


def _channels(variables: Mapping[str, Any]) -> int:
  stem = variables['params']['stem']
  channels: int = (stem.get('conv') or stem['conv1'])['kernel'].shape[2]
  return channels


def _restore(directory: pathlib.Path, step: str, config: Mapping[str, Any]) -> tuple[int, reader.Saved]:
  """Return the number of a checkpoint and what was saved, by ``config``; the run is not touched."""
  where = check_utf8(directory).absolute() / 'checkpoints'
  number, path, saved = reader.follow(where, lambda paths: _choose(where, paths, step))
  check_made_by(saved.about, config, path)
  return number, saved


def _choose(where: pathlib.Path, paths: Mapping[int, pathlib.Path], step: str) -> int:
  """Return the step that is asked for, of those that are whole."""
  known = [number for number, path in paths.items() if os.path.isfile(path / 'state/_METADATA')]
  if not known:
    if paths:
      raise reader.DamagedError(f'no checkpoint there: none of {len(paths)} has a state')
    raise InputError(f'{where}: no checkpoint there; expected the workdir of a run that has saved one')
  if step == 'latest':
    return known[-1]
  if step == 'best':
    return max(known, key=lambda number: checkpoint.rank(reader.read_scores(paths[number])))
  if not step.isdecimal() or int(step) not in known:
    raise InputError(f'{where}: no step {step}; there are {known}')
  return int(step)


def _why(directory: pathlib.Path, number: int, step: str) -> str:
  """Return in words why a checkpoint was taken."""
  if step != 'best':
    return 'the latest' if step == 'latest' else 'as asked for'
  scores = reader.read_scores(directory.absolute() / 'checkpoints' / str(number))
  name = next((name for name in scores if name != 'step'), None)
  label = name and name.removeprefix('val/').replace('top', 'top-')
  return (
    f'the best on validation: {label} {format_value(name, scores[name])}'
    if name
    else 'the latest, as nothing was validated'
  )
