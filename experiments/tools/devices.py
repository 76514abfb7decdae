"""Devices and processes: one mesh, with the batch split over it and the parameters replicated on it."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AUTO = "auto"


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of one run. Call it before any other use of JAX.

    An argument that is None is read from the environment: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`.
    Without a coordinator the run has one process, and nothing is done.

    Args:
      coordinator: `host:port` of process 0, or "auto" on a cluster that provides it (a TPU pod, SLURM, Open MPI, Kubernetes).
      processes: The number of processes.
      process: The number of this process, from 0.

    Raises:
      ValueError: If there is a coordinator's address but no number of processes or no number of this process.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        if processes is not None or process is not None:
            raise ValueError("processes and process need a coordinator. Use host:port of process 0, or 'auto'.")
        return
    if coordinator == AUTO:
        jax.distributed.initialize()
        return
    processes = _number("JAX_NUM_PROCESSES") if processes is None else processes
    process = _number("JAX_PROCESS_ID") if process is None else process
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f"the coordinator {coordinator} needs the number of processes and of this one, from 0: got {processes} and "
            f"{process}. Give them, or set JAX_NUM_PROCESSES and JAX_PROCESS_ID. With 'auto' the cluster provides them."
        )
    jax.distributed.initialize(coordinator, processes, process)


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, "data", over the given devices. None: all devices of all processes."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def sharded(mesh: Mesh) -> NamedSharding:
    """The sharding that splits rows over the mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts a whole array on each device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def share(mesh: Mesh, batch: Any) -> Any:
    """Global arrays with their rows split over the mesh, made of the rows that each process has.

    Args:
      mesh: As `mesh()` makes it.
      batch: Any pytree of `[b, ...]` arrays. The global rows are those of process 0, then those of process 1, ...

    Raises:
      ValueError: If the rows do not divide evenly among this process's devices.
    """
    here = len(mesh.local_devices)
    for rows in {len(leaf) for leaf in jax.tree.leaves(batch)}:
        if rows % here:
            raise ValueError(
                f"{rows} rows do not divide evenly among {here} devices. Use a batch that is a multiple of {here}."
            )
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharded(mesh), leaf), batch)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """A pytree on every device of the mesh. JAX checks that all processes have the same values."""
    return jax.device_put(tree, replicated(mesh))


def first(work: Callable[[], Any]) -> Any:
    """Runs `work()` in process 0, and returns its JSON-able result in every process.

    Raises:
      Exception: In process 0, what `work` raises.
      RuntimeError: In the other processes, with the same text. So no process waits for one that has stopped.
    """
    if jax.process_count() == 1:
        return work()
    said, error = {}, None
    if jax.process_index() == 0:
        try:
            said = {"value": work()}
        except Exception as caught:
            said, error = {"error": f"{type(caught).__name__}: {caught}"}, caught
    received = json.loads(gather(json.dumps(said))[0])
    if error is not None:
        raise error
    if "error" in received:
        raise RuntimeError(f"process 0 stopped with {received['error']}")
    return received["value"]


def gather(text: str) -> list[str]:
    """The texts of all processes, in the order of their numbers."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data))))
    rows = np.asarray(multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - len(data)))))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def broadcast(tree: Any) -> Any:
    """Process 0's NumPy arrays in every process, bit for bit. The other processes pass arrays of the same shapes and dtypes."""
    if jax.process_count() == 1:
        return tree
    # Sent as bytes: JAX broadcasts by a sum with zeros, which turns -0.0 into 0.0.
    flat = jax.tree.map(lambda leaf: np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), tree)
    sent = multihost_utils.broadcast_one_to_all(flat)
    return jax.tree.map(lambda data, leaf: np.array(data).view(leaf.dtype).reshape(leaf.shape), sent, tree)


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise ValueError(f"{name} must be an integer, 0 or more, got {text!r}.")
    return int(text)
