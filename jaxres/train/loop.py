"""Training: from a config and a workdir to checkpoints and metrics."""

import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxres import checkpoint, data, evaluate, metrics
from jaxres import config as config_lib
from jaxres import weights as weights_lib
from jaxres import workdir as workdir_lib
from jaxres.checkpoint.disk import check_room
from jaxres.checkpoint.manager import Manager
from jaxres.errors import InputError
from jaxres.log import run_log as run_log_lib
from jaxres.log.console import console, print_end, print_start
from jaxres.runtime import distributed, sharding, signals
from jaxres.runtime.compiler import be_deterministic, keep_programs
from jaxres.runtime.lock import locked
from jaxres.runtime.memory import keep_freed_memory, memory_explained
from jaxres.state import TrainState, start_from
from jaxres.train import nonfinite
from jaxres.train.meter import Meter, NotFiniteError
from jaxres.train.plan import DRY_RUN_STEPS, Plan, Progress, grouped, make_plan, read_progress, watched
from jaxres.train.recalibrate import recalibrated
from jaxres.train.setup import Parts, Programs, less_memory, make_parts, make_programs
from jaxres.weights import pretrained

SCAN_STEPS = 10  # of one call, where it pays
SLOWER = 0.5  # times the learning rate, after a rollback
Feeds = Callable[[int, int], Iterator[Any]]
BeginRun = Callable[[], contextlib.AbstractContextManager[Manager]]


def train_and_evaluate(config: Mapping[str, Any], workdir: str | os.PathLike[str]) -> dict[str, float]:
  """Train what ``config`` says, from the newest checkpoint in ``workdir`` if there is one.

  Args:
    config: of ``jaxres.config.make``, or a dict of some of its sections; defaults fill in the rest.
    workdir: gets checkpoints, ``config.json``, ``metrics.jsonl``, event files, ``parameters.txt``, ``curves.png``.

  Returns:
    The last metrics by name: ``loss`` (nats), ``top1`` and ``top5`` (fractions) of ``train/``, ``val/`` and
    ``test/``; with a validation split also those of the best evaluation on it, as ``best/...``.

  Raises:
    InputError: the config, the data or the workdir cannot be used, which is found before anything is compiled; or
      a step is not finite, or the device has too little memory.
    StoppedError: a KeyboardInterrupt: SIGTERM or SIGINT came, and the run has saved.
  """
  check_workdir(workdir)
  keep_freed_memory()
  keep_programs()
  console.quiet = not distributed.leads()
  config = config_lib.complete(config)
  options = config_lib.to_dict(config)
  be_deterministic(options['train']['deterministic'])
  checkpoint.check(**options['checkpoint'])
  place = workdir_lib.choose(workdir, config)
  with locked(place):
    workdir_lib.check_config(place, config)
    parts = make_parts(options, workdir_lib.split_rule(place))
    workdir_lib.check_data(place, parts.dataset.info)
    if parts.init and not workdir_lib.has_checkpoint(place):  # bad weights are found now
      parts.init(weights_lib.abstract(parts.model, parts.dataset.info.image_shape[2]))
    begin = lambda: workdir_lib.open(place, config, parts.dataset.info, **options['checkpoint'])
    return fit(parts, begin, place, **options['train'])


