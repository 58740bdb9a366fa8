"""`jaxres doctor`: what is wrong with this machine, a config and its data, or a run, in plain words."""

import argparse
import collections
import contextlib
import hashlib
import importlib.metadata
import io
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.extend
import jaxlib.version
import numpy as np
from rich.table import Column, Table
from rich.text import Text

from jaxres import (
  backend,
  badstep,
  checkpoint,
  data,
  integrity,
  known_sums,
  log,
  plan,
  pretrained,
  programs,
  rows,
  xla_flags,
)
from jaxres import config as config_lib
from jaxres import workdir as run_dir
from jaxres.errors import InputError
from jaxres.files import DamagedError
from jaxres.paths import check_utf8, user_path

SHOWN_IDS = 8  # of a bad batch
LEAST_FREE_BYTES = 1 << 30  # of a disk, before it is warned of
RUN_FILES: dict[str, Callable[[pathlib.Path], Any]] = {
  'config.json': run_dir.read_config,
  'data.json': run_dir.read_data,
  'environment.json': run_dir.read_environment,
}
COLORS = {'ok': 'green', 'warning': 'yellow', 'problem': 'red'}


class Check(NamedTuple):
  """A row of the table."""

  subject: str
  verdict: Literal['ok', 'warning', 'problem']
  finding: str  # in plain words, and what to do


Checks = Iterator[Check]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the tool's arguments."""
  parser.add_argument('--config', help='look also at this config and at its data; --config.x.y=z overrides a field')
  parser.add_argument('--workdir', help='look also at this run: every checkpoint is read and verified')
  parser.add_argument('--replay', metavar='FILE', help='run the step of a bad_step_N.npz again')


def run(args: argparse.Namespace) -> int:
  """Print a table of checks; return 1 where there is a problem, else 0."""
  backend.keep_programs()
  checks = list(machine())
  if args.config:
    checks += guarded('config', lambda: configured(args.config, args.overrides))
  if args.workdir:
    checks += guarded('run', lambda: workdir(user_path(args.workdir, '--workdir')))
  if args.replay:
    checks += guarded('replay', lambda: replayed(user_path(args.replay, '--replay')))
  table = Table('what', 'verdict', Column('found', overflow='fold'))  # whole paths
  for subject, verdict, finding in checks:
    table.add_row(subject, Text(verdict, COLORS[verdict]), finding)
  log.console.print(table)
  counts = collections.Counter(str(check.verdict) for check in checks)
  plural = lambda verdict: verdict if verdict == 'ok' or counts[verdict] == 1 else f'{verdict}s'
  log.console.print(', '.join(f'{counts[verdict]} {plural(verdict)}' for verdict in COLORS))
  return int(counts['problem'] > 0)


def guarded(subject: str, checks: Callable[[], Checks]) -> list[Check]:
  """Return ``checks``, with the error that ends them as a problem."""
  found: list[Check] = []
  try:
    found.extend(checks())
  except InputError as error:
    found.append(Check(subject, 'problem', str(error)))
  return found


def machine() -> Checks:
  """Look at devices, versions, memory, the compile cache and the disk."""
  try:
    devices = jax.devices()
  except RuntimeError as error:
    yield Check('devices', 'problem', f'JAX finds none: {" ".join(str(error).split()):.300}')
    return
  kind = f'{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}), {os.cpu_count()} CPU cores'
  gpu = shutil.which('nvidia-smi') and jax.default_backend() == 'cpu'
  yield Check(
    'devices', *(('problem', f'{kind}, but there is an NVIDIA GPU: install jax[cuda12]') if gpu else ('ok', kind))
  )
  yield from versions()
  yield from memory(devices[0])
  yield sums()
  yield cache()
  yield disk(pathlib.Path.cwd())


def versions() -> Checks:
  """Look at the versions that must fit together."""
  ours, lib = jax.__version__, jaxlib.version.__version__
  fits = ours.split('.')[:2] == lib.split('.')[:2]
  fix = '' if fits else ': they must be of one release; install both anew'
  yield Check('jax, jaxlib', 'ok' if fits else 'problem', f'{ours}, {lib}{fix}')
  for requirement in importlib.metadata.requires('jaxres') or ():
    name, bounds = re.match(r'([\w.-]+)(?:\[[\w,]+\])?\s*([^;]*)', requirement).groups()  # type: ignore[union-attr]
    if 'extra ==' in requirement:
      continue
    try:
      found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      yield Check(name, 'problem', f'not installed; jaxres needs {name}{bounds}')
      continue
    if not _satisfies(found, bounds):
      yield Check(name, 'warning', f'{found}; jaxres is made for {bounds}')
  if jax.default_backend() != 'cpu':
    yield Check('platform', 'ok', ' '.join(jax.extend.backend.get_backend().platform_version.split()))
    for package in ('nvidia-cudnn-cu12', 'nvidia-cuda-runtime-cu12', 'jax-cuda12-plugin'):
      with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        yield Check(package, 'ok', importlib.metadata.version(package))


