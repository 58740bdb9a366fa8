"""Training: from a config and a workdir to checkpoints and metrics."""

import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from jaxres import checkpoint, data, evaluate, log, losses, metrics, models, optim, sharding, state
from jaxres import config as config_lib
from jaxres.backend import compiler_options, keep_freed_memory
from jaxres.data import augment as augment_lib
from jaxres.errors import InputError
from jaxres.models import ResNet
from jaxres.state import TrainState

MakeTx = Callable[[Any, int, float], tuple[optax.GradientTransformation, optax.Schedule]]
LossFn = Callable[[Any, Any, data.Batch, jax.Array], tuple[jax.Array, tuple[Any, metrics.Sums]]]
TrainStep = Callable[[TrainState, Any, Any], tuple[TrainState, metrics.Sums]]
Feeds = Callable[[int, int], Iterator[Any]]

DRY_RUN_STEPS = 2
OVERFIT_STEPS = 200

# What may differ between two calls on one workdir: how long, what is kept or shown, where the data lies.
MAY_CHANGE = {
  'train.epochs', 'train.patience', 'train.log_every_steps', 'train.eval_batch_size',
  'checkpoint.keep_latest', 'checkpoint.keep_best', 'data.data_dir', 'data.path', 'data.download',
  'data.workers', 'data.max_bad',
}  # fmt: skip


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
      the loss is no longer a number.
  """
  keep_freed_memory()
  config = config_lib.complete(config)
  options = config_lib.to_dict(config)
  workdir = check_workdir(pathlib.Path(workdir), config)
  model = models.create(**options['model'])
  augment = augment_lib.make(**options['augment'])
  mesh = sharding.make_mesh()
  sharding.check_batch_size(options['data']['batch_size'], mesh)
  dataset = data.load(**options['data'])
  model = fit_classes(model, options['model']['num_classes'], dataset.info)
  make_tx = lambda *args: optim.make(*args, **options['optim'])
  write_config(workdir, config)
  with checkpoint.open(workdir / 'checkpoints', **options['checkpoint']) as manager:
    return fit(model, dataset, augment, make_tx, mesh, manager, workdir, **options['train'])


def fit(
  model: ResNet,
  dataset: data.Dataset,
  augment: augment_lib.Augment,
  make_tx: MakeTx,
  mesh: Mesh,
  manager: ocp.CheckpointManager,
  workdir: pathlib.Path,
  /,
  *,
  epochs: float = 30.0,
  loss: str = 'softmax_xent',
  label_smoothing: float = 0.0,
  seed: int = 0,
  eval_every_epochs: float = 1.0,
  eval_batch_size: int = 500,
  patience: int = 0,
  log_every_steps: int = 50,
  dry_run: bool = False,
  overfit_one_batch: bool = False,
) -> dict[str, float]:
  """Train ``model``, evaluate and save it; ``train_and_evaluate`` says what is returned.

  Args:
    model: with the classes of ``dataset``.
    dataset: of ``data.load``.
    augment: of ``augment.make``.
    make_tx: ``(params, total_steps, steps_per_epoch)`` to the optimiser and its learning rate.
    mesh: of ``sharding.make_mesh``.
    manager: of ``checkpoint.open``.
    workdir: where the logs go.
    epochs: passes over the training examples; may be fractional.
    loss: ``'softmax_xent'``.
    label_smoothing: the share of the target that is spread over all classes.
    seed: of the initial parameters and of the augmentation.
    eval_every_epochs: evaluate, and save, this often and at the end.
    eval_batch_size: examples an evaluation step; rounded up to a multiple of the devices.
    patience: stop after this many evaluations with no better validation top-1; 0 never stops.
    log_every_steps: rows of training metrics between evaluations.
    dry_run: two steps, an evaluation of at most two batches, a save; in ``<workdir>/dry_run``.
    overfit_one_batch: 200 steps on the first batch alone, without augmentation: what can learn reaches 100 %.

  Raises:
    InputError: a value is out of range, or the loss is no longer a number.
  """
  _check_fields(epochs, eval_every_epochs, eval_batch_size, log_every_steps, patience, dataset.val)
  plan = make_plan(dataset.train, epochs, eval_every_epochs, dry_run, overfit_one_batch)
  feeds: Feeds = dataset.train.train_feeds
  if overfit_one_batch:
    augment, feeds = augment_lib.make(), repeat_first(feeds)
  loss_fn = make_loss(model, losses.get(loss, label_smoothing=label_smoothing), augment, dataset.info)
  init = lambda: state.init_variables(model, dataset.info.image_shape, seed)
  tx, rate = make_tx(jax.eval_shape(init)['params'], plan.total_steps, plan.steps_per_epoch)
  dataset.place(sharding.replicated(mesh))
  train_step = make_train_step(loss_fn, tx, dataset.train.fetch, seed, mesh)
  eval_step = evaluate.make_eval_step(model, dataset.info, dataset.test.fetch, mesh)
  eval_batch_size = sharding.round_up(eval_batch_size, mesh)
  limit = DRY_RUN_STEPS if dry_run else None

  train_state, progress = restore_or_init(manager, init, tx, mesh)
  start, stop = int(train_state.step), plan.eval_steps[-1]
  log.print_start(train_state.params, workdir, start, stop, plan.steps_per_epoch)
  with log.RunLog(workdir, start, stop, plan.steps_per_epoch) as run_log:
    for begin, end in plan.segments(start):
      if progress.stale >= patience > 0:
        log.console.print(f'stopped early: val/top1 is no better since {progress.stale} evaluations')
        break
      meter = log.Meter(run_log, rate, log_every_steps)
      for step, feed in enumerate(feeds(begin, end), begin + 1):
        train_state, sums = train_step(train_state, dataset.train.constants, feed)
        meter.add(step, sums, last=step == end)
      scores = meter.row | evaluate.evaluate_splits(eval_step, train_state.variables, dataset, eval_batch_size, limit)
      run_log.write(end, scores)
      progress = progress.advance(end, scores)
      checkpoint.save(manager, train_state, progress._asdict(), scores)
    manager.wait_until_finished()
  if start >= stop:
    log.console.print(f'{workdir} is finished; more train.epochs extend it')
  log.print_end(progress.metrics(), workdir)
  return progress.metrics()


class Plan(NamedTuple):
  """How long to train and when to evaluate and save, in steps; the last of ``eval_steps`` is the end."""

  total_steps: int  # of the learning-rate schedule
  steps_per_epoch: float
  eval_steps: tuple[int, ...]

  def segments(self, start: int) -> Iterator[tuple[int, int]]:
    """Yield ``(begin, end)`` of the steps between evaluations that are left behind step ``start``."""
    return itertools.pairwise([start, *(step for step in self.eval_steps if step > start)])


class Progress(NamedTuple):
  """What keep-best and early stopping must know; saved beside the state."""

  last: dict[str, float]  # metrics of the last evaluation
  best: dict[str, float]  # metrics of the evaluation with the best validation top-1, and its step
  stale: int  # evaluations since then

  def advance(self, step: int, scores: dict[str, float]) -> 'Progress':
    """Return the progress after an evaluation at ``step`` that gave ``scores``."""
    top1 = scores.get(checkpoint.BEST_METRIC)
    if top1 is None:
      return Progress(scores, {}, 0)
    if top1 > self.best.get(checkpoint.BEST_METRIC, -1.0):
      return Progress(scores, {'step': step} | scores, 0)
    return Progress(scores, self.best, self.stale + 1)

  def metrics(self) -> dict[str, float]:
    """Return the last metrics, and the best as ``best/...``."""
    return self.last | {f'best/{name}': value for name, value in self.best.items()}


def make_plan(
  train: data.Pipeline,
  epochs: float,
  eval_every_epochs: float,
  dry_run: bool,
  overfit_one_batch: bool,
) -> Plan:
  """Return when to evaluate and save a training of ``epochs`` passes over ``train``."""
  if overfit_one_batch:  # the whole schedule in a few steps
    return Plan(OVERFIT_STEPS, OVERFIT_STEPS / epochs, (OVERFIT_STEPS,))
  steps_per_epoch = train.size / train.batch_size
  total = max(1, round(epochs * steps_per_epoch))
  if dry_run:
    return Plan(total, steps_per_epoch, (DRY_RUN_STEPS,))
  interval = eval_every_epochs * steps_per_epoch
  between = {round(k * interval) for k in range(1, int(total / interval) + 1)}
  return Plan(total, steps_per_epoch, tuple(sorted(step for step in between | {total} if 0 < step <= total)))


def make_loss(model: ResNet, loss: losses.Loss, augment: augment_lib.Augment, info: data.Info) -> LossFn:
  """Return ``(params, batch_stats, batch, rng) -> (loss, (batch_stats, sums))``: the mean loss of one batch.

  Args:
    model: whose logits are compared with the labels, in training mode.
    loss: logits float32 ``[B, K]`` and labels to float32 ``[B]``.
    augment: ``(rng, images)`` to images, uint8 ``[B, H, W, C]``.
    info: has the statistics that images are normalised with.
  """

  def loss_fn(
    params: Any, batch_stats: Any, batch: data.Batch, rng: jax.Array
  ) -> tuple[jax.Array, tuple[Any, metrics.Sums]]:
    images = augment_lib.normalize(augment(rng, batch['image']), info.mean, info.std)
    variables = {'params': params, 'batch_stats': batch_stats}
    logits, updates = model.apply(variables, images, train=True, mutable=['batch_stats'])
    each = loss(logits, batch['label'])
    return each.mean(), (updates['batch_stats'], metrics.sums(each, logits, batch['label']))

  return loss_fn


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  fetch: Callable[..., data.Batch],
  seed: int,
  mesh: Mesh,
) -> TrainStep:
  """Return the jitted step: ``(state, constants, feed)`` to the next state and the batch's metric sums.

  The state is donated and held whole by every device; the feed is split over them. Under ``jit`` the BatchNorm
  statistics and the gradient are those of the whole batch, whatever the number of devices.

  Args:
    loss_fn: ``(params, batch_stats, batch, rng) -> (loss, (batch_stats, sums))``.
    tx: the optimiser.
    fetch: ``(constants, feed)`` to the batch: of a pipeline.
    seed: of the augmentation; the step's own key is ``fold_in(seed, step)``.
    mesh: of ``sharding.make_mesh``.
  """

  def train_step(train_state: TrainState, constants: Any, feed: Any) -> tuple[TrainState, metrics.Sums]:
    rng = jax.random.fold_in(jax.random.key(seed), train_state.step)
    gradient = jax.grad(loss_fn, has_aux=True)
    grads, (batch_stats, sums) = gradient(train_state.params, train_state.batch_stats, fetch(constants, feed), rng)
    updates, opt_state = tx.update(grads, train_state.opt_state, train_state.params)
    params = optax.apply_updates(train_state.params, updates)
    return TrainState(train_state.step + 1, params, batch_stats, opt_state), sums

  whole, split = sharding.replicated(mesh), sharding.over_batch(mesh)
  return jax.jit(
    train_step,
    in_shardings=(whole, whole, split),
    out_shardings=whole,
    donate_argnums=0,
    compiler_options=compiler_options(),
  )


def restore_or_init(
  manager: ocp.CheckpointManager,
  init: Callable[[], Any],
  tx: optax.GradientTransformation,
  mesh: Mesh,
) -> tuple[TrainState, Progress]:
  """Return the newest checkpoint's state and progress, or those of a training that begins."""
  create = jax.jit(lambda: state.create(init(), tx), out_shardings=sharding.replicated(mesh))
  restored = checkpoint.restore(manager, create.eval_shape(), sharding.replicated(mesh))
  if restored is None:
    return create(), Progress({}, {}, 0)
  return restored[0], Progress(**restored[1])


