import itertools
import pathlib
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from jaxres import data
from jaxres.data import decode, sampler, stream
from jaxres.errors import InputError
from jaxres.train import loop
from tests.helpers import make_arrays

pytestmark = pytest.mark.eight_devices


@pytest.fixture
def images(tmp_path) -> str:
  """A folder of 26 training and 7 test JPEGs of many sizes, in two classes."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 26), ('test', 7)):
    for i in range(count):
      path = tmp_path / split / 'ab'[i % 2] / f'{i:02d}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      noise = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
      noise.resize((40 + i, 70 - i), Image.Resampling.BICUBIC).save(path)
  return str(tmp_path)


def load(path: str, pipeline: str, name: str = 'folder', **options: object) -> data.Dataset:
  sizes = {'image_size': 16} if name == 'folder' else {}
  return data.load(name, path=path, pipeline=pipeline, batch_size=8, seed=5, **sizes | options)


def batches(pipeline: data.Pipeline, feeds) -> list[dict]:
  return [{k: np.asarray(v) for k, v in pipeline.get_batch(pipeline.device_data, feed).items()} for feed in feeds]


def assert_equal(actual: list[dict], expected: list[dict]) -> None:
  assert len(actual) == len(expected) > 0
  for a, b in zip(actual, expected, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def threads() -> list[str]:
  return [t.name for t in threading.enumerate() if t.name.startswith('stream')]


@pytest.mark.parametrize('source', ['arrays', 'folder'])
def test_stream_and_resident_give_equal_batches(source: str, npz, images) -> None:
  path, options = (npz(), {'val': 0.25}) if source == 'arrays' else (images, {'crop_scale': (), 'val': 0.25})
  streamed, resident = (load(path, pipeline, source, **options) for pipeline in ('stream', 'resident'))
  for split in ('train', 'val', 'test'):
    ours, theirs = getattr(streamed, split), getattr(resident, split)
    assert isinstance(ours, stream.Stream)
    assert ours.size == theirs.size
    assert_equal(batches(ours, ours.eval_inputs(8)), batches(theirs, theirs.eval_inputs(8)))
  steps = 3 * streamed.train.size // 8  # over the end of epochs
  expected = batches(resident.train, resident.train.step_inputs(0, steps))
  assert_equal(batches(streamed.train, streamed.train.step_inputs(0, steps)), expected)
  resumed = load(path, 'stream', source, **options).train
  assert_equal(batches(resumed, resumed.step_inputs(3, steps)), expected[3:])
  if source == 'arrays':
    assert streamed.info == resident.info


def test_arrays_are_resized_for_both(npz) -> None:
  streamed, resident = (load(npz(), pipeline, 'arrays', image_size=12) for pipeline in ('stream', 'resident'))
  assert streamed.info == resident.info
  assert streamed.info.image_shape == (12, 12, 3)
  assert_equal(
    batches(streamed.train, streamed.train.step_inputs(0, 2)), batches(resident.train, resident.train.step_inputs(0, 2))
  )
  expected = decode.resize_image(make_arrays()['test_x'][3], 12)
  np.testing.assert_array_equal(resident.test.device_data['image'][3], expected)


def test_evaluation_may_be_at_another_size(images) -> None:
  streamed, resident = (load(images, p, eval_image_size=20, center_crop=0.9, val=0.25) for p in ('stream', 'resident'))
  for dataset in (streamed, resident):
    assert dataset.info.image_shape == (16, 16, 3)
    for split in ('val', 'test'):
      pipeline, other = getattr(dataset, split), getattr(resident, split)
      actual = batches(pipeline, pipeline.eval_inputs(4))
      assert actual[0]['image'].shape == (4, 20, 20, 3)
      assert_equal(actual, batches(other, other.eval_inputs(4)))
  assert next(streamed.train.step_inputs(0, 1))['image'].shape == (8, 16, 16, 3)
  path = sorted(pathlib.Path(images).glob('test/*/*.jpg'))[2]
  np.testing.assert_array_equal(resident.test.device_data['image'][2], decode.decode_image(path.read_bytes(), 20, 0.9))


def test_random_crops_are_a_function_of_seed_step_and_position(images) -> None:
  first = load(images, 'stream').train
  expected = batches(first, first.step_inputs(0, 7))
  for workers, start in ((1, 0), (4, 0), (3, 5)):
    again = load(images, 'stream', workers=workers).train
    assert_equal(batches(again, again.step_inputs(start, 7)), expected[start:])
  rows = {image.tobytes() for batch in expected for image in batch['image']}
  assert len(rows) == 7 * 8  # an image that comes again is cropped again
  first.seed = 6
  assert not rows & {image.tobytes() for batch in batches(first, first.step_inputs(0, 7)) for image in batch['image']}


def test_a_crop_is_that_of_its_draws(images) -> None:
  pipeline = load(images, 'stream', crop_scale=(0.3, 0.6)).train
  paths = sorted(pathlib.Path(images).glob('train/*/*.jpg'))
  for step, feed in enumerate(pipeline.step_inputs(2, 5), 2):
    index, draws = sampler.train_indices(5, step, 8, 26), stream.crop_draws(5, step, 8)
    for row in range(8):
      path = paths[index[row]]
      expected = decode.decode_crops(path.read_bytes(), 16, (0.3, 0.6), draws[row].tolist())
      np.testing.assert_array_equal(feed['image'][row], expected)
      assert feed['label'][row] == 'ab'.index(path.parent.name)


def test_draws_are_uniform_and_independent() -> None:
  draws = stream.crop_draws(0, 0, 4096)
  assert draws.shape == (4096, stream.ATTEMPTS, 4)
  assert (draws.min() >= 0) & (draws.max() < 1)
  counts = np.histogram(draws, 20, (0, 1))[0]
  assert ((counts - draws.size / 20) ** 2 / (draws.size / 20)).sum() < 43.8  # chi-squared, 19 degrees, p = 0.001
  np.testing.assert_array_equal(stream.crop_draws(0, 0, 7), draws[:7])
  for seed, step in ((0, 1), (1, 0)):
    assert not np.isin(stream.crop_draws(seed, step, 64), draws).any()
  permuted = np.random.Philox(key=[0, 0]).random_raw(4096) >> np.uint64(11)
  assert not np.isin(permuted * 2.0**-53, draws).any()


@pytest.mark.parametrize('batch_size', [1, 3, 7, 16])
def test_evaluation_has_every_example_once(batch_size: int, images) -> None:
  test = load(images, 'stream').test
  actual = list(test.eval_inputs(batch_size))
  assert {feed['image'].shape for feed in actual} == {(batch_size, 16, 16, 3)}
  rows = [image.tobytes() for feed in actual for image in feed['image'][feed['mask']]]
  assert len(rows) == len(set(rows)) == 7


def counting(size: int = 1000, fail_at: int | None = None):
  calls = []

  def get(index: int, draws: object) -> tuple[np.ndarray, int]:
    calls.append(index)
    if index == fail_at:
      raise InputError(f'example {index} is bad')
    return np.full((2, 2, 3), index % 256, np.uint8), index

  return calls, stream.Stream(stream.Examples(size, (2, 2, 3), get), batch_size=16, seed=0, workers=3)


def test_no_more_batches_are_made_ahead_than_set() -> None:
  calls, pipeline = counting()
  feeds = pipeline.step_inputs(0, 1000)
  for step in range(4):
    next(feeds)
    ahead = 16 * (step + 1 + stream.AHEAD)
    deadline = time.monotonic() + 60
    while len(calls) < ahead and time.monotonic() < deadline:  # the device is at work
      time.sleep(0.001)
    time.sleep(0.02)
    assert len(calls) == ahead
  feeds.close()


@pytest.mark.parametrize('end', ['close', 'drop', 'exhaust', 'islice', 'error'])
def test_threads_end_with_the_generator(end: str) -> None:
  _, pipeline = counting(200, fail_at=sampler.train_indices(0, 1, 16, 200)[9] if end == 'error' else None)
  feeds = pipeline.step_inputs(0, 4)
  next(feeds)
  assert threads()
  if end == 'close':
    feeds.close()
  elif end == 'drop':
    del feeds
  elif end == 'exhaust':
    assert len(list(feeds)) == 3
  elif end == 'islice':
    list(itertools.islice(feeds, 1))
    del feeds
  else:
    with pytest.raises(InputError, match='is bad'):
      list(feeds)
  assert threads() == []


def test_an_example_of_every_thread_arrives_in_its_row() -> None:
  _, pipeline = counting()
  for step, feed in enumerate(pipeline.step_inputs(0, 100)):
    np.testing.assert_array_equal(feed['label'], sampler.train_indices(0, step, 16, 1000))
    np.testing.assert_array_equal(feed['image'][:, 0, 0, 0], feed['label'] % 256)


def test_a_bad_image_is_replaced_as_in_the_resident_pipeline(images, capsys) -> None:
  for name in ('04', '06'):
    (pathlib.Path(images) / f'train/a/{name}.jpg').write_bytes(b'no image')
  options = {'crop_scale': (), 'max_bad': 2}
  streamed, resident = (load(images, pipeline, **options).train for pipeline in ('stream', 'resident'))
  expected = batches(resident, resident.step_inputs(0, 8))
  assert_equal(batches(streamed, streamed.step_inputs(0, 8)), expected)
  assert capsys.readouterr().err.count('bad training example 2 of at most 2') == 2
  strict = load(images, 'stream', max_bad=1).train
  with pytest.raises(InputError, match=r'0[46].jpg: cannot decode the image.*; data.max_bad is 1'):
    batches(strict, strict.step_inputs(0, 8))


def config(pipeline: str, path: str) -> dict:
  return {
    'model': {'name': 'tiny'},
    'data': {'name': 'folder', 'path': path, 'pipeline': pipeline, 'image_size': 16, 'batch_size': 8, 'crop_scale': ()},
    'augment': {'flip': True},
    'train': {'epochs': 2, 'eval_batch_size': 8},
  }


def test_training_on_a_stream(images, tiny, tmp_path) -> None:
  streamed, resident = (
    loop.train_and_evaluate(config(pipeline, images), tmp_path / 'runs' / pipeline)
    for pipeline in ('stream', 'resident')
  )
  assert 'test/top1' in streamed
  same = {key for key in streamed if 'loss' in key or 'top' in key}
  assert {key: streamed[key] for key in same} == {key: resident[key] for key in same}
  assert threads() == []
  assert jax.device_count() == 8
