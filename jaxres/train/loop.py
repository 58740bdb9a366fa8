"""Training: from a config and a workdir to checkpoints and metrics."""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from jaxres import checkpoint, evaluate, weights
from jaxres import config as config_lib
from jaxres import workdir as workdir_lib
from jaxres.checkpoint.disk import check_room
from jaxres.errors import InputError
from jaxres.log.console import console, print_end, print_start
from jaxres.log.run_log import RunLog
from jaxres.runtime import distributed, signals
from jaxres.runtime.compiler import enable_compilation_cache, set_deterministic
from jaxres.runtime.lock import lock_workdir
from jaxres.runtime.memory import explain_oom, keep_freed_memory
from jaxres.state import TrainState, start_from
from jaxres.train import nonfinite
from jaxres.train.meter import Meter
from jaxres.train.plan import DRY_RUN_STEPS, Progress, group_feeds, read_progress
from jaxres.train.recalibrate import recalibrate_state
from jaxres.train.setup import Setup, check_ranges, make_setup, suggest_less_memory
from jaxres.train.step import Hyperparameters

ROLLBACK_SCALE = 0.5  # times the learning rate, after a rollback


class Ending(NamedTuple):
  """Where the training stands when no more steps are taken."""

  train_state: TrainState
  progress: Progress
  why: str  # 'done', 'asked' or 'not finite'


def train_and_evaluate(
  config: Mapping[str, Any], workdir: str | os.PathLike[str], data: Any = None
) -> dict[str, float]:
  """Train what ``config`` says, from the newest checkpoint in ``workdir`` if there is one.

  Args:
    config: of ``jaxres.config.make``, or a dict of some of its sections; defaults fill in the rest.
    workdir: gets checkpoints, ``config.json``, ``metrics.jsonl``, event files, ``parameters.txt``, ``curves.png``.
    data: what is trained on, in place of what ``config.data`` names, whose other fields hold: a dict of arrays
      ``train_x`` and ``train_y``, perhaps ``val_x``, ``val_y``, ``test_x``, ``test_y`` and ``class_names``; a pair
      ``(images, labels)``; an iterable of examples or batches ``(image, label)`` that can be iterated over again, such
      as a list, a torch ``DataLoader`` or a ``tf.data.Dataset``; or a dict of ``'train'``, ``'val'`` and ``'test'``,
      each a pair or an iterable. Images are uint8 ``[N, H, W, C]``, or floats from 0 to 1, which are rounded to 8 bits;
      labels int ``[N]``. It is read once, into memory. A run goes on with equal data in an equal order alone.

  Returns:
    The last metrics by name: those of the task, such as ``loss`` (nats) and ``top1`` (a fraction), of ``train/``,
    ``val/`` and ``test/``; with a validation split also those of the best evaluation on it, as ``best/...``.

  Raises:
    InputError: the config, the data or the workdir cannot be used, which is found before anything is compiled; or
      a step is not finite, or the device has too little memory.
    RunPreemptedError: a KeyboardInterrupt: SIGTERM or SIGINT came, and the run has saved.
  """
  check_workdir(workdir)
  keep_freed_memory()
  enable_compilation_cache()
  console.quiet = not distributed.is_main_process()
  config = config_lib.to_dict(config_lib.complete(config))
  if data is not None:
    config['data'] |= {'name': 'arrays', 'path': None}
  set_deterministic(config['train']['deterministic'])
  check_ranges(config)
  place = workdir_lib.choose(workdir, config)
  with lock_workdir(place):
    workdir_lib.check_config(place, config)
    config = workdir_lib.resolve_dtype(place, config)
    setup = make_setup(config, workdir_lib.split_rule(place), examples=data)
    workdir_lib.check_data(place, setup.dataset.info)
    initial = None if workdir_lib.has_checkpoint(place) else read_initial(setup)
    with explain_oom('the training examples', 'set data.pipeline=stream, which holds a few batches of them'):
      setup.dataset.place(setup.mesh)
    with (
      workdir_lib.open(place, config, setup.dataset.info, **config['checkpoint']) as manager,
      distributed.exit_on_peer_failure(),
      signals.guard_preemption() as watch,
    ):
      progress = train(setup, place, manager, initial, watch)
    print_end(progress.metrics(), place, setup.task.metrics, setup.task.monitor)
  return progress.metrics()


