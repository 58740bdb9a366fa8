"""Damage, done to files as disks and people do it."""

import pathlib
import random

KINDS = ('flip', 'truncate', 'delete', 'empty')


def files(directory: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in directory.rglob('*') if path.is_file())


def damage(path: pathlib.Path, kind: str, rng: random.Random) -> None:
  """Flip one bit of a file, cut it off somewhere, empty it, or delete it."""
  content = bytearray(path.read_bytes())
  if kind == 'delete' or not content:
    path.unlink()
  elif kind == 'flip':
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
  else:
    path.write_bytes(content[: rng.randrange(len(content)) if kind == 'truncate' else 0])
