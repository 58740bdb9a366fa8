"""The suite for a GPU: what is done, skipped, left and stopped; its commands on little; no test looks at a speed."""

import json
import pathlib
import time

import jax
import numpy as np
import pytest

from benchmarks import harness, sides, table
from benchmarks.gpu import knobs, suite
from benchmarks.gpu.suite import UnitError
from benchmarks.gpu.units import BY_KERNEL, Unit, make_units, shrink
from jaxres import command_line, models, state
from jaxres.data import augment
from jaxres.models import cpu, layers
from tests.helpers import benchmark_arguments

HOUR = 3600.0


class Runner:
  """Does units by what it was told of them, and remembers which it did."""

  def __init__(self, **actual: object):
    self.actual, self.done = actual, []

  def __call__(self, unit: Unit, seconds: float) -> list[dict]:
    self.done.append(unit.name)
    result = self.actual.get(unit.name, {'side': 'jaxres', 'images_per_s': 1.0})
    if isinstance(result, Exception):
      raise result
    return [result]


def units(**estimates: float) -> list[Unit]:
  return [Unit(name, seconds, ('x.py',)) for name, seconds in estimates.items()]


def lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def run(path: pathlib.Path, todo: list[Unit], runner: Runner, seconds: float = HOUR, **options: object) -> int:
  runner.done.clear()
  return suite.run_all(todo, path, time.monotonic() + seconds, runner, **options)


def test_what_is_done_is_not_done_again(tmp_path) -> None:
  path, runner = tmp_path / 'results.jsonl', Runner()
  assert run(path, units(a=1, b=1), runner) == 0
  assert runner.done == ['a', 'b']
  assert run(path, units(a=1, c=1, b=1), runner) == 0
  assert runner.done == ['c']
  assert [row['unit'] for row in lines(path)] == ['a', 'b', 'c']
  assert all(row['images_per_s'] == 1.0 and row['call'] and row['unit_s'] >= 0 for row in lines(path))


def test_what_does_not_fit_is_left_and_what_is_behind_it_is_not(tmp_path, capsys) -> None:
  path, runner = tmp_path / 'results.jsonl', Runner()
  assert run(path, units(a=50, b=200, c=50), runner, seconds=100) == 0
  assert runner.done == ['a', 'c']
  assert 'b: not started: 200 s' in capsys.readouterr().out
  run(path, units(a=50, b=200, c=50), runner, seconds=300)
  assert runner.done == ['b']


def test_what_fails_leaves_a_line_and_the_next_starts(tmp_path, capsys) -> None:
  path, runner = tmp_path / 'results.jsonl', Runner(a=UnitError('status 3: boom', partial=[{'side': 'seed 0'}]))
  assert run(path, units(a=1, b=1), runner) == 1
  assert runner.done == ['a', 'b']
  failed, fine = lines(path)
  assert (failed['unit'], failed['error'], failed['partial']) == ('a', 'status 3: boom', [{'side': 'seed 0'}])
  assert fine['images_per_s'] == 1.0
  assert 'a (0.0 s): FAILED: status 3: boom' in capsys.readouterr().out
  assert run(path, units(a=1, b=1), runner) == 0
  assert runner.done == []
  runner.actual.clear()
  assert run(path, units(a=1, b=1), runner, retry=True) == 0
  assert runner.done == ['a']
  assert run(path, units(a=1, b=1), runner, retry=True) == 0
  assert runner.done == []


def test_what_was_stopped_is_done_again_with_more_time(tmp_path) -> None:
  path, runner = tmp_path / 'results.jsonl', Runner(a=UnitError('stopped after 100 s', stopped_after_s=100))
  run(path, units(a=1), runner, seconds=100)
  for seconds, expected in ((140, []), (160, ['a'])):
    run(path, units(a=1), runner, seconds=seconds)
    assert runner.done == expected


def test_what_needs_what_is_not_there_is_left(tmp_path, capsys) -> None:
  path, runner = tmp_path / 'results.jsonl', Runner()
  todo = [Unit('a', 1, ('x.py',), ('data', 'airbench')), Unit('b', 1, ('x.py',), ('data',))]
  run(path, todo, runner, missing={'airbench'})
  assert runner.done == ['b']
  assert 'a: not started: no --airbench' in capsys.readouterr().out


def test_a_line_that_a_kill_left_unfinished_does_not_count(tmp_path) -> None:
  path, runner = tmp_path / 'results.jsonl', Runner()
  path.write_text('{"unit": "a", "side": "x"}\n{"unit": "b", "si')
  run(path, units(a=1, b=1), runner)
  assert runner.done == ['b']
  assert [row['unit'] for row in suite.read(path)] == ['a', 'b']


