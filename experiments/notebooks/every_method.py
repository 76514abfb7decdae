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
# # Every method in one picture
#
# The data are three bent arms of Gaussians in the plane, with one class per arm. Their denoiser,
# $\mathbb{E}[x_0 \mid x_t, y]$, and their posterior, $p(y \mid x_t)$, are known exactly at every noise level. Nothing is
# trained, so there are no errors of a network. Every guidance method of the library samples the same class from the same
# noise. Its samples are compared with the tilted law, which classifier-free guidance is often said to sample,
#
# $$p_w(x) \propto p(x)^{1-w}\, p(x \mid y)^{w}.$$

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
SCALE = 3.0
SAMPLES, STEPS = (64, 4) if TOY else (2048, 32)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.lines import Line2D

import guidance_jax as gj

mesh = jax.make_mesh((jax.device_count(),), ("samples",), axis_types=(AxisType.Auto,))
over_devices = NamedSharding(mesh, PartitionSpec("samples"))
jax.config.update("jax_default_matmul_precision", "highest")  # TPUs and GPUs use less than float32 by default
print(f"{jax.device_count()} {jax.devices()[0].device_kind}")

# %% [markdown]
# ## The world
#
# `gj.oracles.GaussianMixture` is the denoiser. The weaker guide of autoguidance has blurred arms. `coarse` has two classes
# only: the class that is sampled together with its neighbour, and the third class.


# %%
def arms(blur, labels):
    age = np.linspace(0, 1, 9)
    angle = 2 * np.pi * np.arange(3)[:, None] / 3 + 1.5 * age + 0.5
    radius = 0.1 + 1.7 * age
    mean = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)  # [3, 9, 2]
    along = np.gradient(mean, axis=1)
    covariance = 0.3 * along[..., :, None] * along[..., None, :] + (0.08**2 + blur**2) * np.eye(2)
    moments = jnp.asarray(mean.reshape(-1, 2), jnp.float32), jnp.asarray(covariance.reshape(-1, 2, 2), jnp.float32)
    return gj.oracles.GaussianMixture(*moments, jnp.ones(27), jnp.repeat(jnp.array(labels), 9))


world, blurred, coarse = arms(0.0, [0, 1, 2]), arms(0.25, [0, 1, 2]), arms(0.0, [0, 0, 1])
schedule = gj.schedules.cosine()
levels = gj.levels(schedule, STEPS, gj.spacings.karras(sigma_min=0.02, sigma_max=40.0))

n = SAMPLES + -SAMPLES % jax.device_count()
keys = jax.device_put(jax.random.split(jax.random.key(0), n), over_devices)
labels = jax.device_put(jnp.zeros(n, int), over_devices)

# %% [markdown]
# ## The methods
#
# The first branch is the base, from which a method starts. It is the conditional model, or the unconditional one if a
# gradient gives the class. For the methods that use frequencies, a point is a signal of four pixels,
# $x = \tfrac{a}{2} (1, 1, 1, 1) + \tfrac{b}{2} (1, -1, 1, -1)$. The horizontal coordinate $a$ is the lowest frequency, and
# the vertical coordinate $b$ is the highest. The two inverse problems use the height of $x_0$ and not its class.


# %%
def noisy(x, level):
    """The exact log p(y | x_t)."""
    return world.class_log_prob(x, level, labels)


def clean(x0):
    """log p(y | x0) with a little blur, which gives a gradient far from the arms."""
    return world.class_log_prob(x0, schedule.at(0.3), labels)


height = jnp.full((n, 1), 0.8)
measure, embed = lambda x0: x0[:, 1:], lambda y: jnp.pad(y, ((0, 0), (1, 0)))
after_cfg = lambda shaper: lambda w: gj.chain(gj.cfg(w), shaper)

