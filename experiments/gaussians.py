"""The densities that guidance samples, on Gaussians with known closed forms.

`python -m experiments.gaussians` uses two Gaussians, p(x | y) = N(0, v_c) and p(x) = N(0, v_u). It measures the variance of
samples by CFG with DDIM and with DDPM. It compares them with their closed forms, and with the tilted density
p(x)^(1 - w) p(x | y)^w. CFG is often said to sample that density, but does not (Bradley & Nakkiran 2024, arXiv:2408.09000).
Weighted particles do sample it (Feynman-Kac correctors, Skreta et al. 2025, arXiv:2503.02819). The job shows this for the
Gaussians and for mixtures in the plane. Nothing is trained.
"""

import dataclasses
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jax import Array
from jaxtyping import ArrayLike
from matplotlib.lines import Line2D

import guidance_jax as gj
from experiments.tools import pictures
from experiments.tools.pictures import INK, METHODS, MUTED


@dataclasses.dataclass(frozen=True)
class Config:
    """The densities that guidance samples.

    Args:
      out: The directory for pictures and `metrics.json`.
      conditional_variance: v_c, the variance of p(x | y).
      unconditional_variance: v_u, the variance of p(x).
      scales: Guidance scales of the table of variances.
      steps: Number of sampler steps.
      samples: Number of samples per scale, in the tables and in the picture.
      particles: Number of particles per group. It must divide the number of samples.
      tilted_scales: Guidance scales of the mixture's table. Each must be at least 1.
      tilted_steps: Number of sampler steps of the particles and in the mixture's table.
      counts: Numbers of sampler steps in the table of the particles' errors. Its scale is the first of `tilted_scales`.
      picture_scale: The guidance scale of the picture.
      seed: The seed of the samples.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    out: Path = Path("out/gaussians")
    conditional_variance: float = 0.5
    unconditional_variance: float = 2.0
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    steps: int = 1000
    samples: int = 20_000
    particles: int = 2000
    tilted_scales: tuple[float, ...] = (2.0, 3.0, 5.0)
    tilted_steps: int = 200
    counts: tuple[int, ...] = (10, 20, 40, 80, 160)
    picture_scale: float = 3.0
    seed: int = 0
    smoke: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.conditional_variance < self.unconditional_variance:
            raise ValueError(
                "conditional_variance must be positive and below unconditional_variance, got "
                f"{self.conditional_variance} and {self.unconditional_variance}."
            )
        if self.steps < 1 or self.samples < 2:
            raise ValueError(f"steps must be at least 1 and samples at least 2, got {self.steps} and {self.samples}.")
        if self.particles < 2 or self.samples % self.particles or self.samples < 2 * self.particles:
            raise ValueError(
                f"samples must make at least two groups of {self.particles} particles, without remainder, got {self.samples}."
            )
        if min(self.tilted_scales) < 1:
            raise ValueError(f"tilted_scales must be at least 1, got {self.tilted_scales}.")


def closed_forms(w: float, v_c: float, v_u: float) -> dict[str, float]:
    """The variances of the three densities. `tilted` is infinite if the tilted density cannot be normalised."""
    precision = w / v_c + (1 - w) / v_u
    if w == 0.5:  # the limit: numerator and denominator vanish
        ddpm = v_c * v_u * np.log(v_u / v_c) / (v_u - v_c)
    else:
        ddpm = (v_c * v_u - v_c ** (2 * w) * v_u ** (2 - 2 * w)) / ((v_u - v_c) * (2 * w - 1))
    return {"tilted": 1 / precision if precision > 0 else np.inf, "ddim": v_c**w * v_u ** (1 - w), "ddpm": float(ddpm)}


def gaussian(variance: float) -> gj.oracles.GaussianMixture:
    return gj.oracles.GaussianMixture(jnp.zeros((1, 1)), jnp.full((1, 1, 1), variance), jnp.ones(1), jnp.zeros(1, int))


def known(v_c: float, v_u: float) -> gj.Curve:
    """The ratio of the variances of the two posteriors. That of N(0, v) is `v s^2 / (v + s^2)`."""
    ratio = jnp.geomspace(1e-3, 1e4, 200)
    return gj.Curve(ratio, v_c * (v_u + ratio**2) / (v_u * (v_c + ratio**2)))


def measured(config: Config) -> dict[str, Array]:
    """The variance of samples and of particles at each scale, by one program that is vmapped over the scales."""
    levels = gj.levels(gj.schedules.edm(0.002, 200.0), config.steps, gj.spacings.karras())
    fewer = gj.levels(gj.schedules.edm(0.01, 40.0), config.tilted_steps, gj.spacings.karras())
    keys = jax.random.split(jax.random.key(config.seed), config.samples)
    label = jnp.zeros(config.samples, int)
    curve = known(config.conditional_variance, config.unconditional_variance)
    branches = (
        gj.branches(gaussian(config.conditional_variance).denoise, cond=label),
        gj.branches(gaussian(config.unconditional_variance).denoise, uncond=label),
    )

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def variances(scale: Array, keys: Array) -> dict[str, Array]:
        samplers = {"ddim": gj.ddim(), "ddpm": gj.ddpm()}
        samples = {name: gj.sample(keys, branches, gj.cfg(scale), sampler, levels, (1,)) for name, sampler in samplers.items()}
        calibrated = gj.cfg(gj.scales.calibrated(curve, scale))
        samples["calibrated"] = gj.sample(keys, branches, calibrated, gj.ddim(), levels, (1,))
        target = gj.targets.tilted(scale)
        found = gj.feynman_kac(keys, branches, target, PARTICLES, fewer, (1,), size=config.particles)
        square, error = pooled(found, found.x**2)
        return jax.tree.map(lambda x: x.var(), samples) | {"tilted": square[0], "tilted_error": error[0]}

    return variances(jnp.array(config.scales), keys)


PARTICLES = gj.heun_sde(2.0)
"""The sampler of the particles. It adds more noise than the reverse SDE, which keeps the weights even."""


def pooled(found: gj.particles.Particles, values: Array) -> tuple[Array, Array]:
    """The weighted means of `values [B, D]` and their standard errors. A group's weight is its normaliser."""
    groups = len(found.log_normaliser)
    each = (jnp.exp(found.log_weights)[:, None] * values).reshape(groups, -1, values.shape[1]).sum(1)
    share = jax.nn.softmax(found.log_normaliser)[:, None]
    mean = (share * each).sum(0)
    return mean, jnp.sqrt((share**2 * (each - mean[None]) ** 2).sum(0) * groups / (groups - 1))


