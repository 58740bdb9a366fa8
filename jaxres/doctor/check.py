"""One check and its outcome."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from jaxres.errors import InputError


class Check(NamedTuple):
  """A row of the table."""

  subject: str
  verdict: Literal['ok', 'warning', 'problem']
  finding: str  # in plain words, and what to do


Checks = Iterator[Check]


def collect_checks(subject: str, checks: Callable[[], Checks]) -> list[Check]:
  """Return ``checks``, with the error that ends them as a problem."""
  results: list[Check] = []
  try:
    results.extend(checks())
  except InputError as error:
    results.append(Check(subject, 'problem', str(error)))
  return results
