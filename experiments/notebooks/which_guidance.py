# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which guidance?
#
# Five ways to guide one model are compared on one problem: CFG, CFG in an interval, CFG with a calibrated scale,
# autoguidance, and particles. The data are three bent arms of Gaussians in the plane, with one class per arm. All densities
# are known exactly. The model is the exact denoiser of blurred arms, so its samples have errors that guidance may repair.
# Nothing is trained, and the whole notebook takes about a minute on a CPU.

# %%
REPOSITORY = ""  # Set it to the address to install guidance_jax from. Empty: it is installed, or this notebook is in a clone.

# %%
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("guidance_jax") is None:
    assert REPOSITORY or pathlib.Path("../../pyproject.toml").exists(), "Set REPOSITORY, in the first cell."
    source = f"guidance_jax[experiments] @ git+{REPOSITORY}" if REPOSITORY else "../..[experiments]"
    # The installed JAX stays as it is.
    own = [f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "jaxlib") if importlib.util.find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source, *own], check=True)
    importlib.invalidate_caches()

# %% tags=["parameters"]
import os

TOY = "GUIDANCE_JAX_TOY" in os.environ  # runs in seconds, for the tests
SAMPLES, STEPS, PARTICLE_STEPS = (256, 4, 48) if TOY else (3000, 32, 96)
SCALES = [1.0, 3.0] if TOY else [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
SHOWN = 3.0  # the scale of the first picture

# %%
import functools
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import guidance_jax as gj

jax.config.update("jax_default_matmul_precision", "highest")  # TPUs and GPUs use less than float32 by default
print(f"{jax.device_count()} {jax.devices()[0].device_kind}")

# %% [markdown]
# ## The problem
#
# A point is drawn from an arm, $p(x \mid y)$. The model's arms have a blur of standard deviation 0.1. Autoguidance needs a
# weaker model: its arms have a blur of 0.2. All three are exact mixtures of 27 Gaussians.


# %%
def arms(blur):
    age = np.linspace(0, 1, 9)
    angle = 2 * np.pi * np.arange(3)[:, None] / 3 + 1.5 * age + 0.5
    radius = 0.1 + 1.7 * age
    mean = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)  # [3, 9, 2]
    along = np.gradient(mean, axis=1)
    covariance = 0.3 * along[..., :, None] * along[..., None, :] + (0.08**2 + blur**2) * np.eye(2)
    moments = jnp.asarray(mean.reshape(-1, 2), jnp.float32), jnp.asarray(covariance.reshape(-1, 2, 2), jnp.float32)
    return gj.oracles.GaussianMixture(*moments, jnp.ones(27), jnp.repeat(jnp.arange(3), 9))


truth, model, weaker = arms(0.0), arms(0.1), arms(0.2)
levels = gj.levels(gj.schedules.edm(), STEPS, gj.spacings.karras())
clean = gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))
keys, labels = jax.random.split(jax.random.key(0), SAMPLES), jnp.zeros(SAMPLES, int)

cond, weak = gj.branches(model.denoise, cond=labels), gj.branches(weaker.denoise, weak=labels)
both = gj.branches(model.denoise, cond=labels, uncond=jnp.full_like(labels, -1))

# %% [markdown]
# ## Five ways to guide
#
# With the conditional prediction $c$, the unconditional one $u$ and the weaker model's $g$:
#
# - **CFG**: $u + w\,(c - u)$.
# - **Interval**: CFG where $0.1 < \sigma / \alpha \le 1$, and $c$ elsewhere.
# - **Calibrated**: CFG with a scale that follows the noise level. `calibrate` measures on the model's own samples where the
#   condition helps. It knows nothing of the true density.
# - **Autoguidance**: $g + w\,(c - g)$.
# - **Particles**: CFG whose samples carry weights and are resampled, so that they follow the model's tilted law,
#   $p(x)^{1-w}\, p(x \mid y)^w$. CFG is often said to sample it, but does not.

