"""The workdir of a run: what is there already, and what is written before the training begins."""

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

import jaxres
from jaxres import checkpoint, data, distributed, files, integrity, rows, schema
from jaxres import config as config_lib
from jaxres.data.fingerprints import differences
from jaxres.errors import InputError
from jaxres.paths import check_utf8, user_path

LOCK = '.lock'  # of a workdir: its content is for the message, and what counts is the lock that the kernel holds on it
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # of a file system that cannot lock
LEFT = re.compile(r'.+\.[0-9a-f]{8}\.part')  # what a kill leaves of a file that was being written
IDENTITY = ('class_names', 'image_shape', 'splits')  # what of data.json must be the same: mean and std are rounded

MAX_CONFIG = 1 << 20  # bytes of config.json
MAX_CHANNELS = 1024
MAX_PIXELS = 1 << 24  # of an image: 4096 x 4096
_SHAPE = schema.array_of(schema.integer(1, MAX_PIXELS), 3, 3)
DATA = {  # the fields of data.json
  'class_names': schema.array_of(schema.text(), least=1),
  'image_shape': schema.Check(
    f'[height, width, channels] of at most {MAX_PIXELS:,} pixels',
    lambda x: _SHAPE.holds(x) and x[0] * x[1] <= MAX_PIXELS,
  ),
  'mean': schema.array_of(schema.number(-1e6, 1e6), least=1, most=MAX_CHANNELS),
  'std': schema.array_of(schema.number(1e-12, 1e6), least=1, most=MAX_CHANNELS),
  'splits': schema.object_of(schema.text()),
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
  checkpoint.check_path(path.absolute() / 'checkpoints')
  return path


def check_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Raise InputError where ``workdir``, which is locked, holds checkpoints of another config; a dry run's are deleted.

  What counts is what each checkpoint was made by, and ``config.json`` beside it: either can have been put there later.
  """
  if config['train']['dry_run']:
    if distributed.leads():
      for path in workdir.iterdir():
        if path.name != LOCK:
          shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    distributed.meet('the dry run before is deleted')
  stored = read_json(workdir, 'config.json')
  changed = checkpoint.other_fields(stored, config) if stored else {}
  if changed:
    found = config_lib.describe_changes(changed)
    raise InputError(f'--workdir: {workdir} holds a run of another config: {found}; use another --workdir')
  directory = workdir.absolute() / 'checkpoints'
  for step in integrity.numbered(directory):
    checkpoint.check_made_by(integrity.about(directory / str(step)), config, directory / str(step))


def has_checkpoint(workdir: pathlib.Path) -> bool:
  """Return whether a run would go on in ``workdir``: one checkpoint there is whole."""
  return bool(integrity.numbered(workdir / 'checkpoints'))


def check_data(workdir: pathlib.Path, info: data.Info) -> None:
  """Raise InputError where ``workdir`` holds checkpoints of a run on other data than that of ``info``."""
  if was := other_data(workdir, info):
    raise InputError(f'--workdir: {workdir} holds a run on other data: {was}; use another --workdir')


def other_data(workdir: pathlib.Path, info: data.Info) -> str:
  """Return how the data of the run in ``workdir`` differs from that of ``info``; nothing where it does not."""
  stored = read_json(workdir, 'data.json')
  found = describe(info)
  for name in IDENTITY if stored else ():
    if name not in stored:
      continue
    was, now = stored[name], found[name]
    if name == 'splits':
      was, now = _other_splits(was, now)
    if was != now:
      return f'{name} was {json.dumps(was):.200} there and is {json.dumps(now):.200} now'
  return ''


def _other_splits(was: Mapping[str, str], now: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
  """Return of the fingerprints of the splits what differs."""
  pairs = {part: differences(was.get(part, ''), now.get(part, '')) for part in {**was, **now}}
  different = {part: pair for part, pair in pairs.items() if pair[0] != pair[1]}
  return {part: old for part, (old, _) in different.items()}, {part: new for part, (_, new) in different.items()}


def split_rule(workdir: pathlib.Path) -> int:
  """Return the rule of ``data.loader`` by which the run in ``workdir`` splits its data: today's where there is none.

  Raises:
    InputError: ``data.json`` is damaged, or names a rule that is not known.
  """
  stored = read_json(workdir, 'data.json')
  rule = data.SPLIT_RULE if stored is None else stored.get('split_rule', 1)  # older runs do not say theirs
  if rule not in data.SPLIT_RULES:
    expected = f'expected {" or ".join(map(str, data.SPLIT_RULES))}, found {rule!r}'
    raise InputError(f'{workdir}/data.json: split_rule: {expected}; was it written by a newer jaxres?')
  return int(rule)


def describe(info: data.Info) -> dict[str, Any]:
  """Return ``info`` as JSON has it, the splits by their examples and labels."""
  return json.loads(json.dumps(info._replace(splits=dict(info.splits))._asdict()))


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
  """Return the whole config of the run in ``workdir``; None where it has none.

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
    return config_lib.to_dict(config_lib.complete(content))
  except ValueError as error:
    reason = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in f'{error}'[:240])
    raise files.DamagedError(f'{where}: {reason}; {files.PUT_BACK}') from None


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
  found = schema.check_fields(content, DATA, path, optional=optional)
  channels: dict[str, int] = {name: len(found[name]) for name in ('mean', 'std') if name in found}
  channels |= {'image_shape': found['image_shape'][2]} if 'image_shape' in found else {}
  if len({*channels.values()}) > 1:
    raise files.DamagedError(f'{path}: mean, std and image_shape are of different channels; {files.PUT_BACK}')
  return found


