"""`jaxres report`: one page on what runs learned: scores, curves, mistakes, what they look at, how they were made."""

import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from markupsafe import Markup

from jaxres import config as config_lib
from jaxres import data, evaluate, trees, workdir
from jaxres.analysis import attribution, compare, runs, scores
from jaxres.analysis import images as images_lib
from jaxres.data.augment import normalize
from jaxres.files import DamagedError
from jaxres.log.console import format_value
from jaxres.models import ResNet
from jaxres.report import html
from jaxres.report.html import Bar, Cell, Section
from jaxres.runtime.compiler import jit

CURVES = {'lr': 'Learning rate', 'images_per_s': 'Images per second'}  # beside the loss and what is monitored
HEADLINE = ('top-1', 'top-5', 'loss', 'F1, macro', 'ROC-AUC, one vs rest', 'calibration error (ECE)')
PICTURES = 24  # of mistakes, and of hits
EXPLAINED = 12  # mistakes, and classes
WORST = 'The examples with the largest loss, with what the network says of them.'
WRONG = 'The wrong predictions that it is surest of, with their probability.'
RIGHT = 'The right predictions that it is least sure of.'
FILTERS = 'The kernels of the first convolution, each from its smallest weight to its largest.'
MAX_CLASSES = 100  # of a confusion matrix that is drawn
MAX_ROC = 6  # classes whose curve is drawn


def make_report(run_list: Sequence[runs.Run], batch_size: int | None = None) -> str:
  """Return the page on runs: HTML with everything in it.

  Args:
    run_list: of ``runs.read_runs``.
    batch_size: as of ``runs.predict_split``.

  Raises:
    InputError: as ``evaluate_runs.compare``.
  """
  start = time.monotonic()
  compared, tests = compare.compare([*run_list], 'test', batch_size)
  seconds = time.monotonic() - start
  examples = len(next(iter(tests.values())).labels) * len(run_list)
  timing = f'{examples:,} predictions and their scores: {seconds:.1f} s'
  sections = [_scores(compared), _curves(run_list)]
  for number, run in enumerate(run_list):
    run_scores, test = compared['runs'][run.name], tests[run.name]
    looks = (
      [*_quality(run_scores, run, test), *_examples(run, test)] if run.task.labels.are_classes else _worst(run, test)
    )
    parts = [*looks, *_weights(run), *_making(run, timing)]
    sections += _name_sections(parts, run.name, number, len(run_list))
  intro = Markup().join(
    html.paragraph(f'{run.config["model"]["name"]}, {_data_name(run)}: {run.origin}') for run in run_list
  )
  return html.document(_title(run_list), intro + _headline(compared), sections)


def _title(run_list: Sequence[runs.Run]) -> str:
  """Return what the page is called: the names of its runs, and where there is one, what it is."""
  if len(run_list) > 1:
    return ', '.join(run.name for run in run_list)
  return f'{run_list[0].name}: {run_list[0].config["model"]["name"]} on {run_list[0].config["data"]["name"]}'


def _data_name(run: runs.Run) -> str:
  """Return what data a run is on, for a person."""
  name, path = run.config['data']['name'], run.config['data']['path']
  return f'{name} {path}' if path else str(name)


def _headline(compared: Mapping[str, Any]) -> Markup:
  """Return the figures that matter most: several of one run, the first of them of each of several."""
  columns = compare.headers(compared)
  rows = {row[0]: row[1:] for row in compare.rows(compared)}
  cells = []
  labels = [*rows] if 'metrics' in compared else [label for label in HEADLINE if label in rows]
  for label in labels if len(columns) == 1 else labels[:1]:
    for name, text in zip(columns, rows[label], strict=True):
      value, _, interval = text.rstrip(')').partition(' (')
      cells.append((label if len(columns) == 1 else f'{label}, {name}', value, interval))
  return html.tiles(cells)


def _name_sections(parts: Sequence[Section], name: str, number: int, count: int) -> list[Section]:
  """Return the sections of one run, their ids and titles told apart where there are several runs."""
  if count == 1:
    return [*parts]
  return [Section(f'run{number}-{part.id}', f'{name}: {part.title}', part.html) for part in parts]


