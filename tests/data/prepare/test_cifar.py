import hashlib
import http.server
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxres import files as files_lib
from jaxres.data.prepare import cifar as prepare_cifar
from jaxres.data.sources import arrays
from jaxres.data.sources import tfds as tfds_lib
from jaxres.errors import InputError

CLASSES = {'cifar10': {'label': 10}, 'cifar100': {'coarse_label': 20, 'label': 100}}
BATCH = 4  # images in each file of the archive


def random_files(name):
  """Return the files of an archive in the published layout, and what they hold."""
  rng = np.random.default_rng(0)
  published = prepare_cifar.PUBLISHED[name]
  files, expected = {}, {}
  for split, members in published.splits.items():
    n = BATCH * len(members)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = {key: rng.integers(0, k, n, dtype=np.uint8) for key, k in CLASSES[name].items()}
    expected[split] = images, labels
    for i in range(n):  # byte by byte as https://www.cs.toronto.edu/~kriz/cifar.html says
      record = bytes(labels[key][i] for key in CLASSES[name])
      record += b''.join(images[i, :, :, channel].tobytes() for channel in range(3))
      files[members[i // BATCH]] = files.get(members[i // BATCH], b'') + record
  for key, k in CLASSES[name].items():
    files[published.names[key]] = '\n'.join(f'{key}_{i}' for i in range(k)).encode() + b'\n\n'
  return files, expected


def pack(path, files):
  """Write a .tar.gz and return its SHA-256."""
  with tarfile.open(path, 'w:gz') as tar:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return hashlib.sha256(path.read_bytes()).hexdigest()


def publish(monkeypatch, name, path, **changes):
  """Make ``path`` the published archive of ``name``."""
  changes.setdefault('sha256', hashlib.sha256(path.read_bytes()).hexdigest())
  changes.setdefault('size', path.stat().st_size)
  monkeypatch.setitem(prepare_cifar.PUBLISHED, name, prepare_cifar.PUBLISHED[name]._replace(**changes))


@pytest.fixture
def archive(tmp_path, monkeypatch):
  """Return an archive of random images that is taken for the published CIFAR-10."""
  path = tmp_path / 'given.tar.gz'
  pack(path, random_files('cifar10')[0])
  publish(monkeypatch, 'cifar10', path)
  return path


@pytest.fixture
def data_dir(tmp_path):
  return tmp_path / 'sets'


def complaint(function, *args, **kwargs):
  start = time.monotonic()
  with pytest.raises(InputError) as caught:
    function(*args, **kwargs)
  assert time.monotonic() - start < 10
  assert '\n' not in str(caught.value)
  return str(caught.value)


def files_below(path):
  return sorted(str(p.relative_to(path)) for p in path.rglob('*') if p.is_file())


@pytest.mark.parametrize('name', CLASSES)
def test_every_pixel_and_label_comes_back(tmp_path, monkeypatch, data_dir, name):
  files, expected = random_files(name)
  path = tmp_path / 'given.tar.gz'
  pack(path, files)
  publish(monkeypatch, name, path)
  folder = prepare_cifar.prepare(name, str(data_dir), str(path))
  assert folder == data_dir / name / '3.0.2'

  source = tfds_lib.read(name, str(data_dir))
  for split, (images, labels) in expected.items():
    np.testing.assert_array_equal(getattr(source, split).images, images)
    np.testing.assert_array_equal(getattr(source, split).labels, labels['label'])
    stored = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    assert len(stored) == len(images)
    for example in stored:
      at = int(example['id'].removeprefix(f'{split}_'.encode()))
      np.testing.assert_array_equal(example['image'], images[at])
      assert {key: example[key] for key in labels} == {key: labels[key][at] for key in labels}
  names = {key: [f'{key}_{i}' for i in range(k)] for key, k in CLASSES[name].items()}
  assert source.class_names == tuple(names['label'])
  features = stored.dataset_info.features
  assert {key: features[key].names for key in names} == names


@pytest.mark.parametrize('name', CLASSES)
def test_version_features_and_archive_are_those_of_tfds(tmp_path, monkeypatch, data_dir, name):
  published = prepare_cifar.PUBLISHED[name]
  table = pathlib.Path(tfds.__file__).parent / 'url_checksums' / f'{name}.txt'
  url, size, sha256, _ = table.read_text().split()
  assert published[:3] == (url, int(size), sha256)

  path = tmp_path / 'given.tar.gz'
  pack(path, random_files(name)[0])
  publish(monkeypatch, name, path)
  prepare_cifar.prepare(name, str(data_dir), str(path))
  theirs = tfds.builder(name, data_dir=tmp_path / 'nothing here')
  ours = tfds.builder_from_directory(data_dir / name / published.version)
  assert str(theirs.version) == str(ours.version)
  assert repr(theirs.info.features) == repr(ours.info.features)
  assert theirs.info.supervised_keys == ours.info.supervised_keys


def test_a_second_preparation_says_so_and_changes_nothing(data_dir, archive, capsys):
  folder = prepare_cifar.prepare('cifar10', str(data_dir), str(archive))
  before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
  capsys.readouterr()
  assert prepare_cifar.prepare('cifar10', str(data_dir)) == folder  # no archive: none is needed
  captured = capsys.readouterr()
  assert captured.err == f'cifar10 is already prepared in {data_dir}/cifar10\n'
  assert captured.out == ''
  assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


def test_nothing_is_printed_but_one_line(data_dir, archive, capfd):
  prepare_cifar.prepare('cifar10', str(data_dir), str(archive))
  captured = capfd.readouterr()
  assert captured.out == ''
  assert captured.err == f'writing 20 train images, 4 test images to {data_dir}/cifar10/3.0.2\n'


@pytest.mark.parametrize('stop', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_an_interrupted_preparation_leaves_nothing(data_dir, archive, monkeypatch, stop):
  examples = prepare_cifar._examples

  def interrupt(split, contents):
    for i, example in enumerate(examples(split, contents)):
      if (split, i) == ('test', 2):
        raise stop
      yield example

  monkeypatch.setattr(prepare_cifar, '_examples', interrupt)
  with pytest.raises((KeyboardInterrupt, InputError)) as caught:
    prepare_cifar.prepare('cifar10', str(data_dir), str(archive))
  if isinstance(stop, OSError):
    assert 'No space left on device' in str(caught.value)
  assert not tfds_lib.is_prepared('cifar10', str(data_dir))
  assert files_below(data_dir) == []

  monkeypatch.setattr(prepare_cifar, '_examples', examples)
  prepare_cifar.prepare('cifar10', str(data_dir), str(archive))
  assert tfds_lib.is_prepared('cifar10', str(data_dir))


def test_a_faster_process_is_no_error(tmp_path, data_dir, archive, monkeypatch):
  examples = prepare_cifar._examples
  raced = []

  def race(split, contents):
    if not raced:  # another process finishes while this one writes
      raced.append(split)
      prepare_cifar.prepare('cifar10', str(data_dir), str(archive))
    yield from examples(split, contents)

  monkeypatch.setattr(prepare_cifar, '_examples', race)
  prepare_cifar.prepare('cifar10', str(data_dir), str(archive))
  assert raced
  assert len(tfds_lib.read('cifar10', str(data_dir)).train.labels) == 20
  assert [p.name for p in (data_dir / 'cifar10').iterdir()] == ['3.0.2']


def test_a_full_disk_is_one_line(data_dir, archive):
  """array_record reports a failed write with its own exception type."""
  script = f"""
import resource, signal, sys
from jaxres.data.prepare import cifar as prepare
from jaxres.data.sources import cifar
from jaxres.errors import InputError
cifar.PUBLISHED['cifar10'] = cifar.PUBLISHED['cifar10']._replace(
  sha256={prepare_cifar.PUBLISHED['cifar10'].sha256!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
for write in (lambda: prepare.prepare('cifar10', sys.argv[1], sys.argv[2]),
              lambda: prepare.prepare_npz('cifar10', sys.argv[1] + '/x.npz', sys.argv[2])):
  try:
    write()
  except InputError as error:
    print(error)
"""
  command = [sys.executable, '-c', script, str(data_dir), str(archive)]
  actual = subprocess.run(command, capture_output=True, text=True, check=True)
  array_record, npz = actual.stdout.splitlines()
  assert array_record.startswith(f'{data_dir}/cifar10/3.0.2: cannot write: ')
  assert 'File too large' in array_record
  assert npz == f'{data_dir}/x.npz: cannot write: File too large'
  assert files_below(data_dir) == []


def test_tensorflow_is_not_imported_where_it_is_installed(tmp_path, data_dir, archive):
  (tmp_path / 'tensorflow').mkdir()
  (tmp_path / 'tensorflow' / '__init__.py').write_text('raise SystemExit("TensorFlow imported")')
  script = f"""
import sys
from jaxres.data.prepare import cifar as prepare
from jaxres.data.sources import cifar, tfds
cifar.PUBLISHED['cifar10'] = cifar.PUBLISHED['cifar10']._replace(
  sha256={prepare_cifar.PUBLISHED['cifar10'].sha256!r})
prepare.prepare('cifar10', sys.argv[1], sys.argv[2])
print(len(tfds.read('cifar10', sys.argv[1]).train.labels), 'tensorflow' in sys.modules)
"""
  paths = os.pathsep.join([str(tmp_path), *(p for p in sys.path if p), os.getcwd()])
  actual = subprocess.run(
    [sys.executable, '-c', script, str(data_dir), str(archive)],
    env=os.environ | {'PYTHONPATH': paths},
    capture_output=True,
    text=True,
    check=False,
  )
  assert actual.stdout == '20 False\n', actual.stderr


def test_a_wrong_archive_is_refused_with_both_checksums(tmp_path, data_dir, archive):
  wrong = tmp_path / 'wrong.tar.gz'
  wrong.write_bytes(archive.read_bytes()[:-1])
  actual = hashlib.sha256(wrong.read_bytes()).hexdigest()
  expected = prepare_cifar.PUBLISHED['cifar10'].sha256
  for line in (
    complaint(prepare_cifar.prepare, 'cifar10', str(data_dir), str(wrong)),
    complaint(prepare_cifar.prepare_npz, 'cifar10', str(data_dir / 'x.npz'), str(wrong)),
  ):
    assert f'expected sha256 {expected}, found {actual}' in line
  assert 'no such file' in complaint(prepare_cifar.prepare, 'cifar10', str(data_dir), '/no/archive')
  assert not data_dir.exists()


def without_last_batch(files):
  del files['cifar-10-batches-bin/data_batch_5.bin']


def cut_short(files):
  files['cifar-10-batches-bin/test_batch.bin'] = files['cifar-10-batches-bin/test_batch.bin'][:-1]


def remove_label_names(files):
  files['cifar-10-batches-bin/test_batch.bin'] = bytes([10]) + bytes(3072)


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    (without_last_batch, 'it has no file cifar-10-batches-bin/data_batch_5.bin'),
    (cut_short, f'expected records of 3073 bytes, found {BATCH * 3073 - 1} bytes in all'),
    (remove_label_names, 'label 10, but only 10 class names'),
  ],
)
def test_an_archive_of_another_layout_is_refused(tmp_path, monkeypatch, data_dir, change, expected):
  files, _ = random_files('cifar10')
  change(files)
  path = tmp_path / 'given.tar.gz'
  pack(path, files)
  publish(monkeypatch, 'cifar10', path)
  assert expected in complaint(prepare_cifar.prepare, 'cifar10', str(data_dir), str(path))
  assert not data_dir.exists()


def test_no_member_of_an_archive_is_ever_unpacked(tmp_path, monkeypatch, data_dir):
  files, _ = random_files('cifar10')
  batch = 'cifar-10-batches-bin/test_batch.bin'
  del files[batch]
  path = tmp_path / 'given.tar.gz'
  with tarfile.open(path, 'w:gz') as tar:
    for name, content in ({'../evil': b'x', '/tmp/jaxres-evil': b'x'} | files).items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
    link = tarfile.TarInfo(batch)  # a link in the place of a file is not followed
    link.type, link.linkname = tarfile.SYMTYPE, 'data_batch_1.bin'
    tar.addfile(link)
  publish(monkeypatch, 'cifar10', path)
  before = files_below(tmp_path)
  assert f'it has no file {batch}' in complaint(prepare_cifar.prepare, 'cifar10', data_dir, path)
  assert files_below(tmp_path) == before
  assert not pathlib.Path('/tmp/jaxres-evil').exists()


def test_a_file_that_is_no_tar_is_one_line(tmp_path, monkeypatch, data_dir, archive):
  for content in (b'<html>', archive.read_bytes()[:1000]):
    path = tmp_path / 'page.tar.gz'
    path.write_bytes(content)
    publish(monkeypatch, 'cifar10', path)
    assert 'cannot read it as .tar.gz' in complaint(prepare_cifar.prepare, 'cifar10', data_dir, path)


def test_what_lies_in_the_way_is_not_overwritten(data_dir, archive):
  (data_dir / 'cifar10' / '3.0.2').mkdir(parents=True)
  mine = data_dir / 'cifar10' / '3.0.2' / 'mine'
  mine.write_text('x')
  line = complaint(prepare_cifar.prepare, 'cifar10', str(data_dir), str(archive))
  assert f'{data_dir}/cifar10/3.0.2: it exists but is no cifar10' in line
  assert mine.read_text() == 'x'


def test_no_array_record_points_to_npz_before_any_download(data_dir, monkeypatch):
  monkeypatch.setitem(sys.modules, 'array_record', None)
  line = complaint(prepare_cifar.prepare, 'cifar10', str(data_dir))
  assert '`jaxres prepare cifar10 --npz cifar10.npz`' in line
  assert not data_dir.exists()


def test_an_unknown_set_gets_the_nearest():
  assert "did you mean 'cifar100'?" in complaint(prepare_cifar.prepare, 'cifar1000')


@pytest.mark.parametrize('name', CLASSES)
def test_npz_holds_every_pixel_and_label_in_the_published_order(tmp_path, monkeypatch, name):
  files, expected = random_files(name)
  path = tmp_path / 'given.tar.gz'
  pack(path, files)
  publish(monkeypatch, name, path)
  monkeypatch.setitem(sys.modules, 'array_record', None)  # this is for machines without it
  file = prepare_cifar.prepare_npz(name, str(tmp_path / 'out' / 'set.npz'), str(path))
  with np.load(file, allow_pickle=False) as content:
    for split, (images, labels) in expected.items():
      np.testing.assert_array_equal(content[f'{split}_x'], images)
      np.testing.assert_array_equal(content[f'{split}_y'], labels['label'])
      assert content[f'{split}_x'].dtype == np.uint8
  assert files_below(file.parent) == ['set.npz']

  source = arrays.read_npz(str(file))  # data.name=arrays data.path=FILE
  np.testing.assert_array_equal(source.train.images, expected['train'][0])
  assert source.class_names == tuple(f'label_{i}' for i in range(CLASSES[name]['label']))


def test_npz_that_is_there_is_kept(tmp_path, archive, capsys):
  file = tmp_path / 'set.npz'
  prepare_cifar.prepare_npz('cifar10', str(file), str(archive))
  before = file.stat().st_mtime_ns
  capsys.readouterr()
  assert prepare_cifar.prepare_npz('cifar10', str(file)) == file
  assert capsys.readouterr().err == f'cifar10 is already prepared in {file}\n'
  assert 'holds cifar10, not cifar100' in complaint(prepare_cifar.prepare_npz, 'cifar100', str(file))
  assert file.stat().st_mtime_ns == before

  file.write_bytes(b'mine')
  assert 'exists and is not cifar10' in complaint(prepare_cifar.prepare_npz, 'cifar10', str(file))
  assert file.read_bytes() == b'mine'
  np.savez(file, mine=np.zeros(3))
  assert 'exists and is not cifar10' in complaint(prepare_cifar.prepare_npz, 'cifar10', str(file))
  assert 'ends in .npz' in complaint(prepare_cifar.prepare_npz, 'cifar10', str(tmp_path / 'set'))


class Server:
  """A web server on this machine that answers every request alike."""

  def __init__(self, content=b'', status=200, claimed=None):
    self.requests = 0
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        server.requests += 1
        self.send_response(status)
        self.send_header('Content-Length', str(len(content) if claimed is None else claimed))
        self.end_headers()
        self.wfile.write(content)

      def log_message(self, *args):
        pass

    self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self.http.server_port}/set.tar.gz'

  def __enter__(self):
    self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
    self.thread.start()
    return self

  def __exit__(self, *_):
    self.http.shutdown()
    self.thread.join()
    self.http.server_close()


