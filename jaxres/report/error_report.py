"""The page on wrong labels and near-duplicates."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from jaxres.analysis import images as images_lib
from jaxres.analysis import label_errors, runs
from jaxres.report import html


def make_page(run: runs.Run, findings: Mapping[str, Any]) -> str:
  """Return the page: one HTML file with everything in it.

  Args:
    run: of ``runs.read_runs``.
    findings: of ``label_errors.find_label_errors`` for that run.
  """
  sections = [_label_section(run, split, labels) for split, labels in findings['labels'].items()]
  equal = sum(row['difference'] == 0 for row in findings['duplicates'])
  text = (
    'Examples of one split beside the likest of another, by the cosine of their features; how far they are '
    f'apart is the mean over the pixels, of 255 levels. {equal} of these {len(findings["duplicates"])} pairs are equal.'
  )
  pairs = html.gallery([_pair_figure(run, row) for row in findings['duplicates']], 2)
  classes = [(row['class'], html.Bar(row['recall'], f'{row["recall"]:.2%}')) for row in findings['classes']]
  confused = [(row['class'], row['predicted'], f'{row["examples"]:,}') for row in findings['pairs']]
  sections += [
    html.section('duplicates', 'Near-duplicates', html.paragraph(text), pairs),
    html.section('classes', 'Hardest classes', html.table(['class', 'recall on the test split'], classes)),
    html.section('pairs', 'Commonest confusions', html.table(['class', 'taken for', 'examples'], confused)),
  ]
  return html.document(f'Errors of {run.name}', html.paragraph(findings['origin']), sections)


def _label_section(run: runs.Run, split: str, labels: Mapping[str, Any]) -> html.Section:
  images = run.get_pipeline(split).get_images(np.array([row['index'] for row in labels['worst']], int))
  cells = []
  for image, row in zip(images, labels['worst'], strict=True):
    label, index = row['label'], row['index']
    shown = run.describe_example(split, index)
    marked = ['candidate'] if row['candidate'] else []
    more = ', '.join([f'labeled {label} ({row["probability_of_label"]:.1%})', shown, *marked])
    caption = f'{row["predicted"]}?\n{more}'
    cells.append(
      html.figure([images_lib.data_uri(image)], f'{split} example {row["file"] or index}, labeled {label}', caption)
    )
  text = (
    f'{labels["candidates"]:,} of {labels["examples"]:,} labels are candidates for wrong ones, by confident learning; '
    'those shown are marked. Shown are the examples whose label is furthest behind another class, the worst first.'
  )
  return html.section(f'labels-{split}', f'Labels: {split}', html.paragraph(text), html.gallery(cells))


def _pair_figure(run: runs.Run, row: Mapping[str, Any]) -> Markup:
  pair = label_errors.Pair(*(row[name] for name in label_errors.Pair._fields))
  difference = 'other sizes' if row['difference'] is None else f'{row["difference"]:.1f} levels apart'
  shown = run.describe_example(pair.split, pair.example), run.describe_example(pair.other_split, pair.other_example)
  where = f'{pair.split} {shown[0]}, {pair.other_split} {shown[1]}'
  names = row['file'] or pair.example, row['other_file'] or pair.other_example
  alt = f'{pair.split} example {names[0]} beside {pair.other_split} example {names[1]}'
  uris = [images_lib.data_uri(image) for image in label_errors._images(run, pair)]
  return html.figure(uris, alt, f'{" and ".join(row["labels"])}\n{where}; {difference}')
