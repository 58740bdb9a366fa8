import errno
import hashlib
import os
import shutil
import threading

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxres import checkpoint, workdir
from jaxres.checkpoint import reader, steps
from jaxres.checkpoint.disk import check_room
from jaxres.checkpoint.manager import Directory
from jaxres.doctor import run as run_checks
from jaxres.errors import InputError
from jaxres.runtime import sharding
from jaxres.state import TrainState, shardings

pytestmark = pytest.mark.eight_devices


def make_state(step: int) -> TrainState:
  leaf = lambda k: jnp.arange(40.0).reshape(5, 8) * k + step
  return TrainState(jnp.asarray(step, jnp.int32), {'a': leaf(1)}, {'b': leaf(2)}, (leaf(3), jnp.asarray(step)))


def restore(manager, step: int | None = None) -> tuple[TrainState, dict] | None:
  template = jax.eval_shape(lambda: make_state(0))
  return checkpoint.restore(manager, template, sharding.replicated_sharding(sharding.make_mesh()), step)


def assert_equal(a: TrainState, b: TrainState) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_was_saved_comes_back(tmp_path) -> None:
  progress = {'last': {'test/top1': 0.1 + 0.2}, 'best': {}, 'stale': 3}
  with checkpoint.open_manager(tmp_path / 'c') as manager:
    assert restore(manager) is None
    checkpoint.save(manager, make_state(7), progress, {})
  with checkpoint.open_manager(tmp_path / 'c') as manager:
    state, actual = restore(manager)
  assert_equal(state, make_state(7))
  assert actual == progress
  assert state.params['a'].sharding.is_fully_replicated
  assert len(state.params['a'].sharding.device_set) == 8


def test_a_state_of_before_there_was_a_moving_average_comes_back(tmp_path) -> None:
  @flax.struct.dataclass
  class Old:  # of 0.1.0 as it was first written
    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: tuple

  new = make_state(7)
  old = Old(new.step, new.params, new.batch_stats, new.opt_state)
  with checkpoint.open_manager(tmp_path / 'c') as manager:
    items = ocp.args.Composite(state=ocp.args.StandardSave(old), progress=ocp.args.JsonSave({}))
    manager.save(7, args=items)
    manager.wait_until_finished()
    assert_equal(restore(manager)[0], new)


def test_a_moving_average_is_saved(tmp_path) -> None:
  ema = {'params': {'a': jnp.arange(3.0)}, 'batch_stats': {'b': jnp.arange(4.0)}}
  saved = make_state(7).replace(ema=ema)
  with checkpoint.open_manager(tmp_path / 'c') as manager:
    checkpoint.save(manager, saved, {}, {})
    manager.wait_until_finished()
    template = jax.eval_shape(lambda: saved)
    actual, _ = checkpoint.restore(manager, template, sharding.replicated_sharding(sharding.make_mesh()))
  assert_equal(actual, saved)


def test_a_donated_state_is_saved_as_it_was(tmp_path) -> None:
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state = jax.jit(make_state, static_argnums=0)(0)
  state = jax.tree.map(lambda x: jnp.broadcast_to(x, (1000, *x.shape)).copy(), state.replace(step=None))
  with checkpoint.open_manager(tmp_path / 'c', keep_latest=1) as manager:
    checkpoint.save(manager, state.replace(step=jnp.int32(0)), {}, {})
    for _ in range(20):
      state = step(state)
    manager.wait_until_finished()
    template = jax.eval_shape(lambda: state.replace(step=jnp.int32(0)))
    template = jax.tree.map(lambda x: x, template)
    actual, _ = checkpoint.restore(manager, template, sharding.replicated_sharding(sharding.make_mesh()))
  np.testing.assert_array_equal(actual.params['a'][3], make_state(0).params['a'])


def test_the_latest_and_the_best_are_kept(tmp_path) -> None:
  top1 = [0.1, 0.5, 0.9, 0.7, 0.8, 0.8, 0.3, 0.2]
  with checkpoint.open_manager(tmp_path / 'c', keep_latest=2, keep_best=2) as manager:
    for step, value in enumerate(top1, 1):
      checkpoint.save(manager, make_state(step), {}, {'val/top1': value})
      manager.wait_until_finished()
    assert manager.all_steps() == [3, 5, 7, 8]
    assert_equal(restore(manager, 3)[0], make_state(3))


def test_the_best_is_known_when_the_checkpoints_are_opened_again(tmp_path) -> None:
  for opening in ([0.4, 0.9, 0.5], [0.6], [0.7, 0.55]):
    with checkpoint.open_manager(tmp_path / 'c') as manager:
      for value in opening:
        step = (manager.latest_step() or 0) + 1
        checkpoint.save(manager, make_state(step), {}, {'val/top1': value})
        manager.wait_until_finished()
  with checkpoint.open_manager(tmp_path / 'c') as manager:
    assert manager.all_steps() == [2, 6]
    assert_equal(restore(manager, 2)[0], make_state(2))


