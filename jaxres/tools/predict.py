"""`jaxres predict`."""

import argparse
import json
import sys

from jaxres import predict
from jaxres.errors import check_range, printable
from jaxres.tools.arguments import add_source_arguments, read_predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres predict`."""
  parser.add_argument('source', metavar='SOURCE', help='a run, a torch file, torchvision:NAME, or of `jaxres convert`')
  parser.add_argument('images', metavar='IMAGE', nargs='+', help='files, or folders of them')
  parser.add_argument('--top', type=int, default=5, metavar='N', help='classes that are shown (5)')
  parser.add_argument('--json', action='store_true', help='print a JSON object a line, one for each image')
  parser.add_argument('--batch_size', type=int, default=32, metavar='N', help='images at a time (32)')
  add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Print what the network makes of every image, such as its likeliest classes; return 2 where one cannot be read."""
  for name in ('top', 'batch_size'):
    check_range(f'--{name}', getattr(args, name), low=1)
  paths = predict.find_images(args.images)
  predictor = read_predictor(args)
  print(printable(f'by {predictor.origin}'), file=sys.stderr)
  status = 0
  for path, logits, problem in predict.predict(predictor, paths, args.batch_size):
    if logits is None:
      print(printable(f'error: {path}: {problem}'), file=sys.stderr)
      status = 2
      continue
    answer = predictor.describe(logits, args.top)
    if args.json:
      print(json.dumps({'image': str(path), **answer.content}))
    else:
      print('\n'.join([printable(path), *(f'  {printable(line)}' for line in answer.lines)]))
  return status
