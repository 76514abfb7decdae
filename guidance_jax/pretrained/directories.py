"""Model directories in the Hugging Face layout: `model_index.json`, and a directory for each part with its configuration."""

from pathlib import Path

from guidance_jax.pretrained.files import Tensor, open_weights
from guidance_jax.pretrained.settings import read_json as read_json

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What diffusers and transformers call a part's weights."""


def weights_file(part: Path, variant: str | None = None) -> Path:
    """The file of a part's weights, or the index of several.

    Args:
      part: the part's directory.
      variant: "fp16" for `*.fp16.safetensors`, where the part has one; the plain file otherwise.

    Raises:
      FileNotFoundError: if there is none, naming what is there.
    """
    infixes = ["", *([f".{variant}"] if variant else [])][::-1]
    for infix in infixes:
        for stem in STEMS:
            for name in (f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.bin"):
                if (part / name).is_file():
                    return part / name
    there = sorted(path.name for path in part.iterdir()) if part.is_dir() else []
    variants = sorted({name.split(".")[1] for name in there if name.endswith(".safetensors") and name.count(".") == 2})
    hint = f' Pass variant="{variants[0]}".' if variants else ""
    raise FileNotFoundError(
        f"there are no weights in {part}: expected {' or '.join(f'{stem}.safetensors' for stem in STEMS[:2])}, or their index, "
        f"and found {', '.join(there) or 'nothing'}.{hint}"
    )


def open_part(part: Path, variant: str | None = None) -> dict[str, Tensor]:
    """A part's weights, not read yet."""
    return open_weights(weights_file(part, variant))
