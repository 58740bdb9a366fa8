"""Networks as StableHLO, by jax.export: one program for CPU and CUDA, for any number of images.

It is a cache: such a file is read for some months by newer versions of JAX and some weeks by older ones
(https://docs.jax.dev/en/latest/export/export.html, "Compatibility guarantees"), so `jaxres export BUNDLE` makes it
again from the weights beside it.
"""

import pathlib
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from jaxres.errors import InputError
from jaxres.export import network as network_lib
from jaxres.export.network import Network

FILE = 'model.stablehlo'
# What JAX and flatbuffers, which checks nothing, raise of a file of another version or of bytes that are none.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, NotImplementedError, RuntimeError, struct.error)
PLATFORMS = ('cpu', 'cuda')


def make_program(network: Network) -> Any:
  """Return ``network``, its weights in it, as a program: uint8 ``[B, H, W, C]`` to logits and probabilities."""
  (batch,) = jax_export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.uint8)
  with jax.default_matmul_precision('highest'):
    return jax_export.export(jax.jit(network.answer), platforms=PLATFORMS)(images)


def read(path: pathlib.Path) -> Any:
  """Return the program in a file.

  Raises:
    InputError: this JAX does not read it.
  """
  try:
    return jax_export.deserialize(bytearray(path.read_bytes()))
  except UNREADABLE as error:
    reason = f'jax {jax.__version__} does not read it: {" ".join(str(error).split()):.160}'
    fix = f'`jaxres export {path.parent}` makes it again from the weights'
    raise InputError(path, reason, fix=fix) from None


def write(directory: pathlib.Path, network: Network) -> list[str]:
  """Write ``model.stablehlo``, read back and compared with jaxres, to ``directory``; return the names of the files.

  Raises:
    InputError: its logits are others.
  """
  path = directory / FILE
  path.write_bytes(make_program(network).serialize())
  images = network_lib.make_images(network)
  logits = np.asarray(read(path).call(jnp.asarray(images))[0])
  error = network_lib.relative_error(logits, network_lib.compute_answer(network, images)[0])
  if not error < network_lib.TOLERANCE:
    raise InputError(
      FILE, f'its logits differ from those of jaxres by {error:.1e} of the largest', fix='nothing was written'
    )
  return [FILE]
