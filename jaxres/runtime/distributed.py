"""Several processes of one run: how they find each other, and how they end.

All are started with the same command, on one machine or on many, and JAX's own runtime joins them: then
``jax.devices()`` is those of all, and the rest of jaxres hardly knows. Process 0 alone writes and prints.
"""

import contextlib
import faulthandler
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxres.errors import InputError, one_line, print_status

JOIN_SECONDS = 300  # that processes wait for each other at the start, and then end
HEARTBEAT_SECONDS = 60  # without a sign of life of one, and all end
FLAGS = '--coordinator HOST:PORT --num_processes N --process_id I'


@contextlib.contextmanager
def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  debug: bool = False,
  interrupted: str = 'interrupted',
) -> Iterator[None]:
  """Be one of the processes of a run; where there is one alone, do nothing.

  On an error the process ends without waiting for the others, which then end too: after ``HEARTBEAT_SECONDS`` at the
  latest, or as soon as they miss it.

  Args:
    coordinator: ``host:port`` of process 0; None, as the others, where a launcher says it.
    num_processes: how many there are; 1 does not look for a launcher.
    process_id: which one this is, from 0.
    debug: show tracebacks, as in ``errors.one_line``.
    interrupted: what an interrupt prints, as in ``errors.one_line``.

  Raises:
    InputError: the arguments cannot be used, or the others do not come.
  """
  options = initialize_arguments(coordinator, num_processes, process_id, os.environ)
  if options is None:
    yield
    return
  if not debug:
    faulthandler.disable()  # where JAX ends a process it says why; what each thread did says nothing
  with _exit_on_timeout(JOIN_SECONDS):
    try:
      jax.distributed.initialize(
        **options, initialization_timeout=2 * JOIN_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
      )
    except KeyError as error:  # a variable of the launcher
      raise InputError('the launcher', f'it does not say {error}', fix=f'give {FLAGS}, or --num_processes=1') from error
    except (ValueError, RuntimeError) as error:
      raise InputError('--coordinator', f'the processes cannot join: {error}') from error
  try:
    with one_line(debug=debug, interrupted=interrupted):
      yield
  except SystemExit as error:
    exit_now(error.code if isinstance(error.code, int) else 1)
  except BaseException:
    traceback.print_exc()
    exit_now(1)
  jax.distributed.shutdown()


def initialize_arguments(
  coordinator: str | None, num_processes: int | None, process_id: int | None, environ: Mapping[str, str]
) -> dict[str, Any] | None:
  """Return the arguments of ``jax.distributed.initialize``; None where the process is alone.

  Args:
    coordinator: ``host:port`` of process 0, or None.
    num_processes: or None.
    process_id: from 0, or None.
    environ: where launchers leave their variables.

  Raises:
    InputError: some are missing or out of range, or the launcher does not say enough.
  """
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  if num_processes == 1:
    return None
  if all(value is None for value in given.values()):
    method = detect_launcher(environ)
    return {'cluster_detection_method': method} if method else None
  missing = [name for name, value in given.items() if value is None]
  if coordinator is None or num_processes is None or process_id is None:
    raise InputError(f'--{missing[0]}', 'it is missing', fix=f'several processes take {FLAGS}')
  host, _, port = coordinator.rpartition(':')
  if not (host and port.isdecimal()):
    raise InputError('--coordinator', expected='HOST:PORT of process 0, such as node1:1234', found=repr(coordinator))
  if not 0 <= process_id < num_processes:
    raise InputError('--process_id', expected=f'0 to {num_processes - 1}', found=process_id)
  place = {'coordinator_address': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  return place | {'cluster_detection_method': 'deactivate'}  # which would give each process one GPU under Slurm


def detect_launcher(environ: Mapping[str, str]) -> str | None:
  """Return what started this process beside others, by JAX's name of it; None where nothing did.

  Raises:
    InputError: it did, and JAX could not find out more from it.
  """
  if int(environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
    return 'slurm'
  if int(environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1:
    if 'OMPI_MCA_orte_hnp_uri' in environ:
      return 'ompi'
    flags = '--coordinator HOST:PORT --num_processes $OMPI_COMM_WORLD_SIZE --process_id $OMPI_COMM_WORLD_RANK'
    raise InputError('Open MPI', 'it does not say where process 0 is', fix=f'give {flags}, or --num_processes=1')
  if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= environ.keys():
    if importlib.util.find_spec('kubernetes'):
      return 'k8s'
    fix = f'install jaxres[k8s], or give {FLAGS}, or --num_processes=1'
    raise InputError('Kubernetes', 'the package kubernetes finds the other processes of an indexed Job', fix=fix)
  return None


@contextlib.contextmanager
def _exit_on_timeout(seconds: float) -> Iterator[None]:
  """End this process with one line where what is done here takes longer: JAX would abort it, with a stack of C++."""

  def give_up() -> None:
    fix = 'start every process with the same address, and each with its own number'
    print_status(f'error: --coordinator: not all processes have come within {seconds:g} s; {fix}')
    exit_now(2)

  timer = threading.Timer(seconds, give_up)
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def is_main_process() -> bool:
  """Return whether this is process 0, which alone writes and prints."""
  return jax.process_index() == 0


def barrier(reason: str) -> None:
  """Wait until every process of the run is here; each gives the same ``reason``."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'jaxres: {reason}')


def any_process(yes: bool) -> bool:
  """Return whether any process of the run says ``yes``; each must ask."""
  return yes if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(yes)).any())


@contextlib.contextmanager
def exit_on_peer_failure() -> Iterator[None]:
  """End this process at once, with a line that says so, where it loses another one of the run."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    place = f'process {jax.process_index()} of {jax.process_count()}'
    reason = ' '.join(str(error).split())
    print_status(f'error: {place} has lost another, or failed: {reason:.300}; start all again: they continue')
    exit_now(1)


def exit_now(status: int) -> NoReturn:
  """End this process now: an ordinary exit waits for the others."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
