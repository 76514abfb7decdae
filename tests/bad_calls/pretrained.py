# type: ignore  # every row is wrong, its types too
"""Wrong calls of a text-to-image model, and wrong model directories."""

import functools
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from published import write_model

import guidance_jax as gj
from bad_calls.world import KEYS, Row, TorchModule, X
from guidance_jax.pretrained import text_to_image

IMAGES, KNOWN, LATENTS = jnp.zeros((2, 16, 24, 3)), jnp.ones((2, 16, 24, 1)), jnp.zeros((2, 8, 12, 4))


@functools.cache
def written(name):
    """The temporary directory of a tiny model."""
    options = {"xl": {"xl": True}, "sizeless": {"unet": {"sample_size": None}}, "nine": {"unet": {"in_channels": 9}}}
    directory = tempfile.TemporaryDirectory()
    write_model(Path(directory.name), **options.get(name, {}))
    return directory


@functools.cache
def model(name="first"):
    """A tiny model: of Stable Diffusion, of XL, or one whose files do not state its image size."""
    return text_to_image.load(written(name).name)


def on(name, *args, of="first", **options):
    return getattr(model(of), name)(*args, **options)


def with_params(name, *args, of="first", **options):
    return on(name, model(of).params, *args, of=of, **options)


def encoded(of="first", **options):
    return with_params("encode", on("tokenize", ["a dog", "a cat"], of=of), of=of, **options)


@functools.cache
def condition(of="first"):
    """The condition of two prompts, of one program."""
    prompts = on("tokenize", ["a dog", "a cat"], of=of)
    return jax.jit(lambda params: on("encode", params, prompts, of=of))(model(of).params)


def denoised(x, cond, of="first"):
    level = jax.tree.map(lambda field: field[0], model(of).levels(2))
    return with_params("denoiser", of=of)(x, level, cond)


def loaded(files, **options):
    with tempfile.TemporaryDirectory() as directory:
        for name in files:
            (Path(directory) / name).write_bytes(b"{}")
        return text_to_image.load(Path(directory) / options.pop("inside", "."), **options)


def of_variant(variant, files):
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(written("first").name, directory, dirs_exist_ok=True)
        for name in files:
            (Path(directory) / name).write_bytes(b"")
        return text_to_image.load(directory, variant=variant)


