"""Where arrays live: one mesh over all devices, batches split over it, everything else on every device."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxres.errors import InputError

AXIS = 'data'


def make_mesh() -> Mesh:
  """Return the mesh of all devices of all processes, with the one axis ``'data'``.

  The devices of a process lie side by side, so that it has one run of a batch's rows. ``jax.make_mesh`` knows better
  orders on TPUs, but refuses GPUs of several hosts.
  """
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Return the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """Return the sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def over_steps(mesh: Mesh) -> NamedSharding:
  """Return the sharding of arrays whose first axis is that of some steps, and whose second is the batch."""
  return NamedSharding(mesh, PartitionSpec(None, AXIS))


def over_largest(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
  """Return the sharding of an array of which each device holds a part: of the longest axis that they divide.

  Where they divide none, every device holds it whole.
  """
  lengths = [length if length % mesh.size == 0 else 0 for length in shape]
  if not any(lengths):
    return replicated(mesh)
  axis = lengths.index(max(lengths))
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def own_rows(batch_size: int, mesh: Mesh | None) -> slice:
  """Return the rows of a batch that the devices of this process hold; all of them where the mesh is None."""
  if mesh is None:
    return slice(0, batch_size)
  found = over_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
  spans = [rows[0].indices(batch_size)[:2] for rows in found if rows]
  return slice(min(start for start, _ in spans), max(stop for _, stop in spans))


def assembled(own: Any, sharding: NamedSharding) -> Any:
  """Return the global arrays of which each process has its ``own`` rows, a tree of NumPy arrays.

  Of what is not split every process has all, and the same. Nothing goes from one process to another.
  """
  return jax.make_array_from_process_local_data(sharding, own)


def gathered(tree: Any) -> Any:
  """Return ``tree`` with each array whole on every device that has a part of it."""
  split = lambda x: isinstance(x, jax.Array) and not x.is_fully_replicated
  return jax.tree.map(lambda x: jax.device_put(x, replicated(x.sharding.mesh)) if split(x) else x, tree)


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
