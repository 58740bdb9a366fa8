"""Programs of StableHLO: they answer as jaxres does, at any batch, and hold no calls of one library."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres.errors import InputError
from jaxres.export.network import compute_answer, make_images, relative_error
from jaxres.models import blocks, resnet
from tests.export.networks import SHORT, wrap

pytest.importorskip('flatbuffers')
from jaxres.export import stablehlo


@pytest.mark.parametrize('options', [{'se': True}, {'act': 'gelu', 'pool': 'max', 'stem_type': 'deep'}])
def test_a_program_answers_as_jaxres_does(options: dict, tmp_path) -> None:
  model = resnet.ResNet(**{'stem_type': 'cifar', 'block': blocks.BasicBlock, **SHORT, **options})
  network = wrap(model, (21, 32, 3), 1.6)
  assert stablehlo.write(tmp_path, network) == ['model.stablehlo']
  program = stablehlo.read(tmp_path / 'model.stablehlo')
  assert program.platforms == ('cpu', 'cuda')
  images = make_images(network, 7)
  expected = compute_answer(network, images)
  for batch in (1, 2, 7):
    logits, probabilities = program.call(jnp.asarray(images[:batch]))
    assert relative_error(np.asarray(logits), expected[0][:batch]) < 1e-5
    np.testing.assert_allclose(probabilities, expected[1][:batch], atol=1e-5)
  text = program.mlir_module()
  assert {*re.findall(r'custom_call @(\w+)', text)} <= {'shape_assertion'}  # of the symbolic batch
  convolutions = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(network.variables['params']))
  assert text.count('= stablehlo.convolution') == 2 * convolutions  # once for each platform


def test_a_program_of_another_jax_says_how_to_make_it_again(tmp_path) -> None:
  (tmp_path / 'model.stablehlo').write_bytes(b'\0' * 100)
  with pytest.raises(InputError, match=r'jax .* does not read it: .*; `jaxres export .*` makes it again'):
    stablehlo.read(tmp_path / 'model.stablehlo')
