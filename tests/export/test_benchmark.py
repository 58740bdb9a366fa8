"""`jaxres benchmark`: its numbers are those of independent counts."""

import json

import numpy as np
import pytest

from jaxres import cli, data
from jaxres.export import benchmark, engines
from tests.helpers import merge
from tests.train.runs import make_run

pytest.importorskip('onnxruntime')


def test_the_formats_of_a_bundle_of_a_run(config, tmp_path, npz, capsys, monkeypatch) -> None:
  class Here:
    """In place of a process: the network ``tiny`` is known in this one alone."""

    __init__ = lambda self, *_: None
    __enter__ = lambda self: self
    __exit__ = lambda *_: None

    def submit(self, function, *words):
      result = function(*words)
      return type('Done', (), {'result': lambda self: result})()

  monkeypatch.setattr(benchmark.concurrent.futures, 'ProcessPoolExecutor', Here)
  run = make_run(config, tmp_path, npz)
  out = tmp_path / 'benchmark.json'
  cli.main(['export', run, str(tmp_path / 'bundle')])
  capsys.readouterr()
  assert cli.main(['benchmark', str(tmp_path / 'bundle'), '--seconds', '0.05', '--out', str(out)]) == 0
  table = capsys.readouterr().out
  result = json.loads(out.read_text())
  assert [*result['formats']] == ['jaxres', 'onnx', 'stablehlo']
  top1 = json.loads((tmp_path / 'run/metrics.jsonl').read_text().splitlines()[-1])['test/top1']
  for name, row in result['formats'].items():
    assert name in table
    assert row['top1'] == pytest.approx(top1)
    assert row['agreement'] == 1
    assert row['logit_error'] < 1e-5
    assert row['batch1']['p50_ms'] <= row['batch1']['p95_ms']
    assert row['peak_bytes'] > 1e8
  assert (tmp_path / 'benchmark.png').read_bytes().startswith(b'\x89PNG')
  images, labels = benchmark.read_examples(tmp_path / 'run', 'test')
  arrays = data.load(**merge(config)['data']).test.device_data
  np.testing.assert_array_equal(images, arrays['image'])
  np.testing.assert_array_equal(labels, arrays['label'])
  logits, probabilities = engines.open_engine(tmp_path / 'bundle', 'onnx')(images[:3])
  assert logits.shape == probabilities.shape == (3, 4)
