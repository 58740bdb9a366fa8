"""ResNets in plain torch to compare jaxres with, and the copy of jaxres variables into them.

They are written from the papers, with nothing of jaxres in them. Parameters are named as public weights name them:
torchvision's names (``conv1``, ``layer1.0.downsample.0``, ``fc``) for the ImageNet networks, those of
akamaster/pytorch_resnet_cifar10 (``conv1``, ``layer2.0.shortcut.0``, ``linear``) for the thin CIFAR networks.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

THIN = ('resnet20', 'resnet32', 'resnet44', 'resnet56', 'resnet110')


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
  """Return a convolution without bias that keeps the image's size at stride 1."""
  return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
  """Return the shortcut with parameters (option B)."""
  return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Basic(nn.Module):
  """Two 3x3 convolutions, torchvision's names."""

  expansion = 1

  def __init__(self, inputs: int, width: int, stride: int) -> None:
    super().__init__()
    self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
    reshapes = stride != 1 or inputs != width
    self.downsample = projection(inputs, width, stride) if reshapes else nn.Identity()

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions, the stride on the 3x3, torchvision's names."""

  expansion = 4

  def __init__(self, inputs: int, width: int, stride: int) -> None:
    super().__init__()
    outputs = 4 * width
    self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
    self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
    reshapes = stride != 1 or inputs != outputs
    self.downsample = projection(inputs, outputs, stride) if reshapes else nn.Identity()

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(self.bn1(self.conv1(x)))
    y = F.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return F.relu(y + self.downsample(x))


class ResNet(nn.Module):
  """ImageNet network of four stages; ``stages`` returns what comes out of each."""

  def __init__(self, block: Any, sizes: tuple[int, ...], num_classes: int, stem: str) -> None:
    super().__init__()
    self.conv1 = conv(3, 64, 7, 2) if stem == 'imagenet' else conv(3, 64, 3)
    self.bn1 = nn.BatchNorm2d(64)
    self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == 'imagenet' else nn.Identity()
    inputs = 64
    for i, size in enumerate(sizes):
      blocks = []
      for j in range(size):
        blocks.append(block(inputs, 64 * 2**i, 2 if i > 0 and j == 0 else 1))
        inputs = 64 * 2**i * block.expansion
      setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
    self.fc = nn.Linear(inputs, num_classes)

  def stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
    out = {'stem': self.maxpool(F.relu(self.bn1(self.conv1(x))))}
    out['stage1'] = self.layer1(out['stem'])
    out['stage2'] = self.layer2(out['stage1'])
    out['stage3'] = self.layer3(out['stage2'])
    out['stage4'] = self.layer4(out['stage3'])
    return out

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.fc(self.stages(x)['stage4'].mean(dim=(2, 3)))


class OptionA(nn.Module):
  """Every other pixel, and zero channels on both sides: the shortcut without parameters."""

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
  stem: Literal['imagenet', 'cifar'] = 'imagenet',
  option: Literal['A', 'B'] = 'A',
) -> nn.Module:
  """Return the torch network called ``name``.

  Args:
    name: as in ``jaxres.models``.
    num_classes: width of the logits.
    stem: of the ImageNet networks; the thin ones have one stem.
    option: shortcut of the thin networks where the shape changes; the ImageNet ones have option B.
  """
  if name in THIN:
    return ThinResNet(int(name.removeprefix('resnet')), num_classes, option)
  block, sizes = {
    'resnet18': (Basic, (2, 2, 2, 2)),
    'resnet34': (Basic, (3, 4, 6, 3)),
    'resnet50': (Bottleneck, (3, 4, 6, 3)),
    'resnet101': (Bottleneck, (3, 4, 23, 3)),
    'resnet152': (Bottleneck, (3, 8, 36, 3)),
  }[name]
  return ResNet(block, sizes, num_classes, stem)


def paths(tree: Any) -> dict[str, np.ndarray]:
  """Return the leaves of ``tree`` by path, such as ``stage1/block0/conv1/kernel``."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf) for path, leaf in leaves}


def torch_name(path: str, thin: bool) -> str:
  """Return the torch name of the parameter or statistic at ``path`` of jaxres."""
  shortcut = 'shortcut' if thin else 'downsample'
  for pattern, name in (
    (r'^stem/conv/', 'conv1.'),
    (r'^stem/bn/', 'bn1.'),
    (r'^stage(\d+)/block(\d+)/', r'layer\1.\2.'),
    (r'shortcut/conv/', f'{shortcut}.0.'),
    (r'shortcut/bn/', f'{shortcut}.1.'),
    (r'^head/fc/', 'linear.' if thin else 'fc.'),
    (r'(kernel|scale)$', 'weight'),
    (r'(mean|var)$', r'running_\1'),
  ):
    path = re.sub(pattern, name, path)
  return path.replace('/', '.')


def to_torch(tree: Any, thin: bool) -> dict[str, torch.Tensor]:
  """Return ``params``, ``batch_stats`` or gradients of jaxres under torch's names and in torch's layout.

  Args:
    tree: one collection; convolutions ``[H, W, in, out]``, dense layers ``[in, out]``.
    thin: the names are akamaster's, not torchvision's.

  Returns:
    Copies; convolutions ``[out, in, H, W]``, dense layers ``[out, in]``.
  """
  axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
  return {
    torch_name(path, thin): torch.tensor(leaf.transpose(axes[leaf.ndim]).copy()) for path, leaf in paths(tree).items()
  }


def load(net: nn.Module, variables: Mapping[str, Any]) -> nn.Module:
  """Copy ``variables`` of jaxres into ``net``: every tensor of it, and nothing else, or raise."""
  thin = isinstance(net, ThinResNet)
  state = to_torch(variables['params'], thin) | to_torch(variables['batch_stats'], thin)
  counters = {k: v for k, v in net.state_dict().items() if k.endswith('num_batches_tracked')}
  net.load_state_dict(state | counters, strict=True)
  return net


def random_variables(model: Any, seed: int = 0, size: int = 32) -> Any:
  """Return random variables of ``model`` whose activations stay alive at any depth.

  Nothing is at its initial value: a scale is 0.4 to 0.8 (residual sums then grow by a few per cent a block), a
  running variance 0.5 to 2, a bias or running mean is normal of deviation 0.1.

  Args:
    model: a jaxres model.
    seed: of NumPy's generator.
    size: of the images that the model is initialised on.
  """
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, size, size, 3)), train=False), jax.random.key(0))

  def leaf(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
    match path[-1].key:
      case 'scale':
        value = rng.uniform(0.4, 0.8, like.shape)
      case 'var':
        value = rng.uniform(0.5, 2, like.shape)
      case name:
        deviation = np.sqrt(2 / np.prod(like.shape[:-1])) if name == 'kernel' else 0.1
        value = deviation * rng.standard_normal(like.shape, np.float32)
    return jnp.asarray(value, like.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def random_images(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
  """Return float32 ``[batch, height, width, 3]`` whose images differ in colour and contrast, not in noise alone.

  Pooling averages noise away, and logits that are the same for each image would hide most errors.
  """
  rng = np.random.default_rng(seed)
  colour = rng.normal(0, 1, (batch, 1, 1, 3))
  contrast = rng.uniform(0.5, 1.5, (batch, 1, 1, 1))
  noise = rng.normal(0, 1, (batch, height, width, 3))
  return (colour + contrast * noise).astype(np.float32)
