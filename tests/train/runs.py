"""Trained runs, what is read of them, and states to save: for the tests of all that looks at a run."""

import os
import pathlib
import signal
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from jaxres import evaluate
from jaxres import workdir as workdir_lib
from jaxres.checkpoint import digests as digests_lib
from jaxres.runtime import signals
from jaxres.state import TrainState
from jaxres.train import loop
from jaxres.train.meter import Meter
from tests.helpers import CLASS_NAMES, make_arrays, merge

KEY = jax.random.key(0)
PROGRESS = {'last': {'test/top1': 0.5}, 'best': {}, 'stale': 1}


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Return every leaf of the last checkpoint, whatever devices it was saved by."""
  path = max((workdir / 'checkpoints').glob('[0-9]*'), key=lambda path: int(path.name)) / 'state'
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with ocp.StandardCheckpointer() as reader:
    tree = reader.metadata(path).item_metadata.tree
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)
    saved = reader.restore(path, template)
  return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(saved)}


def digest_of(workdir: pathlib.Path) -> str:
  _, saved = workdir_lib.read_step(workdir, None)
  assert saved.verified
  return digests_lib.state_digest(saved.digests, saved.progress)


def stop(config: dict, workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch, step: int, *, evaluating: bool) -> str:
  """Train, with a SIGTERM in step ``step`` or in the evaluation behind it; return what is printed of it."""
  add, evaluate_state = Meter.add, evaluate.evaluate_state

  def note(self, number, sums, *, last):
    add(self, number, sums, last=last)
    if number == step and not evaluating:
      os.kill(os.getpid(), signal.SIGTERM)

  def broken(eval_steps, state, *args):
    if evaluating and int(state.step) == step:
      os.kill(os.getpid(), signal.SIGTERM)
      assert evaluate_state(eval_steps, state, *args) is None  # it does not go on
      return None
    return evaluate_state(eval_steps, state, *args)

  before = signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch:
    patch.setattr(Meter, 'add', note)
    patch.setattr(evaluate, 'evaluate_state', broken)
    with pytest.raises(signals.RunPreemptedError) as stopped:
      loop.train_and_evaluate(config, workdir)
  assert stopped.value.status == 143
  assert signal.getsignal(signal.SIGTERM) == before
  return str(stopped.value)


def interrupt_training(config: dict, workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Train until the third evaluation, which is broken off as by Ctrl-C."""
  evaluations, real = [], evaluate.evaluate_state

  def interrupt(*args):
    evaluations.append(1)
    if len(evaluations) == 3:
      raise KeyboardInterrupt
    return real(*args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(evaluate, 'evaluate_state', interrupt)
    loop.train_and_evaluate(config, workdir)


def make_run(config: dict, tmp_path: pathlib.Path, npz: Callable[..., str], **changes: object) -> str:
  """Train a little on arrays whose test images are files too: ``images/00.png`` ..."""
  content = make_arrays(**changes)
  loop.train_and_evaluate(merge(config, data={'path': npz(**content, class_names=CLASS_NAMES)}), tmp_path / 'run')
  (tmp_path / 'images').mkdir()
  for i, image in enumerate(content['test_x']):
    Image.fromarray(image.squeeze()).save(tmp_path / f'images/{i:02}.png')
  return str(tmp_path / 'run')


def make_train_state(step: int) -> TrainState:
  rng = np.random.default_rng(step)
  leaf = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return TrainState(
    jnp.int32(step), {'a': leaf(64, 32)}, {'b': leaf(8)}, (leaf(64, 32), jnp.int32(step)), {'c': leaf(9)}
  )


def stack(*feeds: dict) -> dict:
  """Return the feeds of several steps, stacked."""
  return jax.tree.map(lambda *arrays: np.stack(arrays), *feeds)
