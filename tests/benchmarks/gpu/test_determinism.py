"""Two trainings from nothing, compared."""

import pytest

from benchmarks.gpu import determinism


def test_two_trainings_are_compared() -> None:
  row = lambda digest, speed: {'digest': digest * 64, 'images_per_s': speed, 'accuracy': 0.5}
  actual = determinism.compare_runs([row('a', 10.0), row('a', 30.0)])
  assert (actual['same_digest'], actual['images_per_s'], actual['spread'], actual['runs']) == (
    True,
    20.0,
    [10.0, 30.0],
    2,
  )
  assert not determinism.compare_runs([row('a', 10.0), row('b', 30.0)])['same_digest']


@pytest.mark.slow
def test_two_trainings_on_a_cpu_end_with_the_same_bits(npz, monkeypatch) -> None:
  monkeypatch.delenv('XLA_FLAGS')
  words = ['configs/resnet18_cifar.py', '--config.data.name=arrays', f'--config.data.path={npz()}']
  words += ['--config.data.batch_size=16', '--config.model.name=resnet20', '--config.optim.warmup_epochs=0.0']
  words += ['--config.train.epochs=0.3']
  first, second = (determinism.train(words) for _ in range(2))
  assert first['digest'] == second['digest']
  assert len(first['digest']) == 64
