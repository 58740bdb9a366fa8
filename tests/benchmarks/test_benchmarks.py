"""Facts of the benchmarks: what they compare is the same work, and their arithmetic. No test looks at a time."""

import argparse
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import compile as compile_times
from benchmarks import (
  end_to_end,
  flax_resnet,
  flipped_labels,
  harness,
  limit,
  planted_patch,
  projection,
  read_back,
  scaling,
  sides,
  table,
)
from jaxres import config as config_lib
from jaxres import models
from jaxres.checkpoint import reader
from jaxres.runtime import limits
from jaxres.train.step import Hyperparameters
from tests.helpers import benchmark_arguments, make_arrays

pytestmark = pytest.mark.eight_devices

ECHO = """
import json, sys
print('not JSON'); print(json.dumps({'images': 10, 'compile_s': 1.5}), flush=True)
for line in sys.stdin:
  steps = int(line)
  print(json.dumps({'wall': %s * steps, 'cpu': 0.5 * steps}), flush=True)
"""


def test_sides_take_turns_and_ratios_are_of_one_round() -> None:
  commands = {name: [sys.executable, '-c', ECHO % wall] for name, wall in (('ours', 0.5), ('theirs', 2.0))}
  with harness.open_sides(commands) as opened:
    assert [side.facts for side in opened] == [{'images': 10, 'compile_s': 1.5}] * 2
    actual = harness.interleave(opened, rounds=3, seconds=4.0)
  assert [row['images_per_s'] for row in actual['ours']] == [20.0] * 3
  ours, theirs = harness.summarize(actual, 'ours')
  assert (ours['ours_is_times_as_fast'], theirs['ours_is_times_as_fast']) == (1.0, 4.0)
  assert theirs['cpu_ms_per_image'] == 50.0
  assert theirs['ratio_spread'] == [4.0, 4.0]
  assert all(side.process.poll() is not None for side in opened)


def test_a_ratio_is_the_median_over_rounds() -> None:
  row = lambda speed: {'images_per_s': speed, 'cpu_ms_per_image': 1.0}
  actual = {'a': [row(10.0), row(20.0), row(90.0)], 'b': [row(10.0), row(10.0), row(30.0)]}
  _, b = harness.summarize(actual, 'a')
  assert (b['a_is_times_as_fast'], b['ratio_spread'], b['spread']) == (2.0, [1.0, 3.0], [10.0, 30.0])


def test_a_side_that_fails_ends_the_benchmark() -> None:
  with pytest.raises(SystemExit, match="the side 'x' ended with status 3"):
    harness.Side('x', [sys.executable, '-c', 'raise SystemExit(3)'])
  side = harness.Side('x', [sys.executable, '-c', 'print("{}", flush=True); raise SystemExit(4)'])
  side.process.wait()
  with pytest.raises(SystemExit, match="the side 'x' ended with status 4"):
    side.work(1)


@pytest.mark.parametrize(('name', 'stem'), [('resnet18', 'cifar'), ('resnet50', 'imagenet'), ('resnet20', None)])
def test_the_flax_peer_is_the_same_network(name: str, stem: str | None) -> None:
  images = jnp.zeros((1, 32, 32, 3))
  ours = models.create(name, num_classes=10, stem=stem)
  peer = flax_resnet.create(name, stem, 10, jnp.float32)
  shapes = [jax.eval_shape(lambda m=m: m.init(jax.random.key(0), images, train=False)) for m in (ours, peer)]
  sizes = [sorted(leaf.shape for leaf in jax.tree.leaves(tree)) for tree in shapes]
  assert sizes[0] == sizes[1]


@pytest.mark.torch
@pytest.mark.parametrize('kind', ['TRAIN', 'INFER'])
@pytest.mark.parametrize('side', ['jaxres', 'torch', 'flax'])
def test_each_side_works(kind: str, side: str, tiny: str) -> None:
  if side == 'torch':
    pytest.importorskip('torch')
  small = {'jaxres': tiny, 'torch': 'resnet20', 'flax': 'resnet8'}[side]  # the least that each has
  work = getattr(sides, kind)[side](benchmark_arguments(model=small))
  work.run(2)
  assert work.images == 8
  assert work.facts['compile_s'] > 0


