"""Guidance of a weak model in the plane: autoguidance removes its blur, and classifier-free guidance drops branches.

`python -m experiments.toy_2d` makes two trees of small Gaussians, one per class (after figure 1 of Karras et al. 2024,
arXiv:2406.02507, with another shape). The "network" is the exact denoiser of the trees, blurred by a Gaussian, so some of its
samples lie outside of the branches. The weaker guide of autoguidance has more blur. Density, classes and branches are known
exactly, so the only error of the numbers is sampling noise. Nothing is trained. "calibrated" is CFG with a scale that is
calibrated on the network's own samples. "both" is a chain of it and autoguidance at 3. "particles" sample the network's tilted
density `p(x)^(1-w) p(x|y)^w`, which no guidance alone samples.
"""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jax import Array
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import guidance_jax as gj
from experiments.tools import pictures
from experiments.tools.pictures import INK, METHODS, MUTED
from experiments.tools.stages import Stages

UNGUIDED, GUIDED = ("unguided", "weaker guide"), ("autoguidance", "CFG", "classifier", "interval", "APG", "calibrated", "both")
PARTICLES = gj.heun_sde(2.0)
PANELS = ("truth", "unguided", "CFG", "particles", "interval", "calibrated", "autoguidance", "both")
"""The methods of the picture."""
WINDOW = ((-1.75, 0.62), (-1.29, 1.1))
"""The part of the plane that the picture shows."""
PATHS, FAR = 12, 1.0
"""The number of paths of class 0 in each panel, and the noise level at which they begin."""


class Shown(NamedTuple):
    """How the figures name a method, and the method whose colour it has.

    Args:
      title: The title of the method's panel.
      method: The method whose colour it has.
    """

    title: str
    method: str


