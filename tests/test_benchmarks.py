"""Facts of the benchmarks: what they compare is the same work, and their arithmetic. No test looks at a time."""

import argparse
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import flax_resnet, harness, sides
from jaxres import models

ECHO = """
import json, sys
print('not JSON'); print(json.dumps({'images': 10, 'compile_s': 1.5}), flush=True)
for line in sys.stdin:
  steps = int(line)
  print(json.dumps({'wall': %s * steps, 'cpu': 0.5 * steps}), flush=True)
"""


def test_sides_take_turns_and_ratios_are_of_one_round() -> None:
  commands = {name: [sys.executable, '-c', ECHO % wall] for name, wall in (('ours', 0.5), ('theirs', 2.0))}
  with harness.opened(commands) as opened:
    assert [side.facts for side in opened] == [{'images': 10, 'compile_s': 1.5}] * 2
    found = harness.interleave(opened, rounds=3, seconds=4.0)
  assert [row['images_per_s'] for row in found['ours']] == [20.0] * 3
  ours, theirs = harness.summarize(found, 'ours')
  assert (ours['ours_is_times_as_fast'], theirs['ours_is_times_as_fast']) == (1.0, 4.0)
  assert theirs['cpu_ms_per_image'] == 50.0
  assert theirs['ratio_spread'] == [4.0, 4.0]
  assert all(side.process.poll() is not None for side in opened)


def test_a_ratio_is_the_median_over_rounds() -> None:
  row = lambda speed: {'images_per_s': speed, 'cpu_ms_per_image': 1.0}
  found = {'a': [row(10.0), row(20.0), row(90.0)], 'b': [row(10.0), row(10.0), row(30.0)]}
  _, b = harness.summarize(found, 'a')
  assert (b['a_is_times_as_fast'], b['ratio_spread'], b['spread']) == (2.0, [1.0, 3.0], [10.0, 30.0])


def test_a_side_that_fails_ends_the_benchmark() -> None:
  with pytest.raises(SystemExit, match="the side 'x' ended with status 3"):
    harness.Side('x', [sys.executable, '-c', 'raise SystemExit(3)'])


@pytest.mark.parametrize(('name', 'stem'), [('resnet18', 'cifar'), ('resnet50', 'imagenet'), ('resnet20', None)])
def test_the_flax_peer_is_the_same_network(name: str, stem: str | None) -> None:
  images = jnp.zeros((1, 32, 32, 3))
  ours = models.create(name, num_classes=10, stem=stem)
  peer = flax_resnet.create(name, stem, 10, jnp.float32)
  shapes = [jax.eval_shape(lambda m=m: m.init(jax.random.key(0), images, train=False)) for m in (ours, peer)]
  sizes = [sorted(leaf.shape for leaf in jax.tree.leaves(tree)) for tree in shapes]
  assert sizes[0] == sizes[1]


def arguments(*words: str) -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  sides.add_arguments(parser)
  return parser.parse_args(['--model', 'resnet20', '--batch_size', '8', '--image_size', '8', *words])


@pytest.mark.torch
@pytest.mark.parametrize('side', sides.TRAIN)
def test_each_side_trains(side: str) -> None:
  if side == 'torch':
    pytest.importorskip('torch')
  work = sides.TRAIN[side](arguments())
  work.run(2)
  assert work.images == 8
  assert work.facts['compile_s'] > 0