def test_real_images_come_in_complete_batches_again_and_again(npz, monkeypatch) -> None:
  arrays = make_arrays((20, 8))
  monkeypatch.setattr(sys, 'argv', ['train_step.py', '--data', npz(**arrays), '--batch_size', '8'])
  parser = argparse.ArgumentParser()
  sides.add_arguments(parser)
  args = sides.parse(parser)
  assert (args.image_size, args.classes) == (8, 4)
  source = sides.batches(args, lambda array: array)
  actual = [next(source) for _ in range(3)]
  np.testing.assert_array_equal(np.concatenate([x for x, _ in actual[:2]]), arrays['train_x'][:16])
  np.testing.assert_array_equal(np.concatenate([y for _, y in actual[:2]]), arrays['train_y'][:16])
  np.testing.assert_array_equal(actual[2][0], actual[0][0])
  args.batch_size = 32
  with pytest.raises(SystemExit, match='has 20 images, less than a batch of 32'):
    sides.examples(args)


PUBLISHED = [  # GMAC; images/s of the limits in bfloat16 at 800 TFLOP/s and 3.0 TB/s, worked out by hand before
  ('resnet18', 'cifar', 32, 10, 0.556, 127e3),
  ('resnet20', None, 32, 10, 0.041, 567e3),
  ('resnet50', None, 224, 1000, 4.09, 8.75e3),
]


@pytest.mark.parametrize(('name', 'stem', 'size', 'classes', 'gmac', 'speed'), PUBLISHED)
def test_the_limit_is_that_of_the_published_work(
  name: str, stem: str | None, size: int, classes: int, gmac: float, speed: float
) -> None:
  model = models.create(name, stem=stem, num_classes=classes)
  actual = limit.layers(model, 256, size)
  assert actual.macs / 256 / 1e9 == pytest.approx(gmac, rel=0.02)
  assert 256 / limit.min_seconds(actual, 2, 800e12, 3.0e12) == pytest.approx(speed, rel=0.05)


def test_layers_are_counted(tiny: str) -> None:
  actual = limit.layers(models.create(tiny, num_classes=4), batch_size=2, image_size=8)
  pixels = 2 * 8 * 8
  convolution = lambda inputs: (pixels * 8 * 9 * inputs, pixels * (inputs + 8) + 9 * inputs * 8)
  assert sorted(actual.kernels) == sorted([convolution(3), convolution(8), convolution(8), (2 * 8 * 4, 2 * 12 + 32)])
  assert actual.norms == [pixels * 8] * 3


def test_a_layer_is_bound_by_arithmetic_or_by_memory() -> None:
  layers = limit.Layers(kernels=[(1000, 1), (1, 1000)], norms=[100, 50])
  seconds = limit.min_seconds(layers, itemsize=4, flops=100.0, bandwidth=400.0)
  assert seconds == pytest.approx(3 * (2000 / 100 + 4000 / 400) + 8 * 4 * 150 / 400)


def test_rates_are_measured_where_they_are_not_known(monkeypatch) -> None:
  monkeypatch.setattr(limits, 'measure', lambda *_: (1.0, 2.0))
  assert limit.rates('float32') == (1.0, 2.0)
  monkeypatch.setitem(limit.KNOWN, (jax.devices()[0].device_kind, 'float32'), (3.0, 4.0))
  assert limit.rates('float32') == (3.0, 4.0)
  assert limit.rates('bfloat16') == (1.0, 2.0)


def test_collectives_are_counted(tiny: str) -> None:
  args = benchmark_arguments(model=tiny)
  args.bn, args.weak, args.shard_optimizer = 'per_device', True, False
  work = scaling.build(args)
  assert work.images == 8 * 8
  assert work.facts['device_count'] == jax.device_count() == 8
  assert work.facts['collectives'] == {'all-reduce': 1}
  args.shard_optimizer = True
  assert 'all-gather' in scaling.build(args).facts['collectives']  # of the parameters
  program = """
  %all-reduce.1 = f32[64]{0} all-reduce(%x), channel_id=1, metadata={op_name="all-reduce"}
  %s = (f32[8]{0}, f32[8]{0}) all-reduce-start(%all-reduce.1, %y)
  %d = f32[8]{0} all-reduce-done(%s)
  ROOT %g = f32[8]{0} all-gather(%d), dimensions={0}
  """
  assert scaling.collectives(program) == {'all-gather': 1, 'all-reduce': 2}


def test_the_share_of_perfect_scaling() -> None:
  row = lambda times: {'single_is_times_as_fast': times}
  assert scaling.efficiency(row(0.25), 8, 1, gpus=True) == 0.5  # an image takes a quarter of the time on 8 GPUs
  assert scaling.efficiency(row(0.25), 8, 2, gpus=True) == 1.0
  assert scaling.efficiency(row(1.25), 8, 1, gpus=False) == 0.8


