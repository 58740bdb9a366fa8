"""The reader of traces against JAX's own, in a process where that one may end it."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxres.analysis import profile, xplane
from jaxres.errors import InputError

READ_BY_JAX = """
import json, sys, jax
rows = []
for plane in jax.profiler.ProfileData.from_file(sys.argv[1]).planes:
  for line in plane.lines:
    for event in line.events:
      stats = {name: str(value) for name, value in event.stats if name}
      rows.append([plane.name, line.name, event.name, event.start_ns, event.duration_ns, stats])
json.dump(rows, sys.stdout)
"""


def run(code: str, *words: str, warnings: str = 'default') -> subprocess.CompletedProcess[str]:
  command = [sys.executable, '-W', warnings, '-c', code, *words]
  return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope='module')
def trace(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Return the trace of three products, each a separate program, on the eight devices of the tests."""
  compiled = jax.jit(lambda x: jnp.sort((x @ x).ravel())).lower(jnp.ones((128, 128))).compile()
  work = lambda steps: jax.block_until_ready([compiled(jnp.ones((128, 128))) for _ in range(steps)])
  return profile.trace(profile.Step(compiled, work, 1), 3, tmp_path_factory.mktemp('trace'))


def test_the_events_are_those_that_jax_reads(trace: pathlib.Path) -> None:
  child = run(READ_BY_JAX, str(trace))
  assert child.returncode == 0, child.stderr
  expected = json.loads(child.stdout)
  events = [*xplane.read(trace)]
  assert [[*event[:3]] for event in events] == [row[:3] for row in expected]
  assert sum('hlo_op' in event.stats for event in events) >= 6
  first = expected[0][3] - events[0].start_ns  # JAX counts from the start of the trace
  for event, (*_, start, duration, stats) in zip(events, expected, strict=True):
    assert event.start_ns + first == pytest.approx(start, abs=1e3)  # a microsecond
    assert event.duration_ns == pytest.approx(duration, abs=1)
    assert {name: str(value) for name, value in event.stats.items() if name in stats} == stats


def test_a_process_where_warnings_are_errors_reads_a_trace(trace: pathlib.Path) -> None:
  code = (
    'import pathlib, sys; from jaxres.analysis import xplane; print(len([*xplane.read(pathlib.Path(sys.argv[1]))]))'
  )
  child = run(code, str(trace), warnings='error')
  assert (child.returncode, child.stderr) == (0, '')
  assert int(child.stdout) == len([*xplane.read(trace)])


@pytest.mark.parametrize('share', [0.0, 0.3, 0.9])
def test_what_is_cut_off_or_no_trace_is_refused(trace: pathlib.Path, tmp_path: pathlib.Path, share: float) -> None:
  content = trace.read_bytes()
  path = tmp_path / 'x.xplane.pb'
  path.write_bytes(content[: int(share * len(content))] or b'no trace')
  with pytest.raises(InputError, match='x.xplane.pb: expected a trace of jax.profiler'):
    [*xplane.read(path)]


def test_a_name_that_is_no_text_does_not_refuse_the_file(tmp_path: pathlib.Path) -> None:
  space = xplane._space_class()()
  plane = space.planes.add(name=b'/host:CPU')
  plane.event_metadata.add(key=1).value.name = b'caf\xe9'
  plane.stat_metadata.add(key=7).value.name = b'hlo_op'
  plane.stat_metadata.add(key=8).value.name = b'dot.1'
  line = plane.lines.add(name=b'thread', timestamp_ns=5)
  line.events.add(metadata_id=1, offset_ps=2000, duration_ps=500).stats.add(metadata_id=7, ref_value=8)
  line.events.add(metadata_id=99).stats.add(metadata_id=98, int64_value=-3)  # names that the file lacks
  path = tmp_path / 'x.xplane.pb'
  path.write_bytes(space.SerializeToString())
  assert [*xplane.read(path)] == [
    ('/host:CPU', 'thread', 'caf\ufffd', 7.0, 0.5, {'hlo_op': 'dot.1'}),
    ('/host:CPU', 'thread', '', 5.0, 0.0, {'': -3}),
  ]
