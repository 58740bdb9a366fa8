"""Files that jaxres wrote and somebody changed: the same content, a harmless other one, or one short line."""

import json
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import checkpoint, files, models, npz, workdir
from jaxres import config as config_lib
from jaxres.checkpoint import digests
from jaxres.checkpoint import steps as steps_lib
from jaxres.errors import InputError
from jaxres.log import rows
from jaxres.state import TrainState
from jaxres.train import nonfinite
from jaxres.weights import directories, sources
from tests.mutations import (
  CONFIG,
  DATA,
  KINDS,
  MODEL,
  ODD_FILES,
  Kind,
  check_config,
  limited,
  mutations,
  outcome,
  read_data,
  try_all,
)


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.name)
def test_mutations(kind: Kind, tmp_path) -> None:
  counts = try_all(kind, tmp_path)
  print(kind.name, counts)
  assert counts['same'] > 0
  assert counts['refused' if kind.name != 'metrics.jsonl' else 'other'] > 500


def test_a_model_json_with_its_digest_is_what_was_written_or_refused(tmp_path) -> None:
  content = MODEL | {'format': 2}
  content |= {'description_sha256': digests.json_digest(content)}
  kind = next(kind for kind in KINDS if kind.name == 'model.json')
  counts = try_all(kind._replace(raw=json.dumps(content).encode(), is_strict=True), tmp_path)
  print(counts)
  assert counts['other'] == 0


# .npz files: arrays of a user's, of the cache, of a bad step


ABOUT = {
  'config': json.loads(CONFIG),
  'found': {'step': 3, 'loss': math.nan, 'bad': ['gradients/stem/conv/kernel'], 'counts': {'gradients': '3 of 62'}},
}


def write_bad_step(path: pathlib.Path, about: str, ids: Any = (1, 2, 3)) -> None:
  np.savez(path, **{'state/step': np.int32(3)}, ids=np.array(ids), about=np.array(about))


def test_mutations_of_a_bad_step(tmp_path) -> None:
  path = tmp_path / 'bad_step_3.npz'
  write_bad_step(path, json.dumps(ABOUT))
  assert nonfinite.read(path)[1].step == 3
  counts = {'accepted': 0, 'refused': 0}
  for mutated in mutations(json.dumps(ABOUT).encode(), 1):
    write_bad_step(path, mutated.decode(errors='surrogateescape').encode('ascii', 'replace').decode())
    verdict, content = outcome(lambda directory: nonfinite.read(directory / path.name), tmp_path)
    counts[verdict] += 1
    if verdict == 'accepted':
      check_config(content[2])
      assert 0 <= content[1].step < 2**31
      assert content[1].describe()
  print(counts)
  assert counts['refused'] > 500


@pytest.mark.parametrize('ids', [[], [0.5], [[1]], ['a'], 3])
def test_the_ids_of_a_bad_step_are_complete_numbers(tmp_path, ids: Any) -> None:
  write_bad_step(tmp_path / 'bad.npz', json.dumps(ABOUT), ids)
  with pytest.raises(InputError, match=r'ids: expected whole numbers \[B\], found'):
    nonfinite.read(tmp_path / 'bad.npz')


@pytest.mark.parametrize('odd', ODD_FILES)
@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.name)
def test_what_is_no_file_is_one_line_and_takes_neither_time_nor_memory(kind: Kind, odd: str, tmp_path) -> None:
  ODD_FILES[odd](tmp_path / kind.name)
  with limited():
    verdict, content = outcome(kind.read, tmp_path)
    if kind.name == 'metrics.jsonl':
      assert 'cannot be read: ' in rows.read(tmp_path / kind.name)[1]
      assert (verdict, content) == ('accepted', [])
    else:
      assert verdict == 'refused'
      assert f'{kind.name}: cannot be read: ' in content
      assert content.endswith('; put it back as jaxres wrote it')
    with pytest.raises(ValueError, match='.'):
      npz.load_npz(tmp_path / kind.name)


def test_a_shape_takes_no_memory(tmp_path) -> None:
  (tmp_path / 'data.json').write_bytes(DATA.replace(b'[8, 8, 3]', b'[100000, 100000, 3]'))
  with (
    limited(),
    pytest.raises(files.DamagedError, match=r'image_shape: expected .* pixels, found \[100000, 100000, 3\]'),
  ):
    read_data(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch) -> None:
  def refuse(*_: object) -> int:
    raise PermissionError(13, 'Permission denied')

  for kind in KINDS[:3]:
    (tmp_path / kind.name).touch()
  monkeypatch.setattr(os, 'open', refuse)
  for kind in KINDS[:3]:
    assert f'{kind.name}: cannot be read: Permission denied' in outcome(kind.read, tmp_path)[1]
  monkeypatch.setattr(os, 'listdir', refuse)
  with pytest.raises(InputError, match='cannot be read: Permission denied; expected a directory of checkpoints'):
    steps_lib.list_steps(tmp_path)


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    ({'class_names': ['ant', 'bee']}, 'class_names: expected 3 as the checkpoint has, found 2'),
    ({'image_shape': [8, 8, 1], 'mean': [0.5], 'std': [0.5]}, 'channels: expected 3 as the checkpoint has, found 1'),
    ({'image_shape': [8, 8, 1]}, 'mean, std and image_shape are of different channels'),
    ({'std': [0.2, 0.2, 0]}, 'std: expected a list of 1 values or more, each a finite number from '),
    ({'mean': [0.2, 0.2, math.nan]}, 'cannot be read: NaN is no finite number'),
    ({'class_names': [1, 2, 3]}, r'class_names: expected a list of 1 values or more, each a text, found \[1, 2, 3\]'),
  ],
)
def test_data_json_is_that_of_the_network(tmp_path, change: dict, line: str) -> None:
  (tmp_path / 'data.json').write_text(json.dumps(json.loads(DATA) | change))
  with pytest.raises(files.DamagedError, match=line):
    read_data(tmp_path)


