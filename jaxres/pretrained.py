"""Networks with their weights, from wherever they come: torch files, published ones, directories and runs of jaxres."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np

from jaxres import checkpoint, integrity, models, weights
from jaxres import config as config_lib
from jaxres.errors import InputError
from jaxres.files import complete, file_errors
from jaxres.models import ResNet
from jaxres.weights import published, safetensors
from jaxres.weights.names import Dialect

FORMAT = 1  # of model.json
SOURCES = ('torchvision', 'jaxres')

Init = Callable[[Mapping[str, Any]], dict[str, Any]]


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
  """

  variables: dict[str, Any]
  options: dict[str, Any]
  channels: int
  dialect: Dialect
  batches: dict[str, int] | int
  class_names: tuple[str, ...] | None
  origin: str

  def model(self) -> ResNet:
    """Return the network, computing in float32."""
    return models.create(**self.options, dtype='float32')

  def state_dict(self) -> dict[str, np.ndarray]:
    """Return the weights by torch's names and in torch's layout."""
    return weights.from_variables(self.variables, self.model(), self.dialect, batches=self.batches)


def read(source: str, step: str = 'latest', skip: Sequence[str] = ()) -> Pretrained:
  """Return the network at ``source``.

  Args:
    source: ``'torchvision:NAME'`` (published weights, downloaded once), ``'torchvision:PATH'`` or ``'PATH'`` (a file
      of any torch ResNet), ``'jaxres:DIR'`` or ``'DIR'`` (of ``write``, or the workdir of a run).
    step: of a run with several checkpoints: ``'latest'``, ``'best'`` (by validation) or a number.
    skip: regular expressions of what in a torch file is not part of the network, such as ``'aux.*'``.

  Raises:
    InputError: there is nothing there, or nothing that can be read.
  """
  kind, place = _parse(source)
  directory = pathlib.Path(place).expanduser()
  is_written = (directory / 'model.json').is_file()
  if step not in ('latest', 'best') and (kind == 'torchvision' or is_written):
    raise InputError(f'{place}: it is no run, and has no step {step}; leave the step out')
  if kind == 'torchvision':
    path = _file(place)
    return _of_torch(weights.read(path), path, skip)
  if skip:
    raise InputError(f'{place}: skip is for tensors of torch files; leave it out')
  if is_written:
    return _read_written(directory)
  if directory.is_file():
    raise InputError(f'{directory}: a file; leave out "jaxres:", which is for directories')
  if (directory / 'config.json').is_file():
    return _read_run(directory, step)
  raise InputError(f'{directory}: no weights of jaxres: expected model.json, or config.json and checkpoints/ of a run')


def make_init(
  model: ResNet,
  class_names: Sequence[str],
  /,
  *,
  source: str | None = None,
  step: str = 'best',
  skip: tuple[str, ...] = (),
  new_head: bool = False,
) -> Init | None:
  """Return the function of fresh variables to those that a training starts from; None where there is no source.

  It reads the source each time, and raises InputError where that cannot be read or does not fit.

  Args:
    model: the network to be trained.
    class_names: of the data.
    source: ``'torchvision:NAME'`` (published weights, downloaded once), the path of a file of any torch ResNet (timm's
      too), or ``'jaxres:DIR'``: the workdir of another run, or what `jaxres convert` wrote.
    step: of a run: ``'best'`` (by validation, or else the latest), ``'latest'`` or a number.
    skip: regular expressions of paths, such as ``'stem/.*'``, that keep their fresh values, or of names in a torch
      file that are left out.
    new_head: the classifier keeps its fresh values.
  """
  if source is None:
    return None

  def init(variables: Mapping[str, Any]) -> dict[str, Any]:
    try:
      return load(source, model, variables, skip, step=step, new_head=new_head, class_names=class_names)
    except InputError as error:
      raise InputError(f'init.source: {error}') from None

  return init