def test_a_command_is_run_and_its_lines_are_kept(tmp_path) -> None:
  log = tmp_path / 'suite.log'
  (row,) = suite.run_unit(Unit('profile/x', 1, ('-m', 'this')), HOUR, log)
  assert row['lines'][0].startswith('The Zen of Python')
  assert row['device'] == harness.device_name()
  assert '== profile/x: -m this\nThe Zen' in log.read_text()
  with pytest.raises(UnitError, match='status 2: .*No such file'):
    suite.run_unit(Unit('x', 1, ('no_such.py',)), HOUR, log)
  endless = Unit(
    'x', 1, ('-m', 'timeit', '-n1', '-r1', 'print(\'{"a": 1}\', flush=True); import time; time.sleep(600)')
  )
  with pytest.raises(UnitError, match='stopped after 3 s') as stopped:
    suite.run_unit(endless, 3.0, log)
  assert stopped.value.facts == {'stopped_after_s': 3, 'partial': [{'a': 1}]}


def test_the_units_are_of_what_there_is() -> None:
  actual = make_units('/data.npz', '/airbench', '/scratch')
  names = [unit.name for unit in actual]
  assert len(set(names)) == len(names)
  assert names[:2] == ['speed/resnet18', 'speed/resnet50']
  assert {unit.stage for unit in actual} == set(suite.STAGES)
  assert {f'knobs/{model}_{name}' for name, knob in knobs.KNOBS.items() for model in knob.models} < set(names)
  assert all(unit.estimate_s <= 540 for unit in actual)
  for unit in actual:
    assert unit.words[0] == '-m' or (harness.ROOT / 'benchmarks' / unit.words[0]).exists()
    words = [word for word in shrink(unit).words if word.startswith(('configs/', '--config.'))]
    assert ('/data.npz' in ' '.join(unit.words)) == ('data' in unit.needs) or unit.name == 'profile/resnet50'
    if words:
      command_line.load(str(harness.ROOT / words[0]), words[1:])


def test_the_suite_shows_its_units(tmp_path, capsys) -> None:
  assert suite.main(['--out', str(tmp_path), '--list', '--stages', 'precision']) == 0
  assert '2 units, 430 s to do' in capsys.readouterr().out
  with pytest.raises(SystemExit):
    suite.main(['--out', str(tmp_path), '--units', 'speed/resnet19'])
  assert 'unknown speed/resnet19; there are accuracy/airbench94,' in capsys.readouterr().err


def test_a_rehearsal(tmp_path, capsys, monkeypatch) -> None:
  monkeypatch.delenv('XLA_FLAGS')
  words = ['--tiny', '--out', str(tmp_path), '--units', 'profile/resnet50', 'accuracy/resnet18_seeds']
  assert suite.main(words) == 0
  profiled, seed, mean = lines(tmp_path / 'results.jsonl')
  assert any('conv_general_dilated' in line for line in profiled['lines'])
  assert profiled['environment'] == BY_KERNEL
  assert (seed['side'], mean['side'], mean['seeds'], seed['steps']) == ('seed 0', 'mean', 1, 6)
  assert all(row['versions']['jax'] and row['commit'] for row in (profiled, seed, mean))
  assert suite.main(words) == 0
  assert len(lines(tmp_path / 'results.jsonl')) == 3
  printed = capsys.readouterr().out
  assert printed.count('accuracy/resnet18_seeds') == 2
  assert printed.endswith('failed: none; left: none\n')


def test_a_gain_is_the_inverse_of_a_ratio() -> None:
  row = knobs.with_gain({'side': 'scan_1', 'jaxres_is_times_as_fast': 1.25, 'ratio_spread': [0.5, 2.0]})
  assert (row['gain'], row['gain_spread'], row['predicted']) == (0.8, [0.5, 2.0], knobs.KNOBS['scan_1'].gain)


@pytest.mark.slow
@pytest.mark.torch
def test_the_complete_rehearsal(tmp_path, monkeypatch) -> None:
  pytest.importorskip('torch')
  monkeypatch.delenv('XLA_FLAGS')
  assert suite.main(['--tiny', '--out', str(tmp_path), '--budget_s', '36000']) == 0
  done = {row['unit'] for row in lines(tmp_path / 'results.jsonl')}
  every = {unit.name for unit in make_units('', '', '') if 'airbench' not in unit.needs}
  assert done == every