SHOWN = {
    "truth": Shown("exact samples", "exact"),
    "unguided": Shown("no guidance", "conditional"),
    "weaker guide": Shown("weaker model", "weaker"),
    "autoguidance": Shown("autoguidance", "autoguidance"),
    "CFG": Shown("CFG", "cfg"),
    "classifier": Shown("classifier", "classifier"),
    "interval": Shown("CFG in an interval", "interval"),
    "APG": Shown("APG", "apg"),
    "calibrated": Shown("CFG, calibrated", "calibrated"),
    "both": Shown("calibrated + autoguidance", "calibrated_autoguidance"),
    "particles": Shown("particles", "particles"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Guidance of a weak model in the plane.

    Args:
      out: The directory for pictures and `metrics.json`.
      blur: Standard deviation of the network's blur. The branches have a standard deviation of at most 0.03 across.
      weak_blur: Standard deviation of the weaker guide's blur.
      scale: Guidance scale of every method in the table and in the picture.
      scales: Guidance scales of the curves. They must include `scale`.
      interval: The interval of `sigma / alpha` in which the method "interval" guides.
      steps: Number of sampler steps.
      particle_steps: Number of steps of the particles, whose weights need short ones.
      samples: Number of samples per method and scale, over both classes.
      seed: The seed of the samples.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    out: Path = Path("out/toy_2d")
    blur: float = 0.06
    weak_blur: float = 0.12
    scale: float = 3.0
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0)
    interval: tuple[float, float] = (0.1, 0.3)
    steps: int = 32
    particle_steps: int = 256
    samples: int = 2000
    seed: int = 0
    smoke: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.blur < self.weak_blur:
            raise ValueError(f"blur must be positive and below weak_blur, got {self.blur} and {self.weak_blur}.")
        if min(self.steps, self.particle_steps) < 1 or self.samples < 2 * PATHS or self.samples % 2:
            raise ValueError(
                f"steps must be at least 1, and samples even and at least {2 * PATHS}, got {self.steps}, {self.particle_steps} "
                f"and {self.samples}."
            )
        if self.scale not in self.scales:
            raise ValueError(f"scales must include scale, {self.scale:g}, got {self.scales}.")


class World(NamedTuple):
    """The exact trees, and the blurred trees of the networks.

    Args:
      truth: The exact distribution of the two classes.
      model: The distribution of the network: the truth, blurred.
      weaker: The distribution of the weaker guide: the truth, blurred more.
      branches: The number of each component's branch, `[K]`.
      shares: The weight of each branch, over both classes.
      edge: The log-density that 99 % of exact samples exceed.
      clean: The noise level of clean data.
    """

    truth: gj.oracles.GaussianMixture
    model: gj.oracles.GaussianMixture
    weaker: gj.oracles.GaussianMixture
    branches: Array
    shares: Array
    edge: Array
    clean: gj.NoiseLevel


def grow(config: Config) -> World:
    """Two classes, each with 15 bent branches in four generations. They are point reflections of each other."""
    pieces, number, components = (6, 4, 3, 2), itertools.count(), []

    def bough(x: np.ndarray, angle: float, bend: float, length: float, weight: float, label: int, age: int = 0) -> None:
        branch, n, last = next(number), pieces[age], age + 1 == len(pieces)
        for i in range(n):
            a = angle + bend * (i + 0.5) / n
            axes = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
            covariance = axes.T @ np.diag([0.45 * length / n, 0.03 * 0.8**age]) ** 2 @ axes
            components.append((x + axes[0] * length / n / 2, covariance, (1 if last else 0.3) * weight / n, label, branch))
            x = x + axes[0] * length / n
        if not last:
            for turn, curl in ((0.82, -0.47), (-0.64, -0.73)):
                bough(x, angle + bend + turn, curl * bend, 0.74 * length, 0.35 * weight, label, age + 1)

    for label, side in enumerate((1.0, -1.0)):
        bough(side * np.array([-1.55, -0.53]), np.pi * label - 0.63, 1.73, 0.8, 0.5, label)
    means, covariances, weights, labels, branches = (np.array(column) for column in zip(*components, strict=True))

    @jax.jit
    def world() -> World:
        mean, covariance, weight = (jnp.asarray(x, jnp.float32) for x in (means, covariances, weights))
        truth, model, weaker = (
            gj.oracles.GaussianMixture(mean, covariance + blur**2 * jnp.eye(2)[None], weight, jnp.asarray(labels))
            for blur in (0.0, config.blur, config.weak_blur)
        )
        y, clean = classes(50_000), gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))
        x = truth.sample(jax.random.key(config.seed + 1), len(y), y)
        edge = jnp.quantile(truth.log_prob(x, clean, y), 0.01)
        shares = jnp.asarray(np.bincount(branches, weights), jnp.float32)
        return World(truth, model, weaker, jnp.asarray(branches), shares, edge, clean)

    return world()


def classes(n: int) -> Array:
    """The class of each of n samples: 0, 1, 0, 1, ..."""
    return jnp.arange(n) % 2


