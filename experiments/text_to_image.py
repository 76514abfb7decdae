"""Text to image: reads a model directory and prompts, and writes PNGs and a grid of them.

`python -m experiments.text_to_image MODEL_DIR "a dog" --scale 7.5 --guidance apg`. With `--image` it starts from a picture.
With `--mask` in addition it repaints the white part of the mask.
"""

import dataclasses
import functools
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jax import Array
from PIL import Image, ImageOps

import guidance_jax as gj
from experiments.tools import memory, pictures
from guidance_jax.pretrained import text_to_image

WAYS: dict[str, Callable[[Any], gj.Guidance]] = {
    "none": lambda scale: gj.chain(),
    "cfg": gj.cfg,
    "calibrated": gj.cfg,
    "interval": lambda scale: gj.during(gj.cfg(scale), 0.28, 5.42),
    "rescale": lambda scale: gj.chain(gj.cfg(scale), gj.rescale(0.7)),
    "apg": lambda scale: gj.apg(scale, max_norm=7.5),
    "cfg_zero_star": gj.cfg_zero_star,
    "tcfg": gj.tcfg,
}
"""Guidance by the prompt against the negative prompt. Scale 1 is the conditional model. "calibrated" measures first."""
SAMPLERS = {
    "dpmpp_2m": gj.dpmpp_2m,
    "dpmpp_sde": gj.dpmpp_sde,
    "unipc": gj.unipc,
    "ddim": gj.ddim,
    "ddpm": gj.ddpm,
    "euler_ancestral": gj.euler_ancestral,
}
MOST_PIXELS = 2**26
"""Maximum number of pixels of an input picture."""
SPACINGS = {"published": None, "karras": gj.spacings.karras(), "trailing": gj.spacings.trailing()}


@dataclasses.dataclass(frozen=True)
class Config:
    """Pictures of prompts by a published text-to-image model.

    Args:
      model: A directory in the Hugging Face layout with Stable Diffusion 1.x, 2.x or XL.
      prompts: One or several prompts.
      negative: The negative prompt. The default is the unconditional input of the published model.
      guidance: The guidance method: none, cfg, calibrated, interval, rescale, apg, cfg_zero_star or tcfg.
      scale: One guidance scale, or one per prompt. Scale 1 is the conditional model.
      sampler: The sampler: dpmpp_2m, dpmpp_sde, unipc, ddim, ddpm or euler_ancestral.
      steps: Number of sampler steps.
      spacing: The spacing of the noise levels: published, karras or trailing.
      height: Height of the pictures in pixels. The default is that of the image, or else of the model.
      width: Width of the pictures in pixels. The default is that of the image, or else of the model.
      calibration: Number of unguided pictures of the prompts on which a calibrated scale is measured. They ignore the image.
      samples: Number of pictures per prompt.
      batch: Number of pictures per batch.
      seed: The seed. The noise of picture i depends on the seed and on i only.
      image: A picture to start from. It is rotated by its EXIF orientation.
      strength: The fraction of the path from noise that is sampled. The default is 0.8, or 1 with a mask.
      mask: A picture that is white where the image is repainted.
      tile: Decode in tiles with this side in latent pixels. One latent pixel is eight pixels of the picture.
      dtype: The data type of the networks.
      variant: The variant in the names of the weight files, for example fp16.
      out: The directory for the pictures.
    """

    model: tyro.conf.Positional[Path]
    prompts: tyro.conf.Positional[tuple[str, ...]]
    negative: str | None = None
    guidance: str = "cfg"
    scale: tuple[float, ...] = (7.5,)
    sampler: str = "dpmpp_2m"
    steps: int = 20
    spacing: str = "published"
    height: int | None = None
    width: int | None = None
    calibration: int = 64
    samples: int = 1
    batch: int = 4
    seed: int = 0
    image: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    tile: int | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    variant: str | None = None
    out: Path = Path("out/text_to_image")

    def __post_init__(self) -> None:
        for name, names in (("guidance", WAYS), ("sampler", SAMPLERS), ("spacing", SPACINGS)):
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}.")
        if not self.prompts or min(self.samples, self.batch, self.steps, self.calibration) < 1:
            raise ValueError(
                "prompts must not be empty, and samples, batch, steps and calibration must be at least 1, got "
                f"{len(self.prompts)} prompts, and {self.samples}, {self.batch}, {self.steps} and {self.calibration}."
            )
        if len(self.scale) not in (1, len(self.prompts)):
            raise ValueError(f"expected one scale or one per prompt, got {len(self.scale)} for {len(self.prompts)} prompts.")
        if self.guidance == "calibrated" and self.mask is not None:
            raise ValueError("a calibrated scale is measured on whole pictures. Use another guidance with a mask.")
        if self.image is None and (self.mask is not None or self.strength is not None):
            raise ValueError("mask and strength need an image. Use --image.")


