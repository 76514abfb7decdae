"""Data sets by name, through TFDS and Grain; the digits that scikit-learn ships need no download, IDX files no network."""

import contextlib
import dataclasses
import fcntl
import functools
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from tensorflow_datasets.image_classification.mnist import MNIST

from experiments.tools import disk, idx

READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
"""One Grain element is one batch: one thread, a few batches ahead."""


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
        from sklearn.datasets import load_digits  # Here, as Grain's workers import this module and need no scikit-learn.
        from sklearn.model_selection import train_test_split

        digits: Any = load_digits()
        images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
        train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
        return {name: self._generate_examples(images, digits.target, at) for name, at in (("train", train), ("test", test))}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, index: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in index:
            yield int(i), {"image": images[i], "label": int(labels[i])}


class Source(Protocol):
    """Images and labels that are read in bulk, by index."""

    def __len__(self) -> int: ...

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images `[B, H, W, C]`, float32 in [-1, 1], and labels `[B]`, int32, of the records `index`, `[B]`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A set in memory: images `[N, H, W, C]`, float32 in [-1, 1], labels `[N]`, int32."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    version: str

    @property
    def classes(self) -> int:
        return len(self.names)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[index], self.labels[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A set on disk, for what does not fit into memory: the records of a TFDS data source, read as they are asked for."""

    records: Any
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    version: str
    folder: Path

    @property
    def classes(self) -> int:
        return len(self.names)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            read = self.records.__getitems__(index.tolist())
            images, labels = (np.stack([record[key] for record in read]) for key in ("image", "label"))
            if images.dtype != np.uint8:  # Of a file that was cut, records may come back as None.
                raise ValueError(f"it holds images of {images.dtype}")
        except MemoryError:
            raise
        except Exception as error:  # A damaged file fails in a dozen ways.
            raise _damaged(self.folder, error) from error
        return images.astype(np.float32) / 127.5 - 1, labels.astype(np.int32)


def load(name: str, split: str, directory: Path, manual_dir: Path | None = None) -> Data:
    """A whole split in memory of a TFDS image classification set: our digits, or any other that TFDS knows by that name.

    Args:
      name: "digits", or "mnist", "cifar10", "imagenet_resized/64x64", ... as TFDS calls it.
      split: "train", "test", or a part as TFDS writes it, "train[:10%]".
      directory: where the prepared set is kept; prepared there if it is not yet.
      manual_dir: a folder with the four IDX files of "mnist", "fashion_mnist", "kmnist" or "emnist/...", which are prepared
        without network or TensorFlow; for a set that TFDS itself asks files for by hand, the folder of these.

    Raises:
      ValueError: if the set does not hold images of bytes, of one size, with labels; if it has no such split, or the split
        is empty; or files are not whole, do not fit each other, or are not those that the set in `directory` was made of.
      FileNotFoundError: if an IDX file is missing.
      ModuleNotFoundError: if TFDS needs TensorFlow to prepare the set, and it is not there.
      RuntimeError: if TFDS could not prepare the set, with its reason, or the prepared set is damaged.
    """
    source = records(name, split, directory, manual_dir)
    parts = [source.read(part) for part in np.array_split(np.arange(len(source)), max(1, len(source) // 1000))]
    images, labels = map(np.concatenate, zip(*parts, strict=True))
    return Data(images, labels, source.names, source.version)


def records(name: str, split: str, directory: Path, manual_dir: Path | None = None) -> Records:
    """A split as `load` has it, but left on disk; same arguments, same errors."""
    builder = prepare(name, directory, manual_dir)
    features = _checked(name, builder)
    image, label, folder = features["image"], features["label"], Path(builder.data_path)
    there = {each: info.num_examples for each, info in builder.info.splits.items()}
    for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits):
        end = there[part.splitname] if part.to is None else part.to
        if (part.from_ or 0) >= end:
            told = ", ".join(f"{each} {count}" for each, count in there.items())
            raise ValueError(f"the split {split!r} of {name!r} is empty; its splits hold so many images: {told}.")
    try:
        source = builder.as_data_source(split)
    except ValueError as error:
        raise _damaged(folder, error) from error
    return Records(source, image.shape, tuple(label.names), str(builder.version), folder)


def prepare(name: str, directory: Path, manual_dir: Path | None = None) -> Any:
    """The TFDS builder that reads the prepared set, prepared first if it is not yet; arguments and errors as of `load`.

    TFDS writes into a folder of another name, which it renames at the end. One process prepares at a time, and the others
    wait for it; what a killed one left is removed.
    """
    where: Any = {"data_dir": str(directory.absolute()), "file_format": "array_record"}
    try:
        theirs: Any = Digits(**where) if name == "digits" else tfds.builder(name, **where)
    except (tfds.core.DatasetNotFoundError, ImportError):
        raise
    except Exception:
        # TFDS reads what is prepared already.
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
    # What is prepared describes itself: written by TFDS as Image, by us as Tensor.
    prepared = _read(path)
    if manual_dir and isinstance(theirs, MNIST):
        idx.check_same(prepared, theirs, manual_dir)
    return prepared


def _checked(name: str, builder: Any) -> Any:
    """The features of a set, which must be those of images with a class each."""
    features = builder.info.features
    image, label = (features[key] if key in (features or ()) else None for key in ("image", "label"))
    if image is None or image.np_dtype != np.uint8 or len(image.shape) != 3 or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(f"the data set {name!r} holds {features}, not images of bytes with labels.")
    if None in image.shape:
        raise ValueError(f"the data set {name!r} has images of many sizes, {image.shape}; take one that is resized.")
    return features


def _read(folder: Path) -> Any:
    """The builder of a prepared set; raises RuntimeError if it is damaged."""
    try:
        prepared = tfds.builder_from_directory(folder)
        if not prepared.info.splits:
            raise ValueError("it has no splits")
    except ImportError:
        raise
    except Exception as error:  # A damaged description fails in a dozen ways.
        raise _damaged(folder, error) from error
    return prepared


def _damaged(folder: Path, error: Exception) -> RuntimeError:
    why = str(error).strip() or type(error).__name__
    return RuntimeError(f"the set in {folder} is damaged: {why}. Move it away, to have it prepared anew.")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One process at a time; the lock of a killed one is free."""
    with (disk.made(directory) / ".lock").open("w") as lock:
        with contextlib.suppress(OSError):  # A file system without locks.
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(name: str, theirs: Any, manual_dir: Path | None) -> None:
    if manual_dir and isinstance(theirs, MNIST):
        idx.builder(theirs, manual_dir).download_and_prepare()
        return
    if manual_dir and not theirs.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise ValueError(f"manual_dir is {manual_dir}, but {name!r} is neither read from IDX files nor from any given by hand.")
    mend = f"prepare it on another machine, by the same command, and copy the folder {theirs.data_path}"
    if isinstance(theirs, MNIST):
        mend += "; or give a folder with its four IDX files (--manual-dir), which need neither network nor TensorFlow"
    if name == "fashion_mnist":
        mend += ", as of Debian's package dataset-fashion-mnist: /usr/share/datasets/fashion-mnist"
    needed = (
        f"TFDS needs TensorFlow to prepare {name!r}, though not to read it: pip install tensorflow, here and now; or {mend}."
    )
    if isinstance(_checked(name, theirs)["image"], tfds.features.Image) and importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(needed)
    try:
        given = str(manual_dir.absolute()) if manual_dir else None
        theirs.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=given))
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and "tensorflow" in str(error):
            raise ModuleNotFoundError(needed) from error
        raise RuntimeError(f"TFDS could not prepare {name!r}: {error}\nMend that; or {mend}.") from error


