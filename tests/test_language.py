"""Names and prose read as a native engineer writes them: plain words, American spelling, verbs for functions.

Names are checked word by word (``old_rows`` is ``old`` and ``rows``), prose phrase by phrase: docstrings, comments, the
strings of more than one word, the pages of docs/ without their code. A string of one word is a key or a choice that
files and commands of users hold, and stays. ``found`` names no variable, but an error may say ``expected 3, found 2``.
"""

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]

FILES = sorted(
  path
  for pattern in (
    'main.py',
    'README.md',
    'jaxres/**/*.py',
    'configs/*.py',
    'benchmarks/**/*.py',
    'tests/**/*.py',
    'docs/*.md',
  )
  for path in ROOT.glob(pattern)
  if path.name != 'test_language.py'  # which names the words that others leave out
)
NAMES = {  # words of a name, and what to write instead
  'found': 'the name of the thing', 'own': 'local_, or the name of the thing', 'whole': 'the name of the thing',
  'held': 'the name of the thing', 'said': 'seen', 'begin': 'start', 'begins': 'starts', 'began': 'start',
  'begun': 'started', 'anew': 'again', 'klass': 'class_id', 'most': 'max', 'least': 'min', 'rightly': 'correctly',
  'thing': 'what it is',
}  # fmt: skip
BRITISH = {  # starts of words, in names and in prose
  'optimis': 'optimiz', 'normalis': 'normaliz', 'recognis': 'recogniz', 'initialis': 'initializ', 'quantis': 'quantiz',
  'regularis': 'regulariz', 'summaris': 'summariz', 'serialis': 'serializ', 'organis': 'organiz', 'equalis': 'equaliz',
  'synchronis': 'synchroniz', 'minimis': 'minimiz', 'maximis': 'maximiz', 'generalis': 'generaliz',
  r'analys(e|ed|ing)\b': 'analyz',
  'colour': 'color', 'behaviour': 'behavior', 'neighbour': 'neighbor', 'favour': 'favor', 'centre': 'center',
  'centring': 'centering', 'grey': 'gray', 'artefact': 'artifact', 'catalogue': 'catalog', r'labelled(?!by)': 'labeled',
  'modelling': 'modeling', 'spelt': 'spelled', 'learnt': 'learned', 'judgement': 'judgment', 'licence': 'license',
  'whilst': 'while', 'metre': 'meter', 'cancelled': 'canceled',
}  # fmt: skip
PHRASES = {  # of prose
  r'anew': 'again',
  r'(?<!not )begin(s|ning)?|began|begun': 'start',
  r'whole(?! numbers?\b)': 'all of, complete, entire',
  r'wholly': 'fully',
  r'held(?![ -]out)': 'kept',
  r'said': 'what it says',
  r'so (many|much)(?! (as|that)\b)': 'n, or: at most n',
  r'the same\.': 'what it is',
  r'see above': 'what it is',
  r'for ever': 'forever',
  r'of (its|their|your|our) own': 'its own, or: separate',
  r'(?<=\S )(?<!its )(?<!their )(?<!your )(?<!our )(?<!\'s )(?<!s\' )own(?! \w+ing\b)': "its own, or: this process's",
  r'klass': 'class',
  r'rightly': 'correctly',
  r'(is|are|was|were|be) asked for': 'needed, set, requested',
}
PARTICIPLES = r'\w+ed|made|seen|known|shown|kept|given|drawn|held|found|taken|left|said|built|begun|begins'
VERBS = {'feed', 'seed', 'embed', 'need', 'shed', 'speed', 'read', 'spread'}  # that end as participles do
ALLOWED = {  # names that are the field's, or that other libraries give
  'integrated_gradients', 'guided_grad_cam', 'replicated_sharding', 'held_out', 'at_most',
}  # fmt: skip
ALLOWED_IN = {'errors.py': {'found'}}  # what is there, beside what is expected: the words of the message
NOT_YET_CLEAN: set[str] = set()  # files whose words are still to be changed


def words_of(name: str) -> list[str]:
  """Return the words of an identifier in lower case."""
  return re.sub(r'([a-z0-9])([A-Z])', r'\1_\2', name).lower().strip('_').split('_')


def names_in(tree: ast.AST) -> list[tuple[int, str, bool]]:
  """Return line and name of what a module defines: functions (marked), classes, arguments, variables."""
  names = []
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      names.append((node.lineno, node.name, not is_value(node)))
    elif isinstance(node, ast.ClassDef):
      names.append((node.lineno, node.name, False))
    elif isinstance(node, ast.arg):
      names.append((node.lineno, node.arg, False))
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      names.append((node.lineno, node.id, False))
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
      names.append((node.lineno, node.attr, False))
  return names


