"""What `jaxres train DATA` looks at before it chooses: the data, the device, the weights in the cache."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxres import data
from jaxres.data.sources import tfds
from jaxres.data.types import CLASSES, Arrays, Encoded, Split
from jaxres.errors import InputError, nearest
from jaxres.paths import user_path
from jaxres.train.choose import Facts
from jaxres.weights import published

SAMPLE = 64  # image files whose sizes are looked at
BUILT_IN = ('digits',)


def locate(given: str, data_dir: str | None = None) -> dict[str, Any]:
  """Return the fields of the section ``data`` that say where the data is, by what it is called on the command line.

  Args:
    given: a folder, a CSV or an ``.npz`` file, or the name of a data set.
    data_dir: where TFDS data sets are.

  Raises:
    InputError: it is nothing of these.
  """
  path = user_path(given, 'DATA')
  if (path / 'config.json').is_file():
    raise InputError('DATA', f'{given} is a run', fix=f'`jaxres train --config {given}` repeats it')
  if path.is_dir():
    return {'name': 'folder', 'path': given}
  kinds = {'.csv': 'csv', '.npz': 'arrays'}
  if path.suffix.lower() in kinds:
    return {'name': kinds[path.suffix.lower()], 'path': given}
  if path.is_file():
    raise InputError('DATA', f'{given} is a file', expected='a folder of images, a .csv or an .npz file, or a name')
  known = {*BUILT_IN, *tfds.list_known(data_dir)}
  if given not in known:
    raise InputError('DATA', f'no such folder, file or data set: {given}', fix=nearest(given, known))
  return {'name': given}


def name_of(given: str) -> str:
  """Return what a run on the data ``given`` is called, such as ``'photos'`` of ``'~/photos/'``."""
  path = user_path(given, 'DATA')
  return (path.absolute().name if path.is_dir() else path.stem) or 'run'


def look(fields: Mapping[str, Any]) -> Facts:
  """Return the facts about the data that ``fields`` of the section ``data`` name, and about this machine.

  Raises:
    InputError: it cannot be read.
  """
  name, data_dir = fields['name'], fields.get('data_dir')
  download = name in tfds.PREPARABLE and not tfds.is_prepared(name, data_dir)
  quiet = contextlib.nullcontext() if download else contextlib.redirect_stderr(io.StringIO())
  with quiet:  # the training reads it too, and says what there is to say; a download shows how far it is
    source = data.read_source(
      name, data_dir, fields.get('path'), download, fields.get('seed', 0), data.SPLIT_RULE, CLASSES
    )
  shapes = image_shapes(source.train)
  heights, widths = shapes[:, 0], shapes[:, 1]
  return Facts(
    name=name,
    path=fields.get('path'),
    examples=len(source.train.labels),
    classes=len(source.class_names),
    side=int(np.median(np.minimum(heights, widths))),
    one_size=len(np.unique(shapes, axis=0)) == 1 and bool((heights == widths).all()),
    channels=int(shapes[0, 2]),
    encoded=isinstance(source.train, Encoded),
    has_val=source.val is not None,
    device='cpu' if jax.default_backend() == 'cpu' else 'gpu',
    devices=jax.device_count(),
    weights=published.list_cached(),
    download=download,
  )


def image_shapes(split: Split) -> np.ndarray:
  """Return height, width and channels of some images of ``split``, int ``[N, 3]``; of files the header alone is read.

  Raises:
    InputError: none of them is an image.
  """
  if isinstance(split, Arrays):
    return np.array([split.images.shape[1:]])
  shapes, problem = [], ''
  places = np.unique(np.linspace(0, len(split.labels) - 1, SAMPLE).astype(int))
  for at in places:
    try:
      with Image.open(io.BytesIO(split.read_at(int(at)))) as image:
        shapes.append((image.height, image.width, 3))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
      problem = f'{split.name_of(int(at))}: {error}'
  if not shapes:
    raise InputError('DATA', f'none of the {len(places)} images that were looked at can be read: {problem}')
  return np.array(shapes)