def measured(config: Config, world: World) -> gj.Calibration:
    """The calibration of CFG for this network, on as many of its own samples."""
    labels, keys = classes(config.samples), jax.random.split(jax.random.key(config.seed + 2), config.samples)
    both = gj.branches(world.model.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
    levels = gj.levels(gj.schedules.edm(), 40, gj.spacings.karras())
    own = world.model.sample(jax.random.key(config.seed + 3), config.samples, labels)
    return gj.calibrate(keys, both, own, levels)


def arguments(config: Config, world: World, curve: gj.Calibration, name: str, keys: Array, scale: Array) -> tuple[Any, ...]:
    """The arguments of `gj.sample` for a method, with one sample per key.

    The classifier is the exact posterior, which is better than a learned one. With the network's own posterior, classifier
    guidance would equal CFG by Bayes' rule.
    """
    labels = classes(len(keys))
    cond, weak = gj.branches(world.model.denoise, cond=labels), gj.branches(world.weaker.denoise, weak=labels)
    uncond = gj.branches(world.model.denoise, uncond=jnp.full_like(labels, -1))
    both = gj.branches(world.model.denoise, **cond.conds, **uncond.conds)
    posterior = lambda x, level: world.truth.class_log_prob(x, level, labels)
    calibrated = gj.cfg(gj.scales.calibrated(curve, scale))
    networks, guidance = {
        "unguided": (cond, gj.chain()),
        "weaker guide": (weak, gj.chain()),
        "autoguidance": ((cond, weak), gj.autoguidance(scale)),
        "CFG": (both, gj.cfg(scale)),
        "classifier": (uncond, gj.classifier(posterior, scale)),
        "interval": (both, gj.during(gj.cfg(scale), *config.interval)),
        "APG": (both, gj.apg(scale, max_norm=0.2)),
        "calibrated": (both, calibrated),
        "both": ((both, weak), gj.chain(calibrated, gj.autoguidance(3.0))),
    }[name]
    levels = gj.levels(gj.schedules.edm(), config.steps, gj.spacings.karras())
    return keys, networks, guidance, gj.dpmpp_2m(), levels, (2,)


def worth(world: World, x: Array) -> dict[str, Array]:
    """The quality of samples under the exact density.

    `mode_distance` is the total variation of the branch weights. A sample counts for its most probable branch.
    """
    labels, truth, count = classes(len(x)), world.truth, len(world.shares)
    log_p = truth.log_prob(x, world.clean, labels)
    along = jnp.einsum("kde,bkd->bke", truth.axes, x[:, None] - truth.means[None])
    log_joint = truth.log_weights[None] - 0.5 * (along**2 / truth.variances[None] + jnp.log(truth.variances)[None]).sum(2)
    branch = (jax.nn.softmax(log_joint) @ jax.nn.one_hot(world.branches, count)).argmax(1)
    return {
        "log_likelihood": log_p.mean(),
        "off_tree": (log_p < world.edge).mean(),
        "mode_distance": jnp.abs(jax.nn.one_hot(branch, count).mean(0) - world.shares).sum() / 2,
        "accuracy": (truth.class_log_prob(x, world.clean, labels) > jnp.log(0.5)).mean(),
    }


def study(config: Config, world: World, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Samples of each method at each scale, `x [S, n, 2]`, and their quality, `[S]`, by one program.

    The first row has as many exact samples. Their numbers show the sampling noise. `paths`
    are those of the first samples of class 0, `[S, steps, PATHS, 2]`; NaN where there are none.
    """
    keys = jax.random.split(jax.random.key(config.seed), config.samples)
    curve = jax.jit(functools.partial(measured, config, world))()

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def at(scale: Array, keys: Array) -> dict[str, Array]:
        x, counts = [world.truth.sample(keys[0], len(keys), classes(len(keys)))], [jnp.int32(0)]
        paths = [jnp.full((config.steps, PATHS, 2), jnp.nan)]
        for name in names:
            first = lambda state: state.x[: 2 * PATHS : 2]
            state, path = gj.run(*arguments(config, world, curve, name, keys, scale), trace=first)
            x.append(state.x)
            paths.append(path)
            counts.append(state.evaluations)
        quality = jax.vmap(worth, in_axes=(None, 0))(world, jnp.stack(x))
        return {"x": jnp.stack(x), "paths": jnp.stack(paths), **quality, "evaluations": jnp.stack(counts)}

    found = jax.tree.map(np.asarray, at(jnp.array(config.scales), keys))
    return {name: {key: value[:, i] for key, value in found.items()} for i, name in enumerate(("truth", *names))}


def particles(config: Config, world: World) -> dict[str, Any]:
    """The row of the particles, which sample the network's tilted density at `config.scale`: one group per class."""
    keys = jax.random.split(jax.random.key(config.seed), config.samples)
    half = len(keys) // 2
    labels = jnp.repeat(jnp.arange(2), half)
    both = gj.branches(world.model.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
    levels = gj.levels(gj.schedules.edm(), config.particle_steps, gj.spacings.karras())

    @jax.jit
    def moved(keys: Array, scale: Array) -> dict[str, Array]:
        found = gj.feynman_kac(keys, both, gj.targets.tilted(scale), PARTICLES, levels, (2,), size=half)
        drawn = jax.vmap(gj.particles.systematic)(keys[:2], found.log_weights.reshape(2, half))
        x = jnp.take_along_axis(found.x.reshape(2, half, 2), drawn[:, :, None], axis=1)
        x = x.swapaxes(0, 1).reshape(-1, 2)  # The classes alternate.
        return {"x": x, **worth(world, x), "evaluations": found.evaluations}

    return jax.tree.map(np.asarray, moved(keys, jnp.float32(config.scale)))


def picture(config: Config, world: World, rows: dict[str, dict[str, Any]]) -> None:
    """Samples of class 0 and some of their paths on the exact density, one panel per method."""
    (left, right), (low, high) = WINDOW
    across, up = np.linspace(left, right, 480), np.linspace(low, high, 460)
    grid = jnp.asarray(np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2), jnp.float32)
    density = jax.jit(lambda x, y: world.truth.log_prob(x, world.clean, jnp.full(len(x), y)) - world.edge)
    own, other = (density(grid, y).reshape(len(up), len(across)) for y in (0, 1))
    halves = [0, *np.quantile(np.asarray(density(rows["truth"]["x"][::2], 0)), (0.4, 0.75)), np.inf]
    ratios = np.asarray(gj.levels(gj.schedules.edm(), config.steps, gj.spacings.karras()).ratio)[1:]
    seen = ratios < FAR
    with plt.style.context(pictures.STYLE):
        figure, axes = plt.subplots(2, 4, figsize=(11, 7.0))
        for axis, name in zip(axes.flat, PANELS, strict=True):
            row, color = rows[name], METHODS[SHOWN[name].method]
            axis.contourf(across, up, other, levels=[0, np.inf], colors=["#f4f4f4"])
            axis.contourf(across, up, own, levels=halves, colors=["#e4e4e4", "#d2d2d2", "#bdbdbd"])
            axis.contour(across, up, own, levels=[0], colors=MUTED, linewidths=0.6)
            axis.scatter(*row["x"][::2].T, s=5, color=color, alpha=0.6, linewidths=0)
            for path in row["paths"][seen].swapaxes(0, 1) if "paths" in row else ():
                steps = np.stack([path[:-1], path[1:]], axis=1)
                axis.add_collection(LineCollection(list(steps), colors=INK, alpha=1 - ratios[seen][:-1] / FAR, linewidths=0.9))
                axis.plot(*path[-1], "o", ms=3.4, color=INK, mec="white", mew=0.4)
            axis.set_title(SHOWN[name].title, fontsize=13, fontweight="bold", pad=23)
            numbers = f"{100 * row['off_tree']:.0f} % off the tree, TV {row['mode_distance']:.2f}"
            axis.text(0.5, 1.025, numbers, transform=axis.transAxes, ha="center", va="bottom", fontsize=12.5)
            axis.set(xlim=(left, right), ylim=(low, high), aspect="equal")
            axis.axis("off")
        handles = [
            Patch(facecolor="#d2d2d2", edgecolor=MUTED, lw=0.6, label="exact density of the class"),
            Patch(facecolor="#f4f4f4", label="the other class"),
            Line2D([], [], color=METHODS["cfg"], marker="o", ms=4, ls="none", label=f"{config.samples // 2:,} samples"),
            Line2D([], [], color=INK, marker="o", ms=4, lw=1, label=f"{PATHS} paths from the same noise"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, columnspacing=1.6)
        figure.set_layout_engine("constrained", h_pad=0.05, w_pad=0.02, hspace=0.04, wspace=0.0)
        pictures.save(figure, config.out / "overview.png")


def curves(config: Config, found: dict[str, dict[str, Any]]) -> None:
    """Log-likelihood and total variation of the branch weights over the scale, and one against the other."""
    with plt.style.context(pictures.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(11, 5.2))
        fit, off = ({name: row[key] for name, row in found.items()} for key in ("log_likelihood", "mode_distance"))
        for name in ("CFG", "interval", "APG", "autoguidance", "calibrated", "both"):
            line: Any = {"color": METHODS[SHOWN[name].method], "label": SHOWN[name].title, "marker": "o"}
            axes[0].plot(config.scales, fit[name], **line)
            axes[1].plot(config.scales, off[name], **line)
            axes[2].plot(off[name], fit[name], **line)
        for axis, exact in zip(axes[:2], (fit["truth"][0], off["truth"][0]), strict=True):
            axis.axhline(exact, color=INK, lw=1.2, ls=":", label="exact samples")
        axes[2].plot(off["truth"][0], fit["truth"][0], "*", color=INK, ms=12)
        fidelity, diversity = "log-likelihood", "total variation"
        axes[0].set(title="Log-likelihood of samples\nunder the true density", xlabel="guidance scale", ylabel=fidelity)
        axes[1].set(title="Total variation of\nthe branch weights", xlabel="guidance scale", ylabel=diversity)
        axes[2].set(title="Log-likelihood against\ntotal variation (labels: scale)", xlabel=diversity, ylabel=fidelity)
        handles, labels = axes[0].get_legend_handles_labels()
        handles.append(Line2D([], [], color=INK, marker="*", ms=12, ls="none"))
        figure.legend(handles, [*labels, "exact samples (right panel)"], loc="outside lower center", ncols=3)
        labelled = [
            (name, i) for name in ("CFG", "autoguidance") for i, scale in enumerate(config.scales) if scale in (2, 4, 6)
        ]
        color = {name: METHODS[SHOWN[name].method] for name, _ in labelled}
        points = [(off[name][i], fit[name][i], f"{config.scales[i]:g}", color[name]) for name, i in labelled]
        pictures.label_points(axes[2], points)
        pictures.save(figure, config.out / "curves.png")


def main(config: Config) -> dict[str, dict[str, Any]]:
    """Print the tables and draw the pictures. Returns the table with one row per method."""
    if config.smoke:
        out = config.out / "smoke"
        config = dataclasses.replace(config, steps=16, samples=600, scales=(1.0, config.scale), out=out)
    config.out.mkdir(parents=True, exist_ok=True)
    known = {"samples": f"{len(UNGUIDED) + len(GUIDED) + 1} methods at {len(config.scales)} scales", "pictures": ""}
    stages = Stages("Guidance in the plane" + ("" if config.smoke else ", about a minute on 2 CPU cores"), known)
    with stages("samples"):
        world = grow(config)
        found = study(config, world, (*UNGUIDED, *GUIDED))
        moved = particles(config, world)
    rows = {name: {key: value[config.scales.index(config.scale)] for key, value in row.items()} for name, row in found.items()}
    rows["particles"] = moved
    labels = {
        "truth": "exact samples",
        "particles": "particles, of the tilted density",
        "calibrated": "CFG, calibrated",
        "both": "CFG, calibrated, and autoguidance at 3",
    }
    print(f"Two trees, a network with blur {config.blur:g} and a guide with blur {config.weak_blur:g}, scale {config.scale:g},")
    print(f"{config.steps} steps, {config.samples} samples. The total variation of exact samples is sampling noise.")
    headings = "log-likelihood under the truth   outside of the tree   total variation of the branch weights"
    print(f"  {'':38s} {headings}   class accuracy   network calls")
    for name, row in rows.items():
        fidelity = f"{row['log_likelihood']:30.3f}   {row['off_tree']:19.3f}   {row['mode_distance']:37.3f}"
        print(f"  {labels.get(name, name):38s} {fidelity}   {row['accuracy']:14.4f}   {row['evaluations']:13d}")
    print(f"Total variation of the branch weights at scales {', '.join(f'{scale:g}' for scale in config.scales)}:")
    for name in ("CFG", "interval", "APG", "calibrated", "both"):
        print(f"  {labels.get(name, name):38s} " + "  ".join(f"{value:6.3f}" for value in found[name]["mode_distance"]))
    fit = "  ".join(f"{value:6.3f}" for value in found["both"]["log_likelihood"])
    print(f"Log-likelihood of the calibrated scale with autoguidance at 3, at these scales: {fit}")
    with stages("pictures"):
        picture(config, world, rows)
        curves(config, found)
    numbers = {
        name: {k: v.tolist() for k, v in row.items() if k not in ("x", "paths")}
        for name, row in {**found, "particles": moved}.items()
    }
    (config.out / "metrics.json").write_text(json.dumps({"scales": config.scales, **numbers}, indent=1))
    print(f"Open {config.out / 'overview.png'} first. Curves and metrics are beside it.")
    return rows


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")  # the world is exact on every device
    main(tyro.cli(Config))
