import json
import pathlib

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxres import checkpoint, evaluate
from jaxres.errors import InputError
from jaxres.models import dtypes
from jaxres.train import loop
from tests.helpers import make_arrays, merge, rows
from tests.train.runs import final_state, interrupt_training


def quiet(metrics: dict) -> dict:
  return {k: v for k, v in metrics.items() if not k.endswith('images_per_s')}


@pytest.mark.curves
def test_a_run_learns_and_leaves_what_it_promises(config: dict, tmp_path) -> None:
  actual = loop.train_and_evaluate(merge(config, train={'epochs': 12}, augment={'crop_pad': 0}), tmp_path / 'run')
  assert actual['test/top1'] > 0.9
  assert actual['train/loss'] < 0.5
  names = {path.name.split('.out')[0] for path in (tmp_path / 'run').iterdir()}
  assert names == {
    'checkpoints',
    'config.json',
    'data.json',
    'environment.json',
    'metrics.jsonl',
    'events',
    'curves.png',
    'parameters.txt',
  }
  assert json.loads((tmp_path / 'run/config.json').read_text())['optim']['momentum'] == 0.9
  assert rows(tmp_path / 'run')[-1]['test/top1'] == pytest.approx(actual['test/top1'], rel=1e-6)
  assert 'stage1/block0/conv1/kernel' in (tmp_path / 'run/parameters.txt').read_text()


@pytest.mark.parametrize('options', [{}, {'ema': 0.9, 'accumulate': 2}])
def test_an_interrupted_run_ends_bit_identical(config: dict, tmp_path, monkeypatch, options: dict) -> None:
  config = merge(config, data={'val': 0.25}, train=options)
  complete = loop.train_and_evaluate(config, tmp_path / 'whole')
  interrupt_training(config, tmp_path / 'parts', monkeypatch)
  again = loop.train_and_evaluate(config, tmp_path / 'parts')
  assert quiet(again) == quiet(complete)
  assert rows(tmp_path / 'parts') == rows(tmp_path / 'whole')
  a, b = final_state(tmp_path / 'parts'), final_state(tmp_path / 'whole')
  assert a.keys() == b.keys()
  assert len(a) > 20
  assert sum('ema' in name for name in a) == (
    sum(name.startswith(("['params']", "['batch_stats']")) for name in a) if 'ema' in options else 0
  )
  assert {'ema/val/top1', 'ema/test/loss', 'best/ema/test/top1'} <= again.keys() or not options
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_finished_run_returns_its_metrics_and_is_extended_by_more_epochs(config: dict, tmp_path, capsys) -> None:
  first = loop.train_and_evaluate(config, tmp_path / 'run')
  assert loop.train_and_evaluate(config, tmp_path / 'run') == first
  assert 'is finished' in capsys.readouterr().out
  loop.train_and_evaluate(merge(config, train={'epochs': 6}), tmp_path / 'run')
  assert 'continuing' in capsys.readouterr().out
  steps = [row['step'] for row in rows(tmp_path / 'run')]
  assert steps == sorted(set(steps))
  assert steps[-1] == 36  # 6 epochs of 96 / 16 steps
  assert json.loads((tmp_path / 'run/config.json').read_text())['train']['epochs'] == 6


def read_stored_dtype(workdir: pathlib.Path) -> str:
  return json.loads((workdir / 'config.json').read_text())['model']['dtype']


def test_what_auto_means_is_stored_and_stays(config: dict, tmp_path, capsys, monkeypatch) -> None:
  workdir, auto = tmp_path / 'run', merge(config, model={'dtype': 'auto'}, train={'epochs': 1})
  loop.train_and_evaluate(merge(auto, model={'dtype': 'bfloat16'}), workdir)
  assert 'in bfloat16' in capsys.readouterr().out
  loop.train_and_evaluate(merge(auto, train={'epochs': 2}), workdir)
  assert read_stored_dtype(workdir) == 'bfloat16'
  monkeypatch.setattr(dtypes, 'BFLOAT16_ON_CPUS', False)
  loop.train_and_evaluate(auto, tmp_path / 'other')
  assert read_stored_dtype(tmp_path / 'other') == ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
  assert 'not the bits' not in capsys.readouterr().out


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='elsewhere it was bfloat16')
def test_auto_of_an_older_run_is_float32_on_a_cpu(config: dict, tmp_path, monkeypatch) -> None:
  monkeypatch.setattr(dtypes, '_has_fast_bfloat16', lambda: True)
  auto = merge(config, model={'dtype': 'auto'}, train={'epochs': 1})
  loop.train_and_evaluate(merge(auto, model={'dtype': 'float32'}), tmp_path / 'run')
  stored = json.loads((tmp_path / 'run/config.json').read_text())
  stored['model']['dtype'] = 'auto'
  (tmp_path / 'run/config.json').write_text(json.dumps(stored))
  loop.train_and_evaluate(merge(auto, train={'epochs': 2}), tmp_path / 'run')
  assert read_stored_dtype(tmp_path / 'run') == 'float32'