ROWS: dict[str, Row] = {
    # Prompts.
    "a prompt for prompts": (lambda: on("tokenize", "a dog"), TypeError, r"a list of prompts, got the str 'a dog'; use \["),
    "a prompt of bytes": (lambda: on("tokenize", b"a dog"), TypeError, r"a list of prompts, got the bytes b'a dog'; use \["),
    "no prompts": (lambda: on("tokenize", []), ValueError, r"at least one prompt, got none; use \[None\]"),
    "none for prompts": (lambda: on("tokenize", None), TypeError, r"a list of prompts, got None"),
    "a number of prompts": (lambda: on("tokenize", 4), TypeError, r"a list of prompts, got the int 4"),
    "prompts by name": (lambda: on("tokenize", {"cond": "a dog"}), TypeError, r"a list of prompts, got the dict"),
    "a number among prompts": (lambda: on("tokenize", ["a", 1]), TypeError, r"texts\[1\] must be a string, or None.*the int 1"),
    "prompts in prompts": (lambda: on("tokenize", [["a dog"]]), TypeError, r"texts\[0\] must be a string.*the list"),
    "half a sign": (lambda: on("tokenize", ["a \ud83d"]), ValueError, r"texts\[0\] holds.* surrogate pair.*as UTF-8"),
    "a long prompt, whole": (
        lambda: on("tokenize", ["dog " * 10**5], whole=True),
        ValueError,
        r"^.{1,90} is longer than the window of 13 tokens; too long by .{1,90} of [\d,]+ characters",
    ),
    # Sizes.
    "a negative height": (lambda: on("latents", -8, 8), ValueError, r"latents: height must be an integer, at least 1, got -8"),
    "a width of nothing": (lambda: on("latents", 8, 0), ValueError, r"latents: width must be an integer, at least 1, got 0"),
    "a height of nothing": (lambda: on("latents", 0, 0), ValueError, r"latents: height must be an integer, at least 1, got 0"),
    "a height of 8.0": (
        lambda: on("latents", 8.0, 8.0),
        TypeError,
        r"height must be an integer, at least 1, got the float 8\.0",
    ),
    "a true height": (lambda: on("latents", True), TypeError, r"height must be an integer, at least 1, got the bool True"),
    "a height in words": (lambda: on("latents", "512"), TypeError, r"height must be an integer, at least 1, got the str '512'"),
    "a size for a height": (
        lambda: on("latents", (512, 512)),
        TypeError,
        r"height must be an integer, at least 1, got the tuple",
    ),
    "a height of half a latent": (lambda: on("latents", 15, 16), ValueError, r"multiple of 2.*got 15 pixels; use 16"),
    "no size at all": (lambda: on("latents", of="sizeless"), ValueError, r"its training size; give height"),
    "half of no size": (lambda: on("latents", 16, of="sizeless"), ValueError, r"its training size; give width"),
    "XL of no size": (
        lambda: encoded("xl", height=16, width=-8),
        ValueError,
        r"encode: width must be an integer, at least 1, got -8",
    ),
    "an odd size for a model without size conditions": (
        lambda: encoded(height=15, width=16),
        ValueError,
        r"multiple of 2.*got 15 pixels",
    ),
    "a step and a half": (
        lambda: on("levels", 1.5),
        TypeError,
        r"levels: steps must be an integer, at least 1, got the float 1\.5",
    ),
    "a true step": (lambda: on("levels", True), TypeError, r"levels: steps must be an integer, at least 1, got the bool True"),
    "no step": (lambda: on("levels", 0), ValueError, r"levels: steps must be an integer, at least 1, got 0"),
    "fewer than no steps": (lambda: on("levels", -3), ValueError, r"levels: steps must be an integer, at least 1, got -3"),
    "more steps than the model has": (lambda: on("levels", 5000), ValueError, r"at most the 1000 training steps.*got 5000"),
    "a path by name": (lambda: on("levels", 10, "karras"), TypeError, r"spacing.*'karras'.*karras\(\)"),
    # Conditions.
    "texts that are not tokenised": (lambda: with_params("encode", ["a dog"]), TypeError, r"Prompts, got the list.*tokenize"),
    "a text that is not tokenised": (lambda: with_params("encode", "a dog"), TypeError, r"Prompts, got the str.*tokenize"),
    "prompts of another model": (
        lambda: with_params("encode", on("tokenize", ["a dog"]), of="xl"),
        ValueError,
        r"each of 2 encoders.*got ids \(1, 13\) and.*this model's tokenize",
    ),
    "parameters of nothing": (lambda: on("encode", {}, on("tokenize", ["a"])), TypeError, r"text_encoder.*use model\.params"),
    "no parameters": (lambda: on("encode", None, on("tokenize", ["a"])), TypeError, r"params.*got None; use model\.params"),
    "sizes for another model": (lambda: encoded(sizes=(8, 8, 0, 0, 8, 8)), ValueError, r"only XL takes them; leave them out"),
    "two sizes": (lambda: encoded("xl", sizes=(8, 8)), ValueError, r"sizes must be \[6\] or \[B, 6\] with B = 2, got.*\(2,\)"),
    "sizes in words": (lambda: encoded("xl", sizes="8x8"), TypeError, r"sizes must be a real number.*'8x8'"),
    "sizes of NaN": (lambda: encoded("xl", sizes=(8, 8, 0, 0, 8, np.nan)), ValueError, r"sizes must be finite"),
    "channels for another model": (
        lambda: encoded(channels=X),
        ValueError,
        r"takes 0 channels.*\[B, h, w, 0\], got float32\[2,2\].*expected None",
    ),
    "channels that are images": (
        lambda: encoded("nine", channels=IMAGES),
        ValueError,
        r"takes 5 channels.*float32\[2,16,24,3\].*painted\(params, images, known\)",
    ),
    "channels of whole numbers": (
        lambda: encoded("nine", channels=jnp.ones((2, 8, 12, 5), int)),
        TypeError,
        r"channels must be an array of floating numbers.*int32",
    ),
    # The denoiser.
    "a network without parameters": (
        lambda: on("denoiser", None),
        TypeError,
        r"hold the parameters of unet, got None; use model\.params",
    ),
    "a network of the encoder's": (
        lambda: on("denoiser", {"vae": {}}),
        TypeError,
        r"hold the parameters of unet, got \['vae'\]; use model\.params",
    ),
    "prompts for a condition": (
        lambda: denoised(LATENTS, on("tokenize", ["a", "b"])),
        TypeError,
        r"cond must be a Condition, got a Prompts.*model\.encode",
    ),
    "images for latents": (
        lambda: denoised(IMAGES, condition()),
        ValueError,
        r"latents x must be \[B, h, w, 4\], got float32\[2,16,24,3\]",
    ),
    "latents of no axes": (lambda: denoised(jnp.zeros((2, 8)), condition()), ValueError, r"\[B, h, w, 4\], got float32\[2,8\]"),
    "latents of whole numbers": (
        lambda: denoised(jnp.zeros((2, 8, 12, 4), int), condition()),
        TypeError,
        r"latents x must be an array of floating.*int32",
    ),
    "nothing of what to paint": (
        lambda: denoised(LATENTS, condition("nine"), "nine"),
        ValueError,
        r"takes 5 channels beside the latents, got 0; use channels=painted",
    ),
    "what to paint of another size": (
        lambda: denoised(LATENTS, encoded("nine", channels=jnp.ones((2, 8, 8, 5))), "nine"),
        ValueError,
        r"channels must be \[B, 8, 12, 5\], got float32\[2,8,8,5\]; use painted",
    ),
    # Images and latents.
    "images to decode": (lambda: with_params("decode", IMAGES), ValueError, r"latents x must be \[B, h, w, 4\].*float32"),
    "a latent to decode": (lambda: with_params("decode", LATENTS[0]), ValueError, r"latents x must be.*float32\[8,12,4\]"),
    "a list to decode": (lambda: with_params("decode", [1.0]), TypeError, r"latents x must be an array.*the list \[1\.0\]"),
    "half a tile": (lambda: with_params("decode", LATENTS, tile=4.5), TypeError, r"tile must be an integer.*4\.5"),
    "no tile": (
        lambda: with_params("decode", LATENTS, tile=0),
        ValueError,
        r"decode: tile must be an integer, at least 1, got 0",
    ),
    "pixels of 8 bits": (
        lambda: with_params("encode_image", np.zeros((1, 16, 16, 3), np.uint8)),
        TypeError,
        r"images must be an array of floating.*got uint8\[1,16,16,3\]",
    ),
    "pixels up to 255": (
        lambda: with_params("encode_image", IMAGES + 255.0),
        ValueError,
        r"images must be in \[-1, 1\] and finite, got values from 255 to 255; .*pixels / 127\.5 - 1",
    ),
    "images of NaN": (
        lambda: with_params("encode_image", IMAGES * jnp.nan),
        ValueError,
        r"in \[-1, 1\] and finite, got values from nan",
    ),
    "images of one channel": (
        lambda: with_params("encode_image", IMAGES[..., :1]),
        ValueError,
        r"images must be \[B, H, W, 3\], got float32\[2,16,24,1\]",
    ),
    "images with channels first": (
        lambda: with_params("encode_image", IMAGES.transpose(0, 3, 1, 2)),
        ValueError,
        r"images must be \[B, H, W, 3\], got float32\[2,3,16,24\]",
    ),
    "one image": (lambda: with_params("encode_image", IMAGES[0]), ValueError, r"\[16,24,3\]; use image\[None\] for one"),
    "an image's file": (lambda: with_params("encode_image", "dog.png"), TypeError, r"images must be an array.*'dog\.png'"),
    "images of an odd side": (lambda: with_params("encode_image", IMAGES[:, :15]), ValueError, r"multiple of 2.*got 15 pixels"),
    "a seed for keys": (lambda: with_params("encode_image", IMAGES, 0), TypeError, r"keys must be an array of PRNG.*the int 0"),
    "one key for two images": (
        lambda: with_params("encode_image", IMAGES, KEYS[:1]),
        ValueError,
        r"one per image, B = 2, got 1",
    ),
    # Masks.
    "a mask of two axes": (lambda: on("mask", KNOWN[0, :, :, 0]), ValueError, r"\[B, H, W, 1\], got the shape \(16, 24\)"),
    "a mask of 255": (lambda: on("mask", KNOWN * 255), ValueError, r"only 0 and 1, got.*from 255 to 255; use mask > 0\.5"),
    "a mask of halves": (lambda: on("mask", KNOWN / 2), ValueError, r"only 0 and 1, got values from 0\.5"),
    "a mask of NaN": (lambda: on("mask", KNOWN * jnp.nan), ValueError, r"only 0 and 1, got values from nan"),
    "a mask of an odd side": (lambda: on("mask", KNOWN[:, :, :23]), ValueError, r"multiple of 2.*got 23 pixels"),
    "a mask by name": (lambda: on("mask", "left"), TypeError, r"known must be a real number or an array.*'left'"),
    "a mask of another size": (
        lambda: with_params("painted", IMAGES, KNOWN[:, :8]),
        ValueError,
        r"known must be \[2 or 1, 16, 24, 1\], got the shape \(2, 8, 24, 1\)",
    ),
    "three masks for two images": (
        lambda: with_params("painted", IMAGES, jnp.ones((3, 16, 24, 1))),
        ValueError,
        r"known must be \[2 or 1, 16, 24, 1\], got the shape \(3, 16, 24, 1\)",
    ),
    "pixels of 8 bits to paint": (
        lambda: with_params("painted", np.zeros((2, 16, 24, 3), np.uint8), KNOWN),
        TypeError,
        r"images must be an array of floating.*got uint8",
    ),
    # Directories.
    "a scheduler's configuration": (
        lambda: gj.pretrained.schedulers.scheduling({"beta_schedule": "linear"}),
        ValueError,
        r"scheduling: config must be a dictionary with _class_name, got \{'beta.*json\.loads\(scheduler\.to_json_string\(\)\)",
    ),
    "a scheduler's text": (
        lambda: gj.pretrained.schedulers.scheduling('{"_class_name": "DDIMScheduler"}'),
        TypeError,
        r"scheduling: config must be a dictionary.*got the str .*json\.loads",
    ),
    "a scheduler": (
        lambda: gj.pretrained.schedulers.scheduling(TorchModule()),
        TypeError,
        r"scheduling: config must be a dictionary.*got the PyTorch object.*json\.loads",
    ),
    "a scheduler of two kinds of levels": (
        lambda: gj.pretrained.schedulers.scheduling(
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_exponential_sigmas": True}
        ),
        ValueError,
        r"use_karras_sigmas and use_exponential_sigmas of .*exclude each other, got both",
    ),
    "a directory for a module": (
        lambda: gj.pretrained.load("model"),
        TypeError,
        r"load: build must be a function that makes a module, got the str 'model'.*gj\.pretrained\.text_to_image\.load",
    ),
    "a module in place of its maker": (
        lambda: gj.pretrained.load(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {}),
        TypeError,
        r"load: build must be a function.*got a Linear.*lambda rngs",
    ),
    "half precision for a module": (
        lambda: gj.pretrained.load(lambda rngs: nnx.Linear(2, 2, rngs=rngs), {}, dtype="fp16"),
        TypeError,
        r"load: dtype must be float32 or bfloat16, got the str 'fp16'",
    ),
    "weights without names": (lambda: gj.pretrained.from_arrays([X]), TypeError, r"arrays must be a dictionary.*got the list"),
    "a model that is nowhere": (lambda: text_to_image.load("/nowhere/at/all"), FileNotFoundError, r"no directory /nowhere/at"),
    "a model in one file": (
        lambda: loaded(["v1-5.safetensors"], inside="v1-5.safetensors"),
        ValueError,
        r"v1-5\.safetensors is one file, expected a directory.*from_single_file\(\"v1-5\.safetensors\"\)",
    ),
    "a directory of one file": (
        lambda: loaded(["v1-5.ckpt", "README.md"]),
        ValueError,
        r"v1-5\.ckpt is one file, expected a directory.*from_single_file\(\"v1-5\.ckpt\"\)",
    ),
    "a part of a model": (
        lambda: loaded(["config.json", "model.safetensors"]),
        FileNotFoundError,
        r"there is no .*model_index\.json, which a directory",
    ),
    "no directory": (lambda: text_to_image.load(None), TypeError, r"directory must be a path, got None"),
    "a dtype that is none": (
        lambda: loaded([], dtype="fp8"),
        TypeError,
        r"dtype must be float32 or bfloat16, got the str 'fp8'",
    ),
    "a model in half precision": (lambda: loaded([], dtype="float16"), ValueError, r"float32 or bfloat16, got .float16."),
    "a variant that is not there": (
        lambda: of_variant("fp61", ["unet/model.fp16.safetensors", "vae/model.non_ema.bin"]),
        FileNotFoundError,
        r"no part .* variant 'fp61': there are 'fp16', 'non_ema'\.",
    ),
    "a variant where there is none": (
        lambda: of_variant("fp16", ["unet/model.bf16-00001-of-00002.safetensors"]),
        FileNotFoundError,
        r"no part .* variant 'fp16': there is none; leave it out\.",
    ),
}
