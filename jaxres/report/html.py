"""Pages: one HTML file each with everything in it, nothing fetched; readable small, dark, by keyboard and aloud.

The templates escape all text; what is ``Markup`` is HTML already.
"""

import functools
import importlib.resources
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from jaxres.errors import printable
from jaxres.report.charts import heatmap, line_chart, reliability_chart

__all__ = [
  'Bar',
  'Cell',
  'Section',
  'beside',
  'details',
  'document',
  'figure',
  'gallery',
  'group',
  'heatmap',
  'line_chart',
  'note_list',
  'paragraph',
  'picture',
  'reliability_chart',
  'section',
  'table',
  'tiles',
]
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
KINDS = ('gallery', 'gallery pairs', 'gallery triples')  # by the pictures of a figure


class Section(NamedTuple):
  """A part of a page that its contents list leads to."""

  id: str
  title: str
  html: Markup


class Bar(NamedTuple):
  """A cell of a table with a bar beside its text."""

  share: float | None  # of the longest: 0 to 1; None has none
  text: str


Cell = str | Bar


@functools.cache
def _templates() -> jinja2.Environment:
  """Return what the templates are made by: a control character is escaped as Python does, and then as HTML does."""
  return jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=lambda value: value if isinstance(value, Markup) else printable(value, keep='\n'),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )


def _parts() -> Any:
  return _templates().get_template('parts.html').module


def document(title: str, intro: Markup, sections: Sequence[Section]) -> str:
  """Return a complete page.

  Args:
    title: text.
    intro: HTML, over the contents.
    sections: in order; with links to each.
  """
  style, script = (
    Markup(importlib.resources.files(__package__).joinpath(name).read_text(encoding='utf-8'))
    for name in ('style.css', 'script.js')
  )
  page = _templates().get_template('page.html')
  return page.render(title=title, intro=intro, sections=sections, policy=POLICY, style=style, script=script)


def section(identifier: str, title: str, *content: Markup) -> Section:
  """Return a section of pieces of HTML."""
  return Section(identifier, title, Markup('\n').join(content))


def paragraph(text: str) -> Markup:
  """Return a paragraph of text, set back."""
  return _parts().paragraph(text)


def note_list(notes: Sequence[str]) -> Markup:
  """Return a list of texts; nothing where there are none."""
  return _parts().note_list(notes)


def details(summary: str, content: Markup) -> Markup:
  """Return HTML that is folded until a reader opens it."""
  return _parts().details(summary, content)


def table(headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Markup:
  """Return a table; the first cell of each row is its heading, and text."""
  return _parts().table(', '.join(filter(None, headers)), headers, rows).strip()


def tiles(figures: Sequence[tuple[str, str, str]]) -> Markup:
  """Return the figures that matter most, large: of each its name, itself, and what else there is to say of it."""
  return _parts().tiles(figures)


def beside(*content: Markup) -> Markup:
  """Return pieces of HTML beside each other where there is room."""
  return _parts().beside(content)


def group(kind: str, pieces: Sequence[Markup]) -> Markup:
  """Return pieces of HTML in a box of a class of style.css."""
  return _parts().group(kind, pieces)


def picture(source: str, alt: str) -> Markup:
  """Return a picture.

  Args:
    source: URI, as of ``images.data_uri``.
    alt: what it shows, read aloud in its place.
  """
  return _parts().picture(source, alt)


def figure(sources: Sequence[str], alt: str, caption: str) -> Markup:
  """Return pictures, side by side, with a caption.

  Args:
    sources: URIs, as of ``images.data_uri``.
    alt: what they show, read aloud in their place.
    caption: text, its first line the heading.
  """
  return _parts().figure(sources, alt, caption)


def gallery(figures: Sequence[Markup], across: int = 1) -> Markup:
  """Return figures of ``across`` pictures each at most, 1 to 3, in as many columns as there is room for."""
  return group(KINDS[across - 1], figures) if figures else Markup('<p>None.</p>')
