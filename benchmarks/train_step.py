"""How many images a second a training step takes, beside PyTorch and a plain flax loop.

python benchmarks/train_step.py --model resnet18 --stem cifar --batch_size 64 --peer torch flax

Prints one JSON line a side and a table. All sides take turns, round by round, each in a process of its own; compile
time is apart. ``--data data.npz`` trains on real images, else on noise.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import harness, sides


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  sides.add_arguments(parser)
  parser.add_argument('--peer', nargs='*', default=[], choices=('torch', 'flax'))
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=5.0, help='of a round of one side')
  parser.add_argument('--out', help='a file that the JSON lines are added to')
  parser.add_argument('--side', choices=sides.TRAIN, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    harness.serve(lambda: sides.TRAIN[args.side](args))
    return
  context = {'benchmark': 'train_step'} | {key: getattr(args, key) for key in sides.DESCRIBES} | harness.machine()
  commands = {side: [sys.executable, *sys.argv, '--side', side] for side in ('jaxres', *args.peer)}
  with harness.opened(commands) as opened:
    found = harness.interleave(opened, args.rounds, args.seconds)
    facts = {side.name: {key: round(value, 3) for key, value in side.facts.items()} for side in opened}
  rows = [row | facts[row['side']] | context for row in harness.summarize(found, 'jaxres')]
  harness.report(rows, args.out)


if __name__ == '__main__':
  main()
