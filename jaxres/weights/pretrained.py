"""The init transform: fresh variables to those that a training starts from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxres import models, weights
from jaxres.errors import InputError, printable
from jaxres.models import ResNet
from jaxres.runtime import distributed
from jaxres.weights import sources
from jaxres.weights.network import count_channels

Init = Callable[[Mapping[str, Any]], dict[str, Any]]


def make_init(
  model: ResNet,
  class_names: Sequence[str],
  /,
  *,
  source: str | None = None,
  step: str = 'best',
  skip: tuple[str, ...] = (),
  new_head: bool = False,
  prefix: str | None = None,
) -> Init | None:
  """Return the function of fresh variables to those that a training starts from; None where there is no source.

  It reads the source each time, and raises InputError where that cannot be read or does not fit.

  Args:
    model: the network to be trained.
    class_names: of the data.
    source: ``'torchvision:NAME'`` (published weights, downloaded once), the path of a file of any torch ResNet (timm's
      too), or ``'jaxres:DIR'``: the workdir of another run, or what `jaxres convert` wrote.
    step: of a run: ``'best'`` (by validation, or else the latest), ``'latest'`` or a number.
    skip: regular expressions of paths, such as ``'stem/.*'``, that keep their fresh values, or of names in a torch
      file that are left out.
    new_head: the classifier keeps its fresh values.
    prefix: of the network in a torch file with several, such as ``'ema_model'`` or ``'teacher.backbone'``.
  """
  if source is None:
    return None

  def init(variables: Mapping[str, Any]) -> dict[str, Any]:
    try:
      options: dict[str, Any] = {'step': step, 'new_head': new_head, 'class_names': class_names, 'prefix': prefix}
      return load(source, model, variables, skip, **options)
    except InputError as error:
      raise InputError('init.source', error) from None

  return init


def load(
  source: str,
  model: ResNet,
  variables: Mapping[str, Any],
  skip: Sequence[str] = (),
  *,
  step: str = sources.DEFAULT_STEP,
  new_head: bool = False,
  class_names: Sequence[str] = (),
  prefix: str | None = None,
) -> dict[str, Any]:
  """Return ``variables`` of ``model`` with the weights at ``source`` in place of all that ``skip`` does not match.

  Where the images of ``source`` have another number of channels, the kernel of the first convolution is adapted, see
  ``adapt_channels``.

  Args:
    source: as of ``read``; the network there may have another head, and whatever else ``skip`` matches.
    model: the network that is to have them.
    variables: of ``model``, or their shapes; the skipped leaves stay as they are.
    skip: regular expressions of paths, such as ``'head/.*'``, or of names in the file.
    step: as of ``make_init``.
    new_head: skip the head too.
    class_names: those of a head that is loaded must be the same, where the source knows them.
    prefix: as of ``make_init``.

  Raises:
    InputError: there is nothing that can be read, or it does not fit: nothing is loaded in part.
  """
  kind, place = sources.parse(source)
  if kind == 'torchvision':
    where, theirs = str(sources._file(place)), None
    file = weights.read_file(where, skip, prefix)
    state_dict: weights.StateDict = file.tensors
    skipped = file.skipped
    for note in file.notes if distributed.is_main_process() else ():
      print(printable(f'{where}: {note}'))
  elif prefix:
    raise InputError(place, 'prefix is for tensors of torch files', fix='leave it out')
  else:
    pretrained = sources.read(source, step)
    state_dict, where, theirs, skipped = pretrained.state_dict(), place, pretrained.class_names, frozenset()
  name, _, _ = weights.recognize(state_dict, where)
  if weights.name_of(models.create(name)) != weights.name_of(model):
    raise InputError(
      where, f'it holds a {name}, and the model is a {weights.name_of(model)}', fix=f'set model.name={name}'
    )
  skip = (*skip, 'head/.*') if new_head else skip
  state_dict = adapt_channels(state_dict, count_channels(variables))
  try:
    loaded = weights.to_variables(state_dict, model, variables, skip=skip, skipped=skipped, where=where)
  except InputError as error:
    fix = 'init.skip names what keeps its fresh values, init.new_head=True is for another head'
    raise InputError(error.field, error.problem, fix=f'{error.fix}; {fix}' if error.fix else fix) from None
  taken = loaded['params']['head']['fc']['kernel'] is not variables['params']['head']['fc']['kernel']
  if taken and theirs and class_names and tuple(theirs) != tuple(class_names):
    differ = f'its classes are {", ".join(theirs):.80}, and those of the data {", ".join(class_names):.80}'
    raise InputError(where, differ, fix='set init.new_head=True')
  return loaded


def adapt_channels(state_dict: weights.StateDict, channels: int) -> weights.StateDict:
  """Return ``state_dict`` for images with ``channels`` channels, as timm's ``adapt_input_conv`` does.

  For one channel the kernels of the first convolution are summed over the channels; for others they are repeated in
  turn, and scaled by how many fewer there were.
  """
  name = 'conv1.0.weight' if 'conv1.0.weight' in state_dict else 'conv1.weight'
  kernel = state_dict[name]
  have = kernel.shape[1]
  if have == channels:
    return state_dict
  repeated = lambda: kernel[:, np.arange(channels) % have] * np.float32(have / channels)
  return {**state_dict, name: kernel.sum(1, keepdims=True) if channels == 1 else repeated()}
