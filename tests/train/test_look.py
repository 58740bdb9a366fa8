"""What is seen of the data before anything is chosen."""

import numpy as np
import pytest
from PIL import Image

from jaxres.errors import InputError
from jaxres.train import look
from jaxres.weights import published


@pytest.fixture
def photos(tmp_path):
  rng = np.random.default_rng(0)
  for name in ('cat', 'dog'):
    (tmp_path / 'photos' / name).mkdir(parents=True)
    for number in range(10):
      pixels = rng.integers(0, 255, (24, 30 + number, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(tmp_path / 'photos' / name / f'{number}.png')
  return tmp_path / 'photos'


def test_where_data_is_by_what_it_is_called(photos, tmp_path) -> None:
  (tmp_path / 'list.csv').touch()
  assert look.locate(f'{photos}/') == {'name': 'folder', 'path': f'{photos}/'}
  assert look.locate(str(tmp_path / 'list.csv')) == {'name': 'csv', 'path': str(tmp_path / 'list.csv')}
  assert look.locate(str(tmp_path / 'no.npz')) == {'name': 'arrays', 'path': str(tmp_path / 'no.npz')}
  assert look.locate('digits') == {'name': 'digits'}
  assert look.name_of(f'{photos}/') == 'photos'
  assert look.name_of(str(tmp_path / 'list.csv')) == 'list'
  assert look.name_of('cifar10') == 'cifar10'


def test_what_is_no_data(photos, tmp_path) -> None:
  with pytest.raises(InputError, match="no such folder, file or data set: digit; did you mean 'digits'"):
    look.locate('digit', str(tmp_path))
  (photos / 'config.json').touch()
  with pytest.raises(InputError, match='is a run; `jaxres train --config .*photos` repeats it'):
    look.locate(str(photos))
  (tmp_path / 'x.zip').touch()
  with pytest.raises(InputError, match='is a file; expected a folder of images, a .csv or an .npz file'):
    look.locate(str(tmp_path / 'x.zip'))


def test_the_facts_about_a_folder(photos, capsys) -> None:
  facts = look.look({'name': 'folder', 'path': str(photos)})
  assert (facts.examples, facts.classes, facts.side, facts.one_size, facts.channels) == (16, 2, 24, False, 3)
  assert facts.encoded
  assert not facts.has_val
  assert facts.device == 'cpu'
  assert capsys.readouterr().err == ''  # the training says what is held out


def test_the_facts_about_arrays(npz) -> None:
  facts = look.look({'name': 'arrays', 'path': npz()})
  assert (facts.examples, facts.classes, facts.side, facts.one_size, facts.channels) == (96, 4, 8, True, 3)
  assert not facts.encoded


def test_images_that_are_none_are_left_to_the_training_but_one_must_be_good(photos) -> None:
  for path in sorted(photos.glob('*/*'))[:-1]:
    path.write_bytes(b'no image')
  assert look.look({'name': 'folder', 'path': str(photos)}).side == 24
  for path in photos.glob('*/*'):
    path.write_bytes(b'no image')
  with pytest.raises(InputError, match='none of the 16 images that were looked at can be read: .*cannot identify'):
    look.look({'name': 'folder', 'path': str(photos)})


def test_only_weights_with_the_right_digest_are_in_the_cache(tmp_path, monkeypatch) -> None:
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert published.list_cached() == ()
  path = published._path('resnet18')
  path.parent.mkdir(parents=True)
  path.write_bytes(b'no weights')
  assert published.list_cached() == ()
  monkeypatch.setitem(published.DIGITS, 'resnet18', published.sha256_of(path)[:8])
  path.rename(published._path('resnet18'))
  assert published.list_cached() == ('resnet18',)
