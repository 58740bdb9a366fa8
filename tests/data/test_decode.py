import io
import math
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from jaxres import data as data_lib
from jaxres.data import decode
from jaxres.errors import InputError

needs_fast = pytest.mark.skipif(decode.fast_modules() is None, reason='simplejpeg or OpenCV is not installed')


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
  """Return smooth colors: random ones, seven a side."""
  noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
  return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  assert a.shape == b.shape
  return np.abs(a.astype(int) - b)


def draws(seed: int = 0, attempts: int = 10) -> list[list[float]]:
  return np.random.default_rng(seed).random((attempts, 4)).tolist()


@pytest.mark.parametrize(
  ('mode', 'form'),
  [(m, 'PNG') for m in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')]
  + [(m, 'JPEG') for m in ('L', 'RGB', 'CMYK')]
  + [(m, 'BMP') for m in ('1', 'L', 'P', 'RGB')]
  + [(m, 'WEBP') for m in ('L', 'RGB', 'RGBA')]
  + [(m, 'GIF') for m in ('L', 'P', 'RGB')],
)
def test_every_kind_becomes_rgb_as_pillow_has_it(mode: str, form: str) -> None:
  data = encode(picture(20, 12).convert(mode), form)
  actual = decode.decode_image(data, None)
  assert (actual.shape, actual.dtype) == ((12, 20, 3), np.uint8)
  np.testing.assert_array_equal(actual, np.asarray(Image.open(io.BytesIO(data)).convert('RGB')))
  assert np.ptp(actual) > 100
  assert decode.decode_crops(data, 8, (0.5, 1.0), draws()).shape == (8, 8, 3)


def test_sixteen_bits_keep_the_upper_eight() -> None:
  values = np.random.default_rng(0).integers(0, 1 << 16, (9, 7), np.uint16)
  data = encode(Image.fromarray(values), 'PNG')
  assert Image.open(io.BytesIO(data)).mode.startswith('I')
  actual = decode.decode_image(data, None)
  for channel in range(3):
    np.testing.assert_array_equal(actual[..., channel], values >> 8)


def test_a_palette_with_transparency_warns_of_nothing() -> None:
  image = picture(8, 8).quantize(16)
  data = encode(image, 'PNG', transparency=bytes([0, 128]))
  np.testing.assert_array_equal(decode.decode_image(data, None), np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('form', ['GIF', 'WEBP', 'PNG'])
def test_an_animation_is_refused(form: str) -> None:
  data = encode(picture(8, 8), form, save_all=True, append_images=[picture(8, 8, seed=1)])
  for read in (lambda: decode.decode_image(data, 8), lambda: decode.decode_crops(data, 8, (0.5, 1.0), draws())):
    with pytest.raises(decode.BadImageError, match='it is an animation of 2 frames; expected one image'):
      read()


def test_a_photograph_with_a_preview_is_one_image() -> None:
  data = encode(picture(16, 16), 'MPO', save_all=True, append_images=[picture(16, 16, seed=1)])
  np.testing.assert_array_equal(
    decode.decode_image(data, None), decode.decode_image(encode(picture(16, 16), 'JPEG'), None)
  )


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'BMP', 'WEBP', 'GIF'])
@pytest.mark.parametrize('keep', [0.5, 0.0])
def test_a_damaged_image_is_refused(form: str, keep: float) -> None:
  noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
  data = encode(noise, form)
  data = data[: int(keep * len(data))]
  for read in (lambda: decode.decode_image(data, 8), lambda: decode.decode_crops(data, 8, (0.5, 1.0), draws())):
    with pytest.raises(decode.BadImageError, match='^cannot decode the image: [^<>]+$'):
      read()


@pytest.mark.parametrize('size', [(100, 75), (75, 100), (90, 90), (33, 200), (20, 30)])
@pytest.mark.parametrize('keep', [1.0, 0.875])
def test_the_center_is_torchvisions(size: tuple[int, int], keep: float) -> None:
  image = picture(*size)
  short = round(56 / keep)
  width, height = size
  wide, high = (short, int(short * height / width)) if width < height else (int(short * width / height), short)
  left, top = round((wide - 56) / 2), round((high - 56) / 2)  # torchvision's center_crop
  expected = image.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + 56, top + 56))
  for actual in (decode.decode_image(encode(image, 'PNG'), 56, keep), decode.resize_image(np.asarray(image), 56, keep)):
    assert difference(actual, np.asarray(expected)).max() <= 1


