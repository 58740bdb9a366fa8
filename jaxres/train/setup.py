"""What a config makes: the model, the data, the task, the plan of a run, and its jitted functions."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh

from jaxres import data, evaluate, models, optim, state, tasks
from jaxres.data import augment as augment_lib
from jaxres.errors import InputError, check_range
from jaxres.models import ResNet, layers, speedrun
from jaxres.optim import freezing
from jaxres.runtime import sharding
from jaxres.runtime.compiler import jit
from jaxres.state import TrainState
from jaxres.train.gradients import make_loss
from jaxres.train.options import Options
from jaxres.train.options import check as check_options
from jaxres.train.plan import Plan, make_plan
from jaxres.train.recalibrate import Recalibrate, make_recalibrate
from jaxres.train.step import Hyperparameters, Probe, TrainSteps, make_probe, make_train_steps
from jaxres.weights import pretrained
from jaxres.workdir import RANGES

SCAN_STEPS = 10  # of one call, where it pays


class Setup(NamedTuple):
  """What a config makes; nothing is compiled before it is called."""

  config: Mapping[str, Mapping[str, Any]]  # what all this was made of
  options: Options  # the section train of it
  key: jax.Array  # of the initial parameters, the augmentation and the dropout
  mesh: Mesh
  dataset: data.Dataset
  augment: augment_lib.Augment
  model: ResNet  # with the outputs of the task
  task: tasks.Task
  extras: Any  # the task's arrays, on every device
  plan: Plan
  lr_schedule: optax.Schedule  # the learning rate of a step, before ``Hyperparameters.lr_scale``
  init: pretrained.Init | None  # fresh variables to those that the training starts from
  create: Callable[[jax.Array], TrainState]  # a key to the state at step 0
  shardings: TrainState  # where the arrays of a state go
  train_steps: TrainSteps
  probe: Probe  # looks at a step that is not finite
  eval_steps: dict[str, evaluate.EvalStep]  # by the prefix of their metrics
  recalibrate: Callable[[int], Recalibrate]  # of the step after which it is done

  @property
  def scan_steps(self) -> int:
    """Steps of one call.

    A CPU gains nothing by more than one: its steps are long. Nor does a stream: the program would wait for more
    batches.
    """
    alone = jax.default_backend() == 'cpu' or not self.dataset.train.device_data
    return self.options.scan_steps or (1 if alone else SCAN_STEPS)

  @property
  def eval_batch_size(self) -> int:
    """Examples of an evaluation step: a multiple of the devices, and no more than a split needs."""
    sizes = [split.size for split in (self.dataset.val, self.dataset.test) if split is not None]
    largest = max([*sizes, Options().eval_batch_size])  # as much as it is by default is never cut: it changes no bits
    return sharding.round_up(min(self.options.eval_batch_size, largest), self.mesh)

  def feeds(self, start: int, stop: int) -> Iterator[Any]:
    """Yield the feeds of steps ``start`` to ``stop - 1``; for ``overfit_one_batch`` all are the first."""
    feeds = self.dataset.train.step_inputs
    return itertools.repeat(next(feeds(0, 1)), stop - start) if self.options.overfit_one_batch else feeds(start, stop)

  def take_steps(
    self, train_state: TrainState, feeds: Any, hyperparameters: Hyperparameters
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take the steps of ``feeds``, this process's rows of them stacked; return the next state and the sums."""
    feeds = sharding.make_global_arrays(feeds, sharding.scan_sharding(self.mesh))
    device_data = self.dataset.train.device_data
    return self.train_steps(train_state, self.key, device_data, feeds, hyperparameters, self.extras)


