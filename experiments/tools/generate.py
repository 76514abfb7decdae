"""Many guided samples, in shards that a killed run finds again.

`python -m experiments.tools.generate out/fashion_mnist --guidance cfg --scale 2 --samples 50000 --out out/cfg_2` draws them
with the networks of a run, over all devices of all processes. It leaves one `.npz` in the layout of OpenAI's evaluator and a
picture, one row per class. Sample i depends on the seed and on i alone: the set is the same after any number of restarts, and
up to rounding on any number of devices. After a kill, the same command continues the run.
"""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import orbax.checkpoint as ocp
import tyro
from jax import Array
from tqdm import tqdm

import guidance_jax as gj
from experiments.tools import devices as local
from experiments.tools import disk, models, pictures
from experiments.tools.shards import Shards

Program = Callable[[Any, Array, Array], Array]
"""`(inputs, keys [B], labels [B]) -> images [B, H, W, C]` in [-1, 1]: pure, each image of its own key and label."""
PATIENCE = 7 * 24 * 3600
"""Seconds that processes wait for each other."""
SAMPLERS = {
    "ddim": gj.ddim,
    "ddpm": gj.ddpm,
    "heun": gj.heun,
    "dpmpp_2m": gj.dpmpp_2m,
    "dpmpp_2s": lambda: gj.dpmpp_2s(models.SCHEDULE),
    "dpmpp_3m": gj.dpmpp_3m,
    "dpmpp_sde": gj.dpmpp_sde,
    "unipc": gj.unipc,
}
_meetings = itertools.count()


@dataclasses.dataclass(frozen=True)
class Config:
    """Many guided samples by the networks of a run."""

    run: tyro.conf.Positional[Path]
    """A directory with trained networks, as experiments.fashion_mnist leaves one."""
    out: Path
    """A directory for this set alone."""
    guidance: str = "cfg"
    """A name of `experiments.tools.models.WAYS`: cfg, calibrated (which measures first), interval, apg, autoguidance, ..."""
    scale: float = 2.0
    """1 is the conditional model; of a classifier, Bayes' rule."""
    samples: int = 50_000
    """How many. A larger number later lets the set grow."""
    labels: tuple[int, ...] = ()
    """The classes to draw, in turn; none means all of them."""
    sampler: str = "dpmpp_2m"
    """ddim, ddpm, heun, dpmpp_2m, dpmpp_2s, dpmpp_3m, dpmpp_sde or unipc."""
    steps: int = 18
    """Sampler steps, on Karras' levels."""
    sigma_min: float = 0.02
    """The last level before 0, in sigma / alpha."""
    sigma_max: float = 60.0
    """The first level."""
    seed: int = 0
    """Of the samples: sample i depends on it and on i."""
    batch: int = 256
    """Samples at a time on all devices of a process."""
    shard: int = 1024
    """Samples a file, a multiple of the batch: the most that a kill costs."""
    channels: int | None = None
    """3 repeats the channel of grey images in the assembled file, for evaluators that ask for colours."""
    coordinator: str | None = None
    """Of several processes: host:port of process 0, or "auto" where the cluster tells it."""
    processes: int | None = None
    """How many they are."""
    process: int | None = None
    """Which one this is, from 0."""

    def __post_init__(self) -> None:
        for name, names in (("guidance", models.WAYS), ("sampler", SAMPLERS)):
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}.")
        if self.samples < 1 or self.steps < 1 or not 0 < self.sigma_min < self.sigma_max:
            raise ValueError("samples and steps must be at least 1, and 0 < sigma_min < sigma_max.")


