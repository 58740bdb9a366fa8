"""A checkpoint that is not what was saved is never restored."""

import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import checkpoint
from jaxres.checkpoint import digests as digests_lib
from jaxres.checkpoint import disk, moves, reader, steps
from jaxres.errors import InputError
from jaxres.runtime import sharding
from tests.faults import inject
from tests.train.runs import PROGRESS, make_train_state


def restore(directory: pathlib.Path) -> tuple[int, str]:
  """Return the step that is restored, and the digest of what it holds."""
  with checkpoint.open_manager(directory, keep_latest=3) as manager:
    template = jax.eval_shape(lambda: make_train_state(0))
    state, progress = checkpoint.restore(manager, template, sharding.replicated_sharding(sharding.make_mesh()))
  digests = {name: digests_lib.leaf_digest(array) for name, array in digests_lib.leaves(state.saved_fields)}
  return int(state.step), digests_lib.state_digest(digests, progress)


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
  """Three checkpoints."""
  directory = tmp_path_factory.mktemp('saved') / 'c'
  with checkpoint.open_manager(directory, keep_latest=3) as manager:
    for step in (1, 2, 3):
      checkpoint.save(manager, make_train_state(step), PROGRESS, {'val/top1': 0.1 * step})
  return directory


@pytest.fixture
def copy(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
  shutil.copytree(saved, tmp_path / 'c')
  return tmp_path / 'c'


@pytest.fixture(scope='module')
def digests(saved: pathlib.Path) -> dict[int, str]:
  actual = {step: reader.read(saved / str(step)) for step in (1, 2, 3)}
  assert all(each.verified and each.about['step'] == step for step, each in actual.items())
  return {step: digests_lib.state_digest(each.digests, each.progress) for step, each in actual.items()}


@pytest.mark.parametrize('number', range(24))
def test_damage_falls_back_and_never_restores_what_was_not_saved(copy, digests, number: int, capfd) -> None:
  rng, every = random.Random(number), inject.files(copy / '3')
  victim, kind = every[number % len(every)], inject.KINDS[number % 4]
  inject.damage(victim, kind, rng)
  step, actual = restore(copy)
  assert actual == digests[step]
  assert step in (2, 3)
  if step == 2:  # step 3 is named, kept, and can be saved again
    assert 'checkpoint 3 is damaged: ' in capfd.readouterr().err
    assert (copy / '3.bad').is_dir()
    with checkpoint.open_manager(copy, keep_latest=3) as manager:
      checkpoint.save(manager, make_train_state(3), PROGRESS, {'val/top1': 0.3})
    assert restore(copy) == (3, digests[3])


@pytest.mark.parametrize('leaf', ['params/a', 'batch_stats/b', 'opt_state/0', 'ema/c'])
def test_one_bit_of_a_leaf_is_named(copy, digests, leaf: str, tmp_path, capfd) -> None:
  """The bit is flipped in the array, not in the file, whose compression would notice first."""

  def flip(name: tuple, array: jax.Array) -> jax.Array:
    bits = np.array(array)
    if jax.tree_util.keystr(name, simple=True, separator='/') == leaf:
      bits.view(np.uint32).flat[5] ^= 1
    return jnp.asarray(bits)

  state = make_train_state(3)
  fields = jax.tree_util.tree_map_with_path(flip, state.saved_fields)
  with checkpoint.open_manager(tmp_path / 'flipped') as manager:
    checkpoint.save(manager, state.replace(**fields), PROGRESS, {'val/top1': 0.3})
  shutil.rmtree(copy / '3/state')
  shutil.copytree(tmp_path / 'flipped/3/state', copy / '3/state')
  assert restore(copy) == (2, digests[2])
  assert f'checkpoint 3 is damaged: leaf {leaf}: it is not what was saved' in capfd.readouterr().err


def test_another_value_is_named(copy, capfd) -> None:
  file = copy / '3/digests/metadata'
  known = json.loads(file.read_text())
  known['state']['params/a'] = known['state']['params/a'][:-1] + ('0' if known['state']['params/a'][-1] != '0' else '1')
  file.write_text(json.dumps(known))
  assert restore(copy)[0] == 2
  assert 'checkpoint 3 is damaged: leaf params/a: it is not what was saved' in capfd.readouterr().err


@pytest.mark.parametrize('item', ['progress', 'metrics', 'about'])
def test_the_small_items_are_verified_too(copy, item: str, capfd) -> None:
  file = copy / '3' / item / reader.JSON_ITEMS[item]
  file.write_text(file.read_text().replace('3', '4').replace('0.5', '0.6'))
  assert restore(copy)[0] == 2
  assert f'checkpoint 3 is damaged: {item}: ' in capfd.readouterr().err


def test_an_empty_directory_is_no_checkpoint(copy, digests, capfd) -> None:
  (copy / '7').mkdir()
  assert restore(copy) == (3, digests[3])
  assert 'checkpoint 7 is damaged' in capfd.readouterr().err


def test_where_none_is_complete_nothing_is_touched(copy) -> None:
  for step in (1, 2, 3):
    shutil.rmtree(copy / str(step) / 'state')
  with pytest.raises(InputError, match=r'none of 3 checkpoints is intact: step 3: leaf .*move them away'):
    restore(copy)
  assert steps.list_steps(copy) == [1, 2, 3]


def test_another_shape_or_dtype_is_refused(copy) -> None:
  template = jax.eval_shape(lambda: make_train_state(0))
  place = sharding.replicated_sharding(sharding.make_mesh())
  with checkpoint.open_manager(copy, keep_latest=3) as manager:
    for change, message in (
      (jax.ShapeDtypeStruct((64, 32), jnp.int32), r'params/a: expected int32\[64,32\], found float32\[64,32\]'),
      (jax.ShapeDtypeStruct((64, 3), jnp.float32), r'params/a: expected float32\[64,3\], found float32\[64,32\]'),
    ):
      with pytest.raises(InputError, match=message):
        checkpoint.restore(manager, template.replace(params={'a': change}), place)


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('field', ['params', 'batch_stats', 'opt_state', 'ema'])
def test_what_is_not_finite_is_never_saved(copy, digests, field: str, value: float) -> None:
  state = make_train_state(4)
  bad = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(value) if x.dtype == jnp.float32 else x, getattr(state, field))
  with (
    pytest.raises(InputError, match=f'step 4: the state is not saved: {field}/'),
    checkpoint.open_manager(copy, keep_latest=3) as manager,
  ):
    checkpoint.save(manager, state.replace(**{field: bad}), PROGRESS, {})
  assert restore(copy) == (3, digests[3])


