"""Many guided samples, in shards that a killed run reuses.

`python -m experiments.tools.generate out/fashion_mnist --guidance cfg --scale 2 --samples 50000 --out out/cfg_2` draws them
with the networks of a run, over all devices of all processes. It writes one `.npz` in the layout of OpenAI's evaluator, and a
picture with one row per class. Sample i depends only on the seed and on i. So restarts do not change the set, and another
number of devices changes it by rounding only. After a kill, the same command continues the run.
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

import guidance_jax as gj
from experiments.tools import devices as local
from experiments.tools import disk, models, pictures
from experiments.tools.shards import Shards
from experiments.tools.stages import Progress

Program = Callable[[Any, Array, Array], Array]
"""`(inputs, keys [B], labels [B]) -> images [B, H, W, C]` in [-1, 1]. Each image depends on its own key and label."""
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
    """Many guided samples, drawn with the networks of a run.

    Args:
      run: The output directory of a finished experiments.fashion_mnist: it holds the trained networks.
      out: The directory of this set. It must hold nothing else.
      guidance: The way to guide: cfg, calibrated (measured first), interval, rescale, apg, cfg_zero_star, autoguidance,
        classifier, clean_classifier, unconditional, conditional, early, early_cfg or early_autoguidance.
      scale: The guidance scale. 1 is the conditional model, or Bayes' rule for a classifier.
      samples: The number of samples. The same command with a larger number extends the set.
      labels: The classes to draw, in turn, as numbers from 0. Empty: all of them.
      sampler: The sampler: ddim, ddpm, heun, dpmpp_2m, dpmpp_2s, dpmpp_3m, dpmpp_sde or unipc.
      steps: The number of sampler steps, on Karras' noise levels.
      sigma_min: The last noise level before 0, in sigma / alpha.
      sigma_max: The first noise level, in sigma / alpha.
      seed: The seed of the samples. Sample i depends on the seed and on i.
      batch: Samples at a time, over all devices of a process.
      shard: Samples per file, a multiple of the batch. A kill loses at most one file.
      channels: Channels of the assembled file. 3 repeats the channel of grey images, for evaluators that need colours.
      coordinator: For several processes: host:port of process 0, or "auto" on a cluster that provides it. None: one process.
      processes: The number of processes.
      process: The number of this process, from 0.
    """

    run: tyro.conf.Positional[Path]
    out: Path
    guidance: str = "cfg"
    scale: float = 2.0
    samples: int = 50_000
    labels: tuple[int, ...] = ()
    sampler: str = "dpmpp_2m"
    steps: int = 18
    sigma_min: float = 0.02
    sigma_max: float = 60.0
    seed: int = 0
    batch: int = 256
    shard: int = 1024
    channels: int | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        for name, names in (("guidance", models.WAYS), ("sampler", SAMPLERS)):
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}.")
        if self.samples < 1 or self.steps < 1 or not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                "samples and steps must be at least 1, and 0 < sigma_min < sigma_max, got "
                f"{self.samples}, {self.steps}, {self.sigma_min} and {self.sigma_max}."
            )


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
    """Draws one sample per label into shards. Shards that exist already are not drawn again.

    The key of sample i is `fold_in(key(seed), i)`, always with the generator threefry2x32. The program is traced once per
    function object and batch size. Reuse the function, and put what changes between sets into `inputs`: then a sweep of scales
    compiles once. Process p of P makes the shards p, p + P, ... on its own devices. All processes wait for each other at the
    end. A call with more labels extends the set.

    Args:
      program: Makes the images of a batch. It is compiled here.
      inputs: Its first argument, any pytree of arrays: parameters, a scale.
      labels: `[N]` integers.
      seed: Seed of the samples.
      directory: The directory of this set. It must hold nothing else.
      identity: All else that the images depend on, such as networks, method and scale, JSON-able.
      batch: Samples at a time, over all devices of a process. The last batch is padded. Another batch size gives the same set
        up to rounding.
      shard: Samples per file, a multiple of `batch`. A kill loses at most one shard.
      devices: The devices of this process to use. None: all of them.
      finish: A function that process 0 calls with the finished set while the directory is still locked.

    Returns:
      The set. `samples()` reads it, `assemble()` makes one file of it.

    Raises:
      ValueError: If labels, batch, shard and devices do not match each other, or the directory holds another set.
      FloatingPointError: If images are not finite. The message has the numbers of the samples. Their shard is not saved.
      OSError: If the directory cannot be made, or the disk is full. Finished shards are kept.
      RuntimeError: If another program is writing into the directory, or another process has stopped with an error.
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
        raise ValueError(f"labels must be [N] integers, one per sample, got {labels.dtype}{list(labels.shape)}.")
    if batch < 1 or batch % devices:
        near = max(1, round(batch / devices)) * devices
        raise ValueError(f"a batch of {batch} does not divide evenly among {devices} devices. Use {near}.")
    if shard < batch or shard % batch:
        near = max(1, round(shard / batch)) * batch
        raise ValueError(
            f"shard must be a multiple of batch, got {shard} and {batch}: else the last bits of a sample would depend on the"
            f" shard. Use {near}."
        )


