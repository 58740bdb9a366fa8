"""`jaxres train`, which `python main.py` is too: what is slow to import waits until the command line is checked."""

import argparse
import importlib
import importlib.util
import os
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

from absl import logging

from jaxres import command_line
from jaxres.errors import InputError, check_range, one_line, printable
from jaxres.paths import shell_word, user_path

NEXT = """\
next: jaxres train --config resnet20_cifar_quick --workdir runs/quick
      trains on CIFAR-10 (170 MB, downloaded once) and reaches 83 % in a quarter of an hour on 2 CPU cores"""
RUNS = 'runs'  # the directory of runs whose --workdir is not given
REPORT_SECONDS = 30.0  # of --time, that are left for the report
_TIME = re.compile(r'(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?')


class _SetField(argparse.Action):
  """Adds ``--config.section.field=value`` to the overrides."""

  def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
    path = command_line.SHORT_FORMS[self.dest]
    namespace.short_forms = [*namespace.short_forms, f'--config.{path}={values}']


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres train`."""
  parser.epilog = (
    'Any field of the config is set as --config.section.field=value. The same command again continues the run.'
  )
  parser.add_argument(
    'data',
    metavar='DATA',
    nargs='?',
    help='a folder of images, a .csv, an .npz, or the name of a set: all else is chosen',
  )
  parser.add_argument('--config', metavar='NAME|FILE|RUN', help='such as digits, configs/digits.py, or a run to repeat')
  parser.add_argument('--workdir', metavar='DIR', help=f'of the run ({RUNS}/NAME)')
  parser.add_argument('--seeds', type=int, default=1, metavar='N', help='train N runs, in DIR/seed0, DIR/seed1, ...')
  parser.add_argument('--time', metavar='T', help='train as many epochs as fit into T, such as 30m or 1h30m')
  for flag, path in command_line.SHORT_FORMS.items():
    names = dict.fromkeys([f'--{flag}', f'--{flag.replace("-", "_")}'])
    parser.add_argument(*names, dest=flag, action=_SetField, metavar='X', help=f'short for --config.{path}=X')
  parser.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0, where there are several')
  parser.add_argument('--num_processes', type=int, metavar='N', help='how many processes there are')
  parser.add_argument('--process_id', type=int, metavar='I', help='which of them this is, from 0')
  parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
  parser.set_defaults(short_forms=[])


def run(args: argparse.Namespace) -> None:
  """Train."""
  logging.set_verbosity(logging.INFO if args.debug else logging.FATAL)  # of Orbax, which also raises its errors
  ends: dict[str, Any] = {'debug': args.debug, 'interrupted': 'interrupted; the same command continues the run'}
  started = time.monotonic()
  with one_line(**ends):
    overrides = _check(args)
    config = None if args.config is None else command_line.load(args.config, overrides)
    from jaxres.runtime import distributed, signals
    from jaxres.train import loop, seeds  # import JAX, which is slow

    with distributed.join(args.coordinator, args.num_processes, args.process_id, **ends), signals.exit_on_preemption():
      workdir = _workdir(args)
      first = workdir / 'seed0' if args.seeds > 1 else workdir
      if args.data is not None:
        config = _choose(args, first, overrides)
      config = _fit_time(args, first, config, started)
      if args.seeds == 1:
        loop.train_and_evaluate(config, workdir)
      else:
        seeds.train_and_evaluate(config, workdir, args.seeds)
      if args.data is not None and distributed.is_main_process() and not config['train']['dry_run']:
        _report(workdir)
      elif args.config is not None and config['data']['name'] == 'digits' and distributed.is_main_process():
        print(NEXT)


def _check(args: argparse.Namespace) -> list[str]:
  """Return the overrides of the command line, once it is seen that it makes sense.

  Raises:
    InputError: it does not.
  """
  for name, minimum in (('seeds', 1), ('num_processes', 1), ('process_id', 0)):
    check_range(f'--{name}', getattr(args, name), low=minimum)
  if args.data is not None and (word := re.fullmatch(r'([a-z_.]+)=(.*)', args.data)):
    hint = command_line.unknown_flag(word[1], word[2], [], command_line.all_fields())
    raise InputError('DATA', f'unexpected argument {args.data!r}', fix=hint)
  if args.data is not None and args.config is not None:
    fix = 'data.name and data.path say what a config trains on, such as --config.data.path=photos'
    raise InputError('DATA', f'{args.data}, but --config {args.config} has its data', fix=f'give one of them; {fix}')
  if args.data is None and args.config is None:
    raise InputError('DATA or --config', 'missing', fix=f'such as `jaxres train photos/` or `{command_line.USAGE}`')
  if args.time is not None:
    seconds_of(args.time)
  twice = {_path(word) for word in args.short_forms} & {_path(word) for word in args.overrides}
  if twice:
    raise InputError(f'--config.{min(twice)}', 'it is given twice, once in short', fix='give it once')
  return [*args.short_forms, *args.overrides]


def _path(word: str) -> str:
  return word.removeprefix('--config.').partition('=')[0]


def seconds_of(text: str) -> float:
  """Return the seconds of a time such as ``'30m'``, ``'1h30m'`` or ``'90s'``.

  Raises:
    InputError: it is none.
  """
  parts = _TIME.fullmatch(text)
  seconds = (
    sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0
  )
  if not seconds:
    raise InputError('--time', expected='a time such as 30m, 1h30m or 90s', found=repr(text))
  return seconds


def _workdir(args: argparse.Namespace) -> pathlib.Path:
  """Return where the run goes."""
  if args.workdir:
    return user_path(args.workdir, '--workdir')
  if args.config is not None:
    return pathlib.Path(RUNS, command_line.name_of(args.config))
  from jaxres.train import look

  return pathlib.Path(RUNS, look.name_of(args.data))


def _choose(args: argparse.Namespace, workdir: pathlib.Path, overrides: list[str]) -> Any:
  """Return the config of a training on DATA: that of the run which goes on, or a new one, which is printed."""
  import jax

  from jaxres import workdir as workdir_lib
  from jaxres.log.console import console
  from jaxres.train import choose, look, measure

  if jax.process_count() > 1:
    fix = 'choose in one process, `jaxres train DATA --config.train.dry_run=True`, and take the command that it prints'
    raise InputError('DATA', f'choices are made by one process, and here are {jax.process_count()}', fix=fix)
  given = command_line.parse_overrides(overrides)
  fields = look.locate(args.data, given.get('data.data_dir'))
  stored = None if given.get('train.dry_run') else workdir_lib.read_config(workdir)
  if stored:
    was = {name: stored['data'][name] for name in fields}
    if was != fields:
      fix = 'use another --workdir'
      raise InputError(
        '--workdir', f'{workdir} holds a run on {was.get("path") or was["name"]}, not on {args.data}', fix=fix
      )
    console.print(f'the choices are those of {workdir}/config.json')
    return command_line.override(stored, overrides)
  _check_writable(workdir)
  console.print(f'looking at {args.data}')
  facts = look.look(fields | {'data_dir': given.get('data.data_dir')})
  choices = choose.choose(facts, given)
  config = command_line.override(choose.merge(facts, choices), overrides)
  if 'data.batch_size' not in given:
    console.print('compiling a step, to see how much memory it takes')
    size, needed, free = measure.fit_batch(config)
    choices = choose.choose(facts, given | {'data.batch_size': size})
    config = command_line.override(choose.merge(facts, choices), [f'--config.data.batch_size={size}', *overrides])
    free_words = '' if free is None else f' of {free / 1e9:,.1f} GB that are free'
    choices.append(
      choose.Choice('memory', {'data.batch_size': size}, f'a step takes {needed / 1e9:,.2f} GB{free_words}')
    )
  choices = [each._replace(why=_describe_given(each, given) or each.why) for each in choices]
  _print_choices(facts, choices, config, args, workdir)
  return config


def _check_writable(workdir: pathlib.Path) -> None:
  """Raise InputError where ``workdir`` cannot be made or written, before anything that takes long."""
  there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
  if not os.access(there, os.W_OK | os.X_OK):
    raise InputError(
      '--workdir', f'cannot write in {there}: permission denied', fix='give --workdir a directory of yours'
    )


def _describe_given(choice: Any, given: Mapping[str, Any]) -> str:
  """Return which fields of ``choice`` the command line sets, in words; nothing where it sets none."""
  names = [path for path in choice.fields if path in given]
  return f'{", ".join(names)} as given' if names else ''


def _print_choices(facts: Any, choices: Any, config: Any, args: argparse.Namespace, workdir: pathlib.Path) -> None:
  from rich.table import Table

  from jaxres import config as config_lib
  from jaxres.log.console import console

  sections = config_lib.to_dict(config)
  table = Table('what', 'chosen', 'why')
  for what, fields, why in choices:
    values = {path: sections[path.partition('.')[0]][path.partition('.')[2]] for path in fields}
    table.add_row(what, ' '.join(f'{path.partition(".")[2]}={value}' for path, value in values.items()), why)
  kind = f'{facts.examples:,} training images of {facts.classes} classes, {facts.side} px, {facts.channels} channels'
  console.print(f'{args.data}: {kind}')
  console.print(table)
  seeds = ['--seeds', str(args.seeds)] if args.seeds > 1 else []
  place = workdir.parent if seeds else workdir
  words = [*command_line.words_of(config), '--workdir', str(place), *seeds]
  console.print(f'the same as: jaxres train {" ".join(map(shell_word, words))}')


def _fit_time(args: argparse.Namespace, workdir: pathlib.Path, config: Any, started: float) -> Any:
  """Return ``config`` with as many epochs as ``--time`` allows; those of the run which goes on, where it has some."""
  if args.time is None:
    return config
  from jaxres import workdir as workdir_lib
  from jaxres.log.console import console
  from jaxres.train import measure

  stored = workdir_lib.read_json(workdir, 'config.json')
  if stored:
    epochs = stored['train']['epochs']
    console.print(f'--time: {epochs:g} epochs, as {workdir}/config.json says')
  else:
    console.print('taking some steps, to see how long they take')
    setup, speed = measure.measure(config)
    left = seconds_of(args.time) / args.seeds - (time.monotonic() - started) - REPORT_SECONDS * (args.data is not None)
    epochs = measure.fit_epochs(speed, setup.plan.steps_per_epoch, left)
    console.print(f'--time: a step takes {speed.step:.3g} s, an evaluation {speed.evaluation:.3g} s: {epochs:g} epochs')
  every = max(epochs / 8, 1.0) if epochs > 1 else epochs
  words = [f'--config.train.epochs={epochs!r}', f'--config.train.eval_every_epochs={every!r}']
  words += [] if config['optim']['warmup_epochs'] < epochs / 2 else [f'--config.optim.warmup_epochs={epochs / 10:.3g}']
  return command_line.override(config, words)


def _report(workdir: pathlib.Path) -> None:
  """Write the report of a run or a series, where that tool is installed, and say where it is and what comes next.

  Where the data has no test split, the runs of a series hold out different examples: then each has a page.
  """
  from jaxres import workdir as workdir_lib
  from jaxres.weights import sources

  runs = sources.runs_in(workdir) or [workdir]
  tested = {(workdir_lib.read_data(run) or {}).get('splits', {}).get('test') for run in runs}
  name = f'{__package__}.report'  # a leaf, which may not be there
  if importlib.util.find_spec(name):
    report = importlib.import_module(name)
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    for place in [workdir] if len(tested) == 1 else runs:
      report.run(parser.parse_args([str(place)]))
  print(printable(f'next: jaxres predict {shell_word(str(runs[0]))} IMAGE'))