def _scores(compared: Mapping[str, Any]) -> Section:
  headers = ['', *compare.headers(compared)]
  remarks = [*compare.differences(compared), *compare.notes(compared)]
  text = f'On the {compared["split"]} split; in brackets 95 % bootstrap intervals.'
  rows = compare.rows(compared)
  tables = html.beside(*(html.table(headers, part) for part in (rows[:8], rows[8:])))
  return html.section('scores', 'Scores', html.paragraph(text), tables, html.note_list(remarks))


def _curves(run_list: Sequence[runs.Run]) -> Section:
  charts = []
  for quantity, title in curve_titles(run_list).items():
    series: dict[str, list[tuple[float, float]]] = {}
    for run in run_list:
      for row in workdir.read_metrics(run.path):
        for name in (name for name in row if name.endswith(f'/{quantity}')):
          label = name.removesuffix(f'/{quantity}')
          label = label if len(run_list) == 1 else f'{run.name} {label}'
          series.setdefault(label, []).append((row['epoch'], row[name]))
    known = {name: metric for run in run_list for name, metric in run.task.metrics.items()}
    show = functools.partial(format_value, quantity, known=known)
    charts.append(html.line_chart(title, series, 'epoch', show))
  shown = html.group('charts', charts) if any(charts) else html.paragraph('metrics.jsonl is empty.')
  return html.section('curves', 'Curves', shown)


def curve_titles(networks: Sequence[runs.Run]) -> dict[str, str]:
  """Return what is drawn over the epochs, with its title: the loss, what each task monitors, rate and speed."""
  pairs = [(name, run.task.metrics[name].title) for run in networks for name in ('loss', run.task.monitor)]
  return {name: title[:1].upper() + title[1:] for name, title in pairs} | CURVES


def _quality(run_scores: Mapping[str, Any], run: runs.Run, test: evaluate.Outputs) -> list[Section]:
  """Return what the scores of one run say, class by class."""
  names, matrix = run.class_names, run_scores['confusion']
  worst = [[names[a], names[b], f'{count:,}'] for a, b, count in scores.rank_confusions(matrix)[:10]]
  drawn = html.heatmap(matrix, names) if len(names) <= MAX_CLASSES else Markup()
  commonest = html.table(['class', 'taken for', 'examples'], worst) if worst else html.paragraph('None.')
  columns = ('precision', 'recall', 'f1', 'roc_auc', 'average_precision')
  bars = [
    [row['name'], f'{row["examples"]:,}', *(Bar(row[name], compare.show('', row[name])) for name in columns)]
    for row in run_scores['classes']
  ]
  charts = [html.reliability_chart('As it is', run_scores['calibration']['bins'])]
  if run_scores['calibrated']:
    bound = ', the bound of its search' if run_scores['temperature_at_bound'] else ''
    title = f'At temperature {run_scores["temperature"]:.3g}{bound}, fitted on the validation split'
    charts.append(html.reliability_chart(title, run_scores['calibrated']['bins']))
  error = (
    f'Expected calibration error {run_scores["calibration"]["ece"]:.2%}. A bar is the accuracy at that confidence, on '
    'the dashed line where the two agree; pale bars are of few examples.'
  )
  return [
    html.section('confusion', 'Confusion', html.beside(drawn, commonest)),
    html.section(
      'classes',
      'Classes',
      html.table(['class', 'examples', 'precision', 'recall', 'F1', 'ROC-AUC', 'average precision'], bars),
    ),
    html.section('calibration', 'Calibration', html.paragraph(error), html.group('charts', charts)),
    _roc(run_scores, test),
  ]


def _roc(run_scores: Mapping[str, Any], test: evaluate.Outputs) -> Section:
  """Return the ROC curves of the classes with the least area under them."""
  areas = [
    (row['roc_auc'], k, row['name']) for k, row in enumerate(run_scores['classes']) if row['roc_auc'] is not None
  ]
  drawn = sorted(areas)[:MAX_ROC]
  curves = {f'{name}, area {auc:.4f}': scores.roc_curve(test.logits, test.labels, k) for auc, k, name in drawn}
  chart = html.line_chart('One class against the rest', curves, 'false positive rate', lambda y: f'{y:.2f}')
  text = 'How many of a class are called so, over how many others are, at every threshold of its probability; '
  text += f'of {len(areas)} classes those with the least area.' if len(areas) > MAX_ROC else 'the more area the better.'
  return html.section('roc', 'ROC curves', html.paragraph(text), html.group('charts', [chart]) if drawn else Markup())


