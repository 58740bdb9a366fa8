"""Labels that are no class numbers, on their way from a file to the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import data
from jaxres.data import augment, sampler, types
from jaxres.data.augment import mixing
from jaxres.errors import InputError
from tests.helpers import make_arrays

RNG = np.random.default_rng(0)
KINDS = {
  'numbers': (types.NUMBERS, lambda n: RNG.normal(size=n)),
  'vectors': (types.VECTORS, lambda n: RNG.normal(size=(n, 5))),
  'maps': (types.CLASS_MAPS, lambda n: RNG.integers(0, 3, (n, 8, 8))),
}


@pytest.fixture(params=KINDS)
def given(request, npz) -> tuple[str, types.Labels, dict]:
  """The path of a file, what its labels are, and its arrays."""
  labels, draw = KINDS[request.param]
  arrays = make_arrays((40, 16))
  arrays |= {f'{split}_y': draw(len(arrays[f'{split}_x'])) for split in ('train', 'test')}
  return npz(**arrays), labels, arrays


@pytest.mark.parametrize('pipeline', ['resident', 'stream'])
def test_a_batch_has_the_labels_of_the_file(given, pipeline: str) -> None:
  path, labels, arrays = given
  dataset = data.load('arrays', path=path, batch_size=8, pipeline=pipeline, labels=labels)
  batch = data.first_batch(dataset.train)
  index = sampler.train_indices(0, 0, 8, 40)
  assert batch['label'].dtype == labels.dtype
  np.testing.assert_array_equal(batch['label'], arrays['train_y'][index].astype(labels.dtype))
  feed = [*dataset.test.eval_inputs(12)][-1]  # the last is filled up
  last = dataset.test.get_batch(dataset.test.device_data, feed)
  np.testing.assert_array_equal(last['label'][:4], arrays['test_y'][12:].astype(labels.dtype))


def test_parts_are_drawn_at_random_and_hold_every_example_once(given) -> None:
  path, labels, arrays = given
  dataset = data.load('arrays', path=path, batch_size=8, val=0.25, labels=labels)
  parts = [np.asarray(part.device_data['image']) for part in (dataset.train, dataset.val)]
  assert [len(part) for part in parts] == [30, 10]
  key = lambda images: sorted(image.tobytes() for image in images)
  assert key(np.concatenate(parts)) == key(arrays['train_x'])
  folds = [data.load('arrays', path=path, fold=(k, 4), labels=labels).val for k in range(4)]
  assert key(np.concatenate([fold.device_data['image'] for fold in folds])) == key(arrays['train_x'])
  assert data.load('arrays', path=path, limit=7, labels=labels).train.size == 7


def test_a_fingerprint_is_of_the_labels_too(given, npz) -> None:
  path, labels, arrays = given
  load = lambda: data.load('arrays', path=path, labels=labels).info.splits
  before = load()
  arrays['train_y'] = arrays['train_y'].copy()
  arrays['train_y'].flat[3] = 1.5 if labels.dtype == 'float32' else (arrays['train_y'].flat[3] + 1) % 3
  npz(**arrays)
  after = load()
  assert before['train'].split(', ')[1] != after['train'].split(', ')[1]
  assert before['train'].split(', ')[2] == after['train'].split(', ')[2]
  assert before['test'] == after['test']


@pytest.mark.parametrize(
  ('kind', 'y', 'message'),
  [
    ('numbers', np.zeros((40, 1)), r'train_y: expected numbers \[40\], found float64 \[40, 1\]'),
    ('numbers', np.full(40, 'a'), r'train_y: expected numbers \[40\], found <U1 \[40\]'),
    ('numbers', np.full(40, np.nan), 'train example 0 has label nan; expected finite numbers'),
    ('numbers', np.full(40, 1e300), 'train example 0 has label inf; expected finite numbers'),
    ('vectors', np.zeros(40), r'train_y: expected numbers \[40, K\], found float64 \[40\]'),
    ('vectors', np.zeros((40, 4)), 'train_y and test_y hold labels of different lengths: 4 and 5 numbers'),
    ('maps', np.zeros((40, 8, 7), int), r'train_y: expected integers \[40, 8, 8\], found int64 \[40, 8, 7\]'),
    ('maps', np.zeros((40, 8, 8)), r'train_y: expected integers \[40, 8, 8\], found float64 \[40, 8, 8\]'),
    ('maps', np.full((40, 8, 8), -1), 'train example 0 has a label that is none, among its maps of class numbers'),
  ],
)
def test_labels_that_no_loss_can_use_are_one_line(npz, kind: str, y: np.ndarray, message: str) -> None:
  labels, draw = KINDS[kind]
  path = npz(**make_arrays((40, 16)) | {'train_y': y, 'test_y': draw(16)})
  with np.errstate(over='ignore'), pytest.raises(InputError, match=message) as caught:
    data.load('arrays', path=path, labels=labels)
  assert '\n' not in str(caught.value)


def test_what_has_classes_alone_is_refused(given) -> None:
  path, labels, _ = given
  with pytest.raises(InputError, match=f"the task learns {labels.kind}, and 'digits' has a class for each image"):
    data.load('digits', labels=labels)
  with pytest.raises(InputError, match=f'data.classes: .* but the task learns {labels.kind}, not classes'):
    data.load('arrays', path=path, classes=(0, 1), labels=labels)


def test_maps_stay_with_their_pixels(npz) -> None:
  labels, draw = KINDS['maps']
  path = npz(**make_arrays((40, 16)) | {'train_y': draw(40), 'test_y': draw(16)})
  with pytest.raises(InputError, match='data.image_size: labels are maps of class numbers, which are not resized'):
    data.load('arrays', path=path, image_size=4, labels=labels)
  for fields in ({'flip': True}, {'crop_pad': 1}, {'policy': 'randaugment'}, {'rotate': 5.0}):
    with pytest.raises(InputError, match='labels do not move with the pixels'):
      augment.check(augment.make(**fields), (8, 8, 3), labels)
  with pytest.raises(InputError, match='augment.mixup: the task learns maps of class numbers, which cannot be mixed'):
    augment.check(augment.make(mixup=0.2), (8, 8, 3), labels)
  augment.check(augment.make(jitter=(0.1, 0.1, 0.1, 0.0), cutout=2), (8, 8, 3), labels)


@pytest.mark.parametrize('shape', [(6,), (6, 3), (6, 2, 4)])
def test_labels_of_any_shape_are_mixed_by_their_share(shape: tuple[int, ...]) -> None:
  images = jnp.zeros((6, 4, 4, 1), jnp.uint8)
  labels, weight = RNG.normal(size=shape).astype(np.float32), RNG.uniform(size=6).astype(np.float32)
  actual = mixing.mixup(images, jnp.asarray(labels), jnp.asarray(weight))[1]
  for i in range(6):
    np.testing.assert_allclose(actual[i], weight[i] * labels[i] + (1 - weight[i]) * labels[i - 1], rtol=1e-5, atol=1e-6)


def test_views_are_augmentations_with_separate_draws() -> None:
  images = jnp.asarray(RNG.integers(0, 256, (6, 8, 8, 3)), jnp.uint8)
  plain, key = augment.make(crop_pad=2, flip=True), jax.random.key(3)
  views = augment.with_views(plain, 2)(key, images)
  for number in range(2):
    expected = plain(jax.random.fold_in(key, augment.VIEW_KEYS + number), images)
    np.testing.assert_array_equal(views[number], expected)
  assert (views[0] != views[1]).any()
  assert augment.with_views(plain, 1) is plain


def test_views_are_mixed_within_themselves() -> None:
  """Each with its label: a view of one level, and labels of that level, stay alike whatever the draws are."""
  levels = np.array([0, 40, 80, 120, 160, 200], np.uint8)
  images = jnp.broadcast_to(levels[:, None, None, None], (6, 8, 8, 1))
  batch = {'image': images, 'label': jnp.asarray(levels, jnp.float32)}
  mixed = augment.with_views(augment.make(mixup=1.0), 2).batch(jax.random.key(0), batch, types.NUMBERS, 1)
  assert mixed['image'].shape == (2, 6, 8, 8, 1)
  assert mixed['label'].shape == (2, 6)
  np.testing.assert_allclose(mixed['image'].mean((2, 3, 4)), mixed['label'], atol=0.51)
  assert (jnp.abs(mixed['label'][0] - mixed['label'][1]) > 1).any()