@pytest.mark.parametrize(
  ('text', 'line'),
  [
    (b'[]', r'config.json: expected an object, found \[\]'),
    (b'{"model": 3}', 'config.json: model: expected an object, found 3'),
    (b'{"modle": {}}', "config.json: 'modle': unknown field"),
    (b'{"model": {"nmae": 1}}', r"config.json: model.nmae: unknown field; did you mean 'name'\?"),
    (b'{"train": {"epochs": "many"}}', "config.json: train.epochs: expected float, found 'many'"),
    (b'{"model": {"name": "caf\xe9"}}', 'config.json: cannot be read: it is not UTF-8, at byte 23'),
    (b'{"train": {"seed": 1, "seed": 2}}', 'a key occurs twice in an object'),
    (b'{"train": {"epochs": 1e999}}', '1e999 is no finite number'),
    (b'{"a":' * 100_000, 'lists and objects lie too deep in each other'),
    (b'[' * 40 + b']' * 40, 'more than 32 lists and objects lie in each other'),
    (b'7' * 9_000, 'a number of 9,000 digits'),
  ],
)
def test_the_line_names_the_file_and_the_field(tmp_path, text: bytes, line: str) -> None:
  (tmp_path / 'config.json').write_bytes(text)
  with pytest.raises(files.DamagedError, match=line):
    workdir.read_config(tmp_path)


# the log


@pytest.fixture
def run(tmp_path, tiny: str) -> pathlib.Path:
  """A run of the network ``tiny`` with three classes."""
  from jaxres.models import blocks, resnet

  same = lambda **options: resnet.ResNet(
    (1,), (8,), blocks.BasicBlock, **{'stem_type': 'cifar', 'act': 'silu'} | options
  )
  resnet.MODELS['twin'] = same  # the same names and shapes, and another function
  model = models.create(tiny, num_classes=3)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
  config = config_lib.make(model=dict(name=tiny))
  with checkpoint.open_manager(tmp_path / 'run/checkpoints') as manager:
    state = TrainState(jnp.int32(7), variables['params'], variables['batch_stats'], ())
    checkpoint.save(manager, state, {}, {}, config)
  (tmp_path / 'run/config.json').write_text(config_lib.to_json(config))
  (tmp_path / 'run/data.json').write_bytes(DATA)
  yield tmp_path / 'run'
  del resnet.MODELS['twin']


def test_a_run_of_another_network_is_refused(run: pathlib.Path) -> None:
  from jaxres.tools import convert as convert_tool

  assert sources.read(str(run)).class_names == ('ant', 'bee', 'caf\udce9')
  path = run / 'config.json'
  written = json.loads(path.read_text())
  for field, value in (('name', 'twin'), ('name', 'resnet20'), ('act', 'silu'), ('stem', 'deep'), ('shortcut', 'pad')):
    path.write_text(json.dumps(written | {'model': written['model'] | {field: value}}))
    with pytest.raises(InputError, match=f'of another run: model.{field} was .* there, and is .* in this run'):
      convert_tool.run(arguments(convert_tool, str(run), str(run.parent / 'out')))
    assert not (run.parent / 'out').exists()
  path.write_text(json.dumps(written | {'train': written['train'] | {'epochs': 99.0}}))
  assert sources.read(str(run)).options['name'] == 'tiny'


def arguments(tool: Any, *argv: str) -> Any:
  import argparse

  parser = argparse.ArgumentParser()
  tool.add_arguments(parser)
  return parser.parse_args(argv)


def test_what_is_written_has_a_digest_and_the_old_form_loads(run: pathlib.Path, tmp_path) -> None:
  directories.write(tmp_path / 'out', sources.read(str(run)))
  path = tmp_path / 'out/model.json'
  content = json.loads(path.read_text())
  for field, value in (('class_names', ['x', 'y', 'z']), ('origin', 'elsewhere'), ('channels', 1)):
    path.write_text(json.dumps(content | {field: value}))
    with pytest.raises(files.DamagedError, match='it was edited, or its SHA-256 was'):
      sources.read(str(tmp_path / 'out'))
  del content['description_sha256']
  path.write_text(json.dumps(content))
  with pytest.raises(files.DamagedError, match='description_sha256: missing'):
    sources.read(str(tmp_path / 'out'))
  content['format'] = 1
  path.write_text(json.dumps(content))
  assert sources.read(str(tmp_path / 'out')).class_names == ('ant', 'bee', 'caf\udce9')
  for change, line in (
    ({'class_names': ['x']}, 'class_names: expected 3 as the weights have, found 1'),
    ({'channels': 1}, 'channels: expected 3 as the weights have, found 1'),
    ({'model': content['model'] | {'num_classes': 10**9}}, 'model.num_classes: expected 3 as the weights have'),
    ({'model': content['model'] | {'name': 'resnet20'}}, 'no resnet20: .*: expected '),
  ):
    path.write_text(json.dumps(content | change))
    with limited(), pytest.raises(InputError, match=line):
      sources.read(str(tmp_path / 'out'))
