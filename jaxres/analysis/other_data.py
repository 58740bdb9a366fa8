"""Scores of any network on any data: the run's or other data, read as published, with its classes matched by name."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxres import data as data_lib
from jaxres import predict
from jaxres.analysis import scores, task_scores
from jaxres.data import decode
from jaxres.data.sources import memory
from jaxres.data.statistics import STATISTICS
from jaxres.data.types import CLASSES, Arrays, Encoded, Labels, Split
from jaxres.errors import InputError, make_progress_printer, nearest
from jaxres.evaluate import Outputs
from jaxres.train.look import locate

TELL_SECONDS = 5.0  # from a line on the progress to the next
ALL = 'all'  # the examples of data that has no splits
SPLITS = ('train', 'val', 'test', ALL)
MAX_LISTED = 5  # classes that a note names


class Examples(NamedTuple):
  """Examples that networks are scored on.

  Attributes:
    data: what a person calls the data.
    split: of it.
    examples: images and labels, in the numbers of ``class_names``.
    class_names: of the data.
  """

  data: str
  split: str
  examples: Split
  class_names: tuple[str, ...]


def read(given: str, split: str | None = None, data_dir: str | None = None, labels: Labels = CLASSES) -> Examples:
  """Return a split of the data that ``given`` names.

  Args:
    given: a folder of images, a CSV or an ``.npz`` file, or the name of a data set.
    split: one of ``SPLITS``; None is test where the data has one, else val, else all examples.
    data_dir: where TFDS data sets are.
    labels: what they are.

  Raises:
    InputError: it is nothing of these, cannot be read, or has no such split.
  """
  fields = locate(os.fspath(given), data_dir)
  source = data_lib.read_source(
    fields['name'], data_dir, fields.get('path'), False, 0, data_lib.SPLIT_RULE, labels, 'published'
  )
  name = os.fspath(given)
  source = data_lib.check_labels(name, source, labels)
  known: dict[str, Split] = {
    part: each for part, each in zip(SPLITS, (source.train, source.val, source.test), strict=False) if each is not None
  }
  if len(known) == 1:
    known = {ALL: source.train, 'train': source.train}
  split = split or next(part for part in ('test', 'val', ALL) if part in known)
  if split not in known:
    raise InputError('--split', f'{name} has no {split} split', fix=f'it has {", ".join(known)}')
  return Examples(name, split, known[split], source.class_names)


def from_memory(
  given: Any, split: str | None = None, labels: Labels = CLASSES, class_names: Sequence[str] | None = None
) -> Examples:
  """Return examples that Python hands over.

  Args:
    given: of ``memory.read_split``; or a dict with a split of that or with arrays such as ``test_x`` and ``test_y``.
      Labels of classes may be their names.
    split: of a dict of splits; None is test where there is one, else val, else train.
    labels: what they are.
    class_names: of the numbers in the labels, where a dict does not say them; numbers where nothing does.

  Raises:
    InputError: it is something else.
  """
  name = 'data'
  if isinstance(given, Mapping) and not {*given} & {'image', 'images'}:
    names = given.get('class_names', class_names)
    there = [part for part in ('test', 'val', 'train') if part in given or f'{part}_x' in given]
    if not there or split not in (None, *there):
      expected = f'a dict with {split or "test, val or train"}'
      raise InputError('data', expected=expected, found=f'one with {", ".join(map(repr, given)) or "nothing"}')
    split = split or there[0]
    class_names = None if names is None else tuple(map(str, names))
    given = given[split] if split in given else (given[f'{split}_x'], given.get(f'{split}_y'))
    name = f'data[{split!r}]'
  elif split is not None:
    raise InputError('split', f'{split!r}, but the data is one split; leave it out')
  given, names_of_labels = _number_names(given)
  images, numbers = memory.read_split(given, name, labels)
  images = images[..., None] if images.ndim == 3 else images
  if images.ndim != 4 or 0 in images.shape[1:]:
    raise InputError(f'{name}: images', expected='uint8 [N, H, W, C]', found=f'{images.dtype} {list(images.shape)}')
  converted = labels.convert(numbers, images.shape, f'{name}: labels')
  if not len(images):
    raise InputError(name, 'no examples there')
  known = names_of_labels or class_names or _numbers(int(converted.max()) + 1 if labels.are_classes else 1)
  examples = Arrays(images, converted)
  wrong = np.flatnonzero(labels.is_wrong(converted, known))
  if len(wrong):
    problem = f'label {converted[wrong[0]]} of example {wrong[0]}'
    raise InputError(f'{name}: labels', expected=labels.expected(known), found=problem)
  return Examples('arrays in memory', split or ALL, examples, tuple(known))


def _number_names(given: Any) -> tuple[Any, tuple[str, ...] | None]:
  """Return a pair whose labels are names of classes with their numbers instead, and the names."""
  if isinstance(given, tuple | list) and len(given) == 2 and not isinstance(given[1], tuple | Mapping):
    labels = np.asarray(given[1]) if isinstance(given[1], list | np.ndarray) else np.empty(0)
    if labels.dtype.kind == 'U' and labels.ndim == 1:
      names, numbers = np.unique(labels, return_inverse=True)
      return (given[0], numbers.astype(np.int32)), tuple(names.tolist())
  return given, None


def _numbers(count: int) -> tuple[str, ...]:
  return tuple(map(str, range(count)))


def match_classes(examples: Examples, class_names: Sequence[str], where: str) -> tuple[np.ndarray, str]:
  """Return the number that a network has for each class of the data, int32 ``[K]``, and how they were matched.

  Classes are matched by name, whatever their order; those of the network without examples stay. Where the network or
  the data has nothing but numbers for names, they are matched by number.

  Args:
    examples: the data.
    class_names: of the network, in the order of the logits.
    where: which network, for the error.

  Raises:
    InputError: an example is of a class that the network does not know.
  """
  names, labels = examples.class_names, examples.examples.labels
  if tuple(names) != _numbers(len(names)) and tuple(class_names) != _numbers(len(class_names)):
    place = {name: number for number, name in enumerate(class_names)}
    for number in np.unique(labels).tolist():
      if names[number] not in place:
        problem = f'{examples.data} has examples of the class {names[number]!r}, which {where} does not know'
        raise InputError('--data', problem, fix=nearest(names[number], class_names))
    return np.array([place.get(name, -1) for name in names], np.int32), 'name'
  if tuple(names) == tuple(class_names):
    return np.arange(len(names), dtype=np.int32), 'name'
  is_named = tuple(names) != _numbers(len(names))
  if (is_named and len(names) != len(class_names)) or labels.max() >= len(class_names):
    problem = f'{examples.data} has {len(names)} classes, and {where} {len(class_names)} outputs that have no names'
    raise InputError('--data', problem, fix='name them: --class_names FILE')
  return np.arange(len(names), dtype=np.int32), 'number'


def get_images(examples: Split, places: Sequence[int], predictor: predict.Predictor) -> np.ndarray:
  """Return images as ``predictor`` sees them, uint8 ``[B, H, W, C]``.

  Raises:
    InputError: a file cannot be read; names it.
  """
  if isinstance(examples, Arrays):
    return np.stack([predict.resize(examples.images[at], predictor) for at in places])
  return np.stack([_decode(examples, at, predictor) for at in places])


def _decode(examples: Encoded, at: int, predictor: predict.Predictor) -> np.ndarray:
  try:
    return predict.decode_as_seen(examples.read_at(at), predictor)
  except (OSError, decode.BadImageError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise InputError(examples.name_of(at), reason, fix='repair or remove it') from None


def predict_examples(
  predictor: predict.Predictor,
  examples: Examples,
  batch_size: int = predict.BATCH_SIZE,
  network: predict.Network | None = None,
) -> Outputs:
  """Return what a network makes of examples, with their labels as they are in the data.

  Args:
    predictor: of ``predict.load``.
    examples: of ``read`` or ``from_memory``.
    batch_size: images at a time.
    network: of ``predict.make_network``; None makes one.

  Raises:
    InputError: an image cannot be read, or a logit is not a number.
  """
  network = network or predict.make_network(predictor)
  labels = examples.examples.labels
  tell = make_progress_printer(f'{predictor.origin}, {examples.split}:', TELL_SECONDS)
  rows = []
  for places in _chunks(len(labels), batch_size):
    tell(f'{places[0]:,} of {len(labels):,} examples')
    images = get_images(examples.examples, places, predictor)
    rows.append(predict.run_batches(network, predictor.variables, images, batch_size))
  logits = np.concatenate(rows)
  broken = np.flatnonzero(~np.isfinite(logits.reshape(len(labels), -1)).all(axis=1))
  if len(broken):
    count = f'{len(broken):,} of {len(labels):,} examples, the first {broken[0]}'
    raise InputError(predictor.origin, f'logits that are not numbers for {count}: the weights are no good')
  return Outputs(logits, labels, np.empty((len(labels), 0), np.float32))


def _chunks(count: int, size: int) -> Iterator[range]:
  for start in range(0, count, size):
    yield range(start, min(start + size, count))


def compare(
  networks: Mapping[str, predict.Predictor],
  examples: Examples,
  batch_size: int = predict.BATCH_SIZE,
  compiled: Mapping[str, predict.Network] | None = None,
) -> dict[str, Any]:
  """Return the scores of networks on examples, as of ``analysis.compare.compare``.

  Args:
    networks: by name; several have equal classes, in any order.
    examples: of ``read`` or ``from_memory``.
    batch_size: images at a time.
    compiled: of ``predict.make_network``, by name, where there are some.

  Returns:
    The scores, with ``split``, ``data``, and of each network its ``origin`` and what is done to its images.

  Raises:
    InputError: a class of the data is unknown to a network, the networks have other classes or tasks, or an image
      cannot be read.
  """
  first, *others = networks.values()
  classes = first.class_names
  for other in others:
    if {*other.class_names} != {*classes} or other.task.labels.kind != first.task.labels.kind:
      raise InputError(f'{other.origin} and {first.origin}', 'they have other classes', fix='score each alone')
  numbers, how = match_classes(examples, classes, first.origin) if first.task.labels.are_classes else (None, '')
  outputs = {}
  for name, network in networks.items():
    made = predict_examples(network, examples, batch_size, (compiled or {}).get(name))
    if numbers is not None:
      order = [network.class_names.index(each) for each in classes]
      made = Outputs(made.logits[:, order], numbers[made.labels], made.features)
    outputs[name] = made
  if numbers is None:
    compared = task_scores.compare(outputs, first.task)
  else:
    is_unnamed = tuple(classes) == _numbers(len(classes)) and len(examples.class_names) == len(classes)
    compared = scores.compare(outputs, dict.fromkeys(outputs), examples.class_names if is_unnamed else classes)
  notes = _notes(networks, examples, how)
  for name, network in networks.items():
    about = {'origin': network.origin, 'preprocessing': describe_preprocessing(network)}
    compared['runs'][name] = about | compared['runs'][name]
    compared['runs'][name]['notes'] = [*compared['runs'][name]['notes'], *notes]
  return {'split': examples.split, 'data': examples.data, 'classes_by': how or None} | compared


def describe_preprocessing(predictor: predict.Predictor) -> dict[str, Any]:
  """Return what is done to an image before a network, as JSON has it."""
  size = list(predictor.image_shape[:2])
  return {
    'image_size': size,
    'center_crop': predictor.center_crop,
    'mean': list(predictor.mean),
    'std': list(predictor.std),
  }


def _notes(networks: Mapping[str, predict.Predictor], examples: Examples, how: str) -> list[str]:
  notes = [f'the data is {examples.data}, given for this evaluation, not that of a run']
  notes += [note for network in networks.values() for note in network.notes]
  if how == 'number' and len(examples.class_names) > 1:
    notes.append('classes are matched by their numbers: the network or the data does not name them')
  return notes


def fallback_preset(given: str) -> str | None:
  """Return the preset for weights that say nothing, by the data that they are scored on; None where none is likely."""
  return given if given in STATISTICS else None