# %%
every = jnp.arange(SAMPLES) % 3
three = gj.branches(model.denoise, cond=every, uncond=jnp.full_like(every, -1))
own = model.sample(jax.random.key(1), SAMPLES, every)
curve = jax.jit(lambda keys, x0: gj.calibrate(keys, three, x0, levels))(keys, own)

GUIDES = {
    "CFG": (both, gj.cfg),
    "interval": (both, lambda w: gj.during(gj.cfg(w), 0.1, 1.0)),
    "calibrated": (both, lambda w: gj.cfg(gj.scales.calibrated(curve, w))),
    "autoguidance": ((cond, weak), gj.autoguidance),
}


def guided(name, keys, scale):
    """Samples `[n, 2]` of class 0."""
    branches, guide = GUIDES[name]
    return gj.sample(keys, branches, guide(scale), gj.dpmpp_2m(), levels, (2,))


def particles(keys, scale):
    """As many particles, resampled at the end so that all weights are equal."""
    path = gj.levels(gj.schedules.edm(), PARTICLE_STEPS, gj.spacings.karras())
    found = gj.feynman_kac(keys, both, gj.targets.tilted(scale), gj.heun_sde(2.0), path, (2,), size=SAMPLES)
    return found.x[gj.particles.systematic(jax.random.key(2), found.log_weights)]


began = time.perf_counter()
scales, samples = jnp.array(SCALES), {}
for name in (*GUIDES, "particles"):
    way = particles if name == "particles" else functools.partial(guided, name)
    samples[name] = np.asarray(jax.jit(jax.vmap(way, in_axes=(None, 0)))(keys, scales))
print(f"{len(samples)} methods x {len(SCALES)} scales x {SAMPLES} samples: {time.perf_counter() - began:.0f} s")

# %% [markdown]
# ## What is measured
#
# - **accuracy**: the share of samples whose most probable class, under the exact posterior, is the class that was asked for.
# - **outside**: the share of samples where the exact density $p(x \mid y)$ is lower than at 99 % of exact samples.
# - **distance**: the sliced Wasserstein distance to exact samples of $p(x \mid y)$. It counts lost diversity, too.
# - **tilted**: the same distance to exact samples of the model's tilted law.
#
# The row of exact samples shows the error of these numbers from the finite number of samples.


# %%
@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0))
def judged(x, tilted):
    exact, again = (truth.sample(jax.random.key(seed), SAMPLES, labels) for seed in (3, 4))
    edge = jnp.quantile(truth.log_prob(again, clean, labels), 0.01)
    return {
        "accuracy": (truth.class_log_prob(x, clean, labels) > jnp.log(0.5)).mean(),
        "outside": (truth.log_prob(x, clean, labels) < edge).mean(),
        "distance": gj.metrics.sliced_wasserstein(x, exact, jax.random.key(5)),
        "tilted": gj.metrics.sliced_wasserstein(x, tilted, jax.random.key(5)),
    }


tilt = jax.jit(jax.vmap(lambda seed, scale: model.sample_tilted(jax.random.key(seed), SAMPLES, 0, scale), in_axes=(None, 0)))
tilted = tilt(6, scales)
samples["exact"] = np.broadcast_to(truth.sample(jax.random.key(7), SAMPLES, labels), samples["CFG"].shape)
numbers = {name: jax.tree.map(np.asarray, judged(jnp.asarray(x), tilted)) for name, x in samples.items()}

first, at = SCALES.index(1.0), SCALES.index(SHOWN)
rows = {"exact samples": ("exact", at), "no guidance": ("CFG", first)}
rows |= {f"{name}, w = {SCALES[i]:g}": (name, i) for i in sorted({at, len(SCALES) - 1}) for name in samples if name != "exact"}
print(f"{'':22s}" + "".join(f"{key:>10s}" for key in numbers["CFG"]))
for title, (name, i) in rows.items():
    print(f"{title:22s}" + "".join(f"{value[i]:10.3f}" for value in numbers[name].values()))

