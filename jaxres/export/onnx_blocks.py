"""The blocks of ResNets as nodes of ONNX: a walk through the model, with the weights at each path.

BatchNorms are folded into the convolutions before them, in float64. Source of the operators:
https://onnx.ai/onnx/operators/.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxres.errors import InputError
from jaxres.export.graph import Graph
from jaxres.export.network import Network
from jaxres.models import ResNet, blocks, speedrun
from jaxres.models.resnet import ACTIVATIONS


class Place(NamedTuple):
  """Where a block is: its path, its channels before the expansion, and its strides."""

  path: str
  width: int
  strides: int


def activate(graph: Graph, model: ResNet, x: str) -> str:
  """Add the activation of ``model``."""
  name = next((name for name, function in ACTIVATIONS.items() if model.act in (name, function)), None)
  if name == 'relu':
    return graph.add('Relu', x)
  if name == 'leaky_relu':
    return graph.add('LeakyRelu', x, alpha=0.01)
  if name == 'silu':
    return graph.add('Mul', x, graph.add('Sigmoid', x))
  if name == 'gelu':  # by the error function
    root, one, half = (graph.constant(f'gelu/{value:g}', value) for value in (np.sqrt(2), 1, 0.5))
    erf = graph.add('Add', graph.add('Erf', graph.add('Div', x, root)), one)
    return graph.add('Mul', graph.add('Mul', x, erf), half)
  raise InputError(
    'model.act', f'{model.act!r:.80} cannot be written as ONNX', expected=f'one of {", ".join(ACTIVATIONS)}'
  )


def max_pool(graph: Graph, x: str) -> str:
  """Add the 3x3 max-pool of stride 2 of the stems, padded as torch does."""
  return graph.add('MaxPool', x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])


def finish_stem(graph: Graph, model: ResNet, x: str, conv: str, norm: str, strides: int = 1) -> str:
  """Add the last convolution of a stem, and its norm and activation where the stem has them."""
  if model.block.preact:
    return graph.conv(x, conv, strides)
  return activate(graph, model, graph.conv(x, conv, strides, norm=norm))


def write_cifar_stem(graph: Graph, model: ResNet, x: str) -> str:
  """Add a ``stems.CifarStem``."""
  return finish_stem(graph, model, x, 'stem/conv', 'stem/bn')


def write_cifar_pool_stem(graph: Graph, model: ResNet, x: str) -> str:
  """Add a ``stems.CifarPoolStem``."""
  return max_pool(graph, write_cifar_stem(graph, model, x))


def write_imagenet_stem(graph: Graph, model: ResNet, x: str) -> str:
  """Add a ``stems.ImageNetStem``."""
  return max_pool(graph, finish_stem(graph, model, x, 'stem/conv', 'stem/bn', 2))


def write_deep_stem(graph: Graph, model: ResNet, x: str) -> str:
  """Add a ``stems.DeepStem``."""
  x = activate(graph, model, graph.conv(x, 'stem/conv1', 2, norm='stem/bn1'))
  x = activate(graph, model, graph.conv(x, 'stem/conv2', norm='stem/bn2'))
  return max_pool(graph, finish_stem(graph, model, x, 'stem/conv3', 'stem/bn3'))


def write_whitening_stem(graph: Graph, model: ResNet, x: str) -> str:
  """Add a ``speedrun.WhiteningStem``."""
  return activate(graph, model, graph.conv(x, 'stem/conv', padding=0))


STEMS: dict[str, Callable[[Graph, ResNet, str], str]] = {
  'cifar': write_cifar_stem,
  'cifar_pool': write_cifar_pool_stem,
  'imagenet': write_imagenet_stem,
  'deep': write_deep_stem,
  'whitening': write_whitening_stem,
}


def write_shortcut(graph: Graph, model: ResNet, x: str, place: Place) -> str:
  """Add what ``blocks.shortcut`` does; nothing where ``x`` has the shape of the block's output."""
  channels, strides = place.width * model.block.expansion, place.strides
  if strides == 1 and graph.channels[x] == channels:
    return x
  if model.shortcut == 'pad':
    return pad_shortcut(graph, x, channels, strides)
  norm = '' if model.block.preact else f'{place.path}/shortcut/bn'
  if model.shortcut == 'average' and strides > 1:  # at an odd edge the mean of what is left
    window: dict[str, Any] = {'kernel_shape': [strides, strides], 'strides': [strides, strides]}
    x, strides = graph.add('AveragePool', x, ceil_mode=1, count_include_pad=0, **window), 1
  return graph.conv(x, f'{place.path}/shortcut/conv', strides, norm=norm)


def pad_shortcut(graph: Graph, x: str, channels: int, strides: int) -> str:
  """Add option A: every ``strides``-th pixel, and channels of zeros on both sides."""
  missing = channels - graph.channels[x]
  if strides > 1:
    words = {'start': [0, 0], 'end': [np.iinfo(np.int32).max] * 2, 'axes': [2, 3], 'steps': [strides] * 2}
    x = graph.add('Slice', x, *(graph.constant(f'subsample/{name}', value, np.int64) for name, value in words.items()))
  before, after = missing // 2, missing - missing // 2
  pads = graph.constant(f'pad/{before}_{after}', [0, before, 0, 0, 0, after, 0, 0], np.int64)
  return graph.add('Pad', x, pads, channels=channels)


def write_se(graph: Graph, path: str, x: str) -> str:
  """Add a ``blocks.SqueezeExcitation``."""
  gate = graph.add('Relu', graph.conv(graph.add('GlobalAveragePool', x), f'{path}/reduce'))
  return graph.add('Mul', x, graph.add('Sigmoid', graph.conv(gate, f'{path}/expand')))


