"""The programs of docs/known-issues.md, and the functions that the page names."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.helpers import ROOT

PAGE = (ROOT / 'docs/known-issues.md').read_text()
# What imports jaxres may set for the process is not for the programs.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ('XLA_FLAGS', 'PYTHONWARNINGS')}


class Issue(NamedTuple):
  """A section of the page."""

  title: str
  package: str
  versions: list[str]
  program: str
  names: list[str]


def issues() -> list[Issue]:
  sections = PAGE.split('\n### ')[1:]
  return [issue(section) for section in sections]


def issue(section: str) -> Issue:
  affected = re.search(r'^Affects: (\S+) ([\d., ]+)$', section, re.MULTILINE)
  program = re.search(r'^```python\n(.*?)^```', section, re.MULTILINE | re.DOTALL)
  workaround = re.search(r'^jaxres: .*', section, re.MULTILINE | re.DOTALL)
  assert affected, section
  assert program, section
  assert workaround, section
  package, versions = affected.groups()
  names = re.findall(r'`(jaxres\.[\w.]+)`', workaround[0])
  return Issue(section.splitlines()[0], package, versions.split(', '), program[1], names)


@pytest.mark.parametrize('issue', issues(), ids=lambda issue: issue.title)
def test_the_installed_version_is_affected_as_the_page_says(issue: Issue, tmp_path) -> None:
  (tmp_path / 'program.py').write_text(issue.program)
  command = [sys.executable, 'program.py']
  child = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
  printed = child.stdout.split()[-1:]
  # XLA and nanobind end the process, each in its way; a program that Python ends by an exception says nothing
  ended = child.returncode != 0 and 'Traceback' not in child.stderr
  assert ended or printed in (['affected'], ['fine']), child.stderr
  affected = ended or printed == ['affected']
  version = importlib.metadata.version(issue.package)
  assert affected == (version in issue.versions), f'{issue.package} {version}: {child.stdout}{child.stderr}'


@pytest.mark.parametrize('name', sorted({name for issue in issues() for name in issue.names}))
def test_what_the_page_names_is_there(name: str) -> None:
  module, _, attribute = name.rpartition('.')
  if importlib.util.find_spec(name if module == 'jaxres' else module) and module != 'jaxres':
    assert hasattr(importlib.import_module(module), attribute)
  else:
    importlib.import_module(name)
