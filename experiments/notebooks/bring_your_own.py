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
# # Bring your own network, method, sampler, classifier
#
# A network is any pure function $(x\,[B, \dots],\; t\,[B],\; y) \mapsto$ output. A guidance method is one function, and
# so is a sampler. A classifier is any differentiable $\log p(y \mid x_t)$.

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
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", source, "equinox", *own], check=True
    )  # it keeps the installed JAX
    importlib.invalidate_caches()

# %% tags=["parameters"]
import os

TOY = "GUIDANCE_JAX_TOY" in os.environ  # runs in seconds, for the tests
TRAINING, SAMPLES, STEPS = (20, 40, 4) if TOY else (4000, 2000, 30)

# %%
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.patches import Circle

import guidance_jax as gj

mesh = jax.make_mesh((jax.device_count(),), ("samples",), axis_types=(AxisType.Auto,))
over_devices = NamedSharding(mesh, PartitionSpec("samples"))
print(f"{jax.device_count()} {jax.devices()[0].device_kind}")

# %% [markdown]
# ## Data
#
# A pinwheel of five arms, with one class per arm. The label 5 means no condition.

# %%
CLASSES = 5
SCHEDULE = gj.schedules.cosine()


def pinwheel(key, n):
    """Points `[n, 2]` and their labels `[n]`."""
    choose, draw = jax.random.split(key)
    labels = jax.random.randint(choose, (n,), 0, CLASSES)
    radial, across = (jax.random.normal(draw, (n, 2)) * jnp.array([0.3, 0.06]) + jnp.array([1.0, 0.0])).T
    angle = 2 * jnp.pi * labels / CLASSES + 0.6 * jnp.exp(radial) + jnp.arctan2(across, radial)
    return radial[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1), labels


# %% [markdown]
# ## Four networks
#
# All networks use the same features of $(x, t, y)$ and predict $v = \alpha \epsilon - \sigma x_0$. The library needs two
# things of a network: `apply(params, x, t, y)` and `params`.

# %%
WIDTH = 128


def features(x, t, labels):
    """Features `[B, 32]`: sines and cosines of x and t, and the one-hot label."""
    inputs = jnp.concatenate([x, 2 * t[:, None]], axis=1)
    waves = (inputs[:, :, None] * 2.0 ** jnp.arange(4)[None, None]).reshape(len(x), -1)
    return jnp.concatenate([x, jnp.sin(waves), jnp.cos(waves), jax.nn.one_hot(labels, CLASSES + 1)], axis=1)


# %% [markdown]
# **A plain function**, with its parameters in a list:

# %%
LAYERS = [(32, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 2)]


def plain(params, x, t, labels):
    h = features(x, t, labels)
    for weight, bias in params[:-1]:
        h = jax.nn.silu(h @ weight + bias[None])
    return h @ params[-1][0] + params[-1][1][None]


draw = jax.nn.initializers.lecun_normal()
keys_of_layers = jax.random.split(jax.random.key(0), len(LAYERS))
plain_params = [(draw(key, shape), jnp.zeros(shape[1])) for key, shape in zip(keys_of_layers, LAYERS, strict=True)]


# %% [markdown]
# **Flax NNX**, with `gj.networks.from_nnx`:


# %%
class Nnx(nnx.Module):
    def __init__(self, *, rngs):
        self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in LAYERS])

    def __call__(self, x, t, labels):
        h = features(x, t, labels)
        for layer in self.layers[:-1]:
            h = jax.nn.silu(layer(h))
        return self.layers[-1](h)


nnx_apply, nnx_params = gj.networks.from_nnx(Nnx(rngs=nnx.Rngs(0)))


# %% [markdown]
# **Flax Linen**, with `gj.networks.from_linen`:


# %%
class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, t, labels):
        h = features(x, t, labels)
        for _, size in LAYERS[:-1]:
            h = linen.silu(linen.Dense(size)(h))
        return linen.Dense(2)(h)


variables = dict(Linen().init(jax.random.key(0), jnp.ones((1, 2)), jnp.ones(1), jnp.zeros(1, int)))
linen_apply, linen_params = gj.networks.from_linen(Linen(), variables)

# %% [markdown]
# **Equinox**. Its modules take one sample, so `vmap` adds the batch.

