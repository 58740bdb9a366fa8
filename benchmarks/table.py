"""Write the tables of README.md, docs/performance.md and docs/evaluation.md from benchmarks/results/*.jsonl.

python benchmarks/table.py --check

Of every work, device and side the newest line counts. The tables go between ``<!-- benchmarks -->`` and
``<!-- /benchmarks -->``. ``--check`` writes nothing and exits with 1 where a page is not what the results say.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks.gpu.knobs import KNOBS

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
MARKED = re.compile(r'(<!-- benchmarks -->\n).*?(<!-- /benchmarks -->)', re.DOTALL)
WORK = (  # what two lines must share to be of the same work
  *('benchmark', 'device', 'cores', 'model', 'stem', 'batch_size', 'image_size', 'classes', 'dtype', 'data'),
  *('torch_compile', 'devices', 'gpus', 'bn', 'weak', 'shard_optimizer'),
  *('workers', 'config', 'overrides', 'environment', 'metric', 'target', 'flip', 'epochs'),
)
Row = dict[str, Any]
Series = dict[str, Row]  # by side


def main(argv: Sequence[str] | None = None) -> int:
  """Write the pages, or check them; return the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--check', action='store_true')
  args = parser.parse_args(argv)
  every = series(read(RESULTS))
  stale = []
  for name, kinds in PAGES.items():
    page = ROOT / name
    text = page.read_text()
    filled = fill(text, '\n\n'.join(table for kind in kinds if (table := kind(every))))
    if filled != text:
      stale.append(name)
      if not args.check:
        page.write_text(filled)
  if args.check and stale:
    print(f'{", ".join(stale)}: not what {RESULTS.relative_to(ROOT)} says; run python benchmarks/table.py')
    return 1
  return 0


def read(folder: pathlib.Path) -> list[Row]:
  """Return the lines of all results, the oldest first."""
  rows = [json.loads(line) for path in sorted(folder.glob('*.jsonl')) for line in path.read_text().splitlines()]
  return sorted(rows, key=lambda row: row['date'])  # stable: in the order of their files


def series(rows: Iterable[Row]) -> list[Series]:
  """Return the newest row of each side, by work, in the order in which the works were first measured."""
  newest: dict[str, Series] = {}
  for row in rows:
    same = json.dumps([row.get(key) or None for key in WORK])  # older lines lack some
    newest.setdefault(same, {})[row['side']] = row
  return list(newest.values())


def fill(text: str, tables: str) -> str:
  """Return a page with ``tables`` between its markers."""
  filled, count = MARKED.subn(lambda match: f'{match[1]}\n{tables}\n\n{match[2]}', text)
  if count != 1:
    raise SystemExit(f'expected one <!-- benchmarks --> ... <!-- /benchmarks -->, found {count}')
  return filled


def speeds(every: Sequence[Series]) -> str:
  """Return the table of training steps and forward passes beside their peers."""
  lines = []
  for sides in of(every, 'train_step', 'inference'):
    ours = sides['jaxres']
    what = {'train_step': 'training step', 'inference': 'forward pass'}[ours['benchmark']]
    peers = [ratio(sides, peer, 'jaxres') for peer in ('torch', 'flax')]
    share = (
      f'{ours["share_of_limit"]:.0%}'.replace('%', ' %')
      if 'share_of_limit' in ours and 'NVIDIA' in ours['device']
      else ''
    )
    lines.append([f'{what}, {work(ours)}', device(ours), speed(ours), *peers, share])
  head = ['', 'device', 'jaxres, images/s', 'times as fast as PyTorch', 'as plain flax', 'share of the limit']
  return table(head, lines)


def variants(every: Sequence[Series]) -> str:
  """Return the table of the training step beside itself, done otherwise."""
  names = {
    'plain': "with XLA's own gradients of convolution and BatchNorm",
    'unchecked': 'without looking whether the step is finite',
    'augmented': 'with crops and flips',
    'accumulated': 'in two parts of a batch',
    'scanned': 'in one `lax.scan` of {scan_steps}',
  }
  lines = [
    [work(row), names[side].format(**row), device(row), ratio(sides, side, 'jaxres')]
    for sides in of(every, 'train_step')
    for side, row in sides.items()
    if side in names
  ]
  return table(['training step', 'done', 'device', 'takes times as long'], lines)


def by_python(every: Sequence[Series]) -> str:
  """Return the table of the step, single, accumulated and scanned, on one Python and on another, in one run."""
  names = {
    'jaxres': 'a single step',
    'accumulated': 'in two parts of a batch',
    'scanned': 'in one `lax.scan` of {scan_steps}',
    'torch': 'PyTorch, channels_last',
  }
  lines = []
  for sides in of(every, 'train_step'):
    if not any('@' in side for side in sides):
      continue
    for side, row in sides.items():
      name = side.partition('@')[0]
      if name in names:
        low, high = row['ratio_spread']
        times = f'{1 / row["jaxres_is_times_as_fast"]:.2f} ({1 / high:.2f} to {1 / low:.2f})'
        python = f'{row["python"].rpartition(".")[0]}, ' + (
          f'torch {row["versions"]["torch"].partition("+")[0]}' if name == 'torch' else f'jax {row["versions"]["jax"]}'
        )
        lines.append([work(row), names[name].format(**row), python, device(row), speed(row), times])
  head = ['training step', 'done', 'Python', 'device', 'images/s', 'times as fast as the first row of its model']
  return table(head, lines)


