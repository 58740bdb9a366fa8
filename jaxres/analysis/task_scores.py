"""What outputs are worth by the metrics of their task, whatever it is, with intervals and comparisons."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxres.analysis.scores import CONFIDENCE, RESAMPLES, Scores
from jaxres.evaluate import Outputs
from jaxres.runtime.compiler import jit
from jaxres.tasks import Task


def sum_each(outputs: Outputs, task: Task) -> dict[str, np.ndarray]:
  """Return what each example adds to the sums of the task, and to their ``count``: float64 ``[N]`` by name."""

  @jit
  def of_each(predicted: jax.Array, labels: jax.Array) -> Any:
    def of_one(one: jax.Array, label: jax.Array) -> Any:
      batch = {'label': label[None]}
      return task.sums(task.eval_loss(one[None], batch), one[None], batch)

    return jax.vmap(of_one)(predicted, labels)

  return {name: np.asarray(x, np.float64) for name, x in of_each(outputs.logits, outputs.labels).items()}


def score_draws(each: Mapping[str, np.ndarray], task: Task, seed: int = 0) -> list[dict[str, float]]:
  """Return the metrics of ``RESAMPLES`` bootstrap samples of the examples; equal seeds draw the same examples.

  Args:
    each: of ``sum_each``.
    task: whose metrics they are.
    seed: of the draws.
  """
  rng, size = np.random.default_rng(seed), len(each['count'])
  draws = (rng.integers(0, size, size) for _ in range(RESAMPLES))
  return [task.means({name: float(x[index].sum()) for name, x in each.items()}) for index in draws]


def interval(values: np.ndarray) -> tuple[float, float]:
  """Return the percentile interval of bootstrap ``values``."""
  low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
  return float(low), float(high)


def compare(tests: Mapping[str, Outputs], task: Task) -> dict[str, Any]:
  """Return the metrics of each network with their intervals, and how each two of them differ, ready for JSON.

  Args:
    tests: what each makes of the same examples, by its name.
    task: that all of them learn.

  Returns:
    ``metrics``: how each is called and written; ``runs`` by name: ``examples``, each metric, ``intervals`` and
    ``notes``; ``ensemble``: None; ``pairs``: of two ``runs`` the ``difference`` of the ``metric`` that the task
    monitors, second less first, with its paired bootstrap ``interval``.
  """
  each = {name: sum_each(test, task) for name, test in tests.items()}
  draws = {run: score_draws(sums, task) for run, sums in each.items()}
  means = {run: task.means({name: float(x.sum()) for name, x in sums.items()}) for run, sums in each.items()}
  names = [name for name in task.metrics if all(name in values for values in means.values())]
  runs: dict[str, Scores] = {
    run: {
      'examples': len(test.labels),
      **{name: means[run][name] for name in names},
      'intervals': {name: interval(np.array([draw[name] for draw in draws[run]])) for name in names},
      'notes': [],
    }
    for run, test in tests.items()
  }
  pairs = []
  for a, b in itertools.combinations(tests, 2):
    gains = [second[task.monitor] - first[task.monitor] for first, second in zip(draws[a], draws[b], strict=True)]
    difference = means[b][task.monitor] - means[a][task.monitor]
    title = task.metrics[task.monitor].title
    pairs.append({'runs': [a, b], 'metric': title, 'difference': difference, 'interval': interval(np.array(gains))})
  known = {name: task.metrics[name]._asdict() for name in names}
  return {'metrics': known, 'runs': runs, 'ensemble': None, 'pairs': pairs}
