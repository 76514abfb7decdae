"""IDX files, the format of MNIST and similar sets, and TFDS sets made from them without network or TensorFlow."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from tensorflow_datasets.image_classification.mnist import MNIST

PARTS = {"train": ("train",), "test": ("t10k", "test")}
KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
MOST_AXES = 4
RATIO, LEAST = 100, 2**20
"""The maximum ratio of a set's size to that of its gzipped file (MNIST's is 5), and a size in bytes that is always allowed."""


def read(path: Path) -> np.ndarray:
    """The bytes of an IDX file, gzipped or not, in the file's own shape. Raises ValueError if the file is not complete.

    A gzipped file is unpacked only up to the size in its header. That size must be plausible for images.
    """
    if not (size := path.stat().st_size):
        raise ValueError(f"{path} is empty.")
    with path.open("rb") as opened:
        zipped = opened.read(2) == b"\x1f\x8b"
        opened.seek(0)
        try:
            return _read(
                gzip.GzipFile(fileobj=opened) if zipped else opened, path, max(RATIO * size, LEAST) if zipped else size
            )
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}.") from error


def _read(file: BinaryIO | gzip.GzipFile, path: Path, most: int) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08":
        raise ValueError(f"{path} begins with {magic!r}, expected an IDX file of bytes: 0, 0, 8, number of axes.")
    axes = magic[3]
    if not 1 <= axes <= MOST_AXES:
        raise ValueError(f"{path} has {axes} axes, expected 1 to {MOST_AXES}.")
    sizes = file.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise ValueError(f"{path} ends within its header: got {4 + len(sizes)} bytes, and {axes} axes need {4 + 4 * axes}.")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * axes, 4))
    count = math.prod(shape)
    if count > most:
        raise ValueError(f"{path} should hold {shape}, {count} bytes, which is too much for a file of its size.")
    # One more byte, so that the checksum at the end of a gzipped file is read.
    body = file.read(count + 1)
    if not body or len(body) != count:
        more = " or more" if len(body) > count else ""
        raise ValueError(f"{path} should hold {shape}, {count} bytes, but has {len(body)}{more}.")
    return np.frombuffer(body, np.uint8).reshape(shape)


def find(directory: Path, prefix: str = "") -> dict[str, tuple[Path, Path]]:
    """`{split: (images, labels)}`, the four files of a set. Raises FileNotFoundError with the names of missing files."""
    found, missing = {}, []
    for split, parts in PARTS.items():
        for kind in KINDS:
            names = [f"{p}{part}-{kind}{gz}" for p in dict.fromkeys(("", prefix)) for part in parts for gz in (".gz", "")]
            path = next((directory / name for name in names if (directory / name).is_file()), None)
            found[split, kind] = path
            if path is None:
                missing.append(names[0])
    if missing:
        raise FileNotFoundError(
            f"{directory} {'lacks ' + ', '.join(missing) if directory.is_dir() else 'is not a directory'}. Expected the four "
            "IDX files of the set, gzipped or not. For Fashion-MNIST, Debian's package dataset-fashion-mnist puts them in "
            "/usr/share/datasets/fashion-mnist."
        )
    return {split: (found[split, KINDS[0]], found[split, KINDS[1]]) for split in PARTS}


def pair(images_path: Path, labels_path: Path, shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `[N, H, W, 1]`, labels `[N]`, uint8. Raises ValueError if they do not match `shape`, `classes` or each other."""
    images, labels = read(images_path), read(labels_path)
    if images.ndim != 3 or (*images.shape[1:], 1) != shape:
        raise ValueError(f"{images_path} holds {images.shape}, expected images of {shape[:2]}.")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{labels_path} holds labels {labels.shape} for the images {images.shape} of {images_path}.")
    if labels.max() >= classes:
        raise ValueError(f"{labels_path} holds the label {labels.max()}, expected 0 to {classes - 1}.")
    return images[..., None], labels


def builder(theirs: "MNIST", directory: Path) -> Any:
    """A builder that prepares the set of TFDS' builder `theirs` from IDX files.

    The set has the same name, version, splits, description and classes. Its images are of the feature Tensor and not Image,
    since TFDS writes Image only if TensorFlow is installed. All four files are read and checked before anything is written.
    """
    import tensorflow_datasets as tfds  # Here, as the files are also read where there is no TFDS.

    features: Any = theirs.info.features
    shape, classes = features["image"].shape, features["label"].num_classes
    parts = {split: pair(*paths, shape, classes) for split, paths in find(directory, _prefix(theirs)).items()}

    class FromIdx(type(theirs), skip_registration=True):
        name = theirs.name

        def _info(self) -> tfds.core.DatasetInfo:
            info = super()._info()
            tensors = {"image": tfds.features.Tensor(shape=shape, dtype=np.uint8), "label": features["label"]}
            return tfds.core.DatasetInfo(
                builder=self,
                description=info.description,
                features=tfds.features.FeaturesDict(tensors),
                supervised_keys=("image", "label"),
                homepage=info.homepage,
                citation=info.citation,
                metadata=tfds.core.MetadataDict(sha256=digest(parts)),
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
            return {split: self._examples(*part) for split, part in parts.items()}

        def _examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield i, {"image": image, "label": int(label)}

    config = {"config": theirs.builder_config.name} if theirs.builder_config else {}
    return FromIdx(data_dir=str(theirs.data_dir_root), file_format="array_record", **config)


def digest(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """SHA-256 of all images and labels."""
    total = hashlib.sha256()
    for part in parts.values():
        for array in part:
            total.update(array.tobytes())
    return total.hexdigest()


def check_same(prepared: Any, theirs: "MNIST", directory: Path) -> None:
    """Raises ValueError if a set was prepared from other files than those in `directory`, where this can be known."""
    known = (prepared.info.metadata or {}).get("sha256")
    if not known:
        return
    try:
        files = find(directory, _prefix(theirs))
    except FileNotFoundError:
        return
    features: Any = prepared.info.features
    parts = {split: pair(*paths, features["image"].shape, features["label"].num_classes) for split, paths in files.items()}
    if digest(parts) != known:
        raise ValueError(
            f"the set in {prepared.data_path} was prepared from other files than those in {directory}. Remove that set, or use "
            "another directory for prepared sets."
        )


def _prefix(theirs: "MNIST") -> str:
    return f"{theirs.name}-{theirs.builder_config.name}-" if theirs.builder_config else ""