def repeat_first(feeds: Feeds) -> Feeds:
  """Return ``feeds`` with every step given the first feed."""
  first = next(feeds(0, 1))
  return lambda begin, end: itertools.repeat(first, end - begin)


def fit_classes(model: ResNet, num_classes: int | None, info: data.Info) -> ResNet:
  """Return ``model`` with as many classes as the data.

  Raises:
    InputError: the config asks for another number.
  """
  found = len(info.class_names)
  if num_classes not in (None, found):
    raise InputError(f'model.num_classes: {num_classes}, but the data has {found} classes; leave it out')
  return model.clone(num_classes=found)


def check_workdir(workdir: pathlib.Path, config: Mapping[str, Any]) -> pathlib.Path:
  """Return where the run goes: ``workdir``, or a fresh directory in it for a dry run.

  Raises:
    InputError: ``workdir`` is a file, or holds checkpoints of another config.
  """
  if config['train']['dry_run']:
    workdir = workdir / 'dry_run'
    shutil.rmtree(workdir, ignore_errors=True)
  if workdir.exists() and not workdir.is_dir():
    raise InputError(f'--workdir: {workdir} is a file; expected a directory')
  stored = workdir / 'config.json'
  if not stored.exists() or not any((workdir / 'checkpoints').glob('*')):
    return workdir
  changed = config_lib.differences(json.loads(stored.read_text()), config)
  for path, (old, new) in changed.items():
    if path not in MAY_CHANGE:
      found = f'{path} was {json.dumps(old)} there and is {json.dumps(new)} now'
      raise InputError(f'--workdir: {workdir} holds a run of another config: {found}; use another --workdir')
  return workdir


def write_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
  """Write the resolved config to ``<workdir>/config.json``, whole or not at all."""
  workdir.mkdir(parents=True, exist_ok=True)
  partial = workdir / 'config.json.tmp'
  partial.write_text(config_lib.to_json(config))
  os.replace(partial, workdir / 'config.json')


def _check_fields(
  epochs: float, eval_every: float, eval_batch_size: int, log_every: int, patience: int, val: object
) -> None:
  positive = {'epochs': epochs, 'eval_every_epochs': eval_every, 'eval_batch_size': eval_batch_size}
  for name, value in (positive | {'log_every_steps': log_every}).items():
    if not 0 < value < float('inf'):
      raise InputError(f'train.{name}: expected more than 0, found {value}')
  if patience < 0:
    raise InputError(f'train.patience: expected 0 or more evaluations, found {patience}')
  if patience and val is None:
    raise InputError('train.patience: early stopping looks at validation top-1; set data.val, such as 0.1')
