"""`jaxres export`: what a bundle holds, that it answers as the run, and that bad input leaves nothing behind."""

import errno
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxres import cli, predict, weights
from jaxres.export import bundle, formats
from jaxres.weights import bundle as reader
from jaxres.weights import presets, sources
from tests.helpers import merge
from tests.train.runs import make_run
from tests.weights.files import make_state

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('flatbuffers')
from jaxres.export import onnx, onnx_blocks, stablehlo


@pytest.fixture
def run(config, tmp_path, npz) -> str:
  """The workdir of a short run."""
  return make_run(merge(config, train={'epochs': 1}), tmp_path, npz)


def fail(*words: str, capsys) -> str:
  """Return the one line with which `jaxres export` refuses."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as ended:
    cli.main(['export', *words])
  assert ended.value.code == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  return line


def names_in(folder: pathlib.Path) -> set[str]:
  return {path.name for path in folder.iterdir()}


def test_weights_that_say_nothing_are_exported_with_a_preset(tmp_path, tiny) -> None:
  weights.write(tmp_path / 'w.pth', make_state(4))
  words = [str(tmp_path / 'w.pth'), str(tmp_path / 'bundle'), '--format', 'safetensors', '--preset', 'cifar10']
  assert cli.main(['export', *words]) == 0
  network = reader.read_description(tmp_path / 'bundle')['network']
  expected = presets.PRESETS['cifar10']
  assert network['preprocessing'] == {
    name: list(value) if isinstance(value, tuple) else value for name, value in expected._asdict().items()
  }


def test_a_bundle_answers_as_the_run_in_every_format(run, tmp_path, capsys) -> None:
  out = tmp_path / 'bundle'
  assert cli.main(['export', run, str(out), '--temperature', '1.7']) == 0
  assert names_in(out) == {'bundle.json', 'weights.safetensors', 'model.onnx', 'model_resize.onnx', 'model.stablehlo'}
  assert 'model.onnx' in capsys.readouterr().out
  given = reader.read_description(out)
  pretrained = sources.read(run)
  assert given['data'] == 'arrays'
  assert given['step'] == pretrained.batches > 0
  assert given['temperature'] == 1.7
  assert given['source'] == os.path.abspath(run)
  assert {'jax', 'onnx', 'jaxres'} <= {*given['versions']}
  assert {*given['files']} == names_in(out) - {'bundle.json'}
  predictor = predict.load(run)
  paths = predict.find_images([str(tmp_path / 'images')])
  expected = np.stack([row.logits for row in predict.predict(predictor, paths)])
  of_bundle = np.stack([row.logits for row in predict.predict(predict.load(str(out)), paths)])
  np.testing.assert_array_equal(of_bundle, expected)
  images = np.stack([predict.read(path, predictor) for path in paths])
  session = onnx.make_session(str(out / 'model.onnx'))
  for logits, probabilities in (
    session.run(None, {'images': images}),
    stablehlo.read(out / 'model.stablehlo').call(jnp.asarray(images)),
  ):
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    calibrated = np.exp(expected / 1.7) / np.exp(expected / 1.7).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, calibrated, atol=1e-5)
  notes = session.get_modelmeta().custom_metadata_map
  assert json.loads(notes['class_names']) == [*predictor.class_names]
  assert json.loads(notes['temperature']) == 1.7


def test_files_are_made_again_from_the_weights(run, tmp_path) -> None:
  out = tmp_path / 'bundle'
  cli.main(['export', run, str(out), '--temperature', '2', '--format', 'onnx'])
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  (out / 'model.onnx').write_bytes(b'damaged')
  cli.main(['export', str(out)])
  after = {path.name: path.read_bytes() for path in out.iterdir()}
  assert after.keys() == before.keys()
  assert after['model.onnx'] == before['model.onnx']
  assert after['weights.safetensors'] == before['weights.safetensors']
  assert reader.read_description(out)['temperature'] == 2
  cli.main(['export', str(out), '--format', 'stablehlo'])
  assert 'model.stablehlo' in names_in(out)
  assert not [name for name in names_in(tmp_path) if name.endswith(('.part', '.old'))]


def test_weights_that_do_not_say_what_they_see(tmp_path, capsys, tiny) -> None:
  from jaxres import weights

  weights.write(tmp_path / 'tiny.pth', make_state(10))
  assert 'give --mean' in fail(str(tmp_path / 'tiny.pth'), str(tmp_path / 'out'), capsys=capsys)
  seen = ['--mean', '0.5,0.4,0.3', '--std', '0.2,0.2,0.3', '--image_size', '32']
  cli.main(['export', str(tmp_path / 'tiny.pth'), str(tmp_path / 'out'), *seen, '--format', 'onnx'])
  seen = sources.read(str(tmp_path / 'out')).preprocessing
  assert (seen.mean, seen.std, seen.image_size) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.3), (32, 32))


def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, capsys, monkeypatch) -> None:
  out = tmp_path / 'out'
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/file').write_text('')
  before = names_in(tmp_path)
  assert 'no weights of jaxres' in fail(str(tmp_path / 'empty'), str(out), capsys=capsys)
  assert "did you mean 'onnx'?" in fail(run, str(out), '--format', 'onxx', capsys=capsys)
  assert 'there is a directory already' in fail(run, str(tmp_path / 'full'), capsys=capsys)
  assert 'more than 0' in fail(run, str(out), '--temperature', '-1', capsys=capsys)
  assert 'expected a new directory' in fail(run, capsys=capsys)
  with monkeypatch.context() as patch:
    patch.setitem(formats.FORMATS, 'onnx', formats.Format('jaxres.export.onnx', ('not_there',), 'export'))
    assert "pip install 'jaxres[export]'" in fail(run, str(out), capsys=capsys)

  def fill_up(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(bundle.bundle, 'write_description', fill_up)
    assert 'the disk is full' in fail(run, str(out), '--format', 'onnx', capsys=capsys)
  with monkeypatch.context() as patch:
    patch.setattr(onnx_blocks, 'activate', lambda graph, model, x: x)
    assert 'differ from those of jaxres' in fail(run, str(out), '--format', 'onnx', capsys=capsys)
  assert names_in(tmp_path) == before