def test_a_run_goes_on_in_another_dtype_and_says_so(config: dict, tmp_path, capsys) -> None:
  config = merge(config, train={'epochs': 1})
  loop.train_and_evaluate(merge(config, model={'dtype': 'float32'}), tmp_path / 'run')
  loop.train_and_evaluate(merge(config, model={'dtype': 'bfloat16'}, train={'epochs': 2}), tmp_path / 'run')
  output = capsys.readouterr().out
  assert 'model.dtype: float32 until now, bfloat16 from here on: not the bits' in output
  assert read_stored_dtype(tmp_path / 'run') == 'bfloat16'


def test_keep_best_and_early_stopping_look_at_validation(config: dict, tmp_path, monkeypatch) -> None:
  top1 = iter([0.2, 0.6, 0.5, 0.6, 0.9])
  fake = lambda *args: {'val/top1': next(top1), 'test/top1': 0.1}
  monkeypatch.setattr(evaluate, 'evaluate_splits', fake)
  config = merge(config, data={'val': 0.25}, train={'patience': 2, 'epochs': 5})
  actual = loop.train_and_evaluate(config, tmp_path / 'run')
  assert (actual['best/val/top1'], actual['val/top1']) == (0.6, 0.6)
  with checkpoint.open_manager(tmp_path / 'run/checkpoints') as manager:
    assert manager.all_steps() == [9, 18]  # the best, at 2 epochs of 72 / 16 steps, and the latest, at 4
  assert actual['best/step'] == 9
  assert loop.train_and_evaluate(config, tmp_path / 'run') == actual  # a stopped run stays stopped


def test_keep_best_and_early_stopping_look_at_the_moving_average(config: dict, tmp_path, monkeypatch) -> None:
  top1 = iter([(0.9, 0.2), (0.1, 0.6), (0.9, 0.5), (0.95, 0.6), (0.97, 0.9)])
  fake = lambda *args: dict(zip(('val/top1', 'ema/val/top1'), next(top1), strict=True)) | {'test/top1': 0.1}
  monkeypatch.setattr(evaluate, 'evaluate_state', fake)
  config = merge(config, data={'val': 0.25}, train={'patience': 2, 'epochs': 5, 'ema': 0.9})
  actual = loop.train_and_evaluate(config, tmp_path / 'run')
  assert (actual['best/ema/val/top1'], actual['best/step'], actual['val/top1']) == (0.6, 9, 0.95)
  with checkpoint.open_manager(tmp_path / 'run/checkpoints') as manager:
    assert manager.all_steps() == [9, 18]


def test_all_that_is_new_trains_together(config: dict, tmp_path) -> None:
  options = dict(name='lamb', lr=0.05, schedule='onecycle', clip_norm=1.0, l1=1e-5, layer_decay=0.9)
  train_options = dict(loss='sigmoid_xent', label_smoothing=0.1, ema=0.9, accumulate=2, epochs=12)
  config = merge(config, optim=options | {'lr_mult': (('stem/.*', 0.5),)}, train=train_options)
  actual = loop.train_and_evaluate(merge(config, augment={'crop_pad': 0}), tmp_path / 'run')
  assert actual['test/top1'] > 0.9
  assert actual['ema/test/top1'] > 0.9
  assert actual['train/top1'] > 0.9
  assert actual['ema/test/loss'] != actual['test/loss']


@pytest.mark.parametrize('scan_steps', [1, 3])
def test_a_run_compiles_one_program_or_two_and_another_seed_none(
  config: dict, tmp_path, monkeypatch, scan_steps
) -> None:
  made, make_setup = [], loop.make_setup
  monkeypatch.setattr(loop, 'make_setup', lambda *args, **more: made.append(make_setup(*args, **more)) or made[-1])
  fields = {'scan_steps': scan_steps, 'log_every_steps': 4, 'epochs': 2.5}  # 4 = 3 + 1 steps between rows of the log
  metrics = loop.train_and_evaluate(merge(config, train=fields), tmp_path / 'run')
  assert made[0].train_steps._cache_size() == (1 if scan_steps == 1 else 2)
  assert made[0].eval_steps['']._cache_size() == 1
  plain = loop.train_and_evaluate(merge(config, train=fields | {'scan_steps': 1}), tmp_path / 'plain')
  assert metrics['test/loss'] == pytest.approx(plain['test/loss'], rel=1e-4)
  assert [row['step'] for row in rows(tmp_path / 'run')] == [4, 6, 8, 12, 15]


