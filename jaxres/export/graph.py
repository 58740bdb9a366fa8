"""A graph of ONNX while it is written: nodes in the order of computing, with the weights that they use."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jaxres.models.layers import BatchNorm

OPSET = 18  # the first whose Resize has antialias
IR_VERSION = 8  # which goes with it: onnxruntime of 2023 reads it, and onnxruntime-web


class Graph:
  """The nodes of a network; values are float32 ``[B, C, H, W]`` and known by their names.

  Attributes:
    channels: of the values that have some, by name.
  """

  def __init__(self, variables: Mapping[str, Any]):
    self.leaves = flax.traverse_util.flatten_dict(dict(variables), sep='/')
    self.unused = set(self.leaves)
    self.nodes: list[onnx.NodeProto] = []
    self.constants: dict[str, onnx.TensorProto] = {}
    self.channels: dict[str, int] = {}

  def add(self, operator: str, *inputs: str, name: str = '', channels: int | None = None, **attributes: Any) -> str:
    """Add a node, and return the name of its output.

    Args:
      operator: such as ``'Relu'``.
      *inputs: names of values and constants.
      name: of the output; by the operator and its number where it is empty.
      channels: of the output; those of the first input where they are not given.
      **attributes: of the operator.
    """
    output = name or f'{operator}_{len(self.nodes)}'
    self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
    known = self.channels.get(inputs[0]) if inputs else None
    if channels or known:
      self.channels[output] = channels or known or 0
    return output

  def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
    """Add a constant, and return its name."""
    self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(np.asarray(values, dtype)), name)
    return name

  def leaf(self, path: str) -> np.ndarray:
    """Return a leaf of the variables, such as ``params/head/fc/kernel``, in float64."""
    self.unused.discard(path)
    return np.asarray(self.leaves[path], np.float64)

  def has(self, path: str) -> bool:
    """Return whether the network has parameters at ``path``, such as ``stage1/block0/shortcut``."""
    return any(name.startswith(f'params/{path}/') for name in self.leaves)

  def conv(
    self, x: str, path: str, strides: int = 1, groups: int = 1, *, norm: str = '', padding: int | None = None
  ) -> str:
    """Add a convolution, with its bias and the norm after it folded in.

    Args:
      x: the input.
      path: of its parameters.
      strides: in both directions.
      groups: of channels that do not mix.
      norm: path of the BatchNorm after it.
      padding: of each side; half the kernel where it is not given.
    """
    kernel = self.leaf(f'params/{path}/kernel')
    bias = self.leaf(f'params/{path}/bias') if f'params/{path}/bias' in self.leaves else np.zeros(kernel.shape[-1])
    if norm:
      scale, shift = self._affine(norm)
      kernel, bias = kernel * scale, bias * scale + shift
    size, channels = len(kernel), kernel.shape[-1]
    names = [self.constant(f'{path}/kernel', kernel.transpose(3, 2, 0, 1))]
    if norm or bias.any():
      names.append(self.constant(f'{path}/bias', bias))
    pads = [size // 2 if padding is None else padding] * 4
    shape = {'kernel_shape': [size, size], 'strides': [strides, strides], 'pads': pads, 'group': groups}
    return self.add('Conv', x, *names, name=path, channels=channels, **shape)

  def norm(self, x: str, path: str) -> str:
    """Add a BatchNorm that follows no convolution: what multiplies and what is added."""
    scale, shift = (
      self.constant(f'{path}/{name}', value.reshape(-1, 1, 1))
      for name, value in zip(('scale', 'shift'), self._affine(path), strict=True)
    )
    return self.add('Add', self.add('Mul', x, scale), shift, name=path)

  def _affine(self, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what a BatchNorm with running statistics multiplies by and what it adds, float64 ``[C]``."""
    mean, var = self.leaf(f'batch_stats/{path}/mean'), self.leaf(f'batch_stats/{path}/var')
    scale = 1 / np.sqrt(var + BatchNorm.epsilon)
    if f'params/{path}/scale' in self.leaves:
      scale = scale * self.leaf(f'params/{path}/scale')
    return scale, self.leaf(f'params/{path}/bias') - mean * scale

  def to_model(
    self, shape: tuple[int | str, ...], num_classes: int, notes: Mapping[str, str], version: str
  ) -> onnx.ModelProto:
    """Return the model: ``images``, uint8 ``shape``, to ``logits`` and ``probabilities``, float32 ``[B, K]``."""
    outputs = [
      helper.make_tensor_value_info(name, TensorProto.FLOAT, ['batch', num_classes])
      for name in ('logits', 'probabilities')
    ]
    images = helper.make_tensor_value_info('images', TensorProto.UINT8, shape)
    graph = helper.make_graph(self.nodes, 'jaxres', [images], outputs, [*self.constants.values()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION)
    model.producer_name, model.producer_version = 'jaxres', version
    helper.set_model_props(model, dict(notes))
    return model
