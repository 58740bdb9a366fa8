import jax
import numpy as np
import optax
import pytest

from jaxres import data, evaluate, models
from jaxres.errors import InputError
from jaxres.runtime import sharding
from jaxres.state import create, init_variables
from tests.helpers import classification, make_arrays


@pytest.fixture
def setup(npz):
  dataset = data.load('arrays', path=npz(**make_arrays((16, 45))), batch_size=8)
  mesh = sharding.make_mesh()
  dataset.place(mesh)
  model = models.create('resnet20', num_classes=4)
  variables = init_variables(model, dataset.info.image_shape, jax.random.key(0))
  head = {'fc': {'kernel': np.random.default_rng(0).normal(size=(64, 4)), 'bias': np.zeros(4)}}
  variables['params'] = dict(variables['params']) | {'head': head}
  step = evaluate.make_eval_step(model, classification(), dataset.info, dataset.test.get_batch, mesh)
  return dataset, model, variables, step


def reference(dataset, model, variables) -> dict[str, float]:
  images = make_arrays((16, 45))['test_x'] / 255
  images = ((images - dataset.info.mean) / dataset.info.std).astype(np.float32)
  logits = np.asarray(model.apply(variables, images, train=False), np.float64)
  label = make_arrays((16, 45))['test_y']
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return {'test/loss': -log_p[np.arange(45), label].mean(), 'test/top1': (logits.argmax(-1) == label).mean()}


@pytest.mark.parametrize('batch_size', [8, 24, 40, 48, 64])
def test_exactly_n_examples_count_at_any_batch_size(setup, batch_size: int) -> None:
  dataset, model, variables, step = setup
  actual = evaluate.evaluate(step, variables, dataset.test, batch_size, 'test')
  expected = reference(dataset, model, variables)
  assert actual['test/top1'] == pytest.approx(expected['test/top1'], rel=1e-6)
  assert 0 < actual['test/top1'] < 1
  assert actual['test/loss'] == pytest.approx(expected['test/loss'], rel=1e-4)
  assert 'test/top5' not in actual  # of four classes it says nothing


def test_the_step_is_compiled_once(setup) -> None:
  dataset, _, variables, step = setup
  evaluate.evaluate(step, variables, dataset.test, 16, 'test')
  evaluate.evaluate(step, variables, dataset.test, 16, 'test')
  assert step._cache_size() == 1


def test_splits_that_are_there_are_evaluated(setup, npz) -> None:
  dataset, _, variables, step = setup
  assert set(evaluate.evaluate_splits(step, variables, dataset, 16)) == {'test/loss', 'test/top1'}
  both = dataset._replace(val=dataset.train)
  actual = evaluate.evaluate_splits(step, variables, both, 16)
  assert {name.partition('/')[0] for name in actual} == {'val', 'test'}
  assert actual['val/top1'] == evaluate.evaluate(step, variables, dataset.train, 16, 'x')['x/top1']


def test_the_moving_average_is_evaluated_beside_the_weights(setup) -> None:
  dataset, model, variables, step = setup
  start = create(variables, optax.sgd(0.1))
  raw = evaluate.evaluate_state({'': step}, start, dataset, 16)
  assert raw == evaluate.evaluate_splits(step, variables, dataset, 16)
  other = jax.tree.map(lambda x: -x, variables['params']['head'])
  ema = {'params': variables['params'] | {'head': other}, 'batch_stats': variables['batch_stats']}
  actual = evaluate.evaluate_state({'': step}, start.replace(ema=ema), dataset._replace(val=dataset.train), 16)
  assert {name: value for name, value in actual.items() if name.startswith('test/')} == raw
  names = {f'{split}/{metric}' for split in ('val', 'test') for metric in ('loss', 'top1')}
  assert actual.keys() == names | {f'ema/{name}' for name in names}
  assert actual['ema/test/loss'] == pytest.approx(reference(dataset, model, ema)['test/loss'], rel=1e-4)
  assert actual['ema/test/loss'] != actual['test/loss']


