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
# # Quickstart: guided handwritten digits
#
# Train a small diffusion model and a noise-aware classifier on 8 x 8 digits, guide with both, and sweep the guidance
# scale in one compiled program. It takes minutes on a CPU and less on a GPU or TPU. The code is the same for all of them.

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
TRAINING, BATCH, WIDTH, STEPS = (20, 32, 16, 4) if TOY else (5000, 256, 256, 30)
SCALES = [0.0, 1.0, 2.0, 4.0] if TOY else [0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]

# %%
import functools
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import guidance_jax as gj

mesh = jax.make_mesh((jax.device_count(),), ("samples",), axis_types=(AxisType.Auto,))
over_devices = NamedSharding(mesh, PartitionSpec("samples"))
print(f"{jax.device_count()} {jax.devices()[0].device_kind}")

# %% [markdown]
# ## Data and networks
#
# Pixels lie in $[-1, 1]$, and the label 10 means no condition. `from_nnx` turns a network into a pure function of its
# parameters.

# %%
pixels, classes = load_digits(return_X_y=True)
images = jnp.asarray(pixels.reshape(-1, 8, 8, 1) / 8 - 1, jnp.float32)
labels = jnp.asarray(classes, jnp.int32)
SHAPE, CLASSES, NULL = (8, 8, 1), 10, 10

denoiser, denoiser_params = gj.networks.from_nnx(gj.networks.MLP(SHAPE, CLASSES, WIDTH, 4, rngs=nnx.Rngs(0)))
classifier, classifier_params = gj.networks.from_nnx(gj.networks.MLPClassifier(SHAPE, CLASSES, WIDTH, 3, rngs=nnx.Rngs(1)))

# %% [markdown]
# ## Training
#
# Noisy images are $x_t = \alpha_t x_0 + \sigma_t \epsilon$. The denoiser predicts $v = \alpha \epsilon - \sigma x_0$. For one
# sample in seven its label is replaced by "no condition". The classifier learns $p(y \mid x_t)$ at every noise level. The
# whole training is one `lax.scan`. Batches are sharded over the devices, and the result is the averaged parameters.

# %%
SCHEDULE = gj.schedules.cosine()
batch = BATCH + -BATCH % jax.device_count()


def denoiser_loss(params, key, x0, y):
    drop, level, noise = jax.random.split(key, 3)
    y = gj.training.drop(drop, y, NULL, 0.15)
    level = gj.training.noise_levels(level, SCHEDULE, batch)
    return gj.training.denoising_loss(functools.partial(denoiser, params), "v", noise, x0, level, y).mean()


def classifier_loss(params, key, x0, y):
    level, noise = jax.random.split(key)
    level = gj.training.noise_levels(level, SCHEDULE, batch)
    return gj.training.classifier_loss(functools.partial(classifier, params), noise, x0, level, y).mean()


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def train(loss, params, key, steps, decay):
    optimiser = optax.adamw(optax.cosine_decay_schedule(1e-3, steps), weight_decay=decay)

    def step(carry, number):
        params, average, moments = carry
        draw, own = jax.random.split(jax.random.fold_in(key, number))
        chosen = jax.random.randint(draw, (batch,), 0, len(images))
        x0, y = jax.lax.with_sharding_constraint((images[chosen], labels[chosen]), over_devices)
        value, gradient = jax.value_and_grad(loss)(params, own, x0, y)
        updates, moments = optimiser.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        return (params, gj.training.ema(average, params, number), moments), value

    start = params, params, optimiser.init(params)
    (_, average, _), losses = jax.lax.scan(step, start, jnp.arange(steps))
    return average, losses


