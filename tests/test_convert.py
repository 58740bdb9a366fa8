import json
import sys

import flax.traverse_util
import numpy as np
import pytest

from jaxres import cli, convert, models, pretrained, weights
from jaxres.weights.names import Dialect
from tests.models.conftest import full_precision  # noqa: F401
from tests.weights.conftest import assert_same, make_state


@pytest.fixture
def file(tmp_path, tiny):
  weights.write(tmp_path / 'tiny.pth', make_state(4))
  return str(tmp_path / 'tiny.pth')


def failed(capsys, *words) -> str:
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
  assert 'unexpected: aux.weight' in failed(capsys, str(tmp_path / 'aux.pth'), str(tmp_path / 'x'))
  words = ['--skip', 'aux.*', '--class_names', str(tmp_path / 'names.txt')]
  assert cli.main(['convert', str(tmp_path / 'aux.pth'), str(tmp_path / 'x'), *words]) == 0
  given = json.loads((tmp_path / 'x/model.json').read_text())
  assert given['class_names'] == ['one', 'two', 'three', 'four words of it']
  (tmp_path / 'names.txt').write_text('one\ntwo\n')
  assert '2 names, but the network has 4' in failed(
    capsys, file, str(tmp_path / 'y'), '--class_names', str(tmp_path / 'names.txt')
  )
  assert not (tmp_path / 'y').exists()


def test_bad_words_are_one_line_and_leave_nothing(file, tmp_path, capsys):
  assert 'No such file' in failed(capsys, str(tmp_path / 'no.pth'), str(tmp_path / 'x'))
  (tmp_path / 'plain').write_text('')
  assert 'a file; expected a directory' in failed(capsys, file, str(tmp_path / 'plain'))
  (tmp_path / 'page.pth').write_text('<html>')
  assert 'an HTML page' in failed(capsys, str(tmp_path / 'page.pth'), str(tmp_path / 'x'))
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/config.json').write_text('{}')
  assert 'the workdir of a run' in failed(capsys, file, str(tmp_path / 'run'))
  (tmp_path / 'a.pth').mkdir()
  assert 'cannot write .onnx files; expected a name that ends in .pth' in failed(capsys, file, str(tmp_path / 'x.onnx'))
  broken = make_state(4)
  broken['linear.bias' if 'linear.bias' in broken else 'fc.bias'] = np.full(4, np.nan, np.float32)
  weights.write(tmp_path / 'nan.pth', broken)
  assert 'not finite: ' in failed(capsys, str(tmp_path / 'nan.pth'), str(tmp_path / 'x'))
  assert 'a directory; expected a file' in failed(capsys, file, str(tmp_path / 'a.pth'))
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
  return convert.check(pretrained.Pretrained(variables, given, channels, dialect, 0, None, 'drawn'))


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
  monkeypatch.setattr(convert, 'check', lambda found: {'stem': 0.0, 'stage1': 0.2})
  assert cli.main(['convert', file, str(tmp_path / 'y'), '--check']) == 1
  assert 'NOT equal' in capsys.readouterr().out


def test_check_without_torch(file, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert cli.main(['convert', file, str(tmp_path / 'x'), '--check']) == 0
  out = capsys.readouterr().out
  assert 'torch is not installed' in out
  assert '  fc.weight [4, 8]\n' in out
  assert weights.digest(make_state(4)) in out
