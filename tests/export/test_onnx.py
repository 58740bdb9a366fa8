"""The ONNX writer against jaxres' forward pass: live statistics, live activations, every model of the table."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from jaxres import models
from jaxres.data import decode
from jaxres.errors import InputError
from jaxres.export.network import Network, compute_answer, make_images, relative_error
from jaxres.models import blocks, resnet
from tests.export.networks import SHORT, make_network, wrap

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
from jaxres.export import onnx as writer  # noqa: E402
from jaxres.export.graph import Graph  # noqa: E402

BATCHES = (1, 2, 7, 64)
SLOW = ('resnet101', 'resnet152', 'resnext', 'wide_', 'wrn', '110', '164', 'resnet50', '44', '56')


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


@pytest.mark.parametrize(('size', 'keep', 'levels'), [(224, 0.875, 1), (224, 1.0, 1), (32, 1.0, 1), (500, 0.9, 2)])
def test_resizing_inside_is_that_of_pillow(size: int, keep: float, levels: int) -> None:
  """On photographs, of several shapes: the pixels that the network is given differ by a level at most in few."""
  graph = Graph({})
  output = writer.resize(graph, graph.add('Transpose', 'images', perm=[0, 3, 1, 2]), size, keep)
  images = onnx.helper.make_tensor_value_info('images', onnx.TensorProto.UINT8, ['batch', 'height', 'width', 3])
  pixels = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.UINT8, ['batch', 3, size, size])
  parts = onnx.helper.make_graph(graph.nodes, 'resize', [images], [pixels], [*graph.constants.values()])
  model = onnx.helper.make_model(parts, opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=8)
  session = writer.make_session(model.SerializeToString())
  first, second = load_sample_images().images
  for photo in (first, second, first[:301, :133], second[:50, :47], first[:, :639], second[:224, :224]):
    (result,) = session.run(None, {'images': np.stack([photo, photo])})
    expected = decode.resize_image(photo, size, keep)
    difference = np.abs(result.transpose(0, 2, 3, 1) - expected.astype(int))
    assert difference.max() <= levels
    assert (difference > 0).mean() < 0.15


@pytest.mark.parametrize('keep', [1.0, 0.8])
def test_images_of_any_size_are_answered_as_jaxres_does(keep: float) -> None:
  network = make_network('resnet20')
  network = network._replace(preprocessing=network.preprocessing._replace(center_crop=keep))
  model = writer.make_model(network, resizes=True)
  writer.check(model, network, resizes=True)
  session = writer.make_session(model.SerializeToString())
  photos = np.stack([image[:400] for image in load_sample_images().images])
  expected, _ = compute_answer(network, np.stack([decode.resize_image(photo, 32, keep) for photo in photos]))
  (logits,) = session.run(['logits'], {'images': photos})
  assert relative_error(logits, expected) < 5e-3
  assert (logits.argmax(1) == expected.argmax(1)).all()