def test_the_same_size_is_left_as_it_is() -> None:
  image = picture(24, 24)
  np.testing.assert_array_equal(decode.decode_image(encode(image, 'PNG'), 24), np.asarray(image))


def test_resized_takes_any_number_of_channels() -> None:
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 5), np.uint8)
  actual = decode.resize_image(pixels, 10)
  assert actual.shape == (10, 10, 5)
  np.testing.assert_array_equal(actual[..., 1:4], decode.resize_image(pixels[..., 1:4], 10))


@pytest.mark.parametrize('size', [(1001, 903), (450, 447)])
def test_a_reduced_jpeg_is_nearly_the_complete_one(size: tuple[int, int]) -> None:
  data = encode(picture(*size), 'JPEG', quality=95)
  full = encode(Image.open(io.BytesIO(data)), 'PNG')
  assert difference(decode.decode_image(data, 56), decode.decode_image(full, 56)).max() <= 3
  crops = [decode.decode_crops(d, 56, (0.9, 1.0), draws()) for d in (data, full)]
  assert difference(*crops).max() <= 3


def test_random_boxes_have_the_published_distribution() -> None:
  boxes = np.array([decode.crop_box(4000, 3000, (0.1, 0.5), draws(seed)) for seed in range(4000)])
  width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
  assert (boxes >= 0).all()
  assert (boxes[:, 2].max() <= 4000) & (boxes[:, 3].max() <= 3000)
  share, aspect = width * height / 12e6, np.log(width / height)
  uniform = lambda low, high: (low + high) / 2, lambda low, high: (high - low) / math.sqrt(12)
  for values, (low, high) in ((share, (0.1, 0.5)), (aspect, (math.log(3 / 4), math.log(4 / 3)))):
    assert low - 1e-3 <= values.min() < low + 0.01 * (high - low) + 1e-3
    assert high - 0.01 * (high - low) - 1e-3 < values.max() <= high + 1e-3
    assert values.mean() == pytest.approx(uniform[0](low, high), abs=0.03 * (high - low))
    assert values.std() == pytest.approx(uniform[1](low, high), rel=0.05)
  for offset, room in ((boxes[:, 0], 4000 - width), (boxes[:, 1], 3000 - height)):
    position = offset / np.maximum(room, 1)
    assert position.mean() == pytest.approx(0.5, abs=0.02)
    assert np.corrcoef(position, share)[0, 1] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
  ('size', 'box'), [((300, 10), (143, 0, 156, 10)), ((10, 300), (0, 143, 10, 156)), ((1, 1), (0, 0, 1, 1))]
)
def test_a_box_that_never_fits_is_the_center(size: tuple[int, int], box: tuple[int, ...]) -> None:
  assert decode.crop_box(*size, (1.0, 1.0), draws()) == box


@pytest.mark.parametrize('pillow', [True, pytest.param(False, marks=needs_fast)])
def test_a_small_crop_is_enlarged_bilinearly(pillow: bool, monkeypatch) -> None:
  if pillow:
    monkeypatch.setattr(decode, 'fast_modules', lambda: None)
  data = encode(picture(120, 90), 'JPEG', quality=95)
  box = decode.crop_box(120, 90, (0.2, 0.3), draws(3))
  assert max(box[2] - box[0], box[3] - box[1]) < 96
  expected = Image.open(io.BytesIO(data)).crop(box).resize((96, 96), Image.Resampling.BILINEAR)
  assert difference(decode.decode_crops(data, 96, (0.2, 0.3), draws(3)), np.asarray(expected)).max() <= 1


@needs_fast
@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize(('side', 'reduction'), [(300, 1), (150, 2), (75, 4), (37, 8), (16, 8)])
def test_both_decoders_agree(mode: str, side: int, reduction: int, monkeypatch) -> None:
  data = encode(picture(501, 379).convert(mode), 'JPEG', quality=92)
  seen = []
  reduce = decode._reduction
  monkeypatch.setattr(decode, '_reduction', lambda *box: seen.append(reduce(*box)) or seen[-1])
  quick = decode._decode_crops_fast(data, side, (0.7, 0.9), draws(5))
  actual = difference(quick, decode._decode_crops_pillow(data, side, (0.7, 0.9), draws(5)))
  assert seen == [reduction, reduction]
  assert actual.max() <= 1
  assert np.ptp(quick) > 100


