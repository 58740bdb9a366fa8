"""Files and folders that may not be read: one line that says so, in every reader, as somebody who is not root."""

import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxres import weights
from jaxres.models import blocks, resnet
from jaxres.train import loop
from jaxres.weights import directories, sources
from tests.helpers import ROOT, make_arrays
from tests.weights.files import make_state

pytestmark = pytest.mark.skipif(
  os.geteuid() != 0 or not all(path.stat().st_mode & 0o001 for path in (ROOT, *ROOT.parents)),
  reason='only root can become nobody, who must be able to read the package',
)
RUN_CONFIG = {
  'model': {'name': 'tiny'},
  'data': {'name': 'arrays', 'path': 'DATA/data.npz', 'batch_size': 16},
  'train': {'epochs': 1, 'eval_batch_size': 16},
}
TOLD = ['--mean', '0.5', '--std', '0.5', '--image_size', '8']
FOLDER = {'name': 'folder', 'path': 'DATA/folder', 'image_size': 8, 'batch_size': 2}
SPLITS = FOLDER | {'path': 'DATA/splits'}
STREAM = FOLDER | {'pipeline': 'stream'}
CSV = FOLDER | {'name': 'csv', 'path': 'DATA/list.csv'}
NPZ = {'name': 'arrays', 'path': 'DATA/data.npz', 'batch_size': 2}
SET = {'name': 'tiny', 'data_dir': 'DATA/sets', 'image_size': 8, 'batch_size': 2}
VERSION = 'sets/tiny/1.0.0'
RUN = 'DATA/run'
PACK = ['prepare', 'folder', 'DATA/folder', '--data_dir', 'DATA/new', '--name', 'packed']


def load(options: dict[str, Any]) -> list[str]:
  return ['load', json.dumps(options)]


