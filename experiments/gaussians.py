"""What guidance really samples, where everything is known in closed form.

`python -m experiments.gaussians` compares the variance that DDIM and DDPM give with CFG on two Gaussians, p(x | y) = N(0,
v_c) and p(x) = N(0, v_u), to their closed forms and to the tilted density p(x)^(1 - w) p(x | y)^w that CFG is often said
to sample (Bradley & Nakkiran 2024, arXiv:2408.09000); and it paints a mixture in the plane. Nothing is trained.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jax import Array

import guidance_jax as gj
from experiments import pictures
from experiments.pictures import BLUE, GREEN, INK, MUTED, ORANGE


@dataclasses.dataclass(frozen=True)
class Config:
    """What guidance really samples."""

    out: Path = Path("out/gaussians")
    """Where the pictures and `metrics.json` go."""
    conditional_variance: float = 0.5
    """v_c."""
    unconditional_variance: float = 2.0
    """v_u."""
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    """Guidance scales of the table."""
    steps: int = 1000
    """Sampler steps."""
    samples: int = 20_000
    """Samples at each scale, for the measured columns, and in the picture's densities."""
    picture_scale: float = 3.0
    """The guidance scale of the picture."""
    seed: int = 0
    """Of the samples."""
    smoke: bool = False
    """A run of seconds, that shows the way but no result."""

    def __post_init__(self) -> None:
        if not 0 < self.conditional_variance < self.unconditional_variance:
            raise ValueError(
                "the conditional variance must be positive and below the unconditional one, got "
                f"{self.conditional_variance} and {self.unconditional_variance}."
            )
        if self.steps < 1 or self.samples < 2:
            raise ValueError(f"steps must be at least 1 and samples at least 2, got {self.steps} and {self.samples}.")


def closed_forms(w: float, v_c: float, v_u: float) -> dict[str, float]:
    """The variances of the three laws; `tilted` is infinite where that density cannot be normalised."""
    precision = w / v_c + (1 - w) / v_u
    if w == 0.5:  # the limit, where numerator and denominator vanish
        ddpm = v_c * v_u * np.log(v_u / v_c) / (v_u - v_c)
    else:
        ddpm = (v_c * v_u - v_c ** (2 * w) * v_u ** (2 - 2 * w)) / ((v_u - v_c) * (2 * w - 1))
    return {"tilted": 1 / precision if precision > 0 else np.inf, "ddim": v_c**w * v_u ** (1 - w), "ddpm": float(ddpm)}


def gaussian(variance: float) -> gj.oracles.GaussianMixture:
    return gj.oracles.GaussianMixture(jnp.zeros((1, 1)), jnp.full((1, 1, 1), variance), jnp.ones(1), jnp.zeros(1, int))


def measured(config: Config) -> dict[str, Array]:
    """The variance of the samples of each sampler at each scale; one program, vmapped over the scales."""
    levels = gj.levels(gj.schedules.edm(0.002, 200.0), config.steps, gj.spacings.karras())
    keys = jax.random.split(jax.random.key(config.seed), config.samples)
    label = jnp.zeros(config.samples, int)
    branches = (
        gj.branches(gaussian(config.conditional_variance).denoise, cond=label),
        gj.branches(gaussian(config.unconditional_variance).denoise, uncond=label),
    )

    @jax.jit
    @jax.vmap
    def variances(scale: Array) -> dict[str, Array]:
        samplers = {"ddim": gj.ddim(), "ddpm": gj.ddpm()}
        samples = {name: gj.sample(keys, branches, gj.cfg(scale), sampler, levels, (1,)) for name, sampler in samplers.items()}
        return jax.tree.map(lambda x: x.var(), samples)

    return variances(jnp.array(config.scales))