def write_branch(
  graph: Graph, model: ResNet, x: str, place: Place, strides: Sequence[int], groups: Sequence[int]
) -> str:
  """Add the convolutions of a block with a norm after each, and an activation between them.

  Args:
    graph: that is written.
    model: the network.
    x: the input.
    place: of the block.
    strides: of each convolution.
    groups: of each convolution.
  """
  for i, (stride, group) in enumerate(zip(strides, groups, strict=True), 1):
    x = activate(graph, model, x) if i > 1 else x
    x = graph.conv(x, f'{place.path}/conv{i}', stride, group, norm=f'{place.path}/bn{i}')
  return write_se(graph, f'{place.path}/se', x) if model.se else x


def write_basic(graph: Graph, model: ResNet, x: str, place: Place) -> str:
  """Add a ``blocks.BasicBlock``."""
  y = write_branch(graph, model, x, place, (place.strides, 1), (model.groups,) * 2)
  return activate(graph, model, graph.add('Add', y, write_shortcut(graph, model, x, place)))


def write_bottleneck(graph: Graph, model: ResNet, x: str, place: Place) -> str:
  """Add a ``blocks.BottleneckBlock``."""
  y = write_branch(graph, model, x, place, (1, place.strides, 1), (1, model.groups, 1))
  return activate(graph, model, graph.add('Add', y, write_shortcut(graph, model, x, place)))


def write_preact(
  graph: Graph, model: ResNet, x: str, place: Place, strides: Sequence[int], groups: Sequence[int]
) -> str:
  """Add a pre-activation block: norm and activation before each convolution; a norm between two is folded."""
  path, count = place.path, len(strides)
  y = activated = activate(graph, model, graph.norm(x, f'{path}/bn1'))
  for i, (stride, group) in enumerate(zip(strides, groups, strict=True), 1):
    following = f'{path}/bn{i + 1}' if i < count else ''
    y = graph.conv(y, f'{path}/conv{i}', stride, group, norm=following)
    y = activate(graph, model, y) if following else y
  y = write_se(graph, f'{path}/se', y) if model.se else y
  keeps_shape = place.strides == 1 and graph.channels[x] == place.width * model.block.expansion
  return graph.add('Add', y, write_shortcut(graph, model, x if keeps_shape else activated, place))


def write_preact_basic(graph: Graph, model: ResNet, x: str, place: Place) -> str:
  """Add a ``blocks.PreactBasicBlock``."""
  return write_preact(graph, model, x, place, (place.strides, 1), (model.groups,) * 2)


def write_preact_bottleneck(graph: Graph, model: ResNet, x: str, place: Place) -> str:
  """Add a ``blocks.PreactBottleneckBlock``."""
  return write_preact(graph, model, x, place, (1, place.strides, 1), (1, model.groups, 1))


def write_pool_block(graph: Graph, model: ResNet, x: str, place: Place) -> str:
  """Add a ``speedrun.PoolBlock``."""
  x = graph.add('MaxPool', graph.conv(x, f'{place.path}/conv1'), kernel_shape=[2, 2], strides=[2, 2])
  x = activate(graph, model, graph.norm(x, f'{place.path}/bn1'))
  y = graph.conv(x, f'{place.path}/conv2', norm=f'{place.path}/bn2')
  y = write_se(graph, f'{place.path}/se', y) if model.se else y
  return activate(graph, model, graph.add('Add', y, x))


BLOCKS: dict[type[blocks.Block], Callable[[Graph, ResNet, str, Place], str]] = {
  blocks.BasicBlock: write_basic,
  blocks.BottleneckBlock: write_bottleneck,
  blocks.PreactBasicBlock: write_preact_basic,
  blocks.PreactBottleneckBlock: write_preact_bottleneck,
  speedrun.PoolBlock: write_pool_block,
}


def write_head(graph: Graph, model: ResNet, x: str, temperature: float) -> None:
  """Add the pooling and the classifier: ``logits`` and ``probabilities``."""
  pooled = graph.add('Flatten', graph.add({'mean': 'GlobalAveragePool', 'max': 'GlobalMaxPool'}[model.pool], x))
  kernel, bias = (model.logit_scale * graph.leaf(f'params/head/fc/{name}') for name in ('kernel', 'bias'))
  weights = graph.constant('head/fc/kernel', kernel), graph.constant('head/fc/bias', bias)
  logits = graph.add('Gemm', pooled, *weights, name='logits')
  if temperature != 1:
    logits = graph.add('Div', logits, graph.constant('temperature', temperature))
  graph.add('Softmax', logits, name='probabilities', axis=1)


def write_network(graph: Graph, network: Network, x: str) -> None:
  """Add all of ``network``, given its normalized images ``[B, C, H, W]``.

  Raises:
    InputError: it has a part that cannot be written.
  """
  model = network.model
  if model.block not in BLOCKS:
    raise InputError('model.block', f'{model.block.__name__} cannot be written as ONNX')
  x = STEMS[model.stem_type](graph, model, x)
  for i, (size, width) in enumerate(zip(model.stage_sizes, model.widths, strict=True)):
    for j in range(size):
      place = Place(f'stage{i + 1}/block{j}', width, 2 if i and not j else 1)
      x = BLOCKS[model.block](graph, model, x, place)
  if model.block.preact:
    x = activate(graph, model, graph.norm(x, 'norm'))
  write_head(graph, model, x, network.temperature or 1.0)
  assert not graph.unused, f'weights that no node uses: {sorted(graph.unused)}'
