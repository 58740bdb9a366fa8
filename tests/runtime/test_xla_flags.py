"""The flag of the process: set where jaxlib knows it, and never over the user's."""

import pathlib
import subprocess
import sys

import pytest

from jaxres.runtime import xla_flags

FLAG = f'--{xla_flags.YNNPACK}='


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(xla_flags, '_has_accelerator', lambda: False)


@pytest.mark.parametrize(
  ('before', 'after'),
  [
    (None, FLAG),
    ('', FLAG),
    ('--xla_a=1', f'--xla_a=1 {FLAG}'),
    (FLAG, FLAG),
    (f'--xla_a=1 {FLAG}LIBRARY_FUSION_TYPE_REDUCE', f'--xla_a=1 {FLAG}LIBRARY_FUSION_TYPE_REDUCE'),
    ('/a/file/of/flags', '/a/file/of/flags'),
  ],
)
def test_what_the_user_told_stands(before: str | None, after: str) -> None:
  environment = {} if before is None else {'XLA_FLAGS': before}
  xla_flags.disable_ynnpack(environment)
  assert environment['XLA_FLAGS'] == after


def test_a_flag_that_jaxlib_does_not_know_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
  assert not xla_flags.is_known('xla_cpu_no_such_flag')
  monkeypatch.setattr(xla_flags, 'YNNPACK', 'xla_cpu_no_such_flag')
  environment: dict[str, str] = {}
  xla_flags.disable_ynnpack(environment)
  assert environment == {}


def test_beside_an_accelerator_the_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(xla_flags, '_has_accelerator', lambda: True)
  environment: dict[str, str] = {}
  xla_flags.disable_ynnpack(environment)
  assert environment == {}


def test_the_last_word_is_read_from_a_file_too(tmp_path: pathlib.Path) -> None:
  assert xla_flags.read_ynnpack_flag({}) is None
  assert xla_flags.read_ynnpack_flag({'XLA_FLAGS': f'{FLAG}a {FLAG}'}) == ''
  (tmp_path / 'flags').write_text(f'--xla_a=1\n{FLAG}b\n')
  assert xla_flags.read_ynnpack_flag({'XLA_FLAGS': str(tmp_path / 'flags')}) == 'b'


def test_what_jax_does_by_itself_sums_correctly_then() -> None:
  code = """
from jaxres.runtime import xla_flags
import sys
assert 'jax' not in sys.modules
xla_flags.disable_ynnpack()
import jax, jax.numpy as jnp
compiled = jax.jit(lambda x: jnp.sum(x @ jnp.ones((64, 64)))).lower(jnp.ones((4096, 64))).compile()
print('__ynn_fusion' in compiled.as_text())
"""
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == 'False'