FAMILIES = {
    "contrasts of branches": {
        "cfg": gj.cfg,
        "autoguidance": gj.autoguidance,
        "perturbed": lambda w: gj.chain(gj.cfg(w), gj.perturbed(w - 1, weak="weak")),
        "icg": lambda w: gj.icg(1 + (w - 1) / 4),
        "tsg": gj.tsg,
        "compose": lambda w: gj.compose({"cond": 1.5, "negative": -0.3}),
        "dual_cfg": lambda w: gj.dual_cfg(1.0, w),
        "perp_neg": lambda w: gj.perp_neg(w, {"negative": 0.1}),
    },
    "weighed, projected": {
        "tcfg": gj.tcfg,
        "mambo_g": lambda w: gj.mambo_g(w, 2.0),
        "power_law": gj.power_law,
        "beta_cfg": lambda w: gj.in_space("eps", gj.beta_cfg(gj.scales.beta(schedule, w), 0.5)),
        "recfg": lambda w: gj.in_space("eps", gj.recfg(w, 0.9)),
        "fdg": lambda w: gj.fdg((1.0, w)),
        "fresca": lambda w: gj.fresca(w, 0.4, 1.0),
        "cfg_zero_star": gj.cfg_zero_star,
        "apg": lambda w: gj.apg(w, max_norm=0.3),
        "cfg_pp": lambda w: gj.cfg_pp(w / 4),
        "feedback": lambda w: gj.feedback(0.9),
        "reg": lambda w: gj.reg(gj.cfg(w)),
    },
    "shapers after CFG": {
        "rescale": after_cfg(gj.rescale(0.7)),
        "momentum": after_cfg(gj.momentum(-0.5)),
        "clip_norm": after_cfg(gj.clip_norm(0.2)),
        "project": after_cfg(gj.project(0.0)),
        "amplify": after_cfg(gj.amplify(1.5)),
        "dynamic_threshold": after_cfg(gj.dynamic_threshold(90.0, 1.2)),
        "on_channels": lambda w: gj.on_channels(gj.cfg(w), 1),
    },
    "CFG in some steps": {
        "during": lambda w: gj.during(gj.cfg(w), 0.2, 1.0),
        "reuse": lambda w: gj.reuse(gj.cfg(w), 3),
        "linear_reuse": lambda w: gj.linear_reuse(w, jnp.array([1.0, -1.0, 1.0]), 3),
        "adaptive": lambda w: gj.adaptive(gj.cfg(w), 0.99),
    },
    "gradients": {
        "classifier": lambda w: gj.classifier(noisy, w),
        "mean_shift": lambda w: gj.mean_shift(noisy, w),
        "universal": lambda w: gj.universal(clean, w),
        "lgd": lambda w: gj.lgd(clean, w),
        "freedom": lambda w: gj.freedom(clean, 0.05 * w),
        "mpgd": lambda w: gj.mpgd(clean, 0.05 * w),
        "tfg": lambda w: gj.tfg(clean, 0.05 * w, 0.02 * w),
    },
    "inverse problems": {
        "dps": lambda w: gj.dps(measure, height, lambda level: 0.5 * w * level.sigma),
        "pigdm": lambda w: gj.pigdm(measure, embed, height),
    },
}
METHODS = {name: make for family in FAMILIES.values() for name, make in family.items()}
PARTS = {  # what methods are made of
    *("add", "chain", "direction", "fit_linear", "in_space", "masked", "relative_to", "source", "stateless", "unless_one"),
}
assert set(METHODS) == set(gj.guidance.__all__) - PARTS, "a public method has no panel"
print(f"{len(METHODS)} methods")

# %% [markdown]
# ## One run per method
#
# Keys and labels are sharded over all devices. Samples do not depend on each other, so devices do not communicate. Each
# method evaluates only the branches that it needs.

# %%
UNCONDITIONAL = {"cfg_pp", *FAMILIES["gradients"], *FAMILIES["inverse problems"]}
plane = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]]) / 2
timed = gj.denoiser(lambda x, t, y: world.denoise(x, schedule(t), y).x0, predicts="x0")
signals = gj.denoiser(lambda x, t, y: (world.denoise(x[..., 0] @ plane.T, schedule(t), y).x0 @ plane)[..., None], predicts="x0")


