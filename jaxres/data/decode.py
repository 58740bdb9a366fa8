"""Image files to pixels: the full image for evaluation, a random crop for training.

Any image becomes uint8 RGB as torchvision's loader has it: alpha is dropped and the EXIF orientation is not applied.
Of unsigned 16 bits the upper 8 are taken, and of 12 bits; pixels that are signed, wider or floating-point numbers have
no one meaning in 0..255, and are refused.
A training crop is decoded at 1/2, 1/4 or 1/8 of the size where that leaves enough pixels, then sampled bilinearly.
simplejpeg and OpenCV do it where they are installed, else Pillow: the pixels differ by one level at most, and the
decoded JPEGs not at all. Evaluation is always Pillow's, so that a score depends on no optional package.
"""

import contextlib
import functools
import io
import math
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

ASPECT = (3 / 4, 4 / 3)  # of a random crop, width over height
MAX_PIXELS = 89_478_485  # of an image: a quarter of a GiB at three bytes each, beyond which Pillow warns of a bomb
MAX_FILE_BYTES = 1 << 30  # of an image
_PROGRAMS = ('EPS', 'WMF')  # which Pillow has others run, whatever the file is called
_JPEG = ('JPEG', 'MPO')  # MPO: a photograph and its preview
_STORED = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')  # the modes that ``to_storable`` leaves as they are
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_PNG_DEPTH = 24  # the byte of a PNG with its bits a channel
_REDUCTIONS = (8, 4, 2)  # what a JPEG decoder offers for less work than the full image
_local = threading.local()
# An image beyond the limit is refused in one line, by ``_check_size``; Pillow would print two more before.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
# Nor is anybody helped by what it says of EXIF, palettes and tags, twice a file: the pixels are read, or refused.
warnings.filterwarnings('ignore', module=r'PIL\.')
Box = tuple[int, int, int, int]  # left, top, right, bottom


class BadImageError(ValueError):
  """An image that cannot be decoded; the message is the reason."""


def check_size(width: int, height: int) -> None:
  """Raise BadImageError where an image has more than ``MAX_PIXELS``."""
  if width * height > MAX_PIXELS:
    raise BadImageError(f'it has {width:,} x {height:,} pixels; expected at most {MAX_PIXELS:,}: make it smaller')


