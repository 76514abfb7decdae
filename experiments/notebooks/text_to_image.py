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
# # Text to image
#
# Guidance of Stable Diffusion 1, 2 or XL, read from a directory in the Hugging Face layout:
#
# ```sh
# hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir stable-diffusion-v1-5
# ```
#
# Name that directory below. If it does not exist, a small text-to-image model is trained instead, in minutes on a CPU. Its
# captions describe scenes of two handwritten digits. All code after loading is the same for both models.

# %%
REPOSITORY = ""  # Set it to the address to install guidance_jax from. Empty: it is installed, or this notebook is in a clone.

# %%
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

clone = "./clone" if REPOSITORY else "../.."
if importlib.util.find_spec("guidance_jax") is None:
    assert REPOSITORY or pathlib.Path("../../pyproject.toml").exists(), "Set REPOSITORY, in the first cell."
    if REPOSITORY:
        subprocess.run(["git", "clone", "-q", "--depth", "1", REPOSITORY, clone], check=True)
    source = f"{clone}[experiments,pretrained]"
    # The installed JAX stays as it is.
    own = [f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "jaxlib") if importlib.util.find_spec(name)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source, *own], check=True)
    importlib.invalidate_caches()
if importlib.util.find_spec("experiments") is None:
    sys.path.insert(0, clone)

# %% tags=["parameters"]
import os

DIRECTORY = os.environ.get("GUIDANCE_JAX_MODEL", "stable-diffusion-v1-5")
TOY = "GUIDANCE_JAX_TOY" in os.environ  # runs in seconds, for the tests
STEPS, EACH = (3, 1) if TOY else (20, 4)  # EACH: images per prompt

# %%
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import guidance_jax as gj
from guidance_jax.pretrained import text_to_image

mesh = jax.make_mesh((jax.device_count(),), ("samples",), axis_types=(AxisType.Auto,))
over_devices, on_each = NamedSharding(mesh, PartitionSpec("samples")), NamedSharding(mesh, PartitionSpec())
published = Path(DIRECTORY, "model_index.json").exists()
BATCH = (1 if TOY else 4 if published else 64) * jax.device_count()
print(f"{jax.device_count()} {jax.devices()[0].device_kind}, {DIRECTORY if published else 'no weights: the small model'}")

# %% [markdown]
# ## The model
#
# A text-to-image model consists of pure functions and their parameters. The functions map texts to tokens and tokens to
# conditions. The denoiser takes a condition. A decoder maps latents to pixels. The weights are read from the files directly
# to the devices.

# %%
if published:
    model = text_to_image.load(DIRECTORY, dtype=jnp.bfloat16, sharding=on_each)
    params, tokenize, encode, denoiser, decode = model.params, model.tokenize, model.encode, model.denoiser, model.decode
    levels, shape = model.levels(STEPS), model.latents()
    SCALES = [1.0, 3.0, 7.5, 15.0]
    PROMPTS = ["a lighthouse on a cliff, oil painting", "a red fox in a forest, photograph"]
    NEGATIVE, PAIR = ("a red fox in a forest, photograph", "trees, leaves"), ("a red fox", "a lighthouse on a cliff")
else:
    from experiments.text_digits import model as text_model
    from experiments.text_digits import scenes

    tiny = text_model.Size(width=16, blocks=1, heads=2, text_width=8, text_blocks=1, text_heads=2)
    small = text_model.untrained(tiny) if TOY else text_model.trained()
    params, denoiser = jax.device_put(small.params, on_each), small.denoiser
    encode = lambda params, ids: small.read(params, ids)[0]
    tokenize = lambda texts: jnp.asarray(scenes.tokenise(texts))
    decode = lambda params, x: jnp.clip(x, -1, 1)
    levels = gj.levels(text_model.SCHEDULE, STEPS, gj.spacings.karras(sigma_min=0.02, sigma_max=60.0))
    shape = scenes.SHAPE
    SCALES = [0.0, 1.0, 3.0, 8.0]
    PROMPTS = ["a three to the left of a seven", "two fives", "an eight on the right", "a six alone"]
    NEGATIVE, PAIR = ("a three or a seven", "a seven"), ("a two", "a nine")

# %% [markdown]
# ## Sweep the scale
#
# CFG is $D = u + w\,(c - u)$, where $u$ is the prediction for the empty text. Each sample has its own scale, so one program
# and one batch have several prompts and scales. The batch is sharded over the devices.