def run(name, guidance, keys, labels):
    """Samples `[n, 2]` of class `labels`."""
    spectral = name in ("fdg", "fresca")
    conds = {"cond": labels, "uncond": jnp.full_like(labels, -1), "negative": labels + 1}
    order = sorted(conds, key=lambda branch: branch != "uncond") if name in UNCONDITIONAL else conds
    networks = [gj.branches(signals if spectral else world.denoise, **{branch: conds[branch] for branch in order})]
    networks += [gj.branches(world.denoise, random=gj.conditions.random_labels(3))]
    networks += [gj.branches(blurred.denoise, weak=labels), gj.branches(coarse.denoise, image=labels)]
    if name == "tsg":
        noise = gj.conditions.time_noise(lambda level: 0.1 * level.t)
        networks += [gj.branches(gj.conditions.retimed(timed), retimed=lambda step: (labels, noise(step)))]
    x = gj.sample(keys, tuple(networks), guidance, gj.dpmpp_2m(), levels, (4, 1) if spectral else (2,))
    return x[..., 0] @ plane.T if spectral else x


samples = {"unguided": jax.jit(lambda k, y: run("unguided", gj.chain(), k, y))(keys, labels)}
for number, (name, make) in enumerate(METHODS.items()):
    program = jax.jit(lambda k, y, w, name=name, make=make: run(name, make(w), k, y))
    if TOY and number % 4:
        assert jax.eval_shape(program, keys, labels, SCALE).shape == (n, 2)
    else:
        samples[name] = program(keys, labels, SCALE)
truth, again = (world.sample_tilted(jax.random.key(seed), n, 0, SCALE) for seed in (1, 2))
assert all(np.isfinite(x).all() for x in samples.values())

# %% [markdown]
# ## The picture
#
# Each panel has the samples of one method, on the outline of the class that is sampled (dark) and of the two others
# (light). The number is the sliced Wasserstein distance to samples of the tilted law. The first panel has the distance
# between two sets of exact samples. The scale is 3, except for methods with other parameters, or with samples that would
# lie outside of the picture.
#
# CFG does not sample the tilted law. The tilted law only has less mass in the middle, where the classes meet. CFG moves the
# samples to the tip and to the outer edge.

# %%
COLORS = dict(zip(FAMILIES, ("#1f6fb4", "#2b8a3e", "#7b4fa3", "#b8860b", "#c2410c", "#a61e4d"), strict=True))
INK, MUTED, LIGHT = "#222222", "#777777", "#cccccc"
family_of = {name: family for family, members in FAMILIES.items() for name in members}
points = np.linspace(-2.4, 2.4, 161)
grid = jnp.asarray(np.stack(np.meshgrid(points, points), -1).reshape(-1, 2), jnp.float32)
outline = jax.jit(lambda y: world.log_prob(grid, schedule.at(1e-3), jnp.full(len(grid), y)).reshape(161, 161))
outlines = [np.asarray(outline(y)) for y in range(3)]
distance = jax.jit(gj.metrics.sliced_wasserstein)

columns = 7
panels = {"the tilted law": again} | samples
rows = -(-len(panels) // columns)
figure, axes = plt.subplots(rows, columns, figsize=(2.05 * columns, 2.2 * rows), layout="constrained")
for axis in axes.flat:
    axis.axis("off")
for axis, (name, x) in zip(axes.flat, panels.items(), strict=False):
    color = COLORS[family_of[name]] if name in family_of else INK
    for y in (1, 2, 0):
        line = {"colors": LIGHT if y else MUTED, "linewidths": 0.8, "linestyles": "solid"}
        axis.contour(points, points, outlines[y], levels=[-3.5], **line)
    if name in FAMILIES["inverse problems"]:
        axis.axhline(float(height[0, 0]), color=color, linewidth=0.8, linestyle=":")
    axis.scatter(*np.asarray(x)[:1000].T, s=2, color=color, alpha=0.4, linewidths=0)
    axis.set(xlim=(-2.4, 2.4), ylim=(-2.2, 2.4), aspect="equal")
    axis.set_title(name, fontsize=10, color=color, pad=3)
    if name not in FAMILIES["inverse problems"]:
        number = f"{distance(x, truth, jax.random.key(3)):.2f}"
        axis.text(2.3, -2.1, number, ha="right", fontsize=8, color=MUTED)
handles = [Line2D([], [], marker="o", linestyle="", color=color, label=family) for family, color in COLORS.items()]
figure.legend(handles=handles, loc="outside lower center", ncols=len(COLORS), frameon=False, fontsize=9)
plt.show()