def decode_image(data: bytes, size: int | None, keep: float = 1.0) -> np.ndarray:
  """Return the center of an image, uint8 ``[size, size, 3]``.

  It is torchvision's ``Resize(size / keep)`` with antialiasing, then ``CenterCrop(size)``, in one resampling. A JPEG
  with more than twice the pixels that it takes a side is decoded at a reduced size.

  Args:
    data: the file.
    size: pixels a side; None returns the image as it is, ``[H, W, 3]``.
    keep: the share of the resized short side that is kept, such as 0.875 for 224 of 256.

  Raises:
    BadImageError: the image cannot be decoded.
  """
  with _reasons():
    image = _open(data)
    if size is None:
      return np.asarray(_rgb(image))
    box = _center_box(image.width, image.height, size, keep)
    n = _reduction(box[2] - box[0], box[3] - box[1], 2 * size) if image.format in _JPEG else 1
    image.draft(None, (max(1, image.width // n), max(1, image.height // n)))
    return np.asarray(_sample(_rgb(image), size, [edge / n for edge in box]))


def check(data: bytes) -> None:
  """Raise BadImageError where an image cannot be decoded; a JPEG is decoded at an eighth of its size, to be fast."""
  with _reasons():
    image = _open(data)
    image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
    _rgb(image)
    image.load()


def resize_image(pixels: np.ndarray, size: int, keep: float = 1.0) -> np.ndarray:
  """Return ``decode_image`` of decoded pixels, uint8 ``[H, W, C]`` with any number of channels."""
  box = _center_box(pixels.shape[1], pixels.shape[0], size, keep)
  planes = [np.asarray(_sample(Image.fromarray(plane), size, box)) for plane in np.moveaxis(pixels, 2, 0)]
  return np.stack(planes, axis=2)


def decode_crops(data: bytes, size: int, scale: Sequence[float], draws: Iterable[Sequence[float]]) -> np.ndarray:
  """Return a random crop of an image, resized to uint8 ``[size, size, 3]``.

  Args:
    data: the file.
    size: pixels a side.
    scale: the least and the largest share of the image's area.
    draws: for ``crop_box``.

  Raises:
    BadImageError: the image cannot be decoded.
  """
  if data.startswith(b'\xff\xd8') and fast_modules() is not None:
    try:
      return _decode_crops_fast(data, size, scale, draws)
    except ValueError:  # what simplejpeg does not read, such as CMYK, and what is damaged: Pillow has the last word
      pass
  return _decode_crops_pillow(data, size, scale, draws)


def to_storable(data: bytes) -> bytes:
  """Return an image in a form that TFDS's Image feature holds: as it is, or as an RGB PNG of ``decode_image``'s pixels.

  TensorFlow decodes JPEG and PNG, but neither CMYK nor what else there is; of 16 bits it makes other pixels.

  Raises:
    BadImageError: the image cannot be decoded.
  """
  with _reasons():
    image = _open(data)
    deep = image.format == 'PNG' and data[_PNG_DEPTH] == 16
    if image.format in (*_JPEG, 'PNG') and image.mode in _STORED and not deep:
      return data
    png = io.BytesIO()
    Image.fromarray(np.asarray(_rgb(image))).save(png, 'PNG')
    return png.getvalue()


def crop_box(width: int, height: int, scale: Sequence[float], draws: Iterable[Sequence[float]]) -> Box:
  """Return the box of a random-resized crop.

  Area and logarithm of the aspect are uniform. A draw that does not fit the image gives way to the next; after the
  last comes the largest centered box with an aspect in ``ASPECT``. Source: Szegedy et al. 2014, section 6, as
  torchvision's ``RandomResizedCrop`` has it.

  Args:
    width: of the image, in pixels.
    height: of the image, in pixels.
    scale: the least and the largest share of the image's area.
    draws: uniform numbers in ``[0, 1)``: area, aspect, left and top of each attempt.
  """
  low, high = map(math.log, ASPECT)
  for area, aspect, left, top in draws:
    pixels = width * height * (scale[0] + area * (scale[1] - scale[0]))
    ratio = math.exp(low + aspect * (high - low))
    w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if 0 < w <= width and 0 < h <= height:
      x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
      return x, y, x + w, y + h
  w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
  x, y = (width - w) // 2, (height - h) // 2
  return x, y, x + w, y + h


@functools.cache
def fast_modules() -> tuple[Any, Any] | None:
  """Return the modules simplejpeg and cv2, or None where one of them is not installed."""
  try:
    import cv2
    import simplejpeg
  except ImportError:
    return None
  cv2.setNumThreads(1)  # the pipeline has its own threads
  return simplejpeg, cv2


def _decode_crops_fast(data: bytes, size: int, scale: Sequence[float], draws: Iterable[Sequence[float]]) -> np.ndarray:
  simplejpeg, cv2 = fast_modules()  # type: ignore[misc]
  height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
  if colorspace in ('CMYK', 'YCCK'):
    raise ValueError(colorspace)
  check_size(width, height)
  box = crop_box(width, height, scale, draws)
  n = _reduction(box[2] - box[0], box[3] - box[1], size)
  high, wide = -(-height // n), -(-width // n)
  min_size = {'min_height': high, 'min_width': wide} if n > 1 else {}
  pixels = simplejpeg.decode_jpeg(data, 'RGB', **min_size, buffer=_scratch(high * wide * 3))
  left, top, right, bottom = _reduce_box(box, n)
  return cv2.resize(pixels[top:bottom, left:right], (size, size), interpolation=cv2.INTER_LINEAR)


def _scratch(size: int) -> np.ndarray:
  """Return memory of this thread for ``size`` bytes: fresh memory costs a page fault each 4 kB, every time."""
  if getattr(_local, 'scratch', np.empty(0)).size < size:
    _local.scratch = np.empty(size, np.uint8)
  return _local.scratch[:size]


def _decode_crops_pillow(
  data: bytes, size: int, scale: Sequence[float], draws: Iterable[Sequence[float]]
) -> np.ndarray:
  with _reasons():
    image = _open(data)
    box = crop_box(image.width, image.height, scale, draws)
    n = _reduction(box[2] - box[0], box[3] - box[1], size)
    if image.format in _JPEG:
      image.draft(None, (max(1, image.width // n), max(1, image.height // n)))
      image = _rgb(image)
    else:
      image = _rgb(image).reduce(n)
    image = image.crop(_reduce_box(box, n))
    extent = (0, 0, image.width, image.height)
    return np.asarray(image.transform((size, size), Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR))


def _reduction(width: int | float, height: int | float, size: int) -> int:
  """Return the largest reduction of a box that leaves ``size`` pixels a side."""
  return next((n for n in _REDUCTIONS if min(width, height) >= n * size), 1)


def _reduce_box(box: Box, n: int) -> Box:
  left, top, right, bottom = (round(edge / n) for edge in box)
  return left, top, right, bottom


def _center_box(width: int, height: int, size: int, keep: float) -> tuple[float, float, float, float]:
  """Return what of the image the center crop shows: torchvision's rounding of the resized size and of the offset."""
  short = max(size, round(size / keep))
  wide, high = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
  left, top = round((wide - size) / 2), round((high - size) / 2)
  x, y = width / wide, height / high
  return left * x, top * y, min(width, (left + size) * x), min(height, (top + size) * y)


def _sample(image: Image.Image, size: int, box: Sequence[float]) -> Image.Image:
  left, top, right, bottom = box
  return image.resize((size, size), Image.Resampling.BILINEAR, (left, top, right, bottom))


def _open(data: bytes) -> Image.Image:
  try:
    image: Image.Image = Image.open(io.BytesIO(data))
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # it has no size to ask for then
    pixels = int((re.findall(r'\d+', str(error)) or [0])[0])
    raise BadImageError(f'it has {pixels:,} pixels; expected at most {MAX_PIXELS:,}: make it smaller') from None
  check_size(image.width, image.height)
  if image.format in _PROGRAMS:
    raise BadImageError(f'it is {image.format}, a program that draws; expected pixels')
  if image.format not in _JPEG and getattr(image, 'is_animated', False):
    raise BadImageError(f'it is an animation of {getattr(image, "n_frames", 0)} frames; expected one image')
  return image


def _rgb(image: Image.Image) -> Image.Image:
  """Return ``image`` in 8-bit RGB."""
  image = eight_bits(image)
  return image if image.mode == 'RGB' else image.convert('RGB')


def eight_bits(image: Image.Image) -> Image.Image:
  """Return ``image`` with 8 bits a channel, ready for ``convert``, which wraps, clips or refuses what this does not.

  Raises:
    BadImageError: its pixels are numbers that are no levels of brightness.
  """
  tags: Mapping[int, Any] = getattr(image, 'tag_v2', {})  # of a TIFF
  deep = image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM'))  # 0 to 65535
  kind = max(tags.get(_SAMPLE_FORMAT, (1,)))
  if kind != 1 or (image.mode in ('I', 'F') and not deep):
    bits = max(tags.get(_BITS, (32,)))
    what = {1: 'unsigned integers', 2: 'signed integers', 3: 'floating-point numbers'}.get(kind, 'of another kind')
    what = 'floating-point numbers' if image.mode == 'F' else what
    fix = 'expected unsigned ones of 8 or 16 bits: scale them to 0..255 and save again'
    raise BadImageError(f'its pixels are {what} of {bits} bits; {fix}')
  if deep:
    levels = (np.asarray(image) >> (max(tags.get(_BITS, (16,))) - 8)).astype(np.uint8)
    return Image.fromarray(255 - levels if tags.get(_PHOTOMETRIC) == 0 else levels)  # 0: white is 0, left so by Pillow
  if image.mode in ('La', 'RGBa'):  # colors times alpha
    return image.convert(image.mode.upper())
  if image.mode == 'P' and 'transparency' in image.info:
    return image.convert('RGBA')
  return image


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
  """Turn what Pillow raises, which is nearly every type there is, into a BadImageError with its reason."""
  try:
    yield
  except BadImageError:
    raise
  except Exception as error:
    reason = ' '.join(str(error).split(' <_io')[0].split())  # less the address of a buffer
    raise BadImageError(f'cannot decode the image: {reason or type(error).__name__}') from error