def fit(
  parts: Parts,
  begin_run: BeginRun,
  workdir: pathlib.Path,
  /,
  *,
  epochs: float = 30.0,
  loss: str = 'softmax_xent',
  label_smoothing: float = 0.0,
  target_threshold: float = 0.0,
  seed: int = 0,
  eval_every_epochs: float = 1.0,
  eval_batch_size: int = 500,
  patience: int = 0,
  log_every_steps: int = 50,
  accumulate: int = 1,
  scan_steps: int = 0,
  ema: float = 0.0,
  shard_optimizer: bool = False,
  recalibrate_bn: int = 0,
  max_rollbacks: int = 0,
  spike_factor: float = 0.0,
  deterministic: bool = False,
  dry_run: bool = False,
  overfit_one_batch: bool = False,
) -> dict[str, float]:
  """Train the model, evaluate and save it; ``train_and_evaluate`` says what is returned.

  Args:
    parts: of ``make_parts``.
    begin_run: opens the checkpoints; called when all else is known to be usable, so that bad input leaves no trace.
    workdir: where the logs go.
    epochs: passes over the training examples; may be fractional.
    loss: ``'softmax_xent'``, or ``'sigmoid_xent'``: binary cross-entropy, the mean over the classes.
    label_smoothing: the share of the target that is spread over all classes.
    target_threshold: of ``'sigmoid_xent'``: targets above it become 1 and the others 0, so that both classes of a mixed
      image are asked for; 0 leaves them as they are.
    seed: of the initial parameters and of the augmentation.
    eval_every_epochs: evaluate, and save, this often and at the end.
    eval_batch_size: examples an evaluation step; rounded up to a multiple of the devices.
    patience: stop after this many evaluations with no better validation top-1 (of the moving average, where there is
      one); 0 never stops.
    log_every_steps: rows of training metrics between evaluations.
    accumulate: each batch goes through the model in this many equal parts, one after the other, for one update; that
      takes less memory. Each part has its own BatchNorm statistics.
    scan_steps: steps of one call of the program, a ``lax.scan``; 0 is 1 on a CPU or with ``data.pipeline=stream``, else
      10. The result is the same.
    ema: decay per step of a moving average of the weights, evaluated beside them; ``state.average`` says how it
      begins. 0 keeps none.
    shard_optimizer: each device holds a part of the optimiser's state and of the moving average, not all of it: less
      memory, the same result.
    recalibrate_bn: before every evaluation the running statistics of BatchNorm, of the moving average too, become the
      averages over the first so many training batches, for where few steps or small batches left them far off.
    max_rollbacks: where a step is not finite, go back to the last checkpoint and on with half the learning rate, up to
      so many times; 0 stops.
    spike_factor: warn where a row's training loss is more than so many times the median of the rows before it; 0 never
      does.
    deterministic: on a GPU, use only operations that give the same bits every time; a CPU does so anyway. It is set for
      the whole process before this is called.
    dry_run: two steps, an evaluation of at most two batches, a save; in ``<workdir>/dry_run``.
    overfit_one_batch: 200 steps on the first batch alone, without augmentation: what can learn reaches 100 %.

  Raises:
    InputError: a value is out of range, a step is not finite, or the device has too little memory.
    StoppedError: a signal came, and the run has saved.
  """
  dataset, mesh = parts.dataset, parts.mesh
  check_positive(
    epochs=epochs, eval_every_epochs=eval_every_epochs, eval_batch_size=eval_batch_size, log_every_steps=log_every_steps
  )
  check_counts(scan_steps=scan_steps, patience=patience, recalibrate_bn=recalibrate_bn, max_rollbacks=max_rollbacks)
  check_rest(seed, ema, spike_factor, patience, dataset.val)
  plan = make_plan(dataset.train, epochs, eval_every_epochs, dry_run, overfit_one_batch)
  if overfit_one_batch:
    parts = parts.without_augmentation()
  fields = (loss, label_smoothing, target_threshold, accumulate, ema, shard_optimizer)
  training = Training(
    parts=parts,
    plan=plan,
    programs=functools.cache(lambda rollbacks: make_programs(parts.slowed(SLOWER**rollbacks), plan, *fields)),
    key=jax.random.key(seed),
    feeds=repeat_first(dataset.train.train_feeds) if overfit_one_batch else dataset.train.train_feeds,
    group_size=scan_steps or best_scan_steps(dataset.train),
    log_every=log_every_steps,
    eval_batch_size=sharding.round_up(eval_batch_size, mesh),
    eval_limit=DRY_RUN_STEPS if dry_run else None,
    recalibrate_bn=recalibrate_bn,
    patience=patience,
    spike_factor=spike_factor,
    overfit_one_batch=overfit_one_batch,
    accumulate=accumulate,
  )
  training.programs(0)  # what they cannot use is told before anything is written
  with memory_explained('the training examples', 'set data.pipeline=stream, which holds a few batches of them'):
    dataset.place(mesh)
  progress = with_rollbacks(lambda rollbacks: run(training, begin_run, workdir, rollbacks), max_rollbacks)
  print_end(progress.metrics(), workdir)
  return progress.metrics()