class Batches(grain.DatasetIterator[tuple[np.ndarray, np.ndarray]]):
    """Batches without end, of which some are read ahead.

    The state is `{"next_index": how many were drawn}`, plain JSON, whatever reads ahead: a run goes on where it was under
    other workers, or on other processes. Grain's own state under workers is of their number, and wrong for any other.
    """

    def __init__(self, steps: grain.MapDataset, read: grain.ReadOptions, workers: int):
        super().__init__()
        self._steps, self._read, self._workers = steps, read, workers
        self._drawn, self._ahead = 0, None

    def _reading(self) -> grain.DatasetIterator[tuple[np.ndarray, np.ndarray]]:
        if self._ahead is None:
            steps = self._steps[self._drawn :].to_iter_dataset(self._read)
            if self._workers:
                if not flags.FLAGS.is_parsed():  # Grain's workers ask for them.
                    flags.FLAGS.mark_as_parsed()
                steps = steps.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
            self._ahead = iter(steps)
        return self._ahead

    def start_prefetch(self) -> None:
        self._reading().start_prefetch()

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        self._assert_not_closed()
        batch = next(self._reading())
        self._drawn += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._drawn}

    def set_state(self, state: dict[str, int]) -> None:
        drawn = state["next_index"]
        if drawn < 0:
            raise ValueError(f"the state of batches is how many were drawn, got {drawn}.")
        self._stop()
        self._drawn = drawn

    def close(self) -> None:
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


def batches(
    source: Source,
    size: int,
    seed: int,
    *,
    process: int | None = None,
    processes: int | None = None,
    flip: bool = False,
    workers: int = 0,
    read: grain.ReadOptions = READ,
) -> Batches:
    """Batches `(images [B, H, W, C], labels [B])` without end: epoch after epoch, each a shuffle of its own.

    A batch may hold the end of one epoch and the start of the next. The order is that of the global batch: it depends on the
    seed and not on the number of processes, of which each reads its own rows, `B = size / processes`.

    Args:
      source: what is read: `Data`, or `Records` where it does not fit into memory.
      size: of the global batch.
      seed: of the order and the flips.
      process: the number of this process; `jax.process_index()` if None.
      processes: how many there are; `jax.process_count()` if None.
      flip: whether images are mirrored, left to right, half of the time.
      workers: processes that read ahead, for images that are slow to decode; 0 reads in a thread. They import the main module
        anew, so a script needs its `if __name__ == "__main__"`.
      read: threads, and how many batches are read ahead.

    Raises:
      ValueError: if the source is empty, or the size is not a multiple of the number of processes.
    """
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    if size < 1 or size % processes or not 0 <= process < processes:
        raise ValueError(f"size must be a multiple of processes, got size {size} for process {process} of {processes}.")
    if not len(source):
        raise ValueError("there is nothing to draw batches from: the source is empty.")
    rows = slice(size // processes * process, size // processes * (process + 1))

    def draw(number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        mirrored = flip & (rng.random(size) < 0.5)
        images, labels = source.read(_order(number, len(source), size, seed)[rows])
        return (np.where(mirrored[rows, None, None, None], images[:, :, ::-1], images) if flip else images), labels

    return Batches(grain.MapDataset.range(sys.maxsize).seed(seed).random_map(draw), read, workers)


def _order(number: int, records: int, size: int, seed: int) -> np.ndarray:
    """Indices `[size]` of the global batch of this number; 100 times as quick as Grain's shuffle, one index at a time."""
    at = np.arange(number * size, (number + 1) * size)
    epochs = at // records
    return np.concatenate([_permutation(records, seed, e)[at[epochs == e] % records] for e in range(epochs[0], epochs[-1] + 1)])


@functools.lru_cache(maxsize=4)
def _permutation(records: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(records)