@needs_fast
def test_what_simplejpeg_refuses_is_left_to_pillow(monkeypatch) -> None:
  data = encode(picture(40, 30).convert('CMYK'), 'JPEG')
  actual = decode.decode_crops(data, 16, (0.5, 1.0), draws())
  monkeypatch.setattr(decode, 'fast_modules', lambda: None)
  np.testing.assert_array_equal(actual, decode.decode_crops(data, 16, (0.5, 1.0), draws()))


@needs_fast
def test_a_crop_stays_when_its_thread_uses_the_memory_again() -> None:
  files = [encode(picture(120 + 30 * i % 70, 90, seed=i), 'JPEG') for i in range(6)]
  expected = [decode._decode_crops_pillow(data, 96, (0.5, 1.0), draws(i)) for i, data in enumerate(files)]
  actual = [decode.decode_crops(data, 96, (0.5, 1.0), draws(i)) for i, data in enumerate(files)]
  assert all(difference(a, b).max() <= 1 for a, b in zip(actual, expected, strict=True))

  complete = [[0.0, 0.5, 0.0, 0.0]]  # a square of its size, which is not resampled
  first = decode.decode_crops(encode(picture(32, 32), 'JPEG'), 32, (1.0, 1.0), complete)
  kept = first.copy()
  decode.decode_crops(encode(picture(32, 32, seed=1), 'JPEG'), 32, (1.0, 1.0), complete)
  np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize('broken', ['cv2', 'simplejpeg'])
def test_without_the_extra_pillow_does_it(broken: str, monkeypatch) -> None:
  monkeypatch.setitem(sys.modules, broken, None)
  decode.fast_modules.cache_clear()
  try:
    assert decode.fast_modules() is None
    data = encode(picture(120, 90), 'JPEG')
    expected = decode._decode_crops_pillow(data, 32, (0.5, 1.0), draws())
    np.testing.assert_array_equal(decode.decode_crops(data, 32, (0.5, 1.0), draws()), expected)
  finally:
    decode.fast_modules.cache_clear()


def test_sixteen_bits_of_three_channels_are_not_stored_as_they_are() -> None:
  rows = np.random.default_rng(0).integers(0, 1 << 16, (5, 4, 3), np.uint16)
  data = png16(rows)
  np.testing.assert_array_equal(decode.decode_image(data, None), rows >> 8)
  stored = decode.to_storable(data)
  assert stored != data
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), rows >> 8)
  with pytest.raises(decode.BadImageError, match='cannot decode the image'):
    decode.to_storable(b'<html>')


def png16(pixels: np.ndarray) -> bytes:
  """Return a PNG of uint16 ``[H, W, 3]``, which Pillow cannot write. Source: the PNG specification, 11.2."""

  def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

  height, width, _ = pixels.shape
  lines = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
  head = struct.pack('>IIBBBBB', width, height, 16, 2, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')


def png_of(width: int, height: int) -> bytes:
  """Return a PNG that says its size, and holds no more."""

  def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

  head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


@pytest.mark.parametrize(
  'size', [(13_000, 13_000), (9_460, 9_460), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (1, 89_478_486)]
)
def test_an_image_beyond_the_bound(size, capfd) -> None:
  data = png_of(*size)
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)  # as outside of pytest
    for read in (
      decode.check,
      decode.to_storable,
      lambda data: decode.decode_image(data, None),
      lambda data: decode.decode_image(data, 8),
      lambda data: decode.decode_crops(data, 8, (0.1, 1.0), [(0.5, 0.5, 0.5, 0.5)]),
    ):
      with pytest.raises(decode.BadImageError, match=r'it has [\d,x ]+ pixels; expected at most 89,478,485'):
        read(data)
  with warnings.catch_warnings():  # whatever the filter is
    warnings.simplefilter('error')
    with pytest.raises(decode.BadImageError, match='expected at most 89,478,485'):
      decode.check(data)
  assert capfd.readouterr().err == ''


