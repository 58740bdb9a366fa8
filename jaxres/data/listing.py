"""Which files of a folder are images: the one rule of training, packing and predicting."""

import os
import pathlib
import stat
from collections.abc import Iterator
from typing import NamedTuple

from jaxres.files import file_errors

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff')


class Listing(NamedTuple):
  """What is in a folder, as paths by name; hidden files and folders, such as ``._photo.jpg``, are left out."""

  images: list[str]  # files by their names
  broken: list[str]  # called as images, but links to nothing or no files
  others: list[str]  # other files
  folders: list[str]


def list_folder(folder: str | os.PathLike[str]) -> Listing:
  """Return what is directly in ``folder``; links are followed.

  Raises:
    InputError: it cannot be read.
  """
  listing = Listing([], [], [], [])
  with file_errors(pathlib.Path(folder), 'read'), os.scandir(folder) as entries:
    for entry in sorted(entries, key=lambda entry: entry.name):
      if not entry.name.startswith('.'):
        _kind(entry, listing).append(entry.path)
  return listing


def walk(root: str | os.PathLike[str]) -> Iterator[Listing]:
  """Yield what is in ``root`` and in its sub-folders at any depth; each folder once, whatever links lead to it.

  Raises:
    InputError: one cannot be read.
  """
  waiting, visited = [os.fspath(root)], set()
  while waiting:
    folder = waiting.pop()
    if os.path.realpath(folder) in visited:
      continue
    visited.add(os.path.realpath(folder))
    listing = list_folder(folder)
    yield listing
    waiting += reversed(listing.folders)


def _kind(entry: os.DirEntry[str], listing: Listing) -> list[str]:
  """Return the list of ``listing`` that ``entry`` belongs to.

  Raises:
    OSError: what is in the folder may not be looked at.
  """
  mode = _mode(entry)
  if stat.S_ISDIR(mode):
    return listing.folders
  is_file = stat.S_ISREG(mode)
  if entry.name.lower().endswith(SUFFIXES):
    return listing.images if is_file else listing.broken
  return listing.others if is_file else []


def _mode(entry: os.DirEntry[str]) -> int:
  """Return what ``os.stat`` says of an entry; 0 of a link to nothing, to itself, or to where nobody may look."""
  try:
    return os.stat(entry.path).st_mode
  except FileNotFoundError:
    return 0
  except OSError:
    if not entry.is_symlink():
      raise
    return 0