def test_without_room_nothing_is_started(copy, digests, monkeypatch) -> None:
  monkeypatch.setattr(disk.shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10, 10, 1000))
  message = r'the disk is full: .*0.0 MB are free, and step 4 needs 1.1 MB; what was saved'
  with pytest.raises(InputError, match=message), checkpoint.open_manager(copy, keep_latest=3) as manager:
    checkpoint.save(manager, make_train_state(4), PROGRESS, {})
  assert restore(copy) == (3, digests[3])


def test_a_checkpoint_of_an_older_jaxres_is_restored_with_a_word(copy, digests, capfd) -> None:
  for item in ('digests', 'about'):
    shutil.rmtree(copy / '3' / item)
  described = copy / '3/_CHECKPOINT_METADATA'
  content = json.loads(described.read_text())
  for item in ('digests', 'about'):
    del content['item_handlers'][item]
  described.write_text(json.dumps(content))
  assert restore(copy) == (3, digests[3])
  assert 'checkpoint 3: an older jaxres saved it, without digests: it cannot be verified' in capfd.readouterr().err


def test_a_checkpoint_makes_way_for_another_of_its_step_and_is_taken_back_after_a_kill(copy, digests) -> None:
  with checkpoint.open_manager(copy, keep_latest=3) as manager:
    checkpoint.save(manager, make_train_state(3), PROGRESS | {'stale': 2}, {'val/top1': 0.3}, commit=True)
    assert {path.name for path in copy.iterdir()} == {'1', '2', '3'}
  assert reader.read(copy / '3').progress['stale'] == 2
  (copy / '3').rename(copy / '3.replaced')  # killed before the new one was there
  assert restore(copy)[0] == 3
  shutil.copytree(copy / '2', copy / '2.replaced')  # killed after that
  assert restore(copy)[0] == 3
  assert {path.name for path in copy.iterdir()} == {'1', '2', '3'}


def test_a_kill_leaves_no_half_deleted_checkpoint(tmp_path, monkeypatch, capfd) -> None:
  with monkeypatch.context() as patch:
    patch.setattr(moves.shutil, 'rmtree', lambda *_, **__: None)  # as if it were killed before
    with checkpoint.open_manager(tmp_path) as manager:
      for step in (1, 2, 3):
        checkpoint.save(manager, make_train_state(step), PROGRESS, {})
  assert steps.list_steps(tmp_path) == [3]
  thrown = sorted((tmp_path / checkpoint.DELETED).iterdir())
  assert [path.name.partition('.')[0] for path in thrown] == ['1', '2']
  assert not any(map(reader.find_damage, thrown))
  assert restore(tmp_path)[0] == 3
  assert not (tmp_path / checkpoint.DELETED).exists()
  assert not capfd.readouterr().err
