"""Training one network, with its checkpoint."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax import Array
from tqdm import tqdm

import guidance_jax as gj

LOG_EVERY = 20


@dataclasses.dataclass(frozen=True)
class Training:
    """How one network is trained."""

    steps: int
    """Optimiser steps."""
    width: int = 256
    """Width of the hidden layers."""
    blocks: int = 4
    """Number of residual blocks."""
    batch: int = 256
    """Samples a step."""
    learning_rate: float = 1e-3
    """Peak learning rate; it falls to 0 by a cosine."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    ema: float = 0.999
    """Decay of the averaged parameters, which are the ones that are kept."""

    def __post_init__(self) -> None:
        for name in ("steps", "width", "blocks", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.learning_rate > 0 or not 0 <= self.ema < 1:
            raise ValueError(f"learning_rate must be positive and ema in [0, 1), got {self.learning_rate}, {self.ema}.")


def fit(
    name: str,
    loss: Callable[[Any, Array, Array, Array], Array],
    params: Any,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    training: Training,
    seed: int,
    directory: Path,
    identity: dict[str, Any],
) -> Any:
    """The averaged parameters after training; from the checkpoint where this very training has been done before.

    Args:
      name: of the network, for the progress bar and the checkpoint.
      loss: `(params, key, images, labels) -> scalar`.
      params: the initial parameters.
      batches: `(images, labels)` without end.
      training: how long, how fast.
      seed: of the losses' noise.
      directory: checkpoints are kept in `directory / name-<digest of identity>`.
      identity: all that the result depends on; a change of it never reuses a checkpoint.

    Raises:
      FloatingPointError: if the loss is not finite, with the step.
    """
    identity = {"network": name, "seed": seed, **dataclasses.asdict(training), **identity}
    text = json.dumps(identity, indent=1, sort_keys=True)
    path = directory.absolute() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    with ocp.StandardCheckpointer() as checkpointer:
        if (path / "params").exists() and (path / "identity.json").read_text() == text:
            print(f"{name}: from the checkpoint {path.name}")
            return checkpointer.restore(path / "params", jax.tree.map(ocp.utils.to_shape_dtype_struct, params))
        average = _train(name, loss, params, batches, training, seed)
        path.mkdir(parents=True, exist_ok=True)
        (path / "identity.json").write_text(text)
        checkpointer.save(path / "params", average, force=True)
    return average


def _train(
    name: str,
    loss: Callable[[Any, Array, Array, Array], Array],
    params: Any,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    training: Training,
    seed: int,
) -> Any:
    rate = optax.warmup_cosine_decay_schedule(0.0, training.learning_rate, min(100, training.steps // 10), training.steps + 1)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=training.weight_decay))

    @jax.jit
    def step(carry: Any, number: Array, images: Array, labels: Array) -> tuple[Any, Array]:
        params, average, state = carry
        key = jax.random.fold_in(jax.random.key(seed), number)
        value, gradient = jax.value_and_grad(loss)(params, key, images, labels)
        updates, state = optimiser.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, gj.training.ema(average, params, number, training.ema), state), value

    carry, smooth = (params, params, optimiser.init(params)), None
    with tqdm(total=training.steps, desc=name, unit="step") as bar:
        for number in range(training.steps):
            carry, value = step(carry, jnp.int32(number), *next(batches))
            if number % LOG_EVERY == LOG_EVERY - 1 or number == training.steps - 1:
                # Reading the loss waits for the device, so it is read seldom.
                if not math.isfinite(value):
                    raise FloatingPointError(f"the loss of {name} is {float(value)} at step {number}; lower its learning rate.")
                smooth = float(value) if smooth is None else 0.9 * smooth + 0.1 * float(value)
                bar.set_postfix(loss=f"{smooth:.4f}")
            bar.update()
    return carry[1]