def is_value(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
  decorators = [ast.unparse(each).split('(')[0].rpartition('.')[2] for each in node.decorator_list]
  return bool({'property', 'cached_property', 'fixture'} & {*decorators})


def prose_in(source: str) -> list[tuple[int, str]]:
  """Return line and text of the comments of a module, and of its strings of more than one word."""
  kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, 'FSTRING_MIDDLE', tokenize.STRING)}
  tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type in kinds]
  return [
    (t.start[0] + i, line) for t in tokens if ' ' in t.string.strip() for i, line in enumerate(t.string.split('\n'))
  ]


def without_values(token: str) -> str:
  """Return an f-string without what it shows; Python 3.11 has it as one token."""
  return re.sub(r'(?<!{){[^{}]*}', '{}', token) if re.match(r'[rb]?f', token, re.IGNORECASE) else token


def without_code(text: str) -> str:
  """Return a text with what stands between backticks, and lines of fenced code, left empty."""
  blank = lambda match: re.sub(r'[^\n]', '', match[0])
  return re.sub(r'``?[^`\n]+``?|https?://\S+', 'X', re.sub(r'^```.*?^```', blank, text, flags=re.MULTILINE | re.DOTALL))


def problems_of_name(name: str, is_function: bool) -> list[str]:
  if name in ALLOWED:
    return []
  if name.startswith('test_'):  # a sentence
    return problems_of_prose(name.replace('_', ' '))
  words = words_of(name)
  problems = [f'{name!r}: {word!r}; write {NAMES[word]}' for word in words if word in NAMES]
  problems += [f'{name!r}: write {new!r}' for old, new in BRITISH.items() if re.search(rf'(^|_){old}', name.lower())]
  if is_function and re.fullmatch(PARTICIPLES, words[0]) and words[0] not in VERBS:
    problems.append(f'{name!r}: a function is called by a verb')
  return problems


def problems_of_prose(text: str) -> list[str]:
  patterns = {rf'\b({phrase})(?!\w)': instead for phrase, instead in PHRASES.items()}
  patterns |= {rf'\b(un|re|mis|de|non-)?{old}': f'{new}...' for old, new in BRITISH.items()}
  return [
    f'{match[0]!r}; write {instead}'
    for pattern, instead in patterns.items()
    for match in re.finditer(pattern, text, re.I)
  ]


def problems(path: pathlib.Path) -> list[str]:
  source = path.read_text()
  if path.suffix == '.md':
    lines = list(enumerate(without_code(source).split('\n'), 1))
    return [f'{path}:{number}: {each}' for number, line in lines for each in problems_of_prose(line)]
  allowed = ALLOWED_IN.get(path.name, ())
  names = {
    (line, each)
    for line, name, function in names_in(ast.parse(source))
    if name not in allowed
    for each in problems_of_name(name, function)
  }
  prose = {(line, each) for line, text in prose_in(source) for each in problems_of_prose(without_code(text))}
  return [f'{path}:{line}: {each}' for line, each in sorted(names | prose)]


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words(path: pathlib.Path) -> None:
  lines = problems(path)
  if str(path.relative_to(ROOT)) in NOT_YET_CLEAN:
    assert lines, f'{path} is clean: take it off the list'
  else:
    assert not lines, '\n'.join(lines)


def test_the_list_of_files_names_files() -> None:
  assert {str(path.relative_to(ROOT)) for path in FILES} >= NOT_YET_CLEAN


@pytest.mark.parametrize(
  ('source', 'words'),
  [
    ('found = 1', ['found']),
    ('def f(klass, own_rows): pass', ['klass', 'own']),
    ('def ranked(rows): pass', ['verb']),
    ('class Colour: pass', ['color']),
    ('MOST_LINES = 1', ['most']),
    ('self.begin = 1', ['begin']),
    ('x = 1  # a row of own words\n', ['own']),
    ('x = "the optimiser is normalised anew"', ['anew', 'optimis', 'normalis']),
    ('x = 1  # the whole set\n', ['whole']),
    ('x = f"it {x} begins here"', ['begins']),
    ('def read():\n  """Args:\n    x: the same.\n  """', ['the same.']),
    ('def seed(feed): return {"found": "expected 1, found 2"}', []),
    ('class A:\n  @property\n  def saved(self): pass', []),
    ('x = "a whole number held out for its own sake; ``begin`` stays"', []),
  ],
)
def test_what_is_a_problem(source: str, words: list[str], tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'module.py'
  path.write_text(source)
  lines = problems(path)
  assert len(lines) == len(words)
  assert all(any(word in line for line in lines) for word in words)