def program(model: text_to_image.Model, config: Config, size: tuple[int, int]) -> Callable[..., Array]:
    """`(params, keys [B], prompts, negative, scale [B], image, known, curve) -> pictures [B, H, W, 3]` in [-1, 1]."""
    path = model.levels(config.steps, SPACINGS[config.spacing])
    if config.image is not None:
        default = 0.8 if config.mask is None else 1.0
        path = gj.schedules.strength(path, default if config.strength is None else config.strength)

    def generate(
        params: Any,
        keys: Array,
        prompts: Any,
        negative: Any,
        scale: Array,
        image: Array | None,
        known: Array | None,
        curve: gj.Curve | None = None,
    ) -> Array:
        sampler, start, channels = SAMPLERS[config.sampler](), model.latents(*size), None
        if image is not None:
            z = model.encode_image(params, image)
            start = gj.diffuse(keys, z, path[0])
            if known is not None and not model.added:
                sampler = gj.inpaint(sampler, z, model.mask(known))
        if model.added:
            if image is None or known is None:
                raise ValueError(f"{config.model} is an inpainting model. Use --image and --mask.")
            channels = model.painted(params, image, known)
        encode = functools.partial(model.encode, params, height=size[0], width=size[1], channels=channels)
        two = gj.branches(model.denoiser(params), cond=encode(prompts), uncond=encode(negative))
        guidance = WAYS[config.guidance](scale if curve is None else gj.scales.calibrated(curve, scale))
        x = gj.sample(keys, two, guidance, sampler, path, start)
        images = model.decode(params, x, tile=config.tile)
        return images if image is None or known is None else known * image + (1 - known) * images

    return generate


def measured(model: text_to_image.Model, config: Config, size: tuple[int, int]) -> gj.Curve:
    """The calibration for these prompts, on unguided pictures of them, one batch at a time."""
    path = model.levels(config.steps, SPACINGS[config.spacing])

    @jax.jit
    def part(params: Any, keys: Array, prompts: Any, negative: Any) -> gj.Calibration:
        encode = functools.partial(model.encode, params, height=size[0], width=size[1])
        two = gj.branches(model.denoiser(params), cond=encode(prompts), uncond=encode(negative))
        x0 = gj.sample(keys, two, gj.chain(), gj.dpmpp_2m(), path, model.latents(*size))
        return gj.calibrate(keys, two, x0, path)

    parts = []
    for start in range(0, config.calibration, config.batch):
        texts = [config.prompts[i % len(config.prompts)] for i in range(start, start + config.batch)]
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), start + 2**31), config.batch)
        parts.append(part(model.params, keys, model.tokenize(texts), model.tokenize([config.negative] * config.batch)))
    return functools.reduce(operator.add, parts).for_prompts


