import json
import pathlib
import sys

import flax.traverse_util
import jax
import numpy as np
import optax
import pytest

from jaxres import checkpoint, cli, models, weights
from jaxres import config as config_lib
from jaxres.errors import InputError
from jaxres.state import create
from jaxres.weights import parity, preprocessing, sources
from jaxres.weights.names import Dialect
from tests.weights.files import assert_same, make_state

pytestmark = pytest.mark.usefixtures('full_precision')


@pytest.fixture
def file(tmp_path, tiny):
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  return str(tmp_path / 'tiny.pth')


def fail(capsys, *words) -> str:
  with pytest.raises(SystemExit) as caught:
    cli.main(['convert', *words])
  assert caught.value.code == 2
  line = capsys.readouterr().err
  assert line.count('\n') == 1
  return line


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.th', '.safetensors'])
def test_there_and_back_is_the_identity(file, tmp_path, capsys, suffix):
  out = tmp_path / f'again{suffix}'
  assert cli.main(['convert', file, str(tmp_path / 'dir')]) == 0
  assert 'tiny (num_classes=4), 3 channels, 1,4' in capsys.readouterr().out
  assert cli.main(['convert', str(tmp_path / 'dir'), str(out)]) == 0
  assert_same(weights.read(out), make_state(4), ordered=suffix != '.safetensors')


def test_class_names_and_skip(file, tmp_path, capsys):
  (tmp_path / 'names.txt').write_text('one\ntwo\nthree\nfour words of it\n')
  weights.write(tmp_path / 'aux.pth', make_state(4) | {'aux.weight': np.zeros(3, np.float32)})
  assert 'unexpected: aux.weight' in fail(capsys, str(tmp_path / 'aux.pth'), str(tmp_path / 'x'))
  words = ['--skip', 'aux.*', '--class_names', str(tmp_path / 'names.txt')]
  assert cli.main(['convert', str(tmp_path / 'aux.pth'), str(tmp_path / 'x'), *words]) == 0
  given = json.loads((tmp_path / 'x/model.json').read_text())
  assert given['class_names'] == ['one', 'two', 'three', 'four words of it']
  (tmp_path / 'names.txt').write_text('one\ntwo\n')
  assert '2 names, but the network has 4' in fail(
    capsys, file, str(tmp_path / 'y'), '--class_names', str(tmp_path / 'names.txt')
  )
  assert not (tmp_path / 'y').exists()


def test_bad_words_are_one_line_and_leave_nothing(file, tmp_path, capsys):
  assert 'No such file' in fail(capsys, str(tmp_path / 'no.pth'), str(tmp_path / 'x'))
  (tmp_path / 'plain').write_text('')
  assert 'a file; expected a directory' in fail(capsys, file, str(tmp_path / 'plain'))
  (tmp_path / 'page.pth').write_text('<html>')
  assert 'an HTML page' in fail(capsys, str(tmp_path / 'page.pth'), str(tmp_path / 'x'))
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/config.json').write_text('{}')
  assert 'the workdir of a run' in fail(capsys, file, str(tmp_path / 'run'))
  (tmp_path / 'a.pth').mkdir()
  assert 'cannot write .onnx files; expected a name that ends in .pth' in fail(capsys, file, str(tmp_path / 'x.onnx'))
  broken = make_state(4)
  broken['linear.bias' if 'linear.bias' in broken else 'fc.bias'] = np.full(4, np.nan, np.float32)
  weights.write(tmp_path / 'nan.pth', broken)
  assert 'not finite: ' in fail(capsys, str(tmp_path / 'nan.pth'), str(tmp_path / 'x'))
  assert 'is a directory; expected the name of a file to write' in fail(capsys, file, str(tmp_path / 'a.pth'))
  assert not (tmp_path / 'x').exists()


def parity_of(name: str, channels: int = 3, **options) -> dict[str, float]:
  """Return the report on a network with random weights and statistics."""
  model = models.create(name, num_classes=5, **options)
  rng = np.random.default_rng(0)

  def draw(path, like):
    if path.endswith(('scale', 'var')):
      return rng.uniform(0.4, 0.9, like.shape).astype(np.float32)
    deviation = np.sqrt(2 / np.prod(like.shape[:-1])) if path.endswith('kernel') else 0.1
    return (deviation * rng.standard_normal(like.shape)).astype(np.float32)

  flat = flax.traverse_util.flatten_dict(weights.abstract(model, channels), sep='/')
  variables = flax.traverse_util.unflatten_dict({path: draw(path, like) for path, like in flat.items()}, sep='/')
  dialect = Dialect.of_model(model.shortcut)
  given = {'name': name, 'num_classes': 5, **options}
  return parity.check(sources.Pretrained(variables, given, channels, dialect, 0, None, 'drawn'))


