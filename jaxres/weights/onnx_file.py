"""Single ONNX files that `jaxres export` wrote: what they say of themselves, and what runs them."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxres import tasks
from jaxres.errors import InputError, check_word
from jaxres.weights import preprocessing as preprocessing_lib
from jaxres.weights.preprocessing import Preprocessing

SUFFIX = '.onnx'
NOTES = ('class_names', 'preprocessing', 'task', 'temperature')
FOREIGN = 'take a file that `jaxres export` wrote, which says its classes and what is done to an image'


class OnnxFile(NamedTuple):
  """A network in an ONNX file, and what the file says of it.

  Attributes:
    run: variables, which it leaves alone, and images, uint8 ``[B, H, W, C]``, to logits, float32 ``[B, K]``.
    channels: of the images.
    preprocessing: of the images; normalization is inside the file.
    class_names: in the order of the logits.
    task: what the outputs mean, by name.
    temperature: that divides the logits before they become probabilities.
  """

  run: Callable[[Any, np.ndarray], np.ndarray]
  channels: int
  preprocessing: Preprocessing
  class_names: tuple[str, ...]
  task: str
  temperature: float


def is_onnx(place: str) -> bool:
  """Return whether ``place`` is called as an ONNX file."""
  return place.lower().endswith(SUFFIX)


def read(path: pathlib.Path) -> OnnxFile:
  """Return the network in the ONNX file at ``path``, which onnxruntime runs on the CPU.

  Raises:
    InputError: onnxruntime is not installed, or the file is not there, damaged, or none that `jaxres export` wrote for
      images of one size.
  """
  session = _open_session(path)
  notes = session.get_modelmeta().custom_metadata_map
  if missing := [name for name in NOTES if name not in notes]:
    raise InputError(path, f'it does not say its {" and ".join(missing)}', fix=FOREIGN)
  names, spec, temperature = (_parse(path, notes, name) for name in ('class_names', 'preprocessing', 'temperature'))
  if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
    raise InputError(f'{path}: class_names', expected='a list of names', found=f'{names!r:.80}')
  if temperature is not None and (type(temperature) not in (int, float) or not 0 < temperature < float('inf')):
    raise InputError(f'{path}: temperature', expected='null or a number above 0', found=f'{temperature!r:.80}')
  preprocessing = preprocessing_lib.parse(spec, f'{path}: preprocessing')
  check_word(f'{path}: task', notes['task'], tasks.TASKS, 'task')
  channels = _check_shapes(path, session, preprocessing.image_size, len(names))

  def run(variables: Any, images: np.ndarray) -> np.ndarray:
    logits: np.ndarray = session.run(['logits'], {'images': np.asarray(images)})[0]
    return logits

  return OnnxFile(run, channels, preprocessing, tuple(names), notes['task'], temperature or 1.0)


def make_session(model: bytes | str, threads: int = 0) -> Any:
  """Return onnxruntime's session, which runs a model on the CPU; it raises what is wrong, and logs nothing.

  Args:
    model: its bytes, or the path of its file.
    threads: that compute; 0 is one a core.
  """
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level, options.intra_op_num_threads = 4, threads
  return onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])


def _check_shapes(path: pathlib.Path, session: Any, image_size: tuple[int, int], num_classes: int) -> int:
  """Return the number of channels; raise InputError where the shapes are not those of the notes of the file."""
  images, logits = (
    next((each for each in values if each.name == name), None)
    for values, name in ((session.get_inputs(), 'images'), (session.get_outputs(), 'logits'))
  )
  if images is None or logits is None or images.type != 'tensor(uint8)' or len(images.shape) != 4:
    raise InputError(path, expected='uint8 images [B, H, W, C] to logits', fix=FOREIGN)
  _, height, width, channels = images.shape
  if isinstance(height, str):
    fix = 'take the model.onnx beside it, which sees what jaxres has resized'
    raise InputError(path, 'it resizes images itself', fix=fix)
  if (height, width) != image_size or logits.shape[-1] != num_classes or type(channels) is not int:
    problem = f'images {images.shape} and logits {logits.shape} are not those of its notes'
    raise InputError(path, problem, expected=f'{[*image_size]} pixels and {num_classes} classes')
  return channels


def _open_session(path: pathlib.Path) -> Any:
  """Return onnxruntime's session for the file at ``path``. Raises as ``read``."""
  try:
    import onnxruntime  # noqa: F401 - whether it is there
    from onnxruntime.capi import onnxruntime_pybind11_state as errors
  except ImportError:
    raise InputError(path, 'onnxruntime is not installed', fix="pip install 'jaxres[export]'") from None
  if not path.is_file():
    raise InputError(path, 'no such file')
  refusals = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile)
  try:
    return make_session(str(path))
  except (*refusals, errors.NotImplemented, errors.RuntimeException) as error:
    raise InputError(path, f'no readable ONNX file: {" ".join(str(error).split()):.200}') from None


def _parse(path: pathlib.Path, notes: dict[str, str], name: str) -> Any:
  try:
    return json.loads(notes[name])
  except (ValueError, RecursionError):
    raise InputError(f'{path}: {name}', expected='JSON', found=f'{notes[name]!r:.80}') from None
