"""The page: its structure as a parser sees it, its numbers, and that it fetches nothing."""

import collections
import html.parser
import itertools
import json
import math
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from jaxres import cli
from jaxres import workdir as workdir_lib
from jaxres.analysis import compare, runs, scores
from jaxres.report import charts
from jaxres.report import html as html_lib
from jaxres.train import loop
from tests import browser
from tests.helpers import make_arrays

NAMES = ['<ant>', 'bee & co', 'cat', 'dog']
VOID = {'meta', 'img'}


class Parsed(html.parser.HTMLParser):
  """What a page holds; an end tag that does not fit is an error."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.open: list[str] = []
    self.texts: dict[str, list[str]] = collections.defaultdict(list)
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts[self.open[-1] if self.open else ''].append(data)

  def all(self, tag: str) -> list[dict]:
    return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> list[str]:
  """Two runs, and their report as ``report.html`` in the first."""
  from jaxres.models import blocks, resnet

  resnet.MODELS['tiny_report'] = lambda **options: resnet.ResNet(
    (1,), (8,), blocks.BasicBlock, **{'stem_type': 'cifar'} | options
  )
  path = tmp_path_factory.mktemp('runs')
  np.savez(path / 'data.npz', **make_arrays(), class_names=NAMES)
  for seed in (0, 1):
    config = {
      'model': {'name': 'tiny_report'},
      'data': {'name': 'arrays', 'path': str(path / 'data.npz'), 'batch_size': 16, 'val': 0.25},
      'optim': {'lr': 0.1},
      'train': {'epochs': 3, 'eval_batch_size': 16, 'log_every_steps': 2, 'seed': seed},
    }
    loop.train_and_evaluate(config, path / f'seed{seed}')
  yield [str(path / f'seed{seed}') for seed in (0, 1)]
  del resnet.MODELS['tiny_report']


@pytest.fixture(scope='module')
def one(trained) -> str:
  assert cli.main(['report', trained[0]]) is None
  with open(f'{trained[0]}/report.html', encoding='utf-8') as file:
    return file.read()


def check_page(text: str) -> Parsed:
  """Check what holds of every page."""
  parsed = Parsed(text)
  assert len(text.encode()) < 5e6
  for _, attrs in parsed.tags:
    for name in ('src', 'href', 'srcset', 'data', 'action'):
      assert attrs.get(name, '#').startswith(('#', 'data:image/'))
  assert not re.search(r'url\(|@import|fetch\(|XMLHttpRequest|https?://', text)
  assert parsed.all('html') == [{'lang': 'en'}]
  assert {'name': 'viewport', 'content': 'width=device-width, initial-scale=1'} in parsed.all('meta')
  ids = [attrs['id'] for _, attrs in parsed.tags if 'id' in attrs]
  assert len(set(ids)) == len(ids)
  assert {attrs['href'].removeprefix('#') for attrs in parsed.all('a')} <= set(ids)
  assert all(attrs['aria-labelledby'] in ids for attrs in parsed.all('section'))
  assert all('alt' in attrs for attrs in parsed.all('img'))
  assert all(attrs.get('aria-label') or attrs.get('aria-hidden') for attrs in parsed.all('svg'))
  assert len(parsed.all('h1')) == 1
  assert 'prefers-color-scheme: dark' in text
  return parsed


def test_the_page_of_one_run(one, trained) -> None:
  parsed = check_page(one)
  expected = (
    'scores curves confusion classes calibration roc mistakes hits gradcam filters norms config environment timing'
  )
  assert [attrs['id'] for attrs in parsed.all('section')] == expected.split()
  (run,) = runs.read_runs(trained[:1])
  compared, tests = compare.compare([run])
  local = compared['runs']['seed0']
  words = set(itertools.chain(*parsed.texts.values()))
  assert any(f'{local["top1"]:.2%} (' in word for word in words)
  assert f'<dt>top-1</dt><dd>{local["top1"]:.2%}<small>' in one
  assert '<ant>' in words
  assert '<ant>' not in one
  wrong = int((tests['seed0'].logits.argmax(1) != tests['seed0'].labels).sum())
  pictures = [attrs['alt'] for attrs in parsed.all('img')]
  assert sum(alt.startswith('Filter ') for alt in pictures) == 8
  assert sum(alt.startswith('Test image ') and not alt.endswith('Grad-CAM') for alt in pictures) == min(
    wrong, 24
  ) + min(40 - wrong, 24)
  assert 'Not recorded' not in one
  assert any('train.epochs' in word for word in words)


def test_curves_hold_what_was_logged(one, trained) -> None:
  data = [json.loads(block) for block in re.findall(r'<script type="application/json">(.*?)</script>', one)]
  assert len(data) == 5  # and of the ROC curves
  rows = workdir_lib.read_metrics(pathlib.Path(trained[0]))
  loss = {line['name']: line['points'] for line in data[0]['series']}
  assert set(loss) == {'train', 'val', 'test'}
  assert [y for _, _, y in loss['test']] == [f'{row["test/loss"]:.4g}' for row in rows if 'test/loss' in row]


def test_roc_curves_have_the_areas_of_the_table(one, trained) -> None:
  *_, roc = [json.loads(block) for block in re.findall(r'<script type="application/json">(.*?)</script>', one)]
  (run,) = runs.read_runs(trained[:1])
  compared, tests = compare.compare([run])
  areas = {row['name']: row['roc_auc'] for row in compared['runs']['seed0']['classes']}
  assert [line['name'] for line in roc['series']] == [
    f'{name}, area {auc:.4f}' for name, auc in sorted(areas.items(), key=lambda item: item[1])
  ]
  assert len(areas) == 4
  test = tests['seed0']
  for k, auc in enumerate(areas.values()):
    false, true = np.array(scores.roc_curve(test.logits, test.labels, k)).T
    assert np.trapezoid(true, false) == pytest.approx(auc)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
  assert scores.roc_curve(test.logits, np.zeros_like(test.labels), 0) == []


def test_the_page_of_two_runs(trained, tmp_path) -> None:
  assert cli.main(['report', *trained, '--out', str(tmp_path / 'new/both.html')]) is None
  parsed = check_page((tmp_path / 'new/both.html').read_text())
  ids = [attrs['id'] for attrs in parsed.all('section')]
  assert ids[:2] == ['scores', 'curves']
  assert {'run0-mistakes', 'run1-mistakes'} < set(ids)
  words = ' '.join(itertools.chain(*parsed.texts.values()))
  assert 'McNemar p = ' in words
  assert 'ensemble' in words


def test_the_script_is_javascript(tmp_path) -> None:
  node = shutil.which('node')
  if not node:
    pytest.skip('no node here')
  script = html_lib.importlib.resources.files('jaxres.report').joinpath('script.js')
  done = subprocess.run([node, '--check', str(script)], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module')
def shown(tmp_path_factory):
  if not browser.PROGRAM:
    pytest.skip('no browser here')
  with browser.Browser(tmp_path_factory.mktemp('profile')) as actual:
    yield actual


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [1280, 390])
def test_a_browser_shows_it(one, trained, shown, width: int, dark: bool) -> None:
  """No complaint, nothing fetched, nothing that sticks out sideways, colors and sizes that can be read."""
  shown.open(pathlib.Path(trained[0]) / 'report.html', width, 844, dark)
  assert shown.complaints() == []
  assert [url for url in shown.requests() if not url.startswith(('file:', 'data:'))] == []
  shown.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
  inner, content = shown.ask('[innerWidth, document.documentElement.scrollWidth]')
  assert inner == width
  assert content <= width
  assert shown.ask('[...document.images].every(each => each.complete && each.naturalWidth > 0)')
  ground, panel, text, soft, link, *lines = shown.ask(COLORS)
  assert (sum(ground) < sum(text)) == dark
  for behind in (ground, panel):
    assert min(contrast(color, behind) for color in (text, soft, link)) >= 4.5  # WCAG 2.2, 1.4.3
  assert min(contrast(color, panel) for color in lines) >= 3  # and 1.4.11
  assert min(shown.ask(SIZES)) >= 11


COLORS = """
(() => {
  const probe = document.body.appendChild(document.createElement('i'));
  const names = ['ground', 'panel', 'text', 'soft', 'link', ...Array(8).keys().map(k => 'c' + k)];
  return names.map(name => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number);
  });
})()"""
SIZES = """
[...document.querySelectorAll('td, th, p, li, small, figcaption, output, .chart text')].map(each => {
  const svg = each.ownerSVGElement;
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  return scale * parseFloat(getComputedStyle(each).fontSize);
})"""


def contrast(first: list[float], second: list[float]) -> float:
  """Return the contrast ratio of two sRGB colors: WCAG 2.2, relative luminance."""

  def luminance(color: list[float]) -> float:
    c = np.array(color[:3]) / 255
    return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

  low, high = sorted(map(luminance, (first, second)))
  return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand() -> None:
  assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
  assert contrast([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.01)


def test_it_is_used_by_keyboard_and_pointer(one, trained, shown) -> None:
  shown.open(pathlib.Path(trained[0]) / 'report.html')
  shown.press('Tab', 'Enter')
  assert shown.ask('document.activeElement.id') == 'main'
  reached = []
  for _ in range(200):
    shown.press('Tab')
    tag, outline = shown.ask('[document.activeElement.tagName, getComputedStyle(document.activeElement).outlineStyle]')
    if tag == 'BODY':
      break
    reached.append(tag)
    assert outline == 'solid'  # one sees where one is
  assert tag == 'BODY'  # no trap
  assert reached.count('svg') == 5  # the curves
  assert 'SUMMARY' in reached
  reading = "document.querySelector('.chart output').textContent"
  assert shown.ask(reading).startswith('At the end: train ')
  shown.ask("document.querySelector('.chart svg').focus()")
  shown.press('End')
  assert shown.ask(reading).startswith('epoch 3.111: train ')
  shown.press('Home', 'ArrowRight', 'ArrowLeft')
  first = shown.ask(reading)
  assert first.startswith('epoch 0.')
  left, top, right = shown.ask(
    "(b => [b.left, b.top, b.right])(document.querySelector('.chart svg').getBoundingClientRect())"
  )
  shown.move(right - 5, top + 40)
  assert shown.ask(reading).startswith('epoch 3.111: train ')
  shown.move(left + 5, top + 40)
  assert shown.ask(reading) == first


def test_it_is_read_aloud(one, trained, shown) -> None:
  """Every landmark, heading, picture, chart, region and link has a name."""
  shown.open(pathlib.Path(trained[0]) / 'report.html')
  output = shown.aloud()
  roles = collections.Counter(role for role, _ in output)
  for role in ('image', 'heading', 'link', 'region', 'navigation'):
    assert roles[role] > 0
    assert all(name for local, name in output if local == role), role
  assert {'banner', 'main', 'columnheader', 'rowheader', 'figure'} < set(roles)
  assert ('navigation', 'Contents') in output
  assert ('link', 'Skip to the content') in output
  assert any(name.startswith('Loss over epoch: train from ') for role, name in output if role == 'image')
  headings = [name for role, name in output if role == 'heading']
  assert headings[:3] == ['seed0: tiny_report on arrays', 'Scores', 'Curves']


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (0.2, 2.31), (-3, 4), (5, 5), (0, 0), (1e-5, 3e-4), (0, 12345)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
  actual = charts.ticks(low, high)
  assert 2 <= len(actual) <= 8
  assert actual[0] <= low
  assert actual[-1] >= high
  steps = np.diff(actual)
  np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
  mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
  assert min(abs(mantissa - k) for k in (1, 2, 2.5, 5)) < 1e-6


def test_a_line_leaves_out_what_is_no_number_and_keeps_its_ends() -> None:
  points = [(x, float(x)) for x in range(1000)]
  points[500] = (500, math.nan)
  chart = charts.line_chart('a < b', {'line': points, 'none': []}, 'epoch', str)
  data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', chart).group(1))
  (line,) = data['series']
  assert len(line['points']) <= 301
  assert (line['points'][0][2], line['points'][-1][2]) == ('0.0', '999.0')
  assert 'nan' not in chart
  assert 'a &lt; b' in chart
  assert charts.line_chart('empty', {}, 'epoch', str) == ''


@pytest.mark.parametrize(
  ('low', 'high', 'expected'),
  [(0.3, 40.0, [0.1, 1.0, 10.0, 100.0]), (1.0, 60.0, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]), (1.0, 100.0, None)],
)
def test_logarithmic_ticks_hold_the_range(low: float, high: float, expected: list[float] | None) -> None:
  actual = charts.log_ticks(low, high)
  assert expected is None or actual == expected
  assert actual[0] <= low
  assert actual[-1] >= high
  assert np.all(np.diff(actual) > 0)


def test_a_large_range_has_a_logarithmic_axis_and_numbers() -> None:
  points = [(0.0, 40.0), (1.0, 4.0), (2.0, 0.4)]
  page = charts.line_chart('Loss', {'train': points}, 'epoch', lambda y: f'{y:g}')
  assert 'Loss, logarithmic' in page
  heights = [float(place.split(',')[1]) for place in page.partition('points="')[2].partition('"')[0].split()]
  assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)  # equal ratios
  assert '<tr><th scope="row">1</th><td>4</td></tr>' in page
  assert 'logarithmic' not in charts.line_chart('Loss', {'train': points[:2]}, 'epoch', str)
