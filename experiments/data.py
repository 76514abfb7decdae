"""Data sets by name, through TFDS and Grain; the digits that scikit-learn ships need no download."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


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
        digits: Any = load_digits()
        images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
        train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
        return {name: self._generate_examples(images, digits.target, at) for name, at in (("train", train), ("test", test))}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, index: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in index:
            yield int(i), {"image": images[i], "label": int(labels[i])}


class Data(NamedTuple):
    """A set in memory: images `[N, H, W, C]` in [-1, 1], labels `[N]`."""

    images: np.ndarray
    labels: np.ndarray
    classes: int
    version: str


def load(name: str, split: str, directory: Path) -> Data:
    """A split of a TFDS image classification set: our digits, or any other that TFDS knows by that name.

    Args:
      name: "digits", or "mnist", "cifar10", ... as TFDS calls it.
      split: "train" or "test".
      directory: where the prepared set is kept; prepared there if it is not yet.

    Raises:
      ValueError: if the set does not hold images of bytes with labels.
    """
    where: Any = {"data_dir": str(directory.absolute()), "file_format": "array_record"}
    builder: Any = Digits(**where) if name == "digits" else tfds.builder(name, **where)
    builder.download_and_prepare()
    features = builder.info.features
    if not {"image", "label"} <= set(features) or features["image"].np_dtype != np.uint8:
        raise ValueError(f"the data set {name!r} holds {features}, not images of bytes with labels.")
    records = grain.MapDataset.source(builder.as_data_source(split)).batch(256)
    images, labels = zip(*((record["image"], record["label"]) for record in records), strict=True)
    images = np.concatenate(images).astype(np.float32) / 127.5 - 1
    return Data(images, np.concatenate(labels).astype(np.int32), features["label"].num_classes, str(builder.version))


def batches(data: Data, size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels without end, drawn with replacement; one Grain element a batch, since one a sample costs more
    than a training step."""

    def draw(step: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        index = rng.integers(len(data.labels), size=size)
        return data.images[index], data.labels[index]

    steps = grain.MapDataset.range(sys.maxsize).seed(seed).random_map(draw)
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