# %%
module = eqx.nn.MLP(32, 2, WIDTH, 3, jax.nn.silu, key=jax.random.key(0))
equinox_params, static = eqx.partition(module, eqx.is_array)


def equinox_apply(params, x, t, labels):
    return jax.vmap(eqx.combine(params, static))(features(x, t, labels))


# %% [markdown]
# ## Training
#
# One loop trains all networks. It drops the label of a fifth of the samples, so each network learns the conditional and
# the unconditional prediction. The batch is sharded over the devices, and every device has all parameters.

# %%
BATCH = 512 + -512 % jax.device_count()


@functools.partial(jax.jit, static_argnums=0)
def train(apply, params):
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, TRAINING))

    def loss(params, key):
        data, dropped, level, noise = jax.random.split(key, 4)
        x0, labels = jax.lax.with_sharding_constraint(pinwheel(data, BATCH), over_devices)
        labels = gj.training.drop(dropped, labels, CLASSES, 0.2)
        level = gj.training.noise_levels(level, SCHEDULE, BATCH)
        return gj.training.denoising_loss(functools.partial(apply, params), "v", noise, x0, level, labels).mean()

    def step(carry, key):
        params, moments = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, moments = optimiser.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    (params, _), values = jax.lax.scan(step, (params, optimiser.init(params)), jax.random.split(jax.random.key(1), TRAINING))
    return params, values


NETWORKS = {
    "plain function": (plain, plain_params),
    "Flax NNX": (nnx_apply, nnx_params),
    "Flax Linen": (linen_apply, linen_params),
    "Equinox": (equinox_apply, equinox_params),
}
trained = {}
for name, (apply, params) in NETWORKS.items():
    params, losses = train(apply, params)
    trained[name] = apply, params
    print(f"{name:15s} loss {losses[0]:.3f} -> {losses[-100:].mean():.3f}")

# %% [markdown]
# ## Guidance
#
# Parameters, keys, labels and the scale are arguments, so other values do not compile again. The first row has samples
# of the conditional models. The second row has the same noise with CFG at scale 2, $D = u + w\,(c - u)$.

# %%
n = SAMPLES + -SAMPLES % jax.device_count()
keys = jax.device_put(jax.random.split(jax.random.key(2), n), over_devices)
labels = jax.device_put(jnp.arange(n) % CLASSES, over_devices)
levels = gj.levels(SCHEDULE, STEPS, gj.spacings.karras(sigma_min=0.02, sigma_max=40.0))


@functools.partial(jax.jit, static_argnums=0)
def generate(apply, params, keys, labels, scale):
    denoise = gj.denoiser(functools.partial(apply, params), predicts="v")
    branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, CLASSES))
    return gj.sample(keys, branches, gj.cfg(scale), gj.dpmpp_2m(), levels, (2,))


COLORS = np.array(["#1f6fb4", "#d9730d", "#2b8a3e", "#7b4fa3", "#a61e4d"])
BY_CLASS = COLORS[np.asarray(labels)]
real, _ = pinwheel(jax.random.key(3), 1000)


def scatter(axis, x, title, colors):
    axis.scatter(*np.asarray(real).T, s=2, color="#dddddd", linewidths=0)
    axis.scatter(*np.asarray(x).T, s=3, c=colors, alpha=0.5, linewidths=0)
    axis.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal")
    axis.set_title(title, fontsize=11)
    axis.axis("off")


_, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
for column, (name, (apply, params)) in zip(axes.T, trained.items(), strict=True):
    for axis, scale in zip(column, (1.0, 2.0), strict=True):
        scatter(axis, generate(apply, params, keys, labels, scale), f"{name}, w = {scale:g}", BY_CLASS)
plt.show()

# %% [markdown]
# ## A guidance method in one line, or in six
#
# A method is a formula of the branches' predictions. Predictions are vectors, so CFG is one line:


# %%
def contrast(scale):
    return gj.source(lambda c, u, w: u + w * (c - u), "cond", "uncond", w=scale)


# %% [markdown]
# A nonlinear formula returns an array, the new $x_0$. The library computes $\epsilon$ from
# $x = \alpha x_0 + \sigma \epsilon$. This method is CFG that changes $x_0$ by at most `bound`:


# %%
def bounded_cfg(scale, bound):
    def formula(c, u, w, bound):
        push = (w - 1) * (c.x0 - u.x0)
        return c.x0 + push * jnp.minimum(1, bound / jnp.linalg.norm(push, axis=1, keepdims=True))

    return gj.source(formula, "cond", "uncond", w=scale, bound=bound)


# %% [markdown]
# ## A sampler in eight lines
#
# A sampler calls the guided denoiser and moves $x$ to the next noise level. This sampler is DDIM that adds a share $s$ of
# new noise in every step,
#
# $$x' = \alpha' x_0 + \sigma' \left(\sqrt{1 - s^2}\; \epsilon + s\, z\right), \qquad z \sim \mathcal{N}(0, I).$$
#
# The noise comes from each sample's own key, so a sample does not depend on the size of the batch.


# %%
def noisy_ddim(share):
    def step(denoise, state, level, next, keys):
        prediction, state = denoise(state, level)
        fresh = jax.vmap(lambda key: jax.random.normal(key, state.x.shape[1:]))(keys)
        eps = jnp.sqrt(1 - share**2) * prediction.eps + share * fresh
        return state._replace(x=next.alpha * prediction.x0 + next.sigma * eps)

    return gj.Sampler(lambda x: (), step)


# %% [markdown]
# Both work like the library's own methods and samplers, and combine with them:

# %%
apply, params = trained["Flax NNX"]
denoise = gj.denoiser(functools.partial(apply, params), predicts="v")
branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, CLASSES))
runs = {
    "contrast, dpmpp_2m": (contrast(2.0), gj.dpmpp_2m()),
    "bounded_cfg, dpmpp_2m": (bounded_cfg(2.0, bound=0.1), gj.dpmpp_2m()),
    "bounded_cfg, noisy_ddim": (bounded_cfg(2.0, bound=0.1), noisy_ddim(0.3)),
    "during, bounded_cfg, noisy_ddim": (gj.during(bounded_cfg(2.0, bound=0.1), 0.2, 2.0), noisy_ddim(0.3)),
}
_, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for axis, (name, (guidance, sampler)) in zip(axes, runs.items(), strict=True):
    scatter(axis, gj.sample(keys, branches, guidance, sampler, levels, (2,)), name, BY_CLASS)
plt.show()

# %% [markdown]
# ## Classifier guidance with your own log-probability
#
# Classifier guidance uses the unconditional network,
# $\hat\epsilon = \epsilon - w\, \sigma\, \nabla_x \log p(y \mid x_t)$. Here $y$ means "on the right of the line
# $x_1 = 0$". For data from $\mathcal{N}(0, s^2)$ its probability is
# $\Phi\big(\alpha s\, x_{t, 1} / (\sigma \sqrt{\alpha^2 s^2 + \sigma^2})\big)$ at every noise level. We use this formula
# for the pinwheel, so nothing needs to be trained.
#
# A log-probability of clean data needs the denoiser. `gj.freedom` moves every step by
# $\rho\, \nabla_{x_t} \log p(y \mid x_0(x_t))$. Here it pulls samples to the circle of radius 1.


# %%
def right_of_the_line(x, level):
    signal = 0.8 * level.alpha
    return jax.scipy.stats.norm.logcdf(signal * x[:, 0] / (level.sigma * jnp.hypot(signal, level.sigma)))


def on_the_circle(x0):
    return -((jnp.linalg.norm(x0, axis=1) - 1.0) ** 2)


unconditional = gj.branches(denoise, uncond=jnp.full_like(labels, CLASSES))
ways = {
    "unconditional": gj.chain(),
    "on the right, w = 1": gj.classifier(right_of_the_line, 1.0),
    "on the right, w = 4": gj.classifier(right_of_the_line, 4.0),
    "on the circle": gj.freedom(on_the_circle, 0.1),
}
_, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for axis, (name, guidance) in zip(axes, ways.items(), strict=True):
    scatter(axis, gj.sample(keys, unconditional, guidance, gj.dpmpp_2m(), levels, (2,)), name, COLORS[0])
axes[3].add_patch(Circle((0, 0), 1.0, fill=False, linewidth=0.8, linestyle=":"))
plt.show()