def test_one_device_and_eight_agree(setup) -> None:
  dataset, model, variables, step = setup
  one = jax.sharding.Mesh(jax.devices()[:1], ('data',))
  actual = evaluate.evaluate(step, variables, dataset.test, 16, 'test')
  single = evaluate.make_eval_step(model, classification(), dataset.info, dataset.test.get_batch, one)
  dataset.place(one)
  alone = evaluate.evaluate(single, variables, dataset.test, 16, 'test')
  assert actual['test/top1'] == alone['test/top1']
  assert actual['test/loss'] == pytest.approx(alone['test/loss'], rel=1e-5)


def views_of(images: np.ndarray, flip: bool, crop: int, pad: int) -> list[np.ndarray]:
  """Views by NumPy: windows of the padded images, as torchvision's FiveCrop cuts them, then their mirror images."""
  padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode='reflect')
  size, complete = crop or images.shape[1], padded.shape[1]
  center = round((complete - size) / 2.0)
  corners = [(0, 0), (0, complete - size), (complete - size, 0), (complete - size, complete - size), (center, center)]
  actual = [padded[:, y : y + size, x : x + size] for y, x in corners] if crop or pad else [images]
  return actual + [view[:, :, ::-1] for view in actual] if flip else actual


VIEWS = [(True, 0, 0), (False, 5, 0), (True, 0, 2), (True, 7, 1)]


@pytest.mark.parametrize(('flip', 'crop', 'pad'), VIEWS)
def test_views_are_numpys(flip: bool, crop: int, pad: int) -> None:
  images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
  actual = evaluate.make_views(flip=flip, crop=crop, pad=pad)(images)
  np.testing.assert_array_equal(actual, views_of(images, flip, crop, pad))


@pytest.mark.parametrize(('flip', 'crop', 'pad'), VIEWS[2:])
def test_a_score_over_views_is_that_of_their_mean_probability(setup, flip: bool, crop: int, pad: int) -> None:
  dataset, model, variables, plain = setup
  views = evaluate.make_views(flip=flip, crop=crop, pad=pad)
  step = evaluate.make_eval_step(
    model, classification(), dataset.info, dataset.test.get_batch, sharding.make_mesh(), views
  )
  actual = evaluate.evaluate(step, variables, dataset.test, 24, 'test')
  probabilities = []
  for view in views_of(make_arrays((16, 45))['test_x'], flip, crop, pad):
    x = ((view / 255 - dataset.info.mean) / dataset.info.std).astype(np.float32)
    logits = np.asarray(model.apply(variables, x, train=False), np.float64)
    probabilities.append(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
  mean, label = np.mean(probabilities, axis=0), make_arrays((16, 45))['test_y']
  assert actual['test/loss'] == pytest.approx(-np.log(mean[np.arange(45), label]).mean(), rel=1e-4)
  assert actual['test/top1'] == pytest.approx((mean.argmax(-1) == label).mean(), rel=1e-6)
  start = create(variables, optax.sgd(0.1))
  both = evaluate.evaluate_state({'': plain, 'tta/': step}, start, dataset, 24)
  assert both == evaluate.evaluate(plain, variables, dataset.test, 24, 'test') | {
    f'tta/{k}': v for k, v in actual.items()
  }
  assert both['tta/test/loss'] != both['test/loss']


def test_views_that_are_not_there_or_do_not_fit() -> None:
  assert evaluate.make_views() is None
  with pytest.raises(InputError, match='tta.pad: expected pixels, 0 or more, found -1'):
    evaluate.make_views(pad=-1)
  for options in ({'crop': 11, 'pad': 1}, {'pad': 8}):
    with pytest.raises(InputError, match='from images of 8x8 padded by'):
      evaluate.check_views(evaluate.make_views(**options), (8, 8, 3))
  evaluate.check_views(evaluate.make_views(crop=10, pad=1), (8, 8, 3))
