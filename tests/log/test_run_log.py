import io
import json
import re
import sys
import types

import jax.numpy as jnp
import pytest
from PIL import Image
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from jaxres import tasks
from jaxres.log import run_log as run_log_lib
from jaxres.log.console import one_line
from jaxres.log.curves import draw_curves
from jaxres.train import loop
from jaxres.train.meter import Meter
from tests.helpers import merge

pytestmark = pytest.mark.curves

KNOWN = tasks.make('classification').metrics


def sums(loss: float, count: float = 8.0) -> dict:
  return {
    'loss': jnp.float32(loss * count),
    'top1': jnp.float32(count / 2),
    'top5': jnp.float32(count),
    'count': jnp.float32(count),
  }


def rows(workdir) -> list[dict]:
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def read_events(workdir) -> list[tuple[int, str, float]]:
  """Decode the TFRecord framing: length (8 bytes), its checksum (4), the event, its checksum (4)."""
  actual = []
  for path in sorted(workdir.glob('events.*')):
    blob, at = path.read_bytes(), 0
    while at < len(blob):
      size = int.from_bytes(blob[at : at + 8], 'little')
      event = Event.FromString(blob[at + 12 : at + 12 + size])
      actual += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
      at += size + 16
  return actual


def test_rows_are_means_of_the_steps_between_them(tmp_path) -> None:
  with run_log_lib.RunLog(tmp_path, 0, 5, 2.0) as run_log:
    meter = Meter(run_log, lambda step: 0.1 * step, every=2)
    for step in range(1, 6):
      meter.add(step, sums(float(step)), last=step == 5)
    run_log.write(5, meter.row(5) | {'test/top1': 0.25})
  actual = rows(tmp_path)
  assert [row['step'] for row in actual] == [2, 4, 5]
  assert [row['epoch'] for row in actual] == [1.0, 2.0, 2.5]
  assert [row['train/loss'] for row in actual] == [1.5, 3.5, 5.0]
  assert [row['train/lr'] for row in actual] == [0.1, pytest.approx(0.3), pytest.approx(0.4)]
  assert actual[0]['train/top1'] == 0.5
  assert actual[1]['train/images_per_s'] > 0
  assert actual[2]['test/top1'] == 0.25


def test_event_files_hold_the_same_numbers(tmp_path) -> None:
  with run_log_lib.RunLog(tmp_path, 0, 5, 2.0) as run_log:
    run_log.write(3, {'train/loss': 0.5, 'test/top1': 0.75})
  assert read_events(tmp_path) == [(3, 'train/loss', 0.5), (3, 'test/top1', 0.75)]


