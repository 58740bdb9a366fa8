"""Placement of arrays: one mesh over all devices, batches split over it, everything else on every device."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxres.errors import InputError

AXIS = 'data'


def make_mesh() -> Mesh:
  """Return the mesh of all devices of all processes, with the one axis ``'data'``.

  The devices of a process lie side by side, so that it has consecutive rows of a batch. ``jax.make_mesh`` knows
  better orders on TPUs, but refuses GPUs of several hosts.
  """
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """Return the sharding that puts a full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Return the sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def scan_sharding(mesh: Mesh) -> NamedSharding:
  """Return the sharding of arrays whose first axis counts steps and whose second is the batch."""
  return NamedSharding(mesh, PartitionSpec(None, AXIS))


def largest_axis_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
  """Return the sharding that splits the longest axis divisible by the number of devices.

  Where there is none, every device has a full copy.

  Args:
    shape: of the array.
    mesh: of ``make_mesh``.
  """
  lengths = [length if length % mesh.size == 0 else 0 for length in shape]
  if not any(lengths):
    return replicated_sharding(mesh)
  axis = lengths.index(max(lengths))
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def local_rows(batch_size: int, mesh: Mesh | None) -> slice:
  """Return the rows of a batch on the devices of this process; all rows where the mesh is None.

  Args:
    batch_size: of all processes together.
    mesh: of ``make_mesh``.
  """
  if mesh is None:
    return slice(0, batch_size)
  slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  spans = [rows[0].indices(batch_size)[:2] for rows in slices if rows]
  return slice(min(start for start, _ in spans), max(stop for _, stop in spans))


def make_global_arrays(local: Any, sharding: NamedSharding) -> Any:
  """Return global arrays from the rows that each process has. Nothing is sent between processes.

  Args:
    local: a tree of NumPy arrays; of a replicated array each process has all, with equal values.
    sharding: of the global arrays.
  """
  return jax.make_array_from_process_local_data(sharding, local)


def gather(tree: Any) -> Any:
  """Return ``tree`` with a full copy of each array on every device that has a part of it."""
  split = lambda x: isinstance(x, jax.Array) and not x.is_fully_replicated
  return jax.tree.map(lambda x: jax.device_put(x, replicated_sharding(x.sharding.mesh)) if split(x) else x, tree)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raise InputError where the devices do not divide ``batch_size``."""
  devices = mesh.size
  if batch_size % devices:
    below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
    near = f'{below} or {above}' if below else f'{above}'
    raise InputError('data.batch_size', f'{batch_size} is not divided by {devices} devices', fix=f'use {near}')


def round_up(batch_size: int, mesh: Mesh) -> int:
  """Return the smallest multiple of the number of devices that is at least ``batch_size``."""
  return -(-batch_size // mesh.size) * mesh.size
