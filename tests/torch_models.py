"""ResNets in plain torch to compare jaxres with, and the copy of jaxres variables into them.

They are written from the papers, with nothing of jaxres in them. Parameters are named as public weights name them:
torchvision's names (``conv1``, ``layer1.0.downsample.0``, ``fc``) for the ImageNet networks, those of
akamaster/pytorch_resnet_cifar10 (``conv1``, ``layer2.0.shortcut.0``, ``linear``) for the thin CIFAR networks.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.models.parity import in_torchs_layout

THIN = ('resnet20', 'resnet32', 'resnet44', 'resnet56', 'resnet110')
PREACT_THIN = (20, 32, 44, 56, 110, 164)
WIDE = {'wrn16_8': (16, 8), 'wrn28_10': (28, 10)}


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
  """Return a convolution without bias that keeps the image's size at stride 1."""
  return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def projection(inputs: int, outputs: int, stride: int, average: bool = False, norm: bool = True) -> nn.Sequential:
  """Return the shortcut with parameters: torchvision's, or with ``average`` ResNet-D's, which timm names alike."""
  layers: list[nn.Module] = [nn.BatchNorm2d(outputs)] if norm else []
  if not average:
    return nn.Sequential(conv(inputs, outputs, 1, stride), *layers)
  pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
  return nn.Sequential(pool, conv(inputs, outputs, 1), *layers)


