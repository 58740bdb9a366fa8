"""What `jaxres train DATA` chooses: facts about data and machine to fields of the config, each with its reason."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxres import config as config_lib

PHOTOS = (
  3  # channels of what is flipped and fine-tuned: digits and letters are gray, and no mirror images of themselves
)
SMALL, MEDIUM = 40, 96  # pixels a side, up to which images are small or of medium size
VAL, MIN_VAL = 0.1, 200  # the share that is held out, where it has this many examples: fewer do not tell weights apart
MAX_RESIDENT = 1 << 30  # bytes of decoded images that are kept on the device
MANY = 100_000  # examples, which need less weight decay
STEPS = 500  # of a training, at least: the batch is as large as that allows
MAX_STEPS_WARM = 0.1  # of the training, that the learning rate rises
# By the device: examples that a training from scratch and a fine-tuning see, and the least and the most epochs.
SCRATCH = {'cpu': (20_000, 5, 60), 'gpu': (3_000_000, 30, 200)}
FINETUNE = {'cpu': (5_000, 3, 15), 'gpu': (60_000, 5, 30)}
BATCHES = {'cpu': (16, 128), 'gpu': (32, 512)}  # the least and the most examples of a step
PRETRAINED_SIDE = {'cpu': 128, 'gpu': 224}  # pixels a side: networks trained at 224 see little in fewer than 128
PRETRAINED = {  # in the order of preference
  'cpu': ('resnet18', 'resnet34', 'resnet50', 'resnet50-v2'),
  'gpu': ('resnet50-v2', 'resnet50', 'resnet34', 'resnet18'),
}


class Facts(NamedTuple):
  """What is known of the data and the machine before anything is chosen."""

  name: str  # data.name
  path: str | None  # data.path
  examples: int  # of training
  classes: int
  side: int  # pixels: the median of the shorter sides
  one_size: bool  # all images that were looked at have one shape, a square
  channels: int
  encoded: bool  # images are decoded when they are needed
  has_val: bool
  device: str  # 'cpu' or 'gpu', which stands for every accelerator
  devices: int
  weights: tuple[str, ...] = ()  # published ones that are in the cache
  download: bool = False  # the data set is not here yet and can be prepared


class Choice(NamedTuple):
  """One decision."""

  what: str  # in a word
  fields: Mapping[str, Any]  # of the config, such as {'train.epochs': 30.0}
  why: str


def choose(facts: Facts, given: Mapping[str, Any] | None = None) -> list[Choice]:
  """Return the choices for a training.

  Args:
    facts: about the data and the machine.
    given: fields that the user has set, such as ``{'data.batch_size': 16}``: what depends on them follows them.

  Returns:
    The choices in the order of a person's questions; fields in ``given`` are left as they are by ``merge``.
  """
  given = dict(given or {})
  weights = pick_weights(facts, given)
  model, size = choose_model(facts, weights), choose_size(facts, weights)
  side = given.get('data.image_size') or size.fields['data.image_size'] or facts.side
  length = choose_epochs(facts, weights, given.get('train.epochs'))
  epochs = length.fields['train.epochs']
  held_out = choose_val(facts, given)
  batch = choose_batch(facts, epochs)
  batch_size = given.get('data.batch_size') or batch.fields['data.batch_size']
  pipeline = choose_pipeline(facts, side)
  streamed = (given.get('data.pipeline') or pipeline.fields['data.pipeline']) == 'stream'
  augmentation = choose_augmentation(facts, side, streamed=streamed)
  chosen = [model, size, pipeline, held_out, augmentation, length, batch]
  return [*chosen, choose_rate(facts, batch_size, epochs, weights)]


def merge(facts: Facts, choices: Sequence[Choice]) -> config_lib.config_dict.ConfigDict:
  """Return the config of ``choices`` on the data of ``facts``."""
  sections: dict[str, dict[str, Any]] = {'data': {'name': facts.name, 'path': facts.path, 'download': facts.download}}
  for path, value in (field for choice in choices for field in choice.fields.items()):
    section, _, name = path.partition('.')
    sections.setdefault(section, {})[name] = value
  return config_lib.make(**sections)


def pick_weights(facts: Facts, given: Mapping[str, Any]) -> str | None:
  """Return the name of the weights to start from: those in the cache that suit the model; None trains from scratch."""
  if facts.channels != PHOTOS or given.get('model.stem'):
    return None
  wanted = given.get('model.name')
  names = (name for name in PRETRAINED[facts.device] if name in facts.weights)
  return next((name for name in names if wanted in (None, name.removesuffix('-v2'))), None)


def choose_model(facts: Facts, weights: str | None) -> Choice:
  """Return the network, and where its first weights come from."""
  if weights:
    fields = {'model.name': weights.removesuffix('-v2'), 'init.source': f'torchvision:{weights}', 'init.new_head': True}
    return Choice(
      'model', fields, f'its weights of ImageNet ({weights}) are in the cache: a new head, all is fine-tuned'
    )
  fix = 'from scratch: no published weights are in the cache'
  if facts.channels != PHOTOS:
    fix = 'from scratch: published weights are of photographs'
  fields = {'model.name': 'resnet20' if facts.device == 'cpu' else 'resnet18'}
  if facts.side <= SMALL:
    fields |= {} if facts.device == 'cpu' else {'model.stem': 'cifar'}
    return Choice('model', fields, f'for images of at most {SMALL} px; {fix}')
  if facts.device == 'cpu' or facts.side <= MEDIUM:
    return Choice('model', fields | {'model.stem': 'cifar_pool'}, f'for images of more than {SMALL} px; {fix}')
  name = 'resnet50' if facts.examples >= 50_000 else 'resnet18'
  return Choice('model', {'model.name': name}, f'for images of more than {MEDIUM} px; {fix}')


def choose_size(facts: Facts, weights: str | None) -> Choice:
  """Return the size that images are resized to."""
  if weights:
    side = PRETRAINED_SIDE[facts.device]
    return Choice(
      'image size', {'data.image_size': side}, f'the images have {facts.side} px; the weights want {side} or more'
    )
  max_side = MEDIUM if facts.device == 'cpu' else 224
  if facts.one_size and facts.side <= max_side:
    size = facts.side if facts.encoded else None
    return Choice('image size', {'data.image_size': size}, f'all images have {facts.side} px')
  size = max(8, min(max_side, 8 * round(facts.side / 8)))
  return Choice('image size', {'data.image_size': size}, f'the median of the shorter sides is {facts.side} px')


def choose_pipeline(facts: Facts, side: int) -> Choice:
  """Return how images reach the device: all at once, or batch by batch."""
  size = facts.examples * side * side * facts.channels
  if size <= MAX_RESIDENT:
    return Choice('pipeline', {'data.pipeline': 'resident'}, f'{size / 1e6:,.0f} MB of pixels: all are decoded once')
  fields = {'data.pipeline': 'stream', 'data.image_size': side, 'data.crop_scale': (0.25, 1.0)}
  return Choice('pipeline', fields, f'{size / 1e9:,.1f} GB of pixels: they are read ahead of each step')


def choose_val(facts: Facts, given: Mapping[str, Any]) -> Choice:
  """Return which share of the training examples chooses the best weights."""
  if facts.has_val:
    return Choice('validation', {}, 'the data has a val split: its best weights are kept')
  count = round(VAL * facts.examples)
  if count < MIN_VAL or given.get('data.fold'):
    return Choice(
      'validation', {'data.val': 0.0}, f'a tenth is {count} images, too few to choose weights by: the last are kept'
    )
  return Choice('validation', {'data.val': VAL}, f'{count:,} images, by which the best weights are kept')


def choose_augmentation(facts: Facts, side: int, *, streamed: bool) -> Choice:
  """Return what is done to training images at random."""
  photos = facts.channels == PHOTOS
  fields: dict[str, Any] = {'augment.flip': photos}
  if not streamed:  # which crops at random as it reads
    fields |= {'augment.crop_pad': max(1, side // 8), 'augment.pad_mode': 'reflect' if photos else 'constant'}
  why = 'photographs may be mirrored' if photos else 'gray images, such as digits, are not mirrored'
  return Choice('augmentation', fields, f'random crops; {why}')


def choose_epochs(facts: Facts, weights: str | None, given: float | None = None) -> Choice:
  """Return how long to train, by the number of examples or as ``given``, with at most 8 evaluations."""
  seen, min_epochs, max_epochs = (FINETUNE if weights else SCRATCH)[facts.device]
  epochs = given or float(min(max_epochs, max(min_epochs, round(seen / facts.examples))))
  every = min(epochs, float(max(1, math.ceil(epochs / 8))))
  why = f'{facts.examples:,} training images, each seen {epochs:g} times'
  return Choice('epochs', {'train.epochs': epochs, 'train.eval_every_epochs': every}, why)


def choose_batch(facts: Facts, epochs: float) -> Choice:
  """Return the examples of a step: a power of two that leaves ``STEPS`` steps, within what the device is good at."""
  min_size, max_size = BATCHES[facts.device]
  fitting = 2 ** int(math.log2(max(1.0, facts.examples * epochs / STEPS)))
  size = min(max_size, max(min_size, fitting), 2 ** int(math.log2(max(1, facts.examples))))
  size = math.ceil(size / facts.devices) * facts.devices
  evaluated = max(min_size, min(4 * max_size, facts.examples // 4))  # as many as a test split that is held out
  evaluated = math.ceil(evaluated / facts.devices) * facts.devices
  fields = {'data.batch_size': size, 'train.eval_batch_size': evaluated}
  return Choice('batch', fields, f'{facts.examples * epochs / size:,.0f} steps in all')


def choose_rate(facts: Facts, batch_size: int, epochs: float, weights: str | None) -> Choice:
  """Return the optimizer and its learning rate, by the root of the batch."""
  base = 0.01 if weights else 0.1
  decay = 1e-4 if weights or facts.examples > MANY else 5e-4
  rate = float(f'{base * math.sqrt(batch_size / 64):.2g}')
  fields: dict[str, Any] = {'optim.name': 'nesterov', 'optim.lr': rate, 'optim.weight_decay': decay}
  fields |= {'optim.warmup_epochs': round(min(2.0, MAX_STEPS_WARM * epochs), 2), 'train.label_smoothing': 0.1}
  fields |= {'optim.layer_decay': 0.9} if weights else {}
  return Choice('learning rate', fields, f'{base:g} at a batch of 64, by its root; one cosine cycle')
