"""Bundles as a source of weights: every byte of them counts."""

import json

import pytest

from jaxres import cli
from jaxres.errors import InputError
from jaxres.weights import bundle, sources
from tests.helpers import merge
from tests.train.runs import make_run


def test_damaged_and_newer_bundles_are_refused(config, tmp_path, npz) -> None:
  run, out = make_run(merge(config, train={'epochs': 1}), tmp_path, npz), tmp_path / 'bundle'
  cli.main(['export', run, str(out), '--format', 'safetensors'])
  assert sources.is_run(run)
  assert not sources.is_run(str(out))
  path = out / 'bundle.json'
  intact, content = path.read_bytes(), json.loads(path.read_text())
  for change, line in (
    ({'schema': 2}, 'newer jaxres'),
    ({'temperature': 3.0}, 'it was edited'),
    ({'step': 'x'}, 'step: expected'),
    ({'files': {'../x': '0' * 64}}, 'damaged'),
    ({'more': 1}, 'unknown field'),
  ):
    path.write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=line):
      sources.read(str(out))
  path.write_bytes(intact[:100])
  with pytest.raises(InputError, match='cannot be read'):
    sources.read(str(out))
  path.write_bytes(intact)
  weights = out / 'weights.safetensors'
  assert bundle.check_file(out, content, weights.name) == weights
  data = bytearray(weights.read_bytes())
  data[len(data) // 2] ^= 1
  weights.write_bytes(data)
  with pytest.raises(InputError, match=r'weights.safetensors: damaged: its sha256 is not that .*; export it again'):
    sources.read(str(out))
  with pytest.raises(InputError, match='it has no model.x'):
    bundle.check_file(out, content, 'model.x')


def test_a_directory_that_is_no_bundle(tmp_path) -> None:
  assert not bundle.is_bundle(tmp_path)
  with pytest.raises(InputError, match=r'no bundle; expected bundle.json'):
    bundle.read(tmp_path)