# %%
encoded = jax.jit(encode)


@functools.partial(jax.jit, static_argnums=0)
def generate(guide, params, keys, conds, scale):
    """Images for the conditions of each branch. The first branch in alphabetical order is the base."""
    branches = gj.branches(denoiser(params), **conds)
    return decode(params, gj.sample(keys, branches, guide(scale), gj.dpmpp_2m(), levels, shape))


def pictures(guide, scales, **texts):
    """Images `[n, H, W, C]`, one per text, in batches of one size. The i-th images of all prompts start from the same noise."""
    n, parts = len(scales), []
    keys, scales = jax.random.split(jax.random.key(0), EACH), np.asarray(scales, np.float32)
    for rows in (np.arange(n + -n % BATCH) % n).reshape(-1, BATCH):
        tokens = {name: tokenize([some[i] for i in rows]) for name, some in texts.items()}
        keys_of, tokens, scale = jax.device_put((keys[rows % EACH], tokens, jnp.asarray(scales[rows])), over_devices)
        conds = {name: encoded(params, each) for name, each in tokens.items()}
        parts.append(np.asarray(generate(guide, params, keys_of, conds, scale)))
    return np.concatenate(parts)[:n]


def show(columns, rows):
    """Show the images `[rows, EACH, H, W, C]` of all columns side by side."""
    height, width = next(iter(columns.values())).shape[2:4]
    wide = 11 / len(columns)
    size = 11.5, 0.5 + wide * height * len(rows) / (width * EACH)
    _, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, layout="constrained")
    for axis, (title, images) in zip(axes[0], columns.items(), strict=True):
        framed = np.pad((images + 1) / 2, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
        axis.imshow(framed.transpose(0, 2, 1, 3, 4).reshape(len(rows) * (height + 2), EACH * (width + 2), -1), cmap="gray")
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0, 0].set_yticks((np.arange(len(rows)) + 0.5) * (height + 2), rows, fontsize=9)
    axes[0, 0].tick_params(length=0)
    plt.show()


grid = [(prompt, scale) for scale in SCALES for prompt in PROMPTS for _ in range(EACH)]
texts, scales = zip(*grid, strict=True)
images = pictures(gj.cfg, scales, cond=texts, uncond=[""] * len(texts))
images = images.reshape(len(SCALES), len(PROMPTS), EACH, *images.shape[1:])
show({f"w = {scale:g}": some for scale, some in zip(SCALES, images, strict=True)}, PROMPTS)

# %% [markdown]
# ## Other methods
#
# These guidance methods use the same noise and prompts: CFG in an interval of $\sigma / \alpha$, adaptive
# projected guidance (APG), and CFG-Zero*.

# %%
WAYS = {
    "CFG": gj.cfg,
    "interval": lambda scale: gj.during(gj.cfg(scale), 0.28, 5.42),
    "APG": lambda scale: gj.apg(scale, max_norm=7.5 if published else 2.5),
    "CFG-Zero*": gj.cfg_zero_star,
}
texts = [prompt for prompt in PROMPTS for _ in range(EACH)]
columns = {}
for name, guide in WAYS.items():
    images = pictures(guide, [SCALES[-1]] * len(texts), cond=texts, uncond=[""] * len(texts))
    columns[f"{name}, w = {SCALES[-1]:g}"] = images.reshape(len(PROMPTS), EACH, *images.shape[1:])
show(columns, PROMPTS)

# %% [markdown]
# ## Negative prompts and compositions
#
# A negative prompt replaces the empty text in $u$. Two prompts are composed by the sum of two contrasts,
# $D = u + w\,(c_1 - u) + w\,(c_2 - u)$.

# %%
both = lambda scale: gj.compose({"first": scale, "second": scale})
scales, prompts, empty = [SCALES[-2]] * EACH, NEGATIVE[:1] * EACH, [""] * EACH
columns = {
    NEGATIVE[0]: pictures(gj.cfg, scales, cond=prompts, uncond=empty),
    f"negative prompt: {NEGATIVE[1]}": pictures(gj.cfg, scales, cond=prompts, uncond=NEGATIVE[1:] * EACH),
    " AND ".join(PAIR): pictures(both, scales, first=PAIR[:1] * EACH, second=PAIR[1:] * EACH, uncond=empty),
}
show({title: images[None] for title, images in columns.items()}, [""])
