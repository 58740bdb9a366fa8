"""Text in a page."""

import html

from jaxres.errors import printable


def escape(text: str) -> str:
  """Return ``text`` as HTML has it, in attributes too: no tags, no control characters, nothing that UTF-8 lacks."""
  return html.escape(printable(text, keep='\n'))
