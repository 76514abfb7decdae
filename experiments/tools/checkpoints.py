"""Checkpoints of a training run. Each is written completely or not at all, and every value is verified when it is read."""

import hashlib
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from experiments.tools import disk

Leaves = dict[str, np.ndarray]
PARTS = ("params", "average", "optimiser")


class DamagedError(Exception):
    """A checkpoint that cannot be read, or has changed since it was written."""


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by name: `{"blocks.0.kernel": leaf}`.

    Raises:
      ValueError: If two leaves have the same name.
    """
    found = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}
    if len(named) < len(found):
        raise ValueError("two leaves of the parameters have the same name. Use names without dots.")
    return named


def host(tree: Any) -> Any:
    """A copy of a pytree in NumPy arrays. It shares no memory with the device's arrays."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


class Checkpoints:
    """The checkpoints of one run, in `run / <steps done>`. In a run of several processes, process 0 writes them.

    A checkpoint has three parts (params, average, optimiser) and a description: its step, the states of the data iterators and
    a digest of every array. Orbax writes in the background, and renames the complete checkpoint into place at the end.

    Args:
      run: The run's directory.
      keep: How many of the newest checkpoints to keep.
      snapshots: Steps whose checkpoints are never deleted.

    Raises:
      RuntimeError: If another process trains this run now.
    """

    def __init__(self, run: Path, keep: int, snapshots: tuple[int, ...]):
        self.run, self.snapshots = run, snapshots
        self.good: int | None = None
        self._writing: int | None = None
        self._size = 0
        if (lock := disk.locked(run / "lock")) is None:
            raise RuntimeError(f"another process trains in {run} now. Wait for it, or stop it.")
        self._lock = lock
        half = sorted(path.name.split(".")[0] for path in run.glob("*.orbax-checkpoint-tmp*"))
        if half:
            warnings.warn(f"the checkpoint of step {', '.join(half)} in {run} was half-written and is dropped.", stacklevel=3)
        kept = [preservation_policy.LatestN(keep), preservation_policy.CustomSteps(snapshots)]
        self._manager = ocp.CheckpointManager(
            run,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
                create=False,
                cleanup_tmp_directories=True,
                multiprocessing_options=_alone(),
            ),
        )

    def newest(self, like: Mapping[str, Any]) -> tuple[int, dict[str, Leaves], list[Any]] | None:
        """The newest good checkpoint: its step, the leaves of its parts and the data iterators' states. None if there is none.

        A warning names newer checkpoints that are damaged. They are moved to `run / damaged`. A warning also names missing
        snapshots. Later checkpoints do not depend on them.

        Args:
          like: `{part: pytree}` with the shapes and dtypes of the network and its optimiser.

        Raises:
          OSError: If there are checkpoints and all are damaged.
          ValueError: If a leaf of a checkpoint does not match `like`.
        """
        found = steps(self.run)
        damaged: dict[int, DamagedError] = {}
        for step in reversed(found):
            try:
                about, parts = read(self.run / str(step), like)
                if (own := about.get("run", self.run.name)) != self.run.name:
                    raise DamagedError(f"the checkpoint {self.run / str(step)} is one of another run, {own}")
            except DamagedError as error:
                damaged[step] = error
                continue
            self.good = step
            self._set_aside(damaged)
            if lost := sorted({snapshot for snapshot in self.snapshots if snapshot <= step} - set(found)):
                text = f"the snapshots {lost} are missing in {self.run}. The run continues from step {step} without them."
                warnings.warn(f"{text} To restore them, {_again(self.run)}", stacklevel=3)
            return step, parts, about["iterators"]
        if found:
            text = "; ".join(str(error) for error in damaged.values())
            raise OSError(f"no checkpoint in {self.run} is good: {text}. To go on, {_again(self.run)}")
        return None

    def save(self, step: int, state: Mapping[str, Any], iterators: list[Any]) -> None:
        """Starts to write a checkpoint, and returns before it is finished.

        Args:
          step: The number of steps done.
          state: `{part: pytree}`, on the device.
          iterators: The state of each process's data iterator.

        Raises:
          OSError: If this checkpoint or the one before cannot be written. The message names the last good one.
        """
        self.wait()
        parts = {part: leaves(host(state[part])) for part in PARTS}
        content = {
            "run": self.run.name,
            "step": step,
            "iterators": iterators,
            "leaves": {part: _digests(parts[part]) for part in PARTS},
        }
        about = {"content": content, "sha256": _sha(json.dumps(content, sort_keys=True).encode())}
        # Orbax writes no empty arrays. The description has their shapes.
        items = {part: {name: leaf for name, leaf in parts[part].items() if leaf.size} for part in PARTS}
        self._size = sum(leaf.nbytes for part in items.values() for leaf in part.values())
        items = {part: ocp.args.PyTreeSave(items[part]) for part in PARTS}
        self._writing = step
        try:
            self._manager.save(step, args=ocp.args.Composite(about=ocp.args.JsonSave(about), **items), force=True)
        except Exception as error:
            raise self.failed(f"the checkpoint of step {step} could not be written to {self.run}", error) from error

    def wait(self) -> None:
        """Waits until the last checkpoint is completely on the disk.

        Raises:
          OSError: If it cannot be written. The message names the last good one.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            what = f"the checkpoint of step {self._writing} could not be written to {self.run}"
            raise self.failed(what, error) from error
        if self._writing is not None:
            self.good, self._writing = self._writing, None

    def failed(self, what: str, error: Exception) -> OSError:
        """The error for a file that could not be written, with what to do."""
        remedy = "Fix that"
        if disk.is_full(error):
            room = disk.room(self.run, "A checkpoint", self._size)
            remedy = f"Is the disk full? {room}. Make room"
        return OSError(f"{what}: {error}. {remedy} and start again. {self.last()}")

    def last(self) -> str:
        """A sentence about the last good checkpoint, for errors."""
        return "There is no checkpoint yet." if self.good is None else f"The last good checkpoint is of step {self.good}."

    def close(self) -> None:
        """Releases the run. Waits for a checkpoint that is being written, and ignores its errors."""
        try:
            self._manager.close()
        except Exception:
            pass  # An error of this checkpoint has been raised already.
        finally:
            self._lock.close()

    def _set_aside(self, damaged: dict[int, DamagedError]) -> None:
        for step, why in damaged.items():
            names = itertools.chain([str(step)], (f"{step}-{again}" for again in itertools.count(2)))
            aside = next(aside for aside in (self.run / "damaged" / name for name in names) if not aside.exists())
            aside.parent.mkdir(exist_ok=True)
            os.replace(self.run / str(step), aside)
            warnings.warn(f"{why}. It is moved to {aside}. The run continues from step {self.good}.", stacklevel=4)
        if damaged:
            self._manager.reload()


def restore(run: Path, like: Any, step: int | None = None) -> Any:
    """The averaged parameters of a run, from its last checkpoint or from the one after `step` steps.

    Args:
      run: The run's directory, as `run_directory` names it.
      like: The network's parameters, or their shapes and dtypes (`jax.eval_shape`).
      step: One of `Training.snapshots`, or another step that is still kept. None: the last one.

    Raises:
      FileNotFoundError: If there is no such checkpoint. The message lists those that exist.
      OSError: If the checkpoint is damaged.
      ValueError: If a leaf of it does not match the network.
    """
    run = run.absolute()
    found = steps(run)
    if not found:
        raise FileNotFoundError(f"{run} holds no checkpoint. It is not a run's directory, or its training has saved none yet.")
    if step not in (None, *found):
        raise FileNotFoundError(
            f"{run} holds no checkpoint of step {step}. It has those of {found}. To get this one, {_again(run)}"
        )
    wanted = found[-1] if step is None else step
    try:
        _, parts = read(run / str(wanted), {"average": jax.tree.map(kept, like)})
    except DamagedError as error:
        if step is None and steps(run)[-1:] not in ([], [wanted]):
            return restore(run, like)  # A training that is running has replaced it with a newer one.
        remedy = "Call `fit`: it moves this one aside and continues from the newest good one."
        if later := [other for other in found if other > wanted]:
            remedy = f"There are later ones ({later}), and `fit` continues from those. To restore this one, {_again(run)}"
        raise OSError(f"{error}. {remedy}") from error
    return jax.tree.map(lambda leaf, one: jax.numpy.asarray(leaf, one.dtype), put(parts["average"], like), like)


def kept(parameter: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a parameter's average, which is at least float32."""
    narrow = jax.numpy.issubdtype(parameter.dtype, jax.numpy.floating) and parameter.dtype.itemsize < 4
    return jax.ShapeDtypeStruct(parameter.shape, jax.numpy.float32 if narrow else parameter.dtype)