def class_names(workdir: pathlib.Path, classes: int, channels: int) -> tuple[str, ...] | None:
  """Return the names of the classes of the run in ``workdir``; None where a jaxres that wrote none made it.

  Args:
    workdir: of the run.
    classes: that its network has, as its checkpoint says.
    channels: of the images that its network takes.

  Raises:
    DamagedError: ``data.json`` is damaged, or not of that network.
  """
  content = read_data(workdir)
  if content is None:
    return None
  known = {'class_names': len(content['class_names'])}
  known |= {'channels': content['image_shape'][2]} if 'image_shape' in content else {}
  for name, expected in {'class_names': classes, 'channels': channels}.items():
    if known.get(name, expected) != expected:
      found = f'expected {expected:,} as the checkpoint has, found {known[name]:,}'
      raise files.DamagedError(f'{workdir / "data.json"}: {name}: {found}; {files.PUT_BACK}')
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
    print(f'warning: {damage}', file=sys.stderr)
  return known


def environment() -> dict[str, Any]:
  """Return what a run happens in: versions, devices, platform."""
  packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {name: importlib.metadata.version(name) for name in packages}
  devices = {'device': jax.devices()[0].device_kind, 'devices': jax.device_count(), 'processes': jax.process_count()}
  system = {'python': platform.python_version(), 'platform': platform.platform(), 'cpus': os.cpu_count()}
  return {'jaxres': jaxres.__version__} | versions | devices | system


@contextlib.contextmanager
def open(
  workdir: pathlib.Path, config: Mapping[str, Any], info: data.Info, **options: Any
) -> Iterator[checkpoint.Manager]:
  """Write config, environment and description of the data into ``workdir``, and open its checkpoints.

  Raises:
    InputError: it cannot be written.
  """
  if distributed.leads():
    for path in workdir.glob('*.part'):
      if LEFT.fullmatch(path.name):
        path.unlink()
  with checkpoint.open(workdir / 'checkpoints', **options) as manager:
    files.write_whole(workdir / 'config.json', config_lib.to_json(config))
    files.write_whole(workdir / 'environment.json', json.dumps(environment(), indent=2) + '\n')
    files.write_whole(workdir / 'data.json', json.dumps(describe(info), indent=2) + '\n')
    yield manager


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Keep every other training out of ``workdir``, which is made where it is missing; readers look at no lock.

  The lock is of the kernel, which frees it with the process however that ends: a file that is left locks nobody out. Of
  several processes the first holds it for all. What was made for the lock alone goes again.

  Raises:
    InputError: another training is there, or it cannot be made or written.
  """
  with contextlib.ExitStack() as stack:
    refusal = ''
    if distributed.leads():
      try:
        stack.enter_context(_locked(workdir))
      except InputError as error:
        refusal = str(error)
    if distributed.any_says(bool(refusal)):
      raise InputError(refusal or f'--workdir: {workdir}: process 0 cannot train there, and says why')
    yield


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
  missing = [path for path in (workdir, *workdir.parents) if not path.exists()]
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f'--workdir: {workdir} is a file; expected a directory')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f'--workdir: cannot make {workdir}: {error.strerror}') from error
  try:
    file = _take_lock(workdir)
    try:
      yield
    finally:
      with contextlib.suppress(FileNotFoundError):  # a dry run's workdir may be deleted with all that is in it
        (workdir / LOCK).unlink()
      os.close(file)
  finally:
    with contextlib.suppress(OSError):  # one that is no longer empty stays
      for path in missing:
        path.rmdir()


def _take_lock(workdir: pathlib.Path) -> int:
  """Return the descriptor that holds the lock of ``workdir``."""
  path = workdir / LOCK
  while True:
    try:
      file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
      raise InputError(f'--workdir: cannot write in {workdir}: {error.strerror}') from error
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      holder = trainer(workdir)
      if error.errno not in NO_LOCKS:
        os.close(file)
        fix = 'wait for its end, or use another --workdir'
        raise InputError(f'--workdir: {workdir} is in use: {holder or "another process"} trains there; {fix}') from None
      print(
        f'{workdir}: no locks on this file system ({error.strerror}): see that nothing else trains there',
        file=sys.stderr,
      )
      break
    if _is_at(file, path):  # or the one before deleted it as it ended
      break
    os.close(file)
  with contextlib.suppress(OSError):  # a full disk: it is for the message alone
    os.ftruncate(file, 0)
    os.write(file, json.dumps({'pid': os.getpid(), 'host': socket.gethostname()}).encode())
  return file


def _is_at(file: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(file), path.stat())
  except FileNotFoundError:
    return False


def trainer(workdir: pathlib.Path) -> str | None:
  """Return who says that it trains in ``workdir``, such as ``'process 7 on host a'``; None where nobody does."""
  try:
    content = json.loads((workdir / LOCK).read_text())
    number, host = int(content['pid']), str(content['host'])[:99]
    if host == socket.gethostname():
      os.kill(number, 0)  # which only looks whether it is there
  except PermissionError:
    pass  # of another user
  except (OSError, ValueError, LookupError, TypeError, OverflowError):
    return None
  return f'process {number} on host {host}'