def make_setup(
  config: Mapping[str, Mapping[str, Any]],
  split_rule: int = data.SPLIT_RULE,
  dataset: data.Dataset | None = None,
  examples: Any = None,
) -> Setup:
  """Return what the sections of a config make; the data, which is slow to read, comes last of what it is made of.

  Args:
    config: every section with every field, of ``config.to_dict``.
    split_rule: of ``data.load``; that of the run which goes on.
    dataset: what is trained on, in place of what the section ``data`` names, where it was read before or is made.
    examples: of ``data.load``.

  Raises:
    InputError: a section cannot be used.
  """
  options = Options(**config['train'])
  check_options(options)
  model = models.create(**config['model'])
  augment = augment_lib.make(**config['augment'])
  views = evaluate.make_views(**config['tta'])
  mesh = sharding.make_mesh()
  sharding.check_batch_size(config['data']['batch_size'], mesh)
  task = tasks.make_from(config['train'])
  dataset = dataset or data.load(**config['data'], split_rule=split_rule, labels=task.labels, examples=examples)
  evaluate.check_views(views, dataset.evaluated.image_shape)
  augment_lib.check(augment, dataset.info.image_shape, task.labels)
  if options.patience and dataset.val is None:
    raise InputError('train.patience', 'early stopping looks at the validation split', fix='set data.val, such as 0.1')
  check_accumulate(options.accumulate, dataset.train.batch_size, mesh)
  model = fit_outputs(model, config['model']['num_classes'], task.num_outputs(dataset.info))
  extras = place_extras(task, dataset, mesh)
  plan = make_plan(dataset.train, options)
  init = pretrained.make_init(model, dataset.info.class_names, **config['init'])
  augment = augment_lib.with_views(augment_lib.make() if options.overfit_one_batch else augment, task.views)
  steps = make_steps(config['optim'], options, mesh, dataset, augment, model, task, plan)
  make_eval_step = functools.partial(
    evaluate.make_eval_step, model, task, dataset.info, dataset.evaluated.get_batch, mesh
  )
  eval_steps = {'': make_eval_step()} | ({'tta/': make_eval_step(views)} if views else {})
  parts = (config, options, jax.random.key(options.seed), mesh, dataset, augment, model, task, extras, plan)
  return Setup(*parts, init=init, eval_steps=eval_steps, **steps)


def check_ranges(config: Mapping[str, Mapping[str, Any]]) -> None:
  """Raise InputError where a field of a complete config is out of its range, whatever the data is."""
  check_options(Options(**config['train']))
  check_range('train.accumulate', config['train']['accumulate'], low=1)
  tasks.make_from(config['train'])
  models.create(**config['model'])
  for section, check in RANGES.items():
    check(**config[section])


def make_steps(
  optimizer: Mapping[str, Any],
  options: Options,
  mesh: Mesh,
  dataset: data.Dataset,
  augment: augment_lib.Augment,
  model: ResNet,
  task: tasks.Task,
  plan: Plan,
) -> dict[str, Any]:
  """Return the fields of ``Setup`` that make, move and look at a state.

  Args:
    optimizer: the section ``optim``.
    options: the section ``train``.
    mesh: of ``sharding.make_mesh``.
    dataset: what is trained on.
    augment: of training batches.
    model: the network.
    task: what is learned.
    plan: how long.

  Raises:
    InputError: ``optimizer`` cannot be used.
  """
  transform = first_transform(model, dataset)
  fresh = lambda key: transform(state.init_variables(model, dataset.info.image_shape, key))
  shapes = jax.eval_shape(fresh, jax.random.key(0))
  length = (shapes['params'], plan.total_steps, plan.steps_per_epoch)
  tx, lr_schedule = optim.make(*length, **optimizer)

  def create(key: jax.Array) -> TrainState:
    return state.create(fresh(key), tx, ema=options.ema > 0.0)

  shardings = state.shardings(jax.eval_shape(create, jax.random.key(0)), mesh, shard_optimizer=options.shard_optimizer)
  until = freezing.unfreeze_steps(shapes['params'], optimizer['frozen'], optimizer['unfreeze'], *length[1:])
  stages = freezing.unfreeze_phases(until, shapes['batch_stats'])
  networks = freeze_stages(model, stages, dataset, mesh, options.accumulate)
  losses = [
    make_loss(network, task, augment, dataset.info, stage.frozen)
    for network, stage in zip(networks, stages, strict=True)
  ]
  shared: dict[str, Any] = {
    'accumulate': options.accumulate,
    'later': list(zip([stage.start for stage in stages], losses, strict=True))[1:],
    'per_device_bn': model.bn == 'per_device',
    'shardings': shardings,
  }
  make_tx = lambda hyperparameters: optim.make(*length, **optimizer, lr_scale=hyperparameters.lr_scale)[0]
  get_batch = dataset.train.get_batch
  recalibrates = [make_recalibrate(network, dataset.info, get_batch, mesh) for network in networks]
  return {
    'lr_schedule': lr_schedule,
    'create': jit(create, runs_once=True, out_shardings=shardings),
    'shardings': shardings,
    'train_steps': make_train_steps(losses[0], make_tx, get_batch, mesh, ema=options.ema, **shared),
    'probe': make_probe(losses[0], get_batch, mesh, **shared),
    'recalibrate': lambda step: recalibrates[freezing.phase_index(stages, step)],
  }