# words, what has which mode, what the line says beside the reason; DATA is the scratch directory
CASES: dict[str, tuple[list[str], dict[str, int], str]] = {
  'a folder': (load(FOLDER), {'folder': 0}, 'folder'),
  'a folder without its names': (load(FOLDER), {'folder': 0o311}, 'folder'),
  'a folder with nothing but names': (load(FOLDER), {'folder': 0o644}, 'folder'),
  'a folder in a folder': (load(FOLDER | {'path': 'DATA/outer/folder'}), {'outer': 0}, 'outer'),
  'a class': (load(FOLDER), {'folder/a': 0}, 'folder/a'),
  'a class with nothing but names': (load(FOLDER), {'folder/a': 0o644}, 'folder/a'),
  'a folder in a class': (load(FOLDER), {'folder/a/deep': 0}, 'folder/a/deep'),
  'a split': (load(SPLITS), {'splits/train': 0}, 'splits/train'),
  'a split without its names': (load(SPLITS), {'splits/test': 0o311}, 'splits/test'),
  'a split with nothing but names': (load(SPLITS), {'splits/test': 0o644}, 'splits/test'),
  'a class of a split': (load(SPLITS), {'splits/test/b': 0}, 'splits/test/b'),
  'an image of training': (load(SPLITS), {'splits/train/a/0.png': 0}, 'train/a/0.png'),
  'an image of testing': (load(SPLITS), {'splits/test/a/0.png': 0}, 'test/a/0.png'),
  'an image of testing, read ahead': (load(SPLITS | {'pipeline': 'stream'}), {'splits/test/a/0.png': 0}, 'a/0.png'),
  'a list': (load(CSV), {'list.csv': 0}, 'list.csv'),
  'a list in a folder': (load(CSV | {'path': 'DATA/outer/list.csv'}), {'outer': 0}, 'outer'),
  'an image of a list': (load(CSV), {'folder/a/0.png': 0}, 'a/0.png'),
  'a folder of a list': (load(CSV), {'folder/a': 0}, 'a/0.png'),
  'arrays': (load(NPZ), {'data.npz': 0}, 'data.npz'),
  'arrays in a folder': (load(NPZ | {'path': 'DATA/outer/data.npz'}), {'outer': 0}, 'outer'),
  'sets': (load(SET), {'sets': 0}, 'sets'),
  'a set': (load(SET), {'sets/tiny': 0}, 'sets/tiny'),
  'a set with nothing but names': (load(SET), {'sets/tiny': 0o644}, 'sets/tiny'),
  'a version of a set': (load(SET), {VERSION: 0}, VERSION),
  'a version with nothing but names': (load(SET), {VERSION: 0o644}, VERSION),
  'the description of a set': (load(SET), {f'{VERSION}/dataset_info.json': 0}, VERSION),
  'the features of a set': (load(SET), {f'{VERSION}/features.json': 0}, VERSION),
  'a shard of a set': (load(SET), {f'{VERSION}/tiny-train.array_record-00000-of-00001': 0}, VERSION),
  'a config': (['config', 'DATA/config.py'], {'config.py': 0}, 'config.py'),
  'a config in a folder': (['config', 'DATA/outer/config.py'], {'outer': 0}, 'outer'),
  'a folder of configs': (['config', 'DATA/outer'], {'outer': 0}, 'outer'),
  'a folder of configs with nothing but names': (['config', 'DATA/outer'], {'outer': 0o644}, 'outer'),
  'a folder of configs without its names': (['config', 'DATA/outer'], {'outer': 0o311}, 'outer'),
  'the config of a run': (['config', f'{RUN}/config.json'], {'run/config.json': 0}, 'config.json'),
  'weights': (['convert', 'DATA/x.pth', 'DATA/new'], {'x.pth': 0}, 'x.pth'),
  'weights as safetensors': (['convert', 'DATA/x.safetensors', 'DATA/new'], {'x.safetensors': 0}, 'x.safetensors'),
  'weights in a folder': (['convert', 'DATA/outer/x.pth', 'DATA/new'], {'outer': 0}, 'outer'),
  'converted weights': (['predict', 'DATA/converted', 'DATA/0.png', *TOLD], {'converted': 0}, 'converted'),
  'converted weights with nothing but names': (
    ['predict', 'DATA/converted', 'DATA/0.png', *TOLD], {'converted': 0o644}, 'converted',
  ),
  'the description of converted weights': (
    ['predict', 'DATA/converted', 'DATA/0.png', *TOLD], {'converted/model.json': 0}, 'model.json',
  ),
  'names of classes': (
    ['predict', 'DATA/x.pth', 'DATA/0.png', *TOLD, '--class_names', 'DATA/names.txt'], {'names.txt': 0}, 'names.txt',
  ),
  'an image to predict': (['predict', 'DATA/x.pth', 'DATA/0.png', *TOLD], {'0.png': 0}, '0.png'),
  'an image to predict in a folder': (['predict', 'DATA/x.pth', 'DATA/outer/0.png', *TOLD], {'outer': 0}, 'outer'),
  'a folder to predict': (['predict', 'DATA/x.pth', 'DATA/folder', *TOLD], {'folder': 0}, 'folder'),
  'a folder in a folder to predict': (['predict', 'DATA/x.pth', 'DATA/folder', *TOLD], {'folder/a': 0}, 'folder/a'),
  'an image to explain': (['explain', RUN, 'DATA/0.png', '--out', 'DATA/e.png'], {'0.png': 0}, '0.png'),
  'a folder to pack': (PACK, {'folder/a': 0}, 'folder/a'),
  'an image to pack': (PACK, {'folder/a/0.png': 0}, '0.png'),
  'a folder to pack as arrays': (
    ['prepare', 'folder', 'DATA/folder', '--npz', 'DATA/new.npz', '--image_size', '8'], {'folder': 0}, 'folder',
  ),
  'an archive': (['prepare', 'cifar10', '--archive', 'DATA/a.tar', '--npz', 'DATA/new.npz'], {'a.tar': 0}, 'a.tar'),
  'a place to pack to': (
    ['prepare', 'folder', 'DATA/folder', '--data_dir', 'DATA/outer/new', '--name', 'packed'], {'outer': 0o555}, 'outer',
  ),
  'a place for arrays': (
    ['prepare', 'folder', 'DATA/folder', '--npz', 'DATA/outer/new.npz', '--image_size', '8'], {'outer': 0o555}, 'outer',
  ),
  'a place for weights': (['convert', 'DATA/x.pth', 'DATA/outer/new'], {'outer': 0o555}, 'outer'),
  'a place for a file of weights': (['convert', 'DATA/x.pth', 'DATA/outer/new.pth'], {'outer': 0o555}, 'outer'),
  'a place for a page': (['report', RUN, '--out', 'DATA/outer/new.html'], {'outer': 0o555}, 'outer'),
  'a place for a picture': (['explain', RUN, 'DATA/0.png', '--out', 'DATA/outer/new.png'], {'outer': 0o555}, 'outer'),
  'a place for scores': (['evaluate', RUN, '--out', 'DATA/outer/new.json'], {'outer': 0o555}, 'outer'),
  'a place for a run': (['train', json.dumps(RUN_CONFIG), 'DATA/outer/new'], {'outer': 0o555}, 'outer'),
  'a run to go on with': (['train', json.dumps(RUN_CONFIG), RUN], {'run': 0}, 'run'),
  'a run to go on with that may not be written': (['train', json.dumps(RUN_CONFIG), RUN], {'run': 0o555}, 'run'),
  'a run to go on with whose checkpoints': (
    ['train', json.dumps(RUN_CONFIG), RUN], {'run/checkpoints': 0}, 'checkpoints',
  ),
  'a run to go on with whose config': (['train', json.dumps(RUN_CONFIG), RUN], {'run/config.json': 0}, 'config.json'),
  'a run to go on with whose data': (['train', json.dumps(RUN_CONFIG), RUN], {'run/data.json': 0}, 'data.json'),
} | {
  f'{tool} of a run {what}': ([tool, *words], {path: mode}, path)
  for tool, words in {
    'evaluate': [RUN],
    'report': [RUN, '--out', 'DATA/r.html'],
    'errors': [RUN, '--out', 'DATA/e.html'],
    'digest': [RUN],
    'doctor': ['--workdir', RUN],
    'predict': [RUN, 'DATA/0.png'],
    'explain': [RUN, 'DATA/0.png', '--out', 'DATA/e.png'],
    'convert': [RUN, 'DATA/new'],
  }.items()
  for what, path, mode in (
    ('that may not be read', 'run', 0),
    ('with nothing but names', 'run', 0o644),
    ('without its names', 'run', 0o311),
    ('without its config', 'run/config.json', 0),
    ('without its checkpoints', 'run/checkpoints', 0),
    ('with nothing but names of checkpoints', 'run/checkpoints', 0o644),
    ('without its checkpoint', 'run/checkpoints/6', 0),
  )
}  # fmt: skip