def load(
  source: str,
  model: ResNet,
  variables: Mapping[str, Any],
  skip: Sequence[str] = (),
  *,
  step: str = 'latest',
  new_head: bool = False,
  class_names: Sequence[str] = (),
) -> dict[str, Any]:
  """Return ``variables`` of ``model`` with the weights at ``source`` in place of all that ``skip`` does not match.

  Where the images of ``source`` have another number of channels, the kernel of the first convolution is adapted, see
  ``adapt_channels``.

  Args:
    source: as of ``read``; the network there may have another head, and whatever else ``skip`` matches.
    model: the network that is to have them.
    variables: of ``model``, or their shapes; the skipped leaves stay as they are.
    skip: regular expressions of paths, such as ``'head/.*'``, or of names in the file.
    step: as of ``make_init``.
    new_head: skip the head too.
    class_names: those of a head that is loaded must be the same, where the source knows them.

  Raises:
    InputError: there is nothing that can be read, or it does not fit: nothing is loaded in part.
  """
  kind, place = _parse(source)
  if kind == 'torchvision':
    where, theirs = str(_file(place)), None
    state_dict: weights.StateDict = weights.read(where)
  else:
    found = read(source, step)
    state_dict, where, theirs = found.state_dict(), place, found.class_names
  name, _, _ = weights.recognise(state_dict, where)
  if weights.name_of(models.create(name)) != weights.name_of(model):
    raise InputError(f'{where}: it holds a {name}, and the model is a {weights.name_of(model)}; set model.name={name}')
  skip = (*skip, 'head/.*') if new_head else skip
  state_dict = adapt_channels(state_dict, _channels(variables))
  try:
    loaded = weights.to_variables(state_dict, model, variables, skip=skip, where=where)
  except InputError as error:
    fix = 'init.skip names what keeps its fresh values, init.new_head=True is for another head'
    raise InputError(f'{error}; {fix}') from None
  taken = loaded['params']['head']['fc']['kernel'] is not variables['params']['head']['fc']['kernel']
  if taken and theirs and class_names and tuple(theirs) != tuple(class_names):
    differ = f'its classes are {", ".join(theirs):.80}, and those of the data {", ".join(class_names):.80}'
    raise InputError(f'{where}: {differ}; set init.new_head=True')
  return loaded


def adapt_channels(state_dict: weights.StateDict, channels: int) -> weights.StateDict:
  """Return ``state_dict`` for images of so many ``channels``, as timm's ``adapt_input_conv`` does.

  For one channel the kernels of the first convolution are summed over the channels; for others they are repeated in
  turn, and scaled by how many fewer there were.
  """
  name = 'conv1.0.weight' if 'conv1.0.weight' in state_dict else 'conv1.weight'
  kernel = state_dict[name]
  have = kernel.shape[1]
  if have == channels:
    return state_dict
  repeated = lambda: kernel[:, np.arange(channels) % have] * np.float32(have / channels)
  return {**state_dict, name: kernel.sum(1, keepdims=True) if channels == 1 else repeated()}


def read_class_names(path: str, found: Pretrained) -> tuple[str, ...]:
  """Return the class names in a text file, one a line.

  Raises:
    InputError: it cannot be read, or has not as many as ``found`` has classes.
  """
  try:
    names = tuple(pathlib.Path(path).read_text(encoding='utf-8-sig').split('\n'))
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
  directory = pathlib.Path(directory).expanduser()
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
      'sha256': digest,
    }
    with complete(directory / 'model.json') as part:
      part.write((json.dumps(description, indent=2) + '\n').encode())


def _parse(source: str) -> tuple[str, str]:
  """Return the kind of a source and where it is."""
  kind, colon, place = source.partition(':')
  if colon and kind in SOURCES:
    return kind, place
  return ('jaxres' if pathlib.Path(source).expanduser().is_dir() else 'torchvision'), source


def _file(place: str) -> pathlib.Path:
  """Return the path of a file, or of the published weights of that name."""
  path = pathlib.Path(place).expanduser()
  is_name = place in published.DIGITS or not (path.exists() or path.suffix or '/' in place)
  return published.find(place) if is_name else path


def _of_torch(state_dict: weights.StateDict, path: pathlib.Path, skip: Sequence[str]) -> Pretrained:
  found = weights.recognise(state_dict, str(path))
  options = {'name': found.name, **found.options}
  dialect = weights.dialect_of(state_dict)
  model = models.create(**options, dtype='float32')
  variables = weights.to_variables(state_dict, model, skip=skip, where=str(path))
  return Pretrained(variables, options, found.channels, dialect, weights.batches(state_dict), None, str(path))


