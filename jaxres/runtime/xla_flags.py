"""XLA's flags of the process, which must be set before JAX starts; this imports no JAX.

XLA:CPU hands sums to the library YNNPACK, which gets some of them wrong, in silence (docs/performance.md). Each program
of jaxres is compiled without it, by ``compiler.compiler_options``; the flag is for what JAX compiles by itself, such as
``jax.numpy`` outside of any program.
"""

import importlib.util
import mmap
import os
import pathlib
import re
from collections.abc import MutableMapping

YNNPACK = 'xla_cpu_experimental_ynn_fusion_type'  # the parts of a program that YNNPACK gets; none where it is empty
ONEDNN = 'xla_cpu_experimental_onednn_custom_call'  # whether convolutions are handed to oneDNN
ACCELERATORS = ('jax_plugins', 'libtpu')  # packages whose XLA reads XLA_FLAGS too, and may know other flags


def disable_ynnpack(environment: MutableMapping[str, str] = os.environ) -> None:
  """Keep YNNPACK out of the process, where jaxlib has that flag: an unknown one would end the process.

  A value that the user sets in ``XLA_FLAGS``, or in the file that it names, is kept.

  Args:
    environment: where ``XLA_FLAGS`` is set.
  """
  flags = environment.get('XLA_FLAGS', '').strip()
  is_file = bool(flags) and not flags.startswith('-')
  if not is_file and read_ynnpack_flag(environment) is None and not _has_accelerator() and is_known(YNNPACK):
    environment['XLA_FLAGS'] = f'{flags} --{YNNPACK}='.strip()


def read_ynnpack_flag(environment: MutableMapping[str, str] = os.environ, flag: str = YNNPACK) -> str | None:
  """Return the value of ``flag`` in ``XLA_FLAGS``, or in the file that it names; None where it is not there."""
  flags = environment.get('XLA_FLAGS', '').strip()
  if flags and not flags.startswith('-'):
    path = pathlib.Path(flags)
    flags = path.read_text(errors='replace') if path.is_file() else ''
  values = re.findall(rf'--{flag}(?:=(\S*))?', flags)
  return values[-1].strip('\'"') if values else None


def is_known(flag: str) -> bool:
  """Return whether the installed jaxlib has ``flag``: whether the library contains its name as a string."""
  spec = importlib.util.find_spec('jaxlib')
  for directory in (spec.submodule_search_locations or ()) if spec else ():
    for path in pathlib.Path(directory).glob('*jax_common.*'):
      with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'\0' + flag.encode() + b'\0') >= 0:
          return True
  return False


def _has_accelerator() -> bool:
  return any(importlib.util.find_spec(name) for name in ACCELERATORS)
