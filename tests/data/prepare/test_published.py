"""Sets of MNIST's and EuroSAT's layout, downloaded from a server on this machine: the published ones are not here."""

import gzip
import hashlib
import http.server
import io
import pathlib
import struct
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxres import cli, data
from jaxres.data.prepare import published
from jaxres.data.sources import tfds
from jaxres.data.sources.published import File
from jaxres.errors import InputError


def idx(array: np.ndarray) -> bytes:
  """Return an IDX file, written as the page on the format says."""
  return gzip.compress(
    struct.pack('>BBBB', 0, 0, 8, array.ndim) + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()
  )


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A function that publishes files, by the keys of ``Published.files``, on a server on this machine."""
  root = tmp_path / 'published'
  root.mkdir()
  handler = lambda *args: http.server.SimpleHTTPRequestHandler(*args, directory=str(root))
  monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()

    def publish(name: str, contents: dict[str, bytes]) -> None:
      files = {}
      for key, content in contents.items():
        file = published.PUBLISHED[name].files[key].url.rpartition('/')[2]
        (root / file).write_bytes(content)
        url = f'http://127.0.0.1:{running.server_port}/{file}'
        files[key] = File(url, len(content), hashlib.sha256(content).hexdigest())
      monkeypatch.setitem(published.PUBLISHED, name, published.PUBLISHED[name]._replace(files=files))

    yield publish
    running.shutdown()


def mnist() -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in (('train', 30), ('test', 10)):
    arrays[f'{split}-images'] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    arrays[f'{split}-labels'] = (np.arange(count) % 10).astype(np.uint8)
  return {key: idx(array) for key, array in arrays.items()}, arrays


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'kmnist'])
def test_every_pixel_and_label_of_an_idx_set_comes_back(name: str, server, tmp_path, capsys) -> None:
  files, arrays = mnist()
  server(name, files)
  place = str(tmp_path / 'sets')
  dataset = data.load(name, data_dir=place, download=True, batch_size=8)
  source = tfds.read(name, place)
  for split, part in (('train', source.train), ('test', source.test)):
    np.testing.assert_array_equal(part.images[..., 0], arrays[f'{split}-images'])
    np.testing.assert_array_equal(part.labels, arrays[f'{split}-labels'])
  assert dataset.info.class_names == published.PUBLISHED[name].class_names
  assert dataset.info.image_shape == (28, 28, 1)
  assert 'downloading http://127.0.0.1' in capsys.readouterr().err
  (tmp_path / 'sets/downloads').rename(tmp_path / 'gone')  # nothing is downloaded twice
  assert data.load(name, data_dir=place, download=True).train.size == 30


def eurosat() -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for label, name in enumerate(published.PUBLISHED['eurosat'].class_names):
      for number in range(5):
        jpeg = io.BytesIO()
        Image.fromarray(np.full((64, 64, 3), 20 * label + number, np.uint8)).save(jpeg, 'JPEG', quality=95)
        archive.writestr(f'2750/{name}/{name}_{number + 1}.jpg', jpeg.getvalue())
    archive.writestr('2750/readme.txt', 'x')
  return buffer.getvalue()


def test_a_zip_of_jpegs_by_class(server, tmp_path, capsys) -> None:
  server('eurosat', {'train': eurosat()})
  assert cli.main(['prepare', 'eurosat', '--data_dir', str(tmp_path / 'sets')]) is None
  assert '--config.data.name=eurosat' in capsys.readouterr().out
  dataset = data.load('eurosat', data_dir=str(tmp_path / 'sets'), batch_size=8)
  assert (dataset.train.size, dataset.test.size) == (40, 10)  # a fifth is held out
  source = tfds.read('eurosat', str(tmp_path / 'sets'), tested='none')
  level = source.train.images.mean(axis=(1, 2, 3))
  assert np.abs(level - 20 * source.train.labels - 2).max() <= 3


def test_what_is_not_as_published(server, tmp_path, monkeypatch) -> None:
  files, arrays = mnist()
  place = str(tmp_path / 'sets')
  server('mnist', files)
  wrong = published.PUBLISHED['mnist'].files | {'test-labels': published.PUBLISHED['mnist'].files['train-labels']}
  wrong['test-labels'] = wrong['test-labels']._replace(sha256='0' * 64)
  with monkeypatch.context() as patch:
    patch.setitem(published.PUBLISHED, 'mnist', published.PUBLISHED['mnist']._replace(files=wrong))
    with pytest.raises(InputError, match='with sha256 0000.*or fetch it by hand to .*train-labels-idx1-ubyte.gz'):
      published.prepare('mnist', place)
  assert not pathlib.Path(place, 'mnist').exists()
  for content, message in (
    (gzip.compress(b'no idx'), 'no IDX file of unsigned bytes in 1 dimensions'),
    (b'no gzip', 'cannot read it as .gz'),
    (idx(arrays['test-labels'])[:-9], 'cannot read it as .gz'),
    (gzip.compress(gzip.decompress(idx(arrays['test-labels']))[:-1]), r'\[10\] values are 10, and it holds 9'),
    (idx(arrays['test-labels'][:-1]), 'and as many labels, found .* and 9 labels'),
    (idx(arrays['test-labels'] + np.uint8(1)), 'label 10, but 10 classes'),
  ):
    server('mnist', files | {'test-labels': content})
    with pytest.raises(InputError, match=message):
      published.prepare('mnist', place)
    assert not pathlib.Path(place, 'mnist').exists()


def test_a_zip_with_other_classes(server, tmp_path) -> None:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('2750/Forest/Forest_1.jpg', b'x')
  server('eurosat', {'train': buffer.getvalue()})
  with pytest.raises(
    InputError, match=r"its classes differ in \['AnnualCrop'.*; expected images of the classes AnnualCrop, "
  ):
    published.prepare('eurosat', str(tmp_path / 'sets'))
  server('eurosat', {'train': b'no zip'})
  with pytest.raises(InputError, match='cannot read it as .zip'):
    published.prepare('eurosat', str(tmp_path / 'sets'))
