"""What a config makes: a BatchNorm that sees a single value is refused, and the batch of an evaluation is bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import config as config_lib
from jaxres import models
from jaxres.errors import InputError
from jaxres.models import layers
from jaxres.train import loop
from jaxres.train.options import Options
from jaxres.train.setup import check_norms, make_setup
from tests.helpers import merge


def test_batch_norm_of_one_value_is_its_bias_and_torch_refuses_it() -> None:
  norm = layers.BatchNorm(train=True)
  for value in (-3.0, 7.0):
    out, _ = norm.init_with_output(jax.random.key(0), jnp.full((1, 1, 1, 4), value))
    np.testing.assert_array_equal(out, np.zeros((1, 1, 1, 4)))
  torch = pytest.importorskip('torch')
  with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
    torch.nn.BatchNorm2d(4)(torch.ones(1, 4, 1, 1))


@pytest.mark.parametrize(
  ('name', 'side', 'first'),
  [
    ('resnet18', 8, 'stage4/block0/bn1'),
    ('resnet18', 2, 'stage2/block0/bn1'),
    ('resnet20', 4, 'stage3/block0/bn1'),
    ('preact_resnet20', 4, 'norm'),
    ('resnet18', 9, None),
    ('resnet20', 5, None),
  ],
)
def test_the_norm_that_sees_one_pixel_is_named(name: str, side: int, first: str | None) -> None:
  model = models.create(name, stem='cifar', num_classes=4)
  check_norms(model, (side, side, 3), examples=2)
  check_norms(model.clone(bn='frozen'), (side, side, 3), examples=1)
  if first is None:
    check_norms(model, (side, side, 3), examples=1)
    return
  with pytest.raises(InputError, match=f'data.batch_size: one example at a time, of which {first} sees one pixel'):
    check_norms(model.clone(remat=True), (side, side, 3), examples=1)


def test_norms_that_are_frozen_do_not_look_at_the_batch() -> None:
  model = models.create('resnet20', stem='cifar', num_classes=4)
  norms = tuple(f'stage3/block{b}/bn{n}' for b in range(3) for n in (1, 2))
  check_norms(model.clone(frozen_norms=norms), (4, 4, 3), examples=1)
  with pytest.raises(InputError, match='stage3/block2/bn2 sees one pixel'):
    check_norms(model.clone(frozen_norms=norms[:-1]), (4, 4, 3), examples=1)


def test_a_part_of_one_example_on_each_device_is_refused_before_anything_is_written(config, stages, tmp_path) -> None:
  small = merge(config, model={'name': stages}, data={'image_size': 4, 'batch_size': 2})
  with pytest.raises(InputError, match='one example at a time, of which stage3/block0/bn1'):
    loop.train_and_evaluate(merge(small, model={'name': stages, 'bn': 'per_device'}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_an_evaluation_takes_no_more_memory_than_its_examples(config) -> None:
  options = config_lib.to_dict(config_lib.complete(merge(config, train={'eval_batch_size': 2**31})))
  assert make_setup(options).eval_batch_size == Options().eval_batch_size
