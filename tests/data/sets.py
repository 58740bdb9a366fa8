"""Small TFDS sets, written with TFDS itself."""

import contextlib
import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def encode(image: Image.Image, form: str, **options: object) -> bytes:
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def png(image: np.ndarray) -> bytes:
  return encode(Image.fromarray(image.squeeze()), 'PNG')


def features(shape: tuple = (None, None, 3), *, ids: bool = False, classes: int = 2) -> dict:
  actual = {'image': tfds.features.Image(shape=shape), 'label': tfds.features.ClassLabel(num_classes=classes)}
  return ({'id': tfds.features.Text()} if ids else {}) | actual


def examples(count: int, *, side: int | None = None, label: int | None = None) -> list[dict]:
  """Return random images of ``side`` pixels, else each of another size, with labels 0 and 1 in turn; TFDS drops ids."""
  rng = np.random.default_rng(count)
  sizes = [(side, side) if side else (12 + i, 30 - i % 13) for i in range(count)]
  images = [png(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
  return [
    {'id': f'x_{i:05d}.png', 'image': image, 'label': i % 2 if label is None else label}
    for i, image in enumerate(images)
  ]


def write(
  data_dir: pathlib.Path,
  features: dict,
  splits: dict[str, list[dict]],
  *,
  config: str | None = None,
  shards: int | None = None,
) -> pathlib.Path:
  """Write a set called tiny; a split is the list of its examples, of which the features given are kept."""

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples):
      for key, example in enumerate(examples):
        yield key, {name: example[name] for name in features}

  tfds.disable_progress_bar()
  options = tfds.download.DownloadConfig(num_shards=shards) if shards else None
  with contextlib.redirect_stdout(io.StringIO()):
    Tiny(data_dir=data_dir).download_and_prepare(file_format='array_record', download_config=options)
  return pathlib.Path(data_dir) / 'tiny' / (config or '') / '1.0.0'
