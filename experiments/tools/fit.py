"""One trainer for every network: data parallel, logged, and resumed bit for bit after a kill."""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

import guidance_jax as gj
from experiments.tools import devices, disk
from experiments.tools.checkpoints import Checkpoints, claim, host, kept, leaves, put, restore
from experiments.tools.progress import Events, Waiting
from experiments.tools.stages import Progress, Tell, say

__all__ = ["Batches", "Training", "fit", "restore", "run_directory"]

LOG_EVERY = 20
MEND = "Lower the learning rate, or check the batch of that step."
NOT_THE_RESULT = ("checkpoint_every", "keep")


@dataclasses.dataclass(frozen=True)
class Training:
    """How one network is trained: AdamW with warm-up, a cosine schedule and averaged parameters.

    Args:
      steps: Optimiser steps.
      batch: Samples per step, over all devices and processes.
      learning_rate: The maximum learning rate. It decays to 0 along a cosine.
      warmup: Steps in which the learning rate rises linearly from 0 to its maximum; at most a tenth of all steps.
      weight_decay: Coefficient of AdamW's decoupled weight decay.
      clip: Maximum global norm of a gradient. Larger gradients are scaled down to it.
      ema: Decay per step of the exponential moving average of the parameters. Training returns the averages.
      snapshots: Steps whose checkpoints are never deleted.
      checkpoint_every: Steps between checkpoints. It does not change the result.
      keep: How many of the newest checkpoints are kept. It does not change the result.
    """

    steps: int
    batch: int = 256
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    snapshots: tuple[int, ...] = ()
    checkpoint_every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0 or not 0 <= self.ema < 1:
            raise ValueError(f"learning_rate must be positive and ema in [0, 1), got {self.learning_rate}, {self.ema}.")
        if not self.clip > 0 or self.warmup < 0 or self.weight_decay < 0:
            raise ValueError(
                "clip must be positive, warmup and weight_decay not negative, got "
                f"{self.clip}, {self.warmup}, {self.weight_decay}."
            )
        if not all(1 <= step <= self.steps for step in self.snapshots):
            raise ValueError(f"snapshots must lie in 1..steps = {self.steps}, got {self.snapshots}.")


class Batches(Protocol):
    """Endless batches, like a `DatasetIterator` of Grain."""

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        """This process's rows of the next global batch: images and labels."""
        ...

    def get_state(self) -> Any:
        """The position of the iterator, JSON-able."""
        ...

    def set_state(self, state: Any) -> None:
        """Moves the iterator to a position that `get_state` returned."""
        ...


def run_directory(name: str, training: Training, seed: int, directory: Path, identity: dict[str, Any]) -> Path:
    """The directory of the run that `fit` trains with these arguments: `directory / name-<digest of the arguments>`."""
    text = _text(name, training, seed, identity)
    return directory.absolute() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def fit(
    name: str,
    loss: Callable[[Any, Array, Array, Array], Array],
    params: Any,
    batches: Batches,
    training: Training,
    seed: int,
    directory: Path,
    identity: dict[str, Any],
    *,
    mesh: Mesh | None = None,
    tell: Tell | None = None,
) -> Any:
    """Trains a network, and returns its averaged parameters.

    A training that was stopped is resumed. If it was finished, its parameters are read from the last checkpoint.

    Step k draws its noise from `fold_in(key(seed), k)` and its samples from `batches`, whose state is part of every
    checkpoint. So a run that is killed and started again gives the same bits as an uninterrupted one. With another number of
    devices or processes, results agree up to rounding.

    The run's directory holds `identity.json`, the checkpoints by their numbers of steps, and TensorBoard's event files.

    Args:
      name: The network's name, for the progress bar and the run's directory.
      loss: `(params, key, images, labels) -> scalar`, a mean over the rows of the global batch.
      params: The initial parameters, the same in every process.
      batches: An iterator at its start. Each process gives its rows of the global batch.
      training: Steps, batch size, learning rate and so on.
      seed: Seed of the noise in the loss.
      directory: The directory of all runs.
      identity: All else that the result depends on, JSON-able: sizes of the network, seed of the initial parameters, version
        and order of the data, choices inside `loss`. Another identity is another run. Leave out what does not change the
        result: devices, processes, directories.
      mesh: A mesh with one axis, "data". None: all devices.
      tell: A function that gets one sentence about the training at its end. None: it is printed.

    Raises:
      FloatingPointError: If a loss, a gradient or a parameter is not finite. The message has the step and the last good
        checkpoint.
      OSError: If a checkpoint or the log cannot be written, or if all checkpoints of the run are damaged.
      RuntimeError: If another process trains the same run.
      TypeError: If `batches` has no JSON-able state.
      ValueError: If a batch does not have `training.batch` rows, or its rows do not divide evenly among the devices. If the
        run's directory contradicts `identity`. If a leaf of the checkpoint does not match `params`.
    """
    if not hasattr(batches, "get_state") or not hasattr(batches, "set_state"):
        raise TypeError("batches must have get_state and set_state, like Grain's iterators: a killed run needs them to resume.")
    _check_kept(params, batches)
    mesh = devices.mesh() if mesh is None else mesh
    run = _Run(name, training, run_directory(name, training, seed, directory, identity), mesh)
    tell = run.say if tell is None else tell
    devices.first(lambda: run.open(_text(name, training, seed, identity)))
    try:
        state, step = _program(loss, training, seed, mesh, params)
        state, start = _resume(run, state, batches)
        if start == training.steps:
            tell(f"from the checkpoint {run.path.name}")
        else:
            if start:
                run.say(f"continues from step {start} of {training.steps}")
            state = _train(run, step, state, start, batches, tell)
        return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), host(state["average"]), params)
    finally:
        if run.store is not None:
            run.store.close()


