"""Where arrays live: one mesh over all devices, batches split over it, everything else on every device."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxres.errors import InputError


def make_mesh() -> Mesh:
  """Return the mesh of all devices, with the one axis ``'data'``."""
  return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Return the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """Return the sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec('data'))


def over_steps(mesh: Mesh) -> NamedSharding:
  """Return the sharding of arrays whose first axis is that of some steps, and whose second is the batch."""
  return NamedSharding(mesh, PartitionSpec(None, 'data'))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raise InputError where the devices do not divide ``batch_size``."""
  devices = mesh.size
  if batch_size % devices:
    below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
    near = f'{below} or {above}' if below else f'{above}'
    raise InputError(f'data.batch_size: {batch_size} is not divided by {devices} devices; use {near}')


def round_up(batch_size: int, mesh: Mesh) -> int:
  """Return the least multiple of the number of devices that is at least ``batch_size``."""
  return -(-batch_size // mesh.size) * mesh.size
