"""Each config runs two steps, one evaluation and one save on tiny data."""

import functools
import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

from jaxres import config as config_lib
from jaxres import data, models, weights
from jaxres.data.types import Arrays, Source
from jaxres.models import resnet
from jaxres.train import loop
from tests.helpers import ROOT, make_arrays

CONFIGS = sorted((ROOT / 'configs').glob('[!_]*.py'))


def load(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def shrink(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
  """Make the model called ``name`` compile in seconds: its kind of blocks, one a stage, of 8 channels."""
  complete_value = resnet.MODELS[name]
  stages, widths, block = complete_value.args
  little = functools.partial(
    complete_value.func, (1,) * len(stages), (8,) * len(widths), block, **complete_value.keywords
  )
  monkeypatch.setitem(resnet.MODELS, name, little)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_runs(path: pathlib.Path, tmp_path, monkeypatch) -> None:
  content = make_arrays((640, 16), shape=(32, 32, 3), classes=10)
  split = lambda name: Arrays(content[f'{name}_x'], content[f'{name}_y'].astype(np.int32))
  source = Source(split('train'), split('test'), tuple('abcdefghij'))
  monkeypatch.setattr(data, 'read_source', lambda *_: source)
  config = load(path).get_config()
  shrink(config.model.name, monkeypatch)
  config.train.dry_run = True
  config.data.batch_size = 16
  config.train.eval_batch_size = 8
  for size in ('image_size', 'eval_image_size'):
    if config.data[size]:
      config.data[size] = 32
  if config.init.source:
    model = models.create(config.model.name, num_classes=7)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), weights.abstract(model, 3))
    weights.write(tmp_path / 'ones.pth', weights.from_variables(ones, model))
    config.init.source = str(tmp_path / 'ones.pth')
  actual = loop.train_and_evaluate(config, tmp_path / 'run')
  assert np.isfinite(actual['train/loss'])
  assert 0 <= actual['test/top1'] <= 1


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_its_command(path: pathlib.Path) -> None:
  module = load(path)
  assert f'python main.py --config configs/{path.name} --workdir runs/' in module.__doc__
  assert re.search('Measured: .*%|(not|no accuracy is) measured', ' '.join(module.__doc__.split()), re.IGNORECASE)
  assert config_lib.complete(module.get_config()) == module.get_config()


def test_the_papers_recipe_takes_the_papers_steps() -> None:
  config = load(ROOT / 'configs/resnet20_cifar.py').get_config()
  steps_per_epoch = 45_000 / config.data.batch_size
  assert round(config.train.epochs * steps_per_epoch) == 64_000
  assert [round(m * steps_per_epoch) for m in config.optim.milestones] == [32_000, 48_000]
  assert (config.data.val, config.optim.lr, config.optim.weight_decay) == (0.1, 0.1, 1e-4)
