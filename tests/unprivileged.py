"""Run tools on what may not be read, as somebody who is not root: ``python -m tests.unprivileged < CASES``.

A case is a list of words, and paths with the modes that they have meanwhile. The files belong to that somebody. What
is printed last is a JSON list: for each case the exit status, or a traceback, and the outputs.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import sys
import traceback
from typing import Any

NOBODY = 65534


def run(words: list[str]) -> Any:
  from jaxres import cli, command_line, data
  from jaxres.errors import one_line
  from jaxres.train import loop

  with one_line():
    match words:
      case ['load', options]:
        data.load(**json.loads(options))
      case ['config', path]:
        command_line.load(path, [])
      case ['train', config, workdir]:
        loop.train_and_evaluate(json.loads(config), pathlib.Path(workdir))
      case _:
        return cli.main(words)
  return None


def attempt(words: list[str], modes: dict[str, int]) -> dict[str, Any]:
  before = {path: os.stat(path).st_mode for path in modes}
  for path, mode in modes.items():
    os.chmod(path, mode)
  out, err = io.StringIO(), io.StringIO()
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      status = run(words)
  except SystemExit as error:
    status = error.code
  except BaseException:
    status = traceback.format_exc()
  finally:
    for path, mode in [*before.items()][::-1]:
      os.chmod(path, mode)
  return {'status': status, 'out': out.getvalue(), 'err': err.getvalue()}


def drop(root: pathlib.Path) -> None:
  """Become nobody, for good, whose all in ``root`` is from then on."""
  for path in (root, *root.rglob('*')):
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
  os.setgroups([])
  os.setgid(NOBODY)
  os.setuid(NOBODY)


if __name__ == '__main__':
  from tests.faults import tiny

  root, cases = json.load(sys.stdin)
  tiny.get_config()  # names the network
  if os.geteuid() == 0:
    for words in {json.dumps(words): words for words, _ in cases}.values():
      attempt(words, {})  # which imports what it needs: nobody may not look into root's Python
    for path in pathlib.Path(root).glob('**/new*'):
      shutil.rmtree(path) if path.is_dir() else path.unlink()
    drop(pathlib.Path(root))
  print(json.dumps([attempt(*case) for case in cases]))
