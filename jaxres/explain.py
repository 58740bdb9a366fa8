"""`jaxres explain`: draw what in image files a network goes by."""

import argparse
import contextlib
import importlib
import io
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxres import attribution, pictures
from jaxres import predict as predict_lib
from jaxres.backend import jit
from jaxres.data.augment import normalize
from jaxres.data.notes import make_teller
from jaxres.errors import InputError, nearest, printable
from jaxres.files import file_errors
from jaxres.paths import output_path
from jaxres.predict import Predictor

TELL_SECONDS = 2.0  # from a line on the progress to the next
CELLS = 8  # a side: the regions that LIME switches off
EVALUATIONS = 500  # of the network for each image, by SHAP and by LIME

MISSED = (
  f'integrated gradients are NOT complete: their sum misses the score by {{:.2%}} after {attribution.MAX_GRADIENTS:,} '
  f'gradients, more than the {attribution.TOLERANCE:.1%} that is promised; do not rely on their map'
)

Probabilities = Callable[[np.ndarray], np.ndarray]  # of uint8 [N, H, W, C], float32 [N, K]


class Explanation(NamedTuple):
  """What a network makes of an image, and why."""

  path: pathlib.Path
  pixels: np.ndarray  # uint8 [H, W, C], as the network sees them
  klass: int  # which is explained
  probability: float
  maps: dict[str, np.ndarray]  # float32 [H, W], by method
  incompleteness: float | None  # of integrated gradients, relative
  problem: str = ''  # why it cannot be explained; then the rest means nothing


def explain(
  predictor: Predictor,
  paths: Sequence[pathlib.Path],
  methods: Sequence[str],
  klass: int | None = None,
  batch_size: int = 16,
  tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Explanation]:
  """Yield the explanation of each image, in the order of ``paths``.

  Args:
    predictor: of ``predict.load``.
    paths: image files.
    methods: of ``attribution.METHODS`` and ``LIBRARIES``.
    klass: the class to explain; the likeliest of each image where it is None.
    batch_size: images at a time.
    tell: called with what is being done, often.
  """
  paths = predict_lib.check_paths(predictor, paths, batch_size)
  model = predictor.model.clone(dtype=np.float32)
  see = jit(lambda images: normalize(images, predictor.mean, predictor.std))
  run = jit(lambda images: jax.nn.softmax(model.apply(predictor.variables, see(images), train=False)))  # type: ignore[arg-type]
  size = min(batch_size, len(paths))
  for begin in range(0, len(paths), size):
    here = paths[begin : begin + size]
    batch, problems = predict_lib.read_batch(here, predictor, size)
    readable = [i for i in range(len(here)) if i not in problems]
    if not readable:
      yield from (Explanation(path, batch[i], 0, 0.0, {}, None, problems[i]) for i, path in enumerate(here))
      continue
    batch[np.setdiff1d(np.arange(size), readable)] = batch[readable[0]]  # black ones take integrated gradients longest
    probabilities = np.asarray(run(batch))
    problems = predict_lib.not_finite(probabilities) | problems
    classes = probabilities.argmax(-1) if klass is None else np.full(size, klass)
    given = (model, predictor.variables, see(batch), jax.numpy.asarray(classes, np.int32))
    where = f'images {begin + 1} to {begin + len(here)} of {len(paths)}'
    maps = {name: _map(name, given, len(here), where, tell) for name in methods if name in attribution.METHODS}
    whole = maps.get('integrated')
    errors = None if whole is None else np.asarray(attribution.incompleteness(*given, whole))
    for i, path in enumerate(here):
      if set(methods) & {*LIBRARIES}:
        tell(f'image {begin + i + 1} of {len(paths)}: {", ".join(name for name in methods if name in LIBRARIES)}')
      own = {name: found[i] for name, found in maps.items()}
      if i not in problems:
        own |= {
          name: LIBRARIES[name](lambda images: np.asarray(run(images)), batch[i], int(classes[i]))
          for name in methods
          if name in LIBRARIES
        }
      chance = float(probabilities[i, classes[i]])
      error = None if errors is None else float(errors[i])
      yield Explanation(path, batch[i], int(classes[i]), chance, own, error, problems.get(i, ''))


def _map(name: str, given: Any, count: int, where: str, tell: Callable[[str], None]) -> np.ndarray:
  """Return the maps by a method, float32 ``[B, H, W]``, and tell of its progress."""
  tell(f'{where}: {name}')
  if name != 'integrated':
    return np.asarray(attribution.METHODS[name](*given))
  done = lambda number: tell(f'{where}: {name}, {min(number, count)} of {count} done')
  model, variables, images, classes = given
  return np.asarray(attribution.integrated_gradients(model, variables, images, classes, tell=done))


def shap_map(probabilities: Probabilities, image: np.ndarray, klass: int) -> np.ndarray:
  """Return SHAP's values of the pixels (Lundberg and Lee 2017), the mean colour standing for what is hidden."""
  import shap

  masker = shap.maskers.Image(np.broadcast_to(image.mean((0, 1)), image.shape).astype(image.dtype), image.shape)
  explainer = shap.Explainer(lambda images: probabilities(np.asarray(images, np.uint8)), masker, seed=0)
  found = explainer(image[None], max_evals=EVALUATIONS, batch_size=50, outputs=[klass], silent=True)
  return np.asarray(found.values[0, ..., 0].sum(-1), np.float32)


