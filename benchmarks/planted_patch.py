"""Whether attribution maps find what decides: a network for which one patch tells the class of an image.

python benchmarks/planted_patch.py --model resnet20

The images are gray noise with a patch somewhere, whose color is the class; the network is trained to tell them apart
and explains test images. ``hit_rate`` is how often the map's largest value is in the patch, give or take ``NEAR``
pixels (the pointing game of Zhang et al. 2016, https://arxiv.org/abs/1608.00507); ``share`` is the median share of its
positive part that is there. ``chance`` is the share of the image that is. Prints one JSON line for each method.
"""

import argparse
import pathlib
import sys
import tempfile
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness
from jaxres.analysis import attribution, runs
from jaxres.data.augment import normalize
from jaxres.errors import one_line
from jaxres.train import loop

COLORS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [240, 240, 20]])
NEAR = 2  # pixels


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--model', default='resnet20')
  parser.add_argument('--image_size', type=int, default=16)
  parser.add_argument('--patch', type=int, default=4)
  parser.add_argument('--images', type=int, default=768, help='to train on')
  parser.add_argument('--epochs', type=int, default=8)
  parser.add_argument('--tests', type=int, default=32, help='images to explain')
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as workdir, one_line():
    run, where = train(workdir, args.model, args.images, args.tests, args.image_size, args.patch, args.epochs)
    rows = [{'side': method} | score_maps(run, where, method) for method in attribution.METHODS]
  context = {'benchmark': 'planted_patch'} | vars(args) | harness.machine()
  harness.report([row | context for row in rows], args.out)


def plant_patches(count: int, size: int, patch: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return images, uint8 ``[N, H, W, 3]``, the number of each color, and where the patch is, bool ``[N, H, W]``."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, len(COLORS), count)
  images = rng.integers(90, 160, (count, size, size, 3)).astype(np.uint8)
  where = np.zeros((count, size, size), bool)
  for i, (top, left) in enumerate(rng.integers(0, size - patch + 1, (count, 2))):
    where[i, top : top + patch, left : left + patch] = True
  images[where] = COLORS[labels].repeat(patch * patch, axis=0)
  return images, labels, where


def train(
  workdir: str, model: str, count: int, tests: int, size: int, patch: int, epochs: int
) -> tuple[runs.Run, np.ndarray]:
  """Return a network trained on ``count`` such images, and where the patches of its ``tests`` test images are."""
  train_x, train_y, _ = plant_patches(count, size, patch, seed=0)
  test_x, test_y, where = plant_patches(tests, size, patch, seed=1)
  path = pathlib.Path(workdir) / 'data.npz'
  np.savez(path, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
  config = {
    'model': {'name': model},
    'data': {'name': 'arrays', 'path': str(path), 'batch_size': 64},
    'optim': {'lr': 0.05, 'warmup_epochs': 1},
    'train': {'epochs': epochs, 'eval_batch_size': 64, 'eval_every_epochs': epochs},
  }
  loop.train_and_evaluate(config, path.parent / 'run')
  (run,) = runs.read_runs([str(path.parent / 'run')])
  return run, where


def score_maps(run: runs.Run, where: np.ndarray, method: str) -> dict[str, Any]:
  """Return how well the maps of the labels of the test images find the patches."""
  index = np.arange(len(where))
  test, info = run.dataset.test, run.dataset.info
  images = normalize(jnp.asarray(test.get_images(index)), info.mean, info.std)
  labels = jnp.asarray(test.device_data['label'])
  maps = np.maximum(attribution.METHODS[method](run.model, run.variables, images, labels), 0)
  near = ndimage.binary_dilation(where, np.ones((1, 2 * NEAR + 1, 2 * NEAR + 1)))
  hits = near.reshape(len(where), -1)[index, maps.reshape(len(where), -1).argmax(1)]
  shares = (maps * near).sum((1, 2)) / maps.sum((1, 2))
  rounded = lambda value: round(float(value), 4)
  return {
    'hit_rate': rounded(hits.mean()), 'share': rounded(np.median(shares)), 'chance': rounded(near.mean())
  }  # fmt: skip


if __name__ == '__main__':
  main()
