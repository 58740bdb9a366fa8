"""Which checkpoints a directory has."""

import os
import pathlib
from collections.abc import Mapping

from jaxres.checkpoint import moves
from jaxres.errors import InputError

REPLACED = '.replaced'  # ends the name of a checkpoint that makes way for another of its step


def list_steps(directory: pathlib.Path) -> list[int]:
  """Return the steps of the checkpoints in ``directory``, damaged ones too, in ascending order.

  Only a directory is one, and only by the name that a step has: not ``007``, a file or a link to nothing.
  """
  return sorted(int(name) for name in _entries(directory) if _is_step(name) and os.path.isdir(directory / name))


def list_unknown(directory: pathlib.Path) -> list[str]:
  """Return the names in ``directory`` that read like a step and are no checkpoint."""
  numbers = (name for name in _entries(directory) if name.isdecimal())
  return sorted(name for name in numbers if not (_is_step(name) and os.path.isdir(directory / name)))


def _is_step(name: str) -> bool:
  return len(name) < 12 and name.isascii() and name.isdecimal() and str(int(name)) == name


def _entries(directory: pathlib.Path) -> list[str]:
  """Return the names in ``directory``; none where it is missing.

  Raises:
    InputError: it is no directory, or cannot be read.
  """
  try:
    os.stat(os.path.join(directory, os.curdir))  # what may not be entered has names alone
    return os.listdir(directory)
  except FileNotFoundError:
    return []
  except OSError as error:
    raise InputError(directory, f'cannot be read: {error.strerror}', expected='a directory of checkpoints') from None


def list_checkpoints(directory: pathlib.Path) -> dict[int, pathlib.Path]:
  """Return the paths of the checkpoints in ``directory`` by their steps, in ascending order.

  One that makes way for another of its step counts until that one is there.
  """
  steps = list_steps(directory) or list_steps(
    directory
  )  # one may come, and the other go, while the first look is taken
  paths = {step_of(path): path for path in directory.glob(f'*{REPLACED}') if path.name.split('.')[0].isdecimal()}
  paths |= {step: directory / str(step) for step in steps}
  return dict(sorted(paths.items()))


def identities(paths: Mapping[int, pathlib.Path]) -> dict[int, tuple[int, int] | None]:
  """Return what tells each of the directories from another that takes its place; None where it is gone."""
  inodes: dict[int, tuple[int, int] | None] = {}
  for step, path in paths.items():
    try:
      status = path.stat()
      inodes[step] = (status.st_ino, status.st_ctime_ns)
    except OSError:
      inodes[step] = None
  return inodes


def step_of(path: pathlib.Path) -> int:
  """Return the step of a checkpoint by its path, also of one that makes way for another."""
  return int(path.name.split('.')[0])


def check_not_inside(directory: pathlib.Path) -> None:
  """Raise InputError where ``directory`` is a checkpoint of a run, or the directory of all of them, not the run."""
  path = directory.absolute()
  parts = (path, *path.parents[:3])  # state/ and other items are in a checkpoint
  run = next(
    (part.parent for part in parts if part.name == 'checkpoints' and (part.parent / 'config.json').exists()), None
  )
  if run is None or not path.exists():
    return
  inside = path.relative_to(run / 'checkpoints').parts
  step = f', and --step {inside[0]}' if inside and _is_step(inside[0]) else ''
  raise InputError(directory, 'part of a run', fix=f'name the run: {run}{step}')


def put_aside(path: pathlib.Path) -> pathlib.Path:
  """Rename what has a step's name, so that a run can save that step; return where it is now."""
  names = (path.with_name(f'{path.name}.bad{number or ""}') for number in range(10_000))
  to = next(name for name in names if not os.path.lexists(name))
  moves.rename(path, to)
  return to
