"""The splits of a source: classes chosen, validation and test examples held out, labels checked."""

import numbers
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jaxres.data import sampler
from jaxres.data.types import CLASSES, Encoded, Labels, Source, Split
from jaxres.errors import InputError, nearest, print_status
from jaxres.paths import shorten

_NUMBER = re.compile(r'[0-9]{1,15}(\.[0-9]{0,15})?')  # as a spreadsheet may have written it


def with_test(
  splits: Mapping[str, Split], names: tuple[str, ...], where: str, seed: int, tested: str = 'split'
) -> Source:
  """Return the source, where it has no test split with what ``tested`` says in its place.

  Args:
    splits: train, and of val and test what there is.
    names: of the classes.
    where: the data set's place, for messages.
    seed: of the draw.
    tested: ``'split'`` holds out a stratified fifth of the training examples, ``'val'`` takes the val split, which is
      none then, ``'none'`` has no test split, whatever there is; ``'published'`` has what there is and nothing else,
      as who scores a network reads it.

  Raises:
    InputError: there are fewer than two classes or too few training examples; or ``tested`` is ``'val'``, and there is
      no val split, or a test split.
  """
  if tested == 'published':
    return Source(splits['train'], splits.get('test'), names, splits.get('val'))
  if len(names) < 2:
    raise InputError(where, expected='at least two classes', found=f'{len(names)}: {", ".join(names)}')
  train, test, val = splits['train'], splits.get('test'), splits.get('val')
  if tested == 'none':
    return Source(train, None, names, val)
  if tested == 'val':
    if test is not None or val is None:
      there = 'has a test split' if test is not None else 'has no val split'
      raise InputError('data.test', f"'val', but {where} {there}", fix="leave it at 'split'")
    print_status(f'{where} has no test split: its val split is tested, and chooses no weights')
    return Source(train, val, names)
  if test is None:
    size = len(train.labels) // 5
    if not size:
      raise InputError(where, f'{len(train.labels)} images are too few to hold a fifth out for a test split')
    held_out = draw(train, size, seed, 'test')
    train, test = train.take(~held_out), train.take(held_out)
    other = '; data.test=val would test on its val split' if val else ''
    what = f'{size:,} of its training images, a stratified fifth, are held out'
    print_status(f'{where} has no test split: {what} (seed {seed}){other}')
  return Source(train, test, names, val)


def keep_classes(source: Source, classes: Sequence[int | str]) -> Source:
  """Return ``source`` with ``classes`` alone, given by name or number and numbered again in the order given.

  Raises:
    InputError: a class is unknown or named twice, or fewer than two are kept.
  """
  names = source.class_names
  if len(classes) == 1 and isinstance(classes[0], str):  # 'cat,dog' on the command line arrives as one word
    classes = [word.strip() for word in classes[0].split(',')]
  kept = [_class_number(c, names) for c in classes]
  if len(set(kept)) != len(kept) or len(kept) < 2:
    raise InputError('data.classes', expected='at least two different classes', found=tuple(classes))
  new_label = np.full(len(names), -1, np.int32)
  new_label[kept] = np.arange(len(kept))

  def keep(data: Split) -> Split:
    data = data.take(new_label[data.labels] >= 0)
    return data._replace(labels=new_label[data.labels])

  kept_names = tuple(names[k] for k in kept)
  test, val = (keep(part) if part else None for part in (source.test, source.val))
  return Source(keep(source.train), test, kept_names, val)


def hold_out(
  source: Source, val: float, seed: int, fold: tuple[int, ...] = (), labels: Labels = CLASSES
) -> tuple[Split, Split | None]:
  """Return the training and the validation split: the source's own, or ``split`` of its training examples, or a fold.

  Raises:
    InputError: ``val`` or ``fold`` asks for a part of the training examples, and the source has a validation split; or
      there are fewer examples than folds.
  """
  if source.val is None:
    return _fold(source.train, fold, seed, labels) if fold else split(source.train, val, seed, labels)
  if val or fold:
    field, value, default = ('data.fold', fold, ()) if fold else ('data.val', val, 0)
    raise InputError(field, f'{value}, but the data has its own val split', fix=f'leave it at {default}')
  return source.train, source.val


def _fold(data: Split, fold: tuple[int, ...], seed: int, labels: Labels) -> tuple[Split, Split]:
  number, count = fold
  if len(data.labels) < count:
    raise InputError('data.fold', f'{count} folds of {len(data.labels)} training examples', fix='use fewer')
  held_out = sampler.assign_folds(labels.strata(data.labels), count, seed, shuffle(data, seed, 'fold')) == number
  return data.take(~held_out), data.take(held_out)


