"""`jaxres errors`: find suspicious labels, near-duplicates across splits and the hardest classes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxres import evaluate
from jaxres.analysis import runs, scores
from jaxres.errors import InputError

BLOCK = 1024  # examples whose neighbors are computed at a time
WEAK_ERROR = 0.3  # errors of a network on a split, from which on its doubts say more of it than of the labels
LIST_COLUMNS = ('path', 'label', 'split', 'candidate', 'predicted', 'margin')  # the first three are those of training


class Pair(NamedTuple):
  """An example and its nearest neighbor in another split."""

  split: str
  example: int
  other_split: str
  other_example: int
  similarity: float  # cosine, of centered features


def label_margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Return the margin by which the most probable other class beats the label; wrong labels have the largest.

  The normalized margin of Northcutt et al. 2021 (https://arxiv.org/abs/1911.00068, section 3.2), of log-probabilities.

  Args:
    logits: float ``[N, K]``.
    labels: int ``[N]``.

  Returns:
    float64 ``[N]``, in nats; negative where the label is the most probable class.
  """
  others = logits.astype(np.float64)
  label_logit = others[np.arange(len(labels)), labels]
  others[np.arange(len(labels)), labels] = -np.inf
  return others.max(-1) - label_logit


def find_candidates(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Return which labels confident learning takes for wrong (Northcutt et al. 2021, section 3.1).

  A class is confident for an example where its probability is at least its mean over the examples with that label. A
  label is a candidate where the most probable of the confident classes is another one.

  Args:
    logits: float ``[N, K]``.
    labels: int ``[N]``.

  Returns:
    bool ``[N]``.
  """
  probabilities = scores.softmax(logits)
  count = probabilities.shape[-1]
  label_probability = probabilities[np.arange(len(labels)), labels]
  size = np.bincount(labels, minlength=count)
  usual = np.where(size > 0, np.bincount(labels, label_probability, minlength=count) / np.maximum(size, 1), np.inf)
  confident = np.where(probabilities >= usual, probabilities, -1.0)
  return (confident.max(-1) >= 0) & (confident.argmax(-1) != labels)


def find_nearest(features: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return each row's nearest row of ``others``: its index and their cosine similarity.

  Args:
    features: float32 ``[N, C]``.
    others: float32 ``[M, C]``; both are centered by its mean and divided by its standard deviation first.

  Returns:
    Indices, int ``[N]``, and similarities, float32 ``[N]``.
  """
  mean, deviation = others.mean(0), others.std(0) + 1e-6

  def unit(rows: np.ndarray) -> np.ndarray:
    rows = (rows - mean) / deviation
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)

  others, index, similarity = unit(others), [], []
  for start in range(0, len(features), BLOCK):
    products = unit(features[start : start + BLOCK]) @ others.T
    index.append(products.argmax(-1))
    similarity.append(products.max(-1))
  return np.concatenate(index), np.concatenate(similarity)


def find_near_duplicates(outputs: Mapping[str, evaluate.Outputs], top: int) -> list[Pair]:
  """Return the pairs of examples of two splits that are most alike, at most ``top``, the most similar first.

  Args:
    outputs: of ``runs.predict_split``, by split.
    top: pairs at most.
  """
  names, pairs = [*outputs], []
  for at, split in enumerate(names):
    for other in names[:at]:
      index, similarity = find_nearest(outputs[split].features, outputs[other].features)
      for i in np.argsort(-similarity, kind='stable')[:top]:
        pairs.append(Pair(split, int(i), other, int(index[i]), float(similarity[i])))
  return sorted(pairs, key=lambda pair: -pair.similarity)[:top]


def predict_splits(run: runs.Run, batch_size: int | None = None) -> dict[str, evaluate.Outputs]:
  """Return what the network of a run makes of every example of every split that it has.

  Args:
    run: of ``runs.read_runs``.
    batch_size: as of ``runs.predict_split``.

  Raises:
    InputError: as ``runs.predict_split``; or the task of the run has no classes, or the run no test split.
  """
  runs.check_classes(run.task, 'jaxres errors')
  splits = [split for split in runs.SPLITS if split != 'val' or run.dataset.val is not None]
  return {split: runs.predict_split(run, split, batch_size) for split in splits}


