"""Networks as ONNX: ``model.onnx`` for images of one size, ``model_resize.onnx`` for images of any.

Inside it is ``[B, C, H, W]``, which onnxruntime is fast at, with one transpose at the boundary.
"""

import pathlib
from typing import Any

import numpy as np
import onnx

import jaxres
from jaxres.data import decode
from jaxres.errors import InputError
from jaxres.export import network as network_lib
from jaxres.export.graph import Graph
from jaxres.export.network import Network
from jaxres.export.onnx_blocks import write_network
from jaxres.weights.onnx_file import make_session

FILE, RESIZES = 'model.onnx', 'model_resize.onnx'
RESIZED_TOLERANCE = 0.02  # of logits, where a pixel may be one level off


def normalize(graph: Graph, x: str, network: Network) -> str:
  """Add the transpose of uint8 ``[B, H, W, C]`` to ``[B, C, H, W]``, and ``data.augment.normalize``."""
  mean, std = (np.asarray(values, np.float64).reshape(-1, 1, 1) for values in network.preprocessing[:2])
  x = graph.add('Cast', x, to=onnx.TensorProto.FLOAT, channels=network.channels)
  x = graph.add('Mul', x, graph.constant('input/scale', 1 / (255 * std)))
  return graph.add('Sub', x, graph.constant('input/shift', mean / std))


def resize(graph: Graph, x: str, size: int, keep: float) -> str:
  """Add ``data.decode``'s way from an image to its center: the short side to ``size / keep``, the center of ``size``.

  Args:
    graph: that is written.
    x: uint8 ``[B, C, H, W]``.
    size: pixels a side of the result.
    keep: the share of the resized short side that is kept.

  Returns:
    uint8 ``[B, C, size, size]``.
  """
  constant = lambda name, value: graph.constant(f'resize/{name}', value, np.int64)
  short, wanted = constant('short', max(size, round(size / keep))), constant('size', [size, size])
  shape = graph.add('Shape', x, start=2, end=4)
  smallest = graph.add('ReduceMin', shape, keepdims=1)
  sizes = graph.add('Div', graph.add('Mul', shape, short), smallest)  # of whole numbers, downwards
  # All four sizes and no axes: onnxruntime moves the transpose behind this node, and forgets the axes.
  all_sizes = graph.add('Concat', graph.add('Shape', x, start=0, end=2), sizes, axis=0)
  options: dict[str, Any] = {'mode': 'linear', 'antialias': 1, 'exclude_outside': 1}
  resized = graph.add('Resize', x, '', '', all_sizes, **options)
  rest = graph.add('Cast', graph.add('Sub', sizes, wanted), to=onnx.TensorProto.FLOAT)
  half = graph.add('Mul', rest, graph.constant('resize/half', 0.5))
  start = graph.add('Cast', graph.add('Round', half), to=onnx.TensorProto.INT64)  # of halves to even, as Python's
  end = graph.add('Add', start, wanted)
  return graph.add('Slice', resized, start, end, constant('axes', [2, 3]))


def make_model(network: Network, *, resizes: bool = False) -> onnx.ModelProto:
  """Return ``network`` as a model of ONNX.

  Its input ``images`` is uint8 ``[B, H, W, C]`` of any B; its outputs are ``logits`` and ``probabilities``, float32
  ``[B, K]``.

  Args:
    network: what is written.
    resizes: take images of any H and W, and resize and crop them inside as the evaluation does.

  Raises:
    InputError: it has a part that cannot be written.
  """
  graph = Graph(network.variables)
  x = graph.add('Transpose', 'images', perm=[0, 3, 1, 2])
  if resizes:
    x = resize(graph, x, network.preprocessing.image_size[0], network.preprocessing.center_crop)
  write_network(graph, network, normalize(graph, x, network))
  size = ('height', 'width') if resizes else network.preprocessing.image_size
  shape = ('batch', *size, network.channels)
  return graph.to_model(shape, len(network.class_names), network.describe(), jaxres.__version__)


def check(model: onnx.ModelProto, network: Network, *, resizes: bool = False) -> None:
  """Check a model: by onnx's checker with shape inference, and by onnxruntime, whose answers are those of jaxres.

  Args:
    model: of ``make_model``.
    network: what it was written from.
    resizes: as of ``make_model``.

  Raises:
    InputError: onnxruntime's logits are others.
  """
  onnx.checker.check_model(model, full_check=True)
  session = make_session(model.SerializeToString())
  images = pixels = network_lib.make_images(network)
  size, keep = network.preprocessing.image_size[0], network.preprocessing.center_crop
  if resizes:
    images = np.tile(images, (1, 2, 3, 1))[:, : size + size // 2]
    pixels = np.stack([decode.resize_image(image, size, keep) for image in images])
  expected, _ = network_lib.compute_answer(network, pixels)
  tolerance = RESIZED_TOLERANCE if resizes else network_lib.TOLERANCE
  for batch in (slice(None), slice(1)):
    logits, _ = session.run(None, {'images': images[batch]})
    error = network_lib.relative_error(logits, expected[batch])
    if not error < tolerance:
      problem = f'its logits differ from those of jaxres by {error:.1e} of the largest'
      name = RESIZES if resizes else FILE
      raise InputError(name, problem, expected=f'less than {tolerance:.0e}', fix='nothing was written')


def write(directory: pathlib.Path, network: Network) -> list[str]:
  """Write ``model.onnx``, and of square images ``model_resize.onnx``; return the names of the files.

  Raises:
    InputError: the network cannot be written, or the logits of a file are others.
  """
  height, width = network.preprocessing.image_size
  names = {FILE: False} | ({RESIZES: True} if height == width else {})
  for name, resizes in names.items():
    model = make_model(network, resizes=resizes)
    check(model, network, resizes=resizes)
    (directory / name).write_bytes(model.SerializeToString())
  return [*names]
