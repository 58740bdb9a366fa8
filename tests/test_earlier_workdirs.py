"""Workdirs of an earlier jaxres go on: what was restored is what was saved, and every resume ends with the same bits.

tests/fixtures holds two, of commit ed8fc84, and their data: one with validation and a moving average that a signal
stopped within an epoch, one with a stage that thaws and one rollback.
"""

import json
import pathlib
import tarfile

import pytest

from jaxres import workdir as workdir_lib
from jaxres.checkpoint import digests
from jaxres.train import loop
from tests.helpers import ROOT

FIXTURES = ROOT / 'tests/fixtures'
STOPPED = {'stopped_mid_epoch': 7, 'unfrozen_rolled_back': 11}


def unpack(name: str, to: pathlib.Path) -> tuple[dict, pathlib.Path]:
  """Return the config, with its data where it is here, and the workdir."""
  with tarfile.open(FIXTURES / f'{name}.tar.xz') as archive:
    archive.extractall(to, filter='data')
  config = json.loads((to / name / 'config.json').read_text())
  config['data']['path'] = str(FIXTURES / 'data.npz')
  return config, to / name


def digest(run: pathlib.Path) -> tuple[int, str]:
  step, saved = workdir_lib.read_step(run, None)
  assert saved.verified  # every leaf has the digest that was stored beside it
  return step, digests.state_digest(saved.digests, saved.progress)


@pytest.mark.parametrize('name', STOPPED)
def test_an_earlier_workdir_continues_and_ends_alike(name: str, tmp_path, tiny: str, stages: str) -> None:
  ends = []
  for attempt in ('first', 'second'):
    config, run = unpack(name, tmp_path / attempt)
    assert digest(run)[0] == STOPPED[name]
    assert workdir_lib.split_rule(run) == 1
    metrics = loop.train_and_evaluate(config, run)
    assert 0 <= metrics['val/top1'] <= 1
    ends.append(digest(run))
  assert ends[0][0] == 18
  assert ends[0] == ends[1]


def test_a_rollback_of_before_is_remembered(tmp_path) -> None:
  _, run = unpack('unfrozen_rolled_back', tmp_path)
  assert workdir_lib.read_step(run, None)[1].progress['rollbacks'] == 1
