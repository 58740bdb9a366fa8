import hashlib
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold, train_test_split

from jaxres.data import sampler


def test_the_permutation_is_the_same_in_every_release() -> None:
  assert sampler.permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 500), size=st.integers(1, 300))
def test_a_permutation_holds_each_index_once(seed: int, epoch: int, size: int) -> None:
  assert sorted(sampler.permutation(seed, epoch, size)) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
  orders = {tuple(sampler.permutation(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
  assert len(orders) == 25


@given(batch=st.integers(1, 70), size=st.integers(1, 50), step=st.integers(0, 40))
def test_a_step_is_a_slice_of_the_concatenated_epochs(batch: int, size: int, step: int) -> None:
  epochs = (step + 1) * batch // size + 1
  complete = np.concatenate([sampler.permutation(7, epoch, size) for epoch in range(epochs)])
  actual = sampler.train_indices(7, step, batch, size)
  assert actual.dtype == np.int32
  np.testing.assert_array_equal(actual, complete[step * batch : (step + 1) * batch])


@given(batch=st.integers(1, 60), size=st.integers(1, 200))
def test_evaluation_sees_each_example_once_in_order(batch: int, size: int) -> None:
  parts = list(sampler.eval_indices(batch, size))
  assert {index.shape for index, _ in parts} == {(batch,)}
  np.testing.assert_array_equal(np.concatenate([index[mask] for index, mask in parts]), np.arange(size))
  assert max(index.max() for index, _ in parts) < size


@pytest.mark.parametrize('size', [1, 37, 100, 250])
def test_stratified_gives_each_class_its_share(size: int) -> None:
  labels = np.repeat([0, 1, 2, 5], [100, 50, 75, 25])
  index = sampler.draw_stratified(labels, size, seed=3)
  assert len(set(index.tolist())) == size
  shares = size * np.bincount(labels) / len(labels)
  assert (np.abs(np.bincount(labels[index], minlength=6) - shares) < 1).all()


def test_stratified_counts_are_scikit_learns() -> None:
  labels = np.random.default_rng(0).permutation(np.repeat(range(10), 50))
  ours = sampler.draw_stratified(labels, 100, seed=0)
  theirs, _ = train_test_split(np.arange(500), train_size=100, stratify=labels, random_state=0)
  np.testing.assert_array_equal(np.bincount(labels[ours]), np.bincount(labels[theirs]))


def test_stratified_depends_on_the_seed() -> None:
  labels = np.arange(300) % 3
  assert not np.array_equal(sampler.draw_stratified(labels, 60, 0), sampler.draw_stratified(labels, 60, 1))


def test_a_permutation_is_kept_and_cannot_be_written() -> None:
  order = sampler.permutation(1, 2, 30)
  assert order is sampler.permutation(1, 2, 30)
  with pytest.raises(ValueError, match='read-only'):
    order[0] = 3


@given(
  names=st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=20),
  seed=st.integers(0, 99),
  use=st.sampled_from(['test', 'val']),
)
def test_names_are_sorted_by_the_sha256_of_seed_use_and_name(names: list[str], seed: int, use: str) -> None:
  names = [name.encode('utf-8', 'replace').decode() for name in names]
  sha = lambda name: hashlib.sha256(b'%d\0%b\0%b' % (seed, use.encode(), name.encode())).hexdigest()
  actual = sampler.order_by_name(names, seed, use)
  assert actual.dtype == np.int64
  assert [sha(names[at]) for at in actual] == sorted(map(sha, names))


def test_a_name_that_is_no_utf8_is_hashed_as_its_bytes() -> None:
  names = [os.fsdecode(bytes([byte])) for byte in (0xE9, 0xFF, 0x61)]
  sha = lambda name: hashlib.sha256(b'0\0test\0' + os.fsencode(name)).digest()
  assert sampler.order_by_name(names, 0, 'test').tolist() == sorted(range(3), key=lambda at: sha(names[at]))


@pytest.mark.parametrize('count', [2, 3, 7])
def test_folds_have_scikit_learns_sizes_and_classes(count: int) -> None:
  labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 4], [31, 50, 22]))
  ours = sampler.assign_folds(labels, count, seed=5)
  folds = StratifiedKFold(count, shuffle=True, random_state=0).split(labels, labels)
  of_class = lambda k, members: sorted(np.bincount(members[labels == k], minlength=count))
  theirs = np.empty(len(labels), int)
  for fold, (_, members) in enumerate(folds):
    theirs[members] = fold
  assert set(ours.tolist()) == set(range(count))
  assert sorted(np.bincount(ours)) == sorted(np.bincount(theirs))
  for k in (0, 1, 4):
    assert of_class(k, ours) == of_class(k, theirs)
  assert not np.array_equal(ours, sampler.assign_folds(labels, count, seed=6))
  np.testing.assert_array_equal(ours, sampler.assign_folds(labels, count, 6, sampler.permutation(5, 0, len(labels))))


def test_folds_are_dealt_class_by_class_in_the_order_that_is_given() -> None:
  labels, order = np.array([1, 0, 1, 0, 1]), np.array([4, 3, 2, 1, 0])
  assert sampler.assign_folds(labels, 2, seed=0, shuffled=order).tolist() == [0, 1, 1, 0, 0]


def test_stratified_takes_the_first_of_each_class_in_the_order_that_is_given() -> None:
  labels, order = np.array([1, 0, 1, 0, 1, 1]), np.array([5, 4, 3, 2, 1, 0])
  assert sampler.draw_stratified(labels, 3, seed=0, shuffled=order).tolist() == [3, 4, 5]
  default = sampler.draw_stratified(labels, 3, 7)
  np.testing.assert_array_equal(default, sampler.draw_stratified(labels, 3, 0, sampler.permutation(7, 0, 6)))


def test_what_is_left_goes_to_the_largest_remainders() -> None:
  labels = np.repeat([0, 1, 2], [5, 3, 2])
  assert np.bincount(labels[sampler.draw_stratified(labels, 7, seed=0)]).tolist() == [4, 2, 1]  # of 3.5, 2.1 and 1.4
  assert np.bincount(labels[sampler.draw_stratified(labels, 2, seed=0)]).tolist() == [1, 1]  # of 1.0, 0.6 and 0.4