def _examples(run: runs.Run, test: evaluate.Outputs) -> list[Section]:
  """Return mistakes, hits and what decided them, as pictures."""
  predicted, confidence = test.logits.argmax(-1), scores.softmax(test.logits).max(-1)
  wrong = predicted != test.labels
  order = np.argsort(-confidence, kind='stable')
  mistakes, hits = order[wrong[order]][:PICTURES], order[~wrong[order]][::-1][:PICTURES]
  show = functools.partial(_gallery, run, test, confidence)
  typical = [int(members[0]) for k in range(len(run.class_names)) if len(members := order[(predicted == k)[order]])]
  explained = [*map(int, mistakes[:EXPLAINED]), *typical[:EXPLAINED]]
  text = (
    'Grad-CAM: bright is what spoke for the class. Mistakes have two maps, of the prediction and then of the label; '
    'after them the most confident example of each prediction. Each map has its own scale, from black over '
    'violet and orange to yellow; all black, nothing spoke for the class.'
  )
  return [
    html.section('mistakes', 'Confident mistakes', html.paragraph(WRONG), show(mistakes)),
    html.section('hits', 'Doubtful hits', html.paragraph(RIGHT), show(hits)),
    html.section('gradcam', 'What it looks at', html.paragraph(text), _overlays(run, test, np.array(explained, int))),
  ]


def _worst(run: runs.Run, test: evaluate.Outputs) -> list[Section]:
  """Return the examples with the largest loss, as pictures, whatever the task is."""
  loss = np.asarray(run.task.eval_loss(jnp.asarray(test.logits), {'label': jnp.asarray(test.labels)}))
  index = np.argsort(-loss, kind='stable')[:PICTURES]
  cells = []
  for image, i in zip(run.get_pipeline('test').get_images(index), index, strict=True):
    answer = run.task.describe(test.logits[i], run.class_names, 1)
    shown = '\n'.join([*answer.lines, f'loss {loss[i]:.4g}', run.describe_example('test', int(i))])
    cells.append(html.figure([images_lib.data_uri(image)], f'Test image {run.describe_example("test", int(i))}', shown))
  return [html.section('worst', 'Largest losses', html.paragraph(WORST), html.gallery(cells))]


def _gallery(run: runs.Run, test: evaluate.Outputs, confidence: np.ndarray, index: np.ndarray) -> Markup:
  images = run.get_pipeline('test').get_images(index)
  return html.gallery(
    [
      html.figure([images_lib.data_uri(image)], *_describe_image(run, test, int(i), f'{confidence[i]:.1%}'))
      for image, i in zip(images, index, strict=True)
    ]
  )


def _describe_image(run: runs.Run, test: evaluate.Outputs, i: int, confidence: str = '') -> tuple[str, str]:
  """Return the text in place of a test image, and its caption."""
  label, predicted = run.class_names[test.labels[i]], run.class_names[test.logits[i].argmax()]
  more = '' if label == predicted else f'\nlabeled {label}'
  file = run.file_of('test', i)
  named = f'\n{run.describe_example("test", i)}' if file else ''
  return f'Test image {file or i}, {label}', f'{predicted} {confidence}'.rstrip() + more + named


def _overlays(run: runs.Run, test: evaluate.Outputs, index: np.ndarray) -> Markup:
  images = run.get_pipeline('test').get_images(index)
  info, model = run.dataset.info, run.model.clone(dtype=jnp.float32)
  if not len(index):
    return html.gallery([])
  seen = normalize(jnp.asarray(images), info.mean, info.std)
  predicted, labels = test.logits[index].argmax(-1).astype(np.int32), test.labels[index]
  maps = [np.asarray(attribution.grad_cam(model, run.variables, seen, jnp.asarray(k))) for k in (predicted, labels)]
  cells = []
  for row, i in enumerate(index):
    shown = maps[:1] if predicted[row] == labels[row] else maps
    overlays = [images_lib.overlay(images[row], heat[row]) for heat in shown]
    alt, caption = _describe_image(run, test, int(i))
    uris = [images_lib.data_uri(image) for image in (images[row], *overlays)]
    cells.append(html.figure(uris, f'{alt}, and beside it its Grad-CAM', caption))
  return html.gallery(cells, 3)


