"""Data sets of TFDS by their names, prepared where they are not yet. The digits of scikit-learn need no download."""

import contextlib
import fcntl
import importlib.util
import io
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification.mnist import MNIST

from experiments.tools import bundled, disk, idx


class Digits(tfds.core.GeneratorBasedBuilder):
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships, a fifth of them held out."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        # Tensor and not Image: TFDS writes Image only where TensorFlow is installed.
        features = {
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        images, labels, index = bundled.digits()
        return {name: self._generate_examples(images, labels, at) for name, at in index.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, index: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in index:
            yield int(i), {"image": images[i], "label": int(labels[i])}


def prepare(name: str, directory: Path, manual_dir: Path | None = None) -> Any:
    """The TFDS builder that reads the prepared set. It is prepared first if it is not yet.

    TFDS writes into a folder with a temporary name and renames it at the end. One process prepares at a time, and the others
    wait. Files that a killed process left are removed.

    Args:
      name: "digits", or a name of TFDS.
      directory: Where prepared sets are kept.
      manual_dir: A folder of IDX files, or of the files that TFDS asks for, as in `data.load`.

    Raises:
      Exception: As `data.load` does.
    """
    where: Any = {"data_dir": str(directory.absolute()), "file_format": "array_record"}
    try:
        theirs: Any = Digits(**where) if name == "digits" else tfds.builder(name, **where)
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, tfds.core.DatasetNotFoundError) or str(error).startswith("Parsing builder name"):
            near = re.search(r"Did you mean: [^\n]*", str(error))
            text = f"{name!r} is neither a folder nor a data set of TFDS. {near.group() if near else ''}".strip()
            raise tfds.core.DatasetNotFoundError(text) from None
        # TFDS also reads the description of a set that is prepared already. Name the one that is damaged.
        for info in sorted((directory / re.split("[:/]", name)[0]).rglob("dataset_info.json")):
            _read(info.parent)
        raise
    path = Path(theirs.data_path)
    if not path.exists() and not path.is_symlink():
        with _alone(directory):
            for left in path.parent.glob(f"incomplete.*_{path.name}"):
                if left.is_dir():
                    shutil.rmtree(left)
            if not path.exists():
                _prepare(name, theirs, manual_dir)
    # The prepared set knows its own features: Image if TFDS wrote it, Tensor if we did.
    prepared = _read(path)
    if manual_dir and isinstance(theirs, MNIST):
        idx.check_same(prepared, theirs, manual_dir)
    return prepared


def checked(name: str, builder: Any) -> Any:
    """The features of a set. Raises ValueError if they are not images of one size with class labels."""
    features = builder.info.features
    image, label = (features[key] if key in (features or ()) else None for key in ("image", "label"))
    if image is None or image.np_dtype != np.uint8 or len(image.shape) != 3 or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(f"the data set {name!r} holds {features}, expected uint8 images with class labels.")
    if None in image.shape:
        raise ValueError(f"the data set {name!r} has images of many sizes, {image.shape}. Use a resized variant of it.")
    return features


def _read(folder: Path) -> Any:
    """The builder of a prepared set. Raises RuntimeError if the set is damaged."""
    try:
        prepared = tfds.builder_from_directory(folder)
        if not prepared.info.splits:
            raise ValueError("it has no splits")
    except ImportError:
        raise
    except Exception as error:  # A damaged description fails in a dozen ways.
        raise damaged(folder, error) from error
    return prepared


def damaged(folder: Path, error: Exception) -> RuntimeError:
    """The error for a prepared set that cannot be read."""
    why = str(error).strip() or type(error).__name__
    return RuntimeError(f"the set in {folder} is damaged: {why}. Move it away. The next run prepares it again.")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Admits one process at a time. A killed process releases the lock."""
    with (disk.made(directory) / ".lock").open("w") as lock:
        with contextlib.suppress(OSError):  # A file system without locks.
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(name: str, theirs: Any, manual_dir: Path | None) -> None:
    if manual_dir and isinstance(theirs, MNIST):
        idx.builder(theirs, manual_dir).download_and_prepare()
        return
    if manual_dir and not theirs.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise ValueError(
            f"manual_dir is {manual_dir}, but {name!r} is made of no IDX files and asks for no files by hand. Leave it out."
        )
    ways = ["Install it: pip install tensorflow."]
    if isinstance(theirs, MNIST):
        debian = "; Debian's package dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist"
        ways += [f"Or use --manual-dir with the folder of its four IDX files{debian if name == 'fashion_mnist' else ''}."]
    ways += [f"Or run the same command on another machine and copy the folder {theirs.data_path}."]
    needed = f"{name!r} is not prepared yet, and TFDS needs TensorFlow once to prepare it. {' '.join(ways)}"
    if isinstance(checked(name, theirs)["image"], tfds.features.Image) and importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(needed)
    try:
        given = str(manual_dir.absolute()) if manual_dir else None
        config, quiet = tfds.download.DownloadConfig(manual_dir=given), name == "digits"
        if quiet or not sys.stderr.isatty():
            tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():  # Nothing is downloaded.
            theirs.download_and_prepare(download_config=config)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and "tensorflow" in str(error):
            raise ModuleNotFoundError(needed) from error
        raise RuntimeError(f"TFDS could not prepare {name!r}: {error}\nFix that. {' '.join(ways[1:])}") from error