def test_every_knob_says_what_it_expects_on_its_row() -> None:
  cells = {cell.strip() for line in table.gains([]).splitlines() for cell in line.split('|')}
  for name, knob in knobs.KNOBS.items():
    assert {f'`{name}`: {knob.what}', f'{knob.gain:.2f}', knob.why} <= cells
    assert min(map(len, (knob.what, knob.why))) > 10, name
    assert 0.1 < knob.gain < 10, name
    assert set(knob.models) <= {'resnet18', 'resnet50'}, name
    assert knob.arguments or knob.options or knob.patch or knob.flags.startswith('--xla_gpu_'), name
  assert 'stem_deep' in knobs.of('resnet50')
  assert 'stem_deep' not in knobs.of('resnet18')


def test_a_fourth_channel_of_zeros_changes_no_logit(tiny: str, monkeypatch) -> None:
  for module, name in ((augment, 'normalize'), (state, 'init_variables')):
    monkeypatch.setattr(module, name, getattr(module, name))  # brings them back
  images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
  before = augment.normalize(images, sides.MEAN, sides.STD)
  knobs.pad_input()
  after = augment.normalize(images, sides.MEAN, sides.STD)
  assert after.shape == (2, 8, 8, 4)
  model = models.create(tiny, num_classes=4)
  wide = jax.jit(lambda: state.init_variables(model, (8, 8, 3), jax.random.key(0)))()
  kernel = wide['params']['stem']['conv']['kernel']
  assert kernel.shape == (3, 3, 4, 8)
  thin = jax.tree.map(lambda x: x[:, :, :3] if x is kernel else x, wide)
  logits = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
  np.testing.assert_allclose(logits(wide, after), logits(thin, before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['pad_input', 'bn_closed'])
def test_a_knob_is_set(name: str, tiny: str, monkeypatch) -> None:
  patched = ((augment, 'normalize'), (state, 'init_variables'), (layers, 'wants_cpu_forms'), (cpu, 'conv_cpu'))
  before = {(module, attribute): getattr(module, attribute) for module, attribute in patched}
  for (module, attribute), value in before.items():
    monkeypatch.setattr(module, attribute, value)
  work = knobs.build(benchmark_arguments('--scan_steps', '2', model=tiny), knobs.KNOBS[name])
  work.run(1)
  assert work.images == 16
  changed = [attribute for (module, attribute), value in before.items() if getattr(module, attribute) is not value]
  expected = {'pad_input': ['normalize', 'init_variables'], 'bn_closed': ['wants_cpu_forms', 'conv_cpu']}
  assert changed == expected[name]


def test_the_tables_of_the_suite() -> None:
  on = {'device': 'NVIDIA H100', 'cores': 16}
  row = on | {'benchmark': 'knobs', 'side': 'scan_1', 'model': 'resnet18', 'gain': 0.97, 'gain_spread': [0.96, 0.98]}
  actual = table.gains([{'jaxres': row | {'side': 'jaxres'}, 'scan_1': row}])
  assert '| resnet18 | 0.98 |' in actual
  assert '| 0.97 (0.96 to 0.98), NVIDIA H100 |' in actual
  assert actual.count('not measured') == sum(len(knob.models) for knob in knobs.KNOBS.values()) - 1
  row = on | {'benchmark': 'warm', 'side': 'mean', 'config': 'configs/a.py', 'seeds': 10, 'metric': 'tta/test/top1'}
  row |= {'overrides': ['--config.data.path=x', '--config.train.epochs=9'], 'accuracy': 0.9401, 'accuracy_std': 0.001}
  row |= {'seconds': 2.6, 'seconds_spread': [2.5, 2.7], 'environment': {'A': 'b'}}
  expected = (
    '| `configs/a.py` `--config.train.epochs=9` `A=b` | 10 | NVIDIA H100 | 94.01 % ± 0.10 % tta/test/top1 | 2.60 '
  )
  assert expected in table.warm_trainings([{'mean': row}])
  row = on | {'benchmark': 'determinism', 'side': 'default', 'config': 'a.py', 'same_digest': False}
  row |= {'images_per_s': 50_000.0, 'spread': [40_000.0, 60_000.0]}
  assert '| default mode | NVIDIA H100 | no | 50,000 (40,000 to 60,000) |' in table.twice([{'default': row}])


def test_a_side_finds_what_was_carried(monkeypatch) -> None:
  monkeypatch.setenv('PYTHONPATH', '/tmp/site')
  assert harness.python_path() == f'{harness.ROOT}:/tmp/site'
  monkeypatch.delenv('PYTHONPATH')
  assert harness.python_path() == str(harness.ROOT)
  monkeypatch.setenv('JAXRES_COMMIT', 'abc1234')
  assert harness.machine()['commit'] == 'abc1234'
