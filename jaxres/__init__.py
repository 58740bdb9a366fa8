"""jaxres: train, fine-tune, understand and ship ResNets in JAX and Flax."""

import importlib
import importlib.metadata
import warnings
from typing import TYPE_CHECKING, Any

import packaging.version

if TYPE_CHECKING:
  from jaxres.analysis.loaded import load as load

__version__ = '0.1.0'
TESTED_JAX = ('0.10.2', '0.13')  # from the first, before the second: the range of pyproject.toml, docs/known-issues.md


def _warn_of_untested_jax() -> None:
  """Warn in one line where the installed jax is none that jaxres is tested with; jax is not imported for it."""
  try:
    version = importlib.metadata.version('jax')
  except importlib.metadata.PackageNotFoundError:  # what imports jax will say so
    return
  first, end = TESTED_JAX
  release = lambda text: packaging.version.parse(text).release  # a version before a release counts as it
  if not release(first) <= release(version) < release(end):
    message = (
      f'jaxres is tested with jax {first} or newer and older than {end}, found jax {version}; '
      f"to have one of these: pip install 'jax>={first},<{end}'"
    )
    warnings.warn_explicit(message, UserWarning, '<jaxres>', 1, __name__)  # with no line of source below it


def __getattr__(name: str) -> Any:
  """Return ``jaxres.load``, which is imported when it is first needed: `import jaxres` loads neither JAX nor NumPy."""
  if name != 'load':
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return importlib.import_module('.analysis.loaded', __name__).load


def __dir__() -> list[str]:
  return sorted({*globals(), 'load'})


_warn_of_untested_jax()
