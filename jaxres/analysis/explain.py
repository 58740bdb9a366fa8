"""`jaxres explain`: draw what in image files a network goes by."""

import contextlib
import importlib
import io
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxres import predict as predict_lib
from jaxres.analysis import attribution
from jaxres.analysis import images as images_lib
from jaxres.data.augment import normalize
from jaxres.errors import InputError, check_word
from jaxres.predict import Predictor
from jaxres.runtime.compiler import jit

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
  class_id: int  # which is explained
  probability: float
  maps: dict[str, np.ndarray]  # float32 [H, W], by method
  incompleteness: float | None  # of integrated gradients, relative
  problem: str = ''  # why it cannot be explained; then the rest means nothing


def explain(
  predictor: Predictor,
  paths: Sequence[pathlib.Path],
  methods: Sequence[str],
  class_id: int | None = None,
  batch_size: int = 16,
  tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Explanation]:
  """Yield the explanation of each image, in the order of ``paths``.

  Args:
    predictor: of ``predict.load``.
    paths: image files.
    methods: of ``attribution.METHODS`` and ``LIBRARIES``.
    class_id: the class to explain; the likeliest of each image where it is None.
    batch_size: images at a time.
    tell: called with what is being done, often.
  """
  paths = predict_lib.check_paths(predictor, paths, batch_size)
  model = predictor.get_model().clone(dtype=np.float32)
  see = jit(lambda images: normalize(images, predictor.mean, predictor.std))
  run = jit(lambda images: jax.nn.softmax(model.apply(predictor.variables, see(images), train=False)))  # type: ignore[arg-type]
  size = min(batch_size, len(paths))
  for start in range(0, len(paths), size):
    here = paths[start : start + size]
    batch, problems = predict_lib.read_batch(here, predictor, size)
    readable = [i for i in range(len(here)) if i not in problems]
    if not readable:
      yield from (Explanation(path, batch[i], 0, 0.0, {}, None, problems[i]) for i, path in enumerate(here))
      continue
    batch[np.setdiff1d(np.arange(size), readable)] = batch[readable[0]]  # black ones take integrated gradients longest
    probabilities = np.asarray(run(batch))
    problems = predict_lib.not_finite(probabilities) | problems
    classes = probabilities.argmax(-1) if class_id is None else np.full(size, class_id)
    given = (model, predictor.variables, see(batch), jax.numpy.asarray(classes, np.int32))
    where = f'images {start + 1} to {start + len(here)} of {len(paths)}'
    maps = {name: _map(name, given, len(here), where, tell) for name in methods if name in attribution.METHODS}
    integrated = maps.get('integrated')
    errors = None if integrated is None else np.asarray(attribution.incompleteness(*given, integrated))
    for i, path in enumerate(here):
      if set(methods) & {*LIBRARIES}:
        tell(f'image {start + i + 1} of {len(paths)}: {", ".join(name for name in methods if name in LIBRARIES)}')
      image_maps = {name: stacked[i] for name, stacked in maps.items()}
      if i not in problems:
        image_maps |= {
          name: LIBRARIES[name](lambda images: np.asarray(run(images)), batch[i], int(classes[i]))
          for name in methods
          if name in LIBRARIES
        }
      chance = float(probabilities[i, classes[i]])
      error = None if errors is None else float(errors[i])
      yield Explanation(path, batch[i], int(classes[i]), chance, image_maps, error, problems.get(i, ''))


def _map(name: str, given: Any, count: int, where: str, tell: Callable[[str], None]) -> np.ndarray:
  """Return the maps by a method, float32 ``[B, H, W]``, and tell of its progress."""
  tell(f'{where}: {name}')
  if name != 'integrated':
    return np.asarray(attribution.METHODS[name](*given))
  done = lambda number: tell(f'{where}: {name}, {min(number, count)} of {count} done')
  model, variables, images, classes = given
  return np.asarray(attribution.integrated_gradients(model, variables, images, classes, tell=done))


def shap_map(probabilities: Probabilities, image: np.ndarray, class_id: int) -> np.ndarray:
  """Return SHAP's values of the pixels (Lundberg and Lee 2017), the mean color standing for what is hidden."""
  import shap

  masker = shap.maskers.Image(np.broadcast_to(image.mean((0, 1)), image.shape).astype(image.dtype), image.shape)
  explainer = shap.Explainer(lambda images: probabilities(np.asarray(images, np.uint8)), masker, seed=0)
  explanation = explainer(image[None], max_evals=EVALUATIONS, batch_size=50, outputs=[class_id], silent=True)
  return np.asarray(explanation.values[0, ..., 0].sum(-1), np.float32)


def lime_map(probabilities: Probabilities, image: np.ndarray, class_id: int) -> np.ndarray:
  """Return LIME's weights of the cells of a grid (Ribeiro et al. 2016), the mean color standing for what is hidden."""
  from lime.lime_image import LimeImageExplainer

  height, width, channels = image.shape
  rows, columns = (np.arange(size) * CELLS // size for size in (height, width))
  cells = np.unique(rows[:, None] * CELLS + columns[None], return_inverse=True)[1].reshape(height, width)
  shown = images_lib.as_rgb(image)
  with contextlib.redirect_stderr(io.StringIO()):  # a bar for each image
    explanation = LimeImageExplainer(random_state=0).explain_instance(
      shown,
      lambda images: probabilities(np.asarray(images, np.uint8)[..., :channels]),
      labels=(class_id,),
      hide_color=shown.mean((0, 1)),
      top_labels=None,
      num_samples=EVALUATIONS,
      batch_size=50,
      segmentation_fn=lambda _: cells,
      random_seed=0,
    )
  weights = dict(explanation.local_exp[class_id])
  return np.array([weights.get(cell, 0.0) for cell in range(cells.max() + 1)], np.float32)[cells]


LIBRARIES: dict[str, Callable[[Probabilities, np.ndarray, int], np.ndarray]] = {'shap': shap_map, 'lime': lime_map}


def check_methods(words: str) -> list[str]:
  """Return the methods in a list with commas.

  Raises:
    InputError: one is unknown, or its library is not installed.
  """
  methods = [word.strip() for word in words.split(',')]
  for word in methods:
    check_word('--methods', word, (*attribution.METHODS, *LIBRARIES), 'method')
    if word in LIBRARIES:
      try:
        importlib.import_module(word)
      except ImportError as error:
        raise InputError(f'--methods {word}', error, fix="install it with pip install 'jaxres[explain]'") from None
  return methods
