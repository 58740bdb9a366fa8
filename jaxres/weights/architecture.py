"""The architecture of a state dict, from the names and shapes of its tensors."""

import collections
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxres import models
from jaxres.errors import InputError
from jaxres.models import ResNet
from jaxres.models.resnet import MODELS
from jaxres.weights.names import Dialect, describe_shape, describe_value

Shapes = Mapping[str, tuple[int, ...]]
STEM_OF_SIZE = {2: 'whitening', 3: 'cifar', 7: 'imagenet'}


class Architecture(NamedTuple):
  """A network of ``jaxres.models``."""

  name: str
  options: dict[str, Any]  # what models.create takes besides, where it is not the default
  channels: int  # of the images


class _Seen(NamedTuple):
  """What the tensors say of a network, as attributes of ``ResNet``."""

  stage_sizes: tuple[int, ...]
  widths: tuple[int, ...]
  stem_width: int  # 0: as many as the images say
  expansion: int
  preact: bool
  groups: int
  width_per_group: int
  se: bool


def recognize(state_dict: Mapping[str, np.ndarray], where: str = 'state_dict', stem: str | None = None) -> Architecture:
  """Return which network of ``models.list_models()`` has these tensors.

  What has no tensor cannot be seen: the activation is taken for ReLU, the stride of a 3x3 stem for 1, that of a
  bottleneck to be on its 3x3. Nor is a max-pool after a 3x3 stem: ``stem`` says that it is there.

  Args:
    state_dict: by torch's names, as ``reader.read`` returns it.
    where: the file, for the error.
    stem: ``'cifar'`` or ``'cifar_pool'`` of a 3x3 stem; taken for the former where it is not given.

  Raises:
    InputError: it is no ResNet, its stem is not ``stem``, or none of the table.
  """
  shapes = {name: value.shape for name, value in state_dict.items()}
  dialect = Dialect.of_names(shapes)
  try:
    seen = _look(shapes)
    options = _options(shapes, dialect, seen, where, stem)
    channels = shapes['conv1.0.weight' if 'conv1.0.weight' in shapes else 'conv1.weight'][1]
  except InputError:
    raise
  except (LookupError, ValueError, ZeroDivisionError):
    names = ', '.join(describe_value(name, 40) for name in [*shapes][:4]) or 'nothing'
    raise InputError(
      where, 'no ResNet that jaxres knows', expected='conv1.weight, layer1.0.conv1.weight ...', found=f'{names} ...'
    ) from None
  alike = {name: _differing(name, options) for name in models.list_models() if _of_model(MODELS[name]()) == seen}
  if alike and (empty := next((name for name, shape in shapes.items() if 0 in shape), None)):
    raise InputError(where, f'{describe_value(empty)} {describe_shape(shapes[empty])} has no numbers')
  if alike:  # resnet50 and resnet50d differ in options alone
    name = min(alike, key=lambda name: len(alike[name]))
    return Architecture(name, alike[name], channels)
  kind = 'bottlenecks' if seen.expansion == 4 else 'basic blocks'
  more = ', SE' * seen.se + ', pre-activation' * seen.preact
  network = f'a ResNet of {list(seen.stage_sizes)!s:.60} {kind} of {list(seen.widths)!s:.60} channels'
  details = f'stem {seen.stem_width}, groups {seen.groups}, width per group {seen.width_per_group}{more}'
  raise InputError(where, f'{network}, {details}', fix='no network of jaxres.models.list_models() is like it')


def _look(shapes: Shapes) -> _Seen:
  blocks = [re.fullmatch(r'layer(\d{1,4})\.(\d{1,4})\.conv1\.weight', name) for name in shapes]
  numbers = sorted((int(match[1]), int(match[2])) for match in blocks if match)
  counts = collections.Counter(stage for stage, _ in numbers)
  sizes = tuple(counts[i] for i in range(1, len(counts) + 1))  # a number can be large, how many there are cannot
  if not sizes or numbers != [(i + 1, j) for i, size in enumerate(sizes) for j in range(size)]:
    raise ValueError('blocks are missing')
  expansion = 4 if 'layer1.0.conv3.weight' in shapes else 1
  last = 'conv3' if expansion == 4 else 'conv2'
  widths = tuple(shapes[f'layer{i + 1}.0.{last}.weight'][0] // expansion for i in range(len(sizes)))
  inner, second = shapes['layer1.0.conv1.weight'][0], shapes['layer1.0.conv2.weight']
  groups = inner // second[1]
  stem = shapes.get('conv1.6.weight') or shapes['conv1.weight']
  stem_width = 0 if STEM_OF_SIZE.get(stem[2]) == 'whitening' else stem[0]
  preact = 'norm.weight' in shapes
  se = 'layer1.0.se.fc1.weight' in shapes
  return _Seen(sizes, widths, stem_width, expansion, preact, groups, inner * 64 // (groups * widths[0]), se)


def _options(shapes: Shapes, dialect: Dialect, seen: _Seen, where: str, given_stem: str | None) -> dict[str, Any]:
  """Return the arguments of ``models.create`` that tensors show."""
  stem = 'deep' if 'conv1.0.weight' in shapes else STEM_OF_SIZE[shapes['conv1.weight'][2]]
  if given_stem and (given_stem if stem != 'cifar' else given_stem.removesuffix('_pool')) != stem:
    raise InputError(where, f'its stem is {stem!r}, not {given_stem!r}: leave --stem (model.stem) out')
  stem = given_stem or stem
  reshapes = len(seen.widths) > 1
  shortcut = 'average' if dialect.average else 'projection'
  if reshapes and not any(f'.{dialect.shortcut}.' in name for name in shapes):
    shortcut = 'pad'
  head = shapes.get(f'{dialect.head}.weight')
  return {'num_classes': head[0] if head else None, 'stem': stem, 'shortcut': shortcut if reshapes else None}


def name_of(model: ResNet) -> str:
  """Return the name of the first network of ``models.list_models()`` that differs from ``model`` in options alone."""
  return next(
    (name for name in models.list_models() if _of_model(MODELS[name]()) == _of_model(model)), 'another network'
  )


def _of_model(model: ResNet) -> _Seen:
  return _Seen(
    model.stage_sizes,
    model.widths,
    0 if model.stem_type == 'whitening' else model.stem_width or model.widths[0],
    model.block.expansion,
    model.block.preact,
    model.groups,
    model.width_per_group,
    model.se,
  )


def _differing(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Return the ``options`` that are not the published ones of the network called ``name``."""
  model = MODELS[name]()
  published = {'stem': model.stem_type, 'shortcut': model.shortcut}
  return {key: value for key, value in options.items() if value is not None and published.get(key) != value}
