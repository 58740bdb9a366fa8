"""`jaxres crossval`: train once for each fold of the training examples, and evaluate on that fold."""

from collections.abc import Mapping
from typing import Any

from jaxres import config as config_lib
from jaxres import workdir as workdir_lib
from jaxres.errors import InputError
from jaxres.paths import user_path
from jaxres.train import seeds


def cross_validate(config: Mapping[str, Any], workdir: str, folds: int) -> dict[str, seeds.Summary]:
  """Train ``config`` once without each fold, and print mean and spread of the metrics.

  Run ``k`` is a separate run in ``<workdir>/fold<k>``, with fold ``k`` as its validation split: ``val/...`` are the
  metrics on it. Only the examples differ; the seeds are those of ``config``. An interrupted series continues.

  Args:
    config: as of ``train.train_and_evaluate``.
    workdir: gets the runs' directories and ``folds.json``, the summaries by metric.
    folds: how many, 2 or more.

  Returns:
    The summary of every metric. Its interval assumes independent folds; their training examples
    overlap, so it is too narrow (Bengio and Grandvalet 2004, https://jmlr.org/papers/v5/grandvalet04a.html).

  Raises:
    InputError: as ``train.train_and_evaluate``.
  """
  options = config_lib.to_dict(config_lib.complete(config))
  configs = {f'fold{k}': {**options, 'data': {**options['data'], 'fold': (k, folds)}} for k in range(folds)}
  check_rules(workdir, configs)
  return seeds.series(configs, workdir, 'folds')


def check_rules(workdir: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
  """Raise InputError where some folds of files were drawn by an older jaxres and the rest would be drawn otherwise."""
  rules = {name: workdir_lib.split_rule(user_path(workdir, '--workdir') / name) for name in configs}
  by_name = any(options['data']['name'] in ('folder', 'csv') for options in configs.values())
  if by_name and len(set(rules.values())) > 1:
    old, new = min(rules, key=rules.__getitem__), max(rules, key=rules.__getitem__)
    problem = f'{old} was drawn by an older jaxres, and {new} would be drawn by another rule: the folds would overlap'
    raise InputError('--workdir', f'{workdir}: {problem}', fix='use another --workdir')
