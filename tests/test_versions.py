"""What jaxres says about the jax that it finds."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import warnings

import pytest

import jaxres
from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def test_the_tested_range_is_the_one_that_pip_allows() -> None:
  first, end = jaxres.TESTED_JAX
  assert f'jax>={first},<{end}' in PROJECT['dependencies']


@pytest.mark.parametrize(
  ('version', 'warns'),
  [
    ('0.10.2', False),
    ('0.10.10', False),
    ('0.11.2', False),
    ('0.12.0.1', False),
    ('0.12.5.dev20261101+abc', False),
    ('0.10.1', True),
    ('0.9.9', True),
    ('0.4.38', True),
    ('0.13.0', True),
    ('0.13.0.dev20261201', True),
    ('0.100.0', True),
    ('1.0', True),
  ],
)
def test_an_untested_jax_is_warned_of(monkeypatch: pytest.MonkeyPatch, version: str, warns: bool) -> None:
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: {'jax': version}[name])
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    jaxres._warn_of_untested_jax()
  assert [version in str(warning.message) for warning in caught] == [True] * warns


def test_a_missing_jax_is_left_to_what_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
  def version(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'version', version)
  jaxres._warn_of_untested_jax()


def test_the_warning_is_one_line_once(tmp_path: pathlib.Path) -> None:
  (tmp_path / 'jax-0.13.1.dist-info').mkdir()
  (tmp_path / 'jax-0.13.1.dist-info/METADATA').write_text('Metadata-Version: 2.1\nName: jax\nVersion: 0.13.1\n')
  code = 'import jaxres, jaxres.errors; import jaxres'
  child = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])},
    capture_output=True,
    text=True,
  )
  assert child.returncode == 0, child.stderr
  (line,) = child.stderr.splitlines()
  assert line == (
    '<jaxres>:1: UserWarning: jaxres is tested with jax 0.10.2 or newer and older than 0.13, found jax 0.13.1; '
    "to have one of these: pip install 'jax>=0.10.2,<0.13'"
  )


def test_every_python_that_is_allowed_is_in_the_table() -> None:
  """And says of one that is not tested that it is not."""
  rows = dict(re.findall(r'^\| (3\.\d+) \| (.*) \|$', (ROOT / 'docs/known-issues.md').read_text(), re.MULTILINE))
  allowed = [name.rsplit(' ', 1)[1] for name in PROJECT['classifiers'] if re.search(r':: 3\.\d+$', name)]
  assert sorted(rows) == sorted(allowed)
  assert set(re.findall(r'\d+', rows['3.14'])) == set()
  assert 'not tested' in rows['3.14']
