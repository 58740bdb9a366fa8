"""Layouts of other repositories, and their translation to torchvision's names.

Each layout has an anchor, a tensor that every network named so has; what stands before it is the prefix.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

TORCHVISION, TRANSFORMERS, SEQUENTIAL = 'torchvision', 'transformers', 'sequential'
ANCHORS = {
  TORCHVISION: re.compile(r'(.*\.)?layer1\.0\.conv1\.weight'),
  # transformers.ResNetModel, and with the prefix `resnet.` transformers.ResNetForImageClassification
  TRANSFORMERS: re.compile(r'(.*\.)?encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight'),
  # nn.Sequential(*net.children()): the first block of the stage that comes first
  SEQUENTIAL: re.compile(r'(.*\.)?\d{1,2}\.0\.conv1\.weight'),
}
_WORDS = {'convolution': 'conv', 'normalization': 'bn'}
_STEM = re.compile(r'embedder\.embedder\.(convolution|normalization)\.(\w+)')
_BLOCK = re.compile(r'encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d)\.(convolution|normalization)\.(\w+)')
_SHORTCUT = re.compile(r'encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)')
_DENSE = re.compile(r'\d{1,2}\.weight')
_NUMBERED = re.compile(r'(\d{1,2})\.(.+)')
_SE = re.compile(r'(layer\d+\.\d+)\.(?:se|se_module)\.(fc1|fc2|conv_reduce|conv_expand)\.(weight|bias)')
_SE_WORDS = {'conv_reduce': 'fc1', 'conv_expand': 'fc2'}


class Network(NamedTuple):
  """Where in a state dict a network is."""

  prefix: str  # of its names, with the dot, or empty
  layout: str


def find(names: Iterable[str]) -> list[Network]:
  """Return the networks whose anchors are among ``names``: of torchvision's layout, or else of the other ones."""
  names = [name for name in names if name.endswith(('.0.conv1.weight', '.0.convolution.weight'))]
  for layout, anchor in ANCHORS.items():
    matches = [anchor.fullmatch(name) for name in names]
    prefixes = dict.fromkeys(match[1] or '' for match in matches if match)  # a sequence: one a stage
    if prefixes:
      return [Network(prefix, layout) for prefix in prefixes]
  return []


def to_torchvision(shapes: Mapping[str, tuple[int, ...]], layout: str) -> dict[str, str]:
  """Return torchvision's name, or timm's where torchvision has none, for each name of ``shapes``.

  A name that has no counterpart stays as it is.

  Args:
    shapes: of the tensors of one network, by name without the prefix.
    layout: of ``Network``.
  """
  if layout == TRANSFORMERS:
    return {name: _of_transformers(name) for name in shapes}
  if layout == SEQUENTIAL:
    return _of_sequence(shapes)
  return {name: _SE.sub(lambda m: f'{m[1]}.se.{_SE_WORDS.get(m[2], m[2])}.{m[3]}', name) for name in shapes}


def _of_transformers(name: str) -> str:
  if match := _STEM.fullmatch(name):
    return f'{_WORDS[match[1]]}1.{match[2]}'
  if match := _BLOCK.fullmatch(name):
    stage, block, number, kind, leaf = match.groups()
    return f'layer{int(stage) + 1}.{block}.{_WORDS[kind]}{int(number) + 1}.{leaf}'
  if match := _SHORTCUT.fullmatch(name):
    stage, block, kind, leaf = match.groups()
    return f'layer{int(stage) + 1}.{block}.downsample.{int(kind == "normalization")}.{leaf}'
  return re.sub(r'classifier\.1\.(weight|bias)', r'fc.\1', name)  # after nn.Flatten


def _of_sequence(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
  """Return the names of the children of a network by their numbers: 0 conv1, 1 bn1, ..., stages, ..., fc."""
  stages = sorted({int(name.split('.')[0]) for name in shapes if re.fullmatch(r'\d{1,2}\.0\.conv1\.weight', name)})
  heads = {
    int(name.split('.')[0])
    for name, shape in shapes.items()
    if _DENSE.fullmatch(name) and (len(shape) == 2 or shape[2:] == (1, 1))
  }
  words = {number: f'layer{i + 1}' for i, number in enumerate(stages)} | {0: 'conv1', 1: 'bn1'}
  if len(heads) == 1 and max(heads) > stages[-1]:  # of several layers it is no classifier that jaxres has
    words[max(heads)] = 'fc'
  result = {}
  for name in shapes:
    match = _NUMBERED.fullmatch(name)
    word = words.get(int(match[1])) if match else None
    result[name] = f'{word}.{match[2]}' if match and word else name
  return result
