"""The tool on a run trained in seconds; its libraries where they are installed."""

import errno
import io
import os
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from jaxres import cli, predict
from jaxres.analysis import attribution, explain
from jaxres.analysis import images as images_lib
from jaxres.errors import InputError, make_progress_printer, time
from jaxres.tools import explain as explain_tool
from tests.helpers import CLASS_NAMES, merge
from tests.train.runs import make_run


def test_the_tool(config, tmp_path, npz, capsys) -> None:
  run = make_run(config, tmp_path, npz)
  (tmp_path / 'images/zz.jpg').write_bytes(b'no image')
  capsys.readouterr()
  out, maps = tmp_path / 'new/explain.png', tmp_path / 'maps.npz'
  words = [str(tmp_path / f'images/{name}') for name in ('00.png', '01.png', 'zz.jpg', '02.png')]
  status = cli.main(['explain', run, *words, '--out', str(out), '--maps', str(maps), '--batch_size', '2'])
  printed = capsys.readouterr()
  assert status == 2
  told = printed.err.splitlines()
  assert told[0] == 'explaining images 1 to 2 of 4: saliency'
  assert f'error: {words[2]}: cannot decode the image: cannot identify image file' in told
  lines = printed.out.splitlines()
  assert lines.pop(0).startswith('explaining 4 images by saliency')
  assert lines.pop(0).startswith(f'by {run}, step ')
  assert [line.partition(':')[0] for line in lines] == [words[0], words[1], words[3], str(out)]
  assert all(line.split()[1] in CLASS_NAMES for line in lines[:3])
  errors = [float(line.rpartition(' ')[2].rstrip('%')) for line in lines[:3]]
  assert max(errors) <= 0.5
  with Image.open(out) as picture:
    side, title = images_lib.TITLED + 2 * images_lib.GAP, images_lib.TITLE
    assert picture.size == (7 * side, title + 3 * (title + side))
    picture = np.asarray(picture)
  with np.load(maps) as actual:
    assert set(actual) == {'path', 'klass', *attribution.METHODS}
    assert actual['path'].tolist() == [words[0], words[1], words[3]]
    assert all(actual[name].shape == (3, 8, 8) for name in attribution.METHODS)
    row = actual['gradcam'][2]
  with Image.open(words[3]) as image:
    pixels = np.asarray(image)
  last = picture[-side:]
  np.testing.assert_array_equal(last[:, :side][2:-2:14, 2:-2:14], pixels)
  column = 1 + list(attribution.METHODS).index('gradcam')
  shown = last[:, column * side : (column + 1) * side][2:-2:14, 2:-2:14].astype(int)
  assert shown.sum(-1)[row == row.max()].mean() > shown.sum(-1)[row == 0].mean()


def test_a_promise_that_is_not_met_is_a_warning(config, tmp_path, npz, capsys, monkeypatch) -> None:
  run = make_run(config, tmp_path, npz)
  real = attribution.integrated_gradients
  few = lambda *args, **more: real(*args, **more | {'max_gradients': 0, 'tolerance': 0.0}) * 1.1
  monkeypatch.setattr(attribution, 'integrated_gradients', few)
  capsys.readouterr()
  words = [run, str(tmp_path / 'images/00.png'), '--methods=integrated', '--out', str(tmp_path / 'x.png')]
  assert cli.main(['explain', *words]) == 0
  printed = capsys.readouterr()
  assert 'complete' not in printed.out
  assert f'warning: {words[1]}: integrated gradients are NOT complete: their sum misses the score by ' in printed.err


def test_progress_is_told_now_and_then(capsys, monkeypatch) -> None:
  for at_once, expected in ((True, 'doing a\ndoing c\n'), (False, 'doing c\n')):
    clock = iter([10.0, 10.0, *([10.0] if at_once else []), 11.0, 12.5, 12.5])
    monkeypatch.setattr(time, 'monotonic', lambda clock=clock: next(clock))
    tell = make_progress_printer('doing', 2.0, at_once=at_once)
    for word in 'abc':
      tell(word)
    assert capsys.readouterr().err == expected


def test_another_class_and_one_channel(config, tmp_path, npz, capsys) -> None:
  run = make_run(config, tmp_path, npz, shape=(8, 8, 1))
  predictor = predict.load(run)
  paths = [tmp_path / 'images/00.png']
  first, second = (next(explain.explain(predictor, paths, ['saliency'], class_id)) for class_id in (0, 1))
  assert (first.class_id, second.class_id) == (0, 1)
  assert np.abs(first.maps['saliency'] - second.maps['saliency']).max() > 0
  drawn = np.asarray(explain_tool.draw([first], ['saliency'], ['a', 'b', 'c', 'd']))
  assert np.array_equal(drawn[38:150:14, 2:114:14], images_lib.as_rgb(first.pixels))
  capsys.readouterr()
  words = ['explain', run, str(paths[0]), '--methods=saliency', '--out', str(tmp_path / 'x.png')]
  assert cli.main([*words, '--of', 'bee']) == 0
  assert ': bee ' in capsys.readouterr().out


def test_logits_that_are_no_numbers(config, tmp_path, npz) -> None:
  predictor = predict.load(make_run(merge(config, train={'epochs': 0.5}), tmp_path, npz))
  broken = predictor._replace(variables=jax.tree.map(lambda leaf: leaf * np.nan, predictor.variables))
  (tmp_path / 'zz.jpg').write_bytes(b'no image')
  paths = [tmp_path / 'images/00.png', tmp_path / 'zz.jpg']
  actual = [one.problem for one in explain.explain(broken, paths, ['saliency'])]
  assert actual == ['the logits are not finite', 'cannot decode the image: cannot identify image file']


