"""The workdir of a run: what is there already, and what is written before the training starts."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxres import checkpoint, data, evaluate, files, optim, schema
from jaxres import config as config_lib
from jaxres.checkpoint import digests, moves, reader, steps
from jaxres.checkpoint.about import check_made_by, other_fields
from jaxres.checkpoint.manager import Manager, check_path
from jaxres.data import augment
from jaxres.data.fingerprints import differences
from jaxres.errors import InputError, print_status
from jaxres.log import rows
from jaxres.log.console import console
from jaxres.models import dtypes
from jaxres.paths import check_utf8, user_path
from jaxres.runtime import distributed
from jaxres.runtime.environment import describe_environment
from jaxres.runtime.lock import LOCK

LEFT = re.compile(r'.+\.[0-9a-f]{8}\.part')  # what a kill leaves of a file that was being written
IDENTITY = ('class_names', 'image_shape', 'splits')  # what of data.json must be the same: mean and std are rounded
MAX_CONFIG = 1 << 20  # bytes of config.json
MAX_CHANNELS = 1024
MAX_PIXELS = 1 << 24  # of an image: 4096 x 4096
MAX_SIDE = 1 << 12  # of a square image
_SHAPE = schema.array_of(schema.integer(1, MAX_PIXELS), 3, 3)
DATA = {  # the fields of data.json
  'class_names': schema.array_of(schema.text(), min_items=1),
  'image_shape': schema.Check(
    f'[height, width, channels] of at most {MAX_PIXELS:,} pixels',
    lambda x: _SHAPE.holds(x) and x[0] * x[1] <= MAX_PIXELS,
  ),
  'mean': schema.array_of(schema.number(-1e6, 1e6), min_items=1, max_items=MAX_CHANNELS),
  'std': schema.array_of(schema.number(1e-12, 1e6), min_items=1, max_items=MAX_CHANNELS),
  'splits': schema.object_of(schema.text()),
}
RANGES: dict[str, Callable[..., Any]] = {  # what raises InputError where a field of the section is out of its range
  'data': data.check,
  'augment': augment.make,
  'optim': optim.check,
  'tta': evaluate.make_views,
  'checkpoint': checkpoint.check,
}
_SCALAR = schema.either(schema.text(), schema.number(), schema.YES_OR_NO, schema.NOTHING)
ENVIRONMENT = schema.either(_SCALAR, schema.array_of(_SCALAR))  # each value of environment.json


def choose(workdir: str | os.PathLike[str], config: Mapping[str, Any]) -> pathlib.Path:
  """Return where the run goes: ``workdir``, or a directory in it for a dry run.

  Raises:
    InputError: it is a URL, or no checkpoint can be saved there.
  """
  path = check_utf8(user_path(workdir, '--workdir'), '--workdir')
  path = path / 'dry_run' if config['train']['dry_run'] else path
  check_path(path.absolute() / 'checkpoints')
  return path


def check_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Raise InputError where ``workdir``, which is locked, holds checkpoints of another config; a dry run's are deleted.

  What counts is what each checkpoint was made by, and the files beside it: either can have been put there later. A
  checkpoint that is damaged, which is found when it is opened, says nothing here.
  """
  if config['train']['dry_run']:
    if distributed.is_main_process():
      for path in workdir.iterdir():
        if path.name != LOCK and (reason := moves.delete(path)):
          raise InputError(
            '--workdir', f'cannot delete {path} of the dry run before: {reason}', fix='delete it yourself'
          )
    distributed.barrier('the dry run before is deleted')
  abouts = _read_abouts(workdir)
  stored, damage = _read_stored_config(workdir, is_known=any('config' in about for about in abouts.values()))
  changed = other_fields(stored, config) if stored else {}
  if changed:
    changes = config_lib.describe_changes(changed)
    raise InputError('--workdir', f'{workdir} holds a run of another config: {changes}', fix='use another --workdir')
  for path, about in abouts.items():
    check_made_by(about, config, path)
    check_data_file(workdir, about, path, needed=False)
  if damage:
    print_status(f'warning: {damage}; the checkpoints say what they were made by, and it is written again')


