"""The curves of a run, drawn."""

import io
import pathlib

from jaxres import files
from jaxres.log import rows


def draw_curves(workdir: pathlib.Path) -> pathlib.Path:
  """Draw loss, top-1 and learning rate over the epochs of ``metrics.jsonl``; return the picture's path."""
  import matplotlib.figure

  known, _ = rows.read(workdir / 'metrics.jsonl')
  figure = matplotlib.figure.Figure(figsize=(12, 3.6), layout='constrained')
  for axes, quantity in zip(figure.subplots(1, 3), ('loss', 'top1', 'lr'), strict=True):
    names = dict.fromkeys(name for row in known for name in row if name.endswith(f'/{quantity}'))
    for name in names:  # of the splits, and of them as ema/... and tta/...
      points = [(row['epoch'], row[name]) for row in known if name in row]
      label = name.removesuffix(f'/{quantity}')
      axes.plot(*zip(*points, strict=True), label=label, marker='.' if len(points) < 60 else None)
    axes.set(title=quantity, xlabel='epoch')
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend()
  path, picture = workdir / 'curves.png', io.BytesIO()
  figure.savefig(picture, dpi=120)
  files.write_whole(path, picture.getvalue())
  return path