@pytest.mark.torch
@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('resnet20', {}),
    ('resnet20', {'shortcut': 'average', 'channels': 2}),
    ('preact_resnet20', {'stem': 'deep'}),
    pytest.param('seresnet18', {'stem': 'imagenet', 'act': 'silu'}, marks=pytest.mark.slow),
    pytest.param('resnext50_32x4d', {}, marks=pytest.mark.slow),
    pytest.param('resnet50d', {}, marks=pytest.mark.slow),
  ],
)
def test_parity_with_torch(name, options):
  pytest.importorskip('torch')
  errors = parity_of(name, **options)
  assert [*errors] == ['stem', 'stage1', 'stage2', 'stage3', *(['stage4'] if len(errors) == 6 else []), 'logits']
  assert 0 < max(errors.values()) < 1e-5
  print(name, options, max(errors.values()))


@pytest.mark.torch
def test_check_reports_what_is_wrong(file, tmp_path, capsys, monkeypatch):
  pytest.importorskip('torch')
  assert cli.main(['convert', file, str(tmp_path / 'x'), '--check']) == 0
  out = capsys.readouterr().out
  assert 'stage1 ' in out
  assert 'equal within 1e-04' in out
  monkeypatch.setattr(parity, 'check', lambda actual: {'stem': 0.0, 'stage1': 0.2})
  assert cli.main(['convert', file, str(tmp_path / 'y'), '--check']) == 1
  assert 'NOT equal' in capsys.readouterr().out


def test_check_without_torch(file, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert cli.main(['convert', file, str(tmp_path / 'x'), '--check']) == 0
  out = capsys.readouterr().out
  assert 'torch is not installed' in out
  assert '  fc.weight [4, 8]\n' in out
  assert weights.digest(make_state(4)) in out


INFO = {
  'class_names': ['a', 'b', 'c', 'd'], 'image_shape': [8, 9, 3], 'mean': [0.5, 0.25, 0.125], 'std': [0.5, 1, 2],
  'splits': {},
}  # fmt: skip


def variables_of(seed: int):
  return weights.to_variables(make_state(4, seed=seed), models.create('tiny', num_classes=4))


def make_run(path, **fields):
  """Make a run of `tiny`: steps 5, 7 and 9 of seeds 5, 7 and 9, and step 7 is the best by validation."""
  path.mkdir()
  config = config_lib.make(model=dict(name='tiny'), data=fields)
  (path / 'config.json').write_text(config_lib.to_json(config))
  (path / 'data.json').write_text(json.dumps(INFO))
  with checkpoint.open_manager(path / 'checkpoints', keep_latest=3) as manager:
    for step, top1 in ((5, 0.5), (7, 0.9), (9, 0.6)):
      complete_value = create(variables_of(step), optax.sgd(0.1))
      complete_value = complete_value.replace(step=complete_value.step + step)
      checkpoint.save(manager, jax.tree.map(jax.numpy.asarray, complete_value), {}, {'val/top1': top1})
  return path


def kernel_of(directory) -> np.ndarray:
  return sources.read(str(directory)).state_dict()['fc.weight']


def test_the_best_checkpoint_is_taken_and_named(tmp_path, capsys, tiny):
  run = make_run(tmp_path / 'run')
  for step, seed, words in (
    ((), 7, 'the best by validation'),
    (('--step', 'latest'), 9, 'the latest checkpoint'),
    (('--step', '5'), 5, 'step 5'),
  ):
    assert cli.main(['convert', str(run), str(tmp_path / f'out{seed}'), *step]) == 0
    out = capsys.readouterr().out
    assert f'taken: {words}' in out
    assert f'step {seed}' in out
    np.testing.assert_array_equal(kernel_of(tmp_path / f'out{seed}'), make_state(4, seed=seed)['fc.weight'])


@pytest.mark.parametrize(
  ('fields', 'size', 'crop'),
  [
    ({}, (8, 9), 1.0),
    ({'image_size': 20}, (20, 20), None),
    ({'image_size': 20, 'eval_image_size': 24}, (24, 24), None),
  ],
)
def test_what_is_done_to_images_goes_with_the_weights(tmp_path, tiny, fields, size, crop):
  run = make_run(tmp_path / 'run', **fields)
  assert cli.main(['convert', str(run), str(tmp_path / 'out')]) == 0
  actual = sources.read(str(tmp_path / 'out'))
  assert actual.class_names == ('a', 'b', 'c', 'd')
  assert actual.preprocessing == sources.read(str(run)).preprocessing
  mean, std, image_size, center_crop = actual.preprocessing
  assert (mean, std, image_size) == ((0.5, 0.25, 0.125), (0.5, 1.0, 2.0), size)
  config = config_lib.to_dict(config_lib.complete(json.loads((run / 'config.json').read_text())))
  assert center_crop == (crop or config['data']['center_crop'])
  given = json.loads((tmp_path / 'out/model.json').read_text())
  assert given['preprocessing']['image_size'] == [*size]


def test_a_directory_without_preprocessing_is_read(file, tmp_path, capsys):
  """Of a torch file, and of a jaxres that did not write it."""
  assert cli.main(['convert', file, str(tmp_path / 'out')]) == 0
  assert sources.read(str(tmp_path / 'out')).preprocessing is None
  path = tmp_path / 'out/model.json'
  given = json.loads(path.read_text())
  del given['preprocessing']
  given.pop('description_sha256', None)
  path.write_text(json.dumps(given | {'format': 1}))
  assert sources.read(str(tmp_path / 'out')).preprocessing is None


GOOD = {'mean': [0.5], 'std': [1], 'image_size': [8, 8], 'center_crop': 1.0}


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    ({'std': [0]}, 'std: expected'),
    ({'std': [1, 1]}, 'std: expected 1'),
    ({'mean': [float('nan')]}, 'mean: expected a finite number'),
    ({'mean': 0.5}, 'mean: expected'),
    ({'mean': [True]}, 'mean: expected'),
    ({'image_size': [8]}, 'image_size: expected'),
    ({'image_size': [100_000, 100_000]}, 'image_size: expected'),
    ({'image_size': [8.0, 8]}, 'image_size: expected'),
    ({'center_crop': 0}, 'center_crop: expected'),
    ({'center_crop': '1'}, 'center_crop: expected'),
    ({'more': 1}, 'expected mean, std, image_size, center_crop'),
  ],
)
def test_bad_preprocessing_is_one_line(change, expected):
  assert preprocessing.parse(GOOD, 'x').image_size == (8, 8)
  with pytest.raises(InputError, match=expected):
    preprocessing.parse(GOOD | change, 'x')


