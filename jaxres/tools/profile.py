"""`jaxres profile`."""

import argparse
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from rich.table import Table

from jaxres import command_line
from jaxres.analysis import profile
from jaxres.errors import check_range
from jaxres.log.console import console
from jaxres.models.dtypes import resolve_dtype
from jaxres.paths import check_utf8, user_path
from jaxres.runtime import limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres profile`."""
  parser.add_argument('--config', metavar='FILE', required=True, help='as of main.py; --config.section.field=value too')
  parser.add_argument('--out', metavar='DIR', default='runs/profile', help='where the trace goes (runs/profile)')
  parser.add_argument('--steps', type=int, default=10, metavar='N', help='steps that are traced (10)')
  parser.add_argument('--top', type=int, default=15, metavar='N', help='operations that are shown (15)')


def run(args: argparse.Namespace) -> None:
  """Profile a training step, print what it costs and write the trace."""
  for name in ('steps', 'top'):
    check_range(f'--{name}', getattr(args, name), low=1)
  out = check_utf8(user_path(args.out, '--out'), '--out')
  config = command_line.load(args.config, args.overrides)
  step = profile.prepare(config)
  seconds = profile.step_seconds(step, args.steps)
  path = profile.trace(step, args.steps, out)
  operations = profile.operations(path, profile.instruction_sources(step.compiled.as_text()))
  print_operations(operations, args.top, args.steps)
  print_summary(step, seconds, resolve_dtype(config.model.dtype))
  console.print(f'trace: {path} (tensorboard --logdir {args.out}, or https://ui.perfetto.dev)')


def print_operations(operations: Iterable[profile.Operation], top: int, steps: int) -> None:
  """Print the costliest operations."""
  operations = list(operations)
  total = sum(operation.seconds for operation in operations) or 1.0
  table = Table('operation', 'comes from', 'ms a step', 'share', 'calls a step')
  table.columns[0].no_wrap = True
  for name, source, seconds, calls in operations[:top]:
    table.add_row(name, source, f'{1e3 * seconds / steps:.3g}', f'{seconds / total:.1%}', f'{calls / steps:.3g}')
  rest = operations[top:]
  if rest:
    seconds = sum(operation.seconds for operation in rest)
    table.add_row(f'{len(rest)} others', '', f'{1e3 * seconds / steps:.3g}', f'{seconds / total:.1%}', '')
  console.print(table)


def print_summary(step: profile.Step, seconds: float, dtype: jnp.dtype) -> None:
  """Print speed, work, the share of the device's limit, and memory."""
  device, cost = jax.devices()[0], step.compiled.cost_analysis()
  flops, size = cost.get('flops', 0.0), cost.get('bytes accessed', 0.0)
  max_flops, max_bytes = limits.measure(device.platform, dtype)
  min_seconds = max(flops / max_flops, size / max_bytes)
  table = Table('one step', 'value')
  table.add_row('images/s', f'{step.images / seconds:,.1f}')
  table.add_row('ms', f'{1e3 * seconds:.4g}')
  table.add_row('computed in', dtype.name)
  if device.platform == 'cpu':
    by_onednn, by_xla = profile.count_convolutions(step.compiled.as_text())
    table.add_row('convolutions', f'{by_onednn} by oneDNN, {by_xla} by XLA')
  table.add_row('FLOPs, as XLA counts them', f'{flops / 1e9:,.4g} G')
  table.add_row('bytes that operations read and write, as XLA counts them', f'{size / 1e9:,.4g} GB')
  table.add_row('the device: matrix product, copy', f'{max_flops / 1e12:.3g} TFLOP/s, {max_bytes / 1e9:.4g} GB/s')
  table.add_row('least ms, were it bound by these alone', f'{1e3 * min_seconds:.4g}')
  table.add_row('share of that limit', f'{min_seconds / seconds:.1%}')
  table.add_row('peak memory', f'{profile.peak_memory(step.compiled) / 1e9:.3g} GB')
  console.print(table)
