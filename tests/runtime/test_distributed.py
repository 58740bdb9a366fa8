"""Two real processes of four devices each, beside one of eight."""

import contextlib
import importlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import pytest

from jaxres.data import sampler
from jaxres.data.resident import Resident
from jaxres.data.types import Arrays
from jaxres.errors import InputError
from jaxres.runtime import distributed, sharding
from jaxres.runtime.lock import LOCK
from jaxres.train import loop
from tests.faults import inject
from tests.helpers import ROOT, merge, rows
from tests.train.runs import final_state

pytestmark = [pytest.mark.eight_devices, pytest.mark.curves]

ENVIRONMENT = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'PYTHONPATH': str(ROOT)}


def free_port() -> int:
  with contextlib.closing(socket.socket()) as sock:
    sock.bind(('localhost', 0))
    return sock.getsockname()[1]


def start(path: pathlib.Path, config: dict, workdir: pathlib.Path, **work: int | str) -> list[subprocess.Popen]:
  """Start the two processes of a run."""
  fields = {'config': config, 'workdir': str(workdir), 'coordinator': f'localhost:{free_port()}', 'processes': 2}
  path.write_text(json.dumps(fields | work))
  command = [sys.executable, str(ROOT / 'tests/worker.py'), str(path)]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  return [subprocess.Popen([*command, str(process)], env=ENVIRONMENT, cwd=ROOT, **pipes) for process in range(2)]


def wait_for_end(processes: Sequence[subprocess.Popen], seconds: float = 240) -> list[tuple[int, str, str]]:
  """Return status, standard output and standard error of each."""
  try:
    return [(p.returncode, *actual) for p in processes for actual in [p.communicate(timeout=seconds)]]
  finally:
    for process in processes:
      process.kill()


def assert_close(ours: pathlib.Path, theirs: pathlib.Path) -> None:
  """Compare every leaf of the last checkpoints, and every row of the logs."""
  a, b = final_state(ours), final_state(theirs)
  assert a.keys() == b.keys()
  assert sum('ema' in name for name in a) > 10
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=2e-3, atol=2e-4, err_msg=name)
  for one, other in zip(rows(ours), rows(theirs), strict=True):
    assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.fixture
def job(config: dict) -> dict:
  """A config of 4 epochs of 6 steps, with an evaluation behind each, of sizes that nothing divides."""
  fields = {'ema': 0.9, 'shard_optimizer': True, 'eval_batch_size': 24}
  return merge(config, data={'pipeline': 'stream', 'val': 0.1, 'batch_size': 16}, train=fields)


@pytest.fixture
def alone(job: dict, tmp_path: pathlib.Path) -> pathlib.Path:
  """The workdir of the same training by one process, with all data and all state on each of its 8 devices."""
  plain = merge(job, data={'pipeline': 'resident'}, train={'shard_optimizer': False})
  loop.train_and_evaluate(plain, tmp_path / 'alone')
  return tmp_path / 'alone'


def test_two_processes_train_as_one_does(job: dict, alone: pathlib.Path, tmp_path: pathlib.Path) -> None:
  actual = wait_for_end(start(tmp_path / 'work.json', job, tmp_path / 'run'))
  assert [status for status, _, _ in actual] == [0, 0], actual
  assert_close(tmp_path / 'run', alone)
  (_, first, _), (_, second, _) = actual
  assert '8 x cpu of 2 processes' in first
  assert not re.search('jaxres|epoch|train|metric', second)  # gloo's threads write there, in the midst of lines
  names = sorted(path.name.split('.out')[0] for path in (tmp_path / 'run').iterdir())
  assert names == sorted(path.name.split('.out')[0] for path in alone.iterdir())
  shares = [json.loads((tmp_path / f'read{process}.json').read_text()) for process in range(2)]
  steps = [[*a, *b] for a, b in zip(*(share['train'] for share in shares), strict=True)]
  size = 96 - 10
  assert {len(part) for share in shares for part in share['train']} == {8}
  assert steps == [sampler.train_indices(0, step, 16, size).tolist() for step in range(len(steps))]
  batches = [[*a, *b] for a, b in zip(*(share['eval'] for share in shares), strict=True)]
  once = [*range(10), *range(40)]  # the validation split, then the test split
  assert list(itertools.chain(*batches)) == once * 2 * 4  # of the weights and of their average, after each epoch