def _check_kept(params: Any, batches: Batches) -> None:
    """Raises before the training if parameters or batches cannot be saved in a checkpoint."""
    if not any(np.size(leaf) for leaf in leaves(params).values()):
        raise ValueError("params hold no numbers, expected at least one to train.")
    state = batches.get_state()
    try:
        json.dumps(state)
    except (TypeError, ValueError) as error:
        raise TypeError(f"batches.get_state() must be JSON-able, got {type(state).__name__}: {error}.") from error


def _text(name: str, training: Training, seed: int, identity: dict[str, Any]) -> str:
    own = {k: v for k, v in dataclasses.asdict(training).items() if k not in NOT_THE_RESULT}
    taken = {"name": name, "seed": seed, "training": own}
    generator = str(jax.random.key_impl(jax.random.key(seed)))
    if generator != "threefry2x32":  # Older runs do not name their generator. They used this one.
        taken["generator"] = generator
    if both := sorted(set(taken) & set(identity)):
        raise ValueError(f"identity must not hold {', '.join(both)}: fit adds them itself.")
    return json.dumps(taken | identity, indent=1, sort_keys=True, allow_nan=False)


@dataclasses.dataclass
class _Run:
    """One training and its directory. Only process 0 has `store` and `events`.

    Args:
      name: The name of the network.
      training: The options of the training.
      path: The directory.
      mesh: The devices.
      store: The checkpoints.
      events: The writer of TensorBoard's event files.
    """

    name: str
    training: Training
    path: Path
    mesh: Mesh
    store: Any = None
    events: Any = None

    def open(self, text: str) -> None:
        """Locks the run's directory, and writes the identity into it."""
        path = disk.made(self.path)
        try:
            self.store = Checkpoints(path, self.training.keep, self.training.snapshots)
        except OSError as error:
            raise disk.UnwrittenError(error.errno, f"{path} cannot hold a training: {error.strerror or error}") from error
        try:
            claim(self.path, text)
        except BaseException:
            self.store.close()
            raise

    def tell(self, stack: contextlib.ExitStack, start: int) -> None:
        """Opens the log of the steps from `start`."""
        try:
            self.events = stack.enter_context(contextlib.closing(Events(self.path, start)))
        except OSError as error:
            raise self.store.failed(f"the log of step {start} could not be written to {self.path}", error) from error

    def say(self, text: str) -> None:
        """Prints a line, in process 0 only."""
        say(f"{self.name}: {text}")

    def wait(self) -> None:
        """Waits until the last checkpoint is completely on the disk."""
        self.store.wait()

    def last(self) -> str:
        """A sentence about the last good checkpoint. It first waits for a checkpoint that is being written."""
        if self.store is None:
            return ""
        with contextlib.suppress(OSError):
            self.store.wait()
        return self.store.last()


