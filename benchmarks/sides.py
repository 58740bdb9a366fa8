"""One training step, or one forward pass, done three ways: by jaxres, by PyTorch, by the obvious flax and optax loop.

All get the same uint8 images and labels, on their device from the start, normalize them there, and train with the same
batch, dtype and SGD (momentum 0.9, weight decay 5e-4, a cosine of the learning rate), or predict in evaluation mode.
"""

import argparse
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import Work

LR, MOMENTUM, WEIGHT_DECAY, TOTAL_STEPS, EXAMPLES = 0.1, 0.9, 5e-4, 10_000, 8
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
DESCRIBES = ('model', 'stem', 'batch_size', 'image_size', 'classes', 'dtype', 'data', 'torch_compile', 'scan_steps')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add what the work is: model, images, dtype, data."""
  parser.add_argument('--model', default='resnet18')
  parser.add_argument('--stem', choices=('cifar', 'imagenet'))
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--image_size', type=int, default=32)
  parser.add_argument('--classes', type=int, default=10)
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--data', default='synthetic', help="'synthetic', or an .npz file as of data.name=arrays")
  parser.add_argument('--scan_steps', type=int, default=8, help="of one call, of the side 'scanned'")
  parser.add_argument('--torch_compile', action='store_true', help='compile the PyTorch model')


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
  """Return the arguments of the command line; the size and the classes of real images are those of the file."""
  args = parser.parse_args()
  if args.data != 'synthetic':
    images, labels = examples(args)
    args.image_size, args.classes = images.shape[1], int(labels.max()) + 1
  return args


def describe(args: argparse.Namespace) -> dict[str, Any]:
  """Return what the work is, for its row."""
  return {key: getattr(args, key) for key in DESCRIBES}


def examples(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
  """Return uint8 images ``[N, H, W, 3]`` and int32 labels ``[N]``, N a multiple of the batch size."""
  if args.data != 'synthetic':
    with np.load(args.data) as content:
      images, labels = content['train_x'], content['train_y'].astype(np.int32)
    count = len(images) // args.batch_size * args.batch_size
    if not count:
      raise SystemExit(f'--data: {args.data} has {len(images)} images, less than a batch of {args.batch_size}')
    return images[:count], labels[:count]
  rng = np.random.default_rng(0)
  count = EXAMPLES * args.batch_size
  images = rng.integers(0, 256, (count, args.image_size, args.image_size, 3), np.uint8)
  return images, rng.integers(0, args.classes, count).astype(np.int32)


def batches(args: argparse.Namespace, put: Callable[[np.ndarray], Any]) -> Iterator[tuple[Any, Any]]:
  """Return images and labels, batch by batch without end; all are on the device, by ``put``, before the first."""
  images, labels = examples(args)
  cuts = range(args.batch_size, len(images), args.batch_size)
  split = lambda array: [put(part) for part in np.split(array, cuts)]
  return itertools.cycle(list(zip(split(images), split(labels), strict=True)))


def start_work(run: Callable[[int], None], images: int, peak: Callable[[], int | None], **facts: Any) -> Work:
  """Return ``run`` as work, with the seconds of its first step as ``compile_s``, and the memory that it took.

  Args:
    run: of ``Work``.
    images: images per second of it.
    peak: returns the most bytes of the device's memory that were in use, by its allocator; None where it counts none.
    **facts: more of them.
  """
  start = time.perf_counter()
  run(1)
  facts = {'compile_s': time.perf_counter() - start, **facts}
  return Work(run, images, facts | ({'peak_memory_gb': peak_bytes / 1e9} if (peak_bytes := peak()) else {}))


def jax_peak() -> int | None:
  """Return the most bytes that JAX had of the device's memory, those of trying out algorithms too."""
  import jax

  return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def torch_peak() -> int | None:
  """Return the most bytes that PyTorch had of the device's memory."""
  import torch

  return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


class JaxresStep(NamedTuple):
  """The real training step of jaxres, not compiled yet."""

  call: Any  # jitted: (state, key, constants, feeds, hyperparameters, extras) to (state, sums)
  state: Any
  key: Any
  device_data: Any
  groups: Iterator[Any]  # of feeds
  size: int  # steps a group
  rest: tuple[Any, ...]  # hyperparameters and extras

  def lower(self) -> Any:
    """Return the call traced and lowered; once compiled, it is what later calls use."""
    return self.call.lower(self.state, self.key, self.device_data, next(self.groups), *self.rest)


