"""Small valid files of every kind that the library and the experiments read, and the values read from each."""

import dataclasses
import gzip
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from pickled import tensor, write
from PIL import Image
from published import SCHEDULER, TEXT, UNET, VAE, XL, write_model, write_tokenizer
from safetensors.numpy import save_file

from experiments.text_to_image import read as read_picture
from experiments.tools import idx, shards
from guidance_jax import pretrained
from guidance_jax.pretrained import autoencoder, clip, schedulers, text_to_image, tokens, unet
from guidance_jax.pretrained.settings import read_json


class Kind(NamedTuple):
    """A kind of file, or a set of files in one directory."""

    write: Callable[[Path], Any]
    """Into a directory."""
    read: Callable[[Path], Any]
    """What a directory's files hold: a tree of arrays, numbers and strings."""
    checked: Callable[[str], bool]
    """Whether all that is read of a file, by its name, is held against a checksum in it, or beside it."""
    mutated: Callable[[str], bool] = lambda name: True
    """Which files are changed."""
    rare: bool = False
    """Whether reading takes seconds."""


ALL, NONE = lambda name: True, lambda name: False
ZIPS = (".pt", ".bin", ".ckpt", ".pth.tar")


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("a.weight", (3, 5)), ("a.bias", (3,)))}
    return made | {
        "half": rng.standard_normal((2, 3)).astype(np.float16),
        "brain": rng.standard_normal(7).astype(ml_dtypes.bfloat16),
        "steps": np.arange(4),
        "on": np.array([True, False]),
        "number": np.array(3.5),
    }


STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "V2": "BFloat16Storage", "i8": "LongStorage", "b1": "BoolStorage"}
STORAGES |= {"f8": "DoubleStorage"}


def pickled(path: Path, held: dict[str, np.ndarray], around: Callable[[Any], Any] = lambda tensors: tensors) -> None:
    kind = lambda array: "BFloat16Storage" if array.dtype == ml_dtypes.bfloat16 else STORAGES[array.dtype.str[1:]]
    tensors = {name: tensor(str(i), array, kind(array)) for i, (name, array) in enumerate(held.items())}
    write(path, around(tensors), {str(i): array for i, array in enumerate(held.values())})


def checkpoint(directory: Path) -> None:
    beside = {"step": 400_000, "lr": [1e-4, None, True], "names": ("a", b"b"), "empty": {}}
    pickled(directory / "w.ckpt", arrays(), lambda tensors: {"ema": tensors, **beside})


def halves() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    held = list(arrays().items())
    return dict(held[:3]), dict(held[3:])


