"""The campaign that breaks real runs: a trial of the cheapest kind in every run of the tests, the others when asked."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.faults import campaign, table
from tests.helpers import ROOT


def run(kind: str, trials: int, directory: pathlib.Path) -> list[dict]:
  out = directory / 'results.jsonl'
  words = [f'--{kind}={trials}', f'--out={out}', f'--scratch={directory / "scratch"}']
  done = subprocess.run([sys.executable, 'tests/faults/campaign.py', *words], cwd=ROOT, capture_output=True, text=True)
  actual = [json.loads(line) for line in out.read_text().splitlines()]
  assert (done.returncode, [row for row in actual if not row['ok']]) == (0, []), done.stderr
  return actual


def test_the_campaign_goes_on_where_it_was(tmp_path) -> None:
  assert [row['trial'] for row in run('configs', 1, tmp_path)] == [0]
  assert [row['trial'] for row in run('configs', 2, tmp_path)] == [0, 1]


def test_odd_paths_in_every_run(tmp_path) -> None:
  assert len(run('odd_paths', 6, tmp_path)) == 6


@pytest.mark.slow
@pytest.mark.parametrize('kind', campaign.TRIALS)
def test_trials(kind: str, tmp_path) -> None:
  if kind == 'memory' and pathlib.Path('/proc/sys/vm/overcommit_memory').read_text().strip() == '1':
    pytest.skip('the system refuses no memory')
  if kind in ('full_disks', 'late_full_disks') and os.geteuid() != 0:
    pytest.skip('only root can mount a small disk')
  assert len(run(kind, 3, tmp_path)) == 3


def test_the_page_is_what_the_results_say() -> None:
  assert table.main(['--check']) == 0


def test_the_table() -> None:
  rows = [
    {'kind': 'kills', 'trial': 0, 'ok': True, 'status': -9},
    {'kind': 'kills', 'trial': 1, 'ok': False, 'status': 0, 'ends_alike': False},
    {'kind': 'nans', 'trial': 0, 'ok': True},
  ]
  lines = table.table(rows).splitlines()
  assert lines[2].endswith('| 2 | 1 |  | 1 killed; 0 of 1 runs ended bit-identical |')
  assert lines[3].endswith('| 1 | 0 |  |  |')
  many = [{'kind': 'nans', 'trial': at, 'ok': True} for at in range(60)]
  assert table.table(many).splitlines()[2].endswith('| 60 | 0 | 5.0 % |  |')
