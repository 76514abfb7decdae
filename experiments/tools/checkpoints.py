"""Checkpoints of a training: written whole or not at all, and verified value by value as they are read."""

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
    """A checkpoint that cannot be read, or does not hold what was written."""


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their names: `{"blocks.0.kernel": leaf}`.

    Raises:
      ValueError: if two leaves have one name.
    """
    found = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}
    if len(named) < len(found):
        raise ValueError("two leaves of the parameters have one name; keep dots out of the names.")
    return named


def host(tree: Any) -> Any:
    """A copy of a pytree in NumPy arrays of its own: nothing that is done to the device's arrays reaches it."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


class Checkpoints:
    """The checkpoints of one run, in `run / <steps done>`; of a run of several processes, held by one of them.

    A checkpoint is three parts (params, average, optimiser), and what is said about it: its step, the states of the data
    iterators and a digest of every array. Orbax writes beside the training and renames the whole into place at the end.

    Args:
      run: the run's directory.
      keep: how many of the newest to keep.
      snapshots: steps whose checkpoints are kept for ever.

    Raises:
      RuntimeError: if another process trains this run now.
    """

    def __init__(self, run: Path, keep: int, snapshots: tuple[int, ...]):
        self.run, self.snapshots = run, snapshots
        self.good: int | None = None
        self._writing: int | None = None
        self._size = 0
        if (lock := disk.locked(run / "lock")) is None:
            raise RuntimeError(f"another process trains in {run} now; wait for it, or stop it.")
        self._lock = lock
        half = sorted(path.name.split(".")[0] for path in run.glob("*.orbax-checkpoint-tmp*"))
        if half:
            warnings.warn(f"the checkpoint of step {', '.join(half)} in {run} was half-written: it is dropped.", stacklevel=3)
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
        """The newest good checkpoint: its step, the leaves of its parts and the data iterators' states; None if there is none.

        Newer ones that are damaged are told of and moved to `run / damaged`. Snapshots that are missing are told of: no
        checkpoint after them depends on them.

        Args:
          like: `{part: pytree}`, what the network and its optimiser need.

        Raises:
          OSError: if there are checkpoints and all are damaged.
          ValueError: if a checkpoint does not fit `like`, with the leaf.
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
                told = f"the snapshots {lost} are missing in {self.run}; the run goes on from step {step} without them."
                warnings.warn(f"{told} To have them again: {_again(self.run)}", stacklevel=3)
            return step, parts, about["iterators"]
        if found:
            told = "; ".join(str(error) for error in damaged.values())
            raise OSError(f"no checkpoint in {self.run} is good: {told}. What can be done: {_again(self.run)}")
        return None

    def save(self, step: int, state: Mapping[str, Any], iterators: list[Any]) -> None:
        """Begins to write a checkpoint; the training may go on at once.

        Args:
          step: steps done.
          state: `{part: pytree}`, on the device.
          iterators: the state of each process's data iterator.

        Raises:
          OSError: if this checkpoint, or the one before, cannot be written; with the last good one.
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
        # Orbax writes no arrays without values; what is said about them is all there is.
        items = {part: {name: leaf for name, leaf in parts[part].items() if leaf.size} for part in PARTS}
        self._size = sum(leaf.nbytes for part in items.values() for leaf in part.values())
        items = {part: ocp.args.PyTreeSave(items[part]) for part in PARTS}
        self._writing = step
        try:
            self._manager.save(step, args=ocp.args.Composite(about=ocp.args.JsonSave(about), **items), force=True)
        except Exception as error:
            raise self.failed(f"the checkpoint of step {step} could not be written to {self.run}", error) from error

    def wait(self) -> None:
        """Until the last checkpoint is whole on the disk.

        Raises:
          OSError: if it cannot be written; with the last good one.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            what = f"the checkpoint of step {self._writing} could not be written to {self.run}"
            raise self.failed(what, error) from error
        if self._writing is not None:
            self.good, self._writing = self._writing, None

    def failed(self, what: str, error: Exception) -> OSError:
        """The error of what could not be written, and how to go on."""
        mend = "Mend that"
        if disk.is_full(error):
            room = disk.room(self.run, "A checkpoint", self._size)
            mend = f"Is the disk full? {room}. Make room"
        return OSError(f"{what}: {error}. {mend} and start again. {self.last()}")

    def last(self) -> str:
        """The sentence of the last good checkpoint, for errors."""
        return "There is no checkpoint yet." if self.good is None else f"The last good checkpoint is of step {self.good}."

    def close(self) -> None:
        """Lets go of the run; waits for a checkpoint that is being written, whatever becomes of it."""
        try:
            self._manager.close()
        except Exception:
            pass  # The error that closes the run has been told, or is being told.
        finally:
            self._lock.close()

    def _set_aside(self, damaged: dict[int, DamagedError]) -> None:
        for step, why in damaged.items():
            names = itertools.chain([str(step)], (f"{step}-{again}" for again in itertools.count(2)))
            aside = next(aside for aside in (self.run / "damaged" / name for name in names) if not aside.exists())
            aside.parent.mkdir(exist_ok=True)
            os.replace(self.run / str(step), aside)
            warnings.warn(f"{why}. It is now {aside}; the run goes on from step {self.good}.", stacklevel=4)
        if damaged:
            self._manager.reload()


def restore(run: Path, like: Any, step: int | None = None) -> Any:
    """The averaged parameters of a run: of its last checkpoint, or of the one after `step` steps.

    Args:
      run: the run's directory, of `run_directory`.
      like: the network's parameters, or their shapes and types (`jax.eval_shape`).
      step: one of `Training.snapshots`, or another step that is still kept; the last one where None.

    Raises:
      FileNotFoundError: if there is no such checkpoint, with those that are there.
      OSError: if it is damaged.
      ValueError: if it does not fit the network, with the leaf.
    """
    run = run.absolute()
    found = steps(run)
    if not found:
        raise FileNotFoundError(f"{run} holds no checkpoint: it is no run's directory, or its training has not come so far.")
    if step not in (None, *found):
        raise FileNotFoundError(f"{run} holds no checkpoint of step {step}; of these: {found}. To have it: {_again(run)}")
    wanted = found[-1] if step is None else step
    try:
        _, parts = read(run / str(wanted), {"average": jax.tree.map(kept, like)})
    except DamagedError as error:
        if step is None and steps(run)[-1:] not in ([], [wanted]):
            return restore(run, like)  # A training that goes on has put a newer one in its place.
        mend = "call `fit`: it sets this one aside and goes on from the newest that is good."
        if later := [other for other in found if other > wanted]:
            mend = f"later ones are there ({later}), and `fit` goes on from those. To have this one again: {_again(run)}"
        raise OSError(f"{error}; {mend}") from error
    return jax.tree.map(lambda leaf, one: jax.numpy.asarray(leaf, one.dtype), put(parts["average"], like), like)


def kept(parameter: Any) -> jax.ShapeDtypeStruct:
    """What the average of a parameter is like: in at least float32, whatever the parameter is."""
    narrow = jax.numpy.issubdtype(parameter.dtype, jax.numpy.floating) and parameter.dtype.itemsize < 4
    return jax.ShapeDtypeStruct(parameter.shape, jax.numpy.float32 if narrow else parameter.dtype)


def claim(run: Path, text: str) -> None:
    """Writes in the run's directory what the run is; whole, or not at all.

    The directory's name is a digest of the text, so a file that is damaged is written anew.

    Raises:
      ValueError: if it says something else there, with what differs.
    """
    path = run / "identity.json"
    disk.clean(run, r"identity\.json")
    if path.exists():
        try:
            if not (there := disk.read_json(path)):
                raise disk.DamagedError(f"{path} is damaged (it tells nothing)")
        except disk.DamagedError as error:
            warnings.warn(f"{error}: it is written anew.", stacklevel=3)
        else:
            if difference := _difference(there, json.loads(text)):
                raise ValueError(
                    f"{path} contradicts its directory's name: {difference}. If the checkpoints beside it are of this training,"
                    " remove that file alone: it is written anew. Else move the directory away."
                )
            return
    with disk.replacing(path) as file:
        file.write(text.encode())


def steps(run: Path) -> list[int]:
    """The steps of the checkpoints in a run's directory that were written to their end, ascending."""
    return sorted(int(path.name) for path in run.glob("*") if re.fullmatch(r"0|[1-9][0-9]*", path.name))