for name in ("denoiser", "classifier"):
    began = time.perf_counter()
    if name == "denoiser":
        denoiser_params, losses = train(denoiser_loss, denoiser_params, jax.random.key(0), TRAINING, 1e-4)
    else:
        classifier_params, losses = train(classifier_loss, classifier_params, jax.random.key(1), TRAINING // 2, 0.05)
    print(f"{name}: loss {losses[:10].mean():.3f} -> {losses[-100:].mean():.3f}, {time.perf_counter() - began:.0f} s")

# %% [markdown]
# ## Guidance
#
# **Classifier-free guidance** contrasts two branches of one network, $D = u + w\,(c - u)$. **Classifier guidance** adds
# a classifier's gradient to the unconditional prediction,
# $\hat\epsilon = \epsilon - w\, \sigma\, \nabla_x \log p(y \mid x_t)$. In both, $w = 1$ is Bayes' rule, and $w = 0$ ignores
# the condition.
#
# Both use the same sampling loop, and the scale is an argument.

# %%
levels = gj.levels(SCHEDULE, STEPS, gj.spacings.karras(sigma_min=0.02, sigma_max=40.0))


def by_cfg(params, keys, y, scale):
    denoise = gj.denoiser(functools.partial(denoiser, params[0]), predicts="v")
    branches = gj.branches(denoise, cond=y, uncond=jnp.full_like(y, NULL))
    return gj.sample(keys, branches, gj.cfg(scale), gj.dpmpp_2m(), levels, SHAPE)


def by_classifier(params, keys, y, scale):
    denoise = gj.denoiser(functools.partial(denoiser, params[0]), predicts="v")
    log_prob = gj.scores.class_log_prob(functools.partial(classifier, params[1]), y, CLASSES)
    branches = gj.branches(denoise, uncond=jnp.full_like(y, NULL))
    return gj.sample(keys, branches, gj.classifier(log_prob, scale), gj.dpmpp_2m(), levels, SHAPE)


# %% [markdown]
# ## Sweep the scale in one compile
#
# `vmap` over the scale gives one program for the whole sweep and for both methods. Each sample has its own key, and the
# samples are sharded over the devices.


# %%
traces = []
WAYS = {"classifier-free guidance": by_cfg, "classifier guidance": by_classifier}


@jax.jit
def sweep(params, keys, y, scales):
    traces.append(scales)
    return [jax.vmap(way, in_axes=(None, None, None, 0))(params, keys, y, scales) for way in WAYS.values()]


each = (2 if TOY else 40) * jax.device_count()  # samples per class
asked = jax.device_put(jnp.arange(CLASSES * each) % CLASSES, over_devices)
keys = jax.device_put(jax.random.split(jax.random.key(2), CLASSES * each), over_devices)
params = denoiser_params, classifier_params

began = time.perf_counter()
samples = dict(zip(WAYS, map(np.asarray, sweep(params, keys, asked, jnp.array(SCALES))), strict=True))
first = time.perf_counter() - began
began = time.perf_counter()
jax.block_until_ready(sweep(params, keys, asked, jnp.array(SCALES) + 0.1))
again = time.perf_counter() - began
print(f"{len(SCALES)} scales x 2 methods x {len(keys)} samples: {first:.1f} s with compilation, {again:.1f} s at other scales")
print(f"number of traces and compilations: {len(traces)}")

# %%
shown = SCALES if TOY else [0.0, 1.0, 2.0, 4.0, 8.0]


def tiles(x, rows=10, columns=6):
    """Images `[n, 8, 8, 1]` that cycle through the classes, as one picture with one row per class."""
    grid = np.pad(x.reshape(-1, CLASSES, 8, 8)[:columns].clip(-1, 1), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1)
    return grid.transpose(1, 2, 0, 3).reshape(10 * rows, -1)


_, axes = plt.subplots(2, len(shown), figsize=(2.1 * len(shown), 7.2), layout="constrained")
for row, (way, x) in zip(axes, samples.items(), strict=True):
    for axis, scale in zip(row, shown, strict=True):
        axis.imshow(tiles(x[SCALES.index(scale)]), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(f"w = {scale:g}", fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    row[0].set_ylabel(way, fontsize=11)
plt.show()

# %% [markdown]
# ## Accuracy, precision and recall over the scale
#
# The judge is a support-vector machine that is trained on real digits and not used by guidance. Accuracy is the share of
# samples that it assigns to the class of their label. Precision is the share of samples that lie among the real digits.
# Recall is the share of real digits that lie among the samples. Moderate guidance increases precision and lowers recall.
# Too much guidance lowers precision, too.

# %%
real = images.reshape(len(images), -1)
judge = SVC().fit(np.asarray(real), classes)
measure = jax.jit(gj.metrics.precision_recall)

_, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
for (way, x), color in zip(samples.items(), ("#1f6fb4", "#8c4b1f"), strict=True):
    flat = x.reshape(len(SCALES), len(keys), -1)
    accuracy = [(judge.predict(one) == np.asarray(asked)).mean() for one in flat]
    precision, recall = zip(*(map(float, measure(real[: len(keys)], jnp.asarray(one))) for one in flat), strict=True)
    for axis, values in zip(axes, (accuracy, precision, recall), strict=True):
        axis.plot(SCALES, values, "o-", color=color, markersize=3, label=way)
for axis, title in zip(axes, ("accuracy", "precision", "recall"), strict=True):
    axis.set(title=title, xlabel="guidance scale w", ylim=(0, 1.03))
    axis.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, fontsize=9, loc="lower right")
plt.show()

# %% [markdown]
# ## A calibrated scale
#
# The noise levels where guidance helps can be measured in seconds, on the network's own unguided samples. Add noise to the
# samples, and predict them from the result. Measure the error of the conditional and of the unconditional prediction along
# the direction of guidance. The ratio of the two errors is $\rho$. It is small while the class is undetermined, and 1 once
# the class is determined. The scale at a noise level is $1 / w(\rho) = 1 - \rho + \rho / w$. The cost is that of CFG.

# %%
pair = jnp.arange(CLASSES * (2 if TOY else 40)) % CLASSES
own = jax.random.split(jax.random.key(3), len(pair))


@jax.jit
def measure(params, keys, y):
    denoise = gj.denoiser(functools.partial(denoiser, params), predicts="v")
    branches = gj.branches(denoise, cond=y, uncond=jnp.full_like(y, NULL))
    x0 = gj.sample(keys, branches, gj.chain(), gj.dpmpp_2m(), levels, SHAPE)
    return gj.calibrate(keys, branches, x0, levels)


@jax.jit
def by_calibrated(params, curve, keys, y, scale):
    denoise = gj.denoiser(functools.partial(denoiser, params), predicts="v")
    branches = gj.branches(denoise, cond=y, uncond=jnp.full_like(y, NULL))
    return gj.sample(keys, branches, gj.cfg(gj.scales.calibrated(curve, scale)), gj.dpmpp_2m(), levels, SHAPE)


began = time.perf_counter()
curve = jax.block_until_ready(measure(denoiser_params, own, pair))
STRONG = [2.0, 4.0, 8.0, 16.0]
forgiving = [np.asarray(by_calibrated(denoiser_params, curve, own, pair, scale)) for scale in STRONG]
plain = [np.asarray(jax.jit(by_cfg)(params, own, pair, scale)) for scale in STRONG]
took = time.perf_counter() - began
print(f"measured on {len(pair)} samples, then sampled at {len(STRONG)} scales by two methods: {took:.1f} s")

_, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].errorbar(curve.ratio, curve.rho, curve.error, fmt="o-", markersize=3, linewidth=1)
axes[0].set(title="calibration curve", ylabel="rho", ylim=(0, 1.1))
scales = jax.jit(lambda curve, scale: gj.scales.calibrated(curve, scale)(SCHEDULE.at(curve.ratio)))
for scale in STRONG:
    axes[1].plot(curve.ratio, scales(curve, scale), label=f"w = {scale:g}")
axes[1].set(title="calibrated guidance scale")
axes[1].legend(frameon=False, fontsize=9)
for axis in axes:
    axis.set(xscale="log", xlabel="sigma / alpha")
    axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
_, axes = plt.subplots(2, len(STRONG), figsize=(2.1 * len(STRONG), 7.2), layout="constrained")
for row, (way, some) in zip(axes, {"CFG": plain, "CFG, calibrated": forgiving}.items(), strict=True):
    for axis, scale, x in zip(row, STRONG, some, strict=True):
        axis.imshow(tiles(x), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(f"w = {scale:g}", fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    row[0].set_ylabel(way, fontsize=11)
plt.show()

# %% [markdown]
# ## Next steps
#
# - *every_method* shows all methods of the library in one picture, and compares them with the tilted law.
# - *bring_your_own* guides your own network. It also shows how to write a method, a sampler and a classifier.
# - Replace `gj.cfg(scale)` by `gj.apg(scale, max_norm=2.5)` or `gj.during(gj.cfg(scale), 0.2, 5.0)`, and `gj.dpmpp_2m()` by
#   any other sampler.
