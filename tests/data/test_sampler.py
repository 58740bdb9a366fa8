import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

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
  whole = np.concatenate([sampler.permutation(7, epoch, size) for epoch in range(epochs)])
  found = sampler.train_indices(7, step, batch, size)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, whole[step * batch : (step + 1) * batch])


@given(batch=st.integers(1, 60), size=st.integers(1, 200))
def test_evaluation_sees_each_example_once_in_order(batch: int, size: int) -> None:
  parts = list(sampler.eval_indices(batch, size))
  assert {index.shape for index, _ in parts} == {(batch,)}
  np.testing.assert_array_equal(np.concatenate([index[mask] for index, mask in parts]), np.arange(size))
  assert max(index.max() for index, _ in parts) < size


@pytest.mark.parametrize('size', [1, 37, 100, 250])
def test_stratified_gives_each_class_its_share(size: int) -> None:
  labels = np.repeat([0, 1, 2, 5], [100, 50, 75, 25])
  index = sampler.stratified(labels, size, seed=3)
  assert len(set(index.tolist())) == size
  shares = size * np.bincount(labels) / len(labels)
  assert (np.abs(np.bincount(labels[index], minlength=6) - shares) < 1).all()


def test_stratified_counts_are_scikit_learns() -> None:
  labels = np.random.default_rng(0).permutation(np.repeat(range(10), 50))
  ours = sampler.stratified(labels, 100, seed=0)
  theirs, _ = train_test_split(np.arange(500), train_size=100, stratify=labels, random_state=0)
  np.testing.assert_array_equal(np.bincount(labels[ours]), np.bincount(labels[theirs]))


def test_stratified_depends_on_the_seed() -> None:
  labels = np.arange(300) % 3
  assert not np.array_equal(sampler.stratified(labels, 60, 0), sampler.stratified(labels, 60, 1))