def _meet() -> None:
    """Wait for all processes, for hours if needed. On a CPU, `sync_global_devices` gives up after 30 s."""
    ocp.multihost.get_barrier_sync_fn()(key=f"generate {next(_meetings)}", timeout_ms=1000 * PATIENCE)


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Runs a block in each process, and waits for all. If one process raises, all of them raise at the end."""
    trouble = None
    try:
        yield
    except Exception as caught:
        trouble = caught
        if jax.process_count() > 1:
            print(f"process {jax.process_index()} has stopped: {caught}", file=sys.stderr, flush=True)
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
    """Images rounded to uint8, and whether each image is finite."""
    return jnp.clip(jnp.rint((images + 1) * 127.5), 0, 255).astype(jnp.uint8), jnp.isfinite(images).all(axis=(1, 2, 3))


Draw = Callable[[np.ndarray], tuple[Array, Array]]


def _drawing(program: Program, inputs: Any, labels: np.ndarray, seed: int, batch: int, devices: Sequence[Any]) -> Draw:
    """The function `indices [n] -> images [batch, ...], finite [batch]`. The first n are valid. It does not wait for them."""
    along = whole = None
    if jax.local_device_count() > 1:  # With one device nothing is placed, so the program is compiled as in a plain call.
        mesh = local.mesh(devices)
        along, whole = local.sharded(mesh), local.replicated(mesh)
    # Parameters replicated on all devices of all processes are complete on each device.
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
            raise ValueError(f"the program returned {images.dtype}{list(images.shape)}, expected floating [{batch}, H, W, C].")
        return _quantised(images)

    return draw


def _fill(shards: Shards, mine: Sequence[int], missing: list[int], draw: Draw, batch: int) -> None:
    """Draws and writes the missing shards, one after the other."""
    total = sum(len(shards.indices(number)) for number in mine)
    found = total - sum(len(shards.indices(number)) for number in missing)
    share = f" (process 0 of {jax.process_count()})" if jax.process_count() > 1 else ""
    with Progress(shards.directory.name + share, total, "sample", found, hidden=jax.process_index() > 0) as bar:
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
    """The drawn parts. The next part is computed while the current one is used."""
    drawn = draw(parts[0])
    for part in parts[1:]:
        following = draw(part)
        yield drawn
        drawn = following
    yield drawn


def _not_finite(shards: Shards, number: int, bad: np.ndarray) -> str:
    shown = ", ".join(f"{i} (label {shards.labels[i]})" for i in bad[:10]) + (", ..." if len(bad) > 10 else "")
    return (
        f"the images of {len(bad)} samples are not finite: {shown}. {shards.path(number).name} is not saved, finished shards"
        " are kept. Use a smaller scale or more steps, or check the network's parameters; float16 overflows early."
    )


def balanced(samples: int, classes: Sequence[int]) -> np.ndarray:
    """`[samples]` labels that cycle through the classes, so that every prefix is balanced."""
    return np.resize(np.asarray(classes, np.int32), samples)


def grid(shards: Shards, rows: int = 20, columns: int = 10, names: Sequence[str] | None = ()) -> Path:
    """Writes a picture of a finished set, `grid.png`: one row per class, with the first samples of each and its name.

    Args:
      shards: The set.
      rows: The maximum number of classes.
      columns: The maximum number of samples per class.
      names: The names of the classes. Empty: a row has the number of its class. None: no names, as of unconditional samples.

    Raises:
      FileNotFoundError: If a shard with these samples is missing.
      ValueError: If such a shard is damaged.
    """
    classes: list[int] = np.unique(shards.labels)[:rows].tolist()
    index = [np.flatnonzero(shards.labels == label)[:columns] for label in classes]
    index = np.stack([row[: min(map(len, index))] for row in index])
    parts = {number: shards.read(number) for number in np.unique(index // shards.size).tolist()}
    images = np.stack([[parts[i // shards.size][i % shards.size] for i in row] for row in index.tolist()])
    named = [] if names is None else [names[label] if names else f"class {label}" for label in classes]
    canvas = pictures.montage(images.astype(np.float32) / 127.5 - 1, rows=named)
    path = shards.directory / "grid.png"
    with shards.kept(canvas.nbytes), disk.replacing(path) as file:
        plt.imsave(file, canvas[..., 0] if canvas.shape[2] == 1 else canvas, cmap="gray", vmin=0, vmax=1, format="png")
    return path


def assembled(channels: int | None = None, names: Sequence[str] | None = ()) -> Callable[[Shards], None]:
    """The `finish` of the commands: assembles one file with so many channels, writes the grid, and prints both paths."""
    return lambda shards: print(f"{shards.assemble(channels)}\n{grid(shards, names=names)}")


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
    known = models.entries(config.run)
    identity = {name: getattr(config, name) for name in ("guidance", "scale", "sampler", "steps", "sigma_min", "sigma_max")}
    return generate(
        program,
        (params, jnp.float32(config.scale)),
        balanced(config.samples, classes),
        config.seed,
        config.out,
        {**identity, "interval": models.INTERVAL, "networks": {name: known[name] for name in way.networks}},
        batch=config.batch,
        shard=config.shard,
        finish=assembled(config.channels, None if config.guidance == "unconditional" else run.names),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
