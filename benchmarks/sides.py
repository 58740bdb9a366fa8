"""One training step, or one forward pass, done three ways: by jaxres, by PyTorch, by the obvious flax and optax loop.

All get the same uint8 images and labels, on their device from the start, normalise them there, and train with the same
batch, dtype and SGD (momentum 0.9, weight decay 5e-4, a cosine of the learning rate).
"""

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.harness import Work

LR, MOMENTUM, WEIGHT_DECAY, TOTAL_STEPS, EXAMPLES = 0.1, 0.9, 5e-4, 10_000, 8
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add what the work is: model, images, dtype, data."""
  parser.add_argument('--model', default='resnet18')
  parser.add_argument('--stem', choices=('cifar', 'imagenet'))
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--image_size', type=int, default=32)
  parser.add_argument('--classes', type=int, default=10)
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--data', default='synthetic', help="'synthetic', or an .npz file as of data.name=arrays")
  parser.add_argument('--scan_steps', type=int, default=1, help='steps of one call of jaxres')
  parser.add_argument('--torch_compile', action='store_true', help='compile the PyTorch model')


def examples(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
  """Return uint8 images ``[N, H, W, 3]`` and int32 labels ``[N]``."""
  if args.data != 'synthetic':
    with np.load(args.data) as content:
      return content['train_x'], content['train_y'].astype(np.int32)
  rng = np.random.default_rng(0)
  count = EXAMPLES * args.batch_size
  images = rng.integers(0, 256, (count, args.image_size, args.image_size, 3), np.uint8)
  return images, rng.integers(0, args.classes, count).astype(np.int32)


def jaxres_train(args: argparse.Namespace) -> Work:
  """Return the real training step of jaxres, fed as ``train.py`` feeds it."""
  from jaxres import backend

  backend.keep_freed_memory()
  import jax

  from jaxres import data, losses, models, optim, sharding, state, step
  from jaxres.data import augment
  from jaxres.data.arrays import Arrays
  from jaxres.data.resident import Resident
  from jaxres.plan import grouped

  mesh, key = sharding.make_mesh(), jax.random.key(0)
  pipeline = Resident(Arrays(*examples(args)), batch_size=args.batch_size, seed=0)
  pipeline.place(sharding.replicated(mesh))
  info = data.Info(tuple(map(str, range(args.classes))), pipeline.image_shape, MEAN, STD)
  model = models.create(args.model, num_classes=args.classes, stem=args.stem, dtype=args.dtype)
  init = lambda: state.init_variables(model, info.image_shape, key)
  tx, _ = optim.make(jax.eval_shape(init)['params'], TOTAL_STEPS, 1.0, lr=LR, weight_decay=WEIGHT_DECAY)
  loss_fn = step.make_loss(model, losses.get('softmax_xent'), augment.make(), info)
  train_steps = step.make_train_steps(loss_fn, tx, pipeline.fetch, mesh)
  current = jax.jit(lambda: state.create(init(), tx), out_shardings=sharding.replicated(mesh))()
  start = time.perf_counter()
  groups = grouped(pipeline.train_feeds(0, TOTAL_STEPS * 10), 0, TOTAL_STEPS * 10, args.scan_steps, args.scan_steps)
  current, sums = train_steps(current, key, pipeline.constants, next(groups)[1])
  jax.block_until_ready(sums)
  facts = {'compile_s': time.perf_counter() - start}

  def run(steps: int) -> None:
    nonlocal current
    for _ in range(steps):
      current, sums = train_steps(current, key, pipeline.constants, next(groups)[1])
    jax.block_until_ready(sums)

  return Work(run, args.batch_size * args.scan_steps, facts)


def flax_train(args: argparse.Namespace) -> Work:
  """Return the loop that people write: flax modules, an optax optimiser, one jitted step."""
  import jax
  import jax.numpy as jnp
  import optax

  from benchmarks import flax_resnet

  images, labels = map(jnp.asarray, examples(args))
  model = flax_resnet.create(args.model, args.stem, args.classes, jnp.dtype(args.dtype))
  variables = model.init(jax.random.key(0), normalized(images[:1]), train=False)
  rate = optax.cosine_decay_schedule(LR, TOTAL_STEPS)
  tx = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(rate, MOMENTUM))
  params, stats = variables['params'], variables['batch_stats']
  opt_state = tx.init(params)

  @jax.jit
  def train_step(params: Any, stats: Any, opt_state: Any, image: jax.Array, label: jax.Array) -> Any:
    def loss_fn(params: Any) -> Any:
      both = {'params': params, 'batch_stats': stats}
      logits, updates = model.apply(both, normalized(image), train=True, mutable=['batch_stats'])
      return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), updates['batch_stats']

    (loss, new_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, new_opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), new_stats, new_opt_state, loss

  start, number = time.perf_counter(), 0
  batch = lambda i: slice(i % EXAMPLES * args.batch_size, (i % EXAMPLES + 1) * args.batch_size)
  jax.block_until_ready(train_step(params, stats, opt_state, images[batch(0)], labels[batch(0)]))
  facts = {'compile_s': time.perf_counter() - start}

  def run(steps: int) -> None:
    nonlocal params, stats, opt_state, number
    for _ in range(steps):
      where, number = batch(number), number + 1
      params, stats, opt_state, loss = train_step(params, stats, opt_state, images[where], labels[where])
    jax.block_until_ready(loss)

  return Work(run, args.batch_size, facts)


def torch_train(args: argparse.Namespace) -> Work:
  """Return PyTorch's step: channels_last, autocast for bfloat16, fused SGD where the device has it."""
  import torch

  from tests import torch_models

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  images, labels = examples(args)
  images = torch.tensor(images.transpose(0, 3, 1, 2)).to(device, memory_format=torch.channels_last)
  labels = torch.tensor(labels.astype(np.int64), device=device)
  net = torch_model(args, torch_models).to(device, memory_format=torch.channels_last).train()
  optimizer = torch.optim.SGD(
    net.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, **({'fused': True} if device == 'cuda' else {})
  )
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL_STEPS)
  mean, std = (255 * torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
  autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=args.dtype == 'bfloat16')

  def loss_of(image: Any, label: Any) -> Any:
    with autocast():
      return torch.nn.functional.cross_entropy(net((image.float() - mean) / std), label)

  compiled = torch.compile(loss_of) if args.torch_compile else loss_of
  number = 0

  def run(steps: int) -> None:
    nonlocal number
    for _ in range(steps):
      at, number = number % EXAMPLES * args.batch_size, number + 1
      optimizer.zero_grad(set_to_none=True)
      compiled(images[at : at + args.batch_size], labels[at : at + args.batch_size]).backward()
      optimizer.step()
      schedule.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  start = time.perf_counter()
  run(1)
  return Work(run, args.batch_size, {'compile_s': time.perf_counter() - start})


def torch_model(args: argparse.Namespace, torch_models: Any) -> Any:
  """Return the torch module of the same architecture."""
  stem = {'stem': args.stem} if args.stem else {}
  return torch_models.create(args.model, num_classes=args.classes, **stem)


def normalized(image: Any) -> Any:
  """Return uint8 images as the normalised floats that models take."""
  import jax.numpy as jnp

  return (image.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


DESCRIBES = ('model', 'stem', 'batch_size', 'image_size', 'classes', 'dtype', 'data', 'scan_steps')
TRAIN = {'jaxres': jaxres_train, 'flax': flax_train, 'torch': torch_train}