def test_prefix_and_stem(tmp_path, capsys, tiny):
  both = {f'model.{n}': v for n, v in make_state(4).items()}
  both |= {f'ema_model.{n}': v for n, v in make_state(4, seed=1).items()}
  weights.write(tmp_path / 'both.pth', both)
  out = str(tmp_path / 'out')
  line = fail(capsys, str(tmp_path / 'both.pth'), out)
  assert "2 networks, with prefixes 'model.', 'ema_model.'; choose one by --prefix (init.prefix)" in line
  assert cli.main(['convert', str(tmp_path / 'both.pth'), out, '--prefix', 'ema_model']) == 0
  assert '20 tensors beside the network are left out' in capsys.readouterr().out
  np.testing.assert_array_equal(kernel_of(out), make_state(4, seed=1)['fc.weight'])
  assert 'prefix is for tensors of torch files' in fail(capsys, out, str(tmp_path / 'x.pth'), '--prefix', 'model')
  assert 'stem is for tensors of torch files' in fail(capsys, out, str(tmp_path / 'x.pth'), '--stem', 'cifar')
  assert 'tiny without a classifier' not in line


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_a_directory_of_the_hub(tmp_path, capsys, name, tiny):
  hub = tmp_path / 'resnet50d.ra2_in1k'
  hub.mkdir()
  (hub / 'config.json').write_text('{"architecture": "resnet50d"}')
  weights.write(tmp_path / f'x.{"pth" if name.endswith("bin") else "safetensors"}', make_state(4))
  next(path for path in tmp_path.glob('x.*')).rename(hub / name)
  assert cli.main(['convert', str(hub), str(tmp_path / 'out')]) == 0
  np.testing.assert_array_equal(kernel_of(tmp_path / 'out'), make_state(4)['fc.weight'])


def test_a_bare_backbone_says_what_to_do(tmp_path, capsys, tiny):
  bare = {name: value for name, value in make_state(4).items() if not name.startswith('fc')}
  weights.write(tmp_path / 'bare.pth', bare)
  line = fail(capsys, str(tmp_path / 'bare.pth'), str(tmp_path / 'x'))
  assert 'a tiny without a classifier' in line
  assert '--config.init.new_head=True' in line


@pytest.mark.torch
def test_check_says_what_it_does_not_see(file, tmp_path, capsys):
  pytest.importorskip('torch')
  assert cli.main(['convert', file, str(tmp_path / 'x'), '--check', '--stem', 'cifar_pool']) == 0
  out = capsys.readouterr().out
  assert "stem='cifar_pool'" in out
  assert 'both compute the network named above' in out
  assert 'equal within 1e-04' in out


def test_a_source_is_not_replaced(file, tmp_path, monkeypatch, capsys):
  before = pathlib.Path(file).read_bytes()
  monkeypatch.chdir(pathlib.Path(file).parent)
  for source in (file, f'torchvision:{file}', pathlib.Path(file).name):
    with pytest.raises(SystemExit):
      cli.main(['convert', source, file])
    assert 'it is the source, and would be replaced; give another name' in capsys.readouterr().err
  assert pathlib.Path(file).read_bytes() == before