def find_label_errors(run: runs.Run, outputs: Mapping[str, evaluate.Outputs], top: int) -> dict[str, Any]:
  """Return what in the data of a run deserves a look, ready to be written as JSON.

  Args:
    run: of ``runs.read_runs``.
    outputs: of ``predict_splits``.
    top: how many examples and pairs at most.

  Returns:
    ``labels``: by split its examples, the fraction ``top1`` of them that the network names as they are labeled,
    whether it is too ``weak`` to judge labels, the number of ``candidates``, and the most suspicious ones, the
    worst first, each with its ``index`` in the split and its ``file`` (None where it is none); ``duplicates``:
    ``Pair``, the files and labels of the two, and the mean ``difference`` of their pixels in levels; ``classes``:
    recall on the test split, the hardest first; ``pairs``: the commonest confusions there.
  """
  test, names = outputs['test'], run.class_names
  by_class = scores.score_by_class(test.logits, test.labels, names, [])
  classes = [{'class': row['name'], 'recall': row['recall']} for row in by_class['classes'] if row['examples']]
  return {
    'origin': run.origin,
    'labels': {split: _labels(run, split, split_outputs, top) for split, split_outputs in outputs.items()},
    'duplicates': [_describe_pair(run, outputs, pair) for pair in find_near_duplicates(outputs, top)],
    'classes': sorted(classes, key=lambda row: row['recall']),
    'pairs': [
      {'class': names[a], 'predicted': names[b], 'examples': count}
      for a, b, count in scores.rank_confusions(by_class['confusion'])[:top]
    ],
  }


def _labels(run: runs.Run, split: str, split_outputs: evaluate.Outputs, top: int) -> dict[str, Any]:
  names = run.class_names
  worst = label_margin(split_outputs.logits, split_outputs.labels)
  likely = find_candidates(split_outputs.logits, split_outputs.labels)
  probabilities = scores.softmax(split_outputs.logits)
  rows = [
    {
      'index': int(i),
      'file': run.file_of(split, i),
      'label': names[split_outputs.labels[i]],
      'predicted': names[split_outputs.logits[i].argmax()],
      'probability_of_label': float(probabilities[i, split_outputs.labels[i]]),
      'margin': float(worst[i]),
      'candidate': bool(likely[i]),
    }
    for i in np.argsort(-worst, kind='stable')[:top]
    if worst[i] > 0
  ]
  top1 = float(np.mean(split_outputs.logits.argmax(-1) == split_outputs.labels))
  return {
    'examples': len(split_outputs.labels),
    'top1': top1,
    'weak': 1 - top1 > WEAK_ERROR,
    'candidates': int(likely.sum()),
    'worst': rows,
  }


def check_files(run: runs.Run) -> None:
  """Raise InputError where the examples of a run are no files, so that no list can name them."""
  if run.dataset.train.name_of is None:
    fix = "the JSON (--json) has the examples' indices"
    raise InputError(run.path, f"the examples of data.name='{run.config['data']['name']}' are no files", fix=fix)


def list_labels(run: runs.Run, outputs: Mapping[str, evaluate.Outputs]) -> list[dict[str, Any]]:
  """Return every example of a run, a row each: the candidates for wrong labels first, the worst before the others.

  Args:
    run: of ``runs.read_runs``, on data whose examples are files.
    outputs: of ``predict_splits``.

  Returns:
    Rows of ``LIST_COLUMNS``, which ``data.sources.csv_file`` reads as training data once labels are corrected.
    ``candidate`` is ``'yes'`` or empty, ``margin`` that of ``label_margin``.

  Raises:
    InputError: as ``check_files``.
  """
  check_files(run)
  names, rows = run.class_names, []
  for split, (logits, labels, *_) in outputs.items():
    likely, margins = find_candidates(logits, labels), label_margin(logits, labels)
    for i, label in enumerate(labels):
      cells = (run.file_of(split, i), names[label], split, 'yes' if likely[i] else '')
      rows.append(dict(zip(LIST_COLUMNS, (*cells, names[logits[i].argmax()], float(margins[i])), strict=True)))
  return sorted(rows, key=lambda row: -row['margin'] if row['candidate'] else np.inf)


def _describe_pair(run: runs.Run, outputs: Mapping[str, evaluate.Outputs], pair: Pair) -> dict[str, Any]:
  first, second = _images(run, pair)
  same = first.shape == second.shape
  labels = [
    run.class_names[outputs[s].labels[i]]
    for s, i in ((pair.split, pair.example), (pair.other_split, pair.other_example))
  ]
  difference = float(np.abs(first.astype(int) - second).mean()) if same else None
  files = {
    'file': run.file_of(pair.split, pair.example),
    'other_file': run.file_of(pair.other_split, pair.other_example),
  }
  return pair._asdict() | files | {'labels': labels, 'difference': difference}


def _images(run: runs.Run, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
  places = ((pair.split, pair.example), (pair.other_split, pair.other_example))
  first, second = (run.get_pipeline(split).get_images(np.array([index]))[0] for split, index in places)
  return first, second
