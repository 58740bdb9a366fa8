"""SIGTERM, SIGINT and SIGHUP: a run that is asked to stop saves first; asked twice, it ends at once."""

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxres.errors import exit_with

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_CALLS = itertools.count(1)  # of JAX's sync point, over the life of the process: it compares by equality
SAME_SECONDS = 0.5  # `timeout` and many a launcher signal a process, and its group with it: that is one signal


class RunPreemptedError(KeyboardInterrupt):
  """The run was asked to stop; the message says what it saved."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status  # that the process exits with: 128 + the signal's number


class PreemptionGuard:
  """What is known of the signals that came; of ``guard_preemption``."""

  number: int | None = None  # of the first signal

  def should_stop(self) -> bool:
    """Return whether the run is to stop here; all its processes do so behind the same step.

    Every process calls it equally often. The handler itself does not raise: JAX, garbage collection and many a library
    would take that for one of their errors.
    """
    # The point is the call behind the last that any process made. Steps would miss it where a call takes several.
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_CALLS)):
      self.number = signal.SIGTERM
    return self.number is not None

  def is_requested(self) -> bool:
    """Return whether a signal has come; of several processes each knows only what ``should_stop`` has told it."""
    return self.number is not None

  def make_error(self, step: int) -> RunPreemptedError:
    """Return what is to be raised when ``step`` is saved."""
    number = signal.Signals(self.number or signal.SIGTERM)
    return RunPreemptedError(f'{number.name}: step {step} is saved; the same command continues the run', 128 + number)

  def _handle(self, number: int, frame: Any) -> None:
    self.number = self.number or number


@contextlib.contextmanager
def guard_preemption() -> Iterator[PreemptionGuard]:
  """Note SIGTERM, SIGINT and SIGHUP in a ``PreemptionGuard``; end the process at a second one.

  Only the main thread can; in another nothing is noted. Of several processes JAX notes SIGTERM, which can come to one
  of them alone, SIGHUP becomes a SIGTERM, and SIGINT stays as it is. SIGHUP says that the terminal was closed; where it
  is ignored, as ``nohup`` has it, it stays so, and it never is a second signal: shell and system both send it.
  """
  guard = PreemptionGuard()
  if threading.current_thread() is not threading.main_thread():
    yield guard
    return
  ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
  if jax.process_count() > 1:
    with _install_handlers({} if ignored else {signal.SIGHUP: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}):
      yield guard
    return
  came, wake = socket.socketpair()
  wake.setblocking(False)
  fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
  threading.Thread(target=_exit_on_second_signal, args=(came,), name='signals', daemon=True).start()
  try:
    with _install_handlers({number: guard._handle for number in SIGNALS if not (ignored and number == signal.SIGHUP)}):
      yield guard
  finally:
    signal.set_wakeup_fd(fd)
    wake.close()


@contextlib.contextmanager
def _install_handlers(handlers: Mapping[signal.Signals, Callable[[int, Any], Any]]) -> Iterator[None]:
  """Have signals handled so for the length of the context."""
  before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _exit_on_second_signal(came: socket.socket) -> None:
  """End the process at the second signal, even while its main thread compiles or waits for the device."""
  first = None
  with came:
    while byte := came.recv(1):
      if byte[0] not in SIGNALS:
        continue
      first = first or time.monotonic()
      if time.monotonic() - first > SAME_SECONDS and byte[0] != signal.SIGHUP:
        os.write(2, b'stopped at once, by a second signal; the same command continues from the last save\n')
        os._exit(128 + byte[0])


@contextlib.contextmanager
def exit_on_preemption() -> Iterator[None]:
  """End the program with one line on standard error and the status of the signal that stopped the run."""
  try:
    yield
  except RunPreemptedError as stopped:
    if jax.process_count() > 1:
      jax.distributed.shutdown()  # which waits for the others
    exit_with(str(stopped), stopped.status, prefix='')
