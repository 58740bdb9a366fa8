"""What is chosen for which data: pure functions of facts."""

import math

import pytest

from jaxres import command_line
from jaxres import config as config_lib
from jaxres.train import choose
from jaxres.train.choose import Facts

PHOTOS = Facts(
  name='folder', path='photos', examples=320, classes=4, side=64, one_size=True, channels=3, encoded=True,
  has_val=False, device='cpu', devices=1,
)  # fmt: skip
DIGITS = PHOTOS._replace(name='digits', path=None, examples=1438, classes=10, side=8, channels=1, encoded=False)
CIFAR = PHOTOS._replace(name='cifar10', path=None, examples=50_000, classes=10, side=32, encoded=False)
IMAGENET = PHOTOS._replace(
  name='imagenet2012', examples=1_281_167, classes=1000, side=375, one_size=False, device='gpu', devices=8
)
ALL = [PHOTOS, DIGITS, CIFAR, IMAGENET]


def config_of(facts: Facts, **given) -> dict:
  return config_lib.to_dict(
    choose.merge(facts, choose.choose(facts, {k.replace('__', '.'): v for k, v in given.items()}))
  )


@pytest.mark.parametrize('facts', ALL, ids=lambda facts: facts.name)
@pytest.mark.parametrize('device', ['cpu', 'gpu'])
def test_every_choice_is_a_config_with_a_reason(facts: Facts, device: str) -> None:
  facts = facts._replace(device=device, path='photos' if facts.name == 'folder' else None)
  choices = choose.choose(facts)
  assert all(choice.why for choice in choices)
  config = config_lib.to_dict(choose.merge(facts, choices))
  assert config['data']['batch_size'] % facts.devices == 0
  assert config['train']['eval_batch_size'] % facts.devices == 0
  assert config['data']['batch_size'] <= facts.examples
  assert config['optim']['warmup_epochs'] < config['train']['epochs']
  assert 1 <= config['train']['epochs'] / config['train']['eval_every_epochs'] <= 8
  words = command_line.words_of(config)
  assert config_lib.differences(config, command_line.load(words[1], words[2:])) == {}


def test_few_photos_on_a_cpu() -> None:
  config = config_of(PHOTOS)
  assert config['data'] | {'name': 'folder', 'path': 'photos', 'val': 0.0, 'pipeline': 'resident'} == config['data']
  assert config['init']['source'] is None
  assert config['augment']['flip']
  seen = PHOTOS.examples * config['train']['epochs']
  assert seen <= choose.SCRATCH['cpu'][0]
  assert seen / config['data']['batch_size'] >= choose.STEPS


def test_gray_digits_are_not_mirrored_and_keep_their_size() -> None:
  config = config_of(DIGITS)
  assert not config['augment']['flip']
  assert config['data']['image_size'] is None
  assert config['model']['name'] == 'resnet20'


def test_more_images_take_fewer_epochs() -> None:
  epochs = [config_of(CIFAR._replace(examples=n))['train']['epochs'] for n in (500, 5_000, 50_000, 500_000)]
  assert epochs == sorted(epochs, reverse=True)
  assert epochs[0] > epochs[-1]


def test_weights_in_the_cache_are_fine_tuned() -> None:
  config = config_of(PHOTOS._replace(weights=('resnet50', 'resnet18')))
  assert config['init']['source'] == 'torchvision:resnet18'  # the smallest, on a CPU
  assert config['init']['new_head']
  assert config['model']['name'] == 'resnet18'
  assert config['data']['image_size'] == choose.PRETRAINED_SIDE['cpu']
  assert config['train']['epochs'] < config_of(PHOTOS)['train']['epochs']
  assert config['optim']['lr'] < config_of(PHOTOS)['optim']['lr']
  other = config_of(PHOTOS._replace(weights=('resnet50', 'resnet18')), model__name='resnet50')
  assert other['init']['source'] == 'torchvision:resnet50'
  assert config_of(DIGITS._replace(weights=('resnet18',)))['init']['source'] is None  # of photographs
  assert config_of(PHOTOS._replace(weights=('resnet18',)), model__name='resnet20')['init']['source'] is None


def test_validation_is_held_out_where_it_can_tell_weights_apart() -> None:
  assert config_of(PHOTOS)['data']['val'] == 0.0
  assert config_of(CIFAR)['data']['val'] == choose.VAL
  assert config_of(CIFAR._replace(has_val=True))['data']['val'] == 0.0


def test_what_does_not_fit_is_streamed() -> None:
  config = config_of(IMAGENET)
  assert (config['data']['pipeline'], config['data']['image_size']) == ('stream', 224)
  assert config['augment']['crop_pad'] == 0  # the stream crops
  assert config_of(CIFAR, data__pipeline='stream')['augment']['crop_pad'] == 0
  assert config_of(CIFAR)['data']['pipeline'] == 'resident'


def test_what_depends_on_a_given_field_follows_it() -> None:
  base, given = config_of(PHOTOS), config_of(PHOTOS, data__batch_size=4 * config_of(PHOTOS)['data']['batch_size'])
  assert given['optim']['lr'] == pytest.approx(2 * base['optim']['lr'], rel=0.05)
  assert config_of(PHOTOS, data__image_size=32)['augment']['crop_pad'] == 4
  assert config_of(PHOTOS, train__epochs=2.0)['train']['eval_every_epochs'] == 1.0
  assert config_of(PHOTOS, train__epochs=0.5)['train']['eval_every_epochs'] == 0.5
  assert config_of(PHOTOS, train__epochs=2.0)['optim']['warmup_epochs'] == pytest.approx(0.2)
  batch = config_of(PHOTOS, train__epochs=1000.0)['data']['batch_size']
  assert batch == choose.BATCHES['cpu'][1]
  assert math.log2(batch).is_integer()
