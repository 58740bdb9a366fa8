"""What logits are worth: scores of a classifier, its calibration, intervals and comparisons; host arrays alone."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxres import metrics
from jaxres.evaluate import Outputs

BINS = 15  # of the reliability curve: Guo et al. 2017
RESAMPLES = 1000
CONFIDENCE = 0.95
MAX_TEMPERATURE = 20.0  # of the search for one, whose other end is 1/20
AT_BOUND = (
  f'the temperature is at the bound of the search, {1 / MAX_TEMPERATURE:g} to {MAX_TEMPERATURE:g}: none between them '
  'is the best, and the values at that temperature are no calibration'
)
MAX_CLASSES = 100  # of the one-vs-one AUC, which takes the square of them
Scores = dict[str, Any]


def softmax(logits: np.ndarray) -> np.ndarray:
  """Return the probabilities, float64 ``[N, K]``."""
  return scipy.special.softmax(np.float64(logits), axis=-1)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Return the loss of each example in nats, float64 ``[N]``."""
  return -scipy.special.log_softmax(np.float64(logits), axis=-1)[np.arange(len(labels)), labels]


def rank_of_label(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Return ``metrics.label_rank`` of host arrays, int ``[N]``."""
  return np.asarray(metrics.label_rank(jnp.asarray(logits), jnp.asarray(labels)))


def assess(test: Outputs, class_names: Sequence[str], val: Outputs | None = None) -> Scores:
  """Return everything that is known of one network, ready to be written as JSON.

  Args:
    test: what it makes of the examples that it is judged by.
    class_names: in the order of the logits.
    val: of other examples, which the temperature is fitted on; None fits none.

  Returns:
    ``loss`` (nats), ``top1``, ``top5`` (None of 5 classes or fewer, where it is always 1); ``macro`` and ``weighted``
    means, and ``classes``, of precision, recall and F1; ``roc_auc_ovr``, ``roc_auc_ovo`` and ``average_precision``,
    means over the classes; ``confusion``, a row for each label; ``calibration``, ``temperature``,
    ``temperature_at_bound`` and ``calibrated``; ``intervals``; and ``notes``: what is undefined (None) and why. A class
    with no example has no part in any mean.
  """
  logits, labels, _ = test
  notes: list[str] = []
  temperature = None if val is None else fit_temperature(val.logits, val.labels)
  bounded = temperature is not None and is_at_bound(temperature)
  if bounded:
    notes.append(AT_BOUND)
  rank = rank_of_label(logits, labels)
  return (
    {
      'examples': len(labels),
      'loss': float(cross_entropy(logits, labels).mean()),
      'top1': float((rank < 1).mean()),
      'top5': float((rank < 5).mean()) if _has_top5(logits) else None,
    }
    | score_by_class(logits, labels, class_names, notes)
    | {
      'calibration': measure_calibration(logits, labels),
      'temperature': temperature,
      'temperature_at_bound': bounded,
      'calibrated': None if temperature is None else measure_calibration(logits / temperature, labels),
      'intervals': bootstrap_intervals(logits, labels),
      'notes': notes,
    }
  )


def score_by_class(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str], notes: list[str]) -> Scores:
  """Return scikit-learn's scores of each class, their means, and the confusion matrix; ``assess`` says which.

  The one-vs-one AUC is that of Hand and Till 2001.
  """
  from sklearn import metrics as sk  # slow

  count, probabilities = len(class_names), softmax(logits)
  predicted, everything = logits.argmax(-1), np.arange(count)
  present = np.unique(labels)
  notes += notes_on_classes(class_names, present)
  given = {'y_true': labels, 'y_pred': predicted, 'zero_division': 0}
  columns = sk.precision_recall_fscore_support(**given, labels=everything)
  areas = {
    k: (
      sk.roc_auc_score(labels == k, probabilities[:, k]),
      sk.average_precision_score(labels == k, probabilities[:, k]),
    )
    for k, scores in ((k, probabilities[:, k]) for k in (present if len(present) > 1 else ()))
  }
  means = {
    average: dict(
      zip(
        ('precision', 'recall', 'f1'),
        map(float, sk.precision_recall_fscore_support(**given, labels=present, average=average)[:3]),
        strict=True,
      )
    )
    for average in ('macro', 'weighted')
  }
  pairs = [] if len(present) > MAX_CLASSES else [*itertools.permutations(present, 2)]
  one_vs_one = [_pair_auc(sk, labels, probabilities, a, b) for a, b in pairs]
  return {
    **means,
    'roc_auc_ovr': _mean([auc for auc, _ in areas.values()]),
    'roc_auc_ovo': _mean(one_vs_one),
    'average_precision': _mean([precision for _, precision in areas.values()]),
    'classes': _class_rows(class_names, columns, areas, set(predicted.tolist())),
    'confusion': sk.confusion_matrix(labels, predicted, labels=everything).tolist(),
  }


def roc_curve(logits: np.ndarray, labels: np.ndarray, class_id: int) -> list[tuple[float, float]]:
  """Return the ROC curve of a class against the rest, by scikit-learn; empty where there is no example of one side.

  Args:
    logits: float ``[N, K]``; examples are ranked by the probability of the class.
    labels: int ``[N]``.
    class_id: the class.

  Returns:
    False positive rate and true positive rate, both in [0, 1], from (0, 0) to (1, 1); corners alone.
  """
  from sklearn import metrics as sk  # slow

  is_class = labels == class_id
  if is_class.all() or not is_class.any():
    return []
  false_positives, true_positives, _ = sk.roc_curve(is_class, softmax(logits)[:, class_id])
  return [*zip(false_positives.tolist(), true_positives.tolist(), strict=True)]


def notes_on_classes(class_names: Sequence[str], present: np.ndarray) -> list[str]:
  """Return what is undefined, or left out, of the scores of each class.

  Args:
    class_names: in the order of the logits.
    present: int ``[P]``, the classes that have examples.
  """
  notes, absent = [], [name for k, name in enumerate(class_names) if k not in present]
  if absent:
    shown = ', '.join(absent[:5]) + (f' and {len(absent) - 5} more' if len(absent) > 5 else '')
    notes.append(f'no example of {shown}: recall, F1 and AUC are undefined there, and left out of the means')
  if len(present) == 1:
    notes.append(f'every example is {class_names[present[0]]!r}: ROC-AUC is undefined')
  if len(present) > MAX_CLASSES:
    notes.append(f'{len(present)} classes: the one-vs-one AUC is left out beyond {MAX_CLASSES}')
  return notes


def _class_rows(
  class_names: Sequence[str], columns: Any, areas: Mapping[int, Any], predicted: set[int]
) -> list[Scores]:
  """Return the scores of each class, None where one is undefined: of what was never predicted, or has no example."""
  precision, recall, f1, examples = columns
  return [
    {
      'name': name,
      'examples': int(examples[k]),
      'precision': float(precision[k]) if k in predicted else None,
      'recall': float(recall[k]) if examples[k] else None,
      'f1': float(f1[k]) if examples[k] else None,
      'roc_auc': float(areas[k][0]) if k in areas else None,
      'average_precision': float(areas[k][1]) if k in areas else None,
    }
    for k, name in enumerate(class_names)
  ]


def _pair_auc(sk: Any, labels: np.ndarray, probabilities: np.ndarray, a: int, b: int) -> float:
  """Return how well the probability of ``a`` tells its examples from those of ``b``."""
  both = (labels == a) | (labels == b)
  area: float = sk.roc_auc_score(labels[both] == a, probabilities[both, a])
  return area


def _mean(values: Sequence[float]) -> float | None:
  return float(np.mean(values)) if values else None


def measure_calibration(logits: np.ndarray, labels: np.ndarray) -> Scores:
  """Return how far confidence is from accuracy (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

  Returns:
    ``ece`` and ``mce``: the mean and the largest gap over ``bins`` of equal width, each with its ``low`` and ``high``
    end, ``examples``, mean ``confidence`` and ``accuracy`` (None where it is empty); ``loss`` in nats; ``brier``: the
    mean squared distance of the probabilities from the label's one-hot vector.
  """
  probabilities = softmax(logits)
  confidence, right = probabilities.max(-1), logits.argmax(-1) == labels
  at = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
  bins: list[Scores] = []
  for k in range(BINS):
    in_bin = at == k
    means = (float(confidence[in_bin].mean()), float(right[in_bin].mean())) if in_bin.any() else (None, None)
    row = {'low': k / BINS, 'high': (k + 1) / BINS, 'examples': int(in_bin.sum())}
    bins.append(row | {'confidence': means[0], 'accuracy': means[1]})
  gaps = {k: abs(row['confidence'] - row['accuracy']) for k, row in enumerate(bins) if row['examples']}
  return {
    'ece': sum(gap * bins[k]['examples'] for k, gap in gaps.items()) / len(labels),
    'mce': max(gaps.values()),
    'loss': float(cross_entropy(logits, labels).mean()),
    'brier': float(1 + ((probabilities**2).sum(-1) - 2 * probabilities[np.arange(len(labels)), labels]).mean()),
    'bins': bins,
  }


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
  """Return what to divide logits by for the least cross-entropy, in 1/20 to 20 (Guo et al. 2017, section 4.2).

  Where there is no least one between them, such as of logits that are all right, it is ``is_at_bound``.
  """
  from scipy import optimize  # slow

  loss = lambda log_t: cross_entropy(logits / np.exp(log_t), labels).mean()
  end = np.log(MAX_TEMPERATURE)
  result = optimize.minimize_scalar(loss, bounds=(-end, end), method='bounded')
  bound = min((-end, end), key=loss)
  return float(np.exp(bound if loss(bound) <= result.fun + 1e-9 else result.x))  # flat towards it is as good as at it


def is_at_bound(temperature: float) -> bool:
  """Return whether a temperature of ``fit_temperature`` is where its search ends, not a least cross-entropy."""
  return bool(abs(np.log(temperature)) > 0.99 * np.log(MAX_TEMPERATURE))


def _has_top5(logits: np.ndarray) -> bool:
  return logits.shape[-1] >= metrics.MIN_TOP5_CLASSES


def bootstrap_intervals(logits: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, tuple[float, float]]:
  """Return the 95 % percentile bootstrap intervals over the examples: top-1, top-5 where it counts, loss, macro F1."""
  classes = logits.shape[-1]
  predicted, loss = logits.argmax(-1), cross_entropy(logits, labels)
  top5 = rank_of_label(logits, labels) < 5
  hit, present = predicted == labels, np.unique(labels)
  rng, rows = np.random.default_rng(seed), []
  for _ in range(RESAMPLES):
    index = rng.integers(0, len(labels), len(labels))
    label, prediction, right = labels[index], predicted[index], hit[index]
    counts = np.bincount(label, minlength=classes) + np.bincount(prediction, minlength=classes)
    f1 = 2 * np.bincount(label[right], minlength=classes) / np.maximum(counts, 1)
    rows.append((right.mean(), top5[index].mean(), loss[index].mean(), f1[present].mean()))
  prediction = dict(zip(('top1', 'top5', 'loss', 'macro_f1'), _percentiles(np.array(rows)), strict=True))
  return {name: interval for name, interval in prediction.items() if name != 'top5' or _has_top5(logits)}


def _percentiles(draws: np.ndarray) -> list[tuple[float, float]]:
  """Return the interval of each column of ``draws``."""
  low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
  return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def compare_paired(first: np.ndarray, second: np.ndarray, labels: np.ndarray, seed: int = 0) -> Scores:
  """Return how two networks differ on the same examples: McNemar's exact test, and the interval of the difference.

  Args:
    first: logits of one, float ``[N, K]``.
    second: of the other.
    labels: int ``[N]``.
    seed: of the bootstrap.

  Returns:
    ``only_first`` and ``only_second``: examples that one alone has right; ``p`` of McNemar 1947, two-sided, binomial;
    ``difference`` of top-1, second less first, and its 95 % paired bootstrap ``interval``.
  """
  from scipy import stats  # slow

  hits = [logits.argmax(-1) == labels for logits in (first, second)]
  only = [int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())]
  p = float(stats.binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0
  gain, rng = np.subtract(*hits[::-1], dtype=np.float64), np.random.default_rng(seed)
  draws = [gain[rng.integers(0, len(gain), len(gain))].mean() for _ in range(RESAMPLES)]
  (interval,) = _percentiles(np.array(draws)[:, None])
  names = ('only_first', 'only_second', 'p', 'difference', 'interval')
  return dict(zip(names, (*only, p, float(gain.mean()), interval), strict=True))


def ensemble(members: Sequence[Outputs]) -> Outputs:
  """Return the mean of the members' probabilities, as logits: their logarithms. The features are the first's."""
  mean = np.mean([softmax(member.logits) for member in members], axis=0)
  return members[0]._replace(logits=np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32))


def compare(
  tests: Mapping[str, Outputs], vals: Mapping[str, Outputs | None], class_names: Sequence[str]
) -> dict[str, Any]:
  """Return ``assess`` of each network and, of several, of their ensemble, and how each two of them differ.

  Args:
    tests: by the network's name, on the same examples.
    vals: by name, of what the temperature is fitted on, or None.
    class_names: in the order of the logits.

  Returns:
    ``runs`` by name; ``ensemble``, None of one network; ``pairs``, each with its ``runs``.
  """
  together = None
  if len(tests) > 1:
    held_out = [val for val in vals.values() if val is not None]
    same = len(held_out) == len(tests) and all(np.array_equal(v.labels, held_out[0].labels) for v in held_out)
    together = assess(ensemble([*tests.values()]), class_names, ensemble(held_out) if same else None)
  pairs = [
    {'runs': [a, b]} | compare_paired(tests[a].logits, tests[b].logits, tests[a].labels)
    for a, b in itertools.combinations(tests, 2)
  ]
  runs = {name: assess(test, class_names, vals[name]) for name, test in tests.items()}
  return {'runs': runs, 'ensemble': together, 'pairs': pairs}


def rank_confusions(confusion: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
  """Return ``(label, prediction, examples)`` of every confusion that there is, the commonest first."""
  matrix = np.array(confusion)
  np.fill_diagonal(matrix, 0)
  where = np.argwhere(matrix)
  rows = [(int(a), int(b), int(matrix[a, b])) for a, b in where]
  return sorted(rows, key=lambda row: -row[2])
