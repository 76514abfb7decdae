"""Scale: one program for a grid of guidance scales and labels, a million particles, and the time per sample over the batch."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.accelerator import timing

CLASSES = 10
NETWORK = gj.networks.UNetConfig((32, 32, 3), CLASSES, widths=(128, 256, 256), blocks=2, attention=(1,), dtype="bfloat16")
TOY = gj.networks.UNetConfig((8, 8, 3), CLASSES, widths=(8,), heads=2)
NEEDED = {"grid": 12.0, "particles": 8.0, "batches": 15.0}
"""Seconds of each kind of row."""
TIMES = 3
"""Each run is timed as often. The median counts."""


class Traces:
    """The number of times that the network was traced."""

    seen: ClassVar[int] = 0


def unet(smoke: bool) -> tuple[Callable[..., Array], Any, tuple[int, ...]]:
    """The U-Net as `apply(params, x, t, labels)`, random parameters, and the shape of an image."""
    config = TOY if smoke else NETWORK
    apply, params = gj.networks.from_nnx(gj.networks.UNet(config, rngs=nnx.Rngs(0)))

    def counted(params: Any, x: Array, t: Array, cond: Array) -> Array:
        Traces.seen += 1
        return apply(params, x, t, cond)

    return counted, params, tuple(config.shape)


def sampled(apply: Callable[..., Array], shape: tuple[int, ...], steps: int) -> Callable[..., Array]:
    """Samples with CFG: `(params, keys, labels, scale) -> images`."""
    levels = gj.levels(gj.schedules.cosine(), steps, gj.spacings.karras())

    def draw(params: Any, keys: Array, labels: Array, scale: Array) -> Array:
        denoise = gj.denoiser(lambda x, t, cond: apply(params, x, t, cond), predicts="v")
        branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, CLASSES))
        return gj.sample(keys, branches, gj.cfg(scale), gj.dpmpp_2m(), levels, shape)

    return draw


def median(run: timing.Run) -> float:
    """The median time of some runs, after one more."""
    timing.seconds(run)
    return float(np.median([timing.seconds(run) for _ in range(TIMES)]))


def keys(count: int, seed: int = 0) -> Array:
    return jax.random.split(jax.random.key(seed), count)


def grid(smoke: bool) -> dict[str, Any]:
    """Every scale with every label in one program, called again with other scales, labels and keys."""
    count, steps = (4, 3) if smoke else (64, 20)
    apply, params, shape = unet(smoke)
    draw, labels = sampled(apply, shape, steps), jnp.arange(CLASSES)
    every = jax.jit(jax.vmap(draw, in_axes=(None, None, None, 0)))
    single = jax.jit(draw)

    def whole(low: float = 0.0, seed: int = 0) -> Array:
        return every(params, keys(CLASSES, seed), (labels + seed) % CLASSES, jnp.linspace(low, 8.0, count))

    def one_by_one() -> Array:
        runs = [single(params, keys(CLASSES), labels, scale) for scale in jnp.linspace(0.0, 8.0, count)]
        return jnp.stack(runs)

    Traces.seen = 0
    first = timing.seconds(whole)
    traces = Traces.seen
    again = timing.seconds(lambda: whole(1.0, 1))
    later = Traces.seen - traces
    took, apart = median(whole), median(one_by_one)
    together, separate = np.asarray(whole()), np.asarray(one_by_one())
    return {
        "kind": "grid",
        "scales": count,
        "labels": CLASSES,
        "steps": steps,
        "first": first,
        "other_values": again,
        "traces": traces,
        "later_traces": later,
        "seconds": took,
        "one_by_one": apart,
        "difference": float(np.abs(together - separate).max() / separate.std()),
    }


def plane() -> gj.oracles.GaussianMixture:
    """Two classes in the plane. The first has two components."""
    means = jnp.array([[-1.5, 0.0], [0.5, 1.0], [1.0, -0.5]])
    covariances = jnp.array([[[0.5, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.4]], [[1.0, 0.0], [0.0, 1.0]]])
    return gj.oracles.GaussianMixture(means, covariances, jnp.array([1.0, 1.0, 2.0]), jnp.array([0, 0, 1]))


def integral(mixture: gj.oracles.GaussianMixture, scale: float, level: gj.NoiseLevel) -> float:
    """The log-normaliser of the tilted density of class 0, as a sum over a lattice of the plane."""
    side = np.linspace(-8.0, 8.0, 801)
    points = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), jnp.float32)
    values = mixture.log_tilted(points, level, jnp.zeros(len(points), jnp.int32), scale)
    exact = np.float64(values)
    return float(exact.max() + np.log(np.exp(exact - exact.max()).sum()) + 2 * np.log(side[1] - side[0]))


def particles(smoke: bool, size: int, groups: int) -> dict[str, Any]:
    """Groups of particles that sample the tilted density of an exact mixture."""
    scale, steps, total = 2.0, 40 if smoke else 100, size * groups
    mixture, path = plane(), gj.levels(gj.schedules.edm(0.01, 40.0), steps, gj.spacings.karras())
    label = jnp.zeros(total, jnp.int32)

    def draw(keys: Array, label: Array) -> dict[str, Array]:
        two = gj.branches(mixture.denoise, cond=label, uncond=jnp.full_like(label, -1))
        found = gj.feynman_kac(keys, two, gj.targets.tilted(scale), gj.heun_sde(2.0), path, (2,), size=size)
        return {"log_normaliser": found.log_normaliser, "least": found.least, "spread": found.spread, "x": found.x}

    start = time.perf_counter()
    program = jax.jit(draw).lower(keys(total), label).compile()
    compile_seconds = time.perf_counter() - start
    given = keys(total)
    took = median(lambda: program(given, label))
    found = {name: np.asarray(value) for name, value in program(given, label).items()}
    normalisers = np.float64(found["log_normaliser"])
    return {
        "kind": "particles",
        "particles": total,
        "groups": groups,
        "steps": steps,
        "compile": compile_seconds,
        "seconds": took,
        "bytes": timing.memory(program),
        # The mean of the normalisers is unbiased, and that of their logarithms is not.
        "log_normaliser": float(normalisers.max() + np.log(np.exp(normalisers - normalisers.max()).mean())),
        "exact": integral(mixture, scale, path[-1]),
        "least_share": float(found["least"].min() / size),
        "spread": float(found["spread"].mean()),
        "finite": bool(np.isfinite(found["x"]).all()),
    }


def batches(smoke: bool) -> Iterator[dict[str, Any]]:
    """The time of a guided run at each batch size. The programs compile at the same time."""
    sizes, steps = ((1, 2), 3) if smoke else (tuple(2**n for n in range(9)), 20)
    apply, params, shape = unet(smoke)
    draw = jax.jit(sampled(apply, shape, steps))
    inputs = {size: (params, keys(size), jnp.arange(size) % CLASSES, jnp.float32(2)) for size in sizes}
    programs = {size: draw.lower(*given) for size, given in inputs.items()}
    start = time.perf_counter()
    with ThreadPoolExecutor(min(len(sizes), os.cpu_count() or 1)) as pool:
        compiled = dict(zip(sizes, pool.map(lambda size: programs[size].compile(), sizes), strict=True))
    compile_seconds = time.perf_counter() - start
    for size, program in compiled.items():
        took = median(lambda program=program, size=size: program(*inputs[size]))
        yield {
            "kind": "batch",
            "batch": size,
            "steps": steps,
            "seconds": took,
            "per_sample": took / size,
            "bytes": timing.memory(program),
            "compile_all": compile_seconds,
        }


def measure(smoke: bool, minutes: float, out: Path) -> Iterator[dict[str, Any]]:
    """A row for the grid, one for each way to group the particles, and one per batch size.

    Args:
      smoke: Toy sizes.
      minutes: The time. Rows that do not fit are left out.
      out: Not used.
    """
    clock = timing.Clock(minutes)
    populations = ((64, 4),) if smoke else ((2**20, 1), (2**10, 2**10))
    rows: list[tuple[str, Callable[[], Iterator[dict[str, Any]]]]] = [("grid", lambda: iter([grid(smoke)]))]
    rows += [("particles", lambda one=one: iter([particles(smoke, *one)])) for one in populations]
    rows.append(("batches", lambda: batches(smoke)))
    for kind, run in rows:
        lacks = None if smoke else clock.lacks(NEEDED[kind])
        if lacks:
            yield {"kind": kind, "reason": lacks}
        else:
            yield from run()


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown tables."""
    lines = [f"{row['kind']}: {row['reason']}" for row in rows if "reason" in row]
    kept = [row for row in rows if "reason" not in row]
    for row in kept:
        if row["kind"] == "grid":
            lines += [
                f"{row['scales']} scales with {row['labels']} labels in one program: {row['first']:.1f} s with compilation, "
                f"{row['seconds']:.3f} s without, {row['one_by_one']:.3f} s scale by scale. Other values trace the network "
                f"{row['later_traces']} times. Both ways differ by {row['difference']:.1e} standard deviations at most.",
                "",
            ]
    if found := [row for row in kept if row["kind"] == "particles"]:
        heads = ("seconds", "ns per particle and step", "compile", "memory", "log-normaliser", "exact", "least effective share")
        lines += [f"| particles | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
        for row in found:
            cells = (
                f"{row['seconds']:.3f}",
                f"{1e9 * row['seconds'] / row['particles'] / row['steps']:.2f}",
                f"{row['compile']:.1f} s",
                f"{row['bytes'] / 2**30:.2f} GB",
                f"{row['log_normaliser']:.4f}",
                f"{row['exact']:.4f}",
                f"{row['least_share']:.2f}",
            )
            title = f"{row['particles']:,} in {row['groups']:,} group{'s' * (row['groups'] > 1)}"
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines.append("")
    if found := [row for row in kept if row["kind"] == "batch"]:
        lines += ["| batch | seconds | ms per sample | memory |", "|---:|---:|---:|---:|"]
        for row in found:
            per, size = f"{1e3 * row['per_sample']:.2f}", f"{row['bytes'] / 2**30:.2f} GB"
            lines.append(f"| {row['batch']} | {row['seconds']:.3f} | {per} | {size} |")
    return "\n".join(lines).rstrip()