def test_programs_are_kept_for_the_next_run_and_every_seed(config: dict, tmp_path, monkeypatch) -> None:
  kept = tmp_path / 'kept'
  monkeypatch.setenv('XDG_CACHE_HOME', str(kept))
  before = {
    name: jax.config.values[name]
    for name in ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  }
  jax.config.update('jax_compilation_cache_dir', None)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  programs = lambda: {p.name for p in kept.rglob('jit_*-cache') if 'train_steps' in p.name or 'create' in p.name}
  try:
    actual = []
    for seed in (0, 1):
      compilation_cache.reset_cache()
      jax.clear_caches()
      loop.train_and_evaluate(merge(config, train={'seed': seed, 'epochs': 1}), tmp_path / f'{seed}')
      actual.append(programs())
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
  assert len(actual[0]) == 2
  assert actual[1] == actual[0]


def test_dry_run_takes_two_steps_aside(config: dict, tmp_path) -> None:
  config = merge(config, train={'dry_run': True, 'epochs': 3}, optim={'warmup_epochs': 2})
  for _ in range(2):
    actual = loop.train_and_evaluate(config, tmp_path / 'run')
  assert {'train/loss', 'test/top1'} <= actual.keys()
  assert [row['step'] for row in rows(tmp_path / 'run/dry_run')] == [2]
  assert [path.name for path in (tmp_path / 'run').iterdir()] == ['dry_run']
  with checkpoint.open_manager(tmp_path / 'run/dry_run/checkpoints') as manager:
    assert manager.all_steps() == [2]


def test_one_batch_is_learned_by_heart(config: dict, tmp_path) -> None:
  config = merge(config, train={'overfit_one_batch': True, 'epochs': 30}, optim={'warmup_epochs': 5})
  actual = loop.train_and_evaluate(config, tmp_path / 'run')
  assert actual['train/top1'] == 1.0
  assert actual['train/loss'] < 0.05
  assert rows(tmp_path / 'run')[-1]['step'] == 200


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': {'name': 'resnet81'}}, r"model.name: unknown model 'resnet81'; did you mean 'resnet18'\?"),
    ({'model': {'num_classes': 3}}, 'model.num_classes: 3, but the data asks for 4 outputs'),
    ({'data': {'batch_size': 13}}, 'data.batch_size: 13 is not divided by 2 devices; use 12 or 14'),
    ({'data': {'batch_size': 0}}, 'data.batch_size: expected 1 or more, found 0'),
    ({'train': {'epochs': 0}}, 'train.epochs: expected more than 0, found 0'),
    ({'train': {'epochs': 1e12}}, 'train.epochs: 1e.12 epochs are .* steps'),
    ({'train': {'eval_every_epochs': 1e-9}}, 'evaluations; expected at most'),
    ({'optim': {'schedule': 'step', 'milestones': (9,)}}, 'optim.milestones: expected epochs between 0 and 4, found'),
    ({'train': {'log_every_steps': 0}}, 'train.log_every_steps: expected more than 0'),
    ({'train': {'patience': -1}}, 'train.patience: expected 0 or more'),
    ({'train': {'patience': 2}}, 'train.patience: early stopping looks at the validation split; set data.val'),
    ({'train': {'ema': 1.0}}, r'train.ema: expected a value in \[0, 1\), found 1.0'),
    ({'train': {'seed': -1}}, 'train.seed: expected a value in .*, found -1'),
    ({'checkpoint': {'keep_latest': 0}}, 'checkpoint.keep_latest: expected 1 or more'),
    ({'tta': {'crop': 9}}, 'tta: crops of 9 from images of 8x8 padded by 0'),
    ({'train': {'target_threshold': 0.2}}, "train.target_threshold: only train.loss='sigmoid_xent' has one"),
    ({'train': {'accumulate': 0}}, 'train.accumulate: expected 1 or more, found 0'),
    ({'train': {'accumulate': 3}}, 'train.accumulate: 3 parts of a batch of 16 are not equal on 2 devices; use a data'),
    ({'train': {'accumulate': 16}}, 'a data.batch_size that is a multiple of 32'),
    ({'train': {'loss': 'xent'}}, 'train.loss: unknown loss'),
    ({'optim': {'warmup_epochs': 9}}, 'optim.warmup_epochs: 9.0 is not less than the '),
  ],
)
def test_bad_input_ends_before_anything_is_compiled(config: dict, tmp_path, monkeypatch, changes, message: str) -> None:
  monkeypatch.setattr(loop, 'restore_or_init', lambda *_: pytest.fail('too late'))
  with pytest.raises(InputError, match=message):
    loop.train_and_evaluate(merge(config, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_augmentation_that_the_images_cannot_have(config: dict, tmp_path, npz) -> None:
  config = merge(config, augment={'policy': 'trivialaugment'}, data={'path': npz(**make_arrays(shape=(8, 8, 4)))})
  with pytest.raises(InputError, match='channels'):
    loop.train_and_evaluate(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_workdir_of_another_config_is_left_alone(config: dict, tmp_path) -> None:
  loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'run')
  before = final_state(tmp_path / 'run')
  with pytest.raises(InputError, match=r'holds a run of another config: optim.lr was 0.1 there and is 0.2 now'):
    loop.train_and_evaluate(merge(config, optim={'lr': 0.2}), tmp_path / 'run')
  after = final_state(tmp_path / 'run')
  assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'class_names': list('abcd')}, 'class_names was .* there and is '),
    ({'train_x': 95, 'train_y': 95}, 'splits was .*96 examples.* there and is .*95 examples'),
    ({'train_x': 'grey', 'test_x': 'grey'}, 'image_shape was .*8, 8, 3.* there and is .*8, 8, 1'),
  ],
)
def test_a_workdir_of_other_data_is_left_alone(config: dict, tmp_path, npz, change: dict, message: str) -> None:
  loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'run')
  written = {name: (tmp_path / 'run' / name).read_text() for name in ('config.json', 'data.json')}
  content = make_arrays()
  for name, value in change.items():
    content[name] = (
      content[name][..., :1] if value == 'grey' else content[name][:value] if name != 'class_names' else value
    )
  with pytest.raises(InputError, match=f'holds a run on other data: {message}'):
    loop.train_and_evaluate(merge(config, data={'path': npz(**content)}), tmp_path / 'run')
  assert {name: (tmp_path / 'run' / name).read_text() for name in written} == written


