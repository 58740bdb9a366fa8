"""Tests of the benchmarks are marked: nothing of jaxres depends on them, and CI runs them in a separate step."""

import pathlib

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  for item in items:
    if HERE in item.path.parents:
      item.add_marker(pytest.mark.bench)