@pytest.mark.parametrize('method', explain.LIBRARIES)
@pytest.mark.parametrize('channels', [1, 3])
def test_libraries_find_the_half_that_decides(method: str, channels: int) -> None:
  pytest.importorskip(method)
  image = np.random.default_rng(0).integers(0, 256, (16, 16, channels)).astype(np.uint8)
  image[:, :4] = 255

  def probabilities(images: np.ndarray) -> np.ndarray:
    right = images[:, :, :4].mean((1, 2, 3)) / 255
    return np.stack([1 - right, right], 1)

  actual = explain.LIBRARIES[method](probabilities, image, 1)
  assert actual.shape == (16, 16)
  assert actual[:, :4].mean() > 5 * np.abs(actual[:, 4:]).mean()


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--methods', 'gradcamm'], "--methods: unknown method 'gradcamm'; did you mean 'gradcam'?"),
    (['--out', 'x.txt'], '--out x.txt: expected a picture'),
    (['--batch_size', '0'], '--batch_size: expected 1 or more'),
    (['--of', 'bea'], "--of: unknown class 'bea'"),
  ],
)
def test_bad_input_is_one_line(words, message, config, tmp_path, npz, capsys) -> None:
  run = make_run(merge(config, train={'epochs': 0.5}), tmp_path, npz)
  capsys.readouterr()
  with pytest.raises(SystemExit) as caught:
    cli.main(['explain', run, str(tmp_path / 'images'), *words])
  assert caught.value.code == 2
  line = capsys.readouterr().err
  assert message in line
  assert line.count('\n') == 1


def test_a_library_that_is_not_installed(monkeypatch, capsys) -> None:
  monkeypatch.setitem(__import__('sys').modules, 'lime', None)
  with pytest.raises(SystemExit):
    cli.main(['explain', 'run', 'image', '--methods', 'lime'])
  assert '--methods lime: import of lime halted; None in sys.modules; install it with pip' in capsys.readouterr().err


def test_where_no_image_can_be_read_nothing_is_run(config, tmp_path, npz, monkeypatch) -> None:
  predictor = predict.load(make_run(config, tmp_path, npz))
  (tmp_path / 'zz.jpg').write_bytes(b'no image')
  monkeypatch.setattr(explain, 'jit', lambda _: lambda *_: pytest.fail('it was run'))
  (actual,) = explain.explain(predictor, [tmp_path / 'zz.jpg'], ['integrated'])
  assert actual.problem.startswith('cannot decode the image')


@pytest.mark.parametrize('victim', ['out', 'maps'])
def test_what_was_there_stays_where_a_file_cannot_be_written(tmp_path, monkeypatch, victim: str) -> None:
  pixels = np.zeros((8, 8, 3), np.uint8)
  actual = [explain.Explanation(tmp_path / 'x.png', pixels, 0, 0.5, {'gradcam': np.ones((8, 8), np.float32)}, None)]
  out, maps = tmp_path / 'a.png', tmp_path / 'b.npz'
  write = lambda: explain_tool.write(actual, ['gradcam'], ['ant'], out, maps)
  write()
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  assert before.keys() == {'a.png', 'b.npz'}

  class Full(io.FileIO):
    def write(self, data) -> int:
      super().write(bytes(data)[:20])
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  opened = pathlib.Path.open

  def full(self, mode='r', *args, **more):
    name = {'out': out, 'maps': maps}[victim].name
    return Full(self, mode) if self.name.startswith(name) else opened(self, mode, *args, **more)

  monkeypatch.setattr(pathlib.Path, 'open', full)
  with pytest.raises(InputError, match='the disk is full, cannot write: '):
    write()
  monkeypatch.undo()
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_picture_that_its_kind_cannot_hold_is_one_line(tmp_path) -> None:
  tall = Image.new('RGB', (4, 70_000))
  for name in ('x.webp', 'x.jpg'):
    with pytest.raises(InputError, match=f'{name}: 4 x 70000 pixels cannot be written as .*; give a name that ends in'):
      images_lib.write(tmp_path / name, tall)
  assert not [*tmp_path.iterdir()]
  images_lib.write(tmp_path / 'new/x.png', tall)
  with Image.open(tmp_path / 'new/x.png') as picture:
    assert picture.size == tall.size


def test_maps_are_called_as_numpy_calls_them(tmp_path) -> None:
  pixels = np.zeros((8, 8, 3), np.uint8)
  actual = [explain.Explanation(tmp_path / 'x.png', pixels, 0, 0.5, {'gradcam': np.ones((8, 8), np.float32)}, None)]
  explain_tool.write(actual, ['gradcam'], ['ant'], tmp_path / 'a.png', tmp_path / 'maps')
  assert {path.name for path in tmp_path.iterdir()} == {'a.png', 'maps.npz'}


@pytest.mark.parametrize('flag', ['--out', '--maps'])
def test_no_image_that_is_explained_is_replaced(tmp_path, monkeypatch, capsys, flag: str) -> None:
  monkeypatch.chdir(tmp_path)
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save('x.png')
  before = (tmp_path / 'x.png').read_bytes()
  with pytest.raises(SystemExit):
    cli.main(['explain', 'nowhere', '.', flag, './x.png'])
  assert (
    capsys.readouterr().err == f'error: {flag}: x.png is one of the images, and would be replaced; give another name\n'
  )
  assert (tmp_path / 'x.png').read_bytes() == before
