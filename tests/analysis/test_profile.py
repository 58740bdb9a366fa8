import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import cli
from jaxres.analysis import profile
from jaxres.runtime import limits
from tests.helpers import ROOT, merge


def test_a_trace_tells_what_ran_and_where_it_comes_from(tmp_path) -> None:
  def work(x: jax.Array) -> jax.Array:
    with jax.named_scope('stage1'):
      y = x @ x
    return jnp.sort(y.ravel())

  x = jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)), jnp.float32)
  compiled = jax.jit(work).lower(x).compile()

  def run(steps: int) -> None:
    for _ in range(steps):
      jax.block_until_ready(compiled(x))

  run(1)
  path = profile.trace(profile.Step(compiled, run, 1), 3, tmp_path)
  assert path.suffixes == ['.xplane', '.pb']
  actual = profile.operations(path, profile.instruction_sources(compiled.as_text()))
  by_source = {operation.source: operation for operation in actual}
  product, order = by_source['stage1/dot_general'], by_source['sort']
  assert product.calls == order.calls == 3
  assert actual == sorted(actual, key=lambda operation: -operation.seconds)
  assert all(operation.seconds > 0 for operation in (product, order))


@pytest.mark.parametrize(
  ('source', 'short'),
  [
    ('jit(train_step)/jvp(ResNet)/ResNet.features/stage1/block0/conv1/conv', 'stage1/block0/conv1/conv'),
    ('jit(train_step)/transpose(jvp(ResNet))/ResNet.features/stem/bn/mul', 'stem/bn/mul (gradient)'),
    ('jit(train_step)/while/body/add', 'add'),
    ('', ''),
  ],
)
def test_a_source_names_the_place_in_the_model(source: str, short: str) -> None:
  assert profile.short_source(source) == short


def test_the_profiled_step_is_the_trained_one(config: dict) -> None:
  step = profile.prepare(merge(config, train={'ema': 0.9, 'accumulate': 2}))
  assert step.images == 16
  step.run(3)
  assert profile.step_seconds(step, 5) > 0
  state = sum(leaf.nbytes for leaf in jax.tree.leaves(step.compiled.args_info[0][0]) if hasattr(leaf, 'nbytes'))
  assert profile.peak_memory(step.compiled) > state


def test_the_tool_prints_the_operations_and_leaves_the_trace(tmp_path, tiny: str, monkeypatch, capsys) -> None:
  monkeypatch.setattr(limits, 'measure', lambda *_: (1e12, 1e10))
  words = ['--config', str(ROOT / 'configs/digits.py'), f'--config.model.name={tiny}', '--config.data.batch_size=32']
  cli.main(['profile', *words, '--out', str(tmp_path / 'trace'), '--steps', '2', '--top', '3'])
  shown = capsys.readouterr().out
  for wanted in ('ms a step', 'images/s', 'FLOPs', 'share of that limit', 'peak memory', 'others'):
    assert wanted in shown
  assert [*pathlib.Path(tmp_path / 'trace').glob('**/*.xplane.pb')]


def test_bad_input(capsys) -> None:
  with pytest.raises(SystemExit):
    cli.main(['profile', '--config', str(ROOT / 'configs/digits.py'), '--steps', '0'])
  assert capsys.readouterr().err == 'error: --steps: expected 1 or more, found 0\n'
