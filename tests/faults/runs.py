"""Runs of main.py that are to be broken."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
from typing import Any

from jaxres.checkpoint import digests, reader, steps
from tests.faults.table import ROOT

TINY = 'tests/faults/tiny.py'
LENGTH = '--config.train.epochs=40'  # 320 steps: some seconds behind the compilation
Row = dict[str, Any]


def environment(scratch: pathlib.Path, **more: str) -> dict[str, str]:
  kept = {name: value for name, value in os.environ.items() if name not in ('XLA_FLAGS', 'JAXRES_POISON')}
  return kept | {'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(scratch / 'cache'), 'JAX_PLATFORMS': 'cpu'} | more


def start(
  scratch: pathlib.Path, workdir: pathlib.Path, *words: str, config: str = TINY, **more: str
) -> subprocess.Popen:
  """Start a run of main.py."""
  command = [sys.executable, 'main.py', '--config', config, '--workdir', str(workdir), *words]
  pipes = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE}
  return subprocess.Popen(command, cwd=ROOT, env=environment(scratch, **more), text=True, **pipes)


def tool(scratch: pathlib.Path, *words: object) -> tuple[int, str]:
  """Return the status and the errors of a tool of ``jaxres``."""
  command = [sys.executable, '-m', 'jaxres', *map(str, words)]
  done = subprocess.run(command, cwd=ROOT, env=environment(scratch), text=True, capture_output=True)
  return done.returncode, done.stderr.strip()


def finish(process: subprocess.Popen) -> tuple[int, str]:
  """Wait for a run; return its status and its errors, without Orbax's warnings of slowness."""
  _, output = process.communicate(timeout=1200)
  lines = [line for line in output.splitlines() if 'Waiting for previous save' not in line]
  return process.returncode, '\n'.join(lines)


def newest(workdir: pathlib.Path) -> int:
  return max(steps.list_steps(workdir / 'checkpoints'), default=0)


def damage(workdir: pathlib.Path, step: int) -> str | None:
  return reader.find_damage(workdir / 'checkpoints' / str(step))


def digest(workdir: pathlib.Path) -> str:
  saved = reader.read(workdir / 'checkpoints' / str(newest(workdir)))
  return f'{newest(workdir)} {digests.state_digest(saved.digests, saved.progress)}'


def start_pair(scratch: pathlib.Path, workdir: pathlib.Path) -> list[subprocess.Popen]:
  """Start a run of two processes of two devices each."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  words = [LENGTH, f'--coordinator={address}', '--num_processes=2']
  flags = '--xla_force_host_platform_device_count=2'
  return [start(scratch, workdir, *words, f'--process_id={process}', XLA_FLAGS=flags) for process in range(2)]


def run_uninterrupted(scratch: pathlib.Path, processes: int = 1) -> str:
  """Return the digest that a run of one process, or two, ends with that nothing breaks; trained once."""
  workdir = scratch / ('run_uninterrupted' if processes == 1 else 'uninterrupted_pair')
  kept = workdir.with_suffix('.digest')
  if not kept.exists():
    shutil.rmtree(workdir, ignore_errors=True)
    started = [start(scratch, workdir, LENGTH)] if processes == 1 else start_pair(scratch, workdir)
    for status, output in map(finish, started):
      assert status == 0, output
    kept.write_text(digest(workdir))
  return kept.read_text()