def flower() -> gj.oracles.GaussianMixture:
    """Three classes of two elongated, overlapping petals each, in the plane."""
    angles = jnp.arange(6) * (jnp.pi / 3) + 0.3
    along = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    across = jnp.stack([-jnp.sin(angles), jnp.cos(angles)], axis=1)
    covariances = 0.5 * jnp.einsum("ki,kj->kij", along, along) + 0.08 * jnp.einsum("ki,kj->kij", across, across)
    return gj.oracles.GaussianMixture(1.6 * along, covariances, jnp.ones(6), jnp.arange(6) // 2)


def picture(config: Config) -> dict[str, float]:
    """Samples of one class in the plane: unguided, guided by ODE and SDE, and the tilted density itself."""
    mixture, w = flower(), config.picture_scale
    n = config.samples
    levels = gj.levels(gj.schedules.edm(0.002, 80.0), min(config.steps, 200), gj.spacings.karras())
    keys = jax.random.split(jax.random.key(config.seed), n)
    labels = jnp.zeros(n, int)
    branches = gj.branches(mixture.denoise, cond=labels, uncond=jnp.full(n, -1))
    generate = jax.jit(lambda scale: gj.sample(keys, branches, gj.cfg(scale), gj.ddim(), levels, (2,)))
    ancestral = jax.jit(lambda scale: gj.sample(keys, branches, gj.cfg(scale), gj.ddpm(), levels, (2,)))

    side = np.linspace(-4.0, 4.0, 240)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
    clean = gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))
    conditional = mixture.log_prob(grid, clean, jnp.zeros(len(grid), int))
    unconditional = mixture.log_prob(grid, clean, jnp.full(len(grid), -1))

    def density(log_p: Array) -> np.ndarray:
        p = np.exp(np.asarray(log_p - log_p.max())).reshape(len(side), len(side))
        return p / p.sum()

    tilted = density((1 - w) * unconditional + w * conditional)
    shown = {
        "unguided: p(x | y)": (generate(1.0), density(conditional)),
        f"CFG at {w:g}, DDIM": (generate(w), tilted),
        f"CFG at {w:g}, DDPM": (ancestral(w), tilted),
    }
    everything, heights = density(unconditional), np.array([0.05, 0.2, 0.4, 0.6, 0.8])
    edges = np.linspace(-4.0, 4.0, 61)
    coarse = tilted.reshape(60, 4, 60, 4).sum((1, 3))
    distances = {}
    with plt.rc_context(pictures.STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
        for axis, (title, (samples, law)) in zip(axes, shown.items(), strict=False):
            points = np.asarray(samples)
            axis.contour(side, side, everything, levels=heights * everything.max(), colors=MUTED, linewidths=0.4)
            axis.scatter(*points[:3000].T, s=1.5, color=BLUE, alpha=0.35, linewidths=0)
            axis.contour(side, side, law, levels=heights * law.max(), colors=ORANGE, linewidths=0.9)
            histogram = np.histogram2d(points[:, 1], points[:, 0], bins=(edges, edges))[0] / len(points)
            if law is tilted:
                distances[title] = float(np.abs(histogram - coarse).sum() / 2)
                title += f"\ntotal variation to the tilted law {distances[title]:.2f}"
            axis.set_title(title)
        axes[3].contour(side, side, everything, levels=heights * everything.max(), colors=MUTED, linewidths=0.4)
        axes[3].imshow(tilted, extent=(-4, 4, -4, 4), origin="lower", cmap="Oranges")
        axes[3].set_title(f"the tilted density\np(x)^{1 - w:g} p(x | y)^{w:g}")
        for axis in axes:
            axis.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xticks=[], yticks=[])
        figure.savefig(config.out / "mixture.png")
        plt.close(figure)
    return distances


def plot(config: Config, rows: list[dict[str, Any]]) -> None:
    w = np.linspace(min(config.scales), max(config.scales), 401)
    w = w[np.abs(w - 0.5) > 1e-3]
    forms = [closed_forms(x, config.conditional_variance, config.unconditional_variance) for x in w]
    with plt.rc_context(pictures.STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        lines = {"tilted": ("the tilted density", GREEN), "ddim": ("DDIM", BLUE), "ddpm": ("DDPM", ORANGE)}
        for law, (label, color) in lines.items():
            axis.plot(w, [form[law] for form in forms], color=color, label=f"{label}, closed form")
            if law != "tilted":
                found = [row[f"{law}_measured"] for row in rows]
                axis.plot(config.scales, found, "o", ms=5, mfc="none", color=color, label=f"{label}, sampled")
        axis.set(yscale="log", xlabel="guidance scale", ylabel="variance of the samples", title="What CFG samples")
        axis.title.set_color(INK)
        axis.legend(fontsize=8)
        figure.savefig(config.out / "variance.png")
        plt.close(figure)


def main(config: Config) -> list[dict[str, Any]]:
    """Print the table, paint the pictures; returns the table."""
    if config.smoke:
        config = dataclasses.replace(config, steps=40, samples=500, out=config.out / "smoke")
    config.out.mkdir(parents=True, exist_ok=True)
    v_c, v_u = config.conditional_variance, config.unconditional_variance
    found = measured(config)
    rows = []
    print(f"Variance with CFG, p(x|y) = N(0, {v_c:g}), p(x) = N(0, {v_u:g}), {config.steps} steps, {config.samples} samples")
    print("  scale     tilted   DDIM: closed   sampled   DDPM: closed   sampled")
    for i, w in enumerate(config.scales):
        forms = closed_forms(w, v_c, v_u)
        row = {"scale": w, **forms, **{f"{law}_measured": float(found[law][i]) for law in ("ddim", "ddpm")}}
        rows.append(row)
        print(
            f"  {w:5.1f}  {row['tilted']:9.5f}   {row['ddim']:12.5f} {row['ddim_measured']:9.5f}"
            f"   {row['ddpm']:12.5f} {row['ddpm_measured']:9.5f}"
        )
    error = np.sqrt(2 / config.samples)
    print(f"The sampled columns have a relative standard error of {error:.1%}; their noise is the same at every scale.")
    plot(config, rows)
    distances = picture(config)
    for title, distance in distances.items():
        print(f"{title}: total variation distance to the tilted density {distance:.2f}")
    (config.out / "metrics.json").write_text(json.dumps({"variances": rows, "mixture": distances}, indent=1))
    print(f"Pictures and metrics are in {config.out}.")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config))
