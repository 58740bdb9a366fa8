import numpy as np
import pytest

from jaxres import trees
from jaxres.errors import InputError

TREE = {'stem': {'conv': {'kernel': np.zeros((3, 2))}, 'bn': {'scale': np.zeros(2), 'bias': np.zeros(2)}}}


def test_names_and_count() -> None:
  assert trees.leaf_names(TREE) == ['stem/bn/bias', 'stem/bn/scale', 'stem/conv/kernel']
  assert trees.count(TREE) == 10


def test_match_takes_complete_names() -> None:
  assert trees.match(TREE, ('stem/bn/.*',), 'x') == {
    'stem': {'conv': {'kernel': False}, 'bn': {'scale': True, 'bias': True}}
  }
  assert trees.match(TREE, (), 'x')['stem']['conv'] == {'kernel': False}


@pytest.mark.parametrize(
  ('pattern', 'message'), [('bn', r"x: 'bn' matches no parameter; names read like"), ('(', r"x: '\(' is no regular")]
)
def test_wrong_patterns(pattern: str, message: str) -> None:
  with pytest.raises(InputError, match=message):
    trees.match(TREE, (pattern,), 'x')
