"""Image files: a folder with one sub-folder per class, or a CSV of paths and labels."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from jaxres.data import listing
from jaxres.data.listing import SUFFIXES
from jaxres.data.sources import files as files_lib
from jaxres.data.splits import say_lookalikes, with_test
from jaxres.data.types import Encoded, Source
from jaxres.errors import InputError, nearest, print_status
from jaxres.paths import shorten, user_path


def read_folder(path: str | None, seed: int, split_rule: int = 2, tested: str = 'split') -> Source:
  """Find the images of a folder, as ``find`` does, and hold a test split out where there is none.

  Args:
    path: the folder.
    seed: of the stratified fifth of the training images that is held out where there is no test split.
    split_rule: of ``data.load``.
    tested: of ``with_test``.

  Raises:
    InputError: as ``find`` and ``with_test``.
  """
  splits, names = find(path, split_rule)
  return with_test(splits, names, str(path), seed, tested)


def find(path: str | None, split_rule: int = 2) -> tuple[dict[str, Encoded], tuple[str, ...]]:
  """Find the images of ``path/class/*``, or ``path/train/class/*`` and beside it ``val`` and ``test``.

  Args:
    path: the folder. A class is called as its folder and numbered as ``sort_classes`` says. Hidden files, and files
      that are not called as images, are left out.
    split_rule: 2; or 1, for a run of an older jaxres: classes by the alphabet, no TIFF, and examples without names.

  Returns:
    The splits, of which train is one, and the names of the classes.

  Raises:
    InputError: there is no such folder, a class has no images, most images lie too deep or are links to nothing, or the
      splits have different classes.
  """
  root = _check_exists(path, 'folder', 'a folder with one sub-folder of images per class')
  splits = {name: root / name for name in files_lib.SPLITS if _folders(root / name)}
  if not splits:
    names, files = _classes(root, root, split_rule)
    if set(map(str.lower, names)) <= set(files_lib.SPLITS):
      layout = f'the sub-folders are {", ".join(names)}, with images directly in them'
      raise InputError(root, layout, expected='a sub-folder per class, in train, val and test or without them')
    return {'train': files}, names
  _report_loose_files(root)
  flat = [name for name in files_lib.SPLITS if name not in splits and os.path.isdir(root / name)]
  if flat:
    print_status(f'{root / flat[0]} has no sub-folder per class and is left out')
  odd = [folder.name for folder in _folders(root) if folder.name not in splits and _folders(folder)]
  odd = [name for name in odd if name.lower().startswith(files_lib.SPLITS)]  # what else is there is not asked for
  if odd:
    raise InputError(root, f'{odd[0]!r} is no split', fix=nearest(odd[0], files_lib.SPLITS))
  if 'train' not in splits:
    raise InputError(root, f'there is {" and ".join(splits)} but no train folder with a sub-folder per class')
  by_split = {name: _classes(root, folder, split_rule) for name, folder in splits.items()}
  names = by_split['train'][0]
  _report_other_folders(root, splits, names)
  for split, (others, _) in by_split.items():
    for missing, here, there in (
      (set(others) - set(names), split, 'train'),
      (set(names) - set(others), 'train', split),
    ):
      if missing:
        raise InputError(root, f'the class {min(missing)!r} is in {here} but not in {there}', expected='equal classes')
  return {split: files for split, (_, files) in by_split.items()}, names


def _report_other_folders(root: pathlib.Path, splits: Mapping[str, pathlib.Path], names: Sequence[str]) -> None:
  """Say which folders of the classes ``names`` are in no split and left out, and which splits share a folder."""
  others = [
    folder.name
    for folder in _folders(root)
    if folder.name not in splits and {inner.name for inner in _folders(folder)} & {*names}
  ]
  if others:
    print_status(f'{root}: {shorten(", ".join(others))}: no split, left out')
  places: dict[str, str] = {}
  for split, folder in splits.items():
    for inner in (folder, *_folders(folder)):
      other = places.setdefault(os.path.realpath(inner), split)
      if other != split:
        print_status(f'{inner}: {split} and {other} have one folder, by a link: the same images are in both')
        break


def _check_different(folders: Iterable[pathlib.Path]) -> None:
  """Raise InputError where two classes have one folder, by a link."""
  places: dict[str, pathlib.Path] = {}
  for folder in folders:
    other = places.setdefault(os.path.realpath(folder), folder)
    if other != folder:
      problem = f'the classes {other.name!r} and {folder.name!r} have one folder, by a link'
      raise InputError(folder, problem, fix='remove the link')


def _check_exists(path: str | None, name: str, what: str) -> pathlib.Path:
  if not path:
    raise InputError('data.path', f'data.name={name!r} reads {what}', fix='give its path')
  place = user_path(path, 'data.path')
  if name != 'folder' and place.is_dir():
    raise InputError('data.path', f'{path} is a folder', expected=f'{what}, or set data.name=folder')
  if not (place.is_dir() if name == 'folder' else place.exists()):
    raise InputError('data.path', f'no such {"folder" if name == "folder" else "file"}: {path}', expected=what)
  return place


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
  """Return the sub-folders by name, less the hidden ones; none where there is no such folder."""
  return [pathlib.Path(sub) for sub in listing.list_folder(path).folders] if os.path.isdir(path) else []


def _classes(top: pathlib.Path, root: pathlib.Path, split_rule: int) -> tuple[tuple[str, ...], Encoded]:
  """Return the names of the classes in ``root`` and their images, in the order of class and file name.

  Args:
    top: what examples are named from, ``root`` or the folder that it is a split of.
    root: the folder with a sub-folder for each class.
    split_rule: of ``find``.
  """
  classes = {folder.name: folder for folder in _folders(root)}
  if not classes:
    there = listing.list_folder(root)
    files = len(there.images) + len(there.others)
    raise InputError(root, expected='a sub-folder of images per class', found=f'none (and {files} files)')
  if set(map(str.lower, classes)) <= set(files_lib.SPLITS) and not any(map(_holds_files, classes.values())):
    folders = ', '.join(classes)
    raise InputError(
      root, f'the sub-folders are {folders}', fix=f'splits are called {", ".join(files_lib.SPLITS)}, in lower case'
    )
  if top == root:
    _report_loose_files(root)
  _check_different(classes.values())
  names = files_lib.sort_classes(classes, split_rule)
  if top == root or root.name == 'train':
    say_lookalikes(str(root), names)
  listings = [listing.list_folder(classes[name]) for name in names]
  images = [_filter_images(each.images, split_rule) for each in listings]
  left_out = [_list_left_out(each) for each in listings]
  for name, each, kept, lost in zip(names, listings, images, left_out, strict=True):
    if not kept or (split_rule > 1 and len(lost) >= len(kept)):
      raise InputError(classes[name], _explain_too_few(each, kept, lost))
  _report_left_out(root, listings, images, left_out)
  paths = [path for kept in images for path in kept]
  labels = [label for label, kept in enumerate(images) for _ in kept]
  return names, files_lib.make_encoded(
    paths, labels, [pathlib.Path(os.path.relpath(p, top)).as_posix() for p in paths], split_rule
  )


def _filter_images(paths: list[str], split_rule: int) -> list[str]:
  """Return the images that the rule knows: the first knew no TIFF."""
  return paths if split_rule > 1 else [path for path in paths if not path.lower().endswith(('.tif', '.tiff'))]


def _list_left_out(listing_of: listing.Listing) -> list[str]:
  """Return what of a class's folder looks like its images and is not taken: links to nothing, and what lies deeper."""
  deeper = [path for folder in listing_of.folders for inner in listing.walk(folder) for path in inner.images]
  return [*listing_of.broken, *deeper]


def _explain_too_few(listing_of: listing.Listing, kept: list[str], lost: list[str]) -> str:
  """Return what is wrong with the folder of a class that has no images, or more that are left out."""
  if not lost:
    return f'no images: expected files that end in {", ".join(SUFFIXES)}, found {len(listing_of.others)} others'
  problems = [
    f'{len(listing_of.broken)} are links to nothing that can be read, or no files: repair or remove them'
    * bool(listing_of.broken),
    f'{len(lost) - len(listing_of.broken)} lie in its sub-folders: move them up into it, or elsewhere'
    * (len(lost) > len(listing_of.broken)),
  ]
  counts = f'{len(kept)} images are directly in it and {len(lost)} are left out, such as {lost[0]}'
  return f'{counts}: {"; ".join(filter(None, problems))}'


def _report_left_out(
  root: pathlib.Path, listings: Sequence[listing.Listing], images: Sequence[list[str]], left_out: Sequence[list[str]]
) -> None:
  """Say what of the classes in ``root`` is not taken."""
  broken = [path for each in listings for path in each.broken]
  deeper = [path for each, lost in zip(listings, left_out, strict=True) for path in lost[len(each.broken) :]]
  unknown = [path for each, kept in zip(listings, images, strict=True) for path in {*each.images} - {*kept}]
  others = [path for each in listings for path in each.others] + unknown
  for paths, what in (
    (others, 'files are no images by their names'),
    (broken, 'images are links to nothing, or no files,'),
    (deeper, 'images are in sub-folders of a class'),
  ):
    if paths:
      print_status(f'{root}: {len(paths)} {what} and left out, such as {min(paths)}')


def _report_loose_files(root: pathlib.Path) -> None:
  """Say which images lie beside the folders that should hold them."""
  loose = listing.list_folder(root).images
  if loose:
    print_status(f'{root}: {len(loose)} images are in no folder of a class and left out, such as {loose[0]}')


def _holds_files(folder: pathlib.Path) -> bool:
  there = listing.list_folder(folder)
  return bool(there.images or there.others)
