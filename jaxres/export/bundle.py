"""`jaxres export`: a network from wherever it is to a bundle, which is there complete or not at all."""

import contextlib
import importlib.metadata
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

import jaxres
from jaxres import predict, tasks, workdir
from jaxres.errors import InputError, check_range
from jaxres.export import formats
from jaxres.export.network import Network
from jaxres.files import file_errors, sha256_of
from jaxres.paths import user_path
from jaxres.weights import bundle, directories, safetensors, sources
from jaxres.weights.network import Pretrained
from jaxres.weights.preprocessing import Preprocessing

PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'onnx', 'onnxruntime', 'tensorflow')


class Source(NamedTuple):
  """What a bundle says of where it comes from; the fields of ``bundle.FIELDS`` of these names."""

  task: str = 'classification'
  temperature: float | None = None
  thresholds: tuple[float, ...] | None = None
  source: str = ''
  step: int | None = None
  data: str | None = None


def read(
  source: str, step: str, temperature: float | None = None, class_names: str | None = None, **spec: Any
) -> tuple[Pretrained, Source]:
  """Return a network with its preprocessing, and where it comes from.

  Args:
    source: a run, a torch file, torchvision:NAME, what `jaxres convert` wrote, or a bundle.
    step: of a run: ``'best'``, ``'latest'`` or a number.
    temperature: that divides the logits before they become probabilities; None is the source's own.
    class_names: a text file with a name a line.
    **spec: what is done to an image, of ``predict.load``, in place of the source's own.

  Raises:
    InputError: it cannot be read, or what its images are normalized by is not known.
  """
  check_range('--temperature', temperature, above=0)
  pretrained = sources.read(source, step)
  given = {name: value for name, value in spec.items() if value is not None}
  if given or pretrained.preprocessing is None:
    seen = predict.load(source, step, **given)
    preprocessing = Preprocessing(seen.mean, seen.std, seen.image_shape[:2], seen.center_crop)
    pretrained = pretrained._replace(preprocessing=preprocessing)
  count = pretrained.options['num_classes']
  names = sources.read_class_names(class_names, count) if class_names else pretrained.class_names
  names = names or tuple(map(str, range(count)))
  about = _describe_source(source, pretrained)
  if about.task not in tasks.TASKS:
    problem = f'the task {about.task!r:.80} has outputs that are no class probabilities'
    raise InputError(source, problem, fix=f'a bundle is of {", ".join(tasks.TASKS)}')
  return pretrained._replace(class_names=names), about._replace(temperature=temperature or about.temperature)


def _describe_source(source: str, pretrained: Pretrained) -> Source:
  kind, place = sources.parse(source)
  path = user_path(place)
  if kind != 'jaxres':
    return Source(source=place)
  if bundle.is_bundle(path):
    given = bundle.read_description(path)
    thresholds = given['thresholds'] and tuple(given['thresholds'])
    return Source(**{name: given[name] for name in Source._fields})._replace(thresholds=thresholds)
  if sources.is_described(path):
    return Source(source=str(path.absolute()))
  config = workdir.read_config(path) or {}
  step = pretrained.batches if isinstance(pretrained.batches, int) else None
  name = config['data']['name']
  return Source(config['train']['task'], source=str(path.absolute()), step=step, data=name)


def export(pretrained: Pretrained, about: Source, target: pathlib.Path, names: Sequence[str]) -> dict[str, int]:
  """Write a bundle to ``target``, which is there when all of it is; one that is there already is replaced.

  Args:
    pretrained: of ``read``.
    about: of ``read``.
    target: a directory that is not there, is empty, or a bundle.
    names: of ``formats.parse``.

  Returns:
    Bytes of each file.

  Raises:
    InputError: it cannot be written, or a file would not answer as jaxres does.
  """
  network = make_network(pretrained, about)
  with file_errors(target), complete_directory(target) as part:
    tensors = flax.traverse_util.flatten_dict(pretrained.variables, sep='/')
    arrays = {path: np.asarray(value) for path, value in tensors.items()}
    safetensors.write(part / bundle.WEIGHTS, arrays, {'format': 'jaxres'})
    formats.write(part, network, names)
    description = {
      'schema': bundle.SCHEMA,
      'network': directories.describe(pretrained, sha256_of(part / bundle.WEIGHTS)),
      **about._asdict(),
      'versions': _versions(),
      'files': bundle.digest_files(part),
    }
    bundle.write_description(part / bundle.NAME, description)
  return {name: (target / name).stat().st_size for name in [*description['files'], bundle.NAME]}


def make_network(pretrained: Pretrained, about: Source) -> Network:
  """Return what the formats are written from."""
  assert pretrained.preprocessing is not None
  assert pretrained.class_names is not None
  return Network(
    pretrained.model(),
    pretrained.variables,
    pretrained.channels,
    pretrained.preprocessing,
    pretrained.class_names,
    about.task,
    about.temperature,
    pretrained.origin,
  )


def check_target(target: pathlib.Path) -> None:
  """Raise InputError where a bundle cannot be written to ``target``: there is something already."""
  if target.is_dir() and not any(target.iterdir()):
    return
  if target.exists() or target.is_symlink():
    kind = 'a bundle' if bundle.is_bundle(target) else 'a directory' if target.is_dir() else 'a file'
    fix = f'delete it, or give another name{"; `jaxres export BUNDLE` makes its files again" * (kind == "a bundle")}'
    raise InputError(target, f'there is {kind} already', fix=fix)


@contextlib.contextmanager
def complete_directory(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Make a directory beside ``target``, named so on success and removed on any failure.

  What was at ``target``, an empty directory or a bundle, is deleted after that.
  """
  word = secrets.token_hex(4)
  part, old = (target.with_name(f'{target.name}.{word}.{end}') for end in ('part', 'old'))
  part.mkdir(parents=True)
  try:
    yield part
    if target.exists():
      target.rename(old)
    try:
      part.rename(target)
    except OSError:
      if old.exists():
        old.rename(target)
      raise
  finally:
    for path in (part, old):
      if path.exists() and (path == part or target.exists()):
        shutil.rmtree(path, ignore_errors=True)


def _versions() -> dict[str, str]:
  """Return the versions of what made a bundle, by package."""
  versions = {'jaxres': jaxres.__version__}
  for name in PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions


def format_size(size: int) -> str:
  """Return bytes for a person, such as ``'1.1 MB'``."""
  return f'{size / 1e6:.1f} MB' if size >= 1e5 else f'{size / 1e3:.1f} kB'