def test_where_one_process_dies_the_other_ends_and_the_run_resumes(
  job: dict, alone: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  processes = start(tmp_path / 'work.json', job, tmp_path / 'run', victim=1, evaluation=3)
  assert processes[1].wait(timeout=240) == -signal.SIGKILL
  survivor, victim = wait_for_end(processes, seconds=distributed.HEARTBEAT_SECONDS + 30)
  assert survivor[0] not in (0, None)
  assert 'another' in survivor[2]
  assert 'Traceback' not in survivor[2]
  assert 'error' not in victim[2]
  saved = sorted(int(path.name) for path in (tmp_path / 'run/checkpoints').iterdir() if path.name.isdecimal())
  assert saved
  assert saved[-1] < 22
  loop.train_and_evaluate(job, tmp_path / 'run')  # as one process
  assert_close(tmp_path / 'run', alone)


def descriptors(process: subprocess.Popen) -> list[str]:
  """Return the files that a process has open."""
  return [os.readlink(link) for link in pathlib.Path(f'/proc/{process.pid}/fd').iterdir() if link.is_symlink()]


@pytest.mark.skipif(not pathlib.Path('/proc/self/fd').is_dir(), reason='no /proc')
def test_process_0_alone_locks_and_a_second_pair_is_refused(job: dict, tmp_path: pathlib.Path) -> None:
  run, lock = tmp_path / 'run', str(tmp_path / 'run' / LOCK)
  first = start(tmp_path / 'first.json', job, run, evaluation=2, gate=str(tmp_path / 'gate'))
  try:
    until(lambda: any(run.glob('checkpoints/*/commit_success.txt')) or first[0].poll() is not None)
    until(lambda: has_settled(run))
    assert [lock in descriptors(process) for process in first] == [True, False]
    before = everything(run)
    assert json.loads(before[LOCK])['pid'] == first[0].pid
    second = wait_for_end(start(tmp_path / 'second.json', job, run))
    assert everything(run) == before
    assert [status for status, _, _ in second] == [2, 2]
    lines = [[line for line in output.splitlines() if line.startswith('error')] for _, _, output in second]
    holder = f'process {first[0].pid} on host {socket.gethostname()}'
    fix = 'wait for its end, or use another --workdir'
    assert lines[0] == [f'error: --workdir: {run} is in use: {holder} trains there; {fix}']
    assert lines[1] == [f'error: --workdir: {run}: process 0 cannot train there, and says why']
    assert not any('Traceback' in output for _, _, output in second)
    (tmp_path / 'gate').touch()
  finally:
    actual = wait_for_end(first)
  assert [status for status, _, _ in actual] == [0, 0], actual


def until(condition: Callable[[], bool], seconds: float = 240) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.1)


def has_settled(run: pathlib.Path) -> bool:
  """Return whether nothing was written there for two seconds."""
  before = everything(run)
  time.sleep(2)
  return everything(run) == before


def everything(run: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(run)): path.read_bytes() for path in inject.files(run)}


def test_a_signal_to_one_process_stops_both_behind_the_same_step(job: dict, tmp_path: pathlib.Path) -> None:
  """Also where a call takes two steps: what JAX counts are calls."""
  job = merge(job, train={'epochs': 60, 'scan_steps': 2, 'log_every_steps': 1000})
  actual = wait_for_end(start(tmp_path / 'work.json', job, tmp_path / 'run', asked=1, step=3))
  assert [status for status, _, _ in actual] == [143, 143], actual
  saved = max(int(path.name) for path in (tmp_path / 'run/checkpoints').iterdir() if path.name.isdecimal())
  assert 3 < saved < 320
  for _, _, output in actual:
    assert f'SIGTERM: step {saved} is saved; the same command continues the run' in output


def test_the_arguments() -> None:
  actual = distributed.initialize_arguments('node1:1234', 4, 3, {})
  assert actual == {
    'coordinator_address': 'node1:1234',
    'num_processes': 4,
    'process_id': 3,
    'cluster_detection_method': 'deactivate',
  }
  assert distributed.initialize_arguments(None, None, None, {}) is None
  assert distributed.initialize_arguments(None, 1, None, {'SLURM_STEP_NUM_TASKS': '4'}) is None


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ((None, 2, 0), '--coordinator: it is missing; several processes take --coordinator HOST:PORT'),
    (('a:1', None, 0), '--num_processes: it is missing'),
    (('a:1', 2, None), '--process_id: it is missing'),
    (('a', 2, 0), "--coordinator: expected HOST:PORT of process 0, such as node1:1234, found 'a'"),
    (('a:1', 2, 2), '--process_id: expected 0 to 1, found 2'),
  ],
)
def test_bad_arguments(given: tuple, message: str) -> None:
  with pytest.raises(InputError, match=message), distributed.join(*given):
    pass


