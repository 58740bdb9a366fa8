"""Names of classes, files and runs that are markup, escapes, other encodings: shown as text, and kept as they are."""

import csv
import functools
import html
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from jaxres import cli, data
from jaxres.analysis import images
from jaxres.doctor import machine as machine_checks
from jaxres.doctor.check import Check
from jaxres.errors import exit_with, printable
from jaxres.log import console as console_lib
from jaxres.log.console import PlainConsole
from jaxres.log.tensorboard import EventFile
from jaxres.models import blocks, resnet
from jaxres.report import html as html_lib
from jaxres.train import loop
from tests.helpers import ROOT

NAMES = [
  '[/x]', '[na] x', ':cat:', 'a:cat:b', '[link=https://example.org]x', '[bold]', r'\[x', '[red]r[/red]', '[[x]]',
  '[@click=f]', os.fsdecode(b'caf\xe9'), '\x1b[31mred', '\x9b31m', '\x07', 'new\nline', 'tab\tx', '\r', '\u202eevil',
  '\u2066x', '\u2028x', '$x^2$', '$', '_hidden', '日本', '\U0001f1e9\U0001f1ea', '<script>alert(1)</script>',
  '</script><b>', '"\'&amp;', '=1+1', '-x', '%s{x}', '{name}', 'None', '0', 'x' * 200,
]  # fmt: skip
CLASSES = sorted(name.strip() for name in NAMES if name.strip())  # a list has no blanks around a name
RUN = '[v2] :cat: \x1b[31m\u202e<b> \n$x$'
FILE = os.fsdecode(b'[na] :cat: \x1b[31m caf\xe9 <b>')
ACTS = re.compile('[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Iterator[pathlib.Path]:
  """A directory with a run that has such a name, of such classes, on images whose files are called so."""
  root = tmp_path_factory.mktemp('hostile')
  rng = np.random.default_rng(0)
  with (root / 'list.csv').open('w', encoding='utf-8', errors='surrogateescape', newline='') as stream:
    rows = csv.writer(stream, quoting=csv.QUOTE_ALL)
    rows.writerow(['path', 'label', 'split'])
    for k, name in enumerate(name for name in NAMES if name.strip()):
      for split in ('train', 'train', 'test'):
        path = root / split / f'{FILE} {k} {rng.integers(1 << 30)}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
        rows.writerow([path, name, split])
  config = {
    'model': {'name': 'tiny'},
    'data': {'name': 'csv', 'path': str(root / 'list.csv'), 'image_size': 8, 'batch_size': 16},
    'train': {'epochs': 1, 'eval_batch_size': 64},
  }
  model = functools.partial(resnet.ResNet, (1,), (8,), blocks.BasicBlock, stem_type='cifar')
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(resnet.MODELS, 'tiny', model)
    loop.train_and_evaluate(config, root / 'plain')
    (root / 'plain').rename(root / RUN)
    (root / 'config.py').write_text(
      f'from jaxres import config\n\ndef get_config():\n  return config.make(**{config!a})\n'
    )
    yield root


@pytest.fixture(autouse=True)
def wide(monkeypatch) -> None:
  """Let a table show every name in one line."""
  monkeypatch.setattr(console_lib.console, 'width', 3000)


@pytest.fixture
def shown(capsys) -> Callable[..., str]:
  """A function that runs a tool and returns what it prints, in which nothing acts on a terminal."""

  def run(*words: object, status: int | None = None) -> str:
    capsys.readouterr()
    assert cli.main([*map(str, words)]) == status
    out, err = capsys.readouterr()
    assert not ACTS.search(out + err), ascii(ACTS.findall(out + err))
    return out + err

  return run


def test_evaluate(made, shown) -> None:
  out = shown('evaluate', made / RUN, '--out', made / FILE)
  assert all(printable(name) in out for name in CLASSES)
  assert f'{printable(RUN)}: ' in out
  actual = json.loads((made / FILE).read_text(encoding='utf-8'))
  assert [row['name'] for row in actual['runs'][RUN]['classes']] == CLASSES


def test_what_a_run_keeps(made) -> None:
  assert json.loads((made / RUN / 'data.json').read_text(encoding='utf-8'))['class_names'] == CLASSES


@pytest.mark.parametrize('tool', ['report', 'errors'])
def test_pages(tool, made, shown) -> None:
  more = ['--json', made / 'errors.json'] if tool == 'errors' else []
  out = shown(tool, made / RUN, '--out', made / f'{FILE}.html', *more)
  assert printable(FILE) in out
  text = (made / f'{FILE}.html').read_bytes().decode()
  assert not ACTS.search(text)
  assert '<script>alert' not in text
  assert '</script><b>' not in text
  assert '<b>' not in text
  read = html.unescape(text)
  assert printable(RUN, '\n') in read
  assert all(printable(name, '\n') in read for name in (CLASSES if tool == 'report' else CLASSES[:1]))
  if more:
    pairs = json.loads((made / 'errors.json').read_text())['pairs']
    assert {row['class'] for row in pairs} <= set(CLASSES)


def test_predict(made, shown) -> None:
  image = sorted((made / 'test').iterdir())[0]
  out = shown('predict', made / RUN, image, '--top', len(CLASSES), status=0)
  assert printable(image) == out.split('\n')[0]
  assert {line.split('%  ', 1)[1] for line in out.split('\n')[1:] if '%  ' in line} == set(map(printable, CLASSES))
  answer, *_ = shown('predict', made / RUN, image, '--json', '--top', len(CLASSES), status=0).splitlines()
  row = json.loads(answer)
  assert pathlib.Path(row['image']) == image
  assert {each['class'] for each in row['top']} == set(CLASSES)
  missing = made / '\x1b[31m\udce9\n.png'
  assert printable(missing) in shown('predict', made / RUN, missing, status=2)


def test_explain(made, shown) -> None:
  image = sorted((made / 'test').iterdir())[0]
  target = os.fsdecode(b'x \xe9.png')
  words = ['--methods=saliency', '--of', CLASSES[0], '--out', made / target, '--maps', made / 'maps.npz']
  out = shown('explain', made / RUN, image, made / '\x1b[31m\udce9.png', *words, status=2)
  assert printable(made / target) in out
  with Image.open(made / target) as picture:
    assert picture.size[0] > 8
  with np.load(made / 'maps.npz') as maps:
    assert maps['path'].tolist() == [str(image)]


def test_the_other_tools(made, shown) -> None:
  config = ['--config', made / 'config.py']
  assert 'verified' in shown('digest', made / RUN, '--leaves')
  assert printable(RUN) in shown('doctor', '--workdir', made / RUN, status=0)
  assert 'every field is known' in shown('doctor', *config, status=0)
  assert 'the originals' in shown('show-data', *config, '--out', made / f'{FILE}.png')
  assert printable(made / 'c' / FILE) in shown('convert', made / RUN, made / 'c' / FILE, status=0)
  assert json.loads((made / 'c' / FILE / 'model.json').read_text())['class_names'] == CLASSES


def test_a_run_whose_path_is_not_utf8(made, capsys) -> None:
  link = made / os.fsdecode(b'caf\xe9')
  link.symlink_to(made / RUN)
  for tool in ('evaluate', 'report', 'errors', 'digest'):
    with pytest.raises(SystemExit):
      cli.main([tool, str(link)])
    err = capsys.readouterr().err
    assert r'caf\xe9: the name is not UTF-8' in err
    assert err.count('\n') == 1


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """A folder of images with such names, as far as a directory can have them."""
  root = tmp_path_factory.mktemp('folder') / FILE
  for k, name in enumerate(name for name in NAMES if '/' not in name):
    for split in ('train', 'test'):
      (root / split / name).mkdir(parents=True)
      for i in range(2):
        Image.new('RGB', (8, 8), (k, i, 0)).save(root / split / name / f'{FILE}{i}.png')
  return root


def test_prepare_npz(folder, shown) -> None:
  target = folder.parent / f'{FILE}.npz'
  out = shown('prepare', 'folder', folder, '--npz', target, '--image_size', 8)
  assert printable(target) in out.replace('\\\\', '\\').replace("\\'", "'")
  actual = data.load('arrays', path=str(target)).info.class_names
  assert actual == tuple(sorted(name for name in NAMES if '/' not in name))


def test_prepare_folder(folder, shown) -> None:
  pytest.importorskip('array_record')
  shown('prepare', 'folder', folder, '--data_dir', folder.parent / '[sets] :cat:', '--name', 'hostile')
  actual = data.load('hostile', data_dir=str(folder.parent / '[sets] :cat:'), image_size=8).info.class_names
  assert actual == tuple(map(printable, sorted(name for name in NAMES if '/' not in name)))


def test_a_folder_and_the_same_folder_as_a_list(folder) -> None:
  actual = data.load('folder', path=str(folder), image_size=8)
  assert actual.info.class_names == tuple(sorted(name for name in NAMES if '/' not in name))


@pytest.mark.parametrize('name', [*NAMES, RUN, FILE])
def test_the_console(name) -> None:
  """Every way in which rich takes a string."""
  from rich.table import Column, Table

  file = io.StringIO()
  console = PlainConsole(file=file, width=1000, force_terminal=True, color_system=None)
  table = Table(name, Column('x', footer=name), title=name, caption=name, show_footer=True)
  table.add_row(name, name)
  console.print(table)
  console.print(name, name)
  console.print(f'on {name}')
  out = file.getvalue()
  assert not ACTS.search(out)
  assert out.count(printable(name)) >= 9


def test_the_table_of_doctor(capsys, monkeypatch) -> None:
  rows = [Check(name, 'ok', name) for name in NAMES]
  monkeypatch.setattr(machine_checks, 'check_machine', lambda: rows)
  assert cli.main(['doctor']) == 0
  out = capsys.readouterr().out
  assert not ACTS.search(out)
  assert all(out.count(printable(name)) >= 2 for name in NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_pieces_of_pages(name) -> None:
  pieces = [
    html_lib.document(name, html_lib.paragraph(name), [html_lib.section('x', name, html_lib.details(name, ''))]),
    html_lib.table([name, name], [[name, html_lib.Bar(0.5, name)]]),
    html_lib.note_list([name]),
    html_lib.tiles([(name, name, name)]),
    html_lib.figure(['data:,'], name, name),
    html_lib.heatmap([[1]], [name]),
    html_lib.line_chart(name, {name: [(0.0, 1.0), (1.0, 2.0)]}, name, lambda y: name),
  ]
  for piece in pieces:
    text = piece.encode().decode()
    assert not ACTS.search(text)
    assert '<script>alert' not in text
    assert '</script><b>' not in text
    assert printable(name, '\n') in html.unescape(text)
  script = re.search(r'<script type="application/json">(.*?)</script>', pieces[-1])
  assert json.loads(script[1])['series'][0]['name'] == printable(name)


@pytest.mark.parametrize('name', NAMES)
def test_titles_of_pictures(name) -> None:
  grid = np.zeros((1, 1, 8, 8, 3), np.uint8)
  assert images.add_titles(grid, [name], [name]).size[0] >= 8


@pytest.mark.parametrize('name', NAMES)
def test_an_error_is_one_line_of_text(name, capsys) -> None:
  with pytest.raises(SystemExit):
    exit_with(f'{name}: no such file', 2)
  err = capsys.readouterr().err
  assert err.count('\n') == 1
  assert not ACTS.search(err)
  if '\n' not in name and '\r' not in name:
    assert err == f'error: {printable(name)}: no such file\n'


def test_readable_text_is_left_as_it_is() -> None:
  for text in ('plain', 'a\\b', 'Zoë', '日本', 'العربية', 'עברית', 'नमस्ते', '👩‍👩‍👧', 'می‌خواهم'):
    assert printable(text) == text
  assert printable('\u061cx\ufeff') == '\\u061cx\\ufeff'
  assert printable(pathlib.Path('a\n')) == 'a\\n'
  assert printable('a\nb\t', keep='\n') == 'a\nb\\t'


def test_a_list_that_is_not_utf8_finds_files_by_their_bytes(tmp_path) -> None:
  for name in (b'\xe9.png', b'a.png', b'b.png'):
    Image.new('RGB', (8, 8)).save(tmp_path / os.fsdecode(name))
  rows = b'path,label,split\n\xe9.png,caf\xe9,train\nb.png,b,train\na.png,caf\xe9,test\n'
  (tmp_path / 'list.csv').write_bytes(rows)
  actual = data.load('csv', path=str(tmp_path / 'list.csv'), image_size=8)
  assert actual.info.class_names == ('b', os.fsdecode(b'caf\xe9'))


def test_the_console_is_the_only_one() -> None:
  """No module makes a console, or a text of markup, itself."""
  for path in (ROOT / 'jaxres').rglob('*.py'):
    source = path.read_text(encoding='utf-8')
    assert 'from_markup' not in source, path
    assert path.name == 'console.py' or 'Console(' not in source, path


@pytest.mark.parametrize('name', ['s3:x', 'gs:x', '[v2]', ':cat:'])
def test_event_files_are_on_this_machine(name, tmp_path, monkeypatch) -> None:
  """TensorBoard's writer takes what stands before a colon for a service."""
  pytest.importorskip('tensorboardX')
  monkeypatch.chdir(tmp_path)
  pathlib.Path(name).mkdir()
  events = EventFile(pathlib.Path(name), 0)
  events.write(1, {'train/loss': 0.5})
  assert [path.name.startswith('events') for path in pathlib.Path(name).iterdir()] == [True]