def test_a_download_is_checked_kept_and_not_repeated(data_dir, archive, monkeypatch, capsys):
  with Server(archive.read_bytes()) as server:
    publish(monkeypatch, 'cifar10', archive, url=server.url)
    prepare_cifar.prepare('cifar10', str(data_dir))
    assert f'downloading {server.url}: 0 of 0 MB' in capsys.readouterr().err
    assert tfds_lib.is_prepared('cifar10', str(data_dir))
    kept = data_dir / 'downloads' / 'set.tar.gz'
    assert kept.read_bytes() == archive.read_bytes()
    assert [p.name for p in kept.parent.iterdir() if p.is_file()] == ['set.tar.gz']

    monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
    prepare_cifar.prepare_npz('cifar10', str(data_dir / 'x.npz'))
    assert server.requests == 1
    kept.write_bytes(b'damaged')  # what is kept is checked again
    prepare_cifar.prepare_npz('cifar10', str(data_dir / 'y.npz'))
    assert server.requests == 2


def test_a_download_that_fails_leaves_nothing(data_dir, archive, monkeypatch):
  content = archive.read_bytes()
  other = content[:-1] + bytes([content[-1] ^ 1])
  cases = [
    (Server(other), hashlib.sha256(other).hexdigest()),
    (Server(content + b'x' * (1 << 22)), 'expected '),  # not read to its end
    (Server(content[:-100], claimed=len(content)), 'IncompleteRead'),
    (Server(b'not here', status=404), 'Not Found'),
  ]
  for server, expected in cases:
    with server:
      publish(monkeypatch, 'cifar10', archive, url=server.url)
      line = complaint(prepare_cifar.prepare, 'cifar10', str(data_dir))
    assert server.url in line
    assert expected in line
    assert '--archive FILE' in line
    assert files_below(data_dir) == []


