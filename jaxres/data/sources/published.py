"""What was published of the sets besides CIFAR that jaxres prepares: MNIST and its kin, EuroSAT."""

from typing import NamedTuple


class File(NamedTuple):
  """A file as it was published."""

  url: str
  size: int  # bytes
  sha256: str


class Published(NamedTuple):
  """A published set."""

  files: dict[str, File]  # by split and content, such as 'train-images'; of a zip 'train' alone
  class_names: tuple[str, ...]  # in the order of the labels
  shape: tuple[int, int, int]  # of an image
  version: str  # of the TFDS set
  homepage: str


def _idx(root: str, *parts: tuple[int, str]) -> dict[str, File]:
  """Return the four files of a set of MNIST's layout, given size and SHA-256 of each."""
  names = {'train-images': 'train-images-idx3', 'train-labels': 'train-labels-idx1'}
  names |= {'test-images': 't10k-images-idx3', 'test-labels': 't10k-labels-idx1'}
  return {key: File(f'{root}{name}-ubyte.gz', *part) for (key, name), part in zip(names.items(), parts, strict=True)}


# URL, size and SHA-256: tensorflow_datasets/url_checksums/{mnist,fashion_mnist,kmnist,eurosat}.txt. Names of the
# classes: the pages of the sets.
PUBLISHED = {
  'mnist': Published(
    files=_idx(
      'https://storage.googleapis.com/cvdf-datasets/mnist/',
      (9912422, '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609'),
      (28881, '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c'),
      (1648877, '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6'),
      (4542, 'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6'),
    ),
    class_names=tuple('0123456789'),
    shape=(28, 28, 1),
    version='3.0.1',
    homepage='http://yann.lecun.com/exdb/mnist/',
  ),
  'fashion_mnist': Published(
    files=_idx(
      'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
      (26421880, '3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84'),
      (29515, 'a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845'),
      (4422102, '346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073'),
      (5148, '67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5'),
    ),
    class_names=(
      *('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat'),
      *('Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'),
    ),
    shape=(28, 28, 1),
    version='3.0.1',
    homepage='https://github.com/zalandoresearch/fashion-mnist',
  ),
  'kmnist': Published(
    files=_idx(
      'http://codh.rois.ac.jp/kmnist/dataset/kmnist/',
      (18165135, '51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4'),
      (29497, 'e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17'),
      (3041136, 'edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5'),
      (5120, '20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c'),
    ),
    class_names=('o', 'ki', 'su', 'tsu', 'na', 'ha', 'ma', 'ya', 're', 'wo'),
    shape=(28, 28, 1),
    version='3.0.1',
    homepage='http://codh.rois.ac.jp/kmnist/',
  ),
  'eurosat': Published(
    files={
      'train': File(
        'http://madm.dfki.de/files/sentinel/EuroSAT.zip',
        94280567,
        '8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd',
      )
    },
    class_names=(
      *('AnnualCrop', 'Forest', 'HerbaceousVegetation', 'Highway', 'Industrial'),
      *('Pasture', 'PermanentCrop', 'Residential', 'River', 'SeaLake'),
    ),
    shape=(64, 64, 3),
    version='2.0.0',
    homepage='https://github.com/phelber/EuroSAT',
  ),
}