def generate(
    program: Program,
    inputs: Any,
    labels: np.ndarray,
    seed: int,
    directory: Path,
    identity: dict[str, Any],
    *,
    batch: int = 256,
    shard: int = 1024,
    devices: Sequence[Any] | None = None,
    finish: Callable[[Shards], None] | None = None,
) -> Shards:
    """Draw a sample for each label, into shards in a directory of their own; those that are there are not drawn again.

    The key of sample i is `fold_in(key(seed), i)`, of the generator threefry2x32 whatever the default is. The program is traced
    once for one function object and one batch size, so keep it, and put what changes from set to set into its inputs: a sweep
    of scales is one compile. Process p of P makes the shards p, p + P, ... on its own devices, and all wait for each other at
    the end. More labels later let the set grow.

    Args:
      program: makes the images of a batch; compiled here.
      inputs: its first argument, any pytree of arrays: parameters, a scale.
      labels: `[N]` integers.
      seed: of the samples.
      directory: for this set alone.
      identity: all that the images depend on besides, such as networks, method and scale; JSON can hold it.
      batch: samples at a time on all devices of a process; a last batch is filled up. Another one gives the same set up to
        rounding.
      shard: samples a file, whole batches; what a kill can cost.
      devices: of this process; all of them, unless given.
      finish: what process 0 makes of the whole set, before any other program may write into the directory: one file, a picture.

    Returns:
      The set: `samples()` reads it, `assemble()` makes one file of it.

    Raises:
      ValueError: if the numbers do not fit each other, or the directory holds another set.
      FloatingPointError: if images are not finite, with the numbers of the samples; their shard is not saved.
      OSError: if the directory cannot be made, or the disk takes no more; the finished shards stay.
      RuntimeError: if another program is writing into the directory, or another process has stopped with an error.
    """
    devices = jax.local_devices() if devices is None else devices
    labels = np.asarray(labels)
    _check(labels, batch, shard, len(devices))
    shards = Shards(directory.absolute(), labels.astype(np.int32), shard, {"seed": seed, **identity})
    process, processes = jax.process_index(), jax.process_count()
    mine = range(process, shards.count, processes)
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            stack.enter_context(disk.alone(disk.made(shards.directory)))
            shards.claim()
            shards.clean()

        _meet()
        local.first(claim)
        shards.check()
        with _together():
            missing = [number for number in mine if not shards.finished(number)]
            if missing:
                _fill(shards, mine, missing, _drawing(program, inputs, shards.labels, seed, batch, devices), batch)
        with _together():
            if finish is not None and process == 0:
                finish(shards)
    return shards


def _check(labels: np.ndarray, batch: int, shard: int, devices: int) -> None:
    if labels.ndim != 1 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be [N] integers, one a sample, got {labels.dtype}{list(labels.shape)}.")
    if batch < 1 or batch % devices:
        near = max(1, round(batch / devices)) * devices
        raise ValueError(f"a batch of {batch} cannot be shared by {devices} devices; take {near}.")
    if shard < batch or shard % batch:
        near = max(1, round(shard / batch)) * batch
        raise ValueError(
            f"a shard of {shard} is not whole batches of {batch}, so where samples lie in their batch, and with it the last"
            f" bits, would depend on it; take {near}."
        )