def inputs(every: Sequence[Series]) -> str:
  """Return the table of the stream pipeline."""
  names = {
    'train': 'training crops, by simplejpeg and OpenCV',
    'train, pillow': 'training crops, by Pillow',
    'eval': 'evaluation: resize and center crop, by Pillow',
    'decode': 'threads that only decode the same files, by simplejpeg',
  }
  lines = [
    [names[side], f'{row["workers"]}', device(row), speed(row), f'{row["cpu_ms_per_image"]:.3g}']
    for sides in of(every, 'input')
    for side in names
    if (row := sides.get(side))
  ]
  return table(['stream, JPEGs of 500x375 to 224 px', 'workers', 'device', 'images/s', 'CPU ms an image'], lines)


def waits(every: Sequence[Series]) -> str:
  """Return the table of what streaming costs a training."""
  lines = [
    [
      f'{row["model"]}, {row["image_size"]} px, batch {row["batch_size"]}',
      device(row),
      ratio(sides, 'streamed', 'one batch'),
    ]
    for sides in of(every, 'waiting')
    if (row := sides.get('streamed'))
  ]
  return table(['training step, fed by the stream of JPEGs', 'device', 'takes times as long as on one batch'], lines)


def compiles(every: Sequence[Series]) -> str:
  """Return the table of compile times."""
  lines = [
    [side, work(row), device(row), *[seconds(row, name) for name in ('start_s', 'trace_s', 'compile_s', 'total_s')]]
    for sides in of(every, 'compile')
    for side, row in sides.items()
  ]
  return table(['compiling, seconds', '', 'device', 'start', 'trace', 'compile', 'to the end of step 1'], lines)


def scalings(every: Sequence[Series]) -> str:
  """Return the table of what several devices cost and gain."""
  lines = []
  for sides in of(every, 'scaling'):
    for side, row in [(side, row) for side, row in sides.items() if side != 'single']:
      kind = 'GPUs' if row['gpus'] else 'virtual CPU devices'
      what = f'{row["device_count"]} {kind}, {work(row)}{" on each" if row["weak"] else ""}, bn={row["bn"]}'
      what += ', sharded optimizer' * row['shard_optimizer']
      cpu = f'{row["cpu_time_is_times_that_of_single"]:.2f}'
      counts = ', '.join(f'{count} {name}' for name, count in row['collectives'].items()) or 'none'
      share = f'{row["efficiency"]:.0%}'.replace('%', ' %')
      lines.append([what, device(row), ratio(sides, side, 'single'), cpu, share, counts])
  head = ['a step on', 'device', 'wall time an image, times that of one', 'CPU time, times', 'of perfect scaling']
  return table([*head, 'collectives a step'], lines)


def trainings(every: Sequence[Series]) -> str:
  """Return the table of trainings."""
  lines = []
  for row in [sides['mean'] for sides in of(every, 'end_to_end') if 'mean' in sides]:
    name = ' '.join([f'`{row["config"]}`', *[f'`{word}`' for word in row['overrides']]])
    std = f' ± {row["accuracy_std"]:.2%}' if 'accuracy_std' in row else ''
    score = f'{row["accuracy"]:.2%}{std}'.replace('%', ' %')
    reached = f'{row["target"]:.1%} in {seconds(row, "reached_s")}'.replace('%', ' %') if 'reached_s' in row else ''
    times = [seconds(row, name) for name in ('first_step_s', 'rest_s')]
    lines.append([name, f'{row["seeds"]}', device(row), f'{score} {row["metric"]}', *times, reached])
  head = ['training', 'seeds', 'device', 'score', 'seconds to the end of step 1', 'seconds after it', 'target, seconds']
  return table(head, lines)


def warm_trainings(every: Sequence[Series]) -> str:
  """Return the table of trainings that were compiled before, as airbench counts their seconds."""
  lines = []
  for row in [sides['mean'] for sides in of(every, 'warm') if 'mean' in sides]:
    words = [*row['overrides'], *(f'{name}={value}' for name, value in row.get('environment', {}).items())]
    words = [word for word in words if not word.startswith('--config.data.')]  # where the file was
    name = ' '.join(f'`{word}`' for word in [row['config'], *words])
    std = f' ± {row["accuracy_std"]:.2%}' if 'accuracy_std' in row else ''
    score = f'{row["accuracy"]:.2%}{std}'.replace('%', ' %')
    lines.append([name, f'{row["seeds"]}', device(row), f'{score} {row["metric"]}', seconds(row, 'seconds')])
  return table(['training, compiled before', 'seeds', 'device', 'score', 'seconds, evaluated once'], lines)


