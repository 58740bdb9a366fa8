"""The programs of docs/known-issues.md, and the functions that the page names."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / 'docs/known-issues.md').read_text()
# What imports jaxres may set for the whole process is not for the programs.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ('XLA_FLAGS', 'PYTHONWARNINGS')}


class Issue(NamedTuple):
  """A section of the page."""

  title: str
  package: str
  versions: list[str]
  python: str  # the only one that is affected, or ''
  program: str
  names: list[str]


def issues() -> list[Issue]:
  sections = PAGE.split('\n### ')[1:]
  return [issue(section) for section in sections]


def issue(section: str) -> Issue:
  affected = re.search(r'^Affects: (\S+) ([\d., ]+?)(?: on Python (\S+))?$', section, re.MULTILINE)
  program = re.search(r'^```python\n(.*?)^```', section, re.MULTILINE | re.DOTALL)
  workaround = re.search(r'^jaxres: .*', section, re.MULTILINE | re.DOTALL)
  assert affected, section
  assert program, section
  assert workaround, section
  package, versions, python = affected.groups()
  names = re.findall(r'`(jaxres\.[\w.]+)`', workaround[0])
  return Issue(section.splitlines()[0], package, versions.split(', '), python or '', program[1], names)


def is_ended(child: subprocess.CompletedProcess) -> bool:
  """Whether a library ended the process: by a signal, or by the exit of XLA's own log, which is no traceback."""
  return child.returncode < 0 or (child.returncode == 1 and 'Traceback' not in child.stderr)


@pytest.mark.parametrize('issue', issues(), ids=lambda issue: issue.title)
def test_the_installed_version_is_affected_as_the_page_says(issue: Issue, tmp_path) -> None:
  (tmp_path / 'program.py').write_text(issue.program)
  command = [sys.executable, 'program.py']
  child = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
  printed = child.stdout.split()[-1:]
  assert (child.returncode == 0 and printed in (['affected'], ['fine'])) or is_ended(child), child.stderr
  affected = printed != ['fine']
  version = importlib.metadata.version(issue.package)
  python = f'{sys.version_info.major}.{sys.version_info.minor}'
  listed = version in issue.versions and issue.python in ('', python)
  assert affected == listed, f'{issue.package} {version} on Python {python}: {child.stdout}{child.stderr}'


@pytest.mark.parametrize('name', sorted({name for issue in issues() for name in issue.names}))
def test_what_the_page_names_is_there(name: str) -> None:
  module, _, attribute = name.rpartition('.')
  if importlib.util.find_spec(name if module == 'jaxres' else module) and module != 'jaxres':
    assert hasattr(importlib.import_module(module), attribute)
  else:
    importlib.import_module(name)
