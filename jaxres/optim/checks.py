"""Ranges of the fields of an optimizer."""

from jaxres.errors import InputError


def check_not_negative(**values: float) -> None:
  """Raise InputError where a field of the section ``optim`` is negative or not finite."""
  for name, value in values.items():
    if not 0.0 <= value < float('inf'):
      raise InputError(f'optim.{name}: expected 0 or more, found {value}')


def check_below_one(**values: float) -> None:
  """Raise InputError where a field of the section ``optim`` is not in [0, 1)."""
  for name, value in values.items():
    if not 0.0 <= value < 1.0:
      raise InputError(f'optim.{name}: expected a value in [0, 1), found {value}')