def _weights(run: runs.Run) -> list[Section]:
  """Return the first layer's filters, and the norms of weights and gradients."""
  stem = run.variables['params']['stem']
  kernel = np.asarray((stem.get('conv') or stem['conv1'])['kernel'])
  shown = [
    html.picture(images_lib.data_uri(image), f'Filter {k}') for k, image in enumerate(images_lib.filters(kernel))
  ]
  batch = data.first_batch(run.dataset.train)
  images = normalize(batch['image'], run.dataset.info.mean, run.dataset.info.std)
  gradients = gradient_norms(run.model, run.task.eval_loss, run.variables, images, batch['label'])
  params = run.variables['params']
  norms = [
    (float(np.linalg.norm(np.ravel(leaf))), float(g))
    for leaf, g in zip(*map(jax.tree.leaves, (params, gradients)), strict=True)
  ]
  largest = [max(column) or 1.0 for column in zip(*norms, strict=True)]
  rows: list[list[Cell]] = [
    [name, ' x '.join(map(str, leaf.shape)), *(Bar(v / m, f'{v:.3g}') for v, m in zip(pair, largest, strict=True))]
    for name, leaf, pair in zip(trees.leaf_names(params), jax.tree.leaves(params), norms, strict=True)
  ]
  text = 'Gradients are those of the loss of the first training batch, not augmented, as evaluation sees it.'
  weight, gradient = (math.hypot(*column) for column in zip(*norms, strict=True))
  total = f'All weights together have norm {weight:.4g}, all gradients {gradient:.4g}.'
  table = html.table(['parameter', 'shape', 'norm', 'norm of the gradient'], rows)
  return [
    html.section('filters', 'Filters', html.paragraph(FILTERS), html.group('filters', shown)),
    html.section('norms', 'Norms', html.paragraph(f'{total} {text}'), html.details(f'{len(rows)} parameters', table)),
  ]


@functools.partial(jit, static_argnums=(0, 1))
def gradient_norms(
  model: ResNet, loss_of: Callable[[Any, data.Batch], jax.Array], variables: Any, images: jax.Array, labels: jax.Array
) -> Any:
  """Return the norm of the gradient of the mean of ``loss_of`` by each parameter, a tree of scalars."""

  def loss(params: Any) -> jax.Array:
    logits: Any = model.apply(variables | {'params': params}, images, train=False)
    return loss_of(logits, {'label': labels}).mean()

  return jax.tree.map(lambda g: jnp.sqrt((g.astype(jnp.float32) ** 2).sum()), jax.grad(loss)(variables['params']))


def _making(run: runs.Run, timing: str) -> list[Section]:
  """Return how the run was made: its config, its environment, its time; and what this page took."""
  default = config_lib.to_dict(config_lib.make())
  changed: list[list[str]] = []
  rest: list[list[str]] = []
  for section, fields in sorted(run.config.items()):
    for field, value in sorted(fields.items()):
      is_default = json.dumps(value) == json.dumps(default[section][field])
      (rest if is_default else changed).append([f'{section}.{field}', json.dumps(value)])
  config = html.table(['field', 'value'], changed) if changed else html.paragraph('All at their defaults.')
  return [
    html.section('config', 'Config', config, html.details('At their defaults', html.table(['field', 'value'], rest))),
    html.section('environment', 'Environment', _environment(run)),
    html.section('timing', 'Timing', html.table(['', 'value'], [*_timing(run), ['this page', timing]])),
  ]


def _environment(run: runs.Run) -> Markup:
  try:
    environment = workdir.read_environment(run.path)
  except DamagedError as error:  # the page has the rest
    return html.paragraph(f'{error}')
  rows = [[name, str(value)] for name, value in environment.items()]
  return html.table(['', 'value'], rows) if rows else html.paragraph('Not recorded by the jaxres of then.')


def _timing(run: runs.Run) -> list[list[str]]:
  metrics = workdir.read_metrics(run.path)
  speeds = [row['train/images_per_s'] for row in metrics if 'train/images_per_s' in row]
  rows = [['parameters', f'{trees.count(run.variables["params"]):,}']]
  if metrics:
    rows.append(['epochs', f'{metrics[-1]["epoch"]:.4g}'])
    rows.append(['steps', f'{metrics[-1]["step"]:,}'])
  if speeds:
    median = statistics.median(speeds)
    seen = metrics[-1]['step'] * run.config['data']['batch_size']
    rows.append(['training speed, median', f'{median:,.0f} images/s'])
    rows.append(['training time at that speed', f'{seen / median / 60:,.1f} min'])
  return rows
