"""Pages: one HTML file each with everything in it, nothing fetched; readable small, dark, by keyboard and aloud."""

import importlib.resources
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxres.report.charts import heatmap, line_chart, reliability_chart
from jaxres.report.text import escape

__all__ = [
  'Bar',
  'Cell',
  'Section',
  'beside',
  'details',
  'document',
  'figure',
  'gallery',
  'heatmap',
  'line_chart',
  'note_list',
  'paragraph',
  'reliability_chart',
  'section',
  'table',
  'tiles',
]
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Section(NamedTuple):
  """A part of a page that its contents list leads to."""

  id: str
  title: str
  html: str


class Bar(NamedTuple):
  """A cell of a table with a bar beside its text."""

  share: float | None  # of the longest: 0 to 1; None has none
  text: str


Cell = str | Bar


def document(title: str, intro: str, sections: Sequence[Section]) -> str:
  """Return a complete page.

  Args:
    title: text.
    intro: HTML, over the contents.
    sections: in order; with links to each.
  """
  style, script = (
    importlib.resources.files(__package__).joinpath(name).read_text(encoding='utf-8')
    for name in ('style.css', 'script.js')
  )
  links = ''.join(f'<li><a href="#{part.id}">{escape(part.title)}</a></li>' for part in sections)
  body = '\n'.join(
    f'<section id="{part.id}" aria-labelledby="{part.id}-title" tabindex="-1">'
    f'<h2 id="{part.id}-title">{escape(part.title)}</h2>\n{part.html}</section>'
    for part in sections
  )
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{escape(title)}</h1>
{intro}</header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main id="main" tabindex="-1">
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def section(identifier: str, title: str, *content: str) -> Section:
  """Return a section of pieces of HTML."""
  return Section(identifier, title, '\n'.join(content))


def paragraph(text: str) -> str:
  """Return a paragraph of text, set back."""
  return f'<p class="soft">{escape(text)}</p>'


def note_list(notes: Sequence[str]) -> str:
  """Return a list of texts; nothing where there are none."""
  return f'<ul>{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ''


def details(summary: str, content: str) -> str:
  """Return HTML that is folded until a reader opens it."""
  return f'<details><summary>{escape(summary)}</summary>\n{content}</details>'


def table(headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
  """Return a table; the first cell of each row is its heading."""
  head = ''.join(f'<th scope="col">{escape(name)}</th>' for name in headers)
  body = ''.join(f'<tr>{_heading(name)}{"".join(map(_data, row))}</tr>\n' for name, *row in rows)
  title = escape(', '.join(filter(None, headers)))
  return (
    f'<div class="scroll" role="region" aria-label="{title}" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
    f'<tbody>{body}</tbody></table></div>'
  )


def _heading(cell: Cell) -> str:
  return f'<th scope="row">{escape(cell if isinstance(cell, str) else cell.text)}</th>'


def _data(cell: Cell) -> str:
  if not isinstance(cell, Bar):
    return f'<td>{escape(cell)}</td>'
  share = '' if cell.share is None else f' style="--share:{cell.share:.4f}"'
  return f'<td class="bar"{share}>{escape(cell.text)}</td>'


def tiles(figures: Sequence[tuple[str, str, str]]) -> str:
  """Return the figures that matter most, large: of each its name, itself, and what else there is to say of it."""
  cells = (
    f'<dl class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></dl>'
    for name, value, more in figures
  )
  return f'<div class="tiles">{"".join(cells)}</div>'


def beside(*content: str) -> str:
  """Return pieces of HTML beside each other where there is room."""
  return f'<div class="beside">{"".join(f"<div>{piece}</div>" for piece in content)}</div>'


def figure(sources: Sequence[str], alt: str, caption: str) -> str:
  """Return pictures, side by side, with a caption.

  Args:
    sources: URIs, as of ``pictures.data_uri``.
    alt: what they show, read aloud in their place.
    caption: text, its first line the heading.
  """
  first, *rest = sources
  images = f'<img src="{first}" alt="{escape(alt)}">' + ''.join(f'<img src="{uri}" alt="">' for uri in rest)
  return f'<figure class="picture"><div>{images}</div><figcaption>{escape(caption)}</figcaption></figure>'


def gallery(figures: Sequence[str], across: int = 1) -> str:
  """Return figures of ``across`` pictures each at most, 1 to 3, in as many columns as there is room for."""
  kind = ('gallery', 'gallery pairs', 'gallery triples')[across - 1]
  return f'<div class="{kind}">{"".join(figures)}</div>' if figures else '<p>None.</p>'
