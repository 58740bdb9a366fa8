"""Trained runs with their data, as the analysis tools read them."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxres import data, evaluate, models, tasks, workdir
from jaxres.checkpoint import steps
from jaxres.data.fingerprints import same_names
from jaxres.errors import InputError, make_progress_printer
from jaxres.files import PUT_BACK, DamagedError
from jaxres.paths import user_path
from jaxres.runtime import sharding
from jaxres.runtime.compiler import enable_compilation_cache
from jaxres.runtime.memory import explain_oom, keep_freed_memory
from jaxres.train import options
from jaxres.weights import sources

TELL_SECONDS = 5.0  # from a line on the progress to the next
SHOWN_PARTS = 3  # of a path, in a page: split, class and file
SPLITS = ('train', 'val', 'test')


class Run(NamedTuple):
  """A trained network and the data that it was trained on."""

  name: str  # for a person: the end of the path, or all of it where another run ends so
  path: pathlib.Path
  config: dict[str, dict[str, Any]]
  model: models.ResNet
  variables: Any
  dataset: data.Dataset
  mesh: Mesh
  origin: str  # which checkpoint
  task: tasks.Task = tasks.make('classification')

  @property
  def class_names(self) -> tuple[str, ...]:
    """Return the names of the classes, in the order of the logits."""
    return self.dataset.info.class_names

  def get_pipeline(self, split: str) -> data.Pipeline:
    """Return the split called ``'train'``, ``'val'`` or ``'test'``.

    Raises:
      InputError: the run has no such split.
    """
    pipeline: data.Pipeline | None = getattr(self.dataset, split)
    if pipeline is None:
      if split == 'test':
        raise InputError(self.path, "no test split: data.test is 'none' there", fix='use --split val or train')
      raise InputError(self.path, 'no validation split: data.val is 0 there', fix='use --split test')
    return pipeline

  def file_of(self, split: str, index: int) -> str | None:
    """Return the path of the file of an example of a split; None where the examples are no files."""
    name_of = self.get_pipeline(split).name_of
    return name_of(int(index)) if name_of else None

  def describe_example(self, split: str, index: int) -> str:
    """Return how a page calls an example: the end of its file's path, or its number in the split."""
    file = self.file_of(split, index)
    return '/'.join(pathlib.PurePath(file).parts[-SHOWN_PARTS:]) if file else f'#{index}'


def read_runs(
  paths: Sequence[str], step: str = sources.DEFAULT_STEP, data_dir: str | None = None, data_path: str | None = None
) -> list[Run]:
  """Return the runs at ``paths``, with their data on the devices; data that several share is read once.

  Args:
    paths: workdirs; of a series, such as of seeds, each run is one.
    step: ``'best'``, ``'latest'`` or a number.
    data_dir: where TFDS data sets are now; None where they were.
    data_path: where the file or folder of the data is now; None where it was.

  Raises:
    InputError: a run has no checkpoint or is damaged, or its data is not there or another.
  """
  keep_freed_memory()
  enable_compilation_cache()
  paths = [paths] if isinstance(paths, str | os.PathLike) else paths
  if not isinstance(paths, Sequence) or not all(isinstance(path, str | os.PathLike) for path in paths):
    raise InputError('paths', expected='a list of workdirs', found=f'{paths!r:.80}')
  given = [user_path(path) for path in paths]
  directories = [path for place in given for path in sources.runs_in(place) or [place]]
  names = [path.absolute().name for path in directories]
  if len(set(map(pathlib.Path.absolute, directories))) < len(directories):
    raise InputError('RUN', f'a run is named twice: {" ".join(map(str, paths))}')
  mesh = sharding.make_mesh()
  datasets: dict[str, data.Dataset] = {}
  runs = []
  for path, name in zip(directories, names, strict=True):
    config = workdir.read_config(path) if sources.parse(f'{path}')[0] == 'jaxres' else None  # not of the hub
    if config is None:
      steps.check_not_inside(path)
      raise InputError(path, 'no run there', expected='a workdir, with config.json and checkpoints/')
    check_options(path, config)
    weights = sources.read(str(path), step)
    moved = {'data_dir': data_dir, 'path': data_path}
    fields = config['data'] | {key: value for key, value in moved.items() if value is not None}
    rule, task = workdir.split_rule(path), tasks.make_from(config['train'])
    key = json.dumps([rule, config['train']['task'], fields], sort_keys=True)
    if key not in datasets:
      datasets[key] = data.load(**fields, split_rule=rule, labels=task.labels)
      datasets[key].place(mesh)
    if was := workdir.other_data(path, datasets[key].info):
      raise InputError(path, f'the data is not that of the run: {was}')
    model = models.create(**weights.options, dtype=config['model']['dtype'])
    variables = jax.device_put(weights.variables, sharding.replicated_sharding(mesh))
    name = name if names.count(name) == 1 else str(path)
    runs.append(Run(name, path, config, model, variables, datasets[key], mesh, weights.origin, task))
  return runs


