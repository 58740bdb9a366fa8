"""What .ci/run is made of."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT

CI = (ROOT / '.ci/run').read_text()
RUNS = 'def test_a():\n  pass\n'
SKIPPED = 'import pytest\n\ndef test_b():\n  pytest.skip()\n'
SKIPPED_COMPLETELY = 'import pytest\n\npytest.importorskip("no_such_module")\n\ndef test_c():\n  pass\n'
FAILS = 'def test_d():\n  assert False\n'


@pytest.mark.parametrize(
  ('files', 'missing'),
  [
    ({'test_a.py': RUNS}, None),
    ({'test_a.py': RUNS + SKIPPED}, None),
    ({'test_a.py': RUNS, 'test_b.py': SKIPPED}, 'tests.test_b'),
    ({'test_a.py': RUNS, 'deep/test_c.py': SKIPPED_COMPLETELY}, 'tests.deep.test_c'),
    ({'test_a.py': RUNS, 'test_d.py': FAILS}, 'tests.test_d'),
  ],
  ids=lambda value: '-'.join(value) if isinstance(value, dict) else value,
)
def test_a_module_that_was_skipped_as_a_complete_is_an_error(
  tmp_path: pathlib.Path, files: dict[str, str], missing: str | None
) -> None:
  (tmp_path / 'pytest.ini').write_text('[pytest]\n')
  for name, content in files.items():
    (tmp_path / 'tests' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'tests' / name).write_text(content)
  words = ['-q', '-p', 'no:cacheprovider', '--junitxml=report.xml', 'tests']
  run = lambda *command: subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
  assert run('-m', 'pytest', *words).returncode in (0, 1)
  done = run(str(ROOT / '.ci/ran.py'), 'report.xml', 'tests')
  assert done.returncode == (missing is not None)
  assert done.stderr == (f'error: no test ran in {missing}\n' if missing else '')


def test_a_module_that_is_not_there_is_an_error(tmp_path: pathlib.Path) -> None:
  (tmp_path / 'report.xml').write_text('<testsuite/>')
  words = [sys.executable, str(ROOT / '.ci/ran.py'), 'report.xml', 'tests/test_none.py']
  done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (1, 'error: no test ran in tests.test_none\n')


def call(function: str, *words: str, **environment: str) -> str:
  """Return what a function of .ci/run prints, in the directory of the project."""
  (text,) = re.findall(rf'^{function}\(\) (?:\{{[^\n]*\}}|\{{\n.*?^\}})$', CI, re.MULTILINE | re.DOTALL)
  script = f'set -euo pipefail\n{text}\nif found=$({function} "$@"); then echo "$found"; fi'
  command = [shutil.which('bash') or 'bash', '-c', script, 'run', *words]
  done = subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=True)
  return done.stdout.strip()


def second_python(path: pathlib.Path, pyenv: pathlib.Path) -> str:
  return call('second_python', PATH=str(path), PYENV_ROOT=str(pyenv))


@pytest.mark.parametrize(('word', 'runs'), [(r'main\.py', 'python main.py --config'), ('pytest', 'python -m pytest')])
def test_what_it_runs_is_one_command_of_the_readme(word: str, runs: str) -> None:
  actual = call('command_of_readme', word)
  assert actual in (ROOT / 'README.md').read_text().splitlines()  # so it is one line
  assert actual.startswith('python3 -m venv ')
  assert runs in actual


def make_python(file: pathlib.Path, script: str) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(f'#!/bin/sh\n{script}\n')
  file.chmod(0o755)


def test_the_second_python_is_the_newest_other_that_works(tmp_path: pathlib.Path) -> None:
  path, pyenv = tmp_path / 'bin', tmp_path / 'pyenv'
  make_python(path / 'python3', 'echo 3.11')
  make_python(path / 'python3.11', 'exit 0')
  for version in ('3.12', '3.13'):
    make_python(path / f'python{version}', 'exit 127')  # as pyenv's shims of what it does not have
  assert second_python(path, pyenv) == ''
  make_python(path / 'python3.12', 'exit 0')
  assert second_python(path, pyenv) == str(path / 'python3.12')
  make_python(pyenv / 'versions/3.13.0/bin/python3', 'exit 0')
  assert second_python(path, pyenv) == str(pyenv / 'versions/3.13.0/bin/python3')