def test_a_resumed_run_drops_the_rows_behind_its_checkpoint(tmp_path) -> None:
  lines = [json.dumps({'step': step}) for step in (1, 2, 3, 4)]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"step": 5, "tra')
  with run_log_lib.RunLog(tmp_path, 2, 9, 1.0) as run_log:
    run_log.write(3, {'train/loss': 1.0})
  assert [row['step'] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_step_that_was_not_taken_ends_the_run(tmp_path) -> None:
  with run_log_lib.RunLog(tmp_path, 0, 9, 1.0) as run_log:
    meter = Meter(run_log, lambda _: 0.1, every=1)
    meter.add(1, sums(1.0) | {'bad': 0.0}, last=False)
    assert meter.finite
    meter.add(2, sums(1.0) | {'bad': 1.0}, last=False)
    assert not meter.finite
  assert [row['step'] for row in rows(tmp_path)] == [1]


def test_a_row_goes_on_where_a_run_stopped(tmp_path) -> None:
  with run_log_lib.RunLog(tmp_path, 0, 9, 1.0) as run_log:
    first = Meter(run_log, lambda _: 0.1, every=4)
    for step in (1, 2):
      first.add(step, sums(float(step)), last=False)
    first.drain()
    second = Meter(run_log, lambda _: 0.1, every=4, partial=first.totals())
    for step in (3, 4):
      second.add(step, sums(float(step)), last=False)
  assert [(row['step'], row['train/loss']) for row in rows(tmp_path)] == [(4, 2.5)]


def test_curves_show_each_split(tmp_path) -> None:
  with run_log_lib.RunLog(tmp_path, 0, 9, 1.0) as run_log:
    for step in range(1, 9):
      run_log.write(step, {'train/loss': 1 / step, 'train/top1': step / 9, 'test/top1': step / 10, 'train/lr': 0.1})
  with Image.open(draw_curves(tmp_path, KNOWN, 'top1')) as picture:
    assert picture.size[0] > 1000
    assert len(set(picture.convert('RGB').get_flattened_data())) > 50


def test_numbers_as_a_person_reads_them() -> None:
  values = {'test/top1': 0.98765, 'train/images_per_s': 12345.6, 'train/loss': 0.123456, 'best/step': 1200}
  assert one_line(values, KNOWN) == 'test/top1 98.77%, train/images_per_s 12,346, train/loss 0.1235, best/step 1,200'


def test_the_bar_shows_speed_loss_accuracy_and_the_time_left(tmp_path, monkeypatch) -> None:
  terminal = Console(file=io.StringIO(), force_terminal=True, width=110, highlight=False)
  monkeypatch.setattr(run_log_lib, 'console', terminal)
  with run_log_lib.RunLog(tmp_path, 0, 90, 22.5, known=KNOWN, monitor='top1') as run_log:
    run_log.show(45, {'train/loss': 0.1612, 'train/top1': 0.951, 'train/images_per_s': 1313.4})
    run_log.show(46, {})
    run_log._bar.refresh()
  shown = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', terminal.file.getvalue())
  assert 'compiling' in shown
  assert re.search(r'epoch 2.0 .* 46/90 1,313 images/s  loss 0.161  top-1 95.1% \S*:\S*', shown)


def test_lines_say_how_far_it_is_where_there_is_no_terminal(tmp_path, monkeypatch) -> None:
  clock = [0.0]
  monkeypatch.setattr(run_log_lib, 'time', types.SimpleNamespace(monotonic=lambda: clock[0]))
  pipe = Console(file=io.StringIO(), force_terminal=False, width=110, highlight=False)
  monkeypatch.setattr(run_log_lib, 'console', pipe)
  means = {'train/loss': 0.1612, 'train/top1': 0.951, 'train/images_per_s': 1313.4}
  with run_log_lib.RunLog(tmp_path, 0, 90, 22.5, known=KNOWN, monitor='top1') as run_log:
    clock[0] = 8.0
    run_log.first_step()
    run_log.first_step()
    for seconds, step in ((9, 2), (17, 10), (18, 30), (19, 35), (31, 45)):
      clock[0] = seconds
      run_log.show(step, means)
  lines = pipe.file.getvalue().splitlines()
  assert lines == [
    'the first step took 8.0 s; compiling is a part of that',
    'epoch 1.33, step 30 of 90: 1,313 images/s  loss 0.161  top-1 95.1%, 36 s left',
    'epoch 2.00, step 45 of 90: 1,313 images/s  loss 0.161  top-1 95.1%, 31 s left',
  ]


@pytest.mark.parametrize(('seconds', 'words'), [(40, '40 s'), (89, '89 s'), (100, '2 min'), (7500, '2 h 5 min')])
def test_seconds_in_words(seconds: float, words: str) -> None:
  assert run_log_lib._in_words(seconds) == words


def test_a_training_needs_no_package_that_a_gpu_image_lacks(config: dict, tmp_path, monkeypatch, capsys) -> None:
  lacked = ('clu', 'clu.parameter_overview', 'tensorboardX', 'matplotlib', 'tensorflow_datasets', 'array_record')
  for name in (*lacked, 'importlib_resources', 'simplejpeg', 'cv2', 'sklearn', 'torch'):
    monkeypatch.setitem(sys.modules, name, None)
  loop.train_and_evaluate(merge(config, train={'dry_run': True}), tmp_path / 'run')
  assert rows(tmp_path / 'run/dry_run')[-1]['test/top1'] >= 0
  printed = capsys.readouterr().out
  for line in ('clu is not installed: no parameters.txt', 'tensorboardX is not installed: no event files'):
    assert printed.count(line) == 1
  assert 'matplotlib is not installed: no curves.png' in printed
  left = {path.name for path in (tmp_path / 'run/dry_run').iterdir()}
  assert left == {'checkpoints', 'config.json', 'data.json', 'environment.json', 'metrics.jsonl'}
