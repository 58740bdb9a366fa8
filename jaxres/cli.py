"""`jaxres <tool>`: one table of tools; a tool's module is imported only when it is called."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from jaxres import __version__, outputs
from jaxres.errors import InputError, nearest, one_line


class Tool(NamedTuple):
  """A row of the table."""

  module: str  # has add_arguments(parser) -> None, run(args) -> int | None; --config.x.y=z words are args.overrides
  help: str  # one line
  trains: bool = False  # which is worth more than its output


TOOLS = {
  'profile': Tool('jaxres.profile', 'where the time of a training step goes'),
  'show-data': Tool('jaxres.show_data', 'draw what the model sees: images beside their augmentations'),
  'evaluate': Tool('jaxres.evaluate_runs', 'scores of runs, class by class, with intervals and calibration; compared'),
  'crossval': Tool(
    'jaxres.crossval', 'train once for each fold of the training examples: mean and spread', trains=True
  ),
  'errors': Tool('jaxres.mistakes', 'wrong labels, near-duplicates across splits, the hardest classes, as a page'),
  'explain': Tool('jaxres.explain', 'draw what in image files a network goes by: saliency, Grad-CAM, occlusion, ...'),
  'report': Tool('jaxres.report', 'one page on what runs learned: scores, curves, mistakes, what they look at'),
  'predict': Tool('jaxres.predict', 'the likeliest classes of image files, by a run or by weights'),
  'convert': Tool('jaxres.convert', 'torch weights to jaxres, and jaxres weights to torch'),
  'digest': Tool('jaxres.digest', 'one SHA-256 of all that a checkpoint holds'),
  'doctor': Tool('jaxres.doctor', 'what is wrong here: devices, versions, the data, the checkpoints, the config'),
  'prepare': Tool(
    'jaxres.data.prepare', 'make a data set ready to read: CIFAR-10 or -100, an image folder, a TFDS set in tfrecord'
  ),
}


class _Parser(argparse.ArgumentParser):
  """argparse whose errors are InputErrors: one line each, as everywhere else."""

  def error(self, message: str) -> NoReturn:
    """Raise what argparse would print under its usage."""
    raise InputError(f'{message}; `{self.prog} --help` shows what there is')


def main(argv: Sequence[str] | None = None) -> int | None:
  """Run a tool.

  Args:
    argv: the words after `jaxres`; None takes them from the command line.

  Returns:
    The tool's exit code; None is 0.

  Raises:
    SystemExit: after one line on standard error: 2 for bad input, 130 for an interrupt; or where the output cannot be
      written, see ``outputs.guard``.
  """
  words = sys.argv[1:] if argv is None else list(argv)
  if argv is None:
    tool = TOOLS.get(words[0]) if words else None
    outputs.guard(needed=not (tool and tool.trains))
  with one_line():
    try:
      return _run(words)
    finally:
      sys.stdout.flush()


def _check_places(args: argparse.Namespace) -> None:
  """Raise InputError where an argument is the URL of a bucket; TFDS reads its data from some."""
  from jaxres import files  # imports JAX, as the tool has

  for name, value in vars(args).items():
    for word in value if isinstance(value, list) else [value]:
      if isinstance(word, str) and '://' in word and name != 'data_dir':
        files.local(word, name)


def _run(words: list[str]) -> int | None:
  """Import the tool that the first word names and run it with the rest; alone, print the help."""
  called = words[0] if words else '--help'
  if not called.startswith('-') and called not in TOOLS:
    raise InputError(f'unknown tool {called!r}{nearest(called, TOOLS)}')
  parser = _Parser(prog='jaxres', description='The tools of jaxres.', allow_abbrev=False)
  parser.add_argument('--version', action='version', version=f'jaxres {__version__}')
  rows = parser.add_subparsers(title='tools', metavar='TOOL')
  for name, tool in TOOLS.items():
    row = rows.add_parser(name, help=tool.help, description=tool.help, allow_abbrev=False)
    if name == called:
      module = importlib.import_module(tool.module)
      module.add_arguments(row)
      row.set_defaults(run=module.run)
  overrides = [word for word in words if word.startswith('--config.')]
  args = parser.parse_args([word for word in words if word not in overrides] or [called])
  if overrides and 'config' not in args:
    parser.error(f'unrecognized arguments: {" ".join(overrides)}')
  _check_places(args)
  args.overrides = overrides
  if 'run' not in args:
    parser.error('the first word must be a tool')
  return args.run(args)
