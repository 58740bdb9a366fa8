"""Ranges of the fields of an optimizer."""

from jaxres.errors import check_range


def check_not_negative(**values: float) -> None:
  """Raise InputError where a field of the section ``optim`` is negative or not finite."""
  for name, value in values.items():
    check_range(f'optim.{name}', value, low=0)


def check_below_one(**values: float) -> None:
  """Raise InputError where a field of the section ``optim`` is not in [0, 1)."""
  for name, value in values.items():
    check_range(f'optim.{name}', value, low=0, below=1)
