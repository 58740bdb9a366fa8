"""Against scikit-learn's own multi-class forms, closed forms and exact tests."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from jaxres.analysis import scores
from jaxres.evaluate import Outputs

NAMES = tuple('abcd')


def outputs(size: int = 300, seed: int = 0, classes: int = 4, scale: float = 1.0) -> Outputs:
  """Return logits that are right more often than not."""
  rng = np.random.default_rng(seed)
  labels = np.random.default_rng(7).integers(0, classes, size).astype(np.int32)
  logits = rng.normal(size=(size, classes)) + 1.5 * np.eye(classes)[labels]
  return Outputs((scale * logits).astype(np.float32), labels, np.zeros((size, 1), np.float32))


def test_scores_are_those_of_scikit_learn() -> None:
  test = outputs()
  actual = scores.assess(test, NAMES)
  logits = np.float64(test.logits)
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  predicted = logits.argmax(1)
  assert actual['top1'] == sk.accuracy_score(test.labels, predicted)
  assert 0.3 < actual['top1'] < 1
  assert actual['top5'] is None
  assert actual['loss'] == pytest.approx(sk.log_loss(test.labels, probabilities), rel=1e-6)
  assert actual['confusion'] == sk.confusion_matrix(test.labels, predicted).tolist()
  report = sk.classification_report(test.labels, predicted, target_names=NAMES, output_dict=True)
  for row in actual['classes']:
    expected = report[row['name']]
    assert row['examples'] == expected['support']
    assert [row[k] for k in ('precision', 'recall', 'f1')] == [expected[k] for k in ('precision', 'recall', 'f1-score')]
  for average in ('macro', 'weighted'):
    assert actual[average]['f1'] == pytest.approx(report[f'{average} avg']['f1-score'])
    assert actual[average]['recall'] == pytest.approx(report[f'{average} avg']['recall'])
  for kind in ('ovr', 'ovo'):
    expected = sk.roc_auc_score(test.labels, probabilities, multi_class=kind)
    assert actual[f'roc_auc_{kind}'] == pytest.approx(expected)
  expected = sk.average_precision_score(np.eye(4)[test.labels], probabilities, average='macro')
  assert actual['average_precision'] == pytest.approx(expected)
  assert actual['notes'] == []


def test_top5_of_many_classes() -> None:
  test = outputs(classes=12)
  actual = scores.assess(test, tuple(map(str, range(12))))
  assert actual['top5'] == sk.top_k_accuracy_score(test.labels, test.logits, k=5)
  assert actual['top1'] < actual['top5'] < 1
  assert actual['intervals']['top5'][0] < actual['top5'] < actual['intervals']['top5'][1]


def test_calibration_by_hand() -> None:
  """Two confidences: 0.9, right 3 times of 4, and 0.6, right 1 time of 2."""
  confidence = np.array([0.9] * 4 + [0.6] * 2)
  logits = np.log(np.stack([confidence, 1 - confidence], 1)).astype(np.float32)
  labels = np.array([0, 0, 0, 1, 0, 1], np.int32)
  actual = scores.measure_calibration(logits, labels)
  assert actual['ece'] == pytest.approx((4 * 0.15 + 2 * 0.1) / 6, abs=1e-6)
  assert actual['mce'] == pytest.approx(0.15, abs=1e-6)
  assert actual['brier'] == pytest.approx((3 * 0.02 + 1.62 + 0.32 + 0.72) / 6, abs=1e-6)
  filled = {round(row['confidence'], 5): row for row in actual['bins'] if row['examples']}
  assert [filled[c]['accuracy'] for c in (0.9, 0.6)] == [0.75, 0.5]
  assert all(row['low'] < row['confidence'] <= row['high'] for row in filled.values())
  assert sum(row['examples'] for row in actual['bins']) == 6


def test_the_temperature_undoes_a_scale() -> None:
  plain, hot = (scores.fit_temperature(outputs(scale=s).logits, outputs().labels) for s in (1.0, 4.0))
  assert hot == pytest.approx(4 * plain, rel=1e-3)
  actual = scores.assess(outputs(scale=4.0), NAMES, val=outputs(seed=1, scale=4.0))
  assert actual['calibrated']['ece'] < actual['calibration']['ece']
  assert actual['calibrated']['loss'] < actual['calibration']['loss']
  assert actual['temperature'] == pytest.approx(hot, rel=0.2)


@pytest.mark.parametrize('right', [True, False])
def test_a_temperature_at_the_bound_of_the_search_says_so(right: bool) -> None:
  """Logits that are all right want to be infinitely sure, those that are all wrong not at all."""
  labels = np.arange(40, dtype=np.int32) % 4
  val = Outputs(np.float32(3 * np.eye(4)[labels if right else (labels + 1) % 4]), labels, np.zeros((40, 1)))
  actual = scores.assess(outputs(), NAMES, val=val)
  assert actual['temperature_at_bound'] is True
  assert actual['temperature'] == pytest.approx(1 / 20 if right else 20, rel=0.05)
  assert scores.AT_BOUND in actual['notes']
  inside = scores.assess(outputs(), NAMES, val=outputs(seed=1))
  assert (inside['temperature_at_bound'], inside['notes']) == (False, [])


def test_intervals_are_those_of_the_normal_approximation() -> None:
  test = outputs(2000)
  actual = scores.bootstrap_intervals(test.logits, test.labels)
  hit = test.logits.argmax(1) == test.labels
  half = 1.96 * hit.std() / 2000**0.5
  np.testing.assert_allclose(actual['top1'], [hit.mean() - half, hit.mean() + half], atol=0.1 * half)
  loss = scores.cross_entropy(test.logits, test.labels)
  half = 1.96 * loss.std() / 2000**0.5
  np.testing.assert_allclose(actual['loss'], [loss.mean() - half, loss.mean() + half], atol=0.1 * half)
  low, high = actual['macro_f1']
  assert low < sk.f1_score(test.labels, test.logits.argmax(1), average='macro') < high
  assert set(actual) == {'top1', 'loss', 'macro_f1'}


def test_mcnemar_is_the_binomial_test() -> None:
  labels = np.zeros(50, np.int32)
  right, wrong = [1.0, 0.0], [0.0, 1.0]
  first = np.array([right] * 30 + [wrong] * 20, np.float32)
  second = np.array([right] * 26 + [wrong] * 4 + [right] * 12 + [wrong] * 8, np.float32)
  actual = scores.compare_paired(first, second, labels)
  assert (actual['only_first'], actual['only_second']) == (4, 12)
  assert actual['p'] == pytest.approx(2 * stats.binom.cdf(4, 16, 0.5))
  assert actual['difference'] == pytest.approx(8 / 50)
  assert actual['interval'][0] < 8 / 50 < actual['interval'][1]
  assert scores.compare_paired(first, first, labels)['p'] == 1.0


def test_the_ensemble_is_the_mean_of_probabilities() -> None:
  members = {'a': outputs(seed=0), 'b': outputs(seed=1)}
  actual = scores.compare(members, {'a': outputs(seed=2), 'b': outputs(seed=3)}, NAMES)
  mean = (scores.softmax(members['a'].logits) + scores.softmax(members['b'].logits)) / 2
  assert actual['ensemble']['top1'] == (mean.argmax(1) == members['a'].labels).mean()
  assert actual['ensemble']['top1'] > max(run['top1'] for run in actual['runs'].values())
  assert actual['ensemble']['temperature'] is not None
  (pair,) = actual['pairs']
  assert pair['runs'] == ['a', 'b']
  assert pair['difference'] == pytest.approx(actual['runs']['b']['top1'] - actual['runs']['a']['top1'])


def test_a_class_with_no_example_has_no_part_in_the_means() -> None:
  test = outputs()
  keep = test.labels != 2
  actual = scores.assess(Outputs(*(array[keep] for array in test)), NAMES)
  row = actual['classes'][2]
  assert row['examples'] == 0
  assert row['recall'] is row['f1'] is row['roc_auc'] is row['average_precision'] is None
  assert row['precision'] == 0
  others = [actual['classes'][k]['recall'] for k in (0, 1, 3)]
  assert actual['macro']['recall'] == pytest.approx(np.mean(others))
  assert len(actual['notes']) == 1
  assert actual['notes'][0].startswith('no example of c: recall, F1 and AUC are undefined')
  assert 0.5 < actual['roc_auc_ovo'] < 1


def test_a_single_class_says_that_there_is_no_auc() -> None:
  test = outputs()
  keep = test.labels == 1
  actual = scores.assess(Outputs(*(array[keep] for array in test)), NAMES)
  assert actual['roc_auc_ovr'] is actual['roc_auc_ovo'] is actual['average_precision'] is None
  assert actual['notes'][1] == "every example is 'b': ROC-AUC is undefined"
  assert actual['top1'] == actual['classes'][1]['recall']


def test_confusions_come_commonest_first() -> None:
  assert scores.rank_confusions([[5, 1, 0], [3, 9, 0], [0, 2, 1]]) == [(1, 0, 3), (2, 1, 2), (0, 1, 1)]
