"""A network's activations by torch, from nothing but a state dict and torch's own functions: to compare jaxres with."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxres.models import ResNet
from jaxres.runtime.compiler import jit
from jaxres.weights.names import Dialect
from jaxres.weights.network import Pretrained


def torch_activations(
  state_dict: Mapping[str, np.ndarray], model: ResNet, dialect: Dialect, images: np.ndarray
) -> dict[str, np.ndarray]:
  """Return what torch computes in evaluation mode: the stem, each stage and the logits.

  No module of jaxres is used, and of ``model`` only what tensors do not show: the stem, the activation, the groups. Of
  these it says nothing: a network that is taken for another one is that for torch too.

  Args:
    state_dict: by torch's names.
    model: the network.
    dialect: of the names.
    images: float32 ``[B, H, W, C]``.

  Returns:
    ``{'stem': ..., 'stage1': ..., ..., 'logits': [B, K]}`` of float32, images ``[B, h, w, c]``.
  """
  import torch

  with torch.inference_mode():
    network = _Network(state_dict, model, dialect)
    activations = network.run(torch.tensor(images.transpose(0, 3, 1, 2).copy()))
  return {
    name: (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).contiguous().numpy()
    for name, value in activations.items()
  }


class _Network:
  """The forward pass over tensors by name."""

  def __init__(self, state_dict: Mapping[str, np.ndarray], model: ResNet, dialect: Dialect) -> None:
    import torch

    self.torch, self.functional = torch, torch.nn.functional
    self.tensors = {name: torch.tensor(value) for name, value in state_dict.items()}
    self.model, self.dialect, self.preact = model, dialect, 'bn1.weight' not in state_dict

  def conv(self, x: Any, name: str, stride: int = 1, groups: int = 1) -> Any:
    kernel, bias = self.tensors[f'{name}.weight'], self.tensors.get(f'{name}.bias')
    return self.functional.conv2d(x, kernel, bias, stride, kernel.shape[-1] // 2, 1, groups)

  def norm(self, x: Any, name: str) -> Any:
    mean, var, weight, bias = (
      self.tensors[f'{name}.{leaf}'] for leaf in ('running_mean', 'running_var', 'weight', 'bias')
    )
    return self.functional.batch_norm(x, mean, var, weight, bias, eps=1e-5)

  def act(self, x: Any) -> Any:
    return getattr(self.functional, self.model.act)(x)

  def run(self, x: Any) -> dict[str, Any]:
    """Return the activations of the stem and of each stage, and the logits."""
    if self.model.stem_type == 'deep':
      x = self.act(self.norm(self.conv(x, 'conv1.0', 2), 'conv1.1'))
      x = self.act(self.norm(self.conv(x, 'conv1.3'), 'conv1.4'))
      x = self.conv(x, 'conv1.6')
    else:
      x = self.conv(x, 'conv1', 2 if self.model.stem_type == 'imagenet' else 1)
    x = x if self.preact else self.act(self.norm(x, 'bn1'))
    if self.model.stem_type != 'cifar':  # 'cifar_pool' too
      x = self.functional.max_pool2d(x, 3, 2, 1)
    stages = {'stem': x}
    stage = 0
    while f'layer{stage + 1}.0.conv1.weight' in self.tensors:
      stage, block = stage + 1, 0
      while f'layer{stage}.{block}.conv1.weight' in self.tensors:
        x = self.block(x, f'layer{stage}.{block}', 2 if stage > 1 and block == 0 else 1)
        block += 1
      stages[f'stage{stage}'] = x
    if self.preact:
      x = stages[f'stage{stage}'] = self.act(self.norm(x, 'norm'))
    head = self.dialect.head
    weight, bias = self.tensors[f'{head}.weight'], self.tensors[f'{head}.bias']
    return stages | {'logits': self.functional.linear(x.mean((2, 3)), weight, bias)}

  def block(self, x: Any, name: str, stride: int) -> Any:
    """Return what one residual block makes of ``x``."""
    convs = [c for c in ('conv1', 'conv2', 'conv3') if f'{name}.{c}.weight' in self.tensors]
    strided = 'conv2' if len(convs) == 3 else 'conv1'
    y, source = x, x
    for i, c in enumerate(convs):
      norm = f'{name}.bn{i + 1}'
      if self.preact:
        y = self.act(self.norm(y, norm))
        source = y if i == 0 and self.reshapes(x, name, convs[-1], stride) else source
      groups = self.model.groups if self.tensors[f'{name}.{c}.weight'].shape[-1] == 3 else 1
      y = self.conv(y, f'{name}.{c}', stride if c == strided else 1, groups)
      if not self.preact:
        y = self.norm(y, norm) if c == convs[-1] else self.act(self.norm(y, norm))
    if f'{name}.se.fc1.weight' in self.tensors:
      gate = self.functional.relu(self.conv(y.mean((2, 3), keepdim=True), f'{name}.se.fc1'))
      y = y * self.torch.sigmoid(self.conv(gate, f'{name}.se.fc2'))
    y = y + self.shortcut(source, f'{name}.{self.dialect.shortcut}', y.shape[1], stride)
    return y if self.preact else self.act(y)

  def reshapes(self, x: Any, name: str, last: str, stride: int) -> bool:
    return stride != 1 or x.shape[1] != self.tensors[f'{name}.{last}.weight'].shape[0]

  def shortcut(self, x: Any, name: str, channels: int, stride: int) -> Any:
    """Return ``x`` as the block adds it: projected by what tensors there are, padded where there are none."""
    first = 1 if self.dialect.average else 0
    if f'{name}.{first}.weight' in self.tensors:
      if first and stride == 2:
        x = self.functional.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
      x = self.conv(x, f'{name}.{first}', 1 if first else stride)
      return x if self.preact else self.norm(x, f'{name}.{first + 1}')
    missing = channels - x.shape[1]
    x = x[:, :, ::stride, ::stride]
    return self.functional.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))


TOLERANCE = 1e-4  # of the largest value of a stage, in float32
SIZE = 64  # of the images that --check compares on


def check(pretrained: Pretrained, seed: int = 0) -> dict[str, float]:
  """Return how far jaxres is from torch at the stem, after each stage and in the logits.

  Args:
    pretrained: a network; ``torch`` must be installed.
    seed: of two random images.

  Returns:
    The largest difference as a fraction of the largest value of torch, by stage.
  """
  images = np.random.default_rng(seed).standard_normal((2, SIZE, SIZE, pretrained.channels), np.float32)
  expected = torch_activations(pretrained.state_dict(), pretrained.model(), pretrained.dialect, images)
  model = pretrained.model()

  def run(variables: Any) -> dict[str, jax.Array]:
    stages: Any = model.apply(variables, images, train=False, method='features')
    return {**stages, 'logits': model.apply(variables, stages, method='head')}

  with jax.default_matmul_precision('highest'):
    ours = jit(run)(pretrained.variables)
  return {
    name: float(np.abs(np.asarray(ours[name]) - value).max() / max(np.abs(value).max(), 1e-30))
    for name, value in expected.items()
  }