def check_options(path: pathlib.Path, config: dict[str, dict[str, Any]]) -> None:
  """Raise DamagedError where the options of the training in ``path`` are out of their range: somebody edited them."""
  try:
    options.check(options.Options(**config['train']))
  except InputError as error:
    raise DamagedError(f'{path}/config.json', error, fix=PUT_BACK) from None


def predict_split(run: Run, split: str, batch_size: int | None = None) -> evaluate.Outputs:
  """Return what the network makes of every example of a split.

  Args:
    run: of ``read_runs``.
    split: one of ``SPLITS``.
    batch_size: examples at a time; the run's own of evaluation where it is None.

  Raises:
    InputError: the run has no such split, a batch does not fit into the memory, or a logit is not a number.
  """
  pipeline = run.get_pipeline(split)
  batch_size = batch_size or run.config['train']['eval_batch_size']
  largest = max(pipeline.size, options.Options().eval_batch_size)  # a larger batch would hold nothing more
  batch_size = sharding.round_up(min(batch_size, largest), run.mesh)
  step = evaluate.make_predict_step(run.model, run.dataset.info, pipeline.get_batch, run.mesh)
  with explain_oom(f'{run.path}: {batch_size} examples at a time', f'use --batch_size={batch_size // 2}'):
    tell = make_progress_printer(f'{run.name}, {split}:', TELL_SECONDS)
    predictions = evaluate.predict(step, run.variables, pipeline, batch_size, tell)
  broken = np.flatnonzero(~np.isfinite(predictions.logits.reshape(len(predictions.labels), -1)).all(axis=1))
  if len(broken):
    count = f'{len(broken):,} of {len(predictions.labels):,} {split} examples, the first {broken[0]}'
    raise InputError(run.origin, f'logits that are not numbers for {count}: the weights are no good')
  return predictions


def check_runs(runs: Any) -> None:
  """Raise InputError where ``runs``, given from Python, is not what ``read_runs`` returns."""
  if isinstance(runs, Run) or not isinstance(runs, Sequence) or not all(isinstance(run, Run) for run in runs):
    raise InputError('runs', expected='a list of what jaxres.runs.read returns', found=type(runs).__name__)
  if not runs:
    raise InputError('runs', expected='one or more', found='none')


def check_classes(task: tasks.Task, tool: str) -> None:
  """Raise InputError where ``tool``, such as ``'jaxres errors'``, is of no use: the task has no classes."""
  if not task.labels.are_classes:
    raise InputError(tool, f'the task of the run learns {task.labels.kind}, and {tool} is about classes')


def check_same_examples(runs: Sequence[Run], labels: Sequence[np.ndarray], split: str) -> None:
  """Raise InputError where runs cannot be compared: other classes, or other examples in the split."""
  first = runs[0]
  for run, run_labels in zip(runs[1:], labels[1:], strict=True):
    both = f'{run.path} and {first.path}'
    if run.task.labels.kind != first.task.labels.kind or run.task.metrics.keys() != first.task.metrics.keys():
      raise InputError(both, 'they learn different tasks', fix='look at each alone')
    if run.class_names != first.class_names:
      shown = f'{", ".join(run.class_names):.100} and {", ".join(first.class_names):.100}'
      raise InputError(both, f'they have other classes: {shown}', fix='compare runs on the same data')
    names = [each.dataset.info.splits.get(split, '') for each in (run, first)]
    if not np.array_equal(run_labels, labels[0]) or not same_names(
      *names
    ):  # files held out by another seed may share labels
      fix = f'compare runs on the same data, or look at each alone: jaxres evaluate {run.path}'
      raise InputError(both, f'they have other {split} examples', fix=fix)
