"""Digests: known sums of known bytes, and what two states must share to have one."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxres.checkpoint import digests as digests_lib
from jaxres.errors import InputError
from jaxres.runtime import sharding


@pytest.mark.parametrize('part', ['params', 'batch_stats', 'opt_state', 'step', 'ema', 'progress'])
def test_the_digest_is_of_all_that_a_run_must_know(part: str) -> None:
  digests = {'params/a': '1', 'batch_stats/b': '2', 'opt_state/0/a': '3', 'step': '4', 'ema/params/a': '5'}
  progress = {'last': {'test/top1': 0.5, 'train/images_per_s': 7.0}, 'best': {'val/top1': 0.4}, 'stale': 1}
  complete = digests_lib.state_digest(digests, progress)
  left = {name: value for name, value in digests.items() if name.split('/')[0] != part}
  assert digests_lib.state_digest(left, {**progress, 'stale': 2} if part == 'progress' else progress) != complete
  progress['last']['train/images_per_s'] = 8.0
  assert digests_lib.state_digest(digests, progress) == complete


def sha(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
  ('array', 'kind', 'content'),
  [
    (np.float32([[1, 2], [3, 4]]), 'float32[2,2]', b'\0\0\x80?\0\0\0@\0\0@@\0\0\x80@'),
    (np.float32([[1, 3], [2, 4]]).T, 'float32[2,2]', b'\0\0\x80?\0\0\0@\0\0@@\0\0\x80@'),  # in C order
    (np.int32(7), 'int32[]', b'\7\0\0\0'),
    (np.zeros((0, 3), np.uint8), 'uint8[0,3]', b''),
    (np.asarray(jnp.ones(2, jnp.bfloat16)), 'bfloat16[2]', b'\x80?\x80?'),
  ],
  ids=['matrix', 'transposed', 'scalar', 'empty', 'bfloat16'],
)
def test_a_digest_is_the_sha256_of_the_bytes_in_c_order(array: np.ndarray, kind: str, content: bytes) -> None:
  assert digests_lib.leaf_digest(array) == f'{kind} {sha(content)}'


def test_json_has_one_digest_whatever_the_order_of_its_keys() -> None:
  assert digests_lib.json_digest({'b': [1, 2], 'a': None}) == sha(b'{"a": null, "b": [1, 2]}')
  assert digests_lib.json_digest([2, 1]) != digests_lib.json_digest([1, 2])


def test_a_state_has_the_digest_of_its_sorted_leaves_and_its_progress() -> None:
  digests = {'step': '2', 'params/a': '1'}
  progress = {'stale': 1, 'last': {'train/images_per_s': 7.0, 'test/top1': 0.5}}
  written = json.dumps([[['params/a', '1'], ['step', '2']], {'last': {'test/top1': 0.5}, 'stale': 1}])
  assert digests_lib.state_digest(digests, progress) == sha(written.encode())


def test_leaves_are_named_and_gathered() -> None:
  mesh = sharding.make_mesh()
  split = jax.device_put(np.arange(16.0), sharding.batch_sharding(mesh))
  actual = dict(digests_lib.leaves({'a': {'b': split}, 'c': np.float32(3)}))
  assert [*actual] == ['a/b', 'c']
  assert all(isinstance(array, np.ndarray) for array in actual.values())
  np.testing.assert_array_equal(actual['a/b'], np.arange(16.0))
  assert digests_lib.kinds({'a': {'b': split}, 'c': np.float32(3)}) == {'a/b': 'float32[16]', 'c': 'float32[]'}


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16, np.float64])
def test_one_number_that_is_not_finite_is_seen(value: float, dtype: type) -> None:
  array = np.ones((2, 3), dtype)
  assert digests_lib.is_finite(array) is True
  array[1, 2] = value
  assert digests_lib.is_finite(array) is False


def test_integers_are_finite() -> None:
  assert digests_lib.is_finite(np.array([1, 2])) is True
  assert digests_lib.is_finite(np.array([True])) is True


@pytest.mark.parametrize(
  ('there', 'message'),
  [
    ({'a': 'float32[2] 0f', 'b': 'int32[] 3c'}, None),
    ({'a': 'float32[3] 0f', 'b': 'int32[] 3c'}, r'x: a: expected float32\[2\], found float32\[3\]$'),
    ({'a': 'float32[2] 0f'}, r'x: b: expected int32\[\], found nothing$'),
    ({'a': 'float32[2] 0f', 'b': 'int32[] 3c', 'c': 'int8[] 1'}, r'x: c: expected nothing, found int8\[\]$'),
  ],
)
def test_what_differs_first_is_named(there: dict[str, str], message: str | None) -> None:
  wanted = {'a': 'float32[2]', 'b': 'int32[]'}
  if message is None:
    digests_lib.check_like(there, wanted, 'x')
  else:
    with pytest.raises(InputError, match=message):
      digests_lib.check_like(there, wanted, 'x')


def test_speeds_are_left_out_at_any_depth() -> None:
  content = {'a': {'x_per_s': 1.0, 'y': [1, {'z_per_s': 2}]}, 'b_per_s': 3, 'c': None}
  assert digests_lib.without_speeds(content) == {'a': {'y': [1, {'z_per_s': 2}]}, 'c': None}