def test_without_validation_the_latest_are_kept(tmp_path) -> None:
  with checkpoint.open_manager(tmp_path / 'c', keep_latest=2, keep_best=1) as manager:
    for step in range(1, 6):
      checkpoint.save(manager, make_state(step), {}, {})
      manager.wait_until_finished()
    assert manager.all_steps() == [4, 5]


def test_leaving_the_context_commits_even_on_an_error(tmp_path) -> None:
  with pytest.raises(RuntimeError, match='stop'), checkpoint.open_manager(tmp_path / 'c') as manager:
    checkpoint.save(manager, make_state(4), {}, {})
    raise RuntimeError('stop')
  with checkpoint.open_manager(tmp_path / 'c') as manager:
    assert_equal(restore(manager)[0], make_state(4))


@pytest.mark.parametrize('options', [{'keep_latest': 0}, {'keep_best': -1}])
def test_bad_input(tmp_path, options: dict) -> None:
  with pytest.raises(InputError, match='checkpoint.keep_.*: expected'), checkpoint.open_manager(tmp_path, **options):
    pass


def digest(state: TrainState) -> str:
  content = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(sharding.gather(state))]
  return hashlib.sha256(b''.join(content)).hexdigest()


@pytest.mark.parametrize('shard_optimizer', [False, True])
def test_eight_devices_then_one_then_eight(tmp_path, shard_optimizer: bool) -> None:
  counts, digests, actual = (8, 1, 8), [], make_state(7).replace(ema={'params': jnp.arange(24.0).reshape(3, 8)})
  for number, count in enumerate(counts):
    mesh = jax.sharding.Mesh(jax.devices()[:count], ('data',))
    places = shardings(actual, mesh, shard_optimizer=shard_optimizer)
    if number == 0:
      actual = jax.device_put(actual, places)
    else:
      with checkpoint.open_manager(tmp_path / f'{number - 1}') as manager:
        actual, _ = checkpoint.restore(manager, jax.eval_shape(lambda tree: tree, actual), places)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(actual)} == {count}
    assert actual.opt_state[0].sharding.is_fully_replicated == (count == 1 or not shard_optimizer)
    digests.append(digest(actual))
    with checkpoint.open_manager(tmp_path / f'{number}') as manager:
      checkpoint.save(manager, actual, {}, {})
  assert len(set(digests)) == 1


ODD_NAMES = [
  'a [1]',
  '[!a]',
  '50%',
  '%41',
  'C# code',
  'a?b',
  'a|b',
  'a*b',
  '{x}',
  "it's",
  'ü 日本',
  'a:b',
  '~x',
  '-x',
  '$HOME',
  ' ',
]


@pytest.mark.parametrize('name', ODD_NAMES)
def test_a_path_is_no_pattern_and_no_url(tmp_path, name: str) -> None:
  directory = tmp_path / name / name / 'c'
  for step in (1, 2):
    with checkpoint.open_manager(directory) as manager:
      checkpoint.save(manager, make_state(step), {}, {})
  with checkpoint.open_manager(directory) as manager:
    assert_equal(restore(manager)[0], make_state(2))
  assert steps.list_steps(directory) == [2]
  assert reader.find_damage(directory / '2') is None


@pytest.mark.parametrize('name', ['a\\b', 'caf\udce9', 'gs:'])
def test_a_path_under_which_nothing_can_be_saved_is_refused(tmp_path, name: str) -> None:
  with (
    pytest.raises(InputError, match='no checkpoint can be saved under this path'),
    checkpoint.open_manager(tmp_path / name),
  ):
    pass
  assert not [*tmp_path.iterdir()]


def test_a_directory_is_local_whatever_its_name() -> None:
  assert [str(Directory(path)) for path in ('/gs/x', '/s3/x', '/x')] == ['/gs/x', '/s3/x', '/x']
  assert [str(Directory(path) / 'y') for path in ('/gs/x', '/x')] == ['/gs/x/y', '/x/y']


def flip_when_committed(monkeypatch, step: int) -> None:
  """Have a bit of each data file of the checkpoint of ``step`` flipped between its commit and the look at it."""
  difference = reader.difference

  def flip_bit(path, known):
    if path.name == str(step):
      for victim in (path / 'state').rglob('d/*'):  # of two copies of an array only one is read
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    return difference(path, known)

  monkeypatch.setattr(reader, 'difference', flip_bit)


