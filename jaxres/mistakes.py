"""`jaxres errors`: what in the data deserves a look: labels, near-duplicates across splits, the hardest classes."""

import argparse
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxres import evaluate, files, page, pictures, runs, scores
from jaxres.errors import InputError, printable
from jaxres.files import file_errors
from jaxres.paths import output_path

BLOCK = 1024  # examples whose neighbours are looked for at a time


class Pair(NamedTuple):
  """An example and its nearest neighbour in another split."""

  split: str
  example: int
  other_split: str
  other_example: int
  similarity: float  # cosine, of centred features


def suspicion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Return how far the likeliest other class is ahead of the label, in nats: float64 ``[N]``, wrong labels highest.

  The normalised margin of Northcutt et al. 2021 (https://arxiv.org/abs/1911.00068, section 3.2), of log-probabilities.
  """
  others = logits.astype(np.float64)
  own = others[np.arange(len(labels)), labels]
  others[np.arange(len(labels)), labels] = -np.inf
  return others.max(-1) - own


def candidates(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Return which labels confident learning takes for wrong, bool ``[N]`` (Northcutt et al. 2021, section 3.1).

  Those with another class whose probability is no less than the mean it has over the examples labelled so; of several
  such classes, and the label where it is one, the likeliest counts.
  """
  probabilities = scores.softmax(logits)
  count = probabilities.shape[-1]
  own = probabilities[np.arange(len(labels)), labels]
  size = np.bincount(labels, minlength=count)
  usual = np.where(size > 0, np.bincount(labels, own, minlength=count) / np.maximum(size, 1), np.inf)
  confident = np.where(probabilities >= usual, probabilities, -1.0)
  return (confident.max(-1) >= 0) & (confident.argmax(-1) != labels)


def nearest(features: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return each row's nearest row of ``others``: its index and their cosine similarity.

  Args:
    features: float32 ``[N, C]``.
    others: float32 ``[M, C]``; both are centred by its mean and scaled by its deviation first.
  """
  mean, deviation = others.mean(0), others.std(0) + 1e-6

  def unit(rows: np.ndarray) -> np.ndarray:
    rows = (rows - mean) / deviation
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)

  others, index, similarity = unit(others), [], []
  for begin in range(0, len(features), BLOCK):
    products = unit(features[begin : begin + BLOCK]) @ others.T
    index.append(products.argmax(-1))
    similarity.append(products.max(-1))
  return np.concatenate(index), np.concatenate(similarity)


def near_duplicates(outputs: Mapping[str, evaluate.Outputs], top: int) -> list[Pair]:
  """Return the examples of a split that most resemble one of an earlier split, at most ``top``, the likest first."""
  names, found = [*outputs], []
  for at, split in enumerate(names):
    for other in names[:at]:
      index, similarity = nearest(outputs[split].features, outputs[other].features)
      for i in np.argsort(-similarity, kind='stable')[:top]:
        found.append(Pair(split, int(i), other, int(index[i]), float(similarity[i])))
  return sorted(found, key=lambda pair: -pair.similarity)[:top]


def find(run: runs.Run, top: int, batch_size: int | None = None) -> dict[str, Any]:
  """Return what deserves a look, ready to be written as JSON.

  Args:
    run: of ``runs.read``.
    top: how many examples and pairs at most.
    batch_size: as of ``runs.outputs``.

  Returns:
    ``labels``: by split its examples, the number of ``candidates``, and the most suspicious ones, the worst first, each
    with its ``index`` in the split and its ``file`` (None where it is none); ``duplicates``: ``Pair``, the files and
    labels of the two, and the mean ``difference`` of their pixels in levels; ``classes``: recall on the test split, the
    hardest first; ``pairs``: the commonest confusions there.
  """
  splits = [split for split in runs.SPLITS if split != 'val' or run.dataset.val is not None]
  outputs = {split: runs.outputs(run, split, batch_size) for split in splits}
  test, names = outputs['test'], run.class_names
  own = scores.by_class(test.logits, test.labels, names, [])
  classes = [{'class': row['name'], 'recall': row['recall']} for row in own['classes'] if row['examples']]
  return {
    'origin': run.origin,
    'labels': {split: _labels(run, split, found, top) for split, found in outputs.items()},
    'duplicates': [_described(run, outputs, pair) for pair in near_duplicates(outputs, top)],
    'classes': sorted(classes, key=lambda row: row['recall']),
    'pairs': [
      {'class': names[a], 'predicted': names[b], 'examples': count}
      for a, b, count in scores.confused(own['confusion'])[:top]
    ],
  }


def _labels(run: runs.Run, split: str, found: evaluate.Outputs, top: int) -> dict[str, Any]:
  names = run.class_names
  worst = suspicion(found.logits, found.labels)
  likely = candidates(found.logits, found.labels)
  probabilities = scores.softmax(found.logits)
  rows = [
    {
      'index': int(i),
      'file': run.file_of(split, i),
      'label': names[found.labels[i]],
      'predicted': names[found.logits[i].argmax()],
      'probability_of_label': float(probabilities[i, found.labels[i]]),
      'margin': float(worst[i]),
      'candidate': bool(likely[i]),
    }
    for i in np.argsort(-worst, kind='stable')[:top]
    if worst[i] > 0
  ]
  return {'examples': len(found.labels), 'candidates': int(likely.sum()), 'worst': rows}


def _described(run: runs.Run, outputs: Mapping[str, evaluate.Outputs], pair: Pair) -> dict[str, Any]:
  first, second = _images(run, pair)
  same = first.shape == second.shape
  labels = [
    run.class_names[outputs[s].labels[i]]
    for s, i in ((pair.split, pair.example), (pair.other_split, pair.other_example))
  ]
  difference = float(np.abs(first.astype(int) - second).mean()) if same else None
  files = {
    'file': run.file_of(pair.split, pair.example),
    'other_file': run.file_of(pair.other_split, pair.other_example),
  }
  return pair._asdict() | files | {'labels': labels, 'difference': difference}


def _images(run: runs.Run, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
  places = ((pair.split, pair.example), (pair.other_split, pair.other_example))
  first, second = (run.pipeline(split).images(np.array([index]))[0] for split, index in places)
  return first, second


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments of `jaxres errors`."""
  runs.add_arguments(parser, several=False)
  parser.add_argument('--top', type=int, default=48, metavar='N', help='examples and pairs of each kind (48)')
  parser.add_argument('--out', metavar='FILE', help='the page to write; errors.html in the run')
  parser.add_argument('--json', metavar='FILE', help='write what was found as JSON too')


def run(args: argparse.Namespace) -> None:
  """Write the page and the JSON, and print what was found."""
  if args.top < 1:
    raise InputError(f'--top: expected 1 or more, found {args.top}')
  out, as_json = (
    output_path(given, flag) if given else None for given, flag in ((args.out, '--out'), (args.json, '--json'))
  )
  (trained,) = runs.of_arguments(args, several=False)
  found = find(trained, args.top, args.batch_size)
  if as_json:
    with file_errors(as_json):
      files.write_whole(as_json, json.dumps(found, indent=2, allow_nan=False) + '\n')
  out = out or trained.path / 'errors.html'
  with file_errors(out):
    files.write_whole(out, make_page(trained, found))
  print(printable(trained.origin))
  for split, own in found['labels'].items():
    print(f'{split}: {own["candidates"]:,} of {own["examples"]:,} labels are candidates for wrong ones')
  hardest = ', '.join(f'{row["class"]} {row["recall"]:.2%}' for row in found['classes'][:3])
  print(printable(f'hardest classes, by recall on the test split: {hardest}'))
  for row in found['pairs'][:3]:
    print(printable(f'{row["class"]} taken for {row["predicted"]}: {row["examples"]:,}'))
  print(f'{len(found["duplicates"])} pairs across splits that look most alike, and all thumbnails: {printable(out)}')


def make_page(trained: runs.Run, found: Mapping[str, Any]) -> str:
  """Return the page: one HTML file with everything in it."""
  sections = [_label_section(trained, split, own) for split, own in found['labels'].items()]
  equal = sum(row['difference'] == 0 for row in found['duplicates'])
  text = (
    'Examples of one split beside the likest of another, by the cosine of their features; how far they are '
    f'apart is the mean over the pixels, of 255 levels. {equal} of these {len(found["duplicates"])} pairs are equal.'
  )
  pairs = page.gallery([_pair_figure(trained, row) for row in found['duplicates']], 2)
  classes = [(row['class'], page.Bar(row['recall'], f'{row["recall"]:.2%}')) for row in found['classes']]
  confused = [(row['class'], row['predicted'], f'{row["examples"]:,}') for row in found['pairs']]
  sections += [
    page.section('duplicates', 'Near-duplicates', page.paragraph(text), pairs),
    page.section('classes', 'Hardest classes', page.table(['class', 'recall on the test split'], classes)),
    page.section('pairs', 'Commonest confusions', page.table(['class', 'taken for', 'examples'], confused)),
  ]
  return page.document(f'Errors of {trained.name}', page.paragraph(found['origin']), sections)


def _label_section(trained: runs.Run, split: str, own: Mapping[str, Any]) -> page.Section:
  images = trained.pipeline(split).images(np.array([row['index'] for row in own['worst']], int))
  cells = []
  for image, row in zip(images, own['worst'], strict=True):
    label, index = row['label'], row['index']
    shown = trained.shown(split, index)
    marked = ['candidate'] if row['candidate'] else []
    more = ', '.join([f'labelled {label} ({row["probability_of_label"]:.1%})', shown, *marked])
    caption = f'{row["predicted"]}?\n{more}'
    cells.append(
      page.figure([pictures.data_uri(image)], f'{split} example {row["file"] or index}, labelled {label}', caption)
    )
  text = (
    f'{own["candidates"]:,} of {own["examples"]:,} labels are candidates for wrong ones, by confident learning; those '
    'shown are marked. Shown are the examples whose label is furthest behind another class, the worst first.'
  )
  return page.section(f'labels-{split}', f'Labels: {split}', page.paragraph(text), page.gallery(cells))


def _pair_figure(trained: runs.Run, row: Mapping[str, Any]) -> str:
  pair = Pair(*(row[name] for name in Pair._fields))
  difference = 'other sizes' if row['difference'] is None else f'{row["difference"]:.1f} levels apart'
  shown = trained.shown(pair.split, pair.example), trained.shown(pair.other_split, pair.other_example)
  where = f'{pair.split} {shown[0]}, {pair.other_split} {shown[1]}'
  names = row['file'] or pair.example, row['other_file'] or pair.other_example
  alt = f'{pair.split} example {names[0]} beside {pair.other_split} example {names[1]}'
  uris = [pictures.data_uri(image) for image in _images(trained, pair)]
  return page.figure(uris, alt, f'{" and ".join(row["labels"])}\n{where}; {difference}')
