"""Which convolutions oneDNN computes: how that is tried, and where the answer is kept."""

import importlib.metadata
import pathlib
from collections.abc import Iterator

import jax
import jaxlib.version
import pytest

from jaxres.models import dtypes
from jaxres.runtime import compiler, onednn, xla_flags

OPTIONS = {xla_flags.YNNPACK: '', xla_flags.ONEDNN: True}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[None]:
  """An empty cache directory, and nothing known in the process."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  forget()
  yield
  forget()


def forget() -> None:
  onednn._find_dtypes.cache_clear()
  compiler._cpu_options.cache_clear()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
  """The dtypes that were tried, of which bfloat16 works."""
  names: list[str] = []
  monkeypatch.setattr(onednn, '_works', lambda name, options: names.append(name) or name == 'bfloat16')
  return names


def test_what_was_tried_is_kept_in_the_process_and_on_disk(tried: list[str], tmp_path: pathlib.Path) -> None:
  assert onednn.find_dtypes(OPTIONS) == onednn.find_dtypes(OPTIONS) == {'bfloat16'}
  assert tried == ['float32', 'bfloat16', 'float16']
  forget()
  assert onednn.find_dtypes(OPTIONS) == {'bfloat16'}
  assert len(tried) == 3
  assert len([*(tmp_path / 'jaxres/onednn').iterdir()]) == 1


@pytest.mark.parametrize('content', ['', '{}', '["int8"]', '[[1]]', '\x00'])
def test_a_damaged_answer_is_tried_again(tried: list[str], tmp_path: pathlib.Path, content: str) -> None:
  onednn.find_dtypes(OPTIONS)
  (path,) = (tmp_path / 'jaxres/onednn').iterdir()
  path.write_text(content)
  forget()
  assert onednn.find_dtypes(OPTIONS) == {'bfloat16'}
  assert len(tried) == 6
  assert path.read_text() == '["bfloat16"]'


def test_another_jaxlib_or_processor_is_tried_again(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
  onednn.find_dtypes(OPTIONS)
  for place, name, value in ((jaxlib.version, '__version__', '99.0'), (onednn, 'processor', lambda: 'flags: other')):
    monkeypatch.setattr(place, name, value)
    forget()
    onednn.find_dtypes(OPTIONS)
  assert len(tried) == 9


def test_a_cache_that_cannot_be_written_is_no_error(tried: list[str], tmp_path: pathlib.Path) -> None:
  (tmp_path / 'jaxres').write_text('a file')
  assert onednn.find_dtypes(OPTIONS) == {'bfloat16'}


def test_nothing_is_tried_where_the_option_is_off(tried: list[str]) -> None:
  assert onednn.find_dtypes({xla_flags.YNNPACK: ''}) == frozenset()
  assert tried == []


def test_what_xla_flags_say_stands(tried: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv('XLA_FLAGS', f'--{xla_flags.ONEDNN}=false')
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  assert xla_flags.ONEDNN not in compiler.compiler_options()
  assert tried == []
  onednn.find_dtypes(compiler.compiler_options())
  assert len(tried) == 3  # of programs as the flag makes them


def test_a_jaxlib_with_onednn_is_seen_as_one_where_the_flag_is_set() -> None:
  if xla_flags.read_ynnpack_flag(flag=xla_flags.ONEDNN) is None:
    assert compiler.onednn_dtypes() == frozenset()
    pytest.skip('XLA_FLAGS do not ask for oneDNN')
  version = tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2]))
  if jax.default_backend() != 'cpu' or not {'avx512f', 'avx512_bf16'} <= {*onednn.processor().split()}:
    pytest.skip('oneDNN in jaxlib was tried on CPUs with AVX-512 alone')
  expected = {'float32', 'bfloat16'} if version >= (0, 11) else frozenset()
  assert compiler.onednn_dtypes() >= expected
  assert bool(expected) == bool(compiler.onednn_dtypes())


def test_a_library_whose_results_are_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
  if not compiler.onednn_dtypes():
    pytest.skip('this jaxlib hands no convolutions to oneDNN')
  forget()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'another'))
  right = onednn._trial_by_numpy
  monkeypatch.setattr(onednn, '_trial_by_numpy', lambda x, kernel: (right(x, kernel)[0], right(x, kernel)[1] + 1))
  assert compiler.onednn_dtypes() == frozenset()


@pytest.mark.parametrize(
  ('on', 'known', 'processor', 'name'),
  [
    (False, {'float32', 'bfloat16'}, 'avx512f amx_bf16', 'float32'),
    (True, {'float32', 'bfloat16'}, 'avx512f amx_bf16', 'bfloat16'),
    (True, {'float32', 'bfloat16'}, 'avx512f avx512_bf16', 'bfloat16'),
    (True, {'float32', 'bfloat16'}, 'avx512f', 'float32'),  # bfloat16 by float32's instructions
    (True, {'float32'}, 'avx512f amx_bf16', 'float32'),
    (True, set(), 'avx512f amx_bf16', 'float32'),
  ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_in_it(
  on: bool, known: set[str], processor: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  monkeypatch.setattr(dtypes, 'BFLOAT16_ON_CPUS', on)
  monkeypatch.setattr(dtypes, 'onednn_dtypes', lambda: frozenset(known))
  monkeypatch.setattr(dtypes, 'processor', lambda: f'flags : {processor}')
  assert dtypes.resolve_dtype('auto').name == name
  assert dtypes.dtype_of_run('auto') == 'float32'