def jaxres_step(
  args: argparse.Namespace,
  scan_steps: int = 1,
  bn: str = 'global',
  shard_optimizer: bool = False,
  accumulate: int = 1,
  **augmentation: Any,
) -> JaxresStep:
  """Return the training step, its state and what feeds it, made as a training makes them: by ``make_setup``.

  Args:
    args: of ``add_arguments``.
    scan_steps: steps of one call.
    bn: of ``models.create``.
    shard_optimizer: of ``state.shardings``.
    accumulate: parts of a batch.
    **augmentation: of ``augment.make``.
  """
  from jaxres.runtime.memory import keep_freed_memory

  keep_freed_memory()
  from jaxres import config, data
  from jaxres.data.resident import Resident
  from jaxres.data.types import Arrays
  from jaxres.train.plan import group_feeds
  from jaxres.train.setup import make_setup
  from jaxres.train.step import Hyperparameters

  pipeline = Resident(Arrays(*examples(args)), batch_size=args.batch_size, seed=0)
  info = data.Info(tuple(map(str, range(args.classes))), pipeline.image_shape, MEAN, STD)
  epochs = TOTAL_STEPS * args.batch_size / pipeline.size
  sections = {
    'model': {'name': args.model, 'stem': args.stem, 'bn': bn, 'dtype': args.dtype},
    'data': {'batch_size': args.batch_size},
    'augment': augmentation,
    'optim': {'lr': LR, 'momentum': MOMENTUM, 'weight_decay': WEIGHT_DECAY, 'schedule': 'cosine'},
    'train': {
      'epochs': epochs,
      'eval_every_epochs': epochs,
      'accumulate': accumulate,
      'shard_optimizer': shard_optimizer,
    },
  }
  dataset = data.Dataset(pipeline, None, pipeline, info)
  setup = make_setup(config.to_dict(config.make(**sections)), dataset=dataset)
  dataset.place(setup.mesh)
  groups = group_feeds(pipeline.step_inputs(0, 1 << 40), 0, 1 << 40, scan_steps, scan_steps)
  state, rest = setup.create(setup.key), (Hyperparameters(), setup.extras)
  feeds = (group for _, group in groups)
  return JaxresStep(setup.train_steps, state, setup.key, pipeline.device_data, feeds, scan_steps, rest)


def jaxres_train(args: argparse.Namespace) -> Work:
  """Return the work of the real training step of jaxres."""
  return training(jaxres_step(args), args.batch_size)


def plain_train(args: argparse.Namespace) -> Work:
  """Return the training step of jaxres with the gradients that XLA makes, not those of ``models.layers``."""
  from jaxres.models import layers

  layers.wants_cpu_forms = lambda: False  # type: ignore[assignment]
  return jaxres_train(args)


def train_unchecked(args: argparse.Namespace) -> Work:
  """Return the training step of jaxres that takes every step, finite or not."""
  take_every_step()
  return jaxres_train(args)


def take_every_step() -> None:
  """Make steps of jaxres that are made from now on not look whether they are finite."""
  from jaxres.train import step

  step.all_finite = lambda tree: True
  step.keep_if_finite = lambda good, before, after, sums: (after, sums)


def train_augmented(args: argparse.Namespace) -> Work:
  """Return the training step of jaxres with crops and flips."""
  return training(jaxres_step(args, crop_pad=4, pad_mode='reflect', flip=True), args.batch_size)


def train_accumulated(args: argparse.Namespace) -> Work:
  """Return the training step of jaxres on a batch in two parts."""
  return training(jaxres_step(args, accumulate=2), args.batch_size)


def train_scanned(args: argparse.Namespace) -> Work:
  """Return the training step of jaxres, ``--scan_steps`` of them in one call."""
  return training(jaxres_step(args, args.scan_steps), args.batch_size)


def training(made: JaxresStep, batch_size: int, **facts: Any) -> Work:
  """Return the work of ``made``; its state is used up."""
  import jax

  current = made.state

  def run(steps: int) -> None:
    nonlocal current
    for _ in range(steps):
      current, sums = made.call(current, made.key, made.device_data, next(made.groups), *made.rest)
    jax.block_until_ready(sums)

  return start_work(run, batch_size * made.size, jax_peak, **facts)


def jaxres_infer(args: argparse.Namespace) -> Work:
  """Return the forward pass of jaxres, as an evaluation does it."""
  from jaxres.runtime.compiler import compiler_options
  from jaxres.runtime.memory import keep_freed_memory

  keep_freed_memory()
  import jax

  from jaxres import models
  from jaxres.data import augment
  from jaxres.state import init_variables

  model = models.create(args.model, num_classes=args.classes, stem=args.stem, dtype=args.dtype)
  predict = lambda variables, image: model.apply(variables, augment.normalize(image, MEAN, STD), train=False)
  shape = (args.image_size, args.image_size, 3)
  variables = jax.jit(lambda: init_variables(model, shape, jax.random.key(0)))()
  return jax_inference(args, jax.jit(predict, compiler_options=compiler_options()), variables)


def jax_inference(args: argparse.Namespace, predict: Callable[..., Any], variables: Any) -> Work:
  """Return the work of a jitted ``predict`` of variables and uint8 images."""
  import jax
  import jax.numpy as jnp

  source = batches(args, jnp.asarray)

  def run(steps: int) -> None:
    jax.block_until_ready([predict(variables, next(source)[0]) for _ in range(steps)])

  return start_work(run, args.batch_size, jax_peak)