@pytest.mark.parametrize('where', ['commit', 'next save', 'end'])
@pytest.mark.parametrize('same_step', [False, True])
def test_what_cannot_be_read_back_was_not_saved(tmp_path, monkeypatch, where: str, same_step: bool) -> None:
  bad = 1 if same_step else 2
  with checkpoint.open_manager(tmp_path / 'c') as manager:
    checkpoint.save(manager, make_state(1), {'of': 'before'}, {})
  flip_when_committed(monkeypatch, bad)
  match = 'it was written, and is not what was to be saved: .*; saved are the steps: 1;'
  with pytest.raises(InputError, match=match), checkpoint.open_manager(tmp_path / 'c') as manager:
    checkpoint.save(manager, make_state(bad), {'of': 'after'}, {}, commit=where == 'commit')
    if where == 'next save':
      checkpoint.save(manager, make_state(3), {}, {})
      pytest.fail('went on')
  monkeypatch.undo()
  assert (tmp_path / f'c/{bad}.bad').is_dir()
  with checkpoint.open_manager(tmp_path / 'c') as manager:
    state, progress = restore(manager)
  assert_equal(state, make_state(1))
  assert progress == {'of': 'before'}


def test_what_orbax_did_not_merge_was_not_saved(tmp_path, monkeypatch) -> None:
  monkeypatch.delattr(Directory, 'glob')  # as Orbax looks for its parts by itself
  match = 'is not what was to be saved: leaf .*saved are the steps: none'
  with pytest.raises(InputError, match=match), checkpoint.open_manager(tmp_path / 'a [1]') as manager:
    checkpoint.save(manager, make_state(1), {}, {}, commit=True)


def test_a_kill_before_the_look_falls_back_on_what_made_way(tmp_path, capfd) -> None:
  with checkpoint.open_manager(tmp_path / 'c', keep_latest=2) as manager:
    for step in (1, 2):
      checkpoint.save(manager, make_state(step), {}, {})
  (tmp_path / 'c' / checkpoint.DELETED).mkdir()
  (tmp_path / 'c/1').rename(tmp_path / 'c' / checkpoint.DELETED / '1')
  (tmp_path / 'c/2/state/manifest.ocdbt').unlink()
  with checkpoint.open_manager(tmp_path / 'c') as manager:
    assert_equal(restore(manager)[0], make_state(1))
  assert 'checkpoint 2 is damaged' in capfd.readouterr().err


def test_no_room_for_one_checkpoint_is_told_before_the_first_step(tmp_path, monkeypatch) -> None:
  template = jax.eval_shape(lambda: make_state(0))
  check_room(tmp_path, template)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10, 10, 1000))
  with pytest.raises(InputError, match=r'the disk is full: .*a checkpoint of this run needs 1\.[01] MB'):
    check_room(tmp_path, template)


@pytest.mark.parametrize('keep_latest', [1, 2])
def test_readers_beside_a_training_are_never_wrong(tmp_path, keep_latest: int) -> None:
  directory, over, looks = tmp_path / 'checkpoints', threading.Event(), 0

  def train() -> None:
    with checkpoint.open_manager(directory, keep_latest=keep_latest) as manager:
      for step in range(2, 24):
        for _ in range(1 + (step % 3 == 0)):  # now and then the same step again, as behind a signal
          checkpoint.save(manager, make_state(step), {}, {}, commit=True)
    over.set()

  with checkpoint.open_manager(directory) as manager:
    checkpoint.save(manager, make_state(1), {}, {})
  known = {step: np.asarray(make_state(step).params['a']) for step in range(1, 40)}
  thread = threading.Thread(target=train)
  thread.start()
  try:
    while not over.is_set():
      step, saved = workdir.read_step(tmp_path, None)
      np.testing.assert_array_equal(saved.state['params/a'], known[step])
      assert not [row for row in run_checks.check_checkpoints(directory, None) if row.verdict != 'ok']
      looks += 2
  finally:
    thread.join()
  assert looks >= 10


@pytest.mark.parametrize(('number', 'words'), [(errno.EROFS, 'Read-only file system'), (errno.EIO, 'Input/output')])
def test_a_disk_that_cannot_be_written_any_more_is_one_line(tmp_path, monkeypatch, number: int, words: str) -> None:
  def refuse(*_: object, **__: object) -> None:
    raise ValueError('of Orbax') from OSError(number, os.strerror(number))

  with checkpoint.open_manager(tmp_path / 'c') as manager:
    checkpoint.save(manager, make_state(1), {}, {}, commit=True)
    with (
      monkeypatch.context() as patch,
      pytest.raises(InputError, match=rf'cannot write: .*{words}.*steps: 1; make it'),
    ):
      patch.setattr(ocp.CheckpointManager, 'save', refuse)
      checkpoint.save(manager, make_state(2), {}, {})


def test_the_disk_of_a_checkpoint_is_not_blamed_for_another(tmp_path) -> None:
  with pytest.raises(OSError, match='No space'), checkpoint.open_manager(tmp_path / 'c'):
    raise OSError(errno.ENOSPC, 'No space left on device', '/elsewhere')
