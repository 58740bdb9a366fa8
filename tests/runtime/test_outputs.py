"""What is printed to nobody, to a full disk or to ASCII ends no training, and a tool quietly."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from jaxres.runtime import outputs
outputs.guard(needed=sys.argv[1] == 'tool')
try:
  for number in range(20_000):
    print(f'row {number}: \\u65e5\\u672c caf\\udce9')
finally:
  sys.stdout.flush()
open(sys.argv[2], 'w').write('at the end')
"""
LINE = 'the output cannot be written any more: {}; the training goes on without it\n'


def run(kind: str, file: pathlib.Path, redirect: str, **environment: str) -> tuple[int, str]:
  """Return the status of the program and what it says on standard error."""
  shell = f'set -o pipefail; "$0" -c "$1" "$2" "$3" {redirect}'
  words = [sys.executable, PROGRAM, kind, str(file)]
  done = subprocess.run(
    ['bash', '-c', shell, *words], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
  )
  return done.returncode, done.stderr


@pytest.mark.parametrize(
  ('redirect', 'words'),
  [('| head -1', 'Broken pipe'), ('> /dev/full', 'No space left on device'), ('| true', 'Broken pipe')],
)
def test_a_training_goes_on_without_its_output(tmp_path, redirect: str, words: str) -> None:
  assert run('training', tmp_path / 'file', redirect) == (0, LINE.format(words))
  assert (tmp_path / 'file').read_text() == 'at the end'


@pytest.mark.parametrize('redirect', ['>&-', '>&- 2>&-', '<&- >&- 2>&-', '> /dev/full 2>&1', '2>&- | head -1'])
@pytest.mark.parametrize('kind', ['training', 'tool'])
def test_closed_descriptors_are_no_files(tmp_path, redirect: str, kind: str) -> None:
  status, output = run(kind, tmp_path / 'file', redirect)
  written = kind == 'training' or ('&-' in redirect.split()[0] and '|' not in redirect)
  assert output == ''
  assert (status == 0) == written
  assert (tmp_path / 'file').exists() == written
  if written:
    assert (tmp_path / 'file').read_text() == 'at the end'  # and no row


@pytest.mark.parametrize(
  ('redirect', 'status', 'words'),
  [('| head -1', 141, ''), ('> /dev/full', 1, 'error: the output cannot be written: No space left on device\n')],
)
def test_a_tool_ends_with_one_line_at_most(tmp_path, redirect: str, status: int, words: str) -> None:
  assert run('tool', tmp_path / 'file', redirect) == (status, words)
  assert not (tmp_path / 'file').exists()


@pytest.mark.parametrize(
  'environment', [{'PYTHONIOENCODING': 'ascii'}, {'LC_ALL': 'C'}, {'PYTHONIOENCODING': 'latin-1'}]
)
@pytest.mark.parametrize('kind', ['training', 'tool'])
def test_every_name_can_be_printed(tmp_path, kind: str, environment: dict) -> None:
  assert run(kind, tmp_path / 'file', f'> {tmp_path}/out', **environment) == (0, '')
  last = (tmp_path / 'out').read_bytes().splitlines()[-1]
  names = (b'\\u65e5\\u672c caf\\udce9', '日本 caf'.encode() + b'\\udce9')
  assert last in [b'row 19999: ' + name for name in names]