SAMPLERS = {
    "heun_sde(2.0)": (PARTICLES, False),
    "heun_sde()": (gj.heun_sde(), False),
    "heun()": (gj.heun(), False),
    'ddpm("small"), kernels': (gj.ddpm(), True),
    'ddpm("large"), kernels': (gj.ddpm("large"), True),
}
"""The samplers in the table of steps, and whether ratios of kernels give the weights."""


def errors_of_steps(config: Config) -> list[dict[str, Any]]:
    """The particles' variance and log-normaliser, relative to the tilted Gaussian's: one row per sampler and step count."""
    v_c, v_u, w = config.conditional_variance, config.unconditional_variance, config.tilted_scales[0]
    variance = closed_forms(w, v_c, v_u)["tilted"]
    log_normaliser = (np.log(variance) - w * np.log(v_c) - (1 - w) * np.log(v_u)) / 2
    keys, label = jax.random.split(jax.random.key(config.seed), config.samples), jnp.zeros(config.samples, int)
    branches = gj.branches(gaussian(v_c).denoise, cond=label), gj.branches(gaussian(v_u).denoise, uncond=label)

    def row(name: str, steps: int) -> dict[str, Any]:
        sampler, kernels = SAMPLERS[name]
        levels = gj.levels(gj.schedules.cosine(), steps, gj.spacings.karras())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning of too few steps, which are tested here
            found = gj.feynman_kac(
                keys, branches, gj.targets.tilted(w), sampler, levels, (1,), size=config.particles, kernels=kernels
            )
        square, error = pooled(found, found.x**2)
        return {
            "sampler": name,
            "steps": steps,
            "variance": float(square[0] / variance),
            "variance_error": float(error[0] / variance),
            "log_normaliser": float(jax.nn.logsumexp(found.log_normaliser) - np.log(len(found.spread)) - log_normaliser),
            "spread": float(found.spread.mean()),
            "effective": float(found.effective.mean() / config.particles),
        }

    return [row(name, steps) for name in SAMPLERS for steps in config.counts]