def read(path: Path, size: tuple[int, int] | None = None, method: str = "lanczos3") -> Array:
    """A picture, `[H, W, 3]` in [-1, 1], rotated by its EXIF orientation and resized to `size`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged, is no picture, or has more than `MOST_PIXELS` pixels.
    """
    try:
        with Image.open(path) as opened:
            opened.verify()  # It checks the checksums of a PNG. Afterwards the file must be opened again.
        with Image.open(path) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"it has {opened.width} x {opened.height} pixels, expected at most {MOST_PIXELS:,}")
            upright = ImageOps.exif_transpose(opened)
            deep = upright.mode.startswith("I")
            pixels = np.asarray(upright if deep else upright.convert("RGB"), np.float32) / np.float32(65535 if deep else 255)
    except FileNotFoundError:
        raise
    except Exception as error:  # Damaged pictures raise many kinds of errors.
        raise ValueError(f"{path} is no picture that can be read: {error}.") from error
    pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    image = jnp.asarray(2 * pixels - 1)
    return image if size is None else jnp.clip(jax.image.resize(image, (*size, 3), method), -1, 1)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - start


def main(config: Config) -> list[Path]:
    """Sample the pictures and write them. Returns their paths."""
    load = functools.partial(text_to_image.load, dtype=jnp.dtype(config.dtype), variant=config.variant)
    ((model, rise), loading) = timed(lambda: memory.peak(lambda: jax.block_until_ready(load(config.model))))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    beside = rise - (size if jax.default_backend() == "cpu" else 0)
    print(
        f"loaded {size / 1e9:.2f} GB of parameters in {loading:.1f} s, with at most {beside / 1e9:.2f} GB of other host memory"
    )
    image = None if config.image is None else read(config.image)
    like = model.size if image is None else tuple(n - n % model.factor for n in image.shape[:2])
    height, width = like or (None, None)
    height, width = (own if given is None else given for given, own in ((config.height, height), (config.width, width)))
    rows, columns, _ = model.latents(height, width)
    pixels = (rows * model.factor, columns * model.factor)
    count = len(config.prompts) * config.samples
    batch = min(config.batch, count)
    # Samples repeat to fill the last batch.
    index = np.resize(np.arange(count), -(-count // batch) * batch)
    texts = [config.prompts[i // config.samples] for i in range(count)]
    scales = np.resize(np.asarray(config.scale, np.float32), len(config.prompts)).repeat(config.samples)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(config.seed), jnp.arange(count))
    start, known = None, None
    if config.image is not None:
        start = jnp.tile(read(config.image, pixels)[None], (batch, 1, 1, 1))
    if config.mask is not None:
        white = read(config.mask, pixels, "nearest").mean(2, keepdims=True) > 0
        known = jnp.tile(1 - white.astype(jnp.float32)[None], (batch, 1, 1, 1))

    curve = None
    if config.guidance == "calibrated":
        curve, measuring = timed(lambda: measured(model, config, pixels))
        first, last = float(curve.rho[0]), float(curve.rho[-1])
        print(f"calibrated in {measuring:.1f} s: rho is {first:.2f} at the maximum noise level and {last:.2f} at the minimum")

    def arguments(part: np.ndarray) -> tuple[Any, ...]:
        prompts, negative = model.tokenize([texts[i] for i in part]), model.tokenize([config.negative] * batch)
        return model.params, keys[part], prompts, negative, jnp.asarray(scales[part]), start, known, curve

    parts = index.reshape(-1, batch)
    compiled, compiling = timed(lambda: jax.jit(program(model, config, pixels)).lower(*arguments(parts[0])).compile())
    print(f"compiled in {compiling:.1f} s")
    drawn, drawing = timed(lambda: [np.asarray(compiled(*arguments(part))) for part in parts])
    print(f"{drawing / index.size:.2f} s per picture of {pixels[0]} x {pixels[1]}, {config.steps} steps, batches of {batch}")
    images = np.concatenate(drawn)[:count]
    config.out.mkdir(parents=True, exist_ok=True)
    paths = [config.out / f"{i:04d}.png" for i in range(count)]
    for path, picture in zip(paths, images, strict=True):
        plt.imsave(path, (picture + 1) / 2)
    grid = images.reshape(len(config.prompts), config.samples, *images.shape[1:])
    plt.imsave(config.out / "grid.png", pictures.montage(grid, rows=config.prompts))
    return paths


if __name__ == "__main__":
    main(tyro.cli(Config))