@pytest.mark.parametrize('name', ['config.json', 'data.json'])
def test_a_damaged_file_of_the_run_is_named(config: dict, tmp_path, name: str) -> None:
  (tmp_path / 'run/checkpoints/1').mkdir(parents=True)
  (tmp_path / 'run' / name).write_text('{"mo')
  with pytest.raises(InputError, match=f'{name}: cannot be read'):
    loop.train_and_evaluate(config, tmp_path / 'run')


def test_a_workdir_of_before_a_field_was_there_continues(config: dict, tmp_path) -> None:
  loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / 'run')
  stored = json.loads((tmp_path / 'run/config.json').read_text())
  del stored['train']['ema'], stored['train']['accumulate'], stored['optim']['lr_mult'], stored['optim']['l1']
  (tmp_path / 'run/config.json').write_text(json.dumps(stored))
  with pytest.raises(InputError, match=r'train.ema was 0.0 there and is 0.9 now'):
    loop.train_and_evaluate(merge(config, train={'ema': 0.9}), tmp_path / 'run')
  loop.train_and_evaluate(merge(config, train={'epochs': 2}), tmp_path / 'run')
  assert rows(tmp_path / 'run')[-1]['step'] == 12


def test_a_refused_command_leaves_the_workdir_as_it_was(config: dict, tmp_path) -> None:
  config = merge(config, optim={'warmup_epochs': 2})
  loop.train_and_evaluate(config, tmp_path / 'run')
  before = (tmp_path / 'run/config.json').read_text()
  for name in ('run', 'other'):
    with pytest.raises(InputError, match='optim.warmup_epochs: 2.0 is not less than the '):
      loop.train_and_evaluate(merge(config, train={'epochs': 1}), tmp_path / name)
  assert (tmp_path / 'run/config.json').read_text() == before
  assert not (tmp_path / 'other').exists()


def test_a_workdir_below_a_file(config: dict, tmp_path) -> None:
  (tmp_path / 'file').write_text('x')
  with pytest.raises(InputError, match='--workdir: cannot make .*Not a directory'):
    loop.train_and_evaluate(config, tmp_path / 'file/run')


def test_a_workdir_that_is_a_file(config: dict, tmp_path) -> None:
  (tmp_path / 'run').write_text('x')
  with pytest.raises(InputError, match='is a file; expected a directory'):
    loop.train_and_evaluate(config, tmp_path / 'run')


def test_what_was_loaded_and_what_is_fresh_in_one_line() -> None:
  fresh = jax.ShapeDtypeStruct((2,), 'float32')
  loaded = {'params': {'stem': {'k': np.ones(2)}, 'head': {'k': fresh}}, 'batch_stats': {'stem': {'mean': np.ones(2)}}}
  assert loop.describe_initial('x.pth', loaded) == 'weights of x.pth: 2 tensors; fresh: head'
  assert loop.describe_initial('x.pth', {'params': {'stem': np.ones(2)}}) == 'weights of x.pth: 1 tensors; fresh: none'
