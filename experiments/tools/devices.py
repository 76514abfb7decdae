"""Devices and processes: the one mesh, the batch split over it, the parameters on all of it."""

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
    """Joins the processes of one run, where there are several; must come before any other use of JAX.

    Each argument that is None comes from the environment: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`.
    Without a coordinator the run is of one process, and nothing is done.

    Args:
      coordinator: `host:port` of process 0, or "auto" where the cluster tells it (a TPU pod, SLURM, Open MPI, Kubernetes).
      processes: how many processes the run has.
      process: which one this is, from 0.

    Raises:
      ValueError: if there is a coordinator's address but no number of processes or no number of this process.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None:
        if processes is not None or process is not None:
            raise ValueError("processes and process need a coordinator: give host:port of process 0, or 'auto'.")
        return
    if coordinator == AUTO:
        jax.distributed.initialize()
        return
    processes = _number("JAX_NUM_PROCESSES") if processes is None else processes
    process = _number("JAX_PROCESS_ID") if process is None else process
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError(
            f"the coordinator {coordinator} needs the number of processes and of this one, from 0: got {processes} and "
            f"{process}. Give them, or set JAX_NUM_PROCESSES and JAX_PROCESS_ID; 'auto' as the coordinator asks the cluster."
        )
    jax.distributed.initialize(coordinator, processes, process)


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of one axis, "data", over all devices of all processes, or over the given ones (`jax.local_devices()`)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def sharded(mesh: Mesh) -> NamedSharding:
    """The rows split over the mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Everything on each device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def share(mesh: Mesh, batch: Any) -> Any:
    """This process's rows of a batch as a part of the global arrays, their rows split over the mesh.

    Args:
      mesh: of `mesh()`.
      batch: any pytree of `[b, ...]` arrays; the global rows are those of process 0, then those of process 1, ...

    Raises:
      ValueError: if the rows do not go evenly onto this process's devices of the mesh.
    """
    here = len(mesh.local_devices)
    for rows in {len(leaf) for leaf in jax.tree.leaves(batch)}:
        if rows % here:
            raise ValueError(f"{rows} rows do not go evenly onto {here} devices; choose a batch that is a multiple of them.")
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharded(mesh), leaf), batch)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """A pytree on every device of the mesh; JAX checks that the processes hold the same values."""
    return jax.device_put(tree, replicated(mesh))


def first(work: Callable[[], Any]) -> Any:
    """What `work()` returns in process 0, a JSON-able value, in every process; the others do nothing but hear of it.

    Raises:
      Exception: what `work` raises, in process 0.
      RuntimeError: with the same text, in the others: no process waits for one that has stopped.
    """
    if jax.process_count() == 1:
        return work()
    said, error = {}, None
    if jax.process_index() == 0:
        try:
            said = {"value": work()}
        except Exception as caught:
            said, error = {"error": f"{type(caught).__name__}: {caught}"}, caught
    told = json.loads(gather(json.dumps(said))[0])
    if error is not None:
        raise error
    if "error" in told:
        raise RuntimeError(f"process 0 stopped with {told['error']}")
    return told["value"]


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data))))
    rows = np.asarray(multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - len(data)))))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def broadcast(tree: Any) -> Any:
    """Process 0's NumPy arrays in every process, to the bit; the others give arrays of the same shapes and types."""
    if jax.process_count() == 1:
        return tree
    # As bytes: a sum with zeros, which is how JAX broadcasts, turns -0.0 into 0.0.
    flat = jax.tree.map(lambda leaf: np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), tree)
    sent = multihost_utils.broadcast_one_to_all(flat)
    return jax.tree.map(lambda data, leaf: np.array(data).view(leaf.dtype).reshape(leaf.shape), sent, tree)


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise ValueError(f"{name} must be a number from 0, got {text!r}.")
    return int(text)
