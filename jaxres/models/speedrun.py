"""The kernel of the whitening stem: what decorrelates the patches of images (Page 2019; Jordan 2024, airbench)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxres.errors import InputError
from jaxres.models import blocks, stems
from jaxres.models.layers import conv_init
from jaxres.models.ops import DIMENSIONS, align_channels

EPSILON = 5e-4  # added to the eigenvalues: directions with no variance are not blown up


def whitening_kernel(images: np.ndarray) -> np.ndarray:
  """Return the 2x2 filters that whiten, and their negatives.

  Args:
    images: normalized, float ``[N, H, W, C]``; some hundred are enough.

  Returns:
    float32 ``[2, 2, C, 8 * C]``: the eigenvectors of the patches' second moments, those of the least eigenvalues first,
    over the roots of these.
  """
  x = np.asarray(images, np.float64)
  height, width, channels = x.shape[1:]
  corners = [x[:, i : height - 1 + i, j : width - 1 + j] for i in (0, 1) for j in (0, 1)]
  patches = np.stack(corners, axis=-2).reshape(-1, 4 * channels)
  values, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
  filters = (vectors / np.sqrt(values + EPSILON)).reshape(2, 2, channels, 4 * channels)
  return np.concatenate([filters, -filters], axis=-1).astype(np.float32)


def whiten(variables: dict[str, Any], images: np.ndarray) -> dict[str, Any]:
  """Return ``variables`` with the stem's kernel computed from ``images``.

  Args:
    variables: of a network with a ``WhiteningStem``.
    images: normalized, float ``[N, H, W, C]``.
  """
  conv = variables['params']['stem']['conv'] | {'kernel': whitening_kernel(images)}
  return variables | {'params': variables['params'] | {'stem': {'conv': conv}}}


class WhiteningStem(stems.Stem):
  """``FixedConv`` whose kernel decorrelates its inputs, and the activation (Page 2019; Jordan 2024, airbench).

  Maps ``[B, H, W, C]`` to ``[B, H - 1, W - 1, 8 * C]``: the filters of ``whitening_kernel``; ``width`` is
  not used. There is no norm.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return self.act(FixedConv(8 * x.shape[-1], name='conv')(x))


class FixedConv(nn.Module):
  """2x2 convolution, not padded, with a bias; only the bias is trained."""

  channels: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', conv_init, (2, 2, x.shape[-1], self.channels))
    bias = self.param('bias', nn.initializers.zeros, (self.channels,))
    kernel = jax.lax.stop_gradient(kernel).astype(x.dtype)
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', dimension_numbers=DIMENSIONS)
    return x + align_channels(bias.astype(x.dtype), x.ndim)


def partial_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
  """Return a kernel ``[K, K, C, C']`` whose first filters pass on the channels of the input.

  The others are uniform in ``+-1 / sqrt(K * K * C)``, as of ``torch.nn.Conv2d`` (Jordan 2024, airbench, section 3.2).

  Args:
    key: a PRNG key.
    shape: ``(K, K, C, C')``.
    dtype: of the kernel.
  """
  limit, middle = math.prod(shape[:3]) ** -0.5, shape[0] // 2
  kernel = jax.random.uniform(key, shape, dtype, -limit, limit)
  same = jnp.arange(min(shape[2:]))
  return kernel.at[..., same].set(0.0).at[middle, middle, same, same].set(1.0)


def max_pool(x: jax.Array) -> jax.Array:
  """Return the maxima of squares of 2 by 2, ``[B, H // 2, W // 2, C]``.

  As ``nn.max_pool``, but that its gradient is a selection, which XLA:CPU does many times as fast as a scatter.

  Raises:
    InputError: nothing would be left.
  """
  height, width = (size // 2 * 2 for size in x.shape[1:3])
  if not (height and width):
    raise InputError(
      'model.name', 'the images are too small for a network that halves them so often', fix='use another'
    )
  rows = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
  return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


class PoolBlock(blocks.Block):
  """3x3 convolution and max-pool, then a residual 3x3 convolution (Page 2019).

  Maps ``[B, H, W, C]`` to ``[B, H // 2, W // 2, width]``, in the first stage too.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = max_pool(self.conv(self.width, 3, kernel_init=partial_identity, name='conv1')(x))
    x = self.act(self.norm(name='bn1')(x))
    y = self.conv(self.width, 3, kernel_init=partial_identity, name='conv2')(x)
    return self.act(blocks.finish_branch(self, self.norm(name='bn2')(y)) + x)