def _read_stored_config(workdir: pathlib.Path, *, is_known: bool) -> tuple[Mapping[str, Any] | None, str]:
  """Return ``config.json`` of the run in ``workdir``, None where there is none, and how it is damaged.

  Args:
    workdir: of the run.
    is_known: the checkpoints say what they were made by: a damaged file is then not needed, and is written again.

  Raises:
    DamagedError: it is damaged, and nothing else says what the checkpoints were made by.
  """
  try:
    return read_json(workdir, 'config.json'), ''
  except files.DamagedError as error:
    if not is_known or not os.access(workdir / 'config.json', os.R_OK):  # what may not be read may be right
      raise
    return None, str(error).removesuffix(f'; {files.PUT_BACK}')


def resolve_dtype(workdir: pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """Return ``config`` with a dtype for ``'auto'``: that of the run in ``workdir``, or what it means on this device.

  A run goes on in another dtype where the config names it; a line is printed.
  """
  try:
    stored = read_json(workdir, 'config.json')
  except files.DamagedError:
    stored = None  # ``check_config`` decides what that means
  name = config['model']['dtype']
  before = stored['model']['dtype'] if stored else None
  dtype = before if before and name == 'auto' else dtypes.resolve_dtype(name).name
  if before not in (None, dtype):
    console.print(f'model.dtype: {before} until now, {dtype} from here on: not the bits of a run in one of them')
  return {**config, 'model': {**config['model'], 'dtype': dtype}}


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Return whether a run would go on in ``workdir``: one checkpoint there is intact."""
  return bool(steps.list_checkpoints(workdir / 'checkpoints'))


def _read_abouts(workdir: pathlib.Path) -> dict[pathlib.Path, dict[str, Any]]:
  """Return what each checkpoint in ``workdir`` was made by; the newest comes first."""
  paths = steps.list_checkpoints(workdir.absolute() / 'checkpoints').values()
  return {path: reader.about(path) for path in reversed(paths)}


def check_data_files(workdir: pathlib.Path) -> None:
  """Raise DamagedError where ``data.json`` is no such file, or not as it was when the checkpoints were saved."""
  read_data(workdir)
  for path, about in _read_abouts(workdir).items():
    check_data_file(workdir, about, path)


def check_data_file(
  workdir: pathlib.Path, about: Mapping[str, Any], path: pathlib.Path, *, needed: bool = True
) -> None:
  """Raise DamagedError where ``data.json`` is not as it was when a checkpoint was saved beside it.

  Args:
    workdir: of the run.
    about: what the checkpoint was made by; that of an older jaxres has no digest of ``data.json``.
    path: of the checkpoint.
    needed: the file must be there.
  """
  expected, file = about.get('data_sha256'), workdir / 'data.json'
  if expected is None:
    return
  content = files.read_json(file)
  again = f'{files.PUT_BACK}, or delete it: the command of the training then writes it again'
  if content is None and needed:
    raise files.DamagedError(file, 'missing', fix=f'{files.PUT_BACK}, or give the command of the training again')
  if content is not None and digests.json_digest(content) != expected:
    raise files.DamagedError(file, f'edited since checkpoint {steps.step_of(path)}, or of another run', fix=again)


def check_data(workdir: pathlib.Path, info: data.Info) -> None:
  """Raise InputError where ``workdir`` holds checkpoints of a run on other data than that of ``info``."""
  if was := other_data(workdir, info):
    raise InputError('--workdir', f'{workdir} holds a run on other data: {was}', fix='use another --workdir')


def other_data(workdir: pathlib.Path, info: data.Info) -> str:
  """Return how the data of the run in ``workdir`` differs from that of ``info``; nothing where it does not."""
  stored = read_json(workdir, 'data.json')
  current = describe(info)
  if stored is None:
    return _other_digest(workdir, current)
  for name in IDENTITY:
    if name not in stored:
      continue
    was, now = stored[name], current[name]
    if name == 'splits':
      was, now = _other_splits(was, now)
    if was != now:
      return f'{name} was {json.dumps(was):.200} there and is {json.dumps(now):.200} now'
  return ''


def _other_digest(workdir: pathlib.Path, content: Mapping[str, Any]) -> str:
  """Return how ``content`` is not that of the ``data.json`` that is lost, by the checkpoints in ``workdir``."""
  expected = [about['data_sha256'] for about in _read_abouts(workdir).values() if about.get('data_sha256')]
  digest = digests.json_digest(content)
  return next((f'its SHA-256 was {was:.12} there and is {digest:.12} now' for was in expected if was != digest), '')


def _other_splits(was: Mapping[str, str], now: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
  """Return of the fingerprints of the splits what differs."""
  pairs = {part: differences(was.get(part, ''), now.get(part, '')) for part in {**was, **now}}
  different = {part: pair for part, pair in pairs.items() if pair[0] != pair[1]}
  return {part: old for part, (old, _) in different.items()}, {part: new for part, (_, new) in different.items()}


def split_rule(workdir: pathlib.Path) -> int:
  """Return the rule of ``data.load`` by which the run in ``workdir`` splits its data: today's where there is no run.

  Raises:
    InputError: ``data.json`` is damaged, or is missing and no checkpoint has the rule, or the rule is not known.
  """
  stored, place = read_json(workdir, 'data.json'), f'{workdir}/data.json'
  rule: Any = data.SPLIT_RULE
  if stored is not None:
    rule = stored.get('split_rule', 1)  # older runs do not say theirs
  elif abouts := _read_abouts(workdir):
    path = next((path for path, about in abouts.items() if 'split_rule' in about), None)
    if path is None:
      problem = 'missing, and the checkpoints do not say which examples they were trained on'
      raise InputError(place, problem, fix=f'{files.PUT_BACK}, or train in another directory')
    rule, place = abouts[path]['split_rule'], f'{path}/about'
  if rule not in data.SPLIT_RULES:
    expected, fix = ' or '.join(map(str, data.SPLIT_RULES)), 'was it written by a newer jaxres?'
    raise InputError(f'{place}: split_rule', expected=expected, found=repr(rule), fix=fix)
  return int(rule)


def describe(info: data.Info) -> dict[str, Any]:
  """Return ``info`` as JSON has it, the splits by their examples and labels."""
  return json.loads(json.dumps(info._replace(splits=dict(info.splits))._asdict()))


def _describe_run(workdir: pathlib.Path, info: data.Info) -> dict[str, Any]:
  """Return the content of ``data.json`` of a run on the data of ``info``: that is kept which checkpoints count on."""
  stored = read_json(workdir, 'data.json')
  counts = any(about.get('data_sha256') for about in _read_abouts(workdir).values())
  return stored if stored is not None and counts else describe(info)


def read_json(workdir: pathlib.Path, name: str) -> Any:
  """Return the content of ``config.json`` or ``data.json`` of the run in ``workdir``.

  It is None where there is no such file, or no checkpoint.

  Raises:
    InputError: it is damaged.
  """
  if not any((workdir / 'checkpoints').glob('*')):
    return None
  readers: dict[str, Callable[[pathlib.Path], Any]] = {'config.json': read_config, 'data.json': read_data}
  return readers[name](workdir)


def read_config(workdir: pathlib.Path) -> dict[str, dict[str, Any]] | None:
  """Return the complete config of the run in ``workdir``; None where it has none.

  A field that an older jaxres did not know is at its default.

  Raises:
    DamagedError: ``config.json`` is no config.
  """
  content = files.read_json(workdir / 'config.json', limit=MAX_CONFIG)
  return None if content is None else as_config(content, workdir / 'config.json')


def as_config(content: Any, where: object) -> dict[str, dict[str, Any]]:
  """Return a config that was read as JSON from ``where``, completed and checked.

  Raises:
    DamagedError: it is none; the line names the field.
  """
  sections = {section: schema.Check('an object', lambda x: isinstance(x, dict)) for section in config_lib.SECTIONS}
  schema.check_fields(content, sections, where, optional=sections, closed=True)
  try:
    json.dumps(content, allow_nan=False)
    config = config_lib.to_dict(config_lib.complete(content))
    for section in sections.keys() & content.keys():
      if section in RANGES:
        RANGES[section](**config[section])
  except ValueError as error:
    reason = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in f'{error}'[:240])
    raise files.DamagedError(where, reason, fix=files.PUT_BACK) from None
  config['model']['dtype'] = dtypes.dtype_of_run(config['model']['dtype'])
  return config


def read_data(workdir: pathlib.Path, *needed: str) -> dict[str, Any] | None:
  """Return the description of the data of the run in ``workdir``: the fields of ``DATA`` that are there.

  Args:
    workdir: of the run.
    *needed: fields without which it is of no use here.

  Returns:
    The content of ``data.json``; None where a jaxres that wrote none made the run.

  Raises:
    DamagedError: it is no such description, or a field that is ``needed`` is missing.
  """
  path = workdir / 'data.json'
  content = files.read_json(path)
  if content is None:
    return None
  optional = DATA.keys() - {'class_names', *needed}
  fields = schema.check_fields(content, DATA, path, optional=optional)
  channels: dict[str, int] = {name: len(fields[name]) for name in ('mean', 'std') if name in fields}
  channels |= {'image_shape': fields['image_shape'][2]} if 'image_shape' in fields else {}
  if len({*channels.values()}) > 1:
    raise files.DamagedError(path, 'mean, std and image_shape are of different channels', fix=files.PUT_BACK)
  return fields


def class_names(workdir: pathlib.Path, classes: int, channels: int, *, exact: bool = True) -> tuple[str, ...] | None:
  """Return the names of the classes of the run in ``workdir``; None where a jaxres that wrote none made it.

  Args:
    workdir: of the run.
    classes: that its network has, as its checkpoint says.
    channels: of the images that its network takes.
    exact: whether every output has a name; else there are no names where the numbers differ, as a task may have it.

  Raises:
    DamagedError: ``data.json`` is damaged, or not of that network.
  """
  content = read_data(workdir)
  if content is None:
    return None
  if not exact and len(content['class_names']) != classes:
    return None
  known = {'class_names': len(content['class_names'])}
  known |= {'channels': content['image_shape'][2]} if 'image_shape' in content else {}
  for name, expected in {'class_names': classes, 'channels': channels}.items():
    if known.get(name, expected) != expected:
      wanted = f'{expected:,} as the checkpoint has'
      where = f'{workdir}/data.json: {name}'
      raise files.DamagedError(where, expected=wanted, found=f'{known[name]:,}', fix=files.PUT_BACK)
  return tuple(content['class_names'])


def read_environment(workdir: pathlib.Path) -> dict[str, Any]:
  """Return what the run in ``workdir`` happened in; nothing where a jaxres that wrote nothing made it.

  Raises:
    DamagedError: ``environment.json`` is no such description.
  """
  content = files.read_json(workdir / 'environment.json')
  if content is None:
    return {}
  fields = dict.fromkeys(content, ENVIRONMENT) if isinstance(content, dict) else {}
  return schema.check_fields(content, fields, workdir / 'environment.json')


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Return the rows of ``metrics.jsonl`` of the run in ``workdir``; say on standard error which are damaged."""
  known, damage = rows.read(workdir / 'metrics.jsonl')
  if damage:
    print_status(f'warning: {damage}')
  return known


@contextlib.contextmanager
def open(workdir: pathlib.Path, config: Mapping[str, Any], info: data.Info, **options: Any) -> Iterator[Manager]:
  """Write config, environment and description of the data into ``workdir``, and open its checkpoints.

  Raises:
    InputError: it cannot be written.
  """
  if distributed.is_main_process():
    for path in workdir.glob('*.part'):
      if LEFT.fullmatch(path.name):
        with contextlib.suppress(OSError):  # it is in nobody's way
          path.unlink()
  described = _describe_run(workdir, info)
  with checkpoint.open_manager(workdir / 'checkpoints', **options) as manager:
    manager.data = described
    files.write_atomic(workdir / 'config.json', config_lib.to_json(config))
    files.write_atomic(workdir / 'environment.json', json.dumps(describe_environment(), indent=2) + '\n')
    files.write_atomic(workdir / 'data.json', json.dumps(described, indent=2) + '\n')
    yield manager


def read_step(workdir: pathlib.Path, step: int | None) -> tuple[int, reader.Saved]:
  """Return the number of a checkpoint in ``workdir``, the newest where ``step`` is None, and the checkpoint.

  Raises:
    InputError: it is missing or damaged, or of another run.
  """
  directory = check_utf8(workdir).absolute() / 'checkpoints'

  def choose(paths: Mapping[int, pathlib.Path]) -> int:
    if not paths:
      steps.check_not_inside(workdir)
      raise InputError(directory, 'no checkpoint there', expected='the workdir of a run that has saved one')
    if step is not None and step not in paths:
      raise InputError('--step', f'{directory} has no step {step}', fix=f'there are {", ".join(map(str, paths))}')
    return max(paths) if step is None else step

  number, path, saved = reader.follow(directory, choose)
  config, _ = _read_stored_config(workdir, is_known='config' in saved.about)
  check_made_by(saved.about, config, path)
  return number, saved
