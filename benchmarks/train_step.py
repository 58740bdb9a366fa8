"""How many images a second a training step takes, beside PyTorch and a plain flax loop.

python benchmarks/train_step.py --model resnet18 --stem cifar --batch_size 64 --peer torch flax

Prints one JSON line a side and a table. All sides take turns, round by round, each in a separate process; compile
time is apart. ``--data data.npz`` trains on real images, else on noise. ``share_of_limit`` is of what `limit.py` says.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import compare, limit, sides

if __name__ == '__main__':
  compare.main('train_step', __doc__.splitlines()[0], sides.TRAIN, limit.facts)
