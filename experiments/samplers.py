"""The cost of each sampler at a given accuracy, and its stability at a large guidance scale.

`python -m experiments.samplers` samples a correlated mixture of three classes in several dimensions, by CFG with exact scores.
All errors come from the sampler's steps. Deterministic samplers converge to the law of the guided ODE, and stochastic ones to
that of the guided SDE. The two laws differ (Bradley & Nakkiran 2024, arXiv:2408.09000). Each sampler is compared with a long
second-order run to the same law, from other noise. The measure is the sliced Wasserstein distance. The distance of two such
long runs is the floor. Nothing is trained.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jax import Array

import guidance_jax as gj
from experiments.tools import pictures
from experiments.tools.pictures import MUTED, SAMPLERS
from experiments.tools.stages import each

SCHEDULE = gj.schedules.edm()


class Way(NamedTuple):
    """A sampler, the law to which it converges, and the kind of guidance.

    Args:
      sampler: The sampler.
      law: "ODE" or "SDE".
      guidance: The name of the guidance.
    """

    sampler: gj.Sampler
    law: str = "ODE"
    guidance: str = "CFG"


WAYS = {
    "ddim": Way(gj.ddim()),
    "heun": Way(gj.heun()),
    "dpmpp_2s": Way(gj.dpmpp_2s(SCHEDULE)),
    "dpmpp_2m": Way(gj.dpmpp_2m()),
    "dpmpp_3m": Way(gj.dpmpp_3m()),
    "unipc": Way(gj.unipc()),
    "ddpm": Way(gj.ddpm(), "SDE"),
    "dpmpp_sde": Way(gj.dpmpp_sde(), "SDE"),
    "heun_sde": Way(gj.heun_sde(), "SDE"),
}
LOW, HIGH = 0.2, 2.0
"""The interval of `sigma / alpha`. Its ends become noise levels of the run."""
INTERVALS = {
    "heun, interval": Way(gj.heun(), "ODE", "interval"),
    "dpmpp_2m, interval": Way(gj.dpmpp_2m(), "ODE", "interval"),
    "dpmpp_2m, interval, forgetting at its ends": Way(gj.forget(gj.dpmpp_2m(), LOW, HIGH), "ODE", "interval"),
    "unipc, interval": Way(gj.unipc(), "ODE", "interval"),
    "unipc, interval, forgetting at its ends": Way(gj.forget(gj.unipc(), LOW, HIGH), "ODE", "interval"),
}
REMEDIES = {
    "heun, thresholded": Way(gj.heun(), "ODE", "thresholded"),
    "dpmpp_2m, thresholded": Way(gj.dpmpp_2m(), "ODE", "thresholded"),
    "dpmpp_2m, CFG rescaled": Way(gj.dpmpp_2m(), "ODE", "rescaled"),
    "dpmpp_2m, APG": Way(gj.dpmpp_2m(), "ODE", "APG"),
    "dpmpp_sde, thresholded": Way(gj.dpmpp_sde(), "SDE", "thresholded"),
}
STYLES = {
    "forgetting at its ends": ("--", "s"),
    "thresholded": ("--", "s"),
    "CFG rescaled": (":", "^"),
    "APG": ("-.", "D"),
}
"""Line style and marker of a change to a sampler, in the figure."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The cost of each sampler, and its stability at a large guidance scale.

    Args:
      out: The directory for the picture and `metrics.json`.
      dimension: The dimension of the mixture.
      samples: Number of samples per run, over all classes.
      scale: The usual guidance scale, for the table of costs and for the interval.
      large: The large guidance scale, for the table of stability.
      targets: Sliced Wasserstein distances to reach at the usual scale, in decreasing order. The data have a deviation of about
        0.6.
      most: Maximum number of network evaluations per sample to reach a target.
      steps: Numbers of sampler steps in the tables by steps.
      only: The rows to compute. The default is all rows.
      exact: Number of steps of the long runs.
      seed: The seed of mixture and samples.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    out: Path = Path("out/samplers")
    dimension: int = 8
    samples: int = 16_384
    scale: float = 3.0
    large: float = 15.0
    targets: tuple[float, ...] = (0.05, 0.02)
    most: int = 1024
    steps: tuple[int, ...] = (8, 12, 16, 24, 32)
    only: tuple[str, ...] = ()
    exact: int = 250
    seed: int = 0
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.dimension < 1 or self.samples < 3 or min(self.steps) < 2 or self.exact < 2:
            raise ValueError(
                "dimension must be at least 1, samples at least 3, steps and exact at least 2, got "
                f"{self.dimension}, {self.samples}, {self.steps} and {self.exact}."
            )
        if not self.targets or list(self.targets) != sorted(self.targets, reverse=True):
            raise ValueError(f"targets must be in decreasing order, the largest first, got {self.targets}.")
        if unknown := set(self.only) - {*WAYS, *INTERVALS, *REMEDIES}:
            raise ValueError(f"only names {sorted(unknown)}, expected some of {', '.join((*WAYS, *INTERVALS, *REMEDIES))}.")

    def chosen(self, ways: dict[str, Way]) -> dict[str, Way]:
        return {name: way for name, way in ways.items() if not self.only or name in self.only}