def _satisfies(version: str, bounds: str) -> bool:
  number = lambda text: tuple(int(part) for part in re.findall(r'\d+', text)[:3])
  for sign, bound in re.findall(r'(>=|<)([\d.]+)', bounds):
    if (number(version) < number(bound)) == (sign == '>='):
      return False
  return True


def memory(device: jax.Device) -> Checks:
  """Look at the memory of the host and of a device."""
  with contextlib.suppress(OSError, ValueError, KeyError):
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    kilobytes = {line.split(':')[0]: int(line.split()[1]) for line in lines}
    free, total = kilobytes['MemAvailable'] / 1e6, kilobytes['MemTotal'] / 1e6
    verdict: Literal['ok', 'warning'] = 'ok' if free > 1 else 'warning'
    yield Check('memory', verdict, f'{free:.1f} of {total:.1f} GB are free')
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if stats and 'bytes_limit' in stats:
    limit, used = stats['bytes_limit'] / 1e9, stats['bytes_in_use'] / 1e9
    yield Check('device memory', 'ok', f'{limit - used:.1f} of {limit:.1f} GB are free for JAX')


def sums() -> Check:
  """Look at whether XLA:CPU sums rightly, by default and as jaxres compiles, by programs known to be wrong."""
  lib, total = f'jaxlib {jaxlib.version.__version__} on a CPU', len(known_sums.PROGRAMS)
  if wrong := known_sums.wrong(with_options=True):
    user = ' (XLA_FLAGS ask for YNNPACK: leave that out)' if xla_flags.chosen() else ''
    return Check('sums', 'problem', f'{lib}: wrong, or ends the process, as jaxres compiles{user}: {"; ".join(wrong)}')
  wrong = known_sums.wrong(with_options=False)
  if not wrong:
    return Check('sums', 'ok', f'{lib}: {total} of {total} known programs are right')
  found = f'{lib}: {len(wrong)} of {total} known programs are wrong or end the process by default'
  return Check('sums', 'ok', f'{found}; jaxres compiles without YNNPACK, and all are right')


def cache() -> Check:
  """Look at where compiled programs are kept."""
  directory = jax.config.values['jax_compilation_cache_dir']
  if directory is None:
    fix = 'set XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR to a directory that can be written'
    return Check('compile cache', 'warning', f'none, so that every run compiles anew: {fix}')
  files = [path for path in pathlib.Path(directory).glob('*-cache') if path.is_file()]
  return Check('compile cache', 'ok', f'{directory}: {len(files)} programs, {_megabytes(files)}')


def disk(directory: pathlib.Path) -> Check:
  """Look at the room on the disk of ``directory``."""
  free = shutil.disk_usage(directory).free
  verdict: Literal['ok', 'warning'] = 'ok' if free > LEAST_FREE_BYTES else 'warning'
  return Check('disk', verdict, f'{free / 1e9:,.1f} GB are free in {directory}')


def configured(path: str, overrides: list[str]) -> Checks:
  """Look at a config and at its data."""
  options = config_lib.to_dict(config_lib.load(path, overrides))
  yield Check('config', 'ok', f'{path}: every field is known and of its type')
  yield from odd(options)
  dataset, bad = load(options)
  info = dataset.info
  if bad:
    finding = f'{len(bad)} cannot be decoded, data.max_bad is {options["data"]["max_bad"]}: {"; ".join(bad):.2000}'
    yield Check('images', 'problem' if len(bad) > options['data']['max_bad'] else 'warning', finding)
  yield Check('data', 'ok', f'images of {info.image_shape}; {"; ".join(f"{k}: {v}" for k, v in info.splits.items())}')
  splits = {'train': dataset.train, 'val': dataset.val, 'test': dataset.test}
  found = {name: look(pipeline) for name, pipeline in splits.items() if pipeline is not None}
  for name, (labels, _) in found.items():
    yield classes(name, labels, info.class_names)
  yield duplicates({name: digests for name, (_, digests) in found.items()})


