"""Run tools on what may not be read, as somebody who is not root: ``python -m tests.unprivileged < CASES``.

A case is a list of words, and paths with the modes that they have meanwhile. The files belong to that somebody. What
is printed last is a JSON list: for each case the exit status, or a traceback, and the outputs.
"""

import contextlib
import io
import json
import os
import pathlib
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


if __name__ == '__main__':
  from tests.faults import tiny

  cases = json.load(sys.stdin)
  tiny.get_config()  # names the network
  import jax

  jax.devices()  # before the caches are out of reach
  if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
  results = [attempt(*case) for case in cases]
  print(json.dumps(results))
