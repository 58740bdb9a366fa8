"""The most images a second that a training step could do: arithmetic of its layers and the device's two rates.

python benchmarks/limit.py --model resnet18 --stem cifar --batch_size 512 --dtype bfloat16

A layer with a kernel takes its FLOPs or its bytes (input, kernel, output), whichever takes longer, three times:
forward, gradient of the input, gradient of the kernel. Each BatchNorm with its ReLU adds ``PASSES`` passes over its
activation that overlap with nothing: written and read for the statistics, the normalization and their gradients. The
optimizer, the input and the shortcuts' sums count nothing; a program that fuses passes can go beyond it.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness, sides
from jaxres import models
from jaxres.runtime import limits

PASSES = 8
KNOWN = {('H100', 'bfloat16'): (800e12, 3.0e12)}  # FLOP/s of a matrix product, bytes/s of a copy: measured on one


class Layers(NamedTuple):
  """What a forward pass of one batch goes through."""

  kernels: list[tuple[int, int]]  # multiply-adds, elements read and written; of each convolution and matrix
  norms: list[int]  # elements of the activation of each BatchNorm

  @property
  def macs(self) -> int:
    """Multiply-adds of all layers."""
    return sum(macs for macs, _ in self.kernels)


def layers(model: nn.Module, batch_size: int, image_size: int) -> Layers:
  """Return the layers of ``model``, found by what they hold: a kernel, or a running mean."""
  collected = Layers([], [])

  def look(next_call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    out = next_call(*args, **kwargs)
    variables = context.module.variables
    kernel = variables.get('params', {}).get('kernel')
    if context.method_name == '__call__' and hasattr(kernel, 'shape'):
      elements = args[0].size + kernel.size + out.size
      collected.kernels.append((out.size * math.prod(kernel.shape[:-1]), elements))
    if context.method_name == '__call__' and hasattr(variables.get('batch_stats', {}).get('mean'), 'shape'):
      collected.norms.append(out.size)
    return out

  images = jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.float32)
  with nn.intercept_methods(look):
    jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
  return collected


def min_seconds(network: Layers, itemsize: int, flops: float, bandwidth: float) -> float:
  """Return the seconds of a training step of ``network`` on a device of ``flops`` FLOP/s and ``bandwidth`` bytes/s."""
  kernels = sum(max(2 * macs / flops, itemsize * elements / bandwidth) for macs, elements in network.kernels)
  return 3 * kernels + PASSES * itemsize * sum(network.norms) / bandwidth


def rates(dtype: str) -> tuple[float, float]:
  """Return FLOP/s and bytes/s of the device: of ``KNOWN``, else measured here and now."""
  device = jax.devices()[0]
  for (name, known_dtype), pair in KNOWN.items():
    if name in device.device_kind and dtype == known_dtype:
      return pair
  return limits.measure(device.platform, jnp.dtype(dtype))


def facts(args: argparse.Namespace) -> Mapping[str, float]:
  """Return the limit of the training step that ``args`` of ``sides`` describes, and what it is made of."""
  model = models.create(args.model, num_classes=args.classes, stem=args.stem, dtype=args.dtype)
  network = layers(model, args.batch_size, args.image_size)
  flops, bandwidth = rates(args.dtype)
  seconds = min_seconds(network, jnp.dtype(args.dtype).itemsize, flops, bandwidth)
  return {
    'limit_images_per_s': args.batch_size / seconds,
    'gmac_per_image': network.macs / args.batch_size / 1e9,
    'device_tflop_per_s': flops / 1e12,
    'device_gb_per_s': bandwidth / 1e9,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  sides.add_arguments(parser)
  parser.add_argument('--out', help='a file that the JSON line is added to')
  args = sides.parse(parser)
  row = {'benchmark': 'limit'} | harness.round_facts(facts(args)) | sides.describe(args) | harness.machine()
  harness.report([row], args.out)


if __name__ == '__main__':
  main()
