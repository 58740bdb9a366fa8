"""The units of the suite for a GPU: each a command of ``benchmarks/`` or of jaxres, and what it takes."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.gpu import knobs

Words = Callable[..., tuple[str, ...]]  # those of a command
BY_KERNEL = {'XLA_FLAGS': knobs.KNOBS['no_graphs'].flags}  # a trace has a CUDA graph as one event, of no operation
SHAPES = {
  'resnet18': ('--model=resnet18', '--stem=cifar'),
  'resnet50': ('--model=resnet50', '--image_size=224', '--classes=1000'),
}
LITTLE = ('--model=resnet20', '--batch_size=8', '--image_size=8', '--classes=10', '--rounds=1')
LITTLE_TRAINING = (
  *('--config.train.epochs=1.0', '--config.train.eval_batch_size=16', '--config.data.batch_size=16'),
  '--config.optim.warmup_epochs=0.2',
)
TINY = {  # words that come after a unit's own, and so count
  'train_step.py': (*LITTLE, '--seconds=0.05', '--scan_steps=2'),
  'gpu/knobs.py': (*LITTLE, '--seconds=0.05', '--scan_steps=2'),
  'compile.py': LITTLE,
  'end_to_end.py': LITTLE_TRAINING,
  'warm.py': ('--seeds=1', *LITTLE_TRAINING),
  'gpu/determinism.py': LITTLE_TRAINING,
  'gpu/airbench.py': ('--runs=1',),
  '-m': ('--steps=1', *LITTLE_TRAINING),
}
TO_96 = ('--config.train.epochs=100.0', '--config.augment.cutout=12', '--config.train.label_smoothing=0.1')
SHORT, FLOAT32, TTA = ('--config.train.epochs=6.0',), '--config.model.dtype=float32', '--metric=tta/test/top1'
DATA, BOTH = ('data',), ('data', 'airbench')  # that a unit needs


class Unit(NamedTuple):
  """One command and what it takes."""

  name: str  # its stage, then what it is
  estimate_s: float  # on an H100
  words: tuple[str, ...]  # a file of ``benchmarks/`` and its arguments, or -m and a module and its
  needs: tuple[str, ...] = ()  # of what the suite is given: 'data', 'airbench'
  environment: Mapping[str, str] = {}
  prepare: Callable[[], None] | None = None  # called when it starts

  @property
  def stage(self) -> str:
    """The first part of the name."""
    return self.name.partition('/')[0]


def step(model: str, batch: int) -> tuple[str, ...]:
  """Return the arguments of a training step of ``batch`` examples."""
  return ('--dtype=bfloat16', '--scan_steps=10', f'--batch_size={batch}', *SHAPES[model])


def versus(model: str, batch: int, *peers: str) -> tuple[str, ...]:
  """Return the words that measure a training step beside ``peers``."""
  return ('train_step.py', '--seconds=3', *step(model, batch), '--torch_compile', '--peer', *peers)


def read_from(path: str) -> tuple[str, ...]:
  """Return the overrides of a config that is trained on the ``.npz`` file at ``path``."""
  return ('--config.data.name=arrays', f'--config.data.path={path}', '--config.data.download=False')


def warm(seeds: int, *words: str) -> tuple[str, ...]:
  """Return the words that train ``seeds`` times in one process."""
  return ('warm.py', f'--seeds={seeds}', *words)


def make_units(data: str, airbench: str, scratch: str) -> list[Unit]:
  """Return all units, the most valuable first.

  Args:
    data: the path of CIFAR-10 as an ``.npz`` file.
    airbench: the path of a checkout of airbench.
    scratch: a folder for what a unit makes.
  """
  train = lambda name, *more: ('--config', f'configs/{name}.py', *read_from(data), *more)
  jordan = lambda script: (
    'gpu/airbench.py',
    f'--airbench={airbench}',
    f'--data={data}',
    '--runs=10',
    f'--script={script}',
  )
  return [*first_units(train, jordan, scratch), *knob_units(), *later_units(train, jordan, scratch)]


def first_units(train: Words, jordan: Words, scratch: str) -> list[Unit]:
  """Return the units that one hour is best spent on."""
  noise = f'{scratch}/noise224.npz'
  resnet50 = ('--config.model.name=resnet50', '--config.model.stem=imagenet', '--config.data.batch_size=256')
  return [
    Unit('speed/resnet18', 210, versus('resnet18', 512, 'torch', 'flax', 'scanned')),
    Unit('speed/resnet50', 280, versus('resnet50', 256, 'torch', 'flax', 'scanned')),
    Unit('accuracy/resnet18', 150, ('end_to_end.py', '--target=0.94', *train('resnet18_cifar')), DATA),
    Unit('accuracy/speedrun', 100, warm(10, TTA, *train('speedrun_cifar')), DATA),
    Unit('accuracy/airbench94', 240, jordan('airbench94_muon.py'), BOTH),
    Unit('profile/resnet18', 60, (*profile(scratch), *train('resnet18_cifar')), DATA, BY_KERNEL),
    Unit(
      'profile/resnet50',
      90,
      (*profile(scratch), *train('resnet18_cifar', *resnet50, *read_from(noise))),
      environment=BY_KERNEL,
      prepare=lambda: write_noise(noise, size=224, classes=1000, count=1024),
    ),
    Unit('accuracy/resnet18_96', 180, warm(1, *train('resnet18_cifar', *TO_96)), DATA),
    Unit('accuracy/resnet18_seeds', 220, warm(5, *train('resnet18_cifar')), DATA),
    Unit('speed/compile', 150, ('compile.py', '--rounds=1', *step('resnet18', 512), '--peer', 'torch')),
    Unit('determinism/default', 130, ('gpu/determinism.py', *train('resnet18_cifar', *SHORT)), DATA),
    Unit(
      'determinism/deterministic',
      150,
      ('gpu/determinism.py', '--mode=deterministic', *train('resnet18_cifar', *SHORT)),
      DATA,
    ),
    Unit('precision/tf32', 130, warm(1, *train('resnet18_cifar', FLOAT32)), DATA),
  ]


def knob_units() -> list[Unit]:
  """Return a unit for each knob of each model."""
  return [
    Unit(
      f'knobs/{model}_{name}',
      60 if model == 'resnet18' else 90,
      ('gpu/knobs.py', '--seconds=2', *step(model, batch), '--knob', name),
    )
    for model, batch in (('resnet18', 512), ('resnet50', 256))
    for name in knobs.of(model)
  ]


def later_units(train: Words, jordan: Words, scratch: str) -> list[Unit]:
  """Return the units for what time is left: other batch sizes, other networks, more seeds."""
  return [
    *(Unit(f'speed/resnet18_{n}', 130, versus('resnet18', n, 'torch', 'scanned')) for n in (128, 256, 1024, 2048)),
    *(Unit(f'speed/resnet50_{n}', 200, versus('resnet50', n, 'torch', 'scanned')) for n in (64, 128, 512)),
    Unit('profile/resnet20', 50, (*profile(scratch), *train('resnet20_cifar')), DATA, BY_KERNEL),
    Unit('accuracy/resnet20', 160, warm(1, *train('resnet20_cifar')), DATA),
    Unit('accuracy/resnet56', 350, warm(1, *train('resnet20_cifar', '--config.model.name=resnet56')), DATA),
    Unit(
      'precision/float32',
      300,
      warm(1, *train('resnet18_cifar', FLOAT32)),
      DATA,
      {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'},
    ),
    Unit('accuracy/speedrun_cold', 90, ('end_to_end.py', TTA, '--target=0.94', *train('speedrun_cifar')), DATA),
    Unit(
      'accuracy/resnet18_96_seeds',
      480,
      warm(4, *train('resnet18_cifar', *TO_96, '--config.train.seed=1', '--config.data.seed=1')),
      DATA,
    ),
    Unit('accuracy/airbench94_legacy', 90, jordan('legacy/airbench94.py'), BOTH),
  ]


def profile(scratch: str) -> tuple[str, ...]:
  """Return the words that profile a training, its trace in the folder ``scratch``."""
  return ('-m', 'jaxres', 'profile', '--top=25', f'--out={scratch}/trace')


def shrink(unit: Unit) -> Unit:
  """Return ``unit`` with as little work as shows that its command is right."""
  words = [word for word in unit.words if word != '--torch_compile'] + list(TINY[unit.words[0]])
  config = next((word for word in words if word.startswith('configs/')), '')
  if config and 'speedrun' not in config:
    words.append('--config.model.name=resnet20')
  if 'resnet20' in config:
    words.append('--config.optim.milestones=(0.4, 0.7)')
  prepare = None
  if unit.prepare:
    path = next(word.partition('=')[2] for word in reversed(words) if word.startswith('--config.data.path='))
    prepare = lambda: write_noise(path, size=16, classes=10, count=32)
  return unit._replace(words=tuple(words), estimate_s=1.0, prepare=prepare)


def write_noise(path: str, size: int, classes: int, count: int) -> None:
  """Write an ``.npz`` of ``count`` random training images, and as many to test as there are classes."""
  rng = np.random.default_rng(0)
  arrays = {}
  for split, n in (('train', count), ('test', classes)):
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    arrays |= {f'{split}_x': images, f'{split}_y': np.arange(n) % classes}
  np.savez(path, **arrays)