def test_a_projection_is_its_arithmetic() -> None:
  args = argparse.Namespace(
    batch_size=256, images_per_s=2560.0, nvlink=400.0, network=40.0, attained=0.5, latency_us=10.0, overlap=0.25
  )
  size = 10**9
  within = 2 * 7 / 8 * size / 200e9
  assert projection.all_reduce_s(args, 1, size) == 0
  assert projection.all_reduce_s(args, 8, size) == pytest.approx(within + 20e-6)
  between = 2 * 63 / 64 * size / 8 / 20e9
  assert projection.all_reduce_s(args, 512, size) == pytest.approx(within + between + 80e-6)
  row = projection.project(args, 512, size, 10)
  assert row['efficiency'] == pytest.approx(0.1 / (0.1 + 0.75 * (within + between + 80e-6) + 20 * 80e-6), abs=1e-3)
  assert row['images_per_s'] == pytest.approx(512 * 2560 * row['efficiency'], rel=1e-3)
  assert row['images_per_s_a_host'] == pytest.approx(row['images_per_s'] / 64, abs=1)
  assert projection.describe('resnet50') == (4 * 25_557_032, 53)


def test_devices_are_queried_once(monkeypatch) -> None:
  monkeypatch.setenv('XLA_FLAGS', '--xla_a=1 --xla_force_host_platform_device_count=8')
  actual = scaling.environment(2, gpus=False)
  assert actual == {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_a=1 --xla_force_host_platform_device_count=2'}
  assert scaling.environment(2, gpus=True) == {'CUDA_VISIBLE_DEVICES': '0,1'}


@pytest.fixture
def compilation_cache_dir(tmp_path, monkeypatch):
  options = {name: value for name, value in compile_times.caches(str(tmp_path)).items() if name.startswith('JAX_')}
  before = {name.lower(): getattr(jax.config, name.lower()) for name in options}
  for name in before:
    value = options[name.upper()]
    jax.config.update(name, type(before[name])(value) if before[name] is not None else value)
  compilation_cache.reset_cache()
  yield tmp_path / 'jax'
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_the_second_process_finds_the_step_in_the_cache(tiny: str, compilation_cache_dir) -> None:
  cold = compile_times.jaxres_first_step(benchmark_arguments(model=tiny))
  jax.clear_caches()
  cached = compile_times.jaxres_first_step(benchmark_arguments(model=tiny))
  assert (cold['from_cache'], cached['from_cache']) == (False, True)
  assert [*compilation_cache_dir.iterdir()]
  assert cold.keys() == cached.keys() >= {'start_s', 'trace_s', 'compile_s', 'compile_cpu_s', 'total_s'}


def test_compile_times_are_medians() -> None:
  rounds = [{'compile_s': s, 'from_cache': s < 3} for s in (1.0, 2.0, 9.0)]
  row = compile_times.summarize('jaxres, cold', rounds)
  assert row == {
    'side': 'jaxres, cold', 'compile_s': 2.0, 'compile_s_spread': [1.0, 9.0], 'from_cache': False, 'rounds': 3
  }  # fmt: skip


def test_a_training_is_timed_to_its_target(config: dict, tmp_path) -> None:
  actual = end_to_end.run(config, 0, tmp_path / 'run', 'test/top1', target=0.0)
  rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  scores = [row['test/top1'] for row in rows if 'test/top1' in row]
  assert (actual['steps'], actual['evaluations'], actual['accuracy']) == (24, 4, pytest.approx(scores[-1]))
  assert (actual['reached'], actual['reached_step']) == (True, 6)
  assert 0 < actual['first_step_s'] < actual['reached_s'] < actual['total_s']
  assert actual['first_step_s'] + actual['rest_s'] == pytest.approx(actual['total_s'], abs=0.01)
  assert 0 < actual['compile_s'] < actual['total_s']


def test_a_row_of_a_training_is_of_its_moments() -> None:
  top1 = lambda value: {'test/top1': value}
  marks = [
    end_to_end.Mark(10.0, 4.0, 1, {}),
    end_to_end.Mark(12.0, 8.0, 3, top1(0.5)),
    end_to_end.Mark(15.0, 9.0, 6, top1(0.9)),
    end_to_end.Mark(20.0, 12.0, 11, top1(0.8)),
  ]
  actual = end_to_end.summarize(marks, 16, 'test/top1', 0.9)
  assert actual == {
    'first_step_s': 10.0, 'rest_s': 10.0, 'total_s': 20.0, 'images_per_s': 16.0, 'cpu_ms_per_image': 50.0, 'steps': 11,
    'evaluations': 3, 'accuracy': 0.8, 'reached': True, 'reached_s': 15.0, 'reached_step': 6,
  }  # fmt: skip
  missed = end_to_end.summarize(marks, 16, 'test/top1', 0.95)
  assert (missed['reached'], missed['reached_s']) == (False, None)
  both = end_to_end.mean([actual, actual | {'accuracy': 0.9, 'total_s': 30.0}])
  assert (both['seeds'], both['reached'], both['total_s'], both['total_s_spread']) == (2, 2, 25.0, [20.0, 30.0])
  assert both['accuracy_std'] == pytest.approx(np.std([0.8, 0.9], ddof=1), abs=1e-5)
  one = end_to_end.mean([actual, missed])
  assert one['reached'] == 1
  assert 'reached_s' not in one
  with pytest.raises(SystemExit, match="'val/top1' was never measured; there are test/top1"):
    end_to_end.summarize(marks, 16, 'val/top1', None)


def test_the_pages_are_what_the_results_say(tmp_path, monkeypatch, capsys) -> None:
  assert table.main(['--check']) == 0
  results = tmp_path / 'benchmarks' / 'results'
  results.mkdir(parents=True)
  row = {'benchmark': 'inference', 'device': 'NVIDIA H100', 'cores': 16, 'model': 'resnet18', 'stem': None}
  row |= {'batch_size': 8, 'image_size': 32, 'dtype': 'bfloat16', 'data': 'synthetic', 'spread': [1000.0, 3000.0]}
  old, new, peer = (
    row | {'side': side, 'date': date, 'images_per_s': speed, 'jaxres_is_times_as_fast': ratio, 'ratio_spread': [1, 2]}
    for side, date, speed, ratio in (
      ('jaxres', '2026-01-02', 2000.0, 1.0),
      ('jaxres', '2026-01-03', 2500.0, 1.0),
      ('torch', '2026-01-03', 2000.0, 1.25),
    )
  )
  (results / 'a.jsonl').write_text('\n'.join(map(json.dumps, (new, peer))))
  (results / 'b.jsonl').write_text(json.dumps(old))
  monkeypatch.setattr(table, 'ROOT', tmp_path)
  monkeypatch.setattr(table, 'RESULTS', results)
  monkeypatch.setattr(table, 'PAGES', {'README.md': [table.speeds]})
  page = tmp_path / 'README.md'
  page.write_text('before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n')
  assert table.main(['--check']) == 1
  assert 'README.md: not what benchmarks/results says' in capsys.readouterr().out
  assert table.main([]) == 0
  assert (
    page.read_text()
    == """before
<!-- benchmarks -->

|  | device | jaxres, images/s | times as fast as PyTorch |
| --- | --- | --- | --- |
| forward pass, resnet18, 32 px, batch 8, bfloat16 | NVIDIA H100 | 2,500 (1,000 to 3,000) | 1.25 (1.00 to 2.00) |

<!-- /benchmarks -->
after
"""
  )
  assert table.main(['--check']) == 0


def test_the_projection_of_the_page_is_what_the_arithmetic_says() -> None:
  args = argparse.Namespace(
    batch_size=256, images_per_s=8980.0, nvlink=450.0, network=50.0, attained=0.8, latency_us=10.0, overlap=0.0
  )
  size, norms = projection.describe('resnet50')
  page = (harness.ROOT / 'docs/distributed.md').read_text()
  for gpus, bn in itertools.product((8, 64, 512), ('global', 'per_device')):
    row = projection.project(args, gpus, size, norms if bn == 'global' else 0)
    share = f'{row["efficiency"]:.1%}'.replace('%', ' %')
    times = [f'{row[name]:.2f}' for name in ('step_ms', 'gradients_ms', 'statistics_ms')]
    cells = [gpus, f'`{bn}`', f'{row["images_per_s"]:,}', share, *times, f'{row["images_per_s_a_host"]:,}']
    assert f'| {" | ".join(map(str, cells))} |' in page


def test_the_labels_that_are_flipped() -> None:
  labels = np.arange(1000) % 4
  actual, flipped = flipped_labels.flip(labels, 0.25, 4)
  assert flipped.sum() == 250
  np.testing.assert_array_equal(actual != labels, flipped)
  assert set((actual - labels)[flipped] % 4) == {1, 2, 3}


def test_labels_that_are_detected_by_hand() -> None:
  logits = 5 * np.eye(4, dtype=np.float32)[np.arange(40) % 4]
  labels, flipped = flipped_labels.flip(np.arange(40) % 4, 0.1, 4)
  margin, confident = flipped_labels.score_rows(logits, labels, flipped)
  assert (margin['average_precision'], margin['precision'], margin['chance'], margin['flipped']) == (1, 1, 0.1, 4)
  assert (confident['candidates'], confident['precision'], confident['recall']) == (4, 1, 1)


def test_what_is_planted() -> None:
  images, labels, where = planted_patch.plant_patches(5, 12, 3, seed=0)
  assert (where.sum((1, 2)) == 9).all()
  for image, label, local in zip(images, labels, where, strict=True):
    assert (image[local] == planted_patch.COLORS[label]).all()
    assert ((image[~local] >= 90) & (image[~local] < 160)).all()


def test_the_tables_of_what_is_detected() -> None:
  row = {'benchmark': 'planted_patch', 'side': 'gradcam', 'hit_rate': 0.953, 'share': 0.5, 'chance': 0.1406}
  assert '| `gradcam` | 95 % | 50 % | 14 % |' in table.patches([{'gradcam': row}])
  shared = {'benchmark': 'flipped_labels', 'examples': 50000, 'flipped': 1000, 'epochs': 2.0}
  shared |= {'model': 'resnet20', 'data': 'training split', 'test_top1': 0.7}
  margin = shared | {'average_precision': 0.31, 'chance': 0.02, 'precision': 0.4}
  confident = shared | {'candidates': 2000, 'precision': 0.35, 'recall': 0.7}
  actual = table.flips([{'margin': margin, 'confident learning': confident}])
  what = '| 1,000 of 50,000 in the training split; resnet20, 2 epochs, test top-1 70.0 %'
  assert f'{what} | margin | 1,000 | 40.0 % | 40.0 % | 31.0 % | 16 |' in actual
  assert f'{what} | confident learning | 2,000 | 35.0 % | 70.0 % |  |  |' in actual


@pytest.mark.parametrize('reads', [True, False])
def test_one_side_reads_back_each_of_its_saves_and_the_other_none(config: dict, monkeypatch, reads: bool) -> None:
  looks, difference = [], reader.difference

  def look(path, known):
    looks.append(path.name)
    return difference(path, known)

  monkeypatch.setattr(reader, 'difference', look)
  work = read_back.build(config_lib.to_dict(config_lib.complete(config)), reads=reads)
  work.run(1)
  assert work.images == 4 * 96
  assert work.facts.keys() == {'epochs', 'look_s'}
  looks.clear()
  work.run(2)
  assert looks == (['6', '12', '18', '24'] * 2 if reads else [])


def test_the_shares_of_reading_back() -> None:
  row = lambda speed: {'images_per_s': speed, 'cpu_ms_per_image': 1.0}
  actual = {'read back': [row(98.0), row(99.0), row(90.0)], 'not read back': [row(100.0)] * 3}
  facts = {'read back': {'images': 4900, 'epochs': 10, 'look_s': 0.05}, 'not read back': {}}
  first, second = read_back.summarize(actual, facts)
  assert (first['share'], first['share_spread']) == (0.02, [0.01, 0.1])
  assert first['look_share'] == 0.01  # of five seconds
  assert 'share' not in second


def test_the_step_that_is_measured_is_the_one_that_trains() -> None:
  """The rate is that of the schedule times an argument, as in a training; it was a constant once."""
  parser = argparse.ArgumentParser()
  sides.add_arguments(parser)
  args = parser.parse_args(['--model=resnet20', '--batch_size=8', '--image_size=8'])
  moved = []
  for scale in (0.0, 1.0):
    made = sides.jaxres_step(args)
    before = jax.device_get(made.state.params)
    state, _ = made.call(
      made.state, made.key, made.device_data, next(made.groups), Hyperparameters(np.float32(scale)), made.rest[1]
    )
    pairs = zip(*map(jax.tree.leaves, (before, jax.device_get(state.params))), strict=True)
    moved.append(any((a != b).any() for a, b in pairs))
  assert moved == [False, True]
