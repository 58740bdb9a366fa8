"""The items of a checkpoint that somebody changed: the run falls back, or one short line."""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import checkpoint
from jaxres.checkpoint import reader
from jaxres.checkpoint import steps as steps_lib
from jaxres.errors import InputError
from jaxres.state import TrainState
from tests.mutations import Kind, try_all


def make_state(step: int) -> TrainState:
  leaf = lambda k: jnp.arange(6.0).reshape(2, 3) * k + step
  return TrainState(jnp.asarray(step, jnp.int32), {'a': leaf(1)}, {'b': leaf(2)}, ())


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
  """A directory with the checkpoints 1 and 2."""
  directory = tmp_path_factory.mktemp('saved') / 'c'
  with checkpoint.open_manager(directory, keep_latest=3) as manager:
    for step in (1, 2):
      progress = {'last': {'test/loss': math.nan}, 'best': {}, 'stale': step}
      checkpoint.save(manager, make_state(step), progress, {'val/top1': 0.5}, {'train': {'seed': 3}}, commit=True)
  return directory


@pytest.fixture
def copy(saved: pathlib.Path, tmp_path) -> pathlib.Path:
  return shutil.copytree(saved, tmp_path / 'c')


@pytest.mark.parametrize('item', ['progress', 'about', 'metrics', 'digests'])
def test_mutations_of_the_items_of_a_checkpoint(copy: pathlib.Path, item: str) -> None:
  name = f'{item}/{reader.JSON_ITEMS.get(item, "metadata")}'
  read = lambda directory: [field for field in reader.read(directory) if not isinstance(field, np.ndarray)][1:]
  raw = (copy / '2' / name).read_bytes()
  kind = Kind(name, raw, read, lambda content: None, is_strict=True)
  print(item, try_all(kind, copy / '2'))


def test_a_leaf_that_the_digests_do_not_know_is_damage(copy: pathlib.Path) -> None:
  file = copy / '2/digests/metadata'
  content = json.loads(file.read_text())
  del content['state']['batch_stats/b']
  file.write_text(json.dumps(content))
  with pytest.raises(reader.DamagedError, match='digests: none of 1 arrays that are there, the first batch_stats.b'):
    reader.read(copy / '2')


def test_a_digest_of_another_shape_takes_no_memory(copy: pathlib.Path) -> None:
  file = copy / '2/digests/metadata'
  file.write_text(file.read_text().replace('float32[2,3]', 'float32[100000,100000]', 1))
  with pytest.raises(reader.DamagedError, match=r'leaf .*: it is not what was saved \(float32\[2,3\]\)'):
    reader.read(copy / '2')


@pytest.mark.parametrize('text', ['{}', '[]', '{"state": {}}', '[' * 200_000, '{"a":' * 900 + '1' + '}' * 900, 'null'])
@pytest.mark.parametrize('item', ['digests', 'progress', 'about', 'metrics'])
def test_a_run_falls_back_behind_a_damaged_item(copy: pathlib.Path, item: str, text: str, capfd) -> None:
  (copy / '2' / item / reader.JSON_ITEMS.get(item, 'metadata')).write_text(text)
  with checkpoint.open_manager(copy, keep_latest=3) as manager:
    assert manager.all_steps() == [1]
  assert 'checkpoint 2 is damaged: ' in capfd.readouterr().err
  assert (copy / '2.bad').is_dir()


def test_without_digests_it_must_be_known_that_there_were_none(copy: pathlib.Path) -> None:
  described = copy / '2/_CHECKPOINT_METADATA'
  content = json.loads(described.read_text())
  for item in ('digests', 'about'):
    shutil.rmtree(copy / '2' / item)
  for text in ('', '[]', '{}', '{"item_handlers": 3}', json.dumps(content), '[' * 9_000):
    described.write_text(text)
    with pytest.raises(reader.DamagedError, match='digests: '):
      reader.read(copy / '2')
  for item in ('digests', 'about'):
    del content['item_handlers'][item]
  described.write_text(json.dumps(content))
  assert not reader.read(copy / '2').verified


def put_file(path: pathlib.Path) -> None:
  path.write_text('x')


ODD_ENTRIES = {
  '007': lambda path: path.mkdir(),
  '0009': lambda path: shutil.copytree(path.with_name('2'), path),
  '\u0665': lambda path: path.mkdir(),  # a digit, not of ASCII
  '9' * 40: lambda path: path.mkdir(),
  '5': put_file,
  '3': lambda path: path.symlink_to('3'),
  '8': lambda path: path.symlink_to('nowhere'),
  '6': os.mkfifo,
}


@pytest.mark.parametrize('name', ODD_ENTRIES)
def test_odd_entries_are_no_step(copy: pathlib.Path, name: str, capfd) -> None:
  ODD_ENTRIES[name](copy / name)
  assert steps_lib.list_steps(copy) == [1, 2]
  with checkpoint.open_manager(copy, keep_latest=3) as manager:
    places = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state, _ = checkpoint.restore(manager, jax.eval_shape(lambda: make_state(0)), places)
    assert int(state.step) == 2
    step = int(name) if name.isascii() and len(name) == 1 else 10
    checkpoint.save(manager, make_state(step), {}, {}, commit=True)
  assert max(steps_lib.list_steps(copy)) == step
  assert f'{copy / name} is no checkpoint; it is now ' in capfd.readouterr().err


@pytest.mark.parametrize('put', [put_file, lambda path: path.symlink_to(path.name), os.mkfifo])
def test_checkpoints_that_are_no_directory(tmp_path, put: Callable[[pathlib.Path], None]) -> None:
  put(tmp_path / 'c')
  with pytest.raises(InputError, match='c: cannot be read: .*; expected a directory of checkpoints'):
    checkpoint.open_manager(tmp_path / 'c').__enter__()


# a run's weights are of the network that was trained


def put_fifo(path: pathlib.Path) -> None:
  path.unlink()
  os.mkfifo(path)


def put_link(path: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to('/dev/zero')


@pytest.mark.parametrize('put', [lambda path: path.write_bytes(b'{"a":' * 30_000), put_fifo, put_link])
def test_what_orbax_notes_of_a_checkpoint_is_not_needed(copy, put: Callable[[pathlib.Path], None], capfd) -> None:
  put(copy / '2' / reader.DESCRIPTION)
  with checkpoint.open_manager(copy, keep_latest=3) as manager:
    places = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    state, _ = checkpoint.restore(manager, jax.eval_shape(lambda: make_state(0)), places)
    assert int(state.step) == 2
  output = capfd.readouterr().err
  assert f'{copy}/2/{reader.DESCRIPTION}: cannot be read: ' in output
  assert f'; it is not needed, and is now {copy}/2/{reader.DESCRIPTION}.bad' in output