class Gate(nn.Module):
  """Squeeze and excitation, timm's names; the reduction is 16, with no rounding to a multiple of 8."""

  def __init__(self, channels: int) -> None:
    super().__init__()
    self.fc1 = nn.Conv2d(channels, max(1, channels // 16), 1)
    self.fc2 = nn.Conv2d(max(1, channels // 16), channels, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Options(NamedTuple):
  """What blocks and networks may be given."""

  groups: int = 1
  width_per_group: int = 64
  se: bool = False
  act: str = 'relu'
  shortcut: str = 'projection'

  def inner(self, width: int) -> int:
    """Return torchvision's width between the convolutions of a bottleneck."""
    return int(width * (self.width_per_group / 64)) * self.groups

  def activate(self, x: torch.Tensor) -> torch.Tensor:
    """Return the activation of ``x``, torch's own."""
    return getattr(F, self.act)(x)


class Residual(nn.Module):
  """The shortcut and the gate of a block."""

  preact = False

  def __init__(self, inputs: int, outputs: int, stride: int, options: Options) -> None:
    super().__init__()
    self.act, self.reshapes = options.activate, stride != 1 or inputs != outputs
    self.se = Gate(outputs) if options.se else nn.Identity()
    self.downsample: nn.Module = nn.Identity()
    if self.reshapes and options.shortcut == 'pad':
      self.downsample = OptionA(outputs)
    elif self.reshapes:
      self.downsample = projection(inputs, outputs, stride, options.shortcut == 'average', norm=not self.preact)


class Basic(Residual):
  """Two 3x3 convolutions, torchvision's names."""

  expansion = 1

  def __init__(self, inputs: int, width: int, stride: int, options: Options) -> None:
    super().__init__(inputs, width, stride, options)
    inner = options.inner(width)
    self.conv1, self.bn1 = conv(inputs, inner, 3, stride, options.groups), nn.BatchNorm2d(inner)
    self.conv2, self.bn2 = conv(inner, width, 3, groups=options.groups), nn.BatchNorm2d(width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.act(self.bn1(self.conv1(x)))
    y = self.se(self.bn2(self.conv2(y)))
    return self.act(y + self.downsample(x))


class Bottleneck(Residual):
  """1x1, 3x3 and 1x1 convolutions, the stride on the 3x3, torchvision's names."""

  expansion = 4

  def __init__(self, inputs: int, width: int, stride: int, options: Options) -> None:
    super().__init__(inputs, 4 * width, stride, options)
    inner = options.inner(width)
    self.conv1, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
    self.conv2, self.bn2 = conv(inner, inner, 3, stride, options.groups), nn.BatchNorm2d(inner)
    self.conv3, self.bn3 = conv(inner, 4 * width, 1), nn.BatchNorm2d(4 * width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.act(self.bn1(self.conv1(x)))
    y = self.act(self.bn2(self.conv2(y)))
    y = self.se(self.bn3(self.conv3(y)))
    return self.act(y + self.downsample(x))


class PreactBasic(Residual):
  """Two 3x3 convolutions, each after a norm and an activation; named like ``Basic``."""

  expansion = 1
  preact = True

  def __init__(self, inputs: int, width: int, stride: int, options: Options) -> None:
    super().__init__(inputs, width, stride, options)
    self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, width, 3, stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    first = self.act(self.bn1(x))
    y = self.conv2(self.act(self.bn2(self.conv1(first))))
    return self.se(y) + (self.downsample(first) if self.reshapes else x)


class PreactBottleneck(Residual):
  """1x1, 3x3 and 1x1 convolutions, each after a norm and an activation; named like ``Bottleneck``."""

  expansion = 4
  preact = True

  def __init__(self, inputs: int, width: int, stride: int, options: Options) -> None:
    super().__init__(inputs, 4 * width, stride, options)
    inner = options.inner(width)
    self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, inner, 1)
    self.bn2, self.conv2 = nn.BatchNorm2d(inner), conv(inner, inner, 3, stride, options.groups)
    self.bn3, self.conv3 = nn.BatchNorm2d(inner), conv(inner, 4 * width, 1)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    first = self.act(self.bn1(x))
    y = self.conv2(self.act(self.bn2(self.conv1(first))))
    y = self.conv3(self.act(self.bn3(y)))
    return self.se(y) + (self.downsample(first) if self.reshapes else x)


def deep_stem(channels: int, width: int, act: str) -> nn.Sequential:
  """Return ResNet-D's three 3x3 convolutions without their last norm, timm's names."""
  layer = {'relu': nn.ReLU, 'silu': nn.SiLU, 'gelu': nn.GELU, 'leaky_relu': nn.LeakyReLU}[act]
  half = width // 2
  return nn.Sequential(
    *(conv(channels, half, 3, 2), nn.BatchNorm2d(half), layer()),
    *(conv(half, half, 3), nn.BatchNorm2d(half), layer()),
    conv(half, width, 3),
  )


class ResNet(nn.Module):
  """Network of any stages, torchvision's names, and ``norm`` after pre-activation blocks.

  ``stages`` returns what comes out of each stage.

  Args:
    block: one of the classes above.
    sizes: blocks in each stage.
    num_classes: width of the logits.
    stem: ``'imagenet'``, ``'cifar'`` or ``'deep'``.
    widths: of the stages, before the block's expansion.
    stem_width: channels of the stem; the first of ``widths`` where not given.
    channels: of the images.
    **options: of ``Options``.
  """

  def __init__(
    self,
    block: Any,
    sizes: tuple[int, ...],
    num_classes: int,
    stem: str,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    stem_width: int | None = None,
    channels: int = 3,
    **options: Any,
  ) -> None:
    super().__init__()
    given = Options(**options)
    self.act, self.preact = given.activate, block.preact
    inputs = stem_width or widths[0]
    self.conv1: nn.Module = {
      'imagenet': lambda: conv(channels, inputs, 7, 2),
      'cifar': lambda: conv(channels, inputs, 3),
      'deep': lambda: deep_stem(channels, inputs, given.act),
    }[stem]()
    self.bn1 = nn.Identity() if self.preact else nn.BatchNorm2d(inputs)
    self.maxpool = nn.Identity() if stem == 'cifar' else nn.MaxPool2d(3, 2, padding=1)
    for i, (size, width) in enumerate(zip(sizes, widths, strict=True)):
      blocks = []
      for j in range(size):
        blocks.append(block(inputs, width, 2 if i > 0 and j == 0 else 1, given))
        inputs = width * block.expansion
      setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
    self.depth = len(sizes)
    self.norm = nn.BatchNorm2d(inputs) if self.preact else nn.Identity()
    self.fc = nn.Linear(inputs, num_classes)

  def stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = self.conv1(x)
    x = x if self.preact else self.act(self.bn1(x))
    out = {'stem': self.maxpool(x)}
    x = out['stem']
    for i in range(1, self.depth + 1):
      x = out[f'stage{i}'] = getattr(self, f'layer{i}')(x)
    if self.preact:
      out[f'stage{self.depth}'] = self.act(self.norm(x))
    return out

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.stages(x)[f'stage{self.depth}'].mean(dim=(2, 3)))


class OptionA(nn.Module):
  """Every other pixel, and zero channels on both sides: the shortcut without parameters, where widths double."""

  def __init__(self, outputs: int) -> None:
    super().__init__()
    self.side = outputs // 4

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))


class ThinBlock(nn.Module):
  """Two 3x3 convolutions, akamaster's names."""

  def __init__(self, inputs: int, width: int, stride: int, option: str) -> None:
    super().__init__()
    self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
    self.shortcut: nn.Module = nn.Identity()
    if stride != 1:
      self.shortcut = OptionA(width) if option == 'A' else projection(inputs, width, stride)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    return F.relu(y + self.shortcut(x))


class ThinResNet(nn.Module):
  """CIFAR network of three stages of 16, 32 and 64 channels; ``stages`` returns what comes out of each."""

  def __init__(self, depth: int, num_classes: int, option: str) -> None:
    super().__init__()
    self.conv1, self.bn1 = conv(3, 16, 3), nn.BatchNorm2d(16)
    rest = (depth - 2) // 6 - 1
    self.layer1 = nn.Sequential(*(ThinBlock(16, 16, 1, option) for _ in range(rest + 1)))
    self.layer2, self.layer3 = (
      nn.Sequential(
        ThinBlock(width // 2, width, 2, option),
        *(ThinBlock(width, width, 1, option) for _ in range(rest)),
      )
      for width in (32, 64)
    )
    self.linear = nn.Linear(64, num_classes)

  def stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
    out = {'stem': F.relu(self.bn1(self.conv1(x)))}
    out['stage1'] = self.layer1(out['stem'])
    out['stage2'] = self.layer2(out['stage1'])
    out['stage3'] = self.layer3(out['stage2'])
    return out

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.linear(self.stages(x)['stage3'].mean(dim=(2, 3)))


def create(
  name: str,
  num_classes: int = 10,
  stem: Literal['imagenet', 'cifar', 'deep'] = 'imagenet',
  option: Literal['A', 'B'] = 'A',
) -> nn.Module:
  """Return the torch network called ``name``.

  Args:
    name: as in ``jaxres.models``.
    num_classes: width of the logits.
    stem: of the ImageNet networks; the thin and the wide ones have one stem, and resnet50d is published with 'deep'.
    option: shortcut of the thin post-activation networks where the shape changes; the others have their published one.
  """
  if name in THIN:
    return ThinResNet(int(name.removeprefix('resnet')), num_classes, option)
  if name in WIDE:
    depth, factor = WIDE[name]
    widths = (16 * factor, 32 * factor, 64 * factor)
    return ResNet(PreactBasic, ((depth - 4) // 6,) * 3, num_classes, 'cifar', widths, stem_width=16)
  if name.startswith('preact_') and int(name.removeprefix('preact_resnet')) in PREACT_THIN:
    depth = int(name.removeprefix('preact_resnet'))
    block, layers, shortcut = (PreactBasic, 6, 'pad') if depth < 164 else (PreactBottleneck, 9, 'projection')
    return ResNet(block, ((depth - 2) // layers,) * 3, num_classes, 'cifar', (16, 32, 64), shortcut=shortcut)
  block, sizes, options = {
    'resnet18': (Basic, (2, 2, 2, 2), {}),
    'resnet34': (Basic, (3, 4, 6, 3), {}),
    'resnet50': (Bottleneck, (3, 4, 6, 3), {}),
    'resnet101': (Bottleneck, (3, 4, 23, 3), {}),
    'resnet152': (Bottleneck, (3, 8, 36, 3), {}),
    'resnet50d': (Bottleneck, (3, 4, 6, 3), {'shortcut': 'average'}),
    'resnext50_32x4d': (Bottleneck, (3, 4, 6, 3), {'groups': 32, 'width_per_group': 4}),
    'resnext101_32x8d': (Bottleneck, (3, 4, 23, 3), {'groups': 32, 'width_per_group': 8}),
    'wide_resnet50_2': (Bottleneck, (3, 4, 6, 3), {'width_per_group': 128}),
    'wide_resnet101_2': (Bottleneck, (3, 4, 23, 3), {'width_per_group': 128}),
    'seresnet18': (Basic, (2, 2, 2, 2), {'se': True}),
    'seresnet50': (Bottleneck, (3, 4, 6, 3), {'se': True}),
    'preact_resnet18': (PreactBasic, (2, 2, 2, 2), {}),
    'preact_resnet50': (PreactBottleneck, (3, 4, 6, 3), {}),
  }[name]
  return ResNet(block, sizes, num_classes, stem, **options)


def to_torch(tree: Any, thin: bool, average: bool = False) -> dict[str, torch.Tensor]:
  """Return ``in_torchs_layout`` of ``params`` or ``batch_stats`` as tensors."""
  return {name: torch.tensor(leaf) for name, leaf in in_torchs_layout(tree, thin, average).items()}


def averages(net: nn.Module) -> bool:
  """Return whether the shortcuts of ``net`` start with a pool."""
  return any(isinstance(module, nn.AvgPool2d) for module in net.modules())


def load(net: nn.Module, variables: Mapping[str, Any]) -> nn.Module:
  """Copy ``variables`` of jaxres into ``net``: every tensor of it, and nothing else, or raise."""
  names = {'thin': isinstance(net, ThinResNet), 'average': averages(net)}
  state = to_torch(variables['params'], **names) | to_torch(variables['batch_stats'], **names)
  counters = {k: v for k, v in net.state_dict().items() if k.endswith('num_batches_tracked')}
  net.load_state_dict(state | counters, strict=True)
  return net