def two_modes() -> gj.oracles.GaussianMixture:
    """A class with two modes in the plane. One mode is near the other class, and the tilted density has less of it."""
    means = jnp.array([[-1.5, 0.0], [1.0, 0.8], [1.8, -0.6]])
    spreads = jnp.array([[0.3, 0.6], [0.4, 0.3], [0.5, 0.5]])
    return gj.oracles.GaussianMixture(means, jax.vmap(jnp.diag)(spreads), jnp.array([0.3, 0.3, 0.4]), jnp.array([0, 0, 1]))


CLEAN = gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))
MOMENTS = ("mean", "variance", "share")


def statistics(x: Array, mean: ArrayLike) -> Array:
    """The values to average, `[B, 3]`: the first coordinate, its squared deviation, and whether x is in the left mode."""
    return jnp.stack([x[:, 0], (x[:, 0] - mean) ** 2, (x[:, 0] < -0.25).astype(x.dtype)], axis=1)


def named(means: ArrayLike, errors: ArrayLike | None = None) -> dict[str, float]:
    """The means of `statistics` and their standard errors, by name."""
    values: dict[str, float] = dict(zip(MOMENTS, np.asarray(means).tolist(), strict=True))
    if errors is None:
        return values
    return values | {f"{name}_error": error for name, error in zip(MOMENTS, np.asarray(errors).tolist(), strict=True)}


def exact(mixture: gj.oracles.GaussianMixture, w: float) -> dict[str, float]:
    """The tilted density's moments and log-normaliser, by the midpoint rule. The left mode ends at the edge of a cell."""
    side = (np.arange(240) + 0.5) / 20 - 6
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
    density = np.exp(np.asarray(mixture.log_tilted(grid, CLEAN, jnp.zeros(len(grid), int), w), np.float64))
    share = density / density.sum()
    means = share @ np.asarray(statistics(grid, share @ np.asarray(grid[:, 0])), np.float64)
    return named(means) | {"log_normaliser": float(np.log(density.sum() * (side[1] - side[0]) ** 2))}


def tilted(config: Config) -> list[dict[str, Any]]:
    """The moments of the tilted density, of CFG by ODE and SDE, and of particles: one row per scale and method.

    All samples use the same keys.
    """
    mixture, n = two_modes(), config.samples
    levels = gj.levels(gj.schedules.edm(0.01, 40.0), config.tilted_steps, gj.spacings.karras())
    keys, labels = jax.random.split(jax.random.key(config.seed), n), jnp.zeros(n, int)
    branches = gj.branches(mixture.denoise, cond=labels, uncond=labels - 1)

    curve = gj.calibrate(keys, branches, mixture.sample(jax.random.key(config.seed + 1), n, labels), levels)

    def plain(keys: Array, scale: Any, sampler: gj.Sampler) -> tuple[Array, Array]:
        x = gj.sample(keys, branches, gj.cfg(scale), sampler, levels, (2,))
        values = statistics(x, x[:, 0].mean())
        return values.mean(0), values.std(0) / np.sqrt(n)

    @jax.jit
    def ways(keys: Array, scale: Array) -> Any:
        target = gj.targets.tilted(scale)
        found = gj.feynman_kac(keys, branches, target, PARTICLES, levels, (2,), size=config.particles)
        weighted = pooled(found, statistics(found.x, pooled(found, found.x)[0][0]))
        calibrated = plain(keys, gj.scales.calibrated(curve, scale), gj.heun())
        return plain(keys, scale, gj.heun()), plain(keys, scale, gj.heun_sde()), calibrated, found, weighted

    rows = []
    for w in config.tilted_scales:
        ode, sde, calibrated, found, weighted = ways(keys, jnp.float32(w))
        normaliser = np.exp(np.asarray(found.log_normaliser, np.float64))
        extra = {
            "log_normaliser": float(np.log(normaliser.mean())),
            "log_normaliser_error": float(normaliser.std(ddof=1) / normaliser.mean() / np.sqrt(len(normaliser))),
            "effective": float(found.effective.mean()),
            "least": float(found.least.min()),
            "ancestors": float(np.median(found.ancestors)),
        }
        rows.append({"scale": w, "way": "exact", **exact(mixture, w)})
        rows.append({"scale": w, "way": "CFG, ODE", **named(*ode)})
        rows.append({"scale": w, "way": "CFG, SDE", **named(*sde)})
        rows.append({"scale": w, "way": "calibrated", **named(*calibrated)})
        rows.append({"scale": w, "way": "particles", **named(*weighted), **extra})
    return rows