SLURM = {
  'SLURM_JOB_ID': '70007',
  'SLURM_STEP_NODELIST': 'gpu[07-08,11]',
  'SLURM_STEP_NUM_TASKS': '24',
  'SLURM_NTASKS': '24',
  'SLURM_PROCID': '9',
  'SLURM_LOCALID': '1',
  'SLURM_STEP_NUM_NODES': '3',
}
OMPI = {
  'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
  'OMPI_COMM_WORLD_SIZE': '4',
  'OMPI_COMM_WORLD_RANK': '3',
  'OMPI_COMM_WORLD_LOCAL_RANK': '1',
}


@pytest.mark.parametrize(
  ('environ', 'method', 'expected'),
  [(SLURM, 'slurm', ('gpu07:61895', 24, 9, [1])), (OMPI, 'ompi', ('10.96.0.1:64910', 4, 3, [1]))],
  ids=['slurm', 'open mpi'],
)
def test_what_a_launcher_says_is_what_jax_joins(monkeypatch, environ: dict, method: str, expected: tuple) -> None:
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  assert distributed.initialize_arguments(None, None, None, os.environ) == {'cluster_detection_method': method}
  clusters = importlib.import_module('jax._src.clusters').ClusterEnv  # what jax.distributed.initialize asks
  actual = clusters.auto_detect_unset_distributed_params(None, None, None, None, method, None)
  assert actual[1:] == expected[1:]
  assert actual[0].rpartition(':')[0] == expected[0].rpartition(':')[0]


def test_launchers_that_say_too_little(monkeypatch) -> None:
  with pytest.raises(InputError, match='Open MPI: it does not say where process 0 is; give --coordinator HOST:PORT'):
    distributed.detect_launcher({'OMPI_COMM_WORLD_SIZE': '2'})
  pod = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'}
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r'install jaxres\[k8s\], or give --coordinator'):
    distributed.detect_launcher(pod)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  assert distributed.detect_launcher(pod) == 'k8s'
  assert distributed.detect_launcher({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}) is None
  assert distributed.detect_launcher({'SLURM_STEP_NUM_TASKS': '1', 'OMPI_COMM_WORLD_SIZE': '1'}) is None


def test_a_process_whose_others_do_not_come_says_so() -> None:
  code = f"""
from jaxres import errors
from jaxres.runtime import distributed
distributed.JOIN_SECONDS = 2
with errors.one_line(), distributed.join('localhost:{free_port()}', 2, 0):
  print('joined')
"""
  done = subprocess.run([sys.executable, '-c', code], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr.startswith('error: --coordinator: not all processes have come within 2 s; start every process')
  assert done.stderr.count('\n') == 1


def test_a_launcher_that_says_half() -> None:
  imports = 'from jaxres import errors\nfrom jaxres.runtime import distributed\n'
  code = imports + 'with errors.one_line(), distributed.join():\n  print()'
  environment = ENVIRONMENT | {'SLURM_STEP_NUM_TASKS': '2', 'SLURM_JOB_ID': '1'}
  done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=120)
  assert done.returncode == 2
  last = done.stderr.splitlines()[-1]  # JAX has warned that it does not know where it is
  assert last.startswith("error: the launcher: it does not say 'SLURM_STEP_NODELIST'; give --coordinator HOST:PORT")
  assert 'Traceback' not in done.stderr


def test_one_process_has_all_rows() -> None:
  mesh = sharding.make_mesh()
  assert sharding.local_rows(24, mesh) == sharding.local_rows(24, None) == slice(0, 24)
  one = jax.sharding.Mesh(jax.devices()[:1], ('data',))
  assert sharding.local_rows(24, one) == slice(0, 24)
  pipeline = Resident(Arrays(np.zeros((30, 2, 2, 1), np.uint8), np.zeros(30, np.int32)), batch_size=8, seed=0)
  pipeline.place(mesh)
  assert len(next(pipeline.step_inputs(0, 1))['index']) == 8
