"""Model directories in the Hugging Face layout: `model_index.json`, and one directory per part with its configuration."""

import re
from collections.abc import Sequence
from pathlib import Path

from guidance_jax.pretrained.files import Tensor, open_weights
from guidance_jax.pretrained.settings import read_json as read_json

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""The names of weight files in diffusers and transformers."""
SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""The endings of files that hold a whole model."""


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
      FileNotFoundError: If there is no such directory.
      ValueError: If it is one file, or holds one and no parts.
    """
    if not directory.is_dir() and not directory.is_file():
        raise FileNotFoundError(f"there is no directory {directory.absolute()}.")
    there = [directory] if directory.is_file() else sorted(directory.iterdir())
    if {"model_index.json", "config.json"} & {path.name for path in there}:
        return directory
    for path in there:
        if path.is_file() and (path == directory or path.suffix in SINGLE):
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