def flower() -> gj.oracles.GaussianMixture:
    """Three classes in the plane, each with two elongated, overlapping Gaussians."""
    angles = jnp.arange(6) * (jnp.pi / 3) + 0.3
    along = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    across = jnp.stack([-jnp.sin(angles), jnp.cos(angles)], axis=1)
    covariances = 0.5 * jnp.einsum("ki,kj->kij", along, along) + 0.08 * jnp.einsum("ki,kj->kij", across, across)
    return gj.oracles.GaussianMixture(1.6 * along, covariances, jnp.ones(6), jnp.arange(6) // 2)


def picture(config: Config) -> dict[str, float]:
    """Draw samples of one class in the plane, unguided and guided, and the tilted density."""
    mixture, w = flower(), config.picture_scale
    n = config.samples
    levels = gj.levels(gj.schedules.edm(0.002, 80.0), min(config.steps, 200), gj.spacings.karras())
    keys = jax.random.split(jax.random.key(config.seed), n)
    labels = jnp.zeros(n, int)
    branches = gj.branches(mixture.denoise, cond=labels, uncond=jnp.full(n, -1))
    generate = jax.jit(lambda keys, scale: gj.sample(keys, branches, gj.cfg(scale), gj.ddim(), levels, (2,)))
    ancestral = jax.jit(lambda keys, scale: gj.sample(keys, branches, gj.cfg(scale), gj.ddpm(), levels, (2,)))

    side = np.linspace(-4.0, 4.0, 240)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
    conditional = mixture.log_prob(grid, CLEAN, jnp.zeros(len(grid), int))
    unconditional = mixture.log_prob(grid, CLEAN, jnp.full(len(grid), -1))

    def density(log_p: Array) -> np.ndarray:
        p = np.exp(np.asarray(log_p - log_p.max())).reshape(len(side), len(side))
        return p / p.sum()

    tilted = density((1 - w) * unconditional + w * conditional)
    found = gj.feynman_kac(keys, branches, gj.targets.tilted(w), PARTICLES, levels, (2,), size=config.particles)
    weights = found.log_weights + jnp.repeat(found.log_normaliser, config.particles)
    drawn = gj.particles.systematic(jax.random.key(config.seed), weights)
    shown = {
        "unguided: p(x | y)": (generate(keys, 1.0), density(conditional)),
        f"CFG at {w:g}, DDIM": (generate(keys, w), tilted),
        f"CFG at {w:g}, DDPM": (ancestral(keys, w), tilted),
        f"CFG at {w:g}, particles": (found.x[drawn], tilted),
    }
    everything, heights = density(unconditional), np.array([0.05, 0.2, 0.4, 0.6, 0.8])
    edges = np.linspace(-4.0, 4.0, 61)
    coarse = tilted.reshape(60, 4, 60, 4).sum((1, 3))
    distances = {}
    with plt.style.context(pictures.STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(10, 7.6))
        ways = {
            "conditional": "no guidance\nsamples of p(x | y)",
            "cfg": f"CFG by DDIM, scale {w:g}",
            "cfg_sde": f"CFG by DDPM, scale {w:g}",
            "particles": f"particles, scale {w:g}",
        }
        for axis, (way, caption), (title, (samples, law)) in zip(axes.flat, ways.items(), shown.items(), strict=False):
            points = np.asarray(samples)
            axis.scatter(*points[:: max(1, len(points) // 1500)].T, s=4, color=METHODS[way], alpha=0.6, linewidths=0)
            axis.contour(side, side, law, levels=heights * law.max(), colors=INK, linewidths=0.9)
            histogram = np.histogram2d(points[:, 1], points[:, 0], bins=(edges, edges))[0] / len(points)
            if law is tilted:
                distances[title] = float(np.abs(histogram - coarse).sum() / 2)
                caption += f"\ntotal variation: {distances[title]:.2f}"
            axis.set_title(caption)
        axes[1, 1].contourf(side, side, tilted, levels=np.linspace(0.02, 1, 12) * tilted.max(), cmap="Greys")
        axes[1, 1].set_title(f"tilted density\n$p(x)^{{{1 - w:g}}} p(x \\mid y)^{{{w:g}}}$")
        for axis in axes.flat[:5]:
            line: Any = {"colors": "#aaaaaa", "linewidths": 0.5, "zorder": 0.5}
            axis.contour(side, side, everything, levels=heights * everything.max(), **line)
            axis.set(xlim=(-3.2, 3.9), ylim=(-3.3, 3.8), aspect="equal", xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
        axes[1, 2].axis("off")
        lines = {"p(x), all classes": "#aaaaaa", "p(x | y) of the class (first panel),\ntilted density (other panels)": INK}
        handles = [Line2D([], [], color=color, label=label) for label, color in lines.items()]
        handles += [Line2D([], [], marker="o", ls="none", color=MUTED, label="samples")]
        handles += [Line2D([], [], ls="none", label="total variation: distance to\nthe tilted density")]
        axes[1, 2].legend(handles=handles, loc="center left", labelspacing=1.0, bbox_to_anchor=(-0.1, 0.5))
        pictures.save(figure, config.out / "mixture.png")
    return distances


def plot(config: Config, rows: list[dict[str, Any]]) -> None:
    w = np.linspace(min(config.scales), max(config.scales), 401)
    w = w[np.abs(w - 0.5) > 1e-3]
    forms = [closed_forms(x, config.conditional_variance, config.unconditional_variance) for x in w]
    with plt.style.context(pictures.STYLE):
        figure, axis = plt.subplots(figsize=(9, 6.2))
        names = {
            "tilted": ("tilted density, closed form", "particles, sampled", METHODS["exact"], METHODS["particles"]),
            "ddim": ("CFG by DDIM, closed form", "CFG by DDIM, sampled", METHODS["cfg"], METHODS["cfg"]),
            "ddpm": ("CFG by DDPM, closed form", "CFG by DDPM, sampled", METHODS["cfg_sde"], METHODS["cfg_sde"]),
        }
        for law, (form, sampled, color, own) in names.items():
            axis.plot(w, [form[law] for form in forms], color=color, label=form)
            found = [row[f"{law}_measured"] for row in rows]
            size = 12 if law == "tilted" else 8
            axis.plot(config.scales, found, "o", ms=size, mew=1.6, mfc="none", color=own, label=sampled)
        found = [row["calibrated_measured"] for row in rows]
        axis.plot(config.scales, found, "x", ms=8, mew=2, color=METHODS["calibrated"], label="calibrated CFG by DDIM, sampled")
        axis.set(yscale="log", xlabel="guidance scale", ylabel="variance of the samples")
        axis.set_title("Variance of the samples over the guidance scale")
        figure.legend(loc="outside lower center", ncols=2)
        pictures.save(figure, config.out / "variance.png")


def plot_tilted(config: Config, rows: list[dict[str, Any]]) -> None:
    w = np.linspace(1.0, max(config.tilted_scales), 17)
    law = [exact(two_modes(), x) for x in w]
    names = {
        "mean": "Mean of the first coordinate",
        "variance": "Variance of the first coordinate",
        "share": "Weight of the left mode",
        "log_normaliser": "Log-normaliser",
    }
    ways = {
        "CFG, ODE": ("cfg", "o", -0.1),
        "CFG, SDE": ("cfg_sde", "s", 0.0),
        "calibrated": ("calibrated", "D", 0.1),
        "particles": ("particles", "^", 0.0),
    }
    with plt.style.context(pictures.STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10, 8))
        for axis, (name, title) in zip(axes.flat, names.items(), strict=True):
            axis.plot(w, [form[name] for form in law], color=METHODS["exact"], label="tilted density")
            for way, (method, marker, shift) in ways.items():
                mine = [row for row in rows if row["way"] == way and name in row]
                if mine:
                    at, values = [row["scale"] + shift for row in mine], [row[name] for row in mine]
                    errors = [2 * row[f"{name}_error"] for row in mine]
                    style: Any = {"fmt": marker, "ms": 7, "mfc": "none", "mew": 1.6, "capsize": 3}
                    label = "CFG, calibrated, ODE" if way == "calibrated" else way
                    axis.errorbar(at, values, errors, color=METHODS[method], label=label, **style)
            axis.set(title=title, xlabel="guidance scale", ylabel=title.split()[0].lower())
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.suptitle("CFG and particles against the tilted density (bars: 2 standard errors)")
        pictures.save(figure, config.out / "tilted.png")


def main(config: Config) -> list[dict[str, Any]]:
    """Print the tables and draw the pictures. Returns the table of variances."""
    if config.smoke:
        few = {"steps": 40, "samples": 500, "particles": 100, "tilted_steps": 40, "counts": (40,), "tilted_scales": (2.0,)}
        config = dataclasses.replace(config, **few, out=config.out / "smoke")
    config.out.mkdir(parents=True, exist_ok=True)
    v_c, v_u = config.conditional_variance, config.unconditional_variance
    found = measured(config)
    rows = []
    print(f"Variance, p(x|y) = N(0, {v_c:g}), p(x) = N(0, {v_u:g}), {config.steps} steps, {config.samples} samples")
    print("  scale   tilted: closed   particles   DDIM: closed   sampled   DDPM: closed   sampled   DDIM, calibrated")
    for i, w in enumerate(config.scales):
        forms = closed_forms(w, v_c, v_u)
        row = {
            "scale": w,
            **forms,
            **{f"{law}_measured": float(found[law][i]) for law in ("ddim", "ddpm", "tilted", "calibrated")},
        }
        row["tilted_error"] = float(found["tilted_error"][i])
        rows.append(row)
        print(
            f"  {w:5.1f}   {row['tilted']:14.5f} {row['tilted_measured']:11.5f}"
            f"   {row['ddim']:12.5f} {row['ddim_measured']:9.5f}"
            f"   {row['ddpm']:12.5f} {row['ddpm_measured']:9.5f}   {row['calibrated_measured']:16.5f}"
        )
    error = np.sqrt(2 / config.samples)
    print(f"The relative standard error of the sampled columns is {error:.1%}. Every scale uses the same noise.")
    worst = max(row["tilted_error"] / row["tilted"] for row in rows)
    print(f"The maximum relative standard error of the particles' column is {worst:.1%}.")
    plot(config, rows)

    steps = errors_of_steps(config)
    print(
        f"Particles at w = {config.tilted_scales[0]:g} by the number of steps, ± two standard errors. The variance is relative"
    )
    print(
        "to that of the tilted density, and the spread is the run's own estimate of it. The effective sample size is relative"
    )
    print("to the number of particles.")
    print("  sampler                  steps   variance         error of the log-normaliser   spread   effective sample size")
    for row in steps:
        print(
            f"  {row['sampler']:23s}  {row['steps']:5d}   {row['variance']:.3f} ±{2 * row['variance_error']:.3f}"
            f"   {row['log_normaliser']:27.3f}   {row['spread']:6.3f}   {row['effective']:21.2f}"
        )

    mixed = tilted(config)
    groups = config.samples // config.particles
    size = f"{config.tilted_steps} steps, {groups} groups of {config.particles} particles"
    print(f"A class of two modes, {size}, ± two standard errors. The effective sample size is that")
    print(
        "of a group at the end of the run, and its minimum is over the run. Ancestors is the effective number of particles at"
    )
    print("the start from which those at the end descend. The column left mode has the weight of that mode.")
    headings = "mean            variance        left mode       log-normaliser   effective sample size  minimum  ancestors"
    print(f"  scale  {'':20s} {headings}")
    names = {"calibrated": "CFG, calibrated, ODE"}
    for row in mixed:
        cells = [
            f"{row[name]:7.3f}" + (f" ±{2 * row[name + '_error']:.3f}" if name + "_error" in row else " " * 7)
            for name in MOMENTS
        ]
        end = f"{row['log_normaliser']:7.3f}" if "log_normaliser" in row else ""
        if "effective" in row:
            end += f" ±{2 * row['log_normaliser_error']:.3f}  {row['effective']:21.0f}"
            end += f"  {row['least']:7.0f}  {row['ancestors']:9.0f}"
        print(" ".join([f"  {row['scale']:5.1f}  {names.get(row['way'], row['way']):20s}", "  ".join(cells), "", end]).rstrip())
    plot_tilted(config, mixed)
    distances = picture(config)
    for title, distance in distances.items():
        print(f"{title}: total variation distance to the tilted density: {distance:.2f}")
    (config.out / "metrics.json").write_text(
        json.dumps({"variances": rows, "steps": steps, "tilted": mixed, "mixture": distances}, indent=1)
    )
    print(f"Pictures and metrics are in {config.out}.")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config))
