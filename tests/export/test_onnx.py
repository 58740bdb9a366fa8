"""The ONNX writer against jaxres' forward pass: live statistics, live activations, every model of the table."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxres import models, weights
from jaxres.errors import InputError
from jaxres.export.network import Network, compute_answer, make_images, relative_error
from jaxres.models import blocks, resnet
from jaxres.weights.preprocessing import Preprocessing

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
from jaxres.export import onnx as writer  # noqa: E402

BATCHES = (1, 2, 7, 64)
SLOW = ('resnet101', 'resnet152', 'resnext', 'wide_', 'wrn', '110', '164', 'resnet50', '44', '56')


def make_live(model: models.ResNet, channels: int, seed: int = 0) -> dict[str, Any]:
  """Return variables in which every leaf matters: random statistics, scales of both signs, biases."""
  rng = np.random.default_rng(seed)

  def draw(path: Any, leaf: Any) -> np.ndarray:
    name, shape = path[-1].key, leaf.shape
    if name == 'kernel':
      return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
    if name == 'var':
      return rng.uniform(0.5, 2, shape).astype(np.float32)
    if name == 'scale':
      return (rng.uniform(0.3, 0.8, shape) * rng.choice([-1, 1, 1], shape)).astype(np.float32)
    return rng.normal(0, 0.3, shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, weights.abstract(model, channels))


def make_network(
  name: str,
  shape: tuple[int, int, int] = (32, 32, 3),
  temperature: float | None = None,
  classes: int = 11,
  **options: Any,
) -> Network:
  model = models.create(name, num_classes=classes, dtype='float32', **options)
  return wrap(model, shape, temperature)


def wrap(model: models.ResNet, shape: tuple[int, int, int] = (32, 32, 3), temperature: float | None = None) -> Network:
  *size, channels = shape
  mean, std = (tuple(np.linspace(low, high, channels).tolist()) for low, high in ((0.4, 0.6), (0.2, 0.3)))
  preprocessing = Preprocessing(mean, std, tuple(size), 1.0)
  names = tuple(f'class {i}' for i in range(model.num_classes))
  return Network(
    model, make_live(model, channels), channels, preprocessing, names, 'classification', temperature, 'a test'
  )


def check_answers(network: Network) -> None:
  """Compare onnxruntime with jaxres at every batch size; the logits must depend on the image."""
  model = writer.make_model(network)
  onnx.checker.check_model(model, full_check=True)
  session = writer.make_session(model.SerializeToString())
  images = make_images(network, max(BATCHES))
  logits, probabilities = compute_answer(network, images)
  assert np.ptp(logits, axis=0).max() > 1e-2 * np.abs(logits).max()  # no dead network
  for batch in BATCHES:
    answer = session.run(['logits', 'probabilities'], {'images': images[:batch]})
    assert relative_error(answer[0], logits[:batch]) < 1e-4
    np.testing.assert_allclose(answer[1], probabilities[:batch], atol=1e-3)


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=[pytest.mark.slow] * any(w in n for w in SLOW)) for n in models.list_models()]
)
def test_every_model_answers_as_jaxres_does(name: str) -> None:
  check_answers(make_network(name))


SHORT = {'stage_sizes': (1, 2), 'widths': (8, 16), 'num_classes': 5}
VARIANTS = {
  'imagenet stem': {'block': blocks.BasicBlock, 'stem_type': 'imagenet'},
  'deep stem, pre-activation': {'block': blocks.PreactBasicBlock, 'stem_type': 'deep', 'shortcut': 'average'},
  'pool stem, option A': {'block': blocks.BottleneckBlock, 'stem_type': 'cifar_pool', 'shortcut': 'pad'},
  'average, groups': {'block': blocks.BottleneckBlock, 'shortcut': 'average', 'groups': 4, 'width_per_group': 16},
  'pre-activation, SE': {'block': blocks.PreactBottleneckBlock, 'se': True, 'shortcut': 'pad'},
  'silu, SE': {'block': blocks.BasicBlock, 'se': True, 'act': 'silu'},
  'gelu': {'block': blocks.BottleneckBlock, 'act': 'gelu', 'stem_width': 12},
  'leaky, as a function': {'block': blocks.PreactBasicBlock, 'act': resnet.ACTIVATIONS['leaky_relu']},
  'max, no scales': {'block': blocks.BasicBlock, 'pool': 'max', 'bn_scale': False, 'logit_scale': 0.2},
}


@pytest.mark.parametrize('shape', [(37, 23, 1), (33, 50, 5)])
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_part_answers_as_jaxres_does(variant: str, shape: tuple[int, int, int]) -> None:
  check_answers(wrap(resnet.ResNet(**{'stem_type': 'cifar', **SHORT, **VARIANTS[variant]}), shape, temperature=2.5))


@pytest.mark.parametrize('variant', ['pre-activation, SE', 'silu, SE', 'max, no scales'])
def test_every_leaf_of_the_weights_is_alive(variant: str) -> None:
  """So that the comparisons would see a leaf that is folded wrongly: a change of any one moves the logits."""
  network = wrap(resnet.ResNet(**{'stem_type': 'cifar', **SHORT, **VARIANTS[variant]}))
  images = make_images(network, 7)
  logits, _ = compute_answer(network, images)
  leaves, tree = jax.tree.flatten(dict(network.variables))
  for i, leaf in enumerate(leaves):
    changed = network._replace(variables=jax.tree.unflatten(tree, [*leaves[:i], 2 * leaf, *leaves[i + 1 :]]))
    session = writer.make_session(writer.make_model(changed).SerializeToString())
    assert relative_error(session.run(['logits'], {'images': images})[0], logits) > 1e-3, i


def test_the_file_is_what_runtimes_of_years_ago_load() -> None:
  model = writer.make_model(make_network('resnet20'))
  assert [(each.domain, each.version) for each in model.opset_import] == [('', 18)]
  assert model.ir_version == 8
  (images,) = model.graph.input
  shape = [each.dim_param or each.dim_value for each in images.type.tensor_type.shape.dim]
  assert (shape, images.type.tensor_type.elem_type) == (['batch', 32, 32, 3], onnx.TensorProto.UINT8)
  operators = [node.op_type for node in model.graph.node]
  assert operators.count('Transpose') == 1
  assert 'BatchNormalization' not in operators
  assert len(operators) == operators.count('Conv') + operators.count('Relu') + operators.count('Add') + 12
  assert writer.make_model(make_network('resnet20')).SerializeToString() == model.SerializeToString()


def test_what_cannot_be_written_is_named() -> None:
  network = make_network('resnet20')
  odd = network.model.clone(act=jax.nn.tanh)
  with pytest.raises(InputError, match=r'model.act: .*tanh.* cannot be written as ONNX; expected one of relu'):
    writer.make_model(network._replace(model=odd))
  block = type('OtherBlock', (blocks.BasicBlock,), {})
  with pytest.raises(InputError, match=r'model.block: OtherBlock cannot be written'):
    writer.make_model(network._replace(model=network.model.clone(block=block)))
