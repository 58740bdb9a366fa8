"""Presets by name, and by the digest of a public file."""

import pytest

from jaxres import files, predict, weights
from jaxres.data.statistics import IMAGENET
from jaxres.errors import InputError
from jaxres.weights import presets
from tests.weights.files import make_state


def test_a_public_file_is_known_by_its_digest_not_by_its_name(tmp_path, tiny, monkeypatch) -> None:
  weights.write(tmp_path / 'tiny.th.pth', make_state(10))
  digits = files.sha256_of(tmp_path / 'tiny.th.pth')[:8]
  known = (tmp_path / 'tiny.th.pth').rename(tmp_path / f'resnet20-{digits}.pth')
  monkeypatch.setitem(presets.FILES, digits, 'cifar-imagenet')
  predictor = predict.load(str(known))
  assert (predictor.mean, predictor.std) == IMAGENET
  assert (predictor.image_shape, predictor.center_crop) == ((32, 32, 3), 1.0)
  pretender = tmp_path / 'resnet20-12fca82f.pth'
  weights.write(pretender, make_state(10))
  with pytest.raises(InputError, match='it does not say what images it was trained on'):
    predict.load(str(pretender))


def test_presets_by_name() -> None:
  assert presets.find('imagenet').image_size == (224, 224)
  assert presets.find('imagenet').center_crop == 0.875
  assert presets.find('imagenet-v2').center_crop == 224 / 232
  assert presets.find('cifar100').mean == (0.5071, 0.4865, 0.4409)
  assert {*presets.FILES.values()} <= {*presets.PRESETS}
  with pytest.raises(InputError, match="--preset: unknown preset 'imagnet'; did you mean 'imagenet'?"):
    presets.find('imagnet')


def test_a_preset_and_a_field_in_its_place(tmp_path, tiny) -> None:
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  predictor = predict.load(str(tmp_path / 'tiny.pth'), preset='imagenet', image_size=64)
  assert (predictor.image_shape, predictor.center_crop, predictor.mean) == ((64, 64, 3), 0.875, IMAGENET[0])
