"""Trials that give a run what it cannot use: each returns a row of the results."""

import os
import pathlib
import random
import shutil
import time

import numpy as np

from jaxres.weights import writer
from tests.faults import inject
from tests.faults.runs import Row, finish, start, tool
from tests.weights.files import make_state, payloads, write_zip


def bad_config(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Misspell a field, or give it a value of another type, and see that one line names it, in less than 2 seconds."""
  from jaxres import config as config_lib

  section = rng.choice(sorted(config_lib.SECTIONS))
  field = rng.choice(sorted(config_lib.schema(section)))
  hint = config_lib.describe(config_lib.schema(section)[field].hint)
  kinds = ['letter', 'section', *(['type'] if 'str' not in hint and "'" not in hint else [])]
  kind = kinds[number % len(kinds)]
  at = rng.randrange(len(field))
  wrong = field[:at] + rng.choice('xqz') + field[at + 1 :]
  word = {
    'letter': f'{section}.{wrong}=1',
    'section': f'{section[:-1]}q.{field}=1',
    'type': f'{section}.{field}=banana',
  }[kind]
  started = time.monotonic()
  process = start(scratch, scratch / 'never', f'--config.{word}', config='configs/digits.py')
  status, output = finish(process)
  seconds = time.monotonic() - started
  named = (
    output.startswith('error: ') and '\n' not in output and (wrong if kind == 'letter' else field) in output + word
  )
  hinted = kind == 'type' or field in output or section in output or 'known:' in output
  ok = status == 2 and named and hinted and not (scratch / 'never').exists()
  return {'word': word, 'status': status, 'said': output[:200], 'run_s': round(seconds, 2), 'ok': ok}


def bad_image(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Damage one image of a folder, and see that one line names it before anything is compiled."""
  from PIL import Image

  folder, workdir = scratch / 'folder', scratch / 'never'
  shutil.rmtree(folder, ignore_errors=True)
  for split, size in (('train', 8), ('test', 4)):
    for at in range(size):
      path = folder / split / f'class{at % 2}' / f'{at}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = np.random.default_rng(at).integers(0, 255, (8, 8, 3)).astype(np.uint8)
      Image.fromarray(pixels).save(path)
  victim = rng.choice(inject.files(folder))
  content = victim.read_bytes()
  kind = ('truncated', 'empty', 'text', 'header')[number % 4]
  victim.write_bytes(
    {
      'truncated': content[: rng.randrange(1, len(content) - 20)],
      'empty': b'',
      'text': b'no image',
      'header': b'\0' * 8 + content[8:],
    }[kind]
  )
  words = ['--config.data.name=folder', f'--config.data.path={folder}', '--config.data.image_size=8']
  words += ['--config.data.batch_size=4', '--config.data.val=0.0']
  status, output = finish(start(scratch, workdir, *words))
  name = str(victim.relative_to(folder))
  ok = status == 2 and '\n' not in output and name in output and not workdir.exists()
  return {'damage': kind, 'file': name, 'status': status, 'said': output[:200], 'ok': ok}


def missing(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Ask for what is not there, and see that one line says so, soon, and that nothing is written."""
  empty, tfds, none = scratch / 'empty', scratch / 'tfds', np.zeros((0, 8, 8, 1), np.uint8)
  empty.mkdir(exist_ok=True)
  np.savez(scratch / 'none.npz', train_x=none, train_y=none[:, 0, 0, 0], test_x=none, test_y=none[:, 0, 0, 0])
  asked, expected = [
    ('data.name=cifar11', "did you mean 'cifar10'"),
    ('model.name=resnet19', 'did you mean'),
    (f'data.name=cifar10 data.data_dir={tfds}', 'jaxres prepare cifar10'),
    (f'data.name=cifar10 data.data_dir={tfds} data.download=true', 'download'),  # with no network, see below
    (f'data.name=arrays data.path={scratch}/none.npz', 'none.npz'),
    (f'data.name=arrays data.path={scratch}/nowhere.npz', 'nowhere.npz'),
    (f'data.name=folder data.path={empty}', str(empty)),
    (f'data.name=folder data.path={scratch}/nowhere', 'nowhere'),
  ][number % 8]
  words = [f'--config.{word}' for word in asked.split()]
  started, proxy = time.monotonic(), 'http://127.0.0.1:9'
  process = start(scratch, scratch / 'never', *words, config='configs/digits.py', http_proxy=proxy, https_proxy=proxy)
  status, output = finish(process)
  seconds = time.monotonic() - started
  ok = status == 2 and expected in output and '\n' not in output and not (scratch / 'never').exists() and seconds < 10
  return {'asked': asked, 'status': status, 'said': output[:300], 'run_s': round(seconds, 2), 'ok': ok}


def memory(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Ask for twice the memory of this machine, in a step, an evaluation, a tool; and see what is advised."""
  point, workdir = ('step', 'evaluation', 'tool')[number % 3], scratch / 'memory'
  shutil.rmtree(workdir, ignore_errors=True)
  examples = 2 * os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2**16  # of one layer of wide.py
  if point == 'step':
    count = examples // 2**9 * 2**8
    shapes = {'train': count, 'test': 40}
    arrays = {f'{split}_x': np.zeros((size, 8, 8, 1), np.uint8) for split, size in shapes.items()}
    arrays |= {f'{split}_y': np.arange(size) % 10 for split, size in shapes.items()}
    np.savez(scratch / 'many.npz', **arrays)
    words = ['--config.data.name=arrays', f'--config.data.path={scratch}/many.npz', '--config.data.val=0.0']
    words += [f'--config.data.batch_size={count}']
    status, output = finish(start(scratch, workdir, *words, config='tests/faults/wide.py'))
    advice = f'train.accumulate=2 (the same batch, in parts), or data.batch_size={count // 2}'
  elif point == 'evaluation':
    words = [f'--config.train.eval_batch_size={examples}', '--config.train.dry_run']
    status, output = finish(start(scratch, workdir, *words, config='tests/faults/wide.py'))
    advice = f'use train.eval_batch_size={examples // 2}'
  else:
    examples *= 16  # of a layer of 4 KB
    finish(
      start(scratch, workdir, '--config.train.dry_run', '--config.model.name=resnet20', config='configs/digits.py')
    )
    status, output = tool(scratch, 'evaluate', workdir / 'dry_run', '--batch_size', examples)
    advice = f'use --batch_size={examples // 2}'
  output = output.splitlines()[-1]  # XLA may have warned before that it is slow to compile
  ok = status == 2 and output.startswith('error: ') and advice in output
  return {'point': point, 'status': status, 'said': output[-300:], 'ok': ok}


def bad_weights(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Start from weights that do not fit, and see that one line names what does not, and that nothing is written.

  A convolution of another shape can make another network of the file: then the line says that none is like it.
  """
  state = make_state(classes=10, channels=1, seed=number)
  path = scratch / f'weights{("", ".pth", ".safetensors")[1 + number % 2]}'
  kind = ('missing', 'unexpected', 'shape', 'head', 'cut off')[number % 5]
  name = rng.choice([name for name in state if not name.endswith('num_batches_tracked')])
  if kind == 'missing':
    del state[name]
  elif kind == 'unexpected':
    name = f'{name}_'
    state[name] = np.zeros(3, np.float32)
  elif kind == 'shape':
    state[name] = np.concatenate([state[name], state[name]])
  elif kind == 'head':
    name, state = 'fc.weight', make_state(classes=7, channels=1, seed=number)
  writer.write(path, state)
  if kind == 'cut off':
    name = str(path)
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])
  status, output = finish(start(scratch, scratch / 'never', f'--config.init.source={path}'))
  told = name in output or 'no network of jaxres.models.list_models() is like it' in output
  ok = status == 2 and '\n' not in output and told and str(path) in output and not (scratch / 'never').exists()
  return {'kind_of': kind, 'file': path.name, 'name': name, 'status': status, 'said': output[:300], 'ok': ok}


def payload(number: int, scratch: pathlib.Path, rng: random.Random) -> Row:
  """Read a file of weights that would run a command, and see that it does not and that one line says what it tried."""
  marker, path = scratch / 'marker', scratch / 'hostile.pth'
  every = payloads(marker)
  name = [*every][number % len(every)]
  content, refused = every[name]
  write_zip(path, {'archive/data.pkl': content})
  status, output = tool(scratch, 'convert', path, scratch / 'converted.safetensors')
  ok = status == 2 and '\n' not in output and refused in output and not marker.exists()
  return {'payload': name, 'status': status, 'said': output[:300], 'ran': marker.exists(), 'ok': ok}
