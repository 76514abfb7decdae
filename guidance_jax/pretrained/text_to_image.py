"""Text-to-image models, Stable Diffusion 1, 2 and XL, from a model directory."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from guidance_jax.checks.door import door
from guidance_jax.networks import from_nnx
from guidance_jax.pretrained import autoencoder, clip, unet, weights
from guidance_jax.pretrained.checks import FilePath, Parameters
from guidance_jax.pretrained.directories import (
    OTHERS,
    SUPPORTED,
    check_directory,
    check_variant,
    open_part,
    read_json,
)
from guidance_jax.pretrained.models import Condition, Model, Prompts
from guidance_jax.pretrained.schedulers import scheduling
from guidance_jax.pretrained.tokens import open_tokenizer

__all__ = ["Condition", "Model", "Prompts", "load"]

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)
ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"} | dict.fromkeys(
    ENCODERS, "CLIPTextModel or CLIPTextModelWithProjection"
)


@door()
def load(
    directory: FilePath,
    *,
    dtype: Parameters = jnp.float32,
    sharding: weights.Place = None,
    variant: str | None = None,
) -> Model:
    """A text-to-image model from a directory in the Hugging Face layout: Stable Diffusion 1.x, 2.x, XL, and inpainting.

    SD3 and FLUX are not supported. Nothing is downloaded, and no code in a file is run: only safetensors, JSON and the tensors
    of pickles are read. The weights go from the files to the devices, one at a time. A safety checker in the directory is not
    read.

    Settings of older directories of Stable Diffusion 1 and 2 are corrected as in diffusers' pipelines. A scheduler's
    `steps_offset` becomes 1, and its `clip_sample` False, except for inpainting. The U-Net's `sample_size` of versions before
    0.9 becomes at least 64.

    Args:
      directory: The directory with `model_index.json`, `unet/`, `vae/`, `text_encoder/`, `tokenizer/` and `scheduler/`; for XL
        also `text_encoder_2/` and `tokenizer_2/`.
      dtype: The dtype of the parameters and of the computation, float32 or bfloat16.
      sharding: The placement of the weights, as for `pretrained.load`.
      variant: "fp16" for files `*.fp16.safetensors`, if a part has one.

    Raises:
      FileNotFoundError: If the directory or a file is missing. The error names it. For a directory it has the command that
        downloads the model.
      ValueError: If a file is damaged, or a part or a setting is not supported. The error names it.
      TypeError: If directory is not a path, or dtype is not a dtype.
      ImportError: If the packages safetensors or tokenizers are not installed.

    Example:
      ```python
      model = gj.pretrained.text_to_image.load("stable-diffusion-v1-5", dtype=jnp.bfloat16)
      prompts, negative = model.tokenize(["a dog", "a cat on a mat"]), model.tokenize([None, "blurry"])

      @jax.jit
      def generate(params, keys, prompts, negative, scale):
          conds = {"cond": model.encode(params, prompts), "uncond": model.encode(params, negative)}
          two = gj.branches(model.denoiser(params), **conds)
          x = gj.sample(keys, two, gj.cfg(scale), gj.dpmpp_2m(), model.levels(20), model.latents(512, 512))
          return model.decode(params, x)

      images = generate(model.params, jax.random.split(jax.random.key(0), 2), prompts, negative, jnp.array([7.5, 3.0]))
      ```

    Reference: Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, arXiv:2307.01952.
    """
    directory = check_directory(Path(directory))
    index = read_json(directory / "model_index.json", "which a directory in the Hugging Face layout of diffusers has")
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        advice = f" {SUPPORTED}" if OTHERS.search(str(kind)) else ""
        raise ValueError(f"{directory} holds a {kind}, expected one of {', '.join(PIPELINES)}.{advice}")
    with _naming(directory / "model_index.json"):
        classes = {name: _class_of(index, name) for name in (*PARTS, "scheduler")}
    names = [name for name in ENCODERS if classes[name] is not None]
    if not names:
        raise ValueError(f"{directory / 'model_index.json'} names no text encoder.")
    parts = [name for name in PARTS if name in ("unet", "vae", *names)]
    for name in parts:
        if classes[name] not in PARTS[name].split(" or "):
            raise ValueError(f"{directory}'s {name} is a {classes[name]}, expected {PARTS[name]}.")
    check_variant([directory / name for name in parts], variant)
    settings = {name: read_json(directory / name / "config.json", f"the configuration of the {name}") for name in parts}
    planned = read_json(directory / "scheduler" / "scheduler_config.json", "the configuration of the scheduler")
    with _naming(directory / "scheduler"):
        scheduler = scheduling(_in_pipeline(planned, kind, classes["scheduler"]))
    with _naming(directory / "unet"):
        size = _size(settings["unet"], kind)

    def part(name: str, read: Callable[[Any], Any], build: Callable[..., Any], **options: Any) -> tuple[Any, Any]:
        with _naming(directory / name):
            config = read(settings[name])
            tensors = open_part(directory / name, variant)
            made = weights.load(functools.partial(build, config), tensors, dtype=dtype, sharding=sharding, **options)
            return config, made

    of_clip = {"rename": clip.published_name, "ignored": clip.IGNORED}
    read = {name: part(name, clip.clip_text_config, clip.CLIPText, **of_clip) for name in names}
    encoders = {name: from_nnx(encoder) for name, (_, encoder) in read.items()}
    latent, vae = part("vae", autoencoder.autoencoder_config, autoencoder.AutoencoderKL, rename=autoencoder.current_name)
    config, network = part("unet", unet.unet_condition_config, unet.UNet2DCondition)
    (encode, vae_params), (decode, _), (apply, unet_params) = (
        from_nnx(vae, "encode"),
        from_nnx(vae, "decode"),
        from_nnx(network),
    )
    xl, added = "XL" in kind, config.in_channels - latent.latent_channels
    if added not in (0, 1 + latent.latent_channels):
        raise ValueError(
            f"{directory / 'unet'}: a network of {config.in_channels} channels is not supported, expected "
            f"{latent.latent_channels} or, for inpainting, {2 * latent.latent_channels + 1}."
        )
    return Model(
        params={"unet": unet_params, "vae": vae_params} | {name: params for name, (_, params) in encoders.items()},
        unet=apply,
        encoders={name: encode for name, (encode, _) in encoders.items()},
        vae=(encode, decode),
        tokenizers=tuple(open_tokenizer(directory / ENCODERS[name], config) for name, (config, _) in read.items()),
        scheduling=scheduler,
        latent=latent,
        added=added,
        size=size and (size[0] * latent.factor, size[1] * latent.factor),
        sizes=(5 if index.get("requires_aesthetics_score") else 6) if xl else 0,
        zeros=xl and index.get("force_zeros_for_empty_prompt", True),
    )


def _class_of(index: Mapping[str, Any], name: str) -> str | None:
    """The class of a part, None if the pipeline has no such part."""
    part = index.get(name)
    if part is None:
        return None
    if not (isinstance(part, list) and len(part) == 2 and all(word is None or isinstance(word, str) for word in part)):
        raise ValueError(f"{name} must be [library, class], got {part!r:.80}.")
    return part[1]


def _in_pipeline(config: Mapping[str, Any], kind: str, named: str | None) -> dict[str, Any]:
    """A scheduler's settings after the changes of diffusers' pipeline. The index names the class."""
    config = dict(config) | ({} if named is None else {"_class_name": named})
    if "XL" in kind:
        return config
    return config | {"steps_offset": 1} | ({} if "Inpaint" in kind else {"clip_sample": False})


def _size(config: Mapping[str, Any], kind: str) -> tuple[int, int] | None:
    """The height and width of the U-Net's training, in pixels of the latents; None if its file does not state them."""
    size = config.get("sample_size")
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"sample_size must be one side, [height, width] or null, got {size!r:.80}.")
    version = re.match(r"v?(\d+)(?:\.(\d+))?", str(config.get("_diffusers_version", "")))
    old = version is not None and (int(version[1]), int(version[2] or 0)) < (0, 9)
    if old and isinstance(size, int) and size < 64 and "XL" not in kind:
        return 64, 64
    return sides[0], sides[1]


@contextlib.contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Adds the place to a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
