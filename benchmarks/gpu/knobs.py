"""What changes the speed of a training step on a GPU, one thing at a time: predicted, then measured.

python benchmarks/gpu/knobs.py --model resnet18 --stem cifar --batch_size 512 --dtype bfloat16 --knob scan_1 bn_frozen

Each knob takes turns with the step as it is, ``--scan_steps`` of them in one call, in a separate process; none of
them is set by jaxres. Prints one JSON line a side; ``gain`` is how many times as fast the step is with the knob.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from benchmarks import harness, sides


class Knob(NamedTuple):
  """One change of the step, and what it was expected to do before it was tried."""

  what: str
  gain: float  # predicted: how many times as fast
  why: str
  models: tuple[str, ...] = ('resnet18', 'resnet50')  # where it is worth a try
  arguments: Mapping[str, Any] = {}  # of ``sides.add_arguments``
  options: Mapping[str, Any] = {}  # of ``sides.jaxres_step``
  patch: Callable[[], None] | None = None  # done before anything is built
  flags: str = ''  # of XLA


def use_closed_form_norm() -> None:
  """Give BatchNorm the gradient in closed form that it has on a CPU, and convolutions those that XLA makes."""
  from jaxres.models import cpu, layers
  from jaxres.models.ops import conv

  layers.wants_cpu_forms = lambda: True  # type: ignore[assignment]
  cpu.conv_cpu = conv  # type: ignore[assignment]


def pad_input() -> None:
  """Give the images a fourth channel, of zeros: the same function, one more slice of the first kernel."""
  import jax.numpy as jnp

  from jaxres import state
  from jaxres.data import augment
  from jaxres.state import init_variables

  normalize, init = augment.normalize, init_variables
  augment.normalize = lambda *args: jnp.pad(normalize(*args), ((0, 0), (0, 0), (0, 0), (0, 1)))
  state.init_variables = lambda model, shape, key: init(model, (*shape[:2], shape[2] + 1), key)


KNOBS = {
  'scan_1': Knob(
    '1 step a call, not 10',
    0.98,
    'a call hands over 200 arrays: half a millisecond on the host, hidden behind a step of 8 ms but for its end',
    arguments={'scan_steps': 1},
  ),
  'conv_fusion': Knob(
    'element-wise operations fused into convolutions, by cuDNN graphs',
    1.05,
    'a pass over an activation less where a BatchNorm is applied or a ReLU follows; experimental',
    flags='--xla_gpu_experimental_enable_conv_fusion=true',
  ),
  'bn_frozen': Knob(
    "BatchNorm by its running statistics: not the same training; what the batch's cost",
    1.25,
    'of about 8 passes over each activation the two for statistics and the one for their gradients go',
    options={'bn': 'frozen'},
  ),
  'unchecked': Knob(
    'every step is taken, finite or not',
    1.01,
    'no second look at gradients and state: 0.2 GB of 20',
    patch=sides.take_every_step,
  ),
  'no_graphs': Knob(
    'no command buffers (CUDA graphs)',
    0.97,
    'some hundred launches a step, of a few microseconds each where kernels are shorter than that',
    flags='--xla_gpu_enable_command_buffer=',
  ),
  'concurrent_graphs': Knob(
    'branches of a command buffer side by side',
    1.01,
    'weight and input gradients are independent, but each fills the device',
    ('resnet18',),
    flags='--xla_gpu_graph_enable_concurrent_region=true',
  ),
  'pad_input': Knob(
    '4 input channels, the fourth zero', 1.0, 'XLA pads channels for the tensor cores by itself', patch=pad_input
  ),
  'stem_deep': Knob(
    'three 3x3 in place of the 7x7: another network; what the stem costs',
    0.92,
    'convolutions of 32 and 64 channels at 112 px, each with its BatchNorm, for one',
    ('resnet50',),
    arguments={'stem': 'deep'},
  ),
  'bn_closed': Knob(
    "BatchNorm's gradient in closed form",
    1.0,
    'XLA derives the same two sums and one pass, and fuses them as well',
    patch=use_closed_form_norm,
  ),
  'augmented': Knob(
    'with crops and flips',
    0.98,
    'a gather of 1.5 MB, and draws, in kernels that fill little of the device',
    ('resnet18',),
    options={'crop_pad': 4, 'pad_mode': 'reflect', 'flip': True},
  ),
  'float32': Knob(
    'float32 activations, TF32 products',
    0.5,
    'twice the bytes, and half the rate of the products',
    arguments={'dtype': 'float32'},
  ),
  'no_autotuning': Knob(
    'no choice of algorithms by trial',
    0.9,
    "cuDNN's heuristics are near the best for 3x3 convolutions of many channels; it compiles in less time",
    flags='--xla_gpu_autotune_level=0',
  ),
  'scan_50': Knob('50 steps a call', 1.0, 'nothing is left to hide', ('resnet18',), arguments={'scan_steps': 50}),
  'latency_hiding': Knob(
    'the latency-hiding scheduler',
    1.0,
    'there is no communication to hide on one device',
    ('resnet18',),
    flags='--xla_gpu_enable_latency_hiding_scheduler=true',
  ),
}


def of(model: str) -> list[str]:
  """Return the names of the knobs of a model."""
  return [name for name, knob in KNOBS.items() if model in knob.models]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  sides.add_arguments(parser)
  harness.add_arguments(parser)
  parser.add_argument('--knob', nargs='+', required=True, choices=list(KNOBS))
  parser.add_argument('--seconds', type=float, default=5.0, help='of a round of one side')
  parser.set_defaults(scan_steps=10)
  args = sides.parse(parser)
  if args.side:
    harness.serve(lambda: build(args, KNOBS.get(args.side)))
  else:
    harness.report(measure(args), args.out)


def build(args: argparse.Namespace, knob: Knob | None) -> harness.Work:
  """Return the work of a training step, with a knob set or none."""
  knob = knob or Knob('', 1.0, '')
  if knob.patch:
    knob.patch()
  args = argparse.Namespace(**vars(args) | dict(knob.arguments))
  return sides.training(sides.jaxres_step(args, args.scan_steps, **knob.options), args.batch_size)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
  """Return a row for the step as it is and one for each knob."""
  context = {'benchmark': 'knobs'} | sides.describe(args) | harness.machine()
  before = os.environ.get('XLA_FLAGS', '')
  environments = {name: {'XLA_FLAGS': f'{before} {KNOBS[name].flags}'.strip()} for name in args.knob}
  commands = {side: harness.this_command(side) for side in ('jaxres', *args.knob)}
  with harness.open_sides(commands, environments) as opened:
    rounds = harness.interleave(opened, args.rounds, args.seconds)
    facts = {side.name: side.facts for side in opened}
  rows = harness.summarize(rounds, 'jaxres')
  rows[1:] = map(with_gain, rows[1:])
  return [row | harness.round_facts(facts[row['side']]) | context for row in rows]


def with_gain(row: dict[str, Any]) -> dict[str, Any]:
  """Return the row of a knob with how many times as fast it makes the step, and what was predicted."""
  low, high = row['ratio_spread']
  gains = {'gain': round(1 / row['jaxres_is_times_as_fast'], 3), 'gain_spread': [round(1 / high, 3), round(1 / low, 3)]}
  return row | gains | {'predicted': KNOBS[row['side']].gain}


if __name__ == '__main__':
  main()
