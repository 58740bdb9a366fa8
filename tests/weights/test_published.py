import hashlib
import http.server
import threading

import pytest

from jaxres import models, weights
from jaxres.errors import InputError
from jaxres.weights import published
from tests.weights.files import make_state


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A directory that a server on this machine shows as torchvision's does: one file of random weights, of resnet18."""
  directory = tmp_path / 'server'
  weights.write(directory / 'x.pth', make_state(4))
  digits = hashlib.sha256((directory / 'x.pth').read_bytes()).hexdigest()[:8]
  (directory / 'x.pth').rename(directory / f'resnet18-{digits}.pth')
  monkeypatch.setitem(published.DIGITS, 'resnet18', digits)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  handler = lambda *args: http.server.SimpleHTTPRequestHandler(*args, directory=str(directory))
  monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(published, 'URL', f'http://127.0.0.1:{running.server_port}/')
    yield directory
    running.shutdown()


def test_the_table_is_of_models():
  assert {name.removesuffix('-v2') for name in published.DIGITS} <= {*models.list_models()}
  assert all(len(digits) == 8 and int(digits, 16) >= 0 for digits in published.DIGITS.values())
  assert len({*published.DIGITS.values()}) == len(published.DIGITS)


def test_a_download_is_checked_and_kept(server, tmp_path):
  path = published.find('resnet18')
  assert path.parent == tmp_path / 'cache/jaxres/weights'
  [there] = server.iterdir()
  assert path.read_bytes() == there.read_bytes()
  content = there.read_bytes()
  there.unlink()
  assert published.find('resnet18') == path  # no second download
  path.write_bytes(b'damaged')
  there.write_bytes(content)
  assert published.find('resnet18').read_bytes() == content


def test_another_file_is_refused_and_leaves_nothing(server, tmp_path):
  [there] = server.iterdir()
  there.write_bytes(there.read_bytes() + b'x')
  with pytest.raises(InputError, match='expected .* found .*give its path'):
    published.find('resnet18')
  there.unlink()
  with pytest.raises(InputError, match='cannot download to .*give its path'):
    published.find('resnet18')
  assert not [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]


def test_an_unknown_name_is_one_line():
  with pytest.raises(InputError, match="no published weights; did you mean 'resnet50'"):
    published.find('resnet_50')
