"""Networks with their weights, from wherever they come: torch files, published ones, directories and runs of jaxres."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from jaxres import checkpoint, metrics, models, tasks, weights, workdir
from jaxres.checkpoint import reader, steps
from jaxres.checkpoint.about import check_made_by
from jaxres.errors import InputError
from jaxres.log.console import format_value
from jaxres.models import ResNet
from jaxres.paths import MAX_TEXT_BYTES, check_utf8, read_regular, user_path
from jaxres.weights import bundle, directories, onnx_file, published
from jaxres.weights.names import Dialect
from jaxres.weights.network import Pretrained, check_network, count_channels, find_head
from jaxres.weights.preprocessing import Preprocessing

SNAPSHOT = ('model.safetensors', 'pytorch_model.bin')  # what a directory of Hugging Face's hub has
SOURCES = ('torchvision', 'jaxres')
DEFAULT_STEP = 'best'  # of every tool that reads a run
STEP_HELP = "'best' by validation, without one the latest (default); 'latest'; or a number"


def read(
  source: str, step: str = DEFAULT_STEP, skip: Sequence[str] = (), prefix: str | None = None, stem: str | None = None
) -> Pretrained:
  """Return the network at ``source``.

  Args:
    source: ``'torchvision:NAME'`` (published weights, downloaded once), ``'torchvision:PATH'`` or ``'PATH'`` (a file
      of any torch ResNet, or a directory of Hugging Face's hub), ``'jaxres:DIR'`` or ``'DIR'`` (of
      ``directories.write``, a bundle, or the workdir of a run).
    step: of a run with several checkpoints: ``'latest'``, ``'best'`` (by validation) or a number.
    skip: regular expressions of what in a torch file is not part of the network, such as ``'aux.*'``.
    prefix: of the network in a torch file with several, such as ``'ema_model'``.
    stem: of a torch file: ``'cifar_pool'`` where a max-pool follows a 3x3 stem, which no tensor shows.

  Raises:
    InputError: there is nothing there, or nothing that can be read.
  """
  kind, place = parse(source)
  step = str(step)
  directory = user_path(place)
  if onnx_file.is_onnx(place):
    fix = 'take the bundle that it is a part of, the run or the weights'
    raise InputError(place, 'an ONNX file, whose weights are not those of a model of jaxres', fix=fix)
  is_written = is_described(directory)
  if step not in ('latest', 'best') and (kind == 'torchvision' or is_written):
    raise InputError(place, f'it is no run, and has no step {step:.80}', fix='leave the step out')
  if kind == 'torchvision':
    path = _file(place)
    return _of_torch(weights.read_file(path, skip, prefix), path, skip, stem)
  for word, value in {'skip': skip, 'prefix': prefix, 'stem': stem}.items():
    if value:
      raise InputError(place, f'{word} is for tensors of torch files', fix='leave it out')
  if is_written:
    return bundle.read(directory) if bundle.is_bundle(directory) else directories.read(directory)
  if directory.is_file():
    raise InputError(directory, 'a file', fix='leave out "jaxres:", which is for directories')
  if (directory / 'config.json').is_file():
    if _snapshot(directory) and not (directory / 'checkpoints').exists():
      raise InputError(directory, 'a directory of the hub', fix='leave out "jaxres:", which is for what jaxres wrote')
    return _read_run(directory, step)._replace(preprocessing=preprocessing_of(directory), notes=_choice(step))
  steps.check_not_inside(directory)
  if inside := runs_in(directory):
    raise InputError(directory, f'{len(inside)} runs are in it', fix=f'name one: {" ".join(map(str, inside[:8]))}')
  raise InputError(directory, 'no weights of jaxres', expected='model.json, or config.json and checkpoints/ of a run')


def is_described(directory: pathlib.Path) -> bool:
  """Return whether ``directory`` says itself what its weights are: a bundle, or of ``directories.write``."""
  return bundle.is_bundle(directory) or (directory / 'model.json').is_file()


def runs_in(directory: pathlib.Path) -> list[pathlib.Path]:
  """Return the runs of a series in ``directory``, such as ``seed0`` and ``seed1``; none where it is a run itself."""
  if (directory / 'config.json').exists():
    return []
  run_directories = [
    (re.fullmatch(r'(seed|fold)([0-9]+)', path.parent.name), path.parent) for path in directory.glob('*/config.json')
  ]
  return [path for _, _, path in sorted((match[1], int(match[2]), path) for match, path in run_directories if match)]


def is_run(source: str) -> bool:
  """Return whether ``source`` is the workdir of a run, or a directory of several, not weights alone."""
  kind, place = parse(source)
  directory = user_path(place)
  return kind == 'jaxres' and not is_described(directory)


def list_runs(source: str) -> list[pathlib.Path]:
  """Return the runs of a series at ``source``; none where it is a run or weights."""
  return runs_in(user_path(parse(source)[1])) if is_run(source) else []


def read_class_names(path: str, num_classes: int) -> tuple[str, ...]:
  """Return the class names in a text file, one a line.

  Raises:
    InputError: it cannot be read, or has not as many as the network has classes.
  """
  try:
    names = tuple(read_regular(user_path(path, '--class_names'), MAX_TEXT_BYTES).decode('utf-8-sig').split('\n'))
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise InputError(f'--class_names {path}', f'cannot be read: {reason}') from None
  names = tuple(name.removesuffix('\r') for name in names)  # of a file from Windows
  names = names[:-1] if names[-1] == '' else names
  if len(names) != num_classes:
    raise InputError(f'--class_names {path}', f'{len(names)} names, but the network has {num_classes} classes')
  if '' in names:
    raise InputError(f'--class_names {path}', f'line {names.index("") + 1} is empty', expected='a name a line')
  return names


def parse(source: str) -> tuple[str, str]:
  """Return the kind of a source, one of ``SOURCES``, and where it is: of a directory of the hub, its file.

  Args:
    source: of ``read``.

  Raises:
    InputError: it is no text or path.
  """
  if not isinstance(source, str | os.PathLike) or not os.fspath(source):
    raise InputError('source', expected='a path, torchvision:NAME or jaxres:DIR', found=f'{source!r:.80}')
  source = os.fspath(source)
  kind, colon, place = source.partition(':')
  if not (colon and kind in SOURCES):
    kind, place = '', source
  path = user_path(place)
  if kind == 'jaxres' or not path.is_dir():
    return kind or 'torchvision', place
  of_hub = _snapshot(path)
  if of_hub and (kind or not ((path / 'model.json').exists() or (path / 'checkpoints').exists())):
    return 'torchvision', str(of_hub)
  return kind or 'jaxres', place


def _snapshot(directory: pathlib.Path) -> pathlib.Path | None:
  """Return the weights in a directory of the hub, whose config.json is none of jaxres; None where it is another."""
  return next((directory / name for name in SNAPSHOT if (directory / name).is_file()), None)


def _file(place: str) -> pathlib.Path:
  """Return the path of a file, or of the published weights of that name."""
  path = user_path(place)
  is_name = place in published.DIGITS or not (path.exists() or path.suffix or '/' in place)
  return published.find(place) if is_name else path


def _of_torch(file: weights.File, path: pathlib.Path, skip: Sequence[str], stem: str | None) -> Pretrained:
  architecture = weights.recognize(file.tensors, str(path), stem)
  options = {'name': architecture.name, **architecture.options}
  dialect = weights.dialect_of(file.tensors)
  if f'{dialect.head}.weight' not in file.tensors:
    fix = f'a training gives it one: --config.init.source={path} --config.init.new_head=True'
    raise InputError(path, f'a {architecture.name} without a classifier', fix=fix)
  model = models.create(**options, dtype='float32')
  variables = weights.to_variables(file.tensors, model, skip=skip, skipped=file.skipped, where=str(path))
  notes = (*file.notes, *_guesses(model, stem))
  counters = weights.batches(file.tensors)
  return Pretrained(variables, options, architecture.channels, dialect, counters, None, str(path), notes=notes)


def _guesses(model: ResNet, stem: str | None) -> tuple[str, ...]:
  """Return what was taken for granted of a network that no tensor shows, where another one is likely."""
  if model.stem_type != 'cifar' or stem or len(model.stage_sizes) < 4:
    return ()
  return ('its 3x3 stem is taken to have no max-pool after it, which no tensor shows; else give --stem cifar_pool',)


def _choice(step: str) -> tuple[str, ...]:
  """Return how the checkpoint of a run was chosen."""
  how = {'best': 'the best by validation, or the latest where there was none', 'latest': 'the latest checkpoint'}
  return (f'taken: {how.get(step, f"step {step}")}',)


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
  options['num_classes'] = find_head(variables, where).shape[1]
  check_network(variables, options, where)
  channels = count_channels(variables)
  names = workdir.class_names(directory, options['num_classes'], channels, exact=config['train']['task'] in tasks.TASKS)
  dialect = Dialect.of_model(models.create(**options).shortcut)
  why = _why(saved.scores, step, saved.progress, config['train'])
  origin = f'{where} ({why})' + (', moving average' if 'ema' in tree else '')
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


def _restore(directory: pathlib.Path, step: str, config: Mapping[str, Any]) -> tuple[int, reader.Saved]:
  """Return the number of a checkpoint and what was saved, by ``config``; the run is not touched."""
  where = check_utf8(directory).absolute() / 'checkpoints'
  number, path, saved = reader.follow(where, lambda paths: _choose(where, paths, step))
  check_made_by(saved.about, config, path)
  workdir.check_data_file(directory, saved.about, path)
  return number, saved


def _choose(where: pathlib.Path, paths: Mapping[int, pathlib.Path], step: str) -> int:
  """Return the requested step, of the intact ones."""
  known = [number for number, path in paths.items() if os.path.isfile(path / 'state/_METADATA')]
  if not known:
    if paths:
      closed = next((path for path in paths.values() if not os.access(path, os.R_OK | os.X_OK)), None)
      if closed and closed.exists():
        raise InputError(closed, 'cannot be read: Permission denied')
      raise reader.DamagedError(where, f'no checkpoint there: none of {len(paths)} has a state')
    raise InputError(where, 'no checkpoint there', expected='the workdir of a run that has saved one')
  if step == 'latest':
    return known[-1]
  if step == 'best':
    return max(known, key=lambda number: checkpoint.rank(reader.read_scores(paths[number])))
  if not step.isdecimal() or int(step) not in known:
    raise InputError(where, f'no step {step:.80}', fix=f'there are {known}')
  return int(step)


def _why(scores: Mapping[str, float], step: str, progress: Mapping[str, Any], options: Mapping[str, Any]) -> str:
  """Return in words why a checkpoint was taken.

  Args:
    scores: what it is ranked by.
    step: the requested one.
    progress: that was saved in it: it has the metric as it is, where the score is negated if less of it is better.
    options: the section ``train`` of the run's config; of a task of the user's, what its metrics are is not asked, as
      nothing of the user's is needed to read weights.
  """
  if step != 'best':
    return 'the latest' if step == 'latest' else 'as asked for'
  name = next((name for name in scores if name != 'step'), None)
  if name is None:
    return 'the latest, as nothing was validated'
  known = tasks.make(options['task']).metrics if options['task'] in tasks.TASKS else {}
  metric, last = metrics.find_metric(name, known), progress.get('last', {})
  value = last.get(f'ema/{name}', last.get(name, scores[name]))
  title = metric.title if metric else name.removeprefix('val/')
  return f'the best on validation: {title} {format_value(name, value, known)}'
