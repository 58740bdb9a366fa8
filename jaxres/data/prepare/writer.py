"""TFDS sets in array_record format, written through TFDS with no TensorFlow."""

import contextlib
import io
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Examples = Callable[[], Iterable[tuple[Any, dict[str, Any]]]]  # unique keys, which TFDS shuffles by, and examples


def write(
  root: pathlib.Path,
  name: str,
  version: str,
  features: Callable[[Any], dict[str, Any]],
  splits: Mapping[str, Examples],
  **info: str,
) -> None:
  """Write ``root/name/version``: to a folder of another name, which is renamed when it is complete.

  Args:
    root: where data sets are kept.
    name: of the set.
    version: such as '1.0.0'.
    features: the set's features, given ``tfds.features``; images are handed to it encoded.
    splits: what makes the examples of each.
    **info: of ``tfds.core.DatasetInfo``, such as ``description`` and ``homepage``.

  Raises:
    OSError, RuntimeError: the place cannot be written.
  """
  import tensorflow_datasets as tfds  # slow; never imports TensorFlow here

  root.mkdir(parents=True, exist_ok=True)
  builder = _builder_class(tfds, name, version, features, splits, info)(data_dir=root)
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself in several lines
    builder.download_and_prepare(file_format='array_record')


def _builder_class(
  tfds: Any,
  name: str,
  version: str,
  features: Callable[[Any], dict[str, Any]],
  splits: Mapping[str, Examples],
  info: Mapping[str, str],
) -> Any:
  """Return a builder kept out of TFDS's register, which may have one of its name."""
  members = {
    'name': name,
    'VERSION': tfds.core.Version(version),
    '_info': lambda self: tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features(tfds.features)),
      supervised_keys=('image', 'label'),
      **info,
    ),
    '_split_generators': lambda self, dl_manager: {split: make() for split, make in splits.items()},
    '_generate_examples': lambda self: None,  # abstract in TFDS; the splits bring their own
    '__module__': __name__,
  }
  with tfds.core.registered.skip_registration():
    return type(name.capitalize(), (tfds.core.GeneratorBasedBuilder,), members)
