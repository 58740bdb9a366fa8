"""`jaxres profile`: where the time of a training step goes, and how far it is from what the device can do."""

import itertools
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxres import config as config_lib
from jaxres.analysis import xplane
from jaxres.runtime import onednn, sharding
from jaxres.runtime.compiler import enable_compilation_cache
from jaxres.runtime.memory import keep_freed_memory
from jaxres.train.plan import group_feeds
from jaxres.train.setup import make_setup
from jaxres.train.step import Hyperparameters

WARM_UP = 2  # steps that are not traced
_NO_PLACE = re.compile(r'[\w\-]+\(.*\)|[A-Z][\w.]*|while|body|closed_call')  # functions, the model, loops
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?metadata=\{[^}]*?op_name="([^"]*)"', re.MULTILINE)


class Step(NamedTuple):
  """A compiled training step, ready to be run."""

  compiled: Any
  run: Callable[[int], None]  # takes that many steps, and returns when they are done
  images: int


class Operation(NamedTuple):
  """What one instruction of the program cost, over all traced steps."""

  name: str
  source: str  # where in the model it comes from
  seconds: float
  calls: int


def prepare(config: Mapping[str, Any], *, one_batch: bool = False) -> Step:
  """Return the compiled training step that ``config`` describes, with a fresh state and feeds.

  Args:
    config: of ``jaxres.config.make``.
    one_batch: feed every step with the first batch, so that no step waits for data.
  """
  keep_freed_memory()
  enable_compilation_cache()
  setup = make_setup(config_lib.to_dict(config_lib.complete(config)))
  train, total = setup.dataset.train, setup.plan.total_steps
  setup.dataset.place(setup.mesh)
  state, split = setup.create(setup.key), sharding.scan_sharding(setup.mesh)
  groups: Iterator[Any] = (group for _, group in group_feeds(train.step_inputs(0, total), 0, total, 1, total))
  feeds = next(groups)
  if one_batch:
    groups = itertools.repeat(feeds)
  rest = (setup.key, train.device_data), (Hyperparameters(), setup.extras)
  lowered = setup.train_steps.lower(state, *rest[0], sharding.make_global_arrays(feeds, split), *rest[1])  # type: ignore[attr-defined]
  compiled = lowered.compile()

  def run(steps: int) -> None:
    nonlocal state, feeds
    for _ in range(steps):
      state, sums = compiled(state, *rest[0], sharding.make_global_arrays(feeds, split), *rest[1])
      feeds = next(groups, feeds)
    jax.block_until_ready(sums)

  return Step(compiled, run, train.batch_size)


def trace(step: Step, steps: int, directory: pathlib.Path) -> pathlib.Path:
  """Trace steps for the profiler's viewer.

  Args:
    step: of ``prepare``.
    steps: how many.
    directory: where the profiler writes.

  Returns:
    The newest trace in ``directory``, an ``.xplane.pb`` file.
  """
  with jax.profiler.trace(str(directory)):
    step.run(steps)
  return max(directory.glob('**/*.xplane.pb'), key=lambda path: path.stat().st_mtime)


def operations(path: pathlib.Path, sources: Mapping[str, str]) -> list[Operation]:
  """Return the instructions in a trace, the costliest first.

  An instruction lasts from its start to its end. XLA:CPU marks the end by a separate event, as its threads go on
  with something else meanwhile: what runs side by side counts twice.

  Args:
    path: an ``.xplane.pb`` file.
    sources: where instructions come from, by name: of ``instruction_sources``.
  """
  spans: dict[str, list[tuple[float, float]]] = {}  # of start and end, in nanoseconds
  ends: dict[str, list[float]] = {}
  for event in device_events(path):
    if event.name.startswith('end: '):
      ends.setdefault(event.name.removeprefix('end: '), []).append(event.start_ns)
    elif (name := event.stats.get('hlo_op')) is not None:
      spans.setdefault(name, []).append((event.start_ns, event.start_ns + event.duration_ns))
  rows = []
  for name, intervals in spans.items():
    starts, marked = sorted(start for start, _ in intervals), sorted(ends.get(name, []))
    last = marked if len(marked) == len(intervals) else sorted(end for _, end in intervals)
    rows.append(Operation(name, sources.get(name, ''), (sum(last) - sum(starts)) / 1e9, len(intervals)))
  return sorted(rows, key=lambda operation: -operation.seconds)


def device_events(path: pathlib.Path) -> Iterator[xplane.Event]:
  """Yield the events of a trace, of devices those of the streams alone: other lines have them again, by module."""
  for event in xplane.read(path):
    if not event.plane.startswith('/device') or event.line.startswith('Stream'):
      yield event


def instruction_sources(program: str) -> dict[str, str]:
  """Return where the instructions of an HLO program come from: their ``op_name``, less the names of functions."""
  return {name: short_source(source) for name, source in _INSTRUCTION.findall(program)}


def count_convolutions(program: str) -> tuple[int, int]:
  """Return how many convolutions of an HLO program oneDNN computes, and how many XLA."""
  return onednn.count_calls(program), len(re.findall(r' convolution\(', program))


def short_source(source: str) -> str:
  """Return ``stage1/block0/conv1/conv_general_dilated (gradient)`` of XLA's name of an operation."""
  gradient = ' (gradient)' if 'transpose(' in source else ''
  words = [word for word in source.split('/') if not _NO_PLACE.fullmatch(word)]
  return '/'.join(words) + gradient


def step_seconds(step: Step, steps: int, rounds: int = 5) -> float:
  """Return the median seconds of a step, without the tracer.

  Args:
    step: of ``prepare``.
    steps: in all rounds together.
    rounds: whose median is taken.
  """
  step.run(WARM_UP)
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    step.run(max(1, steps // rounds))
    times.append((time.perf_counter() - start) / max(1, steps // rounds))
  return statistics.median(times)


def peak_memory(compiled: Any) -> int:
  """Return the peak of memory in use, in bytes: as the device counts it, else as the compiler plans it."""
  counted = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  planned = compiled.memory_analysis()
  return counted or planned.argument_size_in_bytes + planned.temp_size_in_bytes + planned.output_size_in_bytes
