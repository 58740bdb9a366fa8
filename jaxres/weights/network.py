"""A network with its weights, and whether the two belong together."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxres import models, weights
from jaxres.checkpoint import digests
from jaxres.errors import InputError
from jaxres.files import PUT_BACK, DamagedError
from jaxres.models import ResNet
from jaxres.weights.names import Dialect
from jaxres.weights.preprocessing import Preprocessing


class Pretrained(NamedTuple):
  """A network and its weights.

  Attributes:
    variables: ``{'params': ..., 'batch_stats': ...}`` of float32 NumPy arrays.
    options: the arguments of ``models.create``, but for ``dtype``.
    channels: of the images.
    dialect: how torch names them.
    batches: ``num_batches_tracked`` by torch's name, or of every BatchNorm.
    class_names: in the order of the logits; None where the source does not say.
    origin: what was read, for a person.
    preprocessing: of the images; None where the source does not say.
    notes: what else a person should know of the source.
  """

  variables: dict[str, Any]
  options: dict[str, Any]
  channels: int
  dialect: Dialect
  batches: dict[str, int] | int
  class_names: tuple[str, ...] | None
  origin: str
  preprocessing: Preprocessing | None = None
  notes: tuple[str, ...] = ()

  def model(self) -> ResNet:
    """Return the network, computing in float32."""
    return models.create(**self.options, dtype='float32')

  def state_dict(self) -> dict[str, np.ndarray]:
    """Return the weights by torch's names and in torch's layout."""
    return weights.from_variables(self.variables, self.model(), self.dialect, batches=self.batches)


def find_head(variables: Mapping[str, Any], where: object) -> np.ndarray:
  """Return the kernel of the classifier."""
  try:
    kernel: np.ndarray = variables['params']['head']['fc']['kernel']
  except (LookupError, TypeError):
    raise DamagedError(where, 'it has no params/head/fc/kernel: no network of jaxres') from None
  if getattr(kernel, 'ndim', 0) != 2:
    raise DamagedError(where, 'params/head/fc/kernel is no matrix: no network of jaxres')
  return kernel


def check_network(variables: Mapping[str, Any], options: Mapping[str, Any], where: object) -> None:
  """Raise InputError where ``variables`` are not those of the network of ``options``, by name, dtype and shape."""
  classes = find_head(variables, where).shape[1]
  if options['num_classes'] != classes:
    expected, there = f'{classes:,} as the weights have', f'{options["num_classes"]:,}'
    raise InputError(f'{where}: model.num_classes', expected=expected, found=there, fix=PUT_BACK)
  model = models.create(**options, dtype='float32')
  try:
    wanted = weights.abstract(model, count_channels(variables))
  except (LookupError, TypeError, AttributeError):
    raise DamagedError(where, 'its stem is that of no network of jaxres') from None
  digests.check_like(digests.kinds(variables), digests.kinds(wanted), f'{where}: no {options["name"]}')


def count_channels(variables: Mapping[str, Any]) -> int:
  """Return the channels of the images that a network takes, by the kernel of its stem."""
  stem = variables['params']['stem']
  channels: int = (stem.get('conv') or stem['conv1'])['kernel'].shape[2]
  return channels
