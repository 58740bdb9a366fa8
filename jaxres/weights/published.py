"""torchvision's published weights by name: downloaded once, checked each time.

URLs: torchvision/models/resnet.py. The eight digits in a file's name are the first of its SHA-256.
"""

import pathlib

from jaxres.errors import InputError, nearest
from jaxres.files import download, sha256_of
from jaxres.runtime.environment import cache_dir

URL = 'https://download.pytorch.org/models/'
# By name: IMAGENET1K_V1, the recipe of the papers; by name and '-v2': IMAGENET1K_V2, torchvision's newer recipe.
DIGITS = {
  'resnet18': 'f37072fd',
  'resnet34': 'b627a593',
  'resnet50': '0676ba61',
  'resnet50-v2': '11ad3fa6',
  'resnet101': '63fe2227',
  'resnet101-v2': 'cd907fc2',
  'resnet152': '394f9c45',
  'resnet152-v2': 'f82ba261',
  'resnext50_32x4d': '7cdf4587',
  'resnext50_32x4d-v2': '1a0047aa',
  'resnext101_32x8d': '8ba56ff5',
  'resnext101_32x8d-v2': '110c445d',
  'wide_resnet50_2': '95faca4d',
  'wide_resnet50_2-v2': '9ba9bcbe',
  'wide_resnet101_2': '32ee1156',
  'wide_resnet101_2-v2': 'd733dc28',
}


def find(name: str) -> pathlib.Path:
  """Return the path of the published weights called ``name``, downloaded where they are not in the cache.

  Args:
    name: a key of ``DIGITS``.

  Raises:
    InputError: the name is unknown, or the download fails or is another file.
  """
  if name not in DIGITS:
    raise InputError(name, 'no such file, run or directory, and no published weights', fix=nearest(name, DIGITS))
  digits, path = DIGITS[name], _path(name)
  if not (path.is_file() and sha256_of(path).startswith(digits)):
    fix = 'or fetch it by hand and give its path: torchvision:PATH'
    download(URL + path.name, path, digits, None, fix)
  return path


def list_cached() -> tuple[str, ...]:
  """Return the names of the published weights that are in the cache; nothing is downloaded."""
  there = (
    name for name, digits in DIGITS.items() if _path(name).is_file() and sha256_of(_path(name)).startswith(digits)
  )
  return tuple(there)


def _path(name: str) -> pathlib.Path:
  return cache_dir('weights') / f'{name.removesuffix("-v2")}-{DIGITS[name]}.pth'
