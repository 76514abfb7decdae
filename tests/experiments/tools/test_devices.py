"""Tests of devices: rows are split over them, parameters are copied to all of them, and processes are started."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tools import devices


def test_rows_are_split_in_order_and_parameters_are_on_every_device():
    mesh = devices.mesh()
    assert mesh.axis_names == ("data",)
    rows = np.arange(32.0, dtype=np.float32).reshape(16, 2)
    images, labels = devices.share(mesh, (rows, np.arange(16, dtype=np.int32)))
    np.testing.assert_array_equal(images, rows)
    for device, part in zip(jax.devices(), images.addressable_shards, strict=True):
        assert part.device == device
        np.testing.assert_array_equal(part.data, rows[2 * device.id : 2 * device.id + 2])
    assert labels.sharding.spec == jax.sharding.PartitionSpec("data")
    everywhere = devices.replicate(mesh, {"w": jnp.arange(3.0)})["w"]
    assert len(everywhere.addressable_shards) == 8
    assert all(part.data.shape == (3,) for part in everywhere.addressable_shards)


def test_a_mesh_can_have_some_of_the_devices():
    mesh = devices.mesh(jax.devices()[2:4])
    assert [device.id for device in mesh.devices] == [2, 3]
    with pytest.raises(ValueError, match="3 rows do not divide evenly among 2 devices"):
        devices.share(mesh, np.zeros((3, 1)))


def test_with_one_process_gather_and_first_return_its_own_values():
    assert devices.gather("x") == ["x"]
    assert devices.first(lambda: [1]) == [1]
    with pytest.raises(KeyError):
        devices.first(lambda: {}["a"])


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, (None, 2, 0), "need a coordinator"),
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, (), "needs the number of processes"),
        ({}, ("host:1", 2, 2), "got 2 and 2"),
        ({"JAX_NUM_PROCESSES": "two"}, ("host:1",), "JAX_NUM_PROCESSES must be an integer, 0 or more, got 'two'"),
    ],
)
def test_wrong_numbers_of_processes_raise(monkeypatch, environment, arguments, message):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        devices.start(*arguments)


def test_start_reads_the_arguments_the_environment_or_the_cluster(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: asked.append(arguments))
    for name, value in (("JAX_COORDINATOR_ADDRESS", "host:1"), ("JAX_NUM_PROCESSES", "4"), ("JAX_PROCESS_ID", "3")):
        monkeypatch.setenv(name, value)
    devices.start()
    devices.start("auto")
    devices.start("other:2", 5, 0)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS")
    devices.start()
    assert asked == [("host:1", 4, 3), (), ("other:2", 5, 0)]