def load(options: Mapping[str, Mapping[str, Any]]) -> tuple[data.Dataset, list[str]]:
  """Return the data of a config, all of which is checked, and a line for each image that cannot be decoded."""
  fields = options['train']
  patient = {**options, 'data': {**options['data'], 'max_bad': 1 << 40}}
  with contextlib.redirect_stderr(io.StringIO()) as said:
    parts = programs.make_parts(patient)
    for pipeline in (parts.dataset.train, parts.dataset.val, parts.dataset.test):
      for _ in pipeline.eval_feeds(256) if pipeline is not None else ():  # which reads every image
        pass
  lengths = (fields[name] for name in ('epochs', 'eval_every_epochs', 'dry_run', 'overfit_one_batch'))
  spans = plan.make_plan(parts.dataset.train, *lengths)
  programs.make_programs(parts, spans, **{name: fields[name] for name in programs.FIELDS})
  bad = [line for line in said.getvalue().splitlines() if line.startswith('bad ')]
  return parts.dataset, [re.sub(r' \d+ of at most \d+(, left out)?', '', line) for line in bad]


def odd(options: Mapping[str, Mapping[str, Any]]) -> Checks:
  """Yield fields that are not used, or that hardly anybody means."""
  model, train, optim, source = (options[name] for name in ('model', 'train', 'optim', 'data'))
  finds = {
    'train.patience': train['patience'] and not source['val'] and 'early stopping needs data.val',
    'data.batch_size': source['batch_size'] % jax.device_count() and f'{jax.device_count()} devices do not divide it',
    'optim.momentum': optim['name'] in ('adam', 'adamw', 'lamb') and optim['momentum'] not in (0.0, 0.9)
    and f'{optim["name"]} does not use it',
    'optim.warmup_epochs': optim['warmup_epochs'] >= train['epochs'] and 'it is as long as the training',
    'optim.lr': optim['name'] in ('adam', 'adamw') and optim['lr'] > 0.02 and 'it is high for this optimiser',
    'train.dry_run': train['dry_run'] and 'the run takes two steps, aside',
    'model.dtype': model['dtype'] == 'float16' and 'float16 has no loss scaling here; bfloat16 needs none',
  }  # fmt: skip
  for field, finding in finds.items():
    if finding:
      yield Check(field, 'warning', str(finding))


def look(pipeline: data.Pipeline) -> tuple[np.ndarray, list[bytes]]:
  """Return the label and a digest of the pixels of every example; each is read and decoded."""
  labels, digests = [], []
  for feed in pipeline.eval_feeds(256):
    fetch: Callable[..., data.Batch] = pipeline.fetch
    batch = jax.device_get(fetch(pipeline.constants, feed))
    keep = batch['mask']
    labels.append(batch['label'][keep])
    digests += [hashlib.sha256(np.ascontiguousarray(image)).digest() for image in batch['image'][keep]]
  return np.concatenate(labels), digests


def classes(name: str, labels: np.ndarray, class_names: tuple[str, ...]) -> Check:
  """Look at the labels of a split."""
  if labels.min() < 0 or labels.max() >= len(class_names):
    found = f'labels from {labels.min()} to {labels.max()}, expected 0 to {len(class_names) - 1}'
    return Check(f'{name} labels', 'problem', found)
  counts = np.bincount(labels, minlength=len(class_names))
  empty = [class_names[k] for k in np.flatnonzero(counts == 0)]
  found = f'{len(labels):,} examples of {len(class_names)} classes, {counts.min():,} to {counts.max():,} of each'
  if empty:
    return Check(f'{name} labels', 'warning', f'{found}; none of {", ".join(empty):.200}')
  return Check(f'{name} labels', 'ok' if counts.max() < 10 * counts.min() else 'warning', found)


def duplicates(digests: Mapping[str, list[bytes]]) -> Check:
  """Look for the same image in two splits."""
  found = []
  names = list(digests)
  for i, one in enumerate(names):
    for other in names[i + 1 :]:
      places = {digest: at for at, digest in enumerate(digests[one])}
      pairs = [(places[digest], at) for at, digest in enumerate(digests[other]) if digest in places]
      if pairs:
        found.append(f'{len(pairs)} of {other} are in {one} too, such as {other} {pairs[0][1]} = {one} {pairs[0][0]}')
  finding = '; '.join(found) or 'no image is in two splits, pixel by pixel'
  return Check('duplicates', 'warning' if found else 'ok', finding)


