"""What a training would do on 8, 64 and 512 GPUs: arithmetic on a step measured on one, and on the rates of links.

python benchmarks/projection.py --model resnet50 --image_size 224 --batch_size 256 --images_per_s 4000

Nothing here is measured but the step that is given. The assumptions, each a flag:

- every GPU takes the same step as the one that was measured (weak scaling), fed as fast as it asks;
- gradients are float32, averaged by rings in three stages: a reduce-scatter within each host of 8 GPUs, an all-reduce
  between hosts, in which each GPU sends its eighth through its own network card, an all-gather within the host;
- links reach ``--attained`` of their rates: NVLink 450 GB/s one way, network cards 50 GB/s (400 Gb/s);
- a collective takes at least ``--latency_us`` for each stage within a host and for each doubling of the hosts;
- ``--overlap`` of the gradients' time is hidden behind the backward pass; nothing of BatchNorm's is, as its statistics
  are waited for: with ``bn=global`` two collectives for each BatchNorm, forward and backward.

Prints one JSON line a case and a table.
"""

import argparse
import math
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness

PER_HOST = 8


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', default='resnet50')
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--batch_size', type=int, default=256, help='of one GPU')
  parser.add_argument('--images_per_s', type=float, required=True, help='measured on one GPU')
  parser.add_argument('--gpus', type=int, nargs='+', default=[8, 64, 512])
  parser.add_argument('--nvlink', type=float, default=450.0, help='GB/s one way, of one GPU')
  parser.add_argument('--network', type=float, default=50.0, help='GB/s one way, of the network card of one GPU')
  parser.add_argument('--attained', type=float, default=0.8, help='share of these rates')
  parser.add_argument('--latency_us', type=float, default=10.0)
  parser.add_argument('--overlap', type=float, default=0.0, help="share of the gradients' time that is hidden")
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  args = parser.parse_args()
  size, norms = describe(args.model)
  context = {'benchmark': 'projection'} | {
    k: v for k, v in vars(args).items() if k not in ('gpus', 'out', 'images_per_s')
  }
  rows = [
    {'side': f'{gpus} GPUs, bn={bn}', **project(args, gpus, size, norms if bn == 'global' else 0)}
    for gpus in args.gpus
    for bn in ('global', 'per_device')
  ]
  harness.report([row | context | {'versions': harness.machine()['versions']} for row in rows], args.out)


def describe(name: str) -> tuple[int, int]:
  """Return the bytes of a model's gradients, and how many BatchNorms it has."""
  import jax

  from jaxres import models
  from jaxres.state import init_variables

  model = models.create(name, dtype='float32')
  shapes = jax.eval_shape(lambda: init_variables(model, (32, 32, 3), jax.random.key(0)))
  return sum(4 * x.size for x in jax.tree.leaves(shapes['params'])), len(jax.tree.leaves(shapes['batch_stats'])) // 2


def project(args: argparse.Namespace, gpus: int, gradient_bytes: int, norms: int) -> dict[str, Any]:
  """Return the row of ``gpus`` GPUs, a multiple of those of a host or fewer.

  Args:
    args: the command line.
    gpus: how many.
    gradient_bytes: of one step.
    norms: BatchNorms whose statistics are those of the global batch.
  """
  step = args.batch_size / args.images_per_s
  gradients, small = all_reduce_s(args, gpus, gradient_bytes), 2 * norms * all_reduce_s(args, gpus, 0)
  total = step + (1 - args.overlap) * gradients + small
  speed = gpus * args.batch_size / total
  return {
    'images_per_s': round(speed),
    'efficiency': round(speed / (gpus * args.images_per_s), 3),
    'step_ms': round(1e3 * step, 2),
    'gradients_ms': round(1e3 * gradients, 2),
    'statistics_ms': round(1e3 * small, 2),
    'gradient_mb': round(gradient_bytes / 1e6, 1),
    'images_per_s_a_host': round(speed / math.ceil(gpus / PER_HOST)),
  }


def all_reduce_s(args: argparse.Namespace, gpus: int, size: int) -> float:
  """Return the seconds of an all-reduce of ``size`` bytes."""
  local, hosts = min(gpus, PER_HOST), math.ceil(gpus / PER_HOST)
  rates = [1e9 * args.attained * rate for rate in (args.nvlink, args.network)]
  within = 2 * (local - 1) / local * size / rates[0]
  between = 2 * (hosts - 1) / hosts * size / local / rates[1]
  stages = 2 * (local > 1) + math.ceil(math.log2(hosts))
  return within + between + stages * args.latency_us * 1e-6


if __name__ == '__main__':
  main()
