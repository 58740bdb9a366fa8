"""`jaxres <tool>`: one table of tools; those whose file is there can be called, and are imported only then."""

import argparse
import difflib
import importlib.util
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import jaxres
from jaxres import command_line
from jaxres.errors import InputError, nearest, one_line
from jaxres.runtime import outputs, xla_flags


class Tool(NamedTuple):
  """A row of the table."""

  module: str  # has add_arguments(parser) -> None, run(args) -> int | None; --config.x.y=z words are args.overrides
  help: str  # one line
  trains: bool = False  # which is worth more than its output


ROWS = {
  'train': Tool(
    'jaxres.tools.train', 'train on a folder, a CSV, an .npz or a data set by name; or by a config', trains=True
  ),
  'lr-find': Tool('jaxres.tools.lr_find', 'one short run over a range of learning rates: a picture, a suggestion'),
  'runs': Tool('jaxres.tools.runs', 'a table of the runs in a directory: what differs, what they reached, their state'),
  'profile': Tool('jaxres.tools.profile', 'where the time of a training step goes'),
  'show-data': Tool('jaxres.tools.show_data', 'draw what the model sees: images beside their augmentations'),
  'evaluate': Tool('jaxres.tools.evaluate', 'scores of runs, class by class, with intervals and calibration; compared'),
  'crossval': Tool(
    'jaxres.tools.crossval', 'train once for each fold of the training examples: mean and spread', trains=True
  ),
  'errors': Tool('jaxres.tools.errors', 'wrong labels, near-duplicates across splits, the hardest classes, as a page'),
  'explain': Tool(
    'jaxres.tools.explain', 'draw what in image files a network goes by: saliency, Grad-CAM, occlusion, ...'
  ),
  'report': Tool('jaxres.tools.report', 'one page on what runs learned: scores, curves, mistakes, what they look at'),
  'predict': Tool('jaxres.tools.predict', 'the likeliest classes of image files, by a run or by weights'),
  'convert': Tool('jaxres.tools.convert', 'torch weights to jaxres, and jaxres weights to torch'),
  'export': Tool('jaxres.tools.export', 'a bundle: ONNX, StableHLO and weights that answer as the run does'),
  'benchmark': Tool('jaxres.tools.benchmark', 'the formats of a bundle side by side: size, top-1, latency, memory'),
  'digest': Tool('jaxres.tools.digest', 'one SHA-256 of all that a checkpoint holds'),
  'doctor': Tool('jaxres.tools.doctor', 'what is wrong here: devices, versions, the data, the checkpoints, the config'),
  'prepare': Tool(
    'jaxres.tools.prepare', 'make a data set ready to read: CIFAR-10 or -100, an image folder, a TFDS set in tfrecord'
  ),
}
# A leaf is taken out by deleting its folder and its tools: the rest does without them.
TOOLS = {name: row for name, row in ROWS.items() if importlib.util.find_spec(row.module)}
OTHER_WORDS = {  # that other programs have, and what to type here
  **dict.fromkeys(('fit', 'main', 'run', 'learn'), 'jaxres train DATA'),
  'finetune': 'jaxres train DATA --config.init.source=...', 'dataset': 'jaxres show-data',
  'resume': 'the command that started the run, such as jaxres train DATA',
  'eval': 'jaxres evaluate RUN', 'test': 'jaxres evaluate RUN', 'score': 'jaxres evaluate RUN',
  'validate': 'jaxres evaluate RUN', 'compare': 'jaxres evaluate RUN RUN', 'confusion': 'jaxres evaluate RUN',
  'infer': 'jaxres predict RUN IMAGE', 'inference': 'jaxres predict RUN IMAGE', 'classify': 'jaxres predict RUN IMAGE',
  **dict.fromkeys(('ship', 'onnx', 'deploy'), 'jaxres export RUN OUT'),
  'import': 'jaxres convert FILE TARGET', 'download': 'jaxres prepare',
  'gradcam': 'jaxres explain RUN IMAGE', 'saliency': 'jaxres explain RUN IMAGE', 'check': 'jaxres doctor',
  'mistakes': 'jaxres errors RUN', 'bench': 'jaxres benchmark BUNDLE', 'folds': 'jaxres crossval',
  'show': 'jaxres show-data',
  'list': 'jaxres runs DIR', 'ls': 'jaxres runs DIR', 'lr_find': 'jaxres lr-find --config C',
  'version': 'jaxres --version', 'help': 'jaxres --help',
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
  """argparse whose errors are InputErrors: one line each, as everywhere else."""

  def error(self, message: str) -> NoReturn:
    """Raise what argparse would print under its usage."""
    raise InputError(self.prog, message, fix=f'`{self.prog} --help` shows what there is')


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
  with one_line(debug=words[:1] == ['train'] and '--debug' in words):
    try:
      return _run(words)
    finally:
      sys.stdout.flush()


def _is_there(command: str) -> bool:
  """Return whether ``command`` is no tool or one that is there."""
  program, *words = command.split()
  return program != 'jaxres' or words[0].startswith('-') or words[0] in TOOLS


def _run(words: list[str]) -> int | None:
  """Import the tool that the first word names and run it with the rest; alone, print the help."""
  called = words[0] if words else '--help'
  if not called.startswith('-') and called not in TOOLS:
    close = [called.lower(), *difflib.get_close_matches(called.lower(), [*TOOLS, *OTHER_WORDS], n=1)]
    other = next((OTHER_WORDS[word] for word in close if word in OTHER_WORDS and _is_there(OTHER_WORDS[word])), None)
    raise InputError('jaxres', f'unknown tool {called!r}', fix=f'type `{other}`' if other else nearest(called, TOOLS))
  parser = _Parser(prog='jaxres', description='The tools of jaxres.', allow_abbrev=False)
  parser.add_argument('--version', action='version', version=f'jaxres {jaxres.__version__}')
  called_parser: argparse.ArgumentParser = parser
  rows = parser.add_subparsers(title='tools', metavar='TOOL')
  for name, tool in TOOLS.items():
    row = rows.add_parser(name, help=tool.help, description=tool.help, allow_abbrev=False)
    if name == called:
      xla_flags.disable_ynnpack()  # before JAX starts
      module = importlib.import_module(tool.module)
      module.add_arguments(row)
      row.set_defaults(run=module.run)
      called_parser = row
  words = command_line.join_words(words)
  overrides = [word for word in words if word.startswith('--config.')]
  args, unknown = parser.parse_known_args([word for word in words if word not in overrides] or [called])
  if overrides and 'config' not in args:
    unknown = overrides
  if unknown:
    fix = _hint(unknown, called_parser, overrides, words)
    raise InputError('unrecognized arguments', ' '.join(unknown), fix=fix)
  args.overrides = overrides
  if 'run' not in args:
    parser.error('the first word must be a tool')
  return args.run(args)


def _hint(unknown: list[str], parser: argparse.ArgumentParser, overrides: list[str], words: list[str]) -> str:
  """Return what unknown arguments of a tool, among all its ``words``, may mean, as the end of a sentence."""
  flags = sorted({word.removeprefix('--') for word in re.findall(r'--[\w-]+', parser.format_help())})
  has_config = 'config' in flags
  bare = next((word for word in overrides if '=' not in word), '')
  if has_config and bare and not unknown[0].startswith('-'):
    return f'did you mean {bare}={unknown[0]}?'
  if unknown[0] in overrides:
    return f'{parser.prog} takes no --config: a run has its own, in config.json'
  following = next(iter(words[words.index(unknown[0]) + 1 :]), '')  # it may have been taken for another argument
  fields = command_line.all_fields() if has_config else []
  hint = command_line.unknown_flag(unknown[0], following, flags, fields) if unknown[0].startswith('-') else ''
  return hint or f'`{parser.prog} --help` shows what there is'


if __name__ == '__main__':
  raise SystemExit(main())