# %%
COLORS = {"CFG": "#1f6fb4", "interval": "#2b8a3e", "calibrated": "#c2410c", "autoguidance": "#7b4fa3", "particles": "#b8860b"}
COLORS |= {"exact": "#222222"}
points = np.linspace(-2.4, 2.4, 161)
grid = jnp.asarray(np.stack(np.meshgrid(points, points), -1).reshape(-1, 2), jnp.float32)
log_density = jax.jit(lambda y: truth.log_prob(grid, clean, jnp.full(len(grid), y)).reshape(161, 161))
densities = [np.asarray(log_density(y)) for y in range(3)]

panels = {"exact samples": samples["exact"][at], "no guidance": samples["CFG"][first]}
panels |= {f"{name}, w = {SHOWN:g}": samples[name][at] for name in samples if name != "exact"}
panels |= {f"the tilted law, w = {SHOWN:g}": np.asarray(tilted[at])}
_, axes = plt.subplots(2, 4, figsize=(12, 6.2), layout="constrained")
for axis, (title, x) in zip(axes.flat, panels.items(), strict=True):
    for y in (1, 2):
        axis.contour(points, points, densities[y], levels=[-3.5], colors="#cccccc", linewidths=0.8, linestyles="solid")
    axis.contourf(points, points, np.exp(densities[0]), levels=np.linspace(0.1, 1.4, 9), cmap="Greys", alpha=0.6, extend="max")
    axis.contour(points, points, densities[0], levels=[-3.5], colors="#777777", linewidths=0.8, linestyles="solid")
    axis.scatter(*x[:1000].T, s=2, color=COLORS.get(title.partition(",")[0], "#a61e4d"), alpha=0.6, linewidths=0)
    axis.set(xlim=(-2.4, 2.4), ylim=(-2.2, 2.4), aspect="equal")
    axis.set_title(title, fontsize=11)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Over the scale

# %%
figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
for axis, key in zip(axes, numbers["CFG"], strict=True):
    for name, row in numbers.items():
        style = ":" if name == "exact" else "o-"
        axis.plot(SCALES, row[key], style, color=COLORS[name], markersize=3, label="exact samples" if name == "exact" else name)
    axis.set(title=key, xlabel="guidance scale w")
    axis.spines[["top", "right"]].set_visible(False)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
plt.show()

# %% [markdown]
# ## What the numbers show
#
# - **CFG** has accuracy 1.000 at $w = 3$, but loses the root of the arm: the distance is 0.509, and 0.030 without
#   guidance. At $w = 8$, 85 % of its samples are outside of the data.
# - **An interval** has the same accuracy at less than half of this distance, 0.211, and few samples outside. It also
#   evaluates the unconditional model in fewer steps. Its distance still grows with the scale, to 0.443.
# - **The calibrated scale** tolerates large values: from $w = 3$ to $w = 8$ the distance changes from 0.081 to 0.111.
#   Its accuracy is the lowest of all at $w = 8$, 0.986. It does not repair the model: 7 % of its samples are outside.
# - **Autoguidance** is the only method that removes the blur. At $w = 3$ its distance, 0.026, is about the distance
#   without guidance, and all other methods have a larger one. At $w = 8$ its accuracy is 1.000, too. No sample is
#   outside, while 1 % of exact samples are, so its arm is too thin. This is its ideal case: the weaker model has the
#   same error as the model, only more of it.
# - **Particles** sample the tilted law: the distance to it is 0.020 at $w = 3$, and 0.414 with CFG. This is the law
#   of the model, so the blur remains. They take three times as many steps here. The calibrated scale comes close to
#   the tilted law, too, at 0.038.
#
# No method is the best in every column. For accuracy alone, use an interval. Where the scale cannot be tuned, use the
# calibrated scale. If there is a weaker model with the same errors, use autoguidance. If samples must follow the
# tilted law, use particles. These are the numbers of one problem in the plane, whose model errs by a blur. The errors
# of a trained network differ.