def test_no_network_is_one_line_within_seconds(data_dir, archive, monkeypatch):
  with Server() as server:
    url = server.url
  publish(monkeypatch, 'cifar10', archive, url=url)  # nothing listens there any more
  line = complaint(prepare_cifar.prepare, 'cifar10', str(data_dir))
  assert f'{url}: cannot download' in line
  assert 'Connection refused' in line
  assert '--archive FILE' in line


def test_a_silent_server_is_given_up(data_dir, archive, monkeypatch):
  monkeypatch.setattr(files_lib, 'TIMEOUT_S', 0.3)
  with Server(b'x' * 10, claimed=100) as server:
    kept_value = threading.Event()
    monkeypatch.setattr(server.http, 'shutdown_request', lambda request: (kept_value.wait(20), request.close()))
    publish(monkeypatch, 'cifar10', archive, url=server.url)
    line = complaint(prepare_cifar.prepare, 'cifar10', str(data_dir))
    kept_value.set()
  assert 'timed out' in line
  assert files_below(data_dir) == []


def test_an_interrupted_download_leaves_nothing(data_dir, archive, monkeypatch):
  def interrupt(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(files_lib._Progress, 'update', interrupt)
  with Server(archive.read_bytes()) as server:
    publish(monkeypatch, 'cifar10', archive, url=server.url)
    with pytest.raises(KeyboardInterrupt):
      prepare_cifar.prepare('cifar10', str(data_dir))
  assert files_below(data_dir) == []