def workdir(directory: pathlib.Path) -> Checks:
  """Look at a run: its files, and every checkpoint."""
  checkpoints = check_utf8(directory, '--workdir').absolute() / 'checkpoints'
  if not checkpoints.is_dir():
    inside = pretrained.runs_in(directory)
    if inside:
      raise InputError(
        f'--workdir: {directory}: {len(inside)} runs are in it; name one: {" ".join(map(str, inside[:8]))}'
      )
    raise InputError(f'--workdir: {directory}: no checkpoints there; expected the workdir of a run')
  if holder := run_dir.trainer(directory):
    yield Check('training', 'ok', f'{holder} says that it trains here')
  steps = looked_at(checkpoints, run_dir.read_json(directory, 'config.json'))
  whole = sum(check.verdict != 'problem' for check in steps)
  yield from steps
  if not steps:
    yield Check('checkpoints', 'warning', 'none yet: the same command begins anew')
  elif not whole:
    yield Check('checkpoints', 'problem', f'{checkpoints}: none of {len(steps)} is whole; move them away to begin anew')
  for path in sorted(checkpoints.glob('*.bad*')):
    yield Check(path.name, 'warning', f'{path}: damaged, was put aside')
  for path in () if holder else sorted(checkpoints.glob('*tmp*')):  # a training that goes on has some
    yield Check(path.name, 'warning', f'{path}: left by a save that was cut short; the next run deletes it')
  for name in integrity.odd(checkpoints):
    yield Check(f'checkpoints/{name}', 'warning', f'{checkpoints / name}: no checkpoint, though it is called as one')
  yield from run_files(directory)
  for path in sorted(directory.glob('bad_step_*.npz')):
    yield Check(path.name, 'warning', f'a step was not finite: jaxres doctor --replay {path}')
  yield disk(directory)


def run_files(directory: pathlib.Path) -> Checks:
  """Look at what a run has written beside its checkpoints; yield what is damaged."""
  for name, read in RUN_FILES.items():
    try:
      read(directory)
    except DamagedError as error:
      yield Check(name, 'problem', f'{error}')
  _, damage = rows.read(directory / 'metrics.jsonl')
  if damage:
    yield Check('metrics.jsonl', 'warning', damage)


def looked_at(directory: pathlib.Path, config: Mapping[str, Any] | None) -> list[Check]:
  """Look at every checkpoint; again where a training has meanwhile replaced one that cannot be read."""
  checks: list[Check] = []
  for _ in range(integrity.MOST_LOOKS):
    paths = integrity.present(directory)
    before = integrity.identities(paths)
    checks = [verified(path, config) for path in paths.values()]
    damaged = any(check.verdict == 'problem' for check in checks)
    if not damaged or integrity.identities(integrity.present(directory)) == before:
      break
  return checks


def verified(path: pathlib.Path, config: Mapping[str, Any] | None = None) -> Check:
  """Read a checkpoint whole and compare it with its digests, and what it was made by with ``config``."""
  subject = f'checkpoint {path.name}'
  try:
    saved = integrity.read(path)
    checkpoint.check_made_by(saved.about, config, path)
  except integrity.DamagedError as error:
    return Check(subject, 'problem', f'damaged: {error}')
  except InputError as error:
    return Check(subject, 'problem', str(error))
  bad = next((name for name, array in saved.state.items() if not integrity.is_finite(array)), None)
  if bad:
    return Check(subject, 'problem', f'{bad} is not finite')
  size = sum(array.nbytes for array in saved.state.values()) / 1e6
  if not saved.verified:
    return Check(
      subject, 'warning', f'{len(saved.state)} arrays, {size:,.1f} MB; saved without digests by an older jaxres'
    )
  finding = f'{len(saved.state)} arrays, {size:,.1f} MB, all as they were saved'
  return Check(subject, 'ok', f'{finding}; digest {integrity.state_digest(saved.digests, saved.progress)[:16]}')


def replayed(path: pathlib.Path) -> Checks:
  """Run a bad step again."""
  then, now, ids = badstep.replay(path)
  yield Check('then', 'problem', then.describe())
  shown = ', '.join(map(str, ids[:SHOWN_IDS])) + (', ...' if len(ids) > SHOWN_IDS else '')
  yield Check('examples', 'ok', f'{len(ids)} of the training split: {shown} (all of them: ids in the file)')
  if now.bad:
    yield Check('now', 'problem', f'again {now.describe()}')
  else:
    yield Check('now', 'warning', f'{now.describe()}: it does not happen again, so look at the machine and its memory')


def _megabytes(files: list[pathlib.Path]) -> str:
  return f'{sum(path.stat().st_size for path in files) / 1e6:,.0f} MB'
