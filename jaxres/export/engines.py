"""What runs a bundle: by its format, a function of images to logits and probabilities."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxres.errors import InputError
from jaxres.export import bundle as writer
from jaxres.runtime.compiler import jit
from jaxres.weights import bundle
from jaxres.weights.onnx_file import make_session

Engine = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # uint8 [B, H, W, C] to float32 [B, K], twice
FILES = {'onnx': 'model.onnx', 'stablehlo': 'model.stablehlo'}


def list_engines(directory: pathlib.Path) -> list[str]:
  """Return what can run the bundle in ``directory``: ``'jaxres'``, from its weights, and its formats."""
  files = bundle.read_description(directory)['files']
  return ['jaxres', *(name for name, file in FILES.items() if file in files)]


def open_engine(directory: pathlib.Path, name: str) -> Engine:
  """Return what runs the bundle in ``directory``.

  Args:
    directory: the bundle.
    name: of ``list_engines``.

  Raises:
    InputError: a file is damaged, or there is none of that format.
  """
  if name == 'jaxres':
    return _open_jaxres(directory)
  if name not in FILES:
    raise InputError(directory, f'no engine runs {name!r}', fix=f'known: jaxres, {", ".join(FILES)}')
  path = bundle.check_file(directory, bundle.read_description(directory), FILES[name])
  return _open_onnx(path) if name == 'onnx' else _open_stablehlo(path)


def _open_jaxres(directory: pathlib.Path) -> Engine:
  pretrained, about = writer.read(f'jaxres:{directory}', 'best')
  answer = jit(writer.make_network(pretrained, about).answer)
  return lambda images: jax.device_get(answer(jnp.asarray(images)))


def _open_onnx(path: pathlib.Path) -> Engine:
  session = make_session(str(path))
  return lambda images: tuple(session.run(['logits', 'probabilities'], {'images': images}))


def _open_stablehlo(path: pathlib.Path) -> Engine:
  from jaxres.export import stablehlo

  call = jit(stablehlo.read(path).call)
  return lambda images: jax.device_get(tuple(call(jnp.asarray(images))))
