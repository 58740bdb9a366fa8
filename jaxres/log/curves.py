"""The curves of a run, drawn."""

import io
import pathlib
from collections.abc import Mapping

from jaxres import files, metrics
from jaxres.log import rows


def draw_curves(workdir: pathlib.Path, known: Mapping[str, metrics.Metric], monitor: str) -> pathlib.Path:
  """Draw loss, monitored metric and learning rate over the epochs of ``metrics.jsonl``; return the picture's path.

  Args:
    workdir: of the run.
    known: the metrics of the task, by their names without the split.
    monitor: the one that is drawn beside the loss.
  """
  import matplotlib.figure

  logged, _ = rows.read(workdir / 'metrics.jsonl')
  figure = matplotlib.figure.Figure(figsize=(12, 3.6), layout='constrained')
  titles = {name: known[name].title for name in dict.fromkeys(('loss', monitor))} | {'lr': 'learning rate'}
  for axes, (quantity, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
    names = dict.fromkeys(name for row in logged for name in row if name.endswith(f'/{quantity}'))
    for name in names:  # of the splits, and of them as ema/... and tta/...
      points = [(row['epoch'], row[name]) for row in logged if name in row]
      label = name.removesuffix(f'/{quantity}')
      axes.plot(*zip(*points, strict=True), label=label, marker='.' if len(points) < 60 else None)
    axes.set(title=title, xlabel='epoch')
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend()
  path, picture = workdir / 'curves.png', io.BytesIO()
  figure.savefig(picture, dpi=120)
  files.write_atomic(path, picture.getvalue())
  return path