def freeze_stages(
  model: ResNet, stages: Sequence[freezing.UnfreezePhase], dataset: data.Dataset, mesh: Mesh, accumulate: int
) -> list[ResNet]:
  """Return the network of each stage of unfreezing.

  Raises:
    InputError: a BatchNorm of one of them would be given a single value of each channel.
  """
  networks = [freezing.freeze(model, stage) for stage in stages]
  together = dataset.train.batch_size // accumulate // (mesh.size if model.bn == 'per_device' else 1)
  for network in networks:
    check_norms(network, dataset.info.image_shape, together)
  return networks


def fit_outputs(model: ResNet, num_classes: int | None, num_outputs: int) -> ResNet:
  """Return ``model`` with as many outputs as the task has on the data.

  Raises:
    InputError: the config asks for another number.
  """
  if num_classes not in (None, num_outputs):
    raise InputError(
      'model.num_classes', f'{num_classes}, but the data asks for {num_outputs} outputs', fix='leave it out'
    )
  return model.clone(num_classes=num_outputs)


def place_extras(task: tasks.Task, dataset: data.Dataset, mesh: Mesh) -> Any:
  """Return the task's arrays on every device of ``mesh``, where they stay: no step sends them there again."""
  place = lambda x: sharding.make_global_arrays(np.asarray(x), sharding.replicated_sharding(mesh))
  return jax.tree.map(place, task.make_extras(dataset))


def first_transform(model: ResNet, dataset: data.Dataset) -> Callable[[Any], Any]:
  """Return what fresh variables go through: a stem that whitens gets its kernel from the first batch."""
  if model.stem_type != 'whitening':
    return lambda variables: variables
  images = data.first_batch(dataset.train)['image']
  images = augment_lib.normalize(images, dataset.info.mean, dataset.info.std)
  return functools.partial(speedrun.whiten, images=jax.device_get(images))


def check_accumulate(accumulate: int, batch_size: int, mesh: Mesh) -> None:
  """Raise InputError where a batch cannot be split into ``accumulate`` parts that the devices divide."""
  check_range('train.accumulate', accumulate, low=1)
  if batch_size % (accumulate * mesh.size):
    fix = f'use a data.batch_size that is a multiple of {accumulate * mesh.size}'
    problem = f'{accumulate} parts of a batch of {batch_size} are not equal on {mesh.size} devices'
    raise InputError('train.accumulate', problem, fix=fix)


def check_norms(model: ResNet, image_shape: tuple[int, int, int], examples: int) -> None:
  """Raise InputError where a BatchNorm is given a single value of each channel.

  Its mean is then the value and its variance 0: what it passes on is its bias, whatever the image is. (torch refuses
  such input too.)

  Args:
    model: with the BatchNorms that are frozen, which do not look at the batch.
    image_shape: of the training images.
    examples: that are normalized together.
  """
  if examples > 1 or model.bn == 'frozen':
    return
  images = jax.ShapeDtypeStruct((1, *image_shape), 'float32')
  is_norm = lambda module, _: isinstance(module, layers.BatchNorm)
  rngs = dict.fromkeys(('params', 'dropout'), jax.random.key(0))
  options: dict[str, Any] = {'train': True, 'capture_intermediates': is_norm, 'mutable': True}
  run = lambda x: model.clone(remat=False).init_with_output(rngs, x, **options)
  outputs = traverse_util.flatten_dict(jax.eval_shape(run, images)[1].get('intermediates', {}), sep='/')
  for name, (output,) in outputs.items():
    norm = name.removesuffix('/__call__')
    if math.prod(output.shape[:-1]) == 1 and norm not in model.frozen_norms:
      problem = f'one example at a time, of which {norm} sees one pixel: BatchNorm of a single value learns nothing'
      fix = 'use a larger data.batch_size, a smaller train.accumulate, larger images, or model.bn=frozen'
      raise InputError('data.batch_size', problem, fix=fix)


def suggest_less_memory(batch_size: int, accumulate: int, mesh: Mesh) -> str:
  """Return how a batch that does not fit into the memory can be made to fit."""
  parts = f'train.accumulate={2 * accumulate} (the same batch, in parts)'
  half = f'data.batch_size={batch_size // 2} with half the learning rate'
  fixes = [parts] * (batch_size % (2 * accumulate * mesh.size) == 0)
  fixes += [half] * (batch_size % (2 * mesh.size) == 0)
  return f'use {", or ".join([*fixes, "model.remat=True"])}'