def claim(run: Path, text: str) -> None:
    """Writes the run's identity into its directory, completely or not at all.

    The directory's name is a digest of the text, so a damaged file can be written again.

    Raises:
      ValueError: If the directory has another identity. The message names the differences.
    """
    path = run / "identity.json"
    disk.clean(run, r"identity\.json")
    if path.exists():
        try:
            if not (there := disk.read_json(path)):
                raise disk.DamagedError(f"{path} is damaged (it is empty)")
        except disk.DamagedError as error:
            warnings.warn(f"{error}. It is written again.", stacklevel=3)
        else:
            if difference := _difference(there, json.loads(text)):
                raise ValueError(
                    f"{path} contradicts its directory's name: {difference}. If the checkpoints beside it are of this training,"
                    " remove only that file: it is written again. Otherwise move the directory away."
                )
            return
    with disk.replacing(path) as file:
        file.write(text.encode())


def steps(run: Path) -> list[int]:
    """The steps of the complete checkpoints in a run's directory, ascending."""
    return sorted(int(path.name) for path in run.glob("*") if re.fullmatch(r"0|[1-9][0-9]*", path.name))


def read(path: Path, like: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Leaves]]:
    """The description of a checkpoint, and the leaves of the parts that `like` names.

    Raises:
      DamagedError: If a file is missing, cannot be read, or has changed since it was written.
      ValueError: If a leaf does not match `like`.
    """
    try:
        with _reader(ocp.JsonCheckpointHandler) as reader:
            about = reader.restore(path / "about")
        content = about["content"]
        sound = about["sha256"] == _sha(json.dumps(content, sort_keys=True).encode()) and content["step"] == int(path.name)
        if not isinstance(content["iterators"], list) or not all(isinstance(content["leaves"][part], dict) for part in PARTS):
            raise ValueError("it is of another version")
    except Exception as error:
        raise DamagedError(f"the checkpoint {path} is damaged: {_line(error)}") from error
    if not sound:
        raise DamagedError(f"the checkpoint {path} is damaged: its description has changed since it was written")
    for part in sorted(like, key=PARTS.index):
        _fits(path, part, content["leaves"][part], leaves(like[part]))
    return content, {part: _read_part(path, part, content["leaves"][part]) for part in like}


