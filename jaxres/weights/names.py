"""Torch's names and jaxres's: one table of modules and one of leaves, used both ways, and the layouts of the arrays."""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# jaxres, torch; a star stands for a number. torchvision's names; timm's where it has none (deep stem, SE). {shortcut},
# {first}, {second} and {head} differ between repositories: see Dialect. The order is that of torch's state dicts.
MODULES = (
  ('stem/conv', 'conv1'),
  ('stem/conv1', 'conv1.0'),
  ('stem/bn1', 'conv1.1'),
  ('stem/conv2', 'conv1.3'),
  ('stem/bn2', 'conv1.4'),
  ('stem/conv3', 'conv1.6'),
  ('stem/bn', 'bn1'),
  ('stem/bn3', 'bn1'),
  ('stage*/block*/conv1', 'layer*.*.conv1'),
  ('stage*/block*/bn1', 'layer*.*.bn1'),
  ('stage*/block*/conv2', 'layer*.*.conv2'),
  ('stage*/block*/bn2', 'layer*.*.bn2'),
  ('stage*/block*/conv3', 'layer*.*.conv3'),
  ('stage*/block*/bn3', 'layer*.*.bn3'),
  ('stage*/block*/se/reduce', 'layer*.*.se.fc1'),
  ('stage*/block*/se/expand', 'layer*.*.se.fc2'),
  ('stage*/block*/shortcut/conv', 'layer*.*.{shortcut}.{first}'),
  ('stage*/block*/shortcut/bn', 'layer*.*.{shortcut}.{second}'),
  ('norm', 'norm'),
  ('head/fc', '{head}'),
)
LEAVES = {  # collection and leaf of jaxres -> leaf of torch
  ('params', 'kernel'): 'weight',
  ('params', 'scale'): 'weight',
  ('params', 'bias'): 'bias',
  ('batch_stats', 'mean'): 'running_mean',
  ('batch_stats', 'var'): 'running_var',
  ('batches', 'count'): 'num_batches_tracked',  # beside the variables: jaxres itself does not count
}
HEADS = ('fc', 'linear', 'head.fc', 'last_linear', 'classifier', 'head')
SHORTCUTS = ('downsample', 'shortcut')
MAX_SHOWN = 5  # numbers of a shape in a message


class Dialect(NamedTuple):
  """What repositories name differently.

  Attributes:
    shortcut: ``'downsample'`` (torchvision, timm, chenyaofo) or ``'shortcut'`` (akamaster, kuangliu).
    head: ``'fc'`` (torchvision), ``'linear'`` (akamaster, kuangliu) or another of ``HEADS``.
    average: the shortcut starts with a pool, which takes the number 0 (ResNet-D in timm).
  """

  shortcut: str = 'downsample'
  head: str = 'fc'
  average: bool = False

  @classmethod
  def of_model(cls, shortcut: str) -> 'Dialect':
    """Return how public weights name a network of this ``shortcut``: with ``'pad'`` as akamaster does."""
    return cls('shortcut', 'linear') if shortcut == 'pad' else cls(average=shortcut == 'average')

  @classmethod
  def of_names(cls, shapes: Mapping[str, tuple[int, ...]]) -> 'Dialect':
    """Return the dialect of a state dict, given the shapes of its tensors."""
    shortcut = next((s for s in SHORTCUTS if any(f'.{s}.' in name for name in shapes)), SHORTCUTS[0])
    head = next((h for h in HEADS if f'{h}.weight' in shapes), HEADS[0])
    second = re.compile(rf'layer\d+\.\d+\.{shortcut}\.1\.weight')
    average = any(second.fullmatch(name) and len(shape) == 4 for name, shape in shapes.items())
    return cls(shortcut, head, average)


def describe_value(value: object, size: int = 60) -> str:
  """Return ``value``, of a file that may be hostile, for a message: short, printable, and never walked into.

  Args:
    value: a string, or anything, of which only the type is shown.
    size: of the result, in characters.
  """
  text = value[: size + 1] if type(value) is str else f'a {type(value).__name__}'
  text = text if len(text) <= size else f'{text[: size - 3]}...'
  return ''.join(c if c.isprintable() else '?' for c in text)


def describe_shape(shape: Sequence[int]) -> str:
  """Return the text of a shape for a message, cut where it has more or longer numbers than any tensor of a network."""
  numbers = [f'{n}' if abs(n) < 1 << 40 else f'{n:.2e}' for n in shape[:MAX_SHOWN]]
  return f'[{", ".join(numbers)}{", ..." * (len(shape) > MAX_SHOWN)}]'


def torch_names(paths: Iterable[str], dialect: Dialect) -> dict[str, str]:
  """Return ``{path: torch's name}`` in the order of torch's state dicts; the dict inverted is the way back.

  Args:
    paths: of the leaves of variables, such as ``params/stage1/block0/conv1/kernel``.
    dialect: of the torch names.
  """
  torch_name_of = {path: _translate(path, dialect) for path in paths}
  return {path: name for path, (_, name) in sorted(torch_name_of.items(), key=lambda item: item[1][0])}


def counters(paths: Iterable[str]) -> list[str]:
  """Return the paths ``batches/.../count`` of the BatchNorms among ``paths``."""
  means = [path.split('/')[1:-1] for path in paths if path.startswith('batch_stats/') and path.endswith('/mean')]
  return ['/'.join(['batches', *words, 'count']) for words in means]


def to_jaxres(array: np.ndarray) -> np.ndarray:
  """Return a torch array in jaxres's layout: kernels OIHW as HWIO, of dense layers ``[out, in]`` as ``[in, out]``."""
  return np.ascontiguousarray(array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)))


def to_torch(array: np.ndarray) -> np.ndarray:
  """Return a jaxres array in torch's layout, the inverse of ``to_jaxres``."""
  turned = array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim))
  return turned.copy(order='C')  # ascontiguousarray would give a scalar a dimension


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Return the shape in torch's layout of a jaxres array of ``shape``."""
  order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(shape), range(len(shape)))
  return tuple(shape[i] for i in order)


def _translate(path: str, dialect: Dialect) -> tuple[tuple[int, ...], str]:
  """Return where in a state dict the leaf at ``path`` stands, to sort by, and its torch name."""
  collection, _, rest = path.partition('/')
  module, _, leaf = rest.rpartition('/')
  for rank, (pattern, name) in enumerate(_patterns()):
    if match := pattern.fullmatch(module):
      numbers = [int(number) for number in match.groups()]
      for number in numbers:
        name = name.replace('*', str(number), 1)
      words = {'first': int(dialect.average), 'second': 1 + dialect.average}
      name = name.format(shortcut=dialect.shortcut, head=dialect.head, **words)
      order = [*LEAVES].index((collection, leaf))
      part = 1 if numbers else 0 if module.startswith('stem') else 2
      return (part, *(numbers or [0, 0]), rank, order), f'{name}.{LEAVES[collection, leaf]}'
  raise KeyError(path)


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
  return [(re.compile(ours.replace('*', r'(\d+)')), theirs) for ours, theirs in MODULES]