def _meet() -> None:
    """Wait for all processes. Not `sync_global_devices`: on a CPU it gives up after 30 s, and hours may lie between them."""
    ocp.multihost.get_barrier_sync_fn()(key=f"generate {next(_meetings)}", timeout_ms=1000 * PATIENCE)


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What each process does for itself, until all have done; what one of them raises is told by it, and by all at the end."""
    trouble = None
    try:
        yield
    except Exception as caught:
        trouble = caught
        if jax.process_count() > 1:
            tqdm.write(f"process {jax.process_index()} has stopped: {caught}", file=sys.stderr)
    _meet()
    said = local.gather("" if trouble is None else f"{type(trouble).__name__}: {trouble}")
    if trouble is not None:
        raise trouble
    for process, text in enumerate(said):
        if text:
            raise RuntimeError(f"process {process} stopped with {text}")


@jax.jit
def _keys(key: Array, indices: Array) -> Array:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


@jax.jit
def _quantised(images: Array) -> tuple[Array, Array]:
    """Bytes, the nearest; and which images are finite."""
    return jnp.clip(jnp.rint((images + 1) * 127.5), 0, 255).astype(jnp.uint8), jnp.isfinite(images).all(axis=(1, 2, 3))


Draw = Callable[[np.ndarray], tuple[Array, Array]]


def _drawing(program: Program, inputs: Any, labels: np.ndarray, seed: int, batch: int, devices: Sequence[Any]) -> Draw:
    """`indices [n] -> images [batch, ...], finite [batch]`, of which the first n are asked; it does not wait for them."""
    along = whole = None
    if jax.local_device_count() > 1:  # On the only one nothing is placed, and the program is compiled as for a plain call.
        mesh = local.mesh(devices)
        along, whole = local.sharded(mesh), local.replicated(mesh)
    # What a trainer left on all devices of all processes is here, whole, on each of them.
    here = lambda leaf: leaf if not isinstance(leaf, Array) or leaf.is_fully_addressable else leaf.addressable_data(0)
    inputs = jax.device_put(jax.tree.map(here, inputs), whole)
    key, compiled = (
        jax.device_put(jax.random.key(seed, impl="threefry2x32"), whole),
        program if hasattr(program, "lower") else jax.jit(program),
    )

    def draw(indices: np.ndarray) -> tuple[Array, Array]:
        filled = np.pad(indices, (0, batch - len(indices)), mode="edge")
        keys = _keys(key, jax.device_put(filled.astype(np.uint32), along))
        images = compiled(inputs, jax.device_put(keys, along), jax.device_put(labels[filled], along))
        if images.ndim != 4 or len(images) != batch or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"the program gave {images.dtype}{list(images.shape)}, not floating [{batch}, H, W, C].")
        return _quantised(images)

    return draw


def _fill(shards: Shards, mine: Sequence[int], missing: list[int], draw: Draw, batch: int) -> None:
    """Draw and write the missing shards, one after the other."""
    total = sum(len(shards.indices(number)) for number in mine)
    found = total - sum(len(shards.indices(number)) for number in missing)
    share = f" (process 0 of {jax.process_count()})" if jax.process_count() > 1 else ""
    asked = {"desc": shards.directory.name + share, "unit": "sample", "disable": jax.process_index() > 0}
    with tqdm(total=total, initial=found, **asked) as bar:
        for number in missing:
            indices = shards.indices(number)
            parts = [indices[i : i + batch] for i in range(0, len(indices), batch)]
            images = []
            for part, (drawn, finite) in zip(parts, _ahead(draw, parts), strict=True):
                bad = part[~np.asarray(finite)[: len(part)]]
                if bad.size:
                    raise FloatingPointError(_not_finite(shards, number, bad))
                images.append(np.asarray(drawn)[: len(part)])
                bar.update(len(part))
            shards.write(number, np.concatenate(images))


def _ahead(draw: Draw, parts: list[np.ndarray]) -> Iterator[tuple[Array, Array]]:
    """Each part drawn, the next one in work while this one is looked at."""
    drawn = draw(parts[0])
    for part in parts[1:]:
        following = draw(part)
        yield drawn
        drawn = following
    yield drawn


def _not_finite(shards: Shards, number: int, bad: np.ndarray) -> str:
    told = ", ".join(f"{i} (label {shards.labels[i]})" for i in bad[:10]) + (", ..." if len(bad) > 10 else "")
    return (
        f"the images of {len(bad)} samples are not finite: {told}. {shards.path(number).name} is not saved, those that are"
        " finished stay. Try a smaller scale, more steps, or look at the network's parameters; float16 overflows early."
    )


def balanced(samples: int, classes: Sequence[int]) -> np.ndarray:
    """`[samples]` labels that go round the classes: any first part of them is balanced too."""
    return np.resize(np.asarray(classes, np.int32), samples)


def grid(shards: Shards, rows: int = 20, columns: int = 10) -> Path:
    """A picture of a finished set beside it, `grid.png`: a row a class, the first samples of each; reads these alone.

    Raises:
      FileNotFoundError: if they are not there.
      ValueError: if a shard of them is damaged.
    """
    index = [np.flatnonzero(shards.labels == label)[:columns] for label in np.unique(shards.labels)[:rows]]
    index = np.stack([row[: min(map(len, index))] for row in index])
    parts = {number: shards.read(number) for number in np.unique(index // shards.size).tolist()}
    images = np.stack([[parts[i // shards.size][i % shards.size] for i in row] for row in index.tolist()])
    canvas = pictures.montage(images.astype(np.float32) / 127.5 - 1)
    path = shards.directory / "grid.png"
    with shards.kept(canvas.nbytes), disk.replacing(path) as file:
        plt.imsave(file, canvas[..., 0] if canvas.shape[2] == 1 else canvas, cmap="gray", vmin=0, vmax=1, format="png")
    return path


def assembled(channels: int | None = None) -> Callable[[Shards], None]:
    """What the commands make of a set: one file, of so many channels, and the grid; and they say where."""
    return lambda shards: print(f"{shards.assemble(channels)}\n{grid(shards)}")


def main(config: Config) -> Shards:
    """Join the processes and draw the set."""
    local.start(config.coordinator, config.processes, config.process)
    return draw(config)


def draw(config: Config) -> Shards:
    """Draw the set. Process 0 assembles it and writes its grid."""
    run, way = models.load(config.run), models.WAYS[config.guidance]
    models.check(run, way)
    run = models.calibrated(run) if way.calibrated else run
    classes = config.labels or range(max(1, len(run.names)))
    if config.labels and not set(classes) <= set(range(len(run.names))):
        expected = f"classes of the run, 0 to {len(run.names) - 1}" if run.names else "empty: the run has no classes"
        raise ValueError(f"labels must be {expected}, got {config.labels}.")
    levels = gj.levels(
        models.SCHEDULE, config.steps, gj.spacings.karras(sigma_min=config.sigma_min, sigma_max=config.sigma_max)
    )
    program, params = models.program(run, way, SAMPLERS[config.sampler](), levels)
    told = models.entries(config.run)
    identity = {name: getattr(config, name) for name in ("guidance", "scale", "sampler", "steps", "sigma_min", "sigma_max")}
    return generate(
        program,
        (params, jnp.float32(config.scale)),
        balanced(config.samples, classes),
        config.seed,
        config.out,
        {**identity, "interval": models.INTERVAL, "networks": {name: told[name] for name in way.networks}},
        batch=config.batch,
        shard=config.shard,
        finish=assembled(config.channels),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
