"""`jaxres explain`."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxres import predict as predict_lib
from jaxres.analysis import attribution, explain, images, runs
from jaxres.errors import InputError, check_range, check_word, make_progress_printer, printable
from jaxres.files import complete, file_errors
from jaxres.paths import output_path
from jaxres.tools.arguments import add_source_arguments, read_predictor


def draw(
  explanations: Sequence[explain.Explanation], methods: Sequence[str], class_names: Sequence[str]
) -> Image.Image:
  """Return a picture with a row for each image: itself, and each of its maps laid over it."""
  cells = lambda one: [images.as_rgb(one.pixels), *(images.overlay(one.pixels, one.maps[m]) for m in methods)]
  titles = [f'{one.path.name}: {class_names[one.class_id]} {one.probability:.1%}' for one in explanations]
  return images.add_titles(np.stack([np.stack(cells(one)) for one in explanations]), titles, ['image', *methods])


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres explain`."""
  known = ','.join((*attribution.METHODS, *explain.LIBRARIES))
  parser.add_argument('source', metavar='RUN', help='a run, or weights: as of `jaxres predict`')
  parser.add_argument('images', metavar='IMAGE', nargs='+', help='files, or folders of them')
  parser.add_argument('--methods', default=','.join(attribution.METHODS), metavar='LIST', help=f'of {known}')
  parser.add_argument('--of', metavar='CLASS', help='the class to explain; the likeliest of each image')
  parser.add_argument('--out', default='explain.png', metavar='FILE', help='the picture to write (explain.png)')
  parser.add_argument('--maps', metavar='FILE', help='write the maps too: an .npz file')
  parser.add_argument('--batch_size', type=int, default=16, metavar='N', help='images at a time (16)')
  add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Write the picture, and say what each row is; return 2 where an image cannot be read."""
  check_range('--batch_size', args.batch_size, low=1)
  methods = explain.check_methods(args.methods)
  out = images.check_path('--out', args.out)
  maps = output_path(args.maps, '--maps') if args.maps else None
  paths = predict_lib.find_images(args.images)
  for flag, file in {'--out': out, '--maps': maps}.items():
    if file and file.exists() and any(path.exists() and path.samefile(file) for path in paths):
      raise InputError(flag, f'{file} is one of the images, and would be replaced', fix='give another name')
  predictor = read_predictor(args)
  predictor.get_model()
  runs.check_classes(predictor.task, 'jaxres explain')
  names = predictor.class_names
  check_word('--of', args.of, [None, *names], 'class')
  class_id = None if args.of is None else names.index(args.of)
  print(printable(f'explaining {len(paths)} images by {", ".join(methods)}; the first of them wait for the compiler'))
  print(printable(f'by {predictor.origin}'), flush=True)
  explanations, tell = [], make_progress_printer('explaining', explain.TELL_SECONDS, at_once=True)
  for one in explain.explain(predictor, paths, methods, class_id, args.batch_size, tell):
    if one.problem:
      print(printable(f'error: {one.path}: {one.problem}'), file=sys.stderr)
      continue
    is_complete = one.incompleteness is not None and one.incompleteness <= attribution.TOLERANCE
    error = f', integrated gradients complete to {one.incompleteness:.2%}' if is_complete else ''
    print(printable(f'{one.path}: {names[one.class_id]} {one.probability:.2%}{error}'))
    if one.incompleteness is not None and not is_complete:
      print(printable(f'warning: {one.path}: {explain.MISSED.format(one.incompleteness)}'), file=sys.stderr)
    explanations.append(one)
  if explanations:
    write(explanations, methods, names, out, maps)
    print(f'{printable(out)}: {len(explanations)} of {len(paths)} images, beside each its maps')
  return 0 if len(explanations) == len(paths) else 2


def write(
  explanations: Sequence[explain.Explanation],
  methods: Sequence[str],
  names: Sequence[str],
  out: pathlib.Path,
  maps: pathlib.Path | None,
) -> None:
  """Write the picture and, where ``maps`` names a file, the maps ``[images, H, W]`` by method."""
  images.write(out, draw(explanations, methods, names))
  if maps:
    maps = maps if maps.suffix == '.npz' else maps.with_name(f'{maps.name}.npz')  # as NumPy calls it
    arrays: dict[str, Any] = {method: np.stack([one.maps[method] for one in explanations]) for method in methods}
    with file_errors(maps), complete(maps) as file:
      np.savez(
        file,
        path=np.array([str(one.path) for one in explanations]),
        klass=[one.class_id for one in explanations],
        **arrays,
      )
