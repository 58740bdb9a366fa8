"""Every command and every piece of Python in the README and in docs/ is run, on little data; some only with -m slow."""

import argparse
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from scipy import stats

from jaxres import cli, command_line, weights
from jaxres import config as config_lib
from jaxres.runtime import sharding
from jaxres.train import loop, seeds
from jaxres.train.setup import make_setup
from jaxres.train.step import Hyperparameters
from tests import house
from tests.helpers import ROOT, make_arrays
from tests.weights.files import make_state

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}


def blocks(language: str) -> list[tuple[str, str]]:
  fence = re.compile(rf'^```{language}\n(.*?)^```', re.MULTILINE | re.DOTALL)
  return [(page.name, code) for page in PAGES for code in fence.findall(page.read_text())]


def commands(start: str) -> list[str]:
  lines = [line for _, code in blocks('bash') for line in code.splitlines()]
  return sorted({line for line in lines if line.startswith(start)})


def run(arguments: list[str], cwd: pathlib.Path) -> subprocess.CompletedProcess:
  return subprocess.run(arguments, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def test_every_command_is_of_a_kind_that_is_run() -> None:
  lines = [line for _, code in blocks('bash') for line in code.splitlines() if line]
  known = ('python main.py ', 'python benchmarks/', 'jaxres ', 'python3 -m venv ')
  assert [line for line in lines if not line.startswith(known)] == []
  assert commands('python main.py ')
  assert commands('jaxres ')
  assert blocks('python')


def options_of(line: str, directory: pathlib.Path, model: str) -> tuple[Any, int]:
  """Return the config that a command asks for, on little data in ``directory`` and a little model, and its seeds."""
  flags = argparse.ArgumentParser(allow_abbrev=False)
  others = [(f'--{name}', str) for name in ('coordinator', 'num_processes', 'process_id')]  # see test_distributed
  for name, kind in (('--config', str), ('--workdir', str), ('--seeds', int), *others):
    flags.add_argument(name, type=kind, default=1)
  args, fields = flags.parse_known_args(shlex.split(line)[2:])
  assert all(field.startswith('--config.') for field in fields)
  assert args.workdir.startswith('runs/')
  data = directory / 'data.npz'
  np.savez(data, **make_arrays((160, 24), shape=(32, 32, 3), classes=10))
  size = 64 if 'accumulate=8' in line else 16  # so that the 8 devices divide each part
  little = ['--config.data.name=arrays', f'--config.data.path={data}', f'--config.data.batch_size={size}']
  little += ['--config.train.eval_batch_size=16', f'--config.model.name={model}']
  little += [] if 'overfit' in line else ['--config.train.dry_run=True']
  options = command_line.load(args.config, [*fields, *little])
  if options.init.source:
    weights.write(directory / 'tiny.pth', make_state(10))
    options.init.source = str(directory / 'tiny.pth')
  return options, args.seeds


@pytest.mark.parametrize('line', commands('python main.py '))
def test_training_commands_can_be_compiled(line: str, tmp_path, tiny: str, monkeypatch) -> None:
  monkeypatch.chdir(ROOT)
  options, _ = options_of(line, tmp_path, tiny)
  setup = make_setup(config_lib.to_dict(options) | {'train': config_lib.to_dict(options)['train'] | {'dry_run': False}})
  setup.dataset.place(setup.mesh)
  state = jax.eval_shape(setup.create, setup.key)
  group = jax.tree.map(lambda array: array[None], next(setup.dataset.train.step_inputs(0, 1)))
  feeds = sharding.make_global_arrays(group, sharding.scan_sharding(setup.mesh))
  rest = (setup.key, setup.dataset.train.device_data, feeds, Hyperparameters(), setup.extras)
  state, sums = jax.eval_shape(setup.train_steps, state, *rest)
  assert sums['count'].shape == state.step.shape == ()


@pytest.mark.slow
@pytest.mark.parametrize('line', commands('python main.py '))
def test_training_commands_run(line: str, tmp_path, tiny: str, monkeypatch) -> None:
  monkeypatch.chdir(ROOT)
  options, count = options_of(line, tmp_path, tiny)
  if count == 1:
    assert 'test/top1' in loop.train_and_evaluate(options, tmp_path / 'run')
  else:
    assert len(seeds.train_and_evaluate(options, tmp_path / 'run', count)['test/top1'].values) == count


LITTLE_WORK = '--model resnet20 --batch_size 8 --image_size 8'
LITTLE = {  # words that make it so, how many rows, their figure
  'benchmarks/train_step.py': (f'{LITTLE_WORK} --rounds 1 --seconds 0.1', 3, 'images_per_s'),
  'benchmarks/inference.py': (f'{LITTLE_WORK} --rounds 1 --seconds 0.1', 3, 'images_per_s'),
  'benchmarks/compile.py': (f'{LITTLE_WORK} --rounds 1', 2, 'compile_s'),
  'benchmarks/scaling.py': (f'{LITTLE_WORK} --rounds 1 --seconds 0.1 --devices 1 2', 2, 'images_per_s'),
  'benchmarks/projection.py': ('--model resnet20', 6, 'images_per_s'),
  'benchmarks/limit.py': (LITTLE_WORK, 1, 'limit_images_per_s'),
  'benchmarks/end_to_end.py': (
    '--seeds 1 --config.train.epochs=1 --config.data.limit=128 --config.optim.warmup_epochs=0.5', 2, 'images_per_s'
  ),
  'benchmarks/input.py': ('--images 10 --batch_size 2 --image_size 32 --rounds 1 --seconds 0.1', 4, 'images_per_s'),
  'benchmarks/waiting.py': (
    '--model resnet20 --images 16 --batch_size 8 --image_size 16 --rounds 1 --steps 1', 2, 'images_per_s'
  ),
  'benchmarks/planted_patch.py': ('--images 128 --tests 4 --epochs 2', 6, 'chance'),
  'benchmarks/flipped_labels.py': (
    '--flip 0.1 --config.data.name=digits --config.train.epochs=1 --config.optim.warmup_epochs=0.5', 2, 'flipped'
  ),
}  # fmt: skip
FAST = ('train_step', 'input', 'limit', 'projection')
BENCHMARKS = [
  pytest.param(line, marks=[pytest.mark.slow] * (not any(f'/{name}.py' in line for name in FAST)))
  for line in commands('python benchmarks/')
]


@pytest.mark.bench
@pytest.mark.torch
@pytest.mark.parametrize('line', BENCHMARKS)
def test_benchmarks_run(line: str) -> None:
  pytest.importorskip('torch')
  _, script, *words = shlex.split(line)
  little, count, figure = LITTLE[script]
  done = run([sys.executable, script, *words, *little.split()], ROOT)
  assert done.returncode == 0, done.stderr
  rows = [json.loads(row) for row in done.stdout.splitlines() if row.startswith('{')]
  assert len(rows) == count
  assert all(row[figure] > 0 and row['versions']['jax'] for row in rows)
  assert all(60_000 < row.get('mean_jpeg_bytes', 70_000) < 80_000 for row in rows)


@pytest.mark.parametrize('line', commands('jaxres '))
def test_tools_know_their_commands(line: str, monkeypatch) -> None:
  called = []
  tool = cli.TOOLS[shlex.split(line)[1]]
  module = __import__(tool.module, fromlist=['run'])
  monkeypatch.setattr(module, 'run', called.append)
  cli.main(shlex.split(line)[1:])
  assert len(called) == 1


@pytest.mark.parametrize(
  ('page', 'code'),
  [(page, code) for page, code in blocks('python') if page != 'known-issues.md'],  # see test_known_issues.py
  ids=lambda value: value[:24],
)
def test_python_runs(page: str, code: str, tmp_path) -> None:
  (tmp_path / 'code.py').write_text(code)
  done = run([sys.executable, 'code.py'], tmp_path)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
  for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
    assert target.startswith('https://') or (page.parent / target).exists(), f'{page.name}: {target}'


def test_the_quick_figure_is_that_of_its_log() -> None:
  rows = [json.loads(line) for line in (ROOT / 'docs/resnet20_cifar_quick.jsonl').read_text().splitlines()]
  top1 = rows[-1]['test/top1']
  assert rows[-1]['epoch'] == pytest.approx(5, abs=0.01)
  assert f'{top1:.2%}'.replace('%', ' %') in (ROOT / 'README.md').read_text()


def test_the_ablation_is_that_of_its_runs() -> None:
  runs = json.loads((ROOT / 'docs/ablation.json').read_text())
  table = (ROOT / 'docs/results.md').read_text()
  for name, label in (
    ('none', 'none'),
    ('crop_flip', 'crop + flip'),
    ('cutout', 'crop + flip + cutout'),
    ('mixup', 'crop + flip + mixup'),
  ):
    top1 = np.array(runs[name]['test/top1'])
    assert len(set(top1)) == 3
    low, high = stats.t.interval(0.95, 2, top1.mean(), stats.sem(top1))
    shown = f'{top1.mean():.2%} ± {top1.std(ddof=1):.2%} | {low:.2%} to {high:.2%}'.replace('%', ' %')
    assert any(row.startswith(f'| {label} |') and shown in row for row in table.splitlines()), shown


def test_the_page_on_the_architecture_has_every_file_as_its_docstring_says() -> None:
  page = (ROOT / 'docs/architecture.md').read_text()
  assert house.table_of_files(house.PACKAGE) in page, 'python -m tests.house --write'
