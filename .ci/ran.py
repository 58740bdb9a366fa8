"""Fail where a test module that must run was skipped as a whole.   python3 .ci/ran.py JUNIT_XML MODULE_OR_FOLDER..."""

import pathlib
import sys
import xml.etree.ElementTree as ET


def passed_modules(report: str) -> set[str]:
  """Return the modules, as tests.models.test_blocks, with a test that ran and passed."""
  cases = ET.parse(report).getroot().iter('testcase')
  passed = lambda case: not {child.tag for child in case} & {'skipped', 'failure', 'error'}
  return {case.get('classname', '') for case in cases if passed(case)}


def modules(path: pathlib.Path) -> list[str]:
  """Return the test modules that ``path`` is or holds."""
  files = sorted(path.rglob('test_*.py')) if path.is_dir() else [path]
  return ['.'.join(file.with_suffix('').parts) for file in files]


def main(report: str, *paths: str) -> None:
  """Check the report of pytest."""
  wanted = [module for path in paths for module in modules(pathlib.Path(path))]
  passed = passed_modules(report)
  if missing := [module for module in wanted if module not in passed]:
    sys.exit(f'error: no test ran in {", ".join(missing)}')
  print(f'{len(wanted)} test modules that must run did')


if __name__ == '__main__':
  main(*sys.argv[1:])
