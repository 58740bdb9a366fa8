"""The formats of a bundle: which module writes each, and which packages that needs."""

import importlib
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from jaxres.errors import InputError, nearest
from jaxres.export.network import Network


class Format(NamedTuple):
  """A row of the table."""

  module: str  # has write(directory, network), which returns the names of the files
  packages: tuple[str, ...]  # that must be installed
  extra: str  # of jaxres, which has them


FORMATS = {
  'onnx': Format('jaxres.export.onnx', ('onnx', 'onnxruntime'), 'export'),
  'stablehlo': Format('jaxres.export.stablehlo', ('flatbuffers',), 'export'),
  'savedmodel': Format('jaxres.export.savedmodel', ('tensorflow',), 'tf'),
  'tflite': Format('jaxres.export.tflite', ('tensorflow',), 'tf'),
  'web': Format('jaxres.export.web', ('onnx', 'onnxruntime'), 'export'),
}
ALWAYS = 'safetensors'  # the weights, from which all others can be made again
DEFAULT = 'onnx,stablehlo'


def list_formats() -> list[str]:
  """Return the names of the formats whose module is there."""
  return [name for name, row in FORMATS.items() if importlib.util.find_spec(row.module)]


def parse(words: str) -> list[str]:
  """Return the formats in ``words``, such as ``'onnx,stablehlo'``, each once; what they need is installed.

  Raises:
    InputError: one is unknown, or a package is missing.
  """
  names = [word.strip() for word in words.split(',') if word.strip()]
  known = list_formats()
  for name in names:
    if name != ALWAYS and name not in known:
      raise InputError('--format', f'unknown format {name!r:.80}', fix=nearest(name, [*known, ALWAYS]))
  if not names:
    raise InputError('--format', expected=f'formats with commas, such as {DEFAULT}', found=repr(words))
  chosen = [name for name in dict.fromkeys(names) if name != ALWAYS]
  for name in chosen:
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
      fix = f"pip install 'jaxres[{FORMATS[name].extra}]'"
      raise InputError('--format', f'{name}: {" and ".join(missing)} is not installed', fix=fix)
  return chosen


def write(directory: pathlib.Path, network: Network, names: Sequence[str]) -> None:
  """Write ``network`` in each of the formats ``names`` to ``directory``."""
  for name in names:
    importlib.import_module(FORMATS[name].module).write(directory, network)


def of_files(names: Sequence[str]) -> list[str]:
  """Return the formats of a bundle with the files ``names``."""
  kinds = {'model.onnx': 'onnx', 'model.stablehlo': 'stablehlo', 'model.tflite': 'tflite', 'index.html': 'web'}
  kinds['savedmodel/saved_model.pb'] = 'savedmodel'
  return [kinds[name] for name in kinds if name in names]
