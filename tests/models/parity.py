"""To make variables cheaply, and to compare."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def flat(tree: Any) -> dict[str, Any]:
  """Return the leaves of ``tree`` by path, such as ``params/stage1/block0/conv1/kernel``."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def count(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def draw(shapes: Any, seed: int = 0) -> Any:
  """Return random variables of these shapes by NumPy: to compile JAX's draws takes many seconds.

  Scales and variances are 0.5 to 1, kernels normal with He's deviation, the rest normal with 0.1.
  """
  rng = np.random.default_rng(seed)

  def leaf(path: tuple[Any, ...], like: Any) -> np.ndarray:
    if path[-1].key in ('scale', 'var'):
      return rng.uniform(0.5, 1, like.shape).astype(like.dtype)
    deviation = np.sqrt(2 / np.prod(like.shape[:-1])) if path[-1].key == 'kernel' else 0.1
    return (deviation * rng.standard_normal(like.shape)).astype(like.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def assert_near(actual: Any, expected: Any, tolerance: float, what: str = '') -> None:
  """Assert that the largest difference is less than ``tolerance`` of the largest expected value."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape, what
  error = np.abs(actual - expected).max() / np.abs(expected).max()
  assert error < tolerance, f'{what}: relative error {error:.1e}'


def assert_alive(logits: np.ndarray) -> None:
  """Assert that the logits depend on the image: constants would agree whatever came before them."""
  assert logits.std(axis=0).max() > 0.02 * np.abs(logits).max()


def nchw(array: np.ndarray) -> Any:
  import torch

  return torch.tensor(array.transpose(0, 3, 1, 2).copy())


def with_statistics(net: Any, run: Callable[[], Any], before: Mapping[str, np.ndarray]) -> tuple[Any, dict[str, Any]]:
  """Return what ``run`` returns, and the statistics of ``net`` after it, by name, with flax's variance.

  Torch adds a tenth of the unbiased variance to nine tenths of the old one, flax of the biased.

  Args:
    net: a torch network.
    run: that has ``net`` work once in training mode.
    before: the statistics before that, by torch's names.
  """
  import torch

  counts: dict[str, int] = {}  # how many values each norm takes the mean of
  for name, module in net.named_modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.register_forward_hook(
        lambda _, args, __, name=name: counts.update({name: args[0].numel() // args[0].shape[1]})
      )
  result = run()
  after = {name: value.numpy() for name, value in net.state_dict().items()}
  statistics = {}
  for norm, count in counts.items():
    mean, var = f'{norm}.running_mean', f'{norm}.running_var'
    kept = 0.9 * before[var]
    statistics[mean], statistics[var] = after[mean], kept + (after[var] - kept) * (count - 1) / count
  return result, statistics


def torch_name(path: str, thin: bool, average: bool = False) -> str:
  """Return the torch name of the parameter or statistic at ``path`` of jaxres.

  Args:
    path: such as ``stage1/block0/conv1/kernel``.
    thin: the names are akamaster's, not torchvision's.
    average: a pool is the first layer of a shortcut.
  """
  shortcut = 'shortcut' if thin else 'downsample'
  for pattern, name in (
    (r'^stem/conv/', 'conv1.'),
    (r'^stem/bn3?/', 'bn1.'),
    (r'^stem/conv1/', 'conv1.0.'),
    (r'^stem/bn1/', 'conv1.1.'),
    (r'^stem/conv2/', 'conv1.3.'),
    (r'^stem/bn2/', 'conv1.4.'),
    (r'^stem/conv3/', 'conv1.6.'),
    (r'se/reduce/', 'se.fc1.'),
    (r'se/expand/', 'se.fc2.'),
    (r'^stage(\d+)/block(\d+)/', r'layer\1.\2.'),
    (r'shortcut/conv/', f'{shortcut}.{int(average)}.'),
    (r'shortcut/bn/', f'{shortcut}.{1 + average}.'),
    (r'^head/fc/', 'linear.' if thin else 'fc.'),
    (r'(kernel|scale)$', 'weight'),
    (r'(mean|var)$', r'running_\1'),
  ):
    path = re.sub(pattern, name, path)
  return path.replace('/', '.')


def in_torchs_layout(tree: Any, thin: bool, average: bool = False) -> dict[str, np.ndarray]:
  """Return ``params``, ``batch_stats`` or gradients of jaxres under torch's names and in torch's layout.

  Args:
    tree: one collection; convolutions ``[H, W, in, out]``, dense layers ``[in, out]``.
    thin: the names are akamaster's, not torchvision's.
    average: a pool is the first layer of a shortcut.

  Returns:
    Copies; convolutions ``[out, in, H, W]``, dense layers ``[out, in]``.
  """
  axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
  return {
    torch_name(path, thin, average): np.array(leaf).transpose(axes[leaf.ndim]).copy()
    for path, leaf in flat(tree).items()
  }


def random_variables(model: Any, seed: int = 0, size: int = 32, channels: int = 3) -> Any:
  """Return random variables of ``model`` whose activations stay alive at any depth.

  Nothing is at its initial value: a scale is 0.4 to 0.8 (residual sums then grow by a few per cent a block), a
  running variance 0.5 to 2, a bias or running mean is normal of deviation 0.1.

  Args:
    model: a jaxres model.
    seed: of NumPy's generator.
    size: of the images that the model is initialized on.
    channels: of these images.
  """
  rng = np.random.default_rng(seed)
  images = jnp.zeros((1, size, size, channels))
  shapes = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))

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


def random_images(batch: int, height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
  """Return float32 ``[batch, height, width, channels]`` whose images differ in color and contrast, not in noise alone.

  Pooling averages noise away, and logits that are the same for each image would hide most errors.
  """
  rng = np.random.default_rng(seed)
  color = rng.normal(0, 1, (batch, 1, 1, channels))
  contrast = rng.uniform(0.5, 1.5, (batch, 1, 1, 1))
  noise = rng.normal(0, 1, (batch, height, width, channels))
  return (color + contrast * noise).astype(np.float32)


def randomize(net, torch) -> None:
  """Draw every parameter and statistic so that activations stay alive at any depth."""
  generator = torch.Generator().manual_seed(0)
  draw = lambda like, low, high: torch.rand(like.shape, generator=generator) * (high - low) + low
  with torch.no_grad():
    for module in net.modules():
      if isinstance(module, torch.nn.BatchNorm2d):
        module.weight.copy_(draw(module.weight, 0.4, 0.8))
        module.bias.copy_(draw(module.bias, -0.2, 0.2))
        module.running_mean.copy_(draw(module.running_mean, -0.2, 0.2))
        module.running_var.copy_(draw(module.running_var, 0.5, 2))
        module.num_batches_tracked.fill_(int(torch.randint(1, 1 << 40, (), generator=generator)))
      elif isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
        torch.nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, torch.nn.Linear):
          module.bias.zero_()  # its first values are of torch's global seed, and so of the tests before


def make_colored_images(size: int) -> np.ndarray:
  rng = np.random.default_rng(1)
  color, noise = rng.normal(0, 1, (2, 1, 1, 3)), rng.normal(0, 1, (2, size, size, 3))
  return (color + noise * np.array([0.6, 1.4]).reshape(2, 1, 1, 1)).astype(np.float32)