def put(found: Leaves, like: Any) -> Any:
    """Puts leaves, given by name, into a pytree with the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in leaves(like)])


def _read_part(path: Path, part: str, digests: dict[str, list[Any]]) -> Leaves:
    empty = {
        name: np.zeros(shape, jax.numpy.dtype(dtype)) for name, (dtype, shape, _) in digests.items() if not math.prod(shape)
    }
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in digests if name not in empty}
    try:
        with _reader(ocp.PyTreeCheckpointHandler) as reader:
            found = reader.restore(path / part, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        found = dict(found) | empty
        changed = [name for name, digest in _digests(found).items() if digest != digests[name]]
    except Exception as error:
        raise DamagedError(f"the checkpoint {path} is damaged: its {part} cannot be read: {_line(error)}") from error
    if changed or set(found) != set(digests):
        raise DamagedError(f"the checkpoint {path} is damaged: {part} {', '.join(changed)} has changed since it was written")
    return found


def _fits(path: Path, part: str, saved: dict[str, list[Any]], like: dict[str, Any]) -> None:
    for name in (*like, *(name for name in saved if name not in like)):
        there = f"{saved[name][0]}{saved[name][1]}" if name in saved else "no such leaf"
        needed = f"{np.dtype(like[name].dtype)}{list(like[name].shape)}" if name in like else "no such leaf"
        if there != needed:
            raise ValueError(
                f"the checkpoint {path} does not fit the network: {name!r} of {part} is {there} in it and {needed} in the "
                f"network. The network's code has changed since. Train in another directory."
            )


def _digests(part: Leaves) -> dict[str, list[Any]]:
    return {name: [str(leaf.dtype), list(leaf.shape), _sha(leaf.tobytes())] for name, leaf in part.items()}


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return "; ".join(f"{key} is {old.get(key)} there and {new.get(key)} here" for key in keys)


def _again(run: Path) -> str:
    return f"bring a copy back, or move {run} away and train again."


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _reader(handler: Any) -> ocp.Checkpointer:
    return ocp.Checkpointer(handler(multiprocessing_options=_alone()), multiprocessing_options=_alone())


def _alone() -> ocp.options.MultiprocessingOptions:
    """Options with which Orbax runs in this process only. Other processes need not take part or share its disk."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}")
