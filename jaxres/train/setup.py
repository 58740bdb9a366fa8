"""What a config makes: the parts of a run, and the jitted programs of these."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import traverse_util
from jax.sharding import Mesh

from jaxres import data, evaluate, losses, models, optim, state
from jaxres.data import augment as augment_lib
from jaxres.errors import InputError
from jaxres.models import ResNet, layers, speedrun
from jaxres.optim import freezing
from jaxres.runtime import sharding
from jaxres.runtime.compiler import jit
from jaxres.state import TrainState, init_variables
from jaxres.train.plan import Plan
from jaxres.train.recalibrate import Recalibrate, make_recalibrate
from jaxres.train.step import Probe, TrainSteps, make_loss, make_probe, make_train_steps
from jaxres.weights import pretrained

FIELDS = ('loss', 'label_smoothing', 'target_threshold', 'accumulate', 'ema', 'shard_optimizer')  # of make_programs
MakeTx = Callable[[Any, int, float], tuple[optax.GradientTransformation, optax.Schedule]]


class Parts(NamedTuple):
  """What a config makes before anything is compiled."""

  model: ResNet  # with the classes of the data
  dataset: data.Dataset
  augment: augment_lib.Augment
  views: evaluate.Views | None  # each evaluation is also done over them, as ``tta/...``
  make_tx: MakeTx  # (params, total_steps, steps_per_epoch) to the optimiser and its learning rate
  mesh: Mesh
  frozen_until: Callable[[Any, int, float], Any]  # of the same, to the step at which each parameter's training begins
  init: pretrained.Init | None  # fresh variables to those that the training starts from
  config: Mapping[str, Mapping[str, Any]]  # what all this was made of

  def without_augmentation(self) -> 'Parts':
    """Return the parts of a training on the images as they are."""
    return self._replace(augment=augment_lib.make())

  def slowed(self, factor: float) -> 'Parts':
    """Return the parts of a training whose learning rate is ``factor`` times that of the config at every step."""

    def make_tx(*args: Any) -> tuple[optax.GradientTransformation, optax.Schedule]:
      tx, rate = self.make_tx(*args)

      def update(grads: Any, opt_state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, opt_state = tx.update(grads, opt_state, params)
        return jax.tree.map(lambda x: factor * x, updates), opt_state

      return optax.GradientTransformation(tx.init, update), lambda step: factor * rate(step)

    return self if factor == 1.0 else self._replace(make_tx=make_tx)


def make_parts(options: Mapping[str, Mapping[str, Any]], split_rule: int = data.SPLIT_RULE) -> Parts:
  """Return the parts that the sections of a config ask for; the data, which is slow to read, comes last.

  Args:
    options: the sections, whole.
    split_rule: of ``data.loader``; that of the run which goes on.

  Raises:
    InputError: a section cannot be used.
  """
  model = models.create(**options['model'])
  augment = augment_lib.make(**options['augment'])
  views = evaluate.make_views(**options['tta'])
  mesh = sharding.make_mesh()
  sharding.check_batch_size(options['data']['batch_size'], mesh)
  dataset = data.loader(split_rule)(**options['data'])
  evaluate.check_views(views, dataset.test.image_shape)
  augment_lib.check(augment, dataset.info.image_shape)
  model = fit_classes(model, options['model']['num_classes'], dataset.info)
  make_tx = lambda *args: optim.make(*args, **options['optim'])
  fields = {name: options['optim'][name] for name in ('frozen', 'unfreeze')}
  frozen_until = lambda params, *args: freezing.until(params, *fields.values(), *args)
  init = pretrained.make_init(model, dataset.info.class_names, **options['init'])
  return Parts(model, dataset, augment, views, make_tx, mesh, frozen_until, init, options)


def fit_classes(model: ResNet, num_classes: int | None, info: data.Info) -> ResNet:
  """Return ``model`` with as many classes as the data.

  Raises:
    InputError: the config asks for another number.
  """
  found = len(info.class_names)
  if num_classes not in (None, found):
    raise InputError(f'model.num_classes: {num_classes}, but the data has {found} classes; leave it out')
  return model.clone(num_classes=found)


class Programs(NamedTuple):
  """The jitted functions of a run."""

  create: Callable[[jax.Array], TrainState]  # a key to the state at step 0
  shardings: TrainState  # where the arrays of a state go
  train_steps: TrainSteps
  probe: Probe  # looks at a step that is not finite
  eval_steps: dict[str, evaluate.EvalStep]  # by the prefix of their metrics
  rate: optax.Schedule  # the learning rate of a step
  recalibrate: Callable[[int], Recalibrate]  # of the step after which it is done


def make_programs(
  parts: Parts,
  plan: Plan,
  loss: str,
  label_smoothing: float,
  target_threshold: float,
  accumulate: int,
  ema: float,
  shard_optimizer: bool,
) -> Programs:
  """Return the programs of a run of ``parts``; they are compiled when they are first called.

  Raises:
    InputError: the loss is unknown, the batch cannot be split into ``accumulate`` parts, or a part is too small for
      BatchNorm.
  """
  model, dataset, mesh = parts.model, parts.dataset, parts.mesh
  check_accumulate(accumulate, dataset.train.batch_size, mesh)
  transform = first_transform(model, dataset)
  init = lambda key: transform(init_variables(model, dataset.info.image_shape, key))
  shapes, length = jax.eval_shape(init, jax.random.key(0)), (plan.total_steps, plan.steps_per_epoch)
  tx, rate = parts.make_tx(shapes['params'], *length)

  def create(key: jax.Array) -> TrainState:
    return state.create(init(key), tx, ema=ema > 0.0)

  shardings = state.shardings(jax.eval_shape(create, jax.random.key(0)), mesh, shard_optimizer=shard_optimizer)
  stages = freezing.stages(parts.frozen_until(shapes['params'], *length), shapes['batch_stats'])
  held, fetch = [freezing.freeze(model, stage) for stage in stages], dataset.train.fetch
  together = dataset.train.batch_size // accumulate // (mesh.size if model.bn == 'per_device' else 1)
  for stage_model in held:
    check_norms(stage_model, dataset.info.image_shape, together)
  loss_of = losses.get(loss, label_smoothing=label_smoothing, target_threshold=target_threshold)
  losses_of = [
    make_loss(model, loss_of, parts.augment, dataset.info, stage.frozen)
    for model, stage in zip(held, stages, strict=True)
  ]
  later = [(stage.begin, loss_fn) for stage, loss_fn in zip(stages, losses_of, strict=True)][1:]
  same: dict[str, Any] = {
    'accumulate': accumulate,
    'later': later,
    'per_device_bn': model.bn == 'per_device',
    'shardings': shardings,
  }
  make_eval_step = functools.partial(evaluate.make_eval_step, model, dataset.info, dataset.test.fetch, mesh)
  recalibrates = [make_recalibrate(model, dataset.info, fetch, mesh) for model in held]
  return Programs(
    create=jit(create, out_shardings=shardings),
    shardings=shardings,
    train_steps=make_train_steps(losses_of[0], tx, fetch, mesh, ema=ema, **same),
    probe=make_probe(losses_of[0], fetch, mesh, **same),
    eval_steps={'': make_eval_step()} | ({'tta/': make_eval_step(parts.views)} if parts.views else {}),
    rate=rate,
    recalibrate=lambda step: recalibrates[freezing.stage_before(stages, step)],
  )


def first_transform(model: ResNet, dataset: data.Dataset) -> Callable[[Any], Any]:
  """Return what fresh variables go through: a stem that whitens gets its kernel from the first batch."""
  if model.stem_type != 'whitening':
    return lambda variables: variables
  images = data.first_batch(dataset.train)['image']
  images = augment_lib.normalize(images, dataset.info.mean, dataset.info.std)
  return functools.partial(speedrun.whiten, images=jax.device_get(images))


def check_accumulate(accumulate: int, batch_size: int, mesh: Mesh) -> None:
  """Raise InputError where a batch cannot be split into ``accumulate`` parts that the devices divide."""
  if accumulate < 1:
    raise InputError(f'train.accumulate: expected 1 or more, found {accumulate}')
  if batch_size % (accumulate * mesh.size):
    fix = f'use a data.batch_size that is a multiple of {accumulate * mesh.size}'
    found = f'{accumulate} parts of a batch of {batch_size} are not equal on {mesh.size} devices'
    raise InputError(f'train.accumulate: {found}; {fix}')


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
      found = f'one example at a time, of which {norm} sees one pixel: BatchNorm of a single value learns nothing'
      fix = 'use a larger data.batch_size, a smaller train.accumulate, larger images, or model.bn=frozen'
      raise InputError(f'data.batch_size: {found}; {fix}')


def less_memory(batch_size: int, accumulate: int, mesh: Mesh) -> str:
  """Return how a batch that does not fit into the memory can be made to fit."""
  parts = f'train.accumulate={2 * accumulate} (the same batch, in parts)'
  half = f'data.batch_size={batch_size // 2} with half the learning rate'
  fixes = [parts] * (batch_size % (2 * accumulate * mesh.size) == 0)
  fixes += [half] * (batch_size % (2 * mesh.size) == 0)
  return f'use {", or ".join([*fixes, "model.remat=True"])}'
