import jax
import pytest

from jaxres.errors import InputError
from jaxres.runtime import sharding

pytestmark = pytest.mark.eight_devices


def test_the_mesh_has_all_devices_and_auto_axes() -> None:
  mesh = sharding.make_mesh()
  assert mesh.size == jax.device_count() == 8
  assert mesh.axis_names == ('data',)
  assert mesh.axis_types == (jax.sharding.AxisType.Auto,)


def test_batches_are_split_and_the_rest_is_complete() -> None:
  mesh = sharding.make_mesh()
  split = jax.device_put(jax.numpy.arange(16), sharding.batch_sharding(mesh))
  assert {shard.data.shape for shard in split.addressable_shards} == {(2,)}
  assert jax.device_put(jax.numpy.arange(16), sharding.replicated_sharding(mesh)).sharding.is_fully_replicated


def test_a_batch_that_the_devices_do_not_divide() -> None:
  mesh = sharding.make_mesh()
  sharding.check_batch_size(64, mesh)
  with pytest.raises(InputError, match='data.batch_size: 100 is not divided by 8 devices; use 96 or 104'):
    sharding.check_batch_size(100, mesh)
  with pytest.raises(InputError, match='data.batch_size: 3 is not divided by 8 devices; use 8'):
    sharding.check_batch_size(3, mesh)
  assert [sharding.round_up(n, mesh) for n in (1, 8, 9)] == [8, 8, 16]


def test_the_longest_axis_that_the_devices_divide_is_split() -> None:
  mesh = sharding.make_mesh()
  spec = lambda *shape: tuple(sharding.largest_axis_sharding(shape, mesh).spec)
  assert spec(3, 3, 64, 128) == (None, None, None, 'data')
  assert spec(3, 3, 64, 10) == (None, None, 'data')
  assert spec(16, 16) == ('data',)
  assert spec(3, 10) == spec() == spec(0) == ()
  split = jax.device_put(jax.numpy.arange(24.0).reshape(3, 8), sharding.largest_axis_sharding((3, 8), mesh))
  assert split.addressable_shards[0].data.shape == (3, 1)
  (back,) = sharding.gather([split])
  assert back.sharding.is_fully_replicated
  assert (back == split).all()
