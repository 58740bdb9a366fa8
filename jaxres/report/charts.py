"""Charts as inline SVG, with the numbers beside them for who does not see them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from jaxres.errors import printable
from jaxres.report.text import escape

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 36
MAX_POINTS = 300  # of a line
COLORS = 8  # in style.css
LOGARITHMIC = 50  # times the smallest value: larger ranges of positive ones have a logarithmic axis
Points = Sequence[tuple[float, float]]


def line_chart(title: str, series: Mapping[str, Points], x_label: str, show: Callable[[float], str]) -> Markup:
  """Return lines over a common axis; pointer and arrow keys read their values.

  Args:
    title: text.
    series: the points of each line, x ascending; what is not a finite number is left out.
    x_label: text.
    show: writes a y.
  """
  kept = {name: _thin([p for p in points if all(map(math.isfinite, p))]) for name, points in series.items()}
  kept = {name: points for name, points in kept.items() if points}
  if not kept:
    return Markup()
  xs, ys = ([p[axis] for points in kept.values() for p in points] for axis in (0, 1))
  x_at = _scale([min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1], LEFT, WIDTH - RIGHT)
  x_ticks = [x for x in ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs)]
  logarithmic = min(ys) > 0 and max(ys) > LOGARITHMIC * min(ys)
  y_ticks = log_ticks(min(ys), max(ys)) if logarithmic else ticks(min(ys), max(ys))
  y_at = _scale(y_ticks, HEIGHT - BOTTOM, TOP, math.log if logarithmic else float)
  title = f'{title}, logarithmic' if logarithmic else title
  lines, readings = [], []
  for number, (name, points) in enumerate(kept.items()):
    places = [(round(x_at(x), 1), round(y_at(y), 1)) for x, y in points]
    style = f'c{number % COLORS}'
    path = ' '.join(f'{x:g},{y:g}' for x, y in places)
    lines.append(f'<polyline class="line {style}" points="{path}"/>')
    if len(points) < 40:
      lines += [f'<circle class="dot {style}" cx="{x:g}" cy="{y:g}" r="2.5"/>' for x, y in places]
    texts = [[px, f'{x:.4g}', show(y)] for (px, _), (x, y) in zip(places, points, strict=True)]
    readings.append({'name': printable(name), 'points': texts})
  ends = '; '.join(f'{name} from {show(points[0][1])} to {show(points[-1][1])}' for name, points in kept.items())
  end = ', '.join(f'{name} {show(points[-1][1])}' for name, points in kept.items())
  cursor = f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/>'
  content = _axes(x_ticks, y_ticks, x_at, y_at, x_label, show) + ''.join(lines) + cursor
  legend = ''.join(
    f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><line class="line c{k % COLORS}" x1="0" x2="24" '
    f'y1="4" y2="4"/></svg>{escape(name)}</li>'
    for k, name in enumerate(kept)
  )
  return Markup(
    f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
    f'{_svg(f"{title} over {x_label}: {ends}. Arrow keys read the values.", content, "tabindex=0")}'
    f'<output aria-live="polite">{escape(f"At the end: {end}")}</output>'
    f'<ul class="legend">{legend}</ul>{_numbers(x_label, readings)}'
    f'<script type="application/json">{_json({"x": x_label, "series": readings})}</script></figure>'
  )


def reliability_chart(title: str, bins: Sequence[Mapping[str, Any]]) -> Markup:
  """Return a bar of accuracy for each bin of confidence, beside the line on which the two are equal.

  The more examples are in a bin, the stronger is the color of its bar.

  Args:
    title: text.
    bins: as of ``scores.calibration``.
  """
  x_ticks = y_ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
  x_at, y_at = _scale(x_ticks, LEFT, WIDTH - RIGHT), _scale(y_ticks, HEIGHT - BOTTOM, TOP)
  filled = [row for row in bins if row['examples']]
  max_examples = max(row['examples'] for row in filled)

  def bar(row: Mapping[str, Any]) -> str:
    left, right, top = x_at(row['low']) + 1, x_at(row['high']) - 1, y_at(row['accuracy'])
    place = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{y_at(0) - top:.1f}"'
    opacity = 0.2 + 0.8 * math.sqrt(row['examples'] / max_examples)
    return f'<rect class="fill" fill-opacity="{opacity:.2f}" {place}><title>{escape(_describe_bar(row))}</title></rect>'

  equal = f'<line class="equal" x1="{x_at(0):g}" y1="{y_at(0):g}" x2="{x_at(1):g}" y2="{y_at(1):g}"/>'
  content = _axes(x_ticks, y_ticks, x_at, y_at, 'confidence', lambda y: f'{y:.0%}') + ''.join(map(bar, filled)) + equal
  readings = ''.join(f'<li>{escape(_describe_bar(row))}</li>' for row in filled)
  return Markup(
    f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
    f'{_svg(f"{title}: accuracy for each bin of confidence; the numbers follow", content)}'
    f'<details><summary>Numbers</summary><ul>{readings}</ul></details></figure>'
  )


def _describe_bar(row: Mapping[str, Any]) -> str:
  return f'confidence {row["confidence"]:.1%}: accuracy {row["accuracy"]:.1%} of {row["examples"]:,} examples'


def heatmap(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
  """Return a confusion matrix as a table: a row for each label; its hits are green, the more mistakes the redder.

  Args:
    matrix: counts, ``[K][K]``; a row for each label.
    names: of the K classes.
  """
  head = ''.join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
  rows = []
  for k, (name, row) in enumerate(zip(names, matrix, strict=True)):
    total = max(sum(row), 1)
    cells = ''.join(
      f'<td{" class=hit" if j == k else ""} style="--share:{math.sqrt(value / total):.3f}">{value or ""}</td>'
      for j, value in enumerate(row)
    )
    rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
  return Markup(
    '<div class="scroll" role="region" aria-label="Confusion matrix" tabindex="0"><table class="heat">'
    f'<caption>Rows are labels, columns predictions.</caption><thead><tr><td></td>{head}</tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def ticks(low: float, high: float) -> list[float]:
  """Return 3 to 7 round numbers from at most ``low`` to at least ``high``."""
  span = high - low or abs(high) or 1.0
  power = 10.0 ** math.floor(math.log10(span))
  step = next(power * k for k in (0.2, 0.25, 0.5, 1, 2) if span / (power * k) <= 5)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """Return powers of ten, where these are few also 2 and 5 times them, from at most ``low`` to at least ``high``."""
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  steps = (1, 2, 5) if last - first <= 2 else (1,)
  marks = [k * 10.0**power for power in range(first, last + 1) for k in steps]
  lowest = max(at for at, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
  end = min(at for at, mark in enumerate(marks) if mark >= high * (1 - 1e-9))
  return [float(f'{mark:.6g}') for mark in marks[lowest : end + 1]]


def _numbers(x_label: str, readings: Sequence[Mapping[str, Any]]) -> str:
  """Return the points of all lines as a table that opens."""
  by_x: dict[str, dict[str, str]] = {}
  for reading in readings:
    for _, x, y in reading['points']:
      by_x.setdefault(x, {})[reading['name']] = y
  names = [reading['name'] for reading in readings]
  head = ''.join(f'<th scope="col">{escape(name)}</th>' for name in (x_label, *names))
  rows = ''.join(
    f'<tr><th scope="row">{x}</th>{"".join(f"<td>{escape(row.get(name, str()))}</td>" for name in names)}</tr>'
    for x, row in sorted(by_x.items(), key=lambda item: float(item[0]))
  )
  table = f'<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
  return f'<details><summary>Numbers</summary><div class="scroll">{table}</div></details>'


def _thin(points: Points) -> Points:
  """Return at most about ``MAX_POINTS`` of ``points``, the first and the last among them."""
  every = -(-len(points) // MAX_POINTS)
  return [*points[:-1:every], points[-1]] if points else points


def _scale(
  marks: Sequence[float], start: float, end: float, of: Callable[[float], float] = float
) -> Callable[[float], float]:
  """Return what maps the range of ``marks``, by ``of`` each, to pixels from ``start`` to ``end``."""
  low, high = of(marks[0]), of(marks[-1])
  return lambda value: start + (of(value) - low) / (high - low) * (end - start)


def _axes(
  x_ticks: Sequence[float],
  y_ticks: Sequence[float],
  x_at: Callable[[float], float],
  y_at: Callable[[float], float],
  x_label: str,
  show: Callable[[float], str],
) -> str:
  rows = ''.join(
    f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(y):.1f}" y2="{y_at(y):.1f}"/>'
    f'<text x="{LEFT - 6}" y="{y_at(y) + 4:.1f}" text-anchor="end">{escape(show(y).replace(".00%", "%"))}</text>'
    for y in y_ticks
  )
  columns = ''.join(
    f'<text x="{x_at(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:.4g}</text>' for x in x_ticks
  )
  middle = (LEFT + WIDTH - RIGHT) / 2
  return f'{rows}{columns}<text x="{middle:g}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'


def _svg(label: str, content: str, *attributes: str) -> str:
  more = ''.join(f' {attribute}' for attribute in attributes)
  return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}"{more}>{content}</svg>'


def _json(value: object) -> str:
  """Return JSON that no HTML parser takes for a tag."""
  return json.dumps(value).replace('<', '\\u003c')