def _read_written(directory: pathlib.Path) -> Pretrained:
  path, described = directory / 'weights.safetensors', directory / 'model.json'
  try:
    given = json.loads(described.read_text())
    data = path.read_bytes()
  except (OSError, ValueError) as error:
    raise InputError(f'{directory}: cannot be read: {error}') from None
  if isinstance(given, dict) and given.get('format', FORMAT) != FORMAT:
    raise InputError(f'{described}: format {given["format"]!r:.20}; this jaxres reads {FORMAT}')
  try:
    options, dialect, names = given['model'], Dialect(**given['names']), given['class_names']
    channels, batches, origin, digest = (given[key] for key in ('channels', 'num_batches_tracked', 'origin', 'sha256'))
  except (TypeError, LookupError) as error:
    raise InputError(f'{described}: damaged: {error}') from None
  if hashlib.sha256(data).hexdigest() != digest:
    raise InputError(f'{path}: damaged, or of another model.json: its sha256 is not that in {described}')
  variables = flax.traverse_util.unflatten_dict(safetensors.read(data, str(path)), sep='/')
  return Pretrained(variables, options, channels, dialect, batches, names and tuple(names), origin)


def _read_run(directory: pathlib.Path, step: str) -> Pretrained:
  """Read the weights of a run: their moving average where it keeps one."""
  try:
    config = config_lib.complete(json.loads((directory / 'config.json').read_text()))
  except (OSError, json.JSONDecodeError) as error:
    raise InputError(f'{directory}/config.json: cannot be read: {error}') from None
  options = {key: value for key, value in config_lib.to_dict(config)['model'].items() if value is not None}
  options.pop('dtype')
  number, saved = _restore(directory, step, config)
  variables = saved.get('ema') or {key: saved[key] for key in ('params', 'batch_stats')}
  variables = jax.tree.map(np.asarray, variables)
  options['num_classes'] = variables['params']['head']['fc']['kernel'].shape[1]
  dialect = Dialect.of_model(models.create(**options).shortcut)
  origin = f'{directory}, step {number}' + (', moving average' if 'ema' in saved else '')
  return Pretrained(variables, options, _channels(variables), dialect, number, _class_names(directory), origin)


def _channels(variables: Mapping[str, Any]) -> int:
  stem = variables['params']['stem']
  channels: int = (stem.get('conv') or stem['conv1'])['kernel'].shape[2]
  return channels


def _class_names(directory: pathlib.Path) -> tuple[str, ...] | None:
  """Return the classes of a run; None where it was made by a jaxres that did not write them."""
  path = directory / 'data.json'
  try:
    return tuple(json.loads(path.read_text())['class_names']) if path.exists() else None
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise InputError(f'{path}: cannot be read: {error}') from None


def _restore(directory: pathlib.Path, step: str, config: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
  """Return the number of a checkpoint and its state as it was saved, by ``config``; the run is not touched."""
  where = directory.absolute() / 'checkpoints'
  number, path, saved = integrity.follow(where, lambda paths: _choose(where, paths, step))
  checkpoint.check_made_by(saved.about, config, path)
  return number, flax.traverse_util.unflatten_dict(saved.state, sep='/')


def _choose(where: pathlib.Path, paths: Mapping[int, pathlib.Path], step: str) -> int:
  """Return the step that is asked for, of those that are whole."""
  known = [number for number, path in paths.items() if (path / 'state/_METADATA').exists()]
  if not known:
    if paths:
      raise integrity.DamagedError(f'no checkpoint there: none of {len(paths)} has a state')
    raise InputError(f'{where}: no checkpoint there; expected the workdir of a run that has saved one')
  if step == 'latest':
    return known[-1]
  if step == 'best':
    return max(known, key=lambda number: checkpoint.rank(_scores(paths[number], number)))
  if not step.isdecimal() or int(step) not in known:
    raise InputError(f'{where}: no step {step}; there are {known}')
  return int(step)


def _scores(path: pathlib.Path, number: int) -> dict[str, float]:
  """Return what ``checkpoint.save`` ranks a checkpoint by."""
  try:
    return {'step': number} | json.loads((path / 'metrics/metrics').read_text())
  except (OSError, ValueError) as error:
    raise integrity.DamagedError(f'{path.name}: its metrics cannot be read: {error}') from None
