"""The tests mirror the package path for path, and share nothing but modules of helpers."""

import ast
import pathlib

import pytest

from tests.helpers import ROOT

PACKAGE, TESTS = ROOT / 'jaxres', ROOT / 'tests'
# Modules without a test file at their path, and where their facts are tested instead, most often since a reader would
# look for them beside what uses them. A module that gets its file leaves the table: a test below sees to it.
ELSEWHERE = {
  # the parts of one thing that is tested as one
  'analysis/task_scores.py': 'train/test_second_task.py',
  'checkpoint/about.py': 'checkpoint/test_checkpoint.py',
  'checkpoint/disk.py': 'checkpoint/test_checkpoint.py',
  'checkpoint/manager.py': 'checkpoint/test_checkpoint.py',
  'data/fingerprints.py': 'data/test_splits.py',
  'data/images.py': 'data/sources/test_folder.py',
  'data/pixels.py': 'data/sources/test_memory.py',
  'data/prepare/writer.py': 'data/prepare/test_folder.py',
  'data/sources/cifar.py': 'data/prepare/test_cifar.py',
  'data/sources/csv_file.py': 'data/sources/test_folder.py',
  'data/sources/files.py': 'data/sources/test_folder.py',
  'data/statistics.py': 'data/test_data.py',
  'export/engines.py': 'export/test_benchmark.py',
  'export/formats.py': 'export/test_bundle.py',
  'export/graph.py': 'export/test_onnx.py',
  'export/network.py': 'export/test_onnx.py',
  'export/onnx_blocks.py': 'export/test_onnx.py',
  'log/console.py': 'log/test_run_log.py',
  'predictor.py': 'test_predict.py',
  'log/curves.py': 'log/test_run_log.py',
  'log/tensorboard.py': 'log/test_run_log.py',
  'models/__init__.py': 'models/test_resnet.py',
  'models/cpu.py': 'models/test_layers.py',
  'models/ops.py': 'models/test_layers.py',
  'models/stems.py': 'models/test_blocks.py',
  'optim/schedules.py': 'optim/test_optim.py',
  'optim/transforms.py': 'optim/test_optim.py',
  'report/charts.py': 'report/test_run_report.py',
  'report/html.py': 'report/test_run_report.py',
  'report/text.py': 'report/test_run_report.py',
  'runtime/lock.py': 'test_workdir.py',
  'runtime/memory.py': 'runtime/test_compiler.py',
  'tasks.py': 'test_evaluate.py',
  'train/gradients.py': 'train/test_step.py',
  'train/meter.py': 'log/test_run_log.py',
  'weights/architecture.py': 'weights/test_names.py',
  'weights/dtypes.py': 'weights/test_reader.py',
  'weights/parity.py': 'tools/test_convert.py',
  'weights/preprocessing.py': 'tools/test_convert.py',
  'weights/safetensors.py': 'weights/test_reader.py',
  'weights/selection.py': 'weights/test_reader.py',
  'weights/zipped.py': 'weights/test_hostile.py',
  # what is seen from outside alone: a command line, a table of arguments, an error at the end of a call
  '__main__.py': 'test_cli.py',
  'analysis/images.py': 'analysis/test_explain.py',
  'command_line.py': 'test_hints.py',
  'data/types.py': 'data/test_data.py',
  'files.py': 'test_readers.py',
  'models/dtypes.py': 'runtime/test_compiler.py',
  'report/error_report.py': 'analysis/test_label_errors.py',
  'runtime/environment.py': 'test_paths.py',
  'schema.py': 'test_readers.py',
  'train/options.py': 'test_config.py',
  'weights/__init__.py': 'weights/test_names.py',
  'weights/directories.py': 'weights/test_sources.py',
  'weights/network.py': 'weights/test_sources.py',
  'weights/pickled_globals.py': 'weights/test_pickles.py',
  'tools/benchmark.py': 'export/test_benchmark.py',
  'tools/export.py': 'export/test_bundle.py',
  'tools/lr_find.py': 'analysis/test_lr_find.py',
  'tools/run_arguments.py': 'test_cli.py',
  'tools/runs.py': 'analysis/test_run_table.py',
  # what `jaxres doctor` checks, by that command
  'doctor/check.py': 'tools/test_doctor.py',
  'doctor/data.py': 'tools/test_doctor.py',
  'doctor/known_sums.py': 'tools/test_doctor.py',
  'doctor/machine.py': 'tools/test_doctor.py',
  'doctor/run.py': 'tools/test_doctor.py',
  # tools: arguments and printing over what is tested beside the numbers
  'tools/arguments.py': 'test_cli.py',
  'tools/crossval.py': 'sweep/test_crossval.py',
  'tools/errors.py': 'analysis/test_label_errors.py',
  'tools/evaluate.py': 'analysis/test_compare.py',
  'tools/explain.py': 'analysis/test_explain.py',
  'tools/predict.py': 'test_predict.py',
  'tools/prepare.py': 'test_cli.py',
  'tools/profile.py': 'analysis/test_profile.py',
  'tools/report.py': 'report/test_run_report.py',
}
MODULES = sorted(
  path.relative_to(PACKAGE).as_posix()
  for path in PACKAGE.rglob('*.py')
  if path.name != '__init__.py' or len(path.read_text().splitlines()) > 5  # the others are a docstring
)


def mirror_path(module: str) -> pathlib.Path:
  """Return the test file of a module; of a package it is that of its name."""
  path = pathlib.PurePath(module)
  name = path.parent.name if path.name == '__init__.py' else path.stem
  return TESTS / path.parent / f'test_{name}.py'


@pytest.mark.parametrize('module', [module for module in MODULES if module != '__init__.py'])
def test_a_module_has_its_test_file(module: str) -> None:
  assert mirror_path(module).exists() != (module in ELSEWHERE)
  if module in ELSEWHERE:
    assert (TESTS / ELSEWHERE[module]).exists()


def test_the_table_names_modules_that_are_there() -> None:
  assert ELSEWHERE.keys() - set(MODULES) == set()


def is_test(module: str) -> bool:
  return module.startswith('tests.') and module.rpartition('.')[2].startswith(('test_', 'conftest'))


@pytest.mark.parametrize('path', sorted(TESTS.rglob('*.py')), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_nothing_is_imported_from_a_test(path: pathlib.Path) -> None:
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      names = [node.module or '', *(f'{node.module}.{alias.name}' for alias in node.names)]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    assert not any(map(is_test, names)), f'line {node.lineno}: what tests share is in tests/helpers.py or beside it'
