import pathlib

from jaxres.data.sources import published
from jaxres.data.sources.published import File


def test_the_published_files_are_those_of_tfds() -> None:
  import tensorflow_datasets

  folder = pathlib.Path(tensorflow_datasets.__file__).parent / 'url_checksums'
  for name in published.PUBLISHED:
    lines = [line.split('\t') for line in (folder / f'{name}.txt').read_text().splitlines()]
    known = {File(url, int(size), sha256) for url, size, sha256, *_ in lines}
    assert set(published.PUBLISHED[name].files.values()) <= known