class Training(NamedTuple):
  """What ``fit`` makes of its arguments."""

  parts: Parts
  plan: Plan
  programs: Callable[[int], Programs]  # given how often the learning rate was halved
  key: jax.Array  # of the initial parameters and of the augmentation
  feeds: Feeds
  group_size: int  # steps of one call
  log_every: int
  eval_batch_size: int
  eval_limit: int | None  # batches of an evaluation
  recalibrate_bn: int
  patience: int
  spike_factor: float
  overfit_one_batch: bool
  accumulate: int  # parts of a batch

  def steps(
    self, programs: Programs, train_state: TrainState, begin: int, end: int
  ) -> Iterator[tuple[int, TrainState, metrics.Sums]]:
    """Take the steps from ``begin`` to ``end``; yield where each group of them leads, the state and the sums."""
    train, split = self.parts.dataset.train, sharding.over_steps(self.parts.mesh)
    for step, own in grouped(self.feeds(begin, end), begin, end, self.group_size, self.log_every):
      group = sharding.assembled(own, split)
      train_state, sums = programs.train_steps(train_state, self.key, train.constants, group)
      yield step, train_state, sums

  def evaluated(
    self, programs: Programs, train_state: TrainState, step: int, watch: signals.Watch
  ) -> tuple[TrainState, dict[str, float]]:
    """Return the state, with BatchNorm recalibrated where that is asked for, and its metrics; ``watch`` can end it."""
    dataset = self.parts.dataset
    if self.recalibrate_bn:
      train_state = recalibrated(train_state, programs.recalibrate(step), dataset.train, self.recalibrate_bn)
    eval_steps = {prefix: watch.before(eval_step) for prefix, eval_step in programs.eval_steps.items()}
    scores = evaluate.evaluate_state(eval_steps, train_state, dataset, self.eval_batch_size, self.eval_limit)
    return train_state, scores


def run(training: Training, begin_run: BeginRun, workdir: pathlib.Path, rollbacks: int) -> Progress:
  """Train from the newest checkpoint to the end, and evaluate and save on the way; ``fit`` says what it raises.

  Args:
    training: of ``fit``.
    begin_run: the same.
    workdir: the same.
    rollbacks: how often the learning rate was halved.
  """
  parts, plan = training.parts, training.plan
  mesh, batch_size = parts.mesh, parts.dataset.train.batch_size
  with begin_run() as manager, distributed.together(), signals.watched() as watch:
    train_state, progress = restore_or_init(manager, training.programs(0), training.key, parts.init)
    progress = progress._replace(rollbacks=max(progress.rollbacks, rollbacks))
    programs = training.programs(progress.rollbacks)
    start, stop = int(train_state.step), plan.eval_steps[-1]
    if start < stop:
      check_room(manager.place, train_state)
    print_start(train_state.params, workdir, start, stop, plan.steps_per_epoch)
    with run_log_lib.RunLog(workdir, start, stop, plan.steps_per_epoch, training.spike_factor) as run_log:
      for begin, end in plan.segments(start, pending=bool(progress.partial)):
        if progress.stale >= training.patience > 0:
          console.print(f'stopped early: validation top-1 is no better since {progress.stale} evaluations')
          break
        meter = Meter(run_log, programs.rate, training.log_every, progress.partial)
        try:
          with memory_explained(f'a step of {batch_size} examples', less_memory(batch_size, training.accumulate, mesh)):
            for step, reached, sums in training.steps(programs, train_state, begin, end):
              train_state = reached
              meter.add(step, sums, last=step == end)
              watch.check(step, meter.totals)
          ready, scores = training.evaluated(programs, train_state, end, watch)
        except signals.AskedError:
          partial = progress._replace(partial=meter.totals())
          checkpoint.save(manager, train_state, partial._asdict(), {}, parts.config, commit=True)
          raise watch.stopped(int(train_state.step)) from None
        except NotFiniteError:
          key, once = training.key, training.overfit_one_batch
          error = nonfinite.explained(parts, programs.probe, train_state, key, workdir, once)
          error.rollbacks = progress.rollbacks
          raise error from None
        train_state, scores = ready, meter.row(end) | scores
        run_log.write(end, scores)
        progress = progress.advance(end, scores)
        checkpoint.save(manager, train_state, progress._asdict(), ranked(scores), parts.config)
  if start >= stop:
    console.print(f'{workdir} is finished; more train.epochs extend it')
  return progress


