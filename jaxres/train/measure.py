"""What a training would take: the memory and the seconds of its steps, before it starts."""

import contextlib
import io
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxres import config as config_lib
from jaxres import data, evaluate
from jaxres.errors import InputError
from jaxres.runtime import sharding
from jaxres.runtime.compiler import enable_compilation_cache
from jaxres.runtime.memory import free_memory, keep_freed_memory
from jaxres.train.plan import group_feeds
from jaxres.train.setup import Setup, make_setup
from jaxres.train.step import Hyperparameters

SHARE = 0.8  # of the free memory that a step may take
MEASURED_SECONDS, MIN_STEPS, MAX_STEPS = 3.0, 3, 100  # of steps that are timed; fewer in a short time are too few
MARGIN = 0.9  # of the time that is planned with: a machine is not always as fast as in its first seconds


class Speed(NamedTuple):
  """What parts of a training take, in seconds."""

  compiling: float
  step: float
  evaluation: float


def fit_batch(config: Mapping[str, Any], free: int | None = None) -> tuple[int, int, int | None]:
  """Return the batch size, halved from that of ``config`` until a step fits, its bytes and the free ones.

  The program is compiled, not run, and kept for the training.

  Args:
    config: of ``jaxres.config.make``, or a dict of some of its sections.
    free: bytes of memory; what is free now where it is None.

  Raises:
    InputError: one example for each device does not fit.
  """
  keep_freed_memory()
  enable_compilation_cache()
  free = free_memory() if free is None else free
  sections = config_lib.to_dict(config_lib.complete(config))
  size = sections['data']['batch_size']
  while True:
    sections['data']['batch_size'] = size
    needed = step_memory(_setup_in_silence(sections))
    if free is None or needed <= SHARE * free:
      return size, needed, free
    if size // 2 < jax.device_count():
      reason = f'a step of {size} examples takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free'
      raise InputError(
        'data.image_size', reason, fix='choose a smaller size, such as --image-size 64, or model.remat=True'
      )
    size //= 2


def step_memory(setup: Setup) -> int:
  """Return the bytes that a step takes on each device: its arguments, results and all between."""
  state = jax.eval_shape(setup.create, setup.key)
  group = jax.tree.map(lambda array: array[None], next(setup.dataset.train.step_inputs(0, 1)))
  setup.dataset.place(setup.mesh)
  feeds = sharding.make_global_arrays(group, sharding.scan_sharding(setup.mesh))
  rest = (setup.key, setup.dataset.train.device_data, feeds, Hyperparameters(), setup.extras)
  planned = setup.train_steps.lower(state, *rest).compile().memory_analysis()  # type: ignore[attr-defined]
  return int(planned.argument_size_in_bytes + planned.temp_size_in_bytes + planned.output_size_in_bytes)


def measure(config: Mapping[str, Any]) -> tuple[Setup, Speed]:
  """Return what ``config`` makes, and how fast it trains and evaluates here; some steps are taken and forgotten."""
  keep_freed_memory()
  enable_compilation_cache()
  setup = _setup_in_silence(config_lib.to_dict(config_lib.complete(config)))
  setup.dataset.place(setup.mesh)
  started = time.monotonic()
  state = setup.create(setup.key)
  total = max(setup.plan.total_steps, MAX_STEPS)  # the order of the samples has no end
  groups = (group for _, group in group_feeds(setup.feeds(0, total), 0, total, setup.scan_steps, total))
  state, sums = setup.take_steps(state, next(groups), Hyperparameters())
  jax.block_until_ready(sums)
  _evaluate(setup, state, limit=1)
  compiling, started, steps = time.monotonic() - started, time.monotonic(), 0
  for group in groups:
    state, sums = setup.take_steps(state, group, Hyperparameters())
    jax.block_until_ready(sums)
    steps += len(jax.tree.leaves(group)[0])
    if steps >= MAX_STEPS or (steps >= MIN_STEPS and time.monotonic() - started > MEASURED_SECONDS):
      break
  step = (time.monotonic() - started) / max(1, steps)
  started = time.monotonic()
  _evaluate(setup, state, limit=2)
  counts = [-(-split.size // setup.eval_batch_size) for split in _list_evaluated(setup.dataset)]
  share = sum(counts) / max(1, sum(min(2, count) for count in counts))
  return setup, Speed(compiling, step, (time.monotonic() - started) * share)


def fit_epochs(speed: Speed, steps_per_epoch: float, seconds: float, evaluations: int = 8) -> float:
  """Return the epochs that fit into ``seconds``, to three digits.

  Args:
    speed: of ``measure``.
    steps_per_epoch: may be fractional.
    seconds: for everything that is left to be done, which compiles once more: the schedule is another.
    evaluations: that are done on the way.

  Raises:
    InputError: there is no time for a single step.
  """
  left = MARGIN * seconds - speed.compiling - evaluations * speed.evaluation
  epochs = float(f'{max(0.0, left) / (speed.step * steps_per_epoch):.3g}')
  if epochs * steps_per_epoch < 1:
    needed = (speed.compiling + evaluations * speed.evaluation + speed.step) / MARGIN
    raise InputError(
      '--time',
      f'{max(0.0, seconds):.0f} s are left, and one step takes {needed:.0f} s with all around it',
      fix='give more',
    )
  return epochs


def _setup_in_silence(config: Mapping[str, Any]) -> Setup:
  """Return ``make_setup`` of ``config``; what it says on standard error the training says again."""
  with contextlib.redirect_stderr(io.StringIO()):
    return make_setup(config)


def _list_evaluated(dataset: data.Dataset) -> list[data.Pipeline]:
  return [split for split in (dataset.val, dataset.test) if split is not None]


def _evaluate(setup: Setup, state: Any, limit: int) -> None:
  evaluate.evaluate_state(setup.eval_steps, state, setup.dataset, setup.eval_batch_size, limit)