def lime_map(probabilities: Probabilities, image: np.ndarray, klass: int) -> np.ndarray:
  """Return LIME's weights of the cells of a grid (Ribeiro et al. 2016), the mean colour standing for what is hidden."""
  from lime.lime_image import LimeImageExplainer

  height, width, channels = image.shape
  rows, columns = (np.arange(size) * CELLS // size for size in (height, width))
  cells = np.unique(rows[:, None] * CELLS + columns[None], return_inverse=True)[1].reshape(height, width)
  shown = pictures.as_rgb(image)
  with contextlib.redirect_stderr(io.StringIO()):  # a bar for each image
    found = LimeImageExplainer(random_state=0).explain_instance(
      shown,
      lambda images: probabilities(np.asarray(images, np.uint8)[..., :channels]),
      labels=(klass,),
      hide_color=shown.mean((0, 1)),
      top_labels=None,
      num_samples=EVALUATIONS,
      batch_size=50,
      segmentation_fn=lambda _: cells,
      random_seed=0,
    )
  weights = dict(found.local_exp[klass])
  return np.array([weights.get(cell, 0.0) for cell in range(cells.max() + 1)], np.float32)[cells]


LIBRARIES: dict[str, Callable[[Probabilities, np.ndarray, int], np.ndarray]] = {'shap': shap_map, 'lime': lime_map}


def check_methods(words: str) -> list[str]:
  """Return the methods in a list with commas.

  Raises:
    InputError: one is unknown, or its library is not installed.
  """
  found = [word.strip() for word in words.split(',')]
  for word in found:
    if word not in (*attribution.METHODS, *LIBRARIES):
      raise InputError(f'--methods: unknown method {word!r}{nearest(word, (*attribution.METHODS, *LIBRARIES))}')
    if word in LIBRARIES:
      try:
        importlib.import_module(word)
      except ImportError as error:
        raise InputError(f"--methods {word}: {error}; install it with pip install 'jaxres[explain]'") from None
  return found


def draw(found: Sequence[Explanation], methods: Sequence[str], class_names: Sequence[str]) -> Image.Image:
  """Return a picture with a row for each image: itself, and each of its maps laid over it."""
  cells = lambda one: [pictures.as_rgb(one.pixels), *(pictures.overlay(one.pixels, one.maps[m]) for m in methods)]
  titles = [f'{one.path.name}: {class_names[one.klass]} {one.probability:.1%}' for one in found]
  return pictures.titled(np.stack([np.stack(cells(one)) for one in found]), titles, ['image', *methods])


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres explain`."""
  known = ','.join((*attribution.METHODS, *LIBRARIES))
  parser.add_argument('source', metavar='RUN', help='a run, or weights: as of `jaxres predict`')
  parser.add_argument('images', metavar='IMAGE', nargs='+', help='files, or folders of them')
  parser.add_argument('--methods', default=','.join(attribution.METHODS), metavar='LIST', help=f'of {known}')
  parser.add_argument('--of', metavar='CLASS', help='the class to explain; the likeliest of each image')
  parser.add_argument('--out', default='explain.png', metavar='FILE', help='the picture to write (explain.png)')
  parser.add_argument('--maps', metavar='FILE', help='write the maps too: an .npz file')
  parser.add_argument('--batch_size', type=int, default=16, metavar='N', help='images at a time (16)')
  predict_lib.add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Write the picture, and say what each row is; return 2 where an image cannot be read."""
  if args.batch_size < 1:
    raise InputError(f'--batch_size: expected 1 or more, found {args.batch_size}')
  methods = check_methods(args.methods)
  out = pictures.check_path('--out', args.out)
  maps = output_path(args.maps, '--maps') if args.maps else None
  paths = predict_lib.find(args.images)
  predictor = predict_lib.of_arguments(args)
  names = predictor.class_names
  if args.of is not None and args.of not in names:
    raise InputError(f'--of: unknown class {args.of!r}{nearest(args.of, names)}')
  klass = None if args.of is None else names.index(args.of)
  print(f'explaining {len(paths)} images by {", ".join(methods)}; the first of them wait for the compiler')
  print(printable(f'by {predictor.origin}'), flush=True)
  found, tell = [], make_teller('explaining', TELL_SECONDS, at_once=True)
  for one in explain(predictor, paths, methods, klass, args.batch_size, tell):
    if one.problem:
      print(printable(f'error: {one.path}: {one.problem}'), file=sys.stderr)
      continue
    is_complete = one.incompleteness is not None and one.incompleteness <= attribution.TOLERANCE
    error = f', integrated gradients complete to {one.incompleteness:.2%}' if is_complete else ''
    print(printable(f'{one.path}: {names[one.klass]} {one.probability:.2%}{error}'))
    if one.incompleteness is not None and not is_complete:
      print(printable(f'warning: {one.path}: {MISSED.format(one.incompleteness)}'), file=sys.stderr)
    found.append(one)
  if found:
    write(found, methods, names, out, maps)
    print(f'{printable(out)}: {len(found)} of {len(paths)} images, beside each its maps')
  return 0 if len(found) == len(paths) else 2


def write(
  found: Sequence[Explanation],
  methods: Sequence[str],
  names: Sequence[str],
  out: pathlib.Path,
  maps: pathlib.Path | None,
) -> None:
  """Write the picture and, where ``maps`` names a file, the maps ``[images, H, W]`` by method."""
  with file_errors(out):
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(found, methods, names).save(out)
  if maps:
    arrays: dict[str, Any] = {method: np.stack([one.maps[method] for one in found]) for method in methods}
    with file_errors(maps):
      np.savez(maps, path=np.array([str(one.path) for one in found]), klass=[one.klass for one in found], **arrays)