def _program(
    loss: Callable[..., Array], training: Training, seed: int, mesh: Mesh, params: Any
) -> tuple[Any, Callable[..., Any]]:
    """The initial state on all devices, and the step `(state, number, images, labels) -> (state, numbers to log)`."""
    warmup = min(training.warmup, training.steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, training.learning_rate, warmup, training.steps + 1)
    optimiser = optax.chain(optax.clip_by_global_norm(training.clip), optax.adamw(rate, weight_decay=training.weight_decay))

    def first(params: Any) -> Any:
        # Without weak types, which the first step would remove. The second step would then be compiled again.
        params = jax.tree.map(lambda leaf: jnp.copy(jax.lax.convert_element_type(leaf, leaf.dtype)), params)
        average = jax.tree.map(lambda leaf: jnp.copy(leaf.astype(kept(leaf).dtype)), params)
        return {"params": params, "average": average, "optimiser": optimiser.init(params)}

    def step(state: Any, number: Array, images: Array, labels: Array) -> tuple[Any, Any]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        value, gradient = jax.value_and_grad(loss)(state["params"], key, images, labels)
        updates, moments = optimiser.update(gradient, state["optimiser"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        average = gj.training.ema(state["average"], params, number, training.ema)
        logged = {"loss": value, "gradient_norm": optax.tree.norm(gradient), "learning_rate": rate(number)}
        return {"params": params, "average": average, "optimiser": moments}, logged

    everywhere = devices.replicated(mesh)
    state = jax.jit(first, out_shardings=everywhere)(devices.replicate(mesh, params))
    return state, jax.jit(step, donate_argnums=0, out_shardings=everywhere)


def _resume(run: _Run, state: Any, batches: Batches) -> tuple[Any, int]:
    """The state of the newest good checkpoint and its step. Without a checkpoint, the given state and 0."""
    held = jax.tree.map(np.asarray, state)

    def newest() -> Any:
        found = None if run.store is None else run.store.newest(held)
        if found is None:
            return None
        step, parts, iterators = found
        held.update({part: put(parts[part], held[part]) for part in parts})
        return step, iterators

    found = devices.first(newest)
    if found is None:
        return state, 0
    step, iterators = found
    if any(one != iterators[0] for one in iterators) and len(iterators) != jax.process_count():
        raise ValueError(
            f"the checkpoint of step {step} holds different data iterators of {len(iterators)} processes, got "
            f"{jax.process_count()} processes. Use {len(iterators)}, or batches whose state is the same in each process."
        )
    batches.set_state(iterators[jax.process_index() % len(iterators)])
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    return copy(devices.replicate(run.mesh, devices.broadcast(held))), step


def _train(run: _Run, step: Callable[..., Any], state: Any, start: int, batches: Batches, tell: Tell) -> Any:
    training, logged, waiting, loss = run.training, [], Waiting(), math.nan
    with contextlib.ExitStack() as stack:
        devices.first(lambda: run.tell(stack, start))
        bar = stack.enter_context(Progress(run.name, training.steps, "step", start, hidden=run.store is None))
        for done in range(start + 1, training.steps + 1):
            rows = _rows(waiting.next(batches), training.batch)
            state, new = step(state, np.int32(done - 1), *devices.share(run.mesh, rows))
            logged.append(new)
            saves = done % training.checkpoint_every == 0 or done in training.snapshots or done == training.steps
            if saves or done % LOG_EVERY == 0:
                # Reading losses waits for the device, so they are read rarely and together.
                loss = _log(run, done, jax.device_get(logged), waiting)
                logged = []
                bar.note(f"loss={loss:.4f}")
            if saves:
                _save(run, done, state, batches)
            if done == start + 1:
                jax.block_until_ready(new)
                waiting.restart()  # The first step compiles.
            bar.update()
        share = waiting.share()
        devices.first(run.wait)
    tell(f"{training.steps - start:,} steps, loss {loss:.4f}, {100 * share:.1f} % of the time waiting for data")
    return state


def _rows(batch: tuple[np.ndarray, np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    rows = size / jax.process_count()
    if not all(len(part) == rows for part in batch):
        raise ValueError(
            f"a batch of {size} is {rows:g} rows in each of {jax.process_count()} processes, got "
            f"{[len(part) for part in batch]}. Use batches of `training.batch` rows."
        )
    return batch


def _log(run: _Run, done: int, logged: list[dict[str, Any]], waiting: Waiting) -> float:
    """Writes the losses since the last call, and returns their mean."""
    first = done - len(logged)
    for number, one in enumerate(logged, first):
        for what in ("loss", "gradient_norm"):
            if not math.isfinite(one[what]):
                what, value = what.replace("_", "'s "), float(one[what])
                raise FloatingPointError(f"the {what} of {run.name} is {value} at step {number}. {run.last()} {MEND}")
    rate, share = waiting.lap()
    last = {key: float(logged[-1][key]) for key in ("learning_rate", "gradient_norm")}
    last |= {"samples_per_second": rate * run.training.batch, "share_waiting_for_data": share}

    def write() -> None:
        try:
            for number, one in enumerate(logged, first):
                run.events.write(number, {"loss": float(one["loss"])})
            run.events.write(done - 1, last)
            run.events.flush()
        except OSError as error:
            run.last()
            raise run.store.failed(f"the log of step {done - 1} could not be written to {run.path}", error) from error

    devices.first(write)
    return float(np.mean([one["loss"] for one in logged]))


def _save(run: _Run, done: int, state: Any, batches: Batches) -> None:
    named = leaves(state)
    finite = jax.device_get(_finite(named))
    if bad := [name for name, good in finite.items() if not good]:
        raise FloatingPointError(
            f"{bad[0]} of {run.name} is not finite after {done} steps. {run.last()} Lower the learning rate."
        )
    iterators = [json.loads(one) for one in devices.gather(json.dumps(batches.get_state()))]
    devices.first(lambda: run.store.save(done, state, iterators))


@jax.jit
def _finite(named: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in named.items()}