def split(data: Split, val: float, seed: int, labels: Labels = CLASSES) -> tuple[Split, Split | None]:
  """Return the training and the validation part of ``data``: a stratified fraction ``val``, None where that is 0.

  Raises:
    InputError: one of the two parts would be empty.
  """
  if not val:
    return data, None
  size = round(val * len(data.labels))
  if not 0 < size < len(data.labels):
    raise InputError('data.val', f'{val} of {len(data.labels)} training examples leaves a split empty')
  held_out = draw(data, size, seed, 'val', labels)
  return data.take(~held_out), data.take(held_out)


def draw(data: Split, size: int, seed: int, use: str, labels: Labels = CLASSES) -> np.ndarray:
  """Return which examples are among ``size`` random ones, stratified by class, bool ``[N]``.

  Args:
    data: files are drawn by their names, and arrays and TFDS's records by their place.
    size: how many.
    seed: of the draw.
    use: what they are drawn for: ``'test'``, ``'val'`` or ``'limit'``.
    labels: what they are: what is not of classes is not stratified.
  """
  drawn = np.zeros(len(data.labels), bool)
  drawn[sampler.draw_stratified(labels.strata(data.labels), size, seed, shuffle(data, seed, use))] = True
  return drawn


def shuffle(data: Split, seed: int, use: str) -> np.ndarray | None:
  """Return the order that examples are drawn in by their names; None where they are drawn by their place."""
  names = data.order_names if isinstance(data, Encoded) else None
  return None if names is None else sampler.order_by_name(names, seed, use)


def report_untrained(labels: np.ndarray, class_names: Sequence[str]) -> None:
  """Say which classes have no training example: the network cannot learn them."""
  missing = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
  if len(missing):
    others = f' and {len(missing) - 1:,} other classes' if len(missing) > 1 else ''
    name = shorten(class_names[missing[0]])
    print_status(
      f'no training example is of the class {name!r}{others}: of {len(class_names):,} classes these are not learned'
    )


def say_lookalikes(where: str, names: Sequence[str]) -> None:
  """Say which classes are called alike but for case, inner space, the form of an accent or of a number, as 1 and 01.

  Args:
    where: the data set's place.
    names: of the classes.
  """
  alike: dict[str, list[str]] = {}
  for name in names:
    key = ' '.join(unicodedata.normalize('NFKC', name).casefold().split())
    key = str(float(key)) if _NUMBER.fullmatch(key) else key
    alike.setdefault(key, []).append(name)
  for group in (group for group in alike.values() if len(group) > 1):
    listed = shorten(' and '.join(map(repr, group)))
    print_status(f'{where}: {listed} are {len(group)} classes; write them alike if they are one')


def check_source(name: str, labels: Labels, sources: Collection[str], classes: Sequence[int | str] | None) -> None:
  """Raise InputError where the data set ``name`` cannot have ``labels``; ``sources`` can have any."""
  if labels.are_classes:
    return
  if name not in sources:
    fix = f'set data.name to {" or ".join(sources)}, whose labels are what the file has'
    raise InputError('data.name', f'the task learns {labels.kind}, and {name!r} has a class for each image', fix=fix)
  if classes is not None:
    raise InputError('data.classes', f'{classes}, but the task learns {labels.kind}, not classes', fix='leave it out')


def check_labels(name: str, source: Source, labels: Labels = CLASSES) -> Source:
  """Return ``source`` if a loss can use every label: a wrong one would train what nobody means, in silence."""
  for part, data in (('train', source.train), ('val', source.val), ('test', source.test)):
    if data is None:
      continue
    if not len(data.labels):
      raise InputError('data.name', f'{name}: the {part} split is empty')
    wrong = np.flatnonzero(labels.is_wrong(data.labels, source.class_names))
    if len(wrong):
      first = wrong[0]
      example = f' ({data.name_of(first)})' if isinstance(data, Encoded) else ''
      wrong_label = (
        f'label {data.labels[first]}' if labels.rank == 0 else f'a label that is none, among its {labels.kind}'
      )
      problem = f'{name}: {part} example {first}{example} has {wrong_label}'
      raise InputError('data.name', problem, expected=labels.expected(source.class_names))
  return source


def _class_number(given: int | str, names: Sequence[str]) -> int:
  if str(given) in names:  # a name comes first, also one that is a number
    return names.index(str(given))
  number = int(given) if str(given).isdecimal() else -1
  if isinstance(given, numbers.Integral | str) and 0 <= number < len(names):
    return number
  raise InputError('data.classes', f'unknown class {given!r}', fix=nearest(given, names))
