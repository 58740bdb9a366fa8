"""Convolution and BatchNorm in the forms that XLA:CPU is fast at."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxres.models.ops import DIMENSIONS, Leaf, align_channels, batch_norm, conv
from jaxres.runtime.compiler import onednn_dtypes

MAX_BYTES = 2 << 20  # of a part of a batch, its inputs and gradients: they stay in the cache of a core
MIN_EXAMPLES = {'float32': 16}  # of a part: the channels of its convolution
MIN_EXAMPLES_ELSE = 32  # of two bytes a number


def wants_cpu_forms() -> bool:
  """Return whether hand-written gradients of layers are faster here: on XLA:CPU, of whatever jaxlib.

  They need no option. What they avoid, XLA's own weight gradient in a loop, was as slow on every jaxlib tried.
  """
  return jax.default_backend() == 'cpu'


def materialize(x: Float[Array, '*shape'], anchor: Float[Leaf, '...']) -> Float[Array, '*shape']:
  """Return ``x``, and make XLA:CPU write it, and its gradient, to memory here.

  XLA:CPU fuses the chain that computes a convolution's input into each transpose that a weight gradient reads it
  through, and so computes the chain back to the stem again, in a strided loop: more than half of the step of a thin
  ResNet. It drops ``optimization_barrier`` before it fuses, but it never repeats a division, so this divides by a one
  that it cannot fold. The values do not change; other backends get ``x`` as it is.

  Args:
    x: float array of any shape.
    anchor: any finite float array; its first element is where the one comes from.
  """
  if jax.default_backend() != 'cpu':
    return x
  one = 1.0 + 0.0 * jax.lax.stop_gradient(anchor).ravel()[0]
  return x / one.astype(x.dtype)  # its gradient is a division too


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_cpu(x: Float[Array, 'B H W C'], kernel: Float[Leaf, 'k k C D'], strides: int) -> Float[Array, 'B h w D']:
  """Return ``conv``, whose gradients are convolutions that XLA:CPU hands to its fast kernel, in a loop too.

  Args:
    x: float ``[B, H, W, C]``.
    kernel: float ``[K, K, C, C']``.
    strides: in both directions.

  Returns:
    float ``[B, ceil(H / strides), ceil(W / strides), C']``.
  """
  return conv(x, kernel, strides)


def _conv_forward(x: jax.Array, kernel: jax.Array, strides: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return conv(x, kernel, strides), (x, kernel)


def _conv_backward(strides: int, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = kept
  return input_gradient(g, kernel, strides, x.shape), kernel_gradient(x, g, strides, len(kernel))


def kernel_gradient(
  x: Float[Array, 'B H W C'], g: Float[Array, 'B h w D'], strides: int, size: int
) -> Float[Array, 'k k C D']:
  """Return the gradient of the kernel, ``[size, size, C, C']``: a convolution over the batch.

  Its form is that of Eigen or of oneDNN, whichever computes the convolutions of this dtype.

  Args:
    x: input of the convolution, ``[B, H, W, C]``.
    g: gradient of its output, ``[B, H', W', C']``.
    strides: of the convolution.
    size: side of the kernel.
  """
  padding = [
    (size // 2, size - size // 2 - width + (out - 1) * strides)
    for width, out in zip(x.shape[1:3], g.shape[1:3], strict=True)
  ]
  x, padding = _crop(x, padding)
  if x.dtype.name not in onednn_dtypes():
    return _kernel_gradient_in_2d(x, g, strides, padding)
  return _kernel_gradient_of_pixels(x, g, strides) if size == 1 else _kernel_gradient_in_3d(x, g, strides, padding)


def _kernel_gradient_in_2d(x: jax.Array, g: jax.Array, strides: int, padding: list[tuple[int, int]]) -> jax.Array:
  """Return ``kernel_gradient`` for Eigen: ``x`` is transposed to ``[C, H, W, B]`` and ``g`` to ``[H', W', B, C']``.

  XLA leaves that to the dimension numbers of the convolution, which its CPU compiler makes canonical at the top level
  of a program, and not inside a loop: there it takes more than a hundred times as long.
  """
  gradient = jax.lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    window_strides=(1, 1),
    padding=padding,
    rhs_dilation=(strides, strides),
    dimension_numbers=DIMENSIONS,
  )
  return gradient.transpose(1, 2, 0, 3)


def _kernel_gradient_in_3d(x: jax.Array, g: jax.Array, strides: int, padding: list[tuple[int, int]]) -> jax.Array:
  """Return ``kernel_gradient`` for oneDNN, which XLA hands forward convolutions alone, and no transposed result.

  The one image has the dimensions height, width and C, and the examples are its channels; the kernel is one deep. The
  batch goes through in parts, whose results are added up in float32.
  """
  parts = count_parts(x, g)

  def gradient_of_part(i: int) -> jax.Array:
    image, taps = _part(x, parts, i).transpose(1, 2, 3, 0)[None], _part(g, parts, i).transpose(1, 2, 0, 3)[:, :, None]
    names, dilation = ('NDHWC', 'DHWIO', 'NDHWC'), (strides, strides, 1)
    return jax.lax.conv_general_dilated(
      image, taps, (1, 1, 1), [*padding, (0, 0)], rhs_dilation=dilation, dimension_numbers=names
    )[0].astype(jnp.float32)

  return functools.reduce(jnp.add, map(gradient_of_part, range(parts))).astype(x.dtype)


def _kernel_gradient_of_pixels(x: jax.Array, g: jax.Array, strides: int) -> jax.Array:
  """Return ``kernel_gradient`` of a kernel of one pixel: a product of matrices."""
  pixels = (0, 1, 2)
  dimensions = ((pixels, pixels), ((), ()))
  product = jax.lax.dot_general(x[:, ::strides, ::strides], g, dimensions, preferred_element_type=jnp.float32)
  return product.astype(x.dtype)[None, None]


def _part(x: jax.Array, parts: int, i: int) -> jax.Array:
  """Return the examples ``i, i + parts, ...``: where a batch is split over devices, none of them leaves its device."""
  return x.reshape(-1, parts, *x.shape[1:])[:, i]


def count_parts(x: jax.Array, g: jax.Array) -> int:
  """Return in how many parts of equal size a batch goes through: the fewest of at most ``MAX_BYTES`` on a device.

  None is smaller than ``MIN_EXAMPLES`` there, unless the batch is.
  """
  devices = jax.device_count()
  min_examples = MIN_EXAMPLES.get(x.dtype.name, MIN_EXAMPLES_ELSE) * devices
  divisors = [parts for parts in range(1, len(x) // min_examples + 1) if len(x) % parts == 0] or [1]
  return next((parts for parts in divisors if x.nbytes + g.nbytes <= parts * devices * MAX_BYTES), divisors[-1])


def input_gradient(
  g: Float[Array, 'B h w D'], kernel: Float[Leaf, 'k k C D'], strides: int, shape: tuple[int, ...]
) -> Float[Array, 'B H W C']:
  """Return the gradient of the input, ``shape``.

  Of a strided convolution XLA fills ``g`` up with zeros first; here each of the ``strides ** 2`` phases of the result
  is a convolution with the taps of the kernel that meet no zero.

  Args:
    g: gradient of the output, ``[B, H', W', C']``.
    kernel: ``[K, K, C, C']``.
    strides: of the convolution.
    shape: of the input, ``(B, H, W, C)``.
  """
  phases = [[_phase(g, kernel, strides, row, column) for column in range(strides)] for row in range(strides)]
  if strides == 1:
    return phases[0][0]
  interleaved = jnp.stack([jnp.stack(line, axis=3) for line in phases], axis=2)  # [B, H', s, W', s, C]
  batch, height, _, width, *_ = interleaved.shape
  return interleaved.reshape(batch, height * strides, width * strides, -1)[:, : shape[1], : shape[2]]


def _phase(g: jax.Array, kernel: Leaf, strides: int, row: int, column: int) -> jax.Array:
  """Return the rows ``row, row + strides, ...`` and the columns ``column, ...`` of the input's gradient."""
  rows, row_padding = _taps(len(kernel), strides, row)
  columns, column_padding = _taps(len(kernel), strides, column)
  taps = jnp.asarray(kernel)[rows, columns][::-1, ::-1].transpose(0, 1, 3, 2)
  if 0 in taps.shape:
    return jnp.zeros((*g.shape[:3], taps.shape[-1]), g.dtype)
  g, padding = _crop(g, (row_padding, column_padding))
  return jax.lax.conv_general_dilated(g, taps, (1, 1), padding, dimension_numbers=DIMENSIONS)


def _crop(x: jax.Array, padding: Sequence[tuple[int, int]]) -> tuple[jax.Array, list[tuple[int, int]]]:
  """Return ``x`` without what negative padding takes away, and the padding that is left: oneDNN knows no negative one.

  Args:
    x: ``[B, H, W, C]``.
    padding: before and after the rows and the columns.
  """
  rows, columns = (
    slice(max(0, -before), size - max(0, -after)) for size, (before, after) in zip(x.shape[1:3], padding, strict=True)
  )
  return x[:, rows, columns], [(max(0, before), max(0, after)) for before, after in padding]


def _taps(size: int, strides: int, phase: int) -> tuple[slice, tuple[int, int]]:
  """Return the taps that reach pixels ``strides * j + phase`` from output pixels, and the padding of the latter.

  Tap ``k`` takes input ``strides * i - size // 2 + k`` to output ``i``, so it takes output ``j + after - t`` back to
  that pixel where ``k = first + strides * t``.
  """
  first, after = (phase + size // 2) % strides, (phase + size // 2) // strides
  count = len(range(first, size, strides))
  return slice(first, None, strides), (count - 1 - after, after)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm_cpu(
  x: Float[Array, '*B C'], scale: Float[Leaf, ' C'], bias: Float[Leaf, ' C'], epsilon: float
) -> tuple[Float[Array, '*B C'], Float[Array, ' C'], Float[Array, ' C']]:
  """Return ``batch_norm``, with its gradient in closed form; there is none of the mean and the variance.

  Args:
    x: float ``[..., C]``.
    scale: float32 ``[C]``.
    bias: float32 ``[C]``.
    epsilon: added to the variance.

  Returns:
    As ``batch_norm``.
  """
  return batch_norm(x, scale, bias, epsilon)


def _norm_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
  y, mean, var = batch_norm(x, scale, bias, epsilon)
  return (y, mean, var), (x, scale, mean, jax.lax.rsqrt(var + epsilon))


def _norm_backward(epsilon: float, kept: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Return the gradients (Ioffe and Szegedy 2015, section 3): two sums, one pass over ``x`` and ``g`` for each."""
  x, scale, mean, inverse = kept
  g = cotangents[0]
  axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
  align = lambda vector: align_channels(vector, x.ndim)
  normalized = (x.astype(jnp.float32) - align(mean)) * align(inverse)
  bias_gradient, scale_gradient = g.sum(axes), (g * normalized).sum(axes)
  centered = g - align(bias_gradient / count) - normalized * align(scale_gradient / count)
  x_gradient = align(scale * inverse) * centered
  return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


conv_cpu.defvjp(_conv_forward, _conv_backward)
batch_norm_cpu.defvjp(_norm_forward, _norm_backward)