def read(path: Path, like: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Leaves]]:
    """What is said about a checkpoint, and the leaves of the parts that `like` names.

    Raises:
      DamagedError: if a file of it is missing, cannot be read, or does not hold what was written.
      ValueError: if it does not fit `like`, with the leaf.
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
        raise DamagedError(f"the checkpoint {path} is damaged: what it says about itself has changed since it was written")
    for part in sorted(like, key=PARTS.index):
        _fits(path, part, content["leaves"][part], leaves(like[part]))
    return content, {part: _read_part(path, part, content["leaves"][part]) for part in like}


def put(found: Leaves, like: Any) -> Any:
    """The leaves in the pytree that they are named after."""
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
                f"network. The network's code has changed since: train in another directory."
            )


def _digests(part: Leaves) -> dict[str, list[Any]]:
    return {name: [str(leaf.dtype), list(leaf.shape), _sha(leaf.tobytes())] for name, leaf in part.items()}


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return "; ".join(f"{key} is {old.get(key)} there and {new.get(key)} here" for key in keys)


def _again(run: Path) -> str:
    return f"bring a copy back, or move {run} away and train anew."


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _reader(handler: Any) -> ocp.Checkpointer:
    return ocp.Checkpointer(handler(multiprocessing_options=_alone()), multiprocessing_options=_alone())


def _alone() -> ocp.options.MultiprocessingOptions:
    """Orbax for this process alone: the others need not take part, nor share its disk."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}")
