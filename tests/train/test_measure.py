"""The memory and the time of a step, before a training."""

import pytest

from jaxres import config as config_lib
from jaxres.errors import InputError
from jaxres.train import measure
from jaxres.train.measure import Speed


def test_the_batch_is_halved_until_it_fits(config) -> None:
  size, needed, free = measure.fit_batch(config)
  assert size == config['data']['batch_size']
  assert 0 < needed < free
  config['data']['batch_size'] = 32
  fits = measure.fit_batch(config, free=1 << 40)
  half, less, _ = measure.fit_batch(config, free=int(fits[1] / measure.SHARE) - 1)
  assert (fits[0], half) == (32, 16)
  assert less < fits[1]
  with pytest.raises(InputError, match='choose a smaller size, such as --image-size 64'):
    measure.fit_batch(config, free=1000)


def test_a_measured_training(config) -> None:
  setup, speed = measure.measure(config)
  assert setup.config == config_lib.to_dict(config_lib.complete(config))
  assert 0 < speed.step < speed.compiling
  assert speed.evaluation > 0


def test_the_epochs_that_fit_into_a_time() -> None:
  speed = Speed(compiling=10.0, step=0.1, evaluation=1.0)
  epochs = measure.fit_epochs(speed, steps_per_epoch=50.0, seconds=600.0)
  assert epochs * 50 * 0.1 + 8 * 1.0 + 10.0 == pytest.approx(measure.MARGIN * 600, rel=0.01)
  assert measure.fit_epochs(speed, 50.0, 1200.0) > 2 * epochs
  with pytest.raises(InputError, match='--time: 15 s are left, and one step takes 20 s with all around it; give more'):
    measure.fit_epochs(speed, 50.0, 15.0)