def check_workdir(workdir: Any) -> None:
  """Raise InputError where ``workdir``, given from Python, is no path."""
  if not isinstance(workdir, str | os.PathLike) or not os.fspath(workdir):
    raise InputError('workdir', expected="the path of a directory, such as 'runs/digits'", found=f'{workdir!r:.80}')


def read_initial(setup: Setup) -> Any:
  """Return the variables that the training starts from, with shapes where they stay fresh; None where all are."""
  if not setup.init:
    return None
  initial = setup.init(weights.abstract(setup.model, setup.dataset.info.image_shape[2]))
  console.print(describe_initial(setup.config['init']['source'], initial))
  return initial


def describe_initial(source: str, initial: Mapping[str, Any]) -> str:
  """Return what ``read_initial`` read, in a line: ``weights of X: 120 tensors; fresh: head``."""
  leaves = traverse_util.flatten_dict(dict(initial))
  fresh = {path[1] for path, leaf in leaves.items() if isinstance(leaf, jax.ShapeDtypeStruct)}
  loaded = sum(not isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values())
  return f'weights of {source}: {loaded:,} tensors; fresh: {", ".join(sorted(fresh)) or "none"}'


def describe_batch(setup: Setup) -> str:
  """Return what a step takes, such as ``batches of 64 images of 32x32x3``."""
  shape = 'x'.join(map(str, setup.dataset.train.image_shape))
  return f'batches of {setup.dataset.train.batch_size:,} images of {shape}'


def train(
  setup: Setup, workdir: pathlib.Path, manager: checkpoint.Manager, initial: Any, watch: signals.PreemptionGuard
) -> Progress:
  """Train from the newest checkpoint to the end of the plan; go back and on, slower, where a step is not finite.

  Args:
    setup: of ``make_setup``.
    workdir: where the logs go.
    manager: of the checkpoints.
    initial: of ``read_initial``.
    watch: of ``signals.guard_preemption``.

  Raises:
    NotFiniteError: a step is not finite, and there were ``max_rollbacks``.
    RunPreemptedError: a signal came, and the run has saved.
  """
  train_state, progress = restore_or_init(manager, setup, initial)
  ending = train_to_end(setup, workdir, manager, train_state, progress, watch)
  while ending.why == 'not finite':
    error = nonfinite.explain(setup, ending.train_state, workdir)
    rollbacks = ending.progress.rollbacks + 1
    if rollbacks > setup.options.max_rollbacks:
      raise error
    print_rollback(error, rollbacks)
    checkpoint.finish(manager)
    del ending  # or the halted state would stay on the device beside the restored one
    train_state, progress = restore_or_init(manager, setup, initial)
    progress = progress._replace(rollbacks=rollbacks)
    ending = train_to_end(setup, workdir, manager, train_state, progress, watch)
  if ending.why == 'asked':
    raise watch.make_error(int(ending.train_state.step))
  return ending.progress


def train_to_end(
  setup: Setup,
  workdir: pathlib.Path,
  manager: checkpoint.Manager,
  train_state: TrainState,
  progress: Progress,
  watch: signals.PreemptionGuard,
) -> Ending:
  """Train, evaluate, log and save until the plan ends, a signal has come or a step is not finite."""
  plan, start, last = setup.plan, int(train_state.step), setup.plan.eval_steps[-1]
  hyperparameters = Hyperparameters(np.float32(ROLLBACK_SCALE**progress.rollbacks))  # exact: a power of two
  rate = lambda step: float(hyperparameters.lr_scale) * float(setup.lr_schedule(step))
  if start < last:
    check_room(manager.place, train_state)
  print_start(train_state.params, workdir, start, last, plan.steps_per_epoch, setup.model.dtype.name)
  task, spike_factor = setup.task, setup.options.spike_factor
  with RunLog(workdir, start, last, plan.steps_per_epoch, spike_factor, task.metrics, task.monitor) as run_log:
    if start < last:
      console.print(f'compiling the training step: {setup.config["model"]["name"]}, {describe_batch(setup)}')
    for segment_start, end in plan.segments(start, pending=bool(progress.partial)):
      if progress.stale >= setup.options.patience > 0:
        console.print(f'stopped early: validation {task.monitor} is no better since {progress.stale} evaluations')
        break
      meter = Meter(run_log, rate, setup.options.log_every_steps, progress.partial, task.means)
      train_state = train_segment(setup, train_state, hyperparameters, segment_start, end, meter, watch)
      if not meter.finite:
        return Ending(train_state, progress, 'not finite')
      evaluation = None if watch.is_requested() else evaluate_segment(setup, train_state, watch)
      if evaluation is None:
        progress = progress._replace(partial=meter.totals())
        checkpoint.save(manager, train_state, progress._asdict(), {}, setup.config, commit=True)
        return Ending(train_state, progress, 'asked')
      train_state, scores = evaluation[0], meter.row(end) | evaluation[1]
      run_log.write(end, scores)
      progress = progress.advance(end, scores, task.score)
      asked = watch.is_requested()  # behind the last batch: what is evaluated is kept
      checkpoint.save(manager, train_state, progress._asdict(), rank_scores(setup, scores), setup.config, commit=asked)
      if asked:
        return Ending(train_state, progress, 'asked')
  if start >= last:
    console.print(f'{workdir} is finished; more train.epochs extend it')
  return Ending(train_state, progress, 'done')