def twice(every: Sequence[Series]) -> str:
  """Return the table of whether two trainings end with the same bits."""
  lines = [
    [f'`{row["config"]}`', f'{side} mode', device(row), 'yes' if row['same_digest'] else 'no', speed(row)]
    for sides in of(every, 'determinism')
    for side, row in sides.items()
  ]
  return table(['two trainings', '', 'device', 'end with the same bits', 'images/s'], lines)


def gains(every: Sequence[Series]) -> str:
  """Return the table of what was expected of each knob on a GPU, and what it did."""
  lines = []
  for name, knob in KNOBS.items():
    for model in knob.models:
      rows = [sides[name] for sides in of(every, 'knobs') if name in sides and sides[name]['model'] == model]
      low, high = rows[-1]['gain_spread'] if rows else (0, 0)
      measured = f'{rows[-1]["gain"]:.2f} ({low:.2f} to {high:.2f}), {device(rows[-1])}' if rows else 'not measured'
      lines.append([f'`{name}`: {knob.what}', model, f'{knob.gain:.2f}', knob.why, measured])
  return table(['a step on a GPU', '', 'expected, times as fast', 'as', 'measured'], lines)


def patches(every: Sequence[Series]) -> str:
  """Return the table of how well attribution maps find a patch that decides."""
  lines = [
    [f'`{side}`', *(f'{row[name]:.0%}'.replace('%', ' %') for name in ('hit_rate', 'share', 'chance'))]
    for sides in of(every, 'planted_patch')
    for side, row in sides.items()
  ]
  return table(
    ['a planted patch', 'the brightest pixel is there', 'of the map is there', 'of the image is there'], lines
  )


def flips(every: Sequence[Series]) -> str:
  """Return the table of how well flipped labels are found."""
  lines = []
  for sides in of(every, 'flipped_labels'):
    for side, row in sides.items():
      percent = lambda name, row=row: f'{row[name]:.1%}'.replace('%', ' %') if name in row else ''
      times = f'{row["average_precision"] / row["chance"]:.0f}' if 'chance' in row else ''
      named = row.get('candidates', row['flipped'])
      recall = row.get('recall', row['precision'])  # as many are named as are flipped
      data = f'{row["flipped"]:,} of {row["examples"]:,} in the {row["data"]}; {row["model"]}, {row["epochs"]:g} epochs'
      data = f'{data}, test top-1 {percent("test_top1")}'
      cells = [f'{named:,}', percent('precision'), f'{recall:.1%}'.replace('%', ' %'), percent('average_precision')]
      lines.append([data, side, *cells, times])
  head = ['flipped labels', 'found by', 'named', 'precision', 'recall', 'average precision', 'times chance']
  return table(head, lines)


def of(every: Sequence[Series], *benchmarks: str) -> list[Series]:
  return [sides for sides in every if next(iter(sides.values()))['benchmark'] in benchmarks]


def work(row: Row) -> str:
  """Return what was computed, in words."""
  stem = f', {row["stem"]} stem' if row['stem'] else ''
  data = '' if row['data'] == 'synthetic' else f', {pathlib.Path(row["data"]).name}'
  compiled = ', torch.compile' if row.get('torch_compile') else ''
  return f'{row["model"]}{stem}, {row["image_size"]} px, batch {row["batch_size"]}, {row["dtype"]}{data}{compiled}'


def device(row: Row) -> str:
  return row['device'] if 'NVIDIA' in row['device'] else f'{row["device"]}, {row["cores"]} cores'


def speed(row: Row) -> str:
  return f'{number(row["images_per_s"])} {spread(row["spread"])}'


def ratio(sides: Series, peer: str, first: str) -> str:
  """Return how many times as fast as ``peer`` the side ``first`` is, with its spread; nothing where it was not run."""
  if peer not in sides:
    return ''
  row = sides[peer]
  low, high = row['ratio_spread']
  return f'{row[f"{first}_is_times_as_fast"]:.2f} ({low:.2f} to {high:.2f})'


def seconds(row: Row, name: str) -> str:
  """Return seconds, with their spread where there is one."""
  if name not in row:
    return ''
  spread_of = row.get(f'{name}_spread')
  return f'{number(row[name])} {spread(spread_of)}' if spread_of and spread_of[0] != spread_of[1] else number(row[name])


def spread(values: Sequence[float]) -> str:
  return f'({number(values[0])} to {number(values[1])})'


def number(value: float) -> str:
  return f'{value:,.0f}' if value >= 100 else f'{value:#.3g}'


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """Return a table in Markdown, without its empty columns; nothing where there are no lines."""
  if not lines:
    return ''
  kept = [i for i in range(len(head)) if any(line[i] for line in lines)]
  rows = [head, ['---'] * len(head), *lines]
  return '\n'.join(f'| {" | ".join(row[i] for i in kept)} |' for row in rows)


PAGES: dict[str, list[Callable[[Sequence[Series]], str]]] = {
  'README.md': [speeds],
  'docs/performance.md': [
    speeds,
    variants,
    by_python,
    inputs,
    waits,
    compiles,
    scalings,
    trainings,
    warm_trainings,
    twice,
    gains,
  ],
  'docs/evaluation.md': [patches, flips],
}


if __name__ == '__main__':
  sys.exit(main())
