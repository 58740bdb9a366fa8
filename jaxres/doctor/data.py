"""Checks of a config and its data."""

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend
import numpy as np

from jaxres import command_line, data, tasks
from jaxres import config as config_lib
from jaxres.data.types import Labels
from jaxres.doctor.check import Check, Checks, collect_checks
from jaxres.train.setup import make_setup


def check_config(path: str, overrides: list[str]) -> Checks:
  """Look at a config and at its data; what is wrong with the one does not hide what is wrong with the other."""
  options = config_lib.to_dict(command_line.load(path, overrides))
  yield Check('config', 'ok', f'{path}: every field is known and of its type')
  yield from check_fields(options)
  task = tasks.make_from(options['train'])
  dataset, bad = load(options, task.labels)
  yield from collect_checks('config', lambda: set_up(options, dataset))
  info = dataset.info
  if bad:
    finding = f'{len(bad)} cannot be decoded, data.max_bad is {options["data"]["max_bad"]}: {"; ".join(bad):.2000}'
    yield Check('images', 'problem' if len(bad) > options['data']['max_bad'] else 'warning', finding)
  yield Check('data', 'ok', f'images of {info.image_shape}; {"; ".join(f"{k}: {v}" for k, v in info.splits.items())}')
  splits = {'train': dataset.train, 'val': dataset.val, 'test': dataset.test}
  contents = {name: read_examples(pipeline) for name, pipeline in splits.items() if pipeline is not None}
  for name, (labels, _) in contents.items():
    yield (
      check_classes(name, labels, info.class_names) if task.labels.are_classes else targets(name, labels, task.labels)
    )
  yield check_duplicates({name: digests for name, (_, digests) in contents.items()})


def set_up(options: Mapping[str, Mapping[str, Any]], dataset: data.Dataset) -> Checks:
  """Make all that the config asks for, which raises what is wrong with it; yield nothing."""
  make_setup(options, dataset=dataset)
  yield from ()


def load(options: Mapping[str, Mapping[str, Any]], labels: Labels) -> tuple[data.Dataset, list[str]]:
  """Return the data of a config, all of which is checked, and a line for each image that cannot be decoded."""
  patient = {**options['data'], 'max_bad': 1 << 40}
  with contextlib.redirect_stderr(io.StringIO()) as stderr:
    dataset = data.load(**patient, labels=labels)
    for pipeline in (dataset.train, dataset.val, dataset.test):
      for _ in pipeline.eval_inputs(256) if pipeline is not None else ():  # which reads every image
        pass
  bad = [line for line in stderr.getvalue().splitlines() if line.startswith('bad ')]
  return dataset, [re.sub(r' \d+ of at most \d+(, left out)?', '', line) for line in bad]


def check_fields(options: Mapping[str, Mapping[str, Any]]) -> Checks:
  """Yield fields that are not used, or that hardly anybody means."""
  model, train, optim, source = (options[name] for name in ('model', 'train', 'optim', 'data'))
  finds = {
    'train.patience': train['patience'] and not source['val'] and 'early stopping needs data.val',
    'data.batch_size': source['batch_size'] % jax.device_count() and f'{jax.device_count()} devices do not divide it',
    'optim.momentum': optim['name'] in ('adam', 'adamw', 'lamb') and optim['momentum'] not in (0.0, 0.9)
    and f'{optim["name"]} does not use it',
    'optim.warmup_epochs': optim['warmup_epochs'] >= train['epochs'] and 'it is as long as the training',
    'optim.lr': optim['name'] in ('adam', 'adamw') and optim['lr'] > 0.02 and 'it is high for this optimizer',
    'train.dry_run': train['dry_run'] and 'the run takes two steps, aside',
    'model.dtype': model['dtype'] == 'float16' and 'float16 has no loss scaling here; bfloat16 needs none',
  }  # fmt: skip
  for field, finding in finds.items():
    if finding:
      yield Check(field, 'warning', str(finding))


def read_examples(pipeline: data.Pipeline) -> tuple[np.ndarray, list[bytes]]:
  """Return the label and a digest of the pixels of every example; each is read and decoded."""
  labels, digests = [], []
  for feed in pipeline.eval_inputs(256):
    get_batch: Callable[..., data.Batch] = pipeline.get_batch
    batch = jax.device_get(get_batch(pipeline.device_data, feed))
    keep = batch['mask']
    labels.append(batch['label'][keep])
    digests += [hashlib.sha256(np.ascontiguousarray(image)).digest() for image in batch['image'][keep]]
  return np.concatenate(labels), digests


def check_classes(name: str, labels: np.ndarray, class_names: tuple[str, ...]) -> Check:
  """Look at the labels of a split."""
  if labels.min() < 0 or labels.max() >= len(class_names):
    finding = f'labels from {labels.min()} to {labels.max()}, expected 0 to {len(class_names) - 1}'
    return Check(f'{name} labels', 'problem', finding)
  counts = np.bincount(labels, minlength=len(class_names))
  empty = [class_names[k] for k in np.flatnonzero(counts == 0)]
  finding = f'{len(labels):,} examples of {len(class_names)} classes, {counts.min():,} to {counts.max():,} of each'
  if empty:
    return Check(f'{name} labels', 'warning', f'{finding}; none of {", ".join(empty):.200}')
  return Check(f'{name} labels', 'ok' if counts.max() < 10 * counts.min() else 'warning', finding)


def targets(name: str, labels: np.ndarray, of: Labels) -> Check:
  """Look at the labels of a split that are not of classes."""
  finding = f'{len(labels):,} examples with {of.kind} from {labels.min():.4g} to {labels.max():.4g}'
  if labels.min() == labels.max():
    return Check(f'{name} labels', 'warning', f'{finding}: all are alike')
  return Check(f'{name} labels', 'ok', finding)


def check_duplicates(digests: Mapping[str, list[bytes]]) -> Check:
  """Look for the same image in two splits."""
  findings = []
  names = list(digests)
  for i, one in enumerate(names):
    for other in names[i + 1 :]:
      places = {digest: at for at, digest in enumerate(digests[one])}
      pairs = [(places[digest], at) for at, digest in enumerate(digests[other]) if digest in places]
      if pairs:
        findings.append(
          f'{len(pairs)} of {other} are in {one} too, such as {other} {pairs[0][1]} = {one} {pairs[0][0]}'
        )
  finding = '; '.join(findings) or 'no image is in two splits, pixel by pixel'
  return Check('duplicates', 'warning' if findings else 'ok', finding)
