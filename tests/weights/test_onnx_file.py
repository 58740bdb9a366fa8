"""Single ONNX files as a network: they answer as the run does, and one that is not ours is one line."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

import jaxres
from jaxres import cli
from jaxres.errors import InputError
from jaxres.weights import onnx_file
from tests.helpers import make_arrays, merge
from tests.train.runs import make_run

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('flatbuffers')


@pytest.fixture
def run(config, tmp_path, npz) -> str:
  return make_run(merge(config, train={'epochs': 2}), tmp_path, npz)


@pytest.fixture
def bundle(run, tmp_path, capsys) -> pathlib.Path:
  """A bundle of the run, calibrated."""
  assert cli.main(['export', run, str(tmp_path / 'bundle'), '--format', 'onnx', '--temperature', '1.7']) == 0
  capsys.readouterr()
  return tmp_path / 'bundle'


def edit(path: pathlib.Path, target: pathlib.Path, **notes: str | None) -> pathlib.Path:
  """Write a copy of an ONNX file with other notes; None takes one away."""
  model = onnx.load(path)
  kept = {each.key: each.value for each in model.metadata_props} | notes
  onnx.helper.set_model_props(model, {key: value for key, value in kept.items() if value is not None})
  onnx.save(model, target)
  return target


def test_a_file_answers_as_its_bundle_and_its_run(run, bundle, tmp_path) -> None:
  images = make_arrays()['test_x']
  of_run, of_bundle, of_file = map(jaxres.load, (run, bundle, bundle / 'model.onnx'))
  assert of_file.class_names == of_run.class_names
  assert of_file.image_shape == of_run.image_shape
  actual, expected = of_file.predict(images), of_run.predict(images)
  np.testing.assert_allclose(actual.logits, expected.logits, atol=1e-4 * np.abs(expected.logits).max())
  assert actual.names == expected.names
  calibrated = np.exp(expected.logits / 1.7) / np.exp(expected.logits / 1.7).sum(1, keepdims=True)
  np.testing.assert_allclose(actual.probabilities, calibrated, atol=1e-4)
  np.testing.assert_allclose(of_bundle.predict(images).probabilities, calibrated, atol=1e-4)
  session = onnxruntime.InferenceSession(str(bundle / 'model.onnx'))
  np.testing.assert_array_equal(actual.logits[:8], session.run(['logits'], {'images': images[:8]})[0])
  np.testing.assert_allclose(actual.probabilities, session.run(['probabilities'], {'images': images})[0], atol=1e-5)
  assert of_file.model is None
  with pytest.raises(InputError, match='an ONNX file answers, and has no model to look into; take the bundle'):
    of_file.features(images)


def test_the_tools_take_a_file(run, bundle, config, tmp_path, capsys) -> None:
  file = str(bundle / 'model.onnx')
  Image.fromarray(make_arrays()['test_x'][3]).save(tmp_path / 'x.png')
  chances = {}
  for source in (file, str(bundle)):
    assert cli.main(['predict', source, str(tmp_path / 'x.png'), '--json']) == 0
    chances[source] = json.loads(capsys.readouterr().out)['top']
  first, second = chances.values()
  assert [row['class'] for row in first] == [row['class'] for row in second]
  assert [row['probability'] for row in first] == pytest.approx([row['probability'] for row in second], abs=1e-4)
  top1 = {}
  for source in (file, run):
    out = tmp_path / f'{len(top1)}.json'
    cli.main(['evaluate', source, '--data', config['data']['path'], '--out', str(out)])
    (scores,) = json.loads(out.read_text())['runs'].values()
    top1[source] = scores['top1'], scores['loss']
  assert top1[file] == pytest.approx(top1[run], abs=1e-4)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['predict', 'FILE', 'x.png', '--image_size', '16'], 'FILE is an ONNX file, which has its preprocessing inside'),
    (['predict', 'BUNDLE/model_resize.onnx', 'x.png'], 'it resizes images itself; take the model.onnx beside it'),
    (['predict', 'nowhere.onnx', 'x.png'], 'nowhere.onnx: no such file'),
    (['explain', 'FILE', 'x.png'], 'an ONNX file answers, and has no model to look into'),
    (['convert', 'FILE', 'w'], 'an ONNX file, whose weights are not those of a model of jaxres'),
    (['export', 'FILE', 'b'], 'an ONNX file, whose weights are not those of a model of jaxres'),
    (['evaluate', 'FILE'], 'it is weights, which have no data; give some: --data'),
  ],
)
def test_what_a_file_cannot_do_is_one_line(words, message, bundle, tmp_path, monkeypatch, capsys) -> None:
  monkeypatch.chdir(tmp_path)
  Image.fromarray(make_arrays()['test_x'][0]).save('x.png')
  file = f'{bundle}/model.onnx'
  with pytest.raises(SystemExit) as ended:
    cli.main([word.replace('FILE', file).replace('BUNDLE', str(bundle)) for word in words])
  assert ended.value.code == 2
  (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
  assert message.replace('FILE', file) in line


@pytest.mark.parametrize(
  ('notes', 'message'),
  [
    ({'class_names': None, 'task': None}, 'it does not say its class_names and task; take a file that `jaxres export`'),
    ({'class_names': '["a"]'}, 'are not those of its notes; expected .* 1 classes'),
    ({'class_names': '[1, 2, 3, 4]'}, 'class_names: expected a list of names'),
    ({'preprocessing': '{"mean": [0]}'}, 'preprocessing: expected mean, std, image_size, center_crop'),
    ({'preprocessing': '[' * 100_000}, 'preprocessing: expected JSON'),
    ({'temperature': '"hot"'}, 'temperature: expected null or a number above 0, found .hot'),
    ({'temperature': '-1'}, 'temperature: expected null or a number above 0, found -1'),
    ({'task': 'dancing'}, "unknown task 'dancing'"),
  ],
)
def test_notes_that_are_not_ours(bundle, tmp_path, notes, message: str) -> None:
  with pytest.raises(InputError, match=message):
    onnx_file.read(edit(bundle / 'model.onnx', tmp_path / 'x.onnx', **notes))


def test_files_that_are_none_of_ours(bundle, tmp_path) -> None:
  content = (bundle / 'model.onnx').read_bytes()
  for number, broken in enumerate((b'', b'no protobuf', content[: len(content) // 2], bytes(1000), content[100:])):
    path = tmp_path / f'{number}.onnx'
    path.write_bytes(broken)
    with pytest.raises(InputError) as caught:
      onnx_file.read(path)
    assert '\n' not in str(caught.value)
  helper = onnx.helper
  value = lambda name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2])
  graph = helper.make_graph([helper.make_node('Neg', ['a'], ['b'])], 'x', [value('a')], [value('b')])
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=8)
  ours = {each.key: each.value for each in onnx.load(bundle / 'model.onnx').metadata_props}
  helper.set_model_props(model, ours)
  onnx.save(model, tmp_path / 'neg.onnx')
  with pytest.raises(InputError, match=r'expected uint8 images \[B, H, W, C\] to logits'):
    onnx_file.read(tmp_path / 'neg.onnx')


def test_without_onnxruntime_the_extra_is_named(bundle, monkeypatch) -> None:
  monkeypatch.setitem(__import__('sys').modules, 'onnxruntime', None)
  with pytest.raises(InputError, match=r"onnxruntime is not installed; pip install 'jaxres\[export\]'"):
    onnx_file.read(bundle / 'model.onnx')