def flax_network(args: argparse.Namespace) -> tuple[Any, Any]:
  """Return the network of ``flax_resnet`` and its variables."""
  import jax
  import jax.numpy as jnp

  from benchmarks import flax_resnet

  model = flax_resnet.create(args.model, args.stem, args.classes, jnp.dtype(args.dtype))
  image = jnp.zeros((1, args.image_size, args.image_size, 3))
  return model, model.init(jax.random.key(0), image, train=False)


def flax_train(args: argparse.Namespace) -> Work:
  """Return the loop that people write: flax modules, an optax optimizer, one jitted step."""
  import jax
  import jax.numpy as jnp
  import optax

  model, variables = flax_network(args)
  source = batches(args, jnp.asarray)
  rate = optax.cosine_decay_schedule(LR, TOTAL_STEPS)
  tx = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(rate, MOMENTUM))
  params, stats = variables['params'], variables['batch_stats']
  opt_state = tx.init(params)

  @jax.jit
  def train_step(params: Any, stats: Any, opt_state: Any, image: jax.Array, label: jax.Array) -> Any:
    def loss_fn(params: Any) -> Any:
      both = {'params': params, 'batch_stats': stats}
      logits, updates = model.apply(both, normalize(image), train=True, mutable=['batch_stats'])
      return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), updates['batch_stats']

    (loss, new_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, new_opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), new_stats, new_opt_state, loss

  def run(steps: int) -> None:
    nonlocal params, stats, opt_state
    for _ in range(steps):
      params, stats, opt_state, loss = train_step(params, stats, opt_state, *next(source))
    jax.block_until_ready(loss)

  return start_work(run, args.batch_size, jax_peak)


def flax_infer(args: argparse.Namespace) -> Work:
  """Return the forward pass that people write with flax."""
  import jax

  model, variables = flax_network(args)
  predict = jax.jit(lambda variables, image: model.apply(variables, normalize(image), train=False))
  return jax_inference(args, predict, variables)


class TorchParts(NamedTuple):
  """What PyTorch's sides are made of."""

  net: Any  # channels_last, on the device
  predict: Callable[[Any], Any]  # uint8 images ``[B, 3, H, W]`` to logits; call it under ``autocast``
  source: Iterator[tuple[Any, Any]]
  autocast: Callable[[], contextlib.AbstractContextManager[Any]]
  wait: Callable[[], None]  # until the device is done


def torch_parts(args: argparse.Namespace) -> TorchParts:
  """Return the torch network of the same architecture, and its images, channels_last."""
  import torch

  from tests import torch_models

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  stem = {'stem': args.stem} if args.stem else {}
  net = torch_models.create(args.model, num_classes=args.classes, **stem)
  net = net.to(device, memory_format=torch.channels_last)
  mean, std = (255 * torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))

  def put(array: np.ndarray) -> Any:
    if array.ndim == 4:
      return torch.tensor(array.transpose(0, 3, 1, 2)).to(device, memory_format=torch.channels_last)
    return torch.tensor(array.astype(np.int64), device=device)

  return TorchParts(
    net,
    lambda image: net((image.float() - mean) / std),
    batches(args, put),
    lambda: torch.autocast(device, torch.bfloat16, enabled=args.dtype == 'bfloat16'),
    torch.cuda.synchronize if device == 'cuda' else lambda: None,
  )


def torch_train(args: argparse.Namespace) -> Work:
  """Return PyTorch's step: channels_last, autocast for bfloat16, fused SGD where the device has it."""
  import torch

  net, predict, source, autocast, wait = torch_parts(args)
  fused = {'fused': True} if torch.cuda.is_available() else {}
  optimizer = torch.optim.SGD(net.train().parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, **fused)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL_STEPS)

  def loss_of(image: Any, label: Any) -> Any:
    with autocast():
      return torch.nn.functional.cross_entropy(predict(image), label)

  compiled = torch.compile(loss_of) if args.torch_compile else loss_of

  def run(steps: int) -> None:
    for _ in range(steps):
      optimizer.zero_grad(set_to_none=True)
      compiled(*next(source)).backward()
      optimizer.step()
      schedule.step()
    wait()

  return start_work(run, args.batch_size, torch_peak)


def torch_infer(args: argparse.Namespace) -> Work:
  """Return PyTorch's forward pass: channels_last, inference mode, autocast for bfloat16."""
  import torch

  net, predict, source, autocast, wait = torch_parts(args)
  net.eval()
  compiled = torch.compile(predict) if args.torch_compile else predict

  def run(steps: int) -> None:
    with torch.inference_mode(), autocast():
      for _ in range(steps):
        compiled(next(source)[0])
    wait()

  return start_work(run, args.batch_size, torch_peak)


def normalize(image: Any) -> Any:
  """Return uint8 images as the normalized floats that models take."""
  import jax.numpy as jnp

  return (image.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


TRAIN = {
  'jaxres': jaxres_train,
  'torch': torch_train,
  'flax': flax_train,
  'plain': plain_train,
  'unchecked': train_unchecked,
  'augmented': train_augmented,
  'accumulated': train_accumulated,
  'scanned': train_scanned,
}
INFER = {'jaxres': jaxres_infer, 'torch': torch_infer, 'flax': flax_infer}
