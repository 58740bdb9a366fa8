"""How many images a second a forward pass takes, beside PyTorch and plain flax.

python benchmarks/inference.py --model resnet50 --image_size 224 --batch_size 16 --peer torch flax

Evaluation mode, uint8 images on the device to float logits. Prints one JSON line a side and a table. All sides take
turns, round by round, each in a separate process; compile time is apart.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import compare, sides

if __name__ == '__main__':
  compare.main('inference', __doc__.splitlines()[0], sides.INFER)
