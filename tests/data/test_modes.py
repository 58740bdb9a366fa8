"""Every kind of pixel that Pillow knows: converted as NumPy does it, or refused; never wrapped or clipped."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, features

from jaxres import data
from jaxres.data import decode
from jaxres.errors import InputError
from tests.data import sets

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (9, 11), np.uint8)
RGB = RNG.integers(0, 256, (9, 11, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (9, 11), np.uint8)
DEEP = RNG.integers(0, 1 << 16, (9, 11), np.uint16)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def tiff(
  pixels: np.ndarray,
  bits: int,
  sample_format: int | None = 1,
  photometric: int = 1,
  order: str = '<',
  extra: int | None = None,
) -> bytes:
  """Return an uncompressed TIFF of ``[H, W]`` or ``[H, W, C]``: TIFF 6.0, written here and not by Pillow."""
  strip = pack12(pixels) if bits == 12 else pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
  height, width, channels = (*pixels.shape, 1)[:3]
  depths = struct.pack(f'{order}{channels}H', *[bits] * channels)
  values: dict[int, int | None] = {
    256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: channels, 278: height, 279: len(strip),
    338: extra, 339: sample_format,
  }  # fmt: skip
  entries = {tag: struct.pack(f'{order}HHII', tag, 4, 1, value) for tag, value in values.items() if value is not None}
  if len(depths) > 4:  # kept behind the strip
    entries[258] = struct.pack(f'{order}HHII', 258, 3, channels, 8 + len(strip))
  else:
    entries[258] = struct.pack(f'{order}HHI', 258, 3, channels) + depths.ljust(4, b'\0')
  directory = struct.pack(f'{order}H', len(entries)) + b''.join(entries.values()) + bytes(4)
  head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', 8 + len(strip) + len(depths))
  return head + strip + depths + directory


def pack12(pixels: np.ndarray) -> bytes:
  """Return rows of 12-bit numbers, two in three bytes, the upper bits first; the last of a row is filled up."""
  rows = []
  for row in pixels.tolist():
    bits = ''.join(f'{value:012b}' for value in row)
    bits += '0' * (-len(bits) % 8)
    rows.append(int(bits, 2).to_bytes(len(bits) // 8, 'big'))
  return b''.join(rows)


def gray(levels: np.ndarray) -> np.ndarray:
  return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


def png(rows: np.ndarray, depth: int, color: int) -> bytes:
  """Return a PNG of the samples in ``rows``, ``[H, W, C]``: Pillow cannot write 16-bit RGB."""
  import zlib

  height, width = rows.shape[:2]
  raw = b''.join(b'\0' + row.astype('>u2' if depth == 16 else np.uint8).tobytes() for row in rows)
  chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
  head = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b'')


DEEP_RGB = RNG.integers(0, 1 << 16, (9, 11, 3), np.uint16)
PALETTE = Image.fromarray(RGB).quantize(16)
CASES = {
  '1': (encode(Image.fromarray(GRAY > 127), 'PNG'), gray(np.where(GRAY > 127, 255, 0))),
  'L': (encode(Image.fromarray(GRAY), 'PNG'), gray(GRAY)),
  'LA': (encode(Image.merge('LA', [Image.fromarray(GRAY), Image.fromarray(ALPHA)]), 'PNG'), gray(GRAY)),
  'P': (encode(PALETTE, 'PNG'), np.asarray(PALETTE.getpalette()).reshape(-1, 3)[np.asarray(PALETTE)].astype(np.uint8)),
  'P transparent': (
    encode(PALETTE, 'PNG', transparency=bytes(range(0, 256, 16))),
    np.asarray(PALETTE.getpalette()).reshape(-1, 3)[np.asarray(PALETTE)].astype(np.uint8),
  ),
  'RGB': (encode(Image.fromarray(RGB), 'PNG'), RGB),
  'RGBA': (encode(Image.fromarray(np.dstack([RGB, ALPHA])), 'PNG'), RGB),
  'RGBA tiff': (tiff(np.dstack([RGB, ALPHA]), 8, None, 2, extra=2), RGB),
  'CMYK tiff': (
    tiff(np.dstack([RGB, np.zeros_like(GRAY)]), 8, None, 5),
    255 - RGB,
  ),
  'I;16 png': (png(DEEP[..., None], 16, 0), gray(DEEP >> 8)),
  'LA 16 png': (png(np.dstack([DEEP, DEEP[::-1]]), 16, 4), gray(DEEP >> 8)),
  'RGB 16 png': (png(DEEP_RGB, 16, 2), (DEEP_RGB >> 8).astype(np.uint8)),
  'RGBA 16 png': (png(np.dstack([DEEP_RGB, DEEP]), 16, 6), (DEEP_RGB >> 8).astype(np.uint8)),
  'I;16 tiff': (tiff(DEEP, 16), gray(DEEP >> 8)),
  'I;16 tiff, no format': (tiff(DEEP, 16, None), gray(DEEP >> 8)),
  'I;16B tiff': (tiff(DEEP, 16, order='>'), gray(DEEP >> 8)),
  'I;16 tiff, white is 0': (tiff(DEEP, 16, photometric=0), gray(255 - (DEEP >> 8))),
  'L tiff, white is 0': (tiff(GRAY, 8, photometric=0), gray(255 - GRAY)),
  'I;12 tiff': (tiff(DEEP >> 4, 12), gray(DEEP >> 8)),
  'RGB 16 tiff': (tiff(DEEP_RGB, 16, None, 2), (DEEP_RGB >> 8).astype(np.uint8)),
  'pgm 16': (b'P5 11 9 65535\n' + DEEP.astype('>u2').tobytes(), gray(DEEP >> 8)),
}  # fmt: skip


@pytest.mark.parametrize('kind', CASES)
def test_pixels_are_those_of_numpy(kind: str) -> None:
  encoded, expected = CASES[kind]
  np.testing.assert_array_equal(decode.decode_image(encoded, None), expected)
  same = [decode.decode_image(encode(Image.fromarray(expected), 'PNG'), 5), decode.decode_image(encoded, 5)]
  np.testing.assert_array_equal(*same)
  draws = [(0.5, 0.5, 0.5, 0.5)]
  np.testing.assert_array_equal(
    decode.decode_crops(encoded, 4, (0.3, 1.0), draws),
    decode.decode_crops(encode(Image.fromarray(expected), 'PNG'), 4, (0.3, 1.0), draws),
  )
  np.testing.assert_array_equal(decode.decode_image(decode.to_storable(encoded), None), expected)
  decode.check(encoded)


def test_premultiplied_colors_are_divided_by_alpha() -> None:
  opaque = np.dstack([RGB, np.full_like(GRAY, 255)])
  np.testing.assert_array_equal(decode.decode_image(tiff(opaque, 8, None, 2, extra=1), None), RGB)
  both = np.dstack([GRAY, np.full_like(GRAY, 255)])
  np.testing.assert_array_equal(decode.decode_image(tiff(both, 8, None, 1, extra=1), None), gray(GRAY))


def test_modes_that_no_file_gives_are_converted_as_pillow_does() -> None:
  for mode in ('HSV', 'YCbCr', 'PA', 'RGBX'):
    image = Image.fromarray(RGB).convert('P' if mode == 'PA' else mode).convert(mode)
    np.testing.assert_array_equal(decode._rgb(image), image.convert('RGB'))
  assert decode._rgb(Image.fromarray(np.dstack([RGB, ALPHA])).convert('RGBa')).mode == 'RGB'
  assert decode._rgb(Image.merge('LA', [Image.fromarray(GRAY)] * 2).convert('La')).mode == 'RGB'


REFUSED = {
  'signed integers of 8 bits': tiff(GRAY.astype(np.int8), 8, 2),
  'signed integers of 16 bits': tiff(DEEP.astype(np.int16), 16, 2),
  'signed integers of 32 bits': tiff(DEEP.astype(np.int32), 32, 2),
  'unsigned integers of 32 bits': tiff(DEEP.astype(np.uint32), 32, 1),
  'floating-point numbers of 32 bits': tiff((DEEP / 65535).astype(np.float32), 32, 3),
}


@pytest.mark.parametrize('kind', REFUSED)
@pytest.mark.parametrize(
  'read',
  [
    lambda encoded: decode.decode_image(encoded, None),
    lambda encoded: decode.decode_image(encoded, 5),
    lambda encoded: decode.decode_crops(encoded, 4, (0.3, 1.0), [(0.5, 0.5, 0.5, 0.5)]),
    decode.to_storable,
    decode.check,
  ],
)
def test_numbers_that_are_no_levels_are_refused(kind: str, read) -> None:
  with pytest.raises(decode.BadImageError, match=f'its pixels are {kind}; expected unsigned ones of 8 or 16 bits'):
    read(REFUSED[kind])


def test_a_portable_float_map_is_refused() -> None:
  encoded = b'Pf\n11 9\n-1.0\n' + (DEEP / 65535).astype('<f4').tobytes()
  with pytest.raises(decode.BadImageError, match='floating-point numbers of 32 bits'):
    decode.decode_image(encoded, None)


@pytest.mark.parametrize('pipeline', ['resident', 'stream'])
def test_the_file_is_named(tmp_path, pipeline: str) -> None:
  for split in ('train', 'test'):
    for name in 'ab':
      (tmp_path / split / name).mkdir(parents=True)
      (tmp_path / split / name / '1.tif').write_bytes(tiff(DEEP, 16))
  (tmp_path / 'test/b/2.tiff').write_bytes(REFUSED['signed integers of 16 bits'])
  options = {'path': str(tmp_path), 'pipeline': pipeline, 'image_size': 8, 'batch_size': 2}
  with pytest.raises(InputError, match=r'test/b/2.tiff.*signed integers of 16 bits'):
    data.load('folder', **options)
  assert data.load('folder', **options, max_bad=1).test.size == 2


def test_deep_images_in_a_tfds_set_are_not_clipped(tmp_path) -> None:
  examples = [{'image': png(DEEP[..., None], 16, 0), 'label': k % 2} for k in range(4)]
  sets.write(tmp_path, sets.features((9, 11, 1)), {'train': examples, 'test': examples})
  images = data.load('tiny', data_dir=str(tmp_path), batch_size=2).test.device_data['image']
  np.testing.assert_array_equal(images[0], (DEEP >> 8).astype(np.uint8)[..., None])


@pytest.mark.skipif(not features.check('libtiff'), reason='Pillow has no libtiff')
@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate'])
def test_compressed_tiffs_are_alike(compression: str) -> None:
  encoded = encode(Image.fromarray(DEEP), 'TIFF', compression=compression)
  np.testing.assert_array_equal(decode.decode_image(encoded, None), gray(DEEP >> 8))