def with_rollbacks(attempt: Callable[[int], Progress], most: int) -> Progress:
  """Return what ``attempt`` returns, given how often the learning rate was halved: up to ``most`` times."""
  rollbacks = 0
  while True:
    try:
      return attempt(rollbacks)
    except NotFiniteError as error:
      rollbacks = error.rollbacks + 1
      if rollbacks > most:
        raise
      again = f'again from the last checkpoint, or the beginning where there is none, with {SLOWER**rollbacks:g} times'
      console.print(str(error))
      console.print(f'{again} the learning rate; the step is compiled anew')


def restore_or_init(
  manager: Manager, programs: Programs, key: jax.Array, init: pretrained.Init | None = None
) -> tuple[TrainState, Progress]:
  """Return the newest checkpoint's state and progress, or those of a training that begins, where ``init`` says."""
  restored = checkpoint.restore(manager, jax.eval_shape(programs.create, key), programs.shardings)
  if restored is not None:
    return restored[0], read_progress(restored[1], f'{manager.directory}: progress')
  begin = programs.create(key)
  return start_from(begin, init(begin.variables)) if init else begin, Progress({}, {}, 0)


def ranked(scores: Mapping[str, float]) -> dict[str, float]:
  """Return ``scores`` as ``checkpoint.save`` ranks them: with the top-1 that is ``watched``."""
  top1 = watched(scores)
  return {} if top1 is None else {checkpoint.BEST_METRIC: top1}


def repeat_first(feeds: Feeds) -> Feeds:
  """Return ``feeds`` with every step given the first feed."""
  first = next(feeds(0, 1))
  return lambda begin, end: itertools.repeat(first, end - begin)


def best_scan_steps(train: data.Pipeline) -> int:
  """Return how many steps are best taken at a time.

  A CPU gains nothing by more than one: its steps are long. Nor does a stream: the program would wait for more batches.
  """
  return 1 if jax.default_backend() == 'cpu' or not train.constants else SCAN_STEPS


def check_workdir(workdir: Any) -> None:
  """Raise InputError where ``workdir``, given from Python, is no path."""
  if not isinstance(workdir, str | os.PathLike) or not os.fspath(workdir):
    raise InputError(f"workdir: expected the path of a directory, such as 'runs/digits', found {workdir!r:.80}")


def check_positive(**fields: float) -> None:
  """Raise InputError where a field of the section ``train`` is not above zero."""
  for name, value in fields.items():
    if not 0 < value < float('inf'):
      raise InputError(f'train.{name}: expected more than 0, found {value}')


def check_counts(**fields: int) -> None:
  """Raise InputError where a field of the section ``train`` is negative."""
  for name, value in fields.items():
    if value < 0:
      raise InputError(f'train.{name}: expected 0 or more, found {value}')


def check_rest(seed: int, ema: float, spike_factor: float, patience: int, val: object) -> None:
  """Raise InputError where one of these fields of the section ``train`` is out of its range."""
  if not 0 <= seed < 2**63:
    raise InputError(f'train.seed: expected 0 to 2**63 - 1, found {seed}')
  if not 0.0 <= ema < 1.0:
    raise InputError(f'train.ema: expected a decay in [0, 1), found {ema}')
  if spike_factor and not 1.0 < spike_factor < float('inf'):
    raise InputError(f'train.spike_factor: expected 0, or a factor above 1; found {spike_factor}')
  if patience and val is None:
    raise InputError('train.patience: early stopping looks at validation top-1; set data.val, such as 0.1')