def test_a_large_image_within_the_bound(capfd) -> None:
  assert decode.decode_image(encode(Image.new('L', (9_459, 9_459), 7), 'JPEG'), 8).shape == (8, 8, 3)
  assert capfd.readouterr().err == ''


def test_a_large_jpeg_is_refused_by_both_decoders(monkeypatch) -> None:
  data = bytearray(encode(picture(16, 16), 'JPEG'))
  at = data.index(b'\xff\xc0')  # the frame: its length, its depth, height and width
  data[at + 5 : at + 9] = struct.pack('>HH', 13_000, 13_000)
  for fast in (decode.fast_modules, lambda: None):
    monkeypatch.setattr(decode, 'fast_modules', fast)
    with pytest.raises(decode.BadImageError, match=r'it has [\d,x ]+ pixels; expected at most 89,478,485'):
      decode.decode_crops(bytes(data), 8, (0.1, 1.0), [(0.5, 0.5, 0.5, 0.5)])


def test_pillow_prints_nothing(tmp_path) -> None:
  (tmp_path / 'huge.png').write_bytes(png_of(13_000, 13_000))
  code = (
    'import sys; from jaxres.data import decode\ntry: decode.check(open(sys.argv[1], "rb").read())\n'
    'except decode.BadImageError as error: print(error)'
  )
  words = [sys.executable, '-c', code, str(tmp_path / 'huge.png')]
  done = subprocess.run(words, capture_output=True, text=True, check=True)
  assert done.stdout == 'it has 13,000 x 13,000 pixels; expected at most 89,478,485: make it smaller\n'
  assert done.stderr == ''


EXIF = b'Exif\0\0MM\0*\xff\xff\xff\x08\0\1'  # whose directory lies beyond it
TAG = b'Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x0e\0\2\xff\xff\xff\xff\0\0\0\0\0\0\0\0'  # a text longer than the file


@pytest.mark.filterwarnings('ignore:::PIL')  # as the process has it, which pytest takes back
@pytest.mark.parametrize('exif', [EXIF, TAG])
def test_damaged_exif_is_no_damage_of_the_pixels_and_not_a_word(tmp_path, exif: bytes) -> None:
  plain = encode(picture(16, 16), 'JPEG')
  photograph = encode(picture(16, 16), 'JPEG', exif=exif)
  np.testing.assert_array_equal(decode.decode_image(photograph, None), decode.decode_image(plain, None))
  (tmp_path / 'x.jpg').write_bytes(photograph)
  code = 'import sys; from jaxres.data import decode; decode.decode_image(open(sys.argv[1], "rb").read(), 8)'
  words = [sys.executable, '-c', code, str(tmp_path / 'x.jpg')]
  done = subprocess.run(words, capture_output=True, text=True, check=True)
  assert done.stdout + done.stderr == ''


def test_a_bomb_counts_as_a_bad_image(tmp_path, capsys) -> None:
  for split in ('train', 'test'):
    for name in ('a', 'b'):
      (tmp_path / split / name).mkdir(parents=True)
      Image.new('RGB', (8, 8)).save(tmp_path / split / name / 'x.png')
  (tmp_path / 'train/a/huge.png').write_bytes(png_of(13_000, 13_000))
  (tmp_path / 'test/a/huge.png').write_bytes(png_of(20_000, 20_000))
  with pytest.raises(InputError, match=r'huge\.png.*pixels; expected at most 89,478,485.*max_bad'):
    data_lib.load('folder', path=str(tmp_path), image_size=8)
  data_lib.load('folder', path=str(tmp_path), image_size=8, max_bad=1)
  lines = capsys.readouterr().err.splitlines()
  assert sorted(line[:8] for line in lines) == ['bad test', 'bad trai']


@pytest.mark.parametrize('read', [decode.check, decode.to_storable, lambda data: decode.decode_image(data, 8)])
def test_a_program_is_no_image(read, monkeypatch) -> None:
  """Pillow has Ghostscript run an EPS, whatever the file is called."""
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: pytest.fail('it was run'))
  file = io.BytesIO()
  Image.new('RGB', (8, 8)).save(file, 'EPS')
  with pytest.raises(decode.BadImageError, match='it is EPS, a program that draws; expected pixels'):
    read(file.getvalue())