def indexed(directory: Path, kind: str, save: Callable[[Path, dict[str, np.ndarray]], Any]) -> None:
    files = {f"w-{i}-of-2.{kind}": part for i, part in enumerate(halves())}
    for file, part in files.items():
        save(directory / file, part)
    index = {"metadata": {"total_size": 99}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (directory / f"w.{kind}.index.json").write_text(json.dumps(index))


def weights(name: str) -> Callable[[Path], Any]:
    return lambda place: {key: held.read(...) for key, held in pretrained.open_weights(place / name).items()}


def settings(
    config: dict[str, Any], read: Callable[[dict[str, Any]], Any]
) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    """A settings file and the function that reads it. Every error names the file's path."""

    def opened(directory: Path) -> Any:
        found = read_json(directory / "config.json", "a configuration")
        with text_to_image._naming(directory):
            return read(found)

    return lambda place: (place / "config.json").write_text(json.dumps(config, indent=1)), opened


def scheduled(config: dict[str, Any]) -> Any:
    scheduling = schedulers.scheduling(config)
    path = scheduling.levels(4)
    return scheduling.predicts, scheduling.clean, path.t, path.alpha, path.sigma


def sizes(config: Any) -> str:
    return repr(dataclasses.asdict(config))


def idx_files(zipped: bool) -> Callable[[Path], None]:
    def made(directory: Path) -> None:
        rng = np.random.default_rng(0)
        for name, array in (("images", rng.integers(256, size=(9, 4, 5))), ("labels", rng.integers(10, size=9))):
            content = (
                b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
            )
            (directory / name).write_bytes(gzip.compress(content, mtime=0) if zipped else content)

    return made


def sharded(directory: Path) -> None:
    made = shards.Shards(directory, np.arange(7, dtype=np.int32), 4, {"way": "cfg", "scale": 2.0})
    made.claim()
    for number in range(made.count):
        rng = np.random.default_rng(number)
        made.write(number, rng.integers(256, size=(len(made.indices(number)), 3, 2, 1), dtype=np.uint8))


def picture(name: str) -> Callable[[Path], None]:
    def made(directory: Path) -> None:
        image = Image.fromarray(np.random.default_rng(0).integers(256, size=(6, 9, 3), dtype=np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(directory / name, exif=exif)

    return made


def tokenized(directory: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tokens.open_tokenizer(directory)(["a dog on the mat", "", "cat! 7"])


def loaded(directory: Path) -> Any:
    model = text_to_image.load(directory)
    path = model.levels(3)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)], path.t, path.sigma, model.tokenize(["a dog"]).ids


SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False, "trained_betas": [0.1, 0.2, 0.3, 0.4, 0.5]},
    "PNDMScheduler": SCHEDULER,
    "EulerDiscreteScheduler": {"timestep_spacing": "trailing", "use_karras_sigmas": True},
    "DPMSolverMultistepScheduler": {"lambda_min_clipped": -float("inf"), "num_train_timesteps": 100},
}
KINDS = {
    "a pickle": Kind(checkpoint, weights("w.ckpt"), ALL),
    "a pickle of a state dict": Kind(lambda place: pickled(place / "w.pth.tar", arrays()), weights("w.pth.tar"), ALL),
    "pickles and their index": Kind(
        lambda place: indexed(place, "bin", lambda path, part: pickled(path, part)), weights("w.bin.index.json"), ALL
    ),
    "a safetensors file": Kind(lambda place: save_file(arrays(), place / "w.safetensors"), weights("w.safetensors"), NONE),
    "safetensors and their index": Kind(
        lambda place: indexed(place, "safetensors", lambda path, part: save_file(part, path)),
        weights("w.safetensors.index.json"),
        lambda name: name.endswith(".json"),
    ),
    **{
        f"a {name}'s settings": Kind(*settings({"_class_name": name} | more, scheduled), NONE)
        for name, more in SCHEDULERS.items()
    },
    "a U-Net's settings": Kind(*settings(UNET | XL, lambda config: sizes(unet.unet_condition_config(config))), NONE),
    "an autoencoder's settings": Kind(*settings(VAE, lambda config: sizes(autoencoder.autoencoder_config(config))), NONE),
    "a text encoder's settings": Kind(*settings(TEXT, lambda config: sizes(clip.clip_text_config(config))), NONE),
    "a tokeniser's files": Kind(write_tokenizer, tokenized, NONE),
    "gzipped IDX files": Kind(idx_files(True), lambda place: idx.pair(place / "images", place / "labels", (4, 5, 1), 10), ALL),
    "IDX files": Kind(idx_files(False), lambda place: idx.pair(place / "images", place / "labels", (4, 5, 1), 10), NONE),
    "shards": Kind(sharded, shards.samples, ALL, lambda name: name.endswith(".npz")),
    "a PNG": Kind(picture("a.png"), lambda place: read_picture(place / "a.png"), ALL),
    "a JPEG": Kind(picture("a.jpg"), lambda place: read_picture(place / "a.jpg"), NONE),
    "a model directory": Kind(write_model, loaded, NONE, lambda name: name.endswith(".json"), rare=True),
}


def zipped(files: dict[str, bytes], compression: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()