def build(root: pathlib.Path) -> None:
  """Write what the cases are about."""
  for k, path in enumerate(['folder', 'outer/folder', 'splits/train', 'splits/test']):
    for name in 'ab':
      for i in range(4):
        file = root / path / name / f'{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8), (20 * i, 9 * k, 200 * (name == 'a'))).save(file)
  (root / 'folder/a/deep').mkdir()
  shutil.copy(root / 'folder/a/0.png', root / 'folder/a/deep/0.png')
  rows = [f'folder/{name}/{i}.png,{name}' for name in 'ab' for i in range(4)]
  (root / 'list.csv').write_text('\n'.join(['path,label', *rows]))
  np.savez(root / 'data.npz', **make_arrays())
  weights.write(root / 'x.pth', make_state(4))
  weights.write(root / 'x.safetensors', make_state(4))
  (root / 'names.txt').write_text('a\nb\nc\nd\n')
  (root / 'a.tar').write_bytes(b'x')
  (root / 'config.py').write_text('from jaxres import config\n\n\ndef get_config():\n  return config.make()\n')
  shutil.copy(root / 'folder/a/0.png', root / '0.png')
  for name in ('list.csv', 'data.npz', 'x.pth', 'config.py', '0.png'):
    shutil.copy(root / name, root / 'outer' / name)
  directories.write(root / 'converted', sources.read(str(root / 'x.pth')))
  loop.train_and_evaluate(place_value(RUN_CONFIG, root), root / 'run')
  if importlib.util.find_spec('array_record'):
    from tests.data import sets

    sets.write(root / 'sets', sets.features(), {'train': sets.examples(8), 'test': sets.examples(4)})


def place_value(value: Any, root: pathlib.Path) -> Any:
  return json.loads(json.dumps(value).replace('DATA', str(root)))


@pytest.fixture(scope='module')
def results() -> Iterator[dict[str, dict[str, Any]]]:
  """What came of each case."""
  root = pathlib.Path(tempfile.mkdtemp(prefix='jaxres-unreadable-'))  # pytest's own directory is root's alone
  root.chmod(0o755)
  with pytest.MonkeyPatch.context() as patch:
    model = functools.partial(resnet.ResNet, (1,), (8,), blocks.BasicBlock, stem_type='cifar')
    patch.setitem(resnet.MODELS, 'tiny', model)
    build(root)
  (root / 'home').mkdir()
  cases = [
    [words, {str(root / path): mode for path, mode in modes.items()}]
    for words, modes, _ in place_value([*CASES.values()], root)
  ]
  home = str(root / 'home')
  environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')} | {
    'HOME': home,
    'XDG_CACHE_HOME': home,
    'PYTHONPATH': str(ROOT),
  }
  done = subprocess.run(
    [sys.executable, '-m', 'tests.unprivileged'],
    input=json.dumps([str(root), cases]),
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  yield dict(zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True))
  shutil.rmtree(root)


@pytest.mark.parametrize('name', CASES)
def test_what_may_not_be_read_is_one_line(results, name: str) -> None:
  words, _, place = CASES[name]
  if 'sets' in place and not importlib.util.find_spec('array_record'):
    pytest.skip('array_record is not installed')
  result = results[name]
  if words[0] == 'doctor':
    assert result['status'] in (1, 2), result
    output = result['out'] + result['err']
  else:
    assert result['status'] == 2, result['status'] if isinstance(result['status'], str) else result
    (output,) = [line for line in result['err'].splitlines() if 'error: ' in line]
  assert 'ermission denied' in output, result
  assert place in output, result
  assert 'Traceback' not in output