def mixture(config: Config) -> gj.oracles.GaussianMixture:
    """Three classes of six overlapping, correlated components with unequal weights."""
    rng, d = np.random.default_rng(config.seed), config.dimension
    means, roots = 0.5 * rng.normal(size=(6, d)), rng.normal(size=(6, d, d))
    covariances = 0.15 * np.einsum("kij,klj->kil", roots, roots) / d + 0.005 * np.eye(d)
    mean, covariance = (jnp.asarray(part, jnp.float32) for part in (means, covariances))
    return jax.jit(lambda: gj.oracles.GaussianMixture(mean, covariance, jnp.arange(2.0, 8.0), jnp.arange(6) // 2))()


def path(steps: int, through: tuple[float, ...] = ()) -> gj.NoiseLevel:
    """EDM's noise levels. For each value of `through`, the nearest level is replaced by it."""
    levels = jax.jit(lambda: gj.levels(SCHEDULE, steps, gj.spacings.karras()))()
    ratio = np.asarray(levels.ratio).copy()
    for bound in through:
        ratio[np.abs(np.log(np.maximum(ratio, 1e-9) / bound)).argmin()] = bound
    moved = jax.jit(SCHEDULE.at)(np.maximum(ratio, 1e-9))
    return jax.tree.map(lambda a, b: jnp.asarray(np.where(levels.sigma > 0, a, b)), moved, levels)


class World:
    """Samples the mixture by any sampler and guidance. It compiles once per combination and number of steps."""

    def __init__(self, config: Config) -> None:
        self.config, self.truth = config, mixture(config)
        self.labels = jnp.arange(config.samples) % 3
        self.directions = jax.random.key(config.seed + 1)
        self.reach = float(jnp.abs(self.truth.sample(jax.random.key(config.seed + 2), 10_000)).max())

    @functools.cache  # noqa: B019 (a world lives as long as its job)
    def program(self, way: Way) -> Callable[..., tuple[Array, Array]]:
        """The jitted function of keys, labels, scale and levels."""

        @jax.jit
        def generate(keys: Array, labels: Array, scale: Array, levels: gj.NoiseLevel) -> tuple[Array, Array]:
            branches = gj.branches(self.truth.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
            guidance = {
                "CFG": gj.cfg(scale),
                "thresholded": gj.chain(gj.cfg(scale), gj.dynamic_threshold(100.0, self.reach)),
                "rescaled": gj.chain(gj.cfg(scale), gj.rescale(0.7)),
                "APG": gj.apg(scale, max_norm=1.0),
                "interval": gj.during(gj.cfg(scale), LOW, HIGH),
            }[way.guidance]
            state, _ = gj.run(keys, branches, guidance, way.sampler, levels, (self.config.dimension,))
            return state.x, state.evaluations

        return generate

    def run(self, way: Way, scale: float, steps: int, seed: int) -> tuple[Array, int]:
        """Samples `[n, D]`, and the number of evaluations per sample."""
        keys = jax.random.split(jax.random.key(self.config.seed + seed), len(self.labels))
        levels = path(steps, (LOW, HIGH) if way.guidance == "interval" else ())
        x, evaluations = self.program(way)(keys, self.labels, jnp.float32(scale), levels)
        return x, int(evaluations)

    def exact(self, way: Way, scale: float, seed: int) -> Array:
        """Samples of a long run to the same law."""
        sampler = gj.heun() if way.law == "ODE" else gj.heun_sde()
        return self.run(way._replace(sampler=sampler), scale, self.config.exact, seed)[0]

    def distance(self, a: Array, b: Array) -> float:
        return float(gj.metrics.sliced_wasserstein(a, b, self.directions))


def usual(world: World) -> dict[str, Any]:
    """The distance of each sampler over the number of evaluations, until the last target is reached."""
    config, found = world.config, {}
    exact = {law: [world.exact(Way(gj.ddim(), law), config.scale, seed) for seed in (10, 11)] for law in ("ODE", "SDE")}
    for name, way in each(f"scale {config.scale:g}", config.chosen(WAYS).items(), "sampler"):
        costs, distances = [], []
        for steps in (round(4 * 2 ** (i / 2)) for i in range(24)):
            x, evaluations = world.run(way, config.scale, steps, 12)
            if evaluations > config.most:
                break
            costs.append(evaluations)
            distances.append(world.distance(x, exact[way.law][0]))
            if distances[-1] <= config.targets[-1]:
                break
        reached = [next((c for c, d in zip(costs, distances, strict=True) if d <= target), None) for target in config.targets]
        found[name] = {"law": way.law, "evaluations": costs, "distance": distances, "reached": reached}
    floors = {law: world.distance(*pair) for law, pair in exact.items()}
    return {"floor": floors, "laws_apart": world.distance(exact["ODE"][0], exact["SDE"][0]), "samplers": found}


def by_steps(world: World, ways: dict[str, Way], scale: float) -> dict[str, Any]:
    """The distance of each row to its own law by the number of steps, and the largest coordinate under that law."""
    config, found, exact = world.config, {}, {}
    for name, way in each(f"by steps, scale {scale:g}", config.chosen(ways).items(), "sampler"):
        law = (way.law, way.guidance)
        if law not in exact:
            pair = [world.exact(way, scale, seed) for seed in (10, 11)]
            exact[law] = pair[0], world.distance(*pair), float(jnp.abs(pair[0]).max())
        reference, floor, reach = exact[law]
        distances = [world.distance(world.run(way, scale, steps, 12)[0], reference) for steps in config.steps]
        found[name] = {"law": way.law, "guidance": way.guidance, "distance": distances, "floor": floor, "reach": reach}
    return found


def show(config: Config, title: str, rows: dict[str, Any]) -> None:
    print(title)
    print(f"  {'':44s}" + "".join(f"{n:>10d}" for n in config.steps) + f"{'floor':>10s}{'maximum':>9s}")
    for name, row in rows.items():
        numbers = "".join(f"{d:10.3f}" if d < 1e4 else f"{d:10.0e}" for d in row["distance"])
        print(f"  {name:44s}{numbers}{row['floor']:10.3f}{row['reach']:9.1f}")


def picture(config: Config, at_usual: dict[str, Any], intervals: dict[str, Any], at_large: dict[str, Any]) -> None:
    """The distances over evaluations and steps: a colour for each sampler, a line style for each law, interval and remedy."""
    samplers = {name: row for name, row in at_large.items() if name in WAYS}
    remedies = {name: row for name, row in at_large.items() if name in REMEDIES or name == "dpmpp_2m"}
    with plt.style.context(pictures.STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10, 10.5))
        usual, large, interval, remedied = axes.flat
        for axis, rows in ((usual, at_usual["samplers"]), (large, samplers), (interval, intervals), (remedied, remedies)):
            for name, row in rows.items():
                sampler, _, change = name.partition(", ")
                dash, marker = STYLES.get(change.removeprefix("interval, "), ("-" if row["law"] == "ODE" else "--", "o"))
                costs = row["evaluations"] if axis is usual else config.steps
                line: Any = {"label": name.replace(", interval", ""), "color": SAMPLERS[sampler], "marker": marker}
                axis.loglog(costs, row["distance"], dash, **line)
            if axis is not usual:
                axis.set(xlabel="steps")
                axis.set_xticks(config.steps, [str(n) for n in config.steps])
                axis.minorticks_off()
        usual.axhline(at_usual["floor"]["ODE"], color=MUTED, lw=1.2, ls=":", label="two long runs")
        usual.set(title=f"CFG, scale {config.scale:g}\n(solid: ODE, dashed: SDE)", xlabel="network evaluations per sample")
        large.set(title=f"CFG, scale {config.large:g}\n(solid: ODE, dashed: SDE)")
        interval.set(title=f"CFG, scale {config.scale:g},\nin the interval ({LOW:g}, {HIGH:g}]")
        remedied.set(title=f"CFG, scale {config.large:g},\nwith remedies")
        for axis in axes.flat:
            axis.set_ylabel("sliced Wasserstein distance")
            if axis.lines:
                pictures.legend_below(axis, 3 if len(axis.lines) > 6 else 1, fontsize=11.5)
        figure.suptitle("Distance of each sampler to a long run of the same law")
        pictures.save(figure, config.out / "samplers.png")


def main(config: Config) -> dict[str, Any]:
    """Print the tables and draw the picture. Returns the tables."""
    if config.smoke:
        only = ("dpmpp_2m", "ddpm", "dpmpp_2m, interval", "dpmpp_2m, thresholded")
        small: Any = {"samples": 600, "steps": (4, 12), "targets": (0.5, 0.3), "exact": 60, "most": 64, "only": only}
        config = dataclasses.replace(config, **small, out=config.out / "smoke")
    config.out.mkdir(parents=True, exist_ok=True)
    world = World(config)
    at_usual = usual(world)
    intervals = by_steps(world, INTERVALS, config.scale)
    at_large = by_steps(world, {**WAYS, **REMEDIES}, config.large)
    floors = ", ".join(f"{law} {floor:.3f}" for law, floor in at_usual["floor"].items())
    print(f"CFG at {config.scale:g}: evaluations per sample to reach a sliced Wasserstein distance (floors: {floors})")
    print("  " + "".join(f"{heading:>18s}" for heading in ("law", *(f"<= {target:g}" for target in config.targets))))
    for name, row in at_usual["samplers"].items():
        print(f"  {name:14s}{row['law']:>4s}" + "".join(f"{n or f'> {config.most}':>18}" for n in row["reached"]))
    print(f"The distance between the laws of ODE and SDE is {at_usual['laws_apart']:.3f}.")
    contents = f"distance to its own law by steps, and its largest coordinate (data: {world.reach:.1f})"
    show(config, f"CFG at {config.scale:g} in the interval ({LOW:g}, {HIGH:g}]: {contents}", intervals)
    show(config, f"CFG at {config.large:g}: {contents}", at_large)
    picture(config, at_usual, intervals, at_large)
    results = {"usual": at_usual, "steps": config.steps, "interval": intervals, "large": at_large}
    (config.out / "metrics.json").write_text(json.dumps(results, indent=1))
    print(f"The picture and metrics are in {config.out}.")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