def train_segment(
  setup: Setup,
  train_state: TrainState,
  hyperparameters: Hyperparameters,
  start: int,
  end: int,
  meter: Meter,
  watch: signals.PreemptionGuard,
) -> TrainState:
  """Take the steps from ``start`` to ``end``, or fewer where a signal comes or ``meter`` is no longer finite.

  Returns:
    The state behind the last step; ``meter`` has the sums of all of them.
  """
  batch_size = setup.dataset.train.batch_size
  fix = suggest_less_memory(batch_size, setup.options.accumulate, setup.mesh)
  with explain_oom(f'a step of {batch_size} examples', fix):
    feeds = group_feeds(setup.feeds(start, end), start, end, setup.scan_steps, setup.options.log_every_steps)
    for step, group in feeds:
      train_state, sums = setup.take_steps(train_state, group, hyperparameters)
      meter.add(step, sums, last=step == end)
      if not meter.finite or watch.should_stop():
        break
    meter.drain()
  return train_state


def evaluate_segment(
  setup: Setup, train_state: TrainState, watch: signals.PreemptionGuard
) -> tuple[TrainState, dict[str, float]] | None:
  """Return the state, with BatchNorm recalibrated where the config asks for it, and its metrics.

  None where a signal came that ``watch`` noted before the last batch.
  """
  options, dataset = setup.options, setup.dataset
  limit = DRY_RUN_STEPS if options.dry_run else None
  stop = lambda: watch.is_requested() and jax.process_count() == 1  # the others would wait for this one
  if options.recalibrate_bn:
    recalibrate = setup.recalibrate(int(train_state.step))
    train_state = recalibrate_state(train_state, recalibrate, dataset.train, options.recalibrate_bn, stop)
    if stop():
      return None
  size, means = setup.eval_batch_size, setup.task.means
  scores = evaluate.evaluate_state(setup.eval_steps, train_state, dataset, size, limit, stop, means)
  return None if scores is None else (train_state, scores)


def restore_or_init(manager: checkpoint.Manager, setup: Setup, initial: Any) -> tuple[TrainState, Progress]:
  """Return the newest checkpoint's state and progress, or those of a training that starts from ``initial``."""
  template = jax.eval_shape(setup.create, setup.key)
  restored = checkpoint.restore(manager, template, setup.shardings)
  if restored is not None:
    return restored[0], read_progress(restored[1], f'{manager.directory}: progress')
  train_state = setup.create(setup.key)
  if initial is not None:
    is_fresh = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    variables = jax.tree.map(lambda new, old: old if is_fresh(new) else new, initial, dict(train_state.variables))
    train_state = start_from(train_state, variables)
  return train_state, Progress({}, {}, 0)


def rank_scores(setup: Setup, scores: Mapping[str, float]) -> dict[str, float]:
  """Return what ``checkpoint.save`` ranks ``scores`` by: the monitored metric of validation, larger is better.

  What is no finite number ranks as if nothing was validated: behind all that was.
  """
  score = setup.task.score(scores)
  return {} if score is None or not math.isfinite(score) else {f'val/{setup.task.monitor}': score}


def print_rollback(error: Exception, rollbacks: int) -> None:
  """Print why and how the training goes on after a step that was not finite."""
  again = (
    f'again from the last checkpoint, or from the start where there is none, with {ROLLBACK_SCALE**rollbacks:g} times'
  )
  console.print(str(error))
  console.print(f'{again} the learning rate')
