"""The tool that changes a module to see whether its tests notice: which changes it makes, and which it leaves."""

import pathlib

from tests import mutate


def changes(source: str) -> list[str]:
  return [mutant.source for mutant in mutate.mutants(source)]


def test_each_mutant_has_one_change() -> None:
  assert changes('x = a + b < 1') == ['x = a + b <= 1', 'x = a - b < 1', 'x = a + b < 2']
  assert changes('y = not a and "b"') == ["y = not a or 'b'", "y = a and 'b'", "y = not a and 'bX'"]
  assert changes('def f(x, deep=False):\n  return x') == [
    'def f(x, deep=True):\n    return x',
    'def f(x, deep=False):\n    return None',
  ]
  assert changes('while a is b:\n  a *= 2') == [
    'while not a is b:\n    a *= 2',
    'while a is not b:\n    a *= 2',
    'while a is b:\n    a *= 3',
  ]


def test_words_are_left_alone() -> None:
  assert changes('"""Text."""\nx: "A"\ndef f(a: 1) -> 2:\n  "Text."\n  raise E("b" + c)') == []
  assert changes('x = f"a{b}"') == []


def test_a_module_and_its_tests_have_one_path() -> None:
  path = mutate.ROOT / 'jaxres/data/sampler.py'
  assert mutate.module_name(path) == 'jaxres.data.sampler'
  assert mutate.module_name(path.with_name('__init__.py')) == 'jaxres.data'
  assert mutate.mirror_path(path) == mutate.ROOT / 'tests/data/test_sampler.py'
  assert mutate.mirror_path(mutate.ROOT / 'jaxres/data/__init__.py') == mutate.ROOT / 'tests/data/test_data.py'
  assert mutate.mirror_path(path).exists()


def test_a_result_is_kept_and_asked_for_once(tmp_path: pathlib.Path, monkeypatch, capsys) -> None:
  monkeypatch.chdir(tmp_path)
  asked = []
  fate = lambda path, source, tests, seconds: asked.append(source) or ('killed' if '2' in source else 'survived')
  monkeypatch.setattr(mutate, 'run_tests', fate)
  monkeypatch.setattr(mutate, 'LIBRARIES', ())
  monkeypatch.setattr(mutate, 'ROOT', tmp_path)
  module, test = tmp_path / 'm.py', tmp_path / 'test_m.py'
  module.write_text('x = 1\ny = a < b')
  test.write_text('')
  words = [str(module), str(test), f'--out={tmp_path / "out"}']
  mutate.main(words)
  assert asked == ['x = 1\ny = a < b', 'x = 2\ny = a < b', 'x = 1\ny = a <= b']
  assert capsys.readouterr().out.endswith('m: 1 of 2 mutants noticed, 50.0%\n  survived 2: a < b -> a <= b\n')
  mutate.main(words)
  assert len(asked) == 4  # the module as it is, and no mutant
  test.write_text('x = 3')
  mutate.main(words)
  assert len(asked) == 7
