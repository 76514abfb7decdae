"""Data sets in memory or on disk, and batches of them by Grain: sets of TFDS, IDX files, and folders of images.

TFDS is imported where it is used. Data in memory and their batches do without it.
"""

import dataclasses
import functools
import shlex
import sys
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags

from experiments.tools import folders

READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
"""One Grain element is one batch: one thread, a few batches ahead."""


class Source(Protocol):
    """Images and labels that are read in bulk, by index."""

    def __len__(self) -> int: ...

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images `[B, H, W, C]`, float32 in [-1, 1], and labels `[B]`, int32, of the records `index`, `[B]`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory.

    Args:
      images: `[N, H, W, C]`, float32 in [-1, 1].
      labels: `[N]`, int32: positions in `names`; 0 everywhere without labels.
      names: The class names; empty without labels.
      version: TFDS' version of the set, or a digest of a folder's files.
    """

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    version: str

    @property
    def classes(self) -> int:
        """The number of classes; 0 without labels."""
        return len(self.names)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images and labels of the records `index`, `[B]`."""
        return self.images[index], self.labels[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A prepared TFDS set on disk, for sets that do not fit into memory. Records are read on demand.

    Args:
      records: The data source of TFDS.
      shape: `(H, W, C)` of one image.
      names: The class names.
      version: TFDS' version of the set.
      folder: Where the prepared set is, for errors.
    """

    records: Any
    shape: tuple[int, int, int]
    names: tuple[str, ...]
    version: str
    folder: Path

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.names)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images and labels of the records `index`, `[B]`. Raises RuntimeError if the set is damaged."""
        from experiments.tools.prepare import damaged

        try:
            read = self.records.__getitems__(index.tolist())
            images, labels = (np.stack([record[key] for record in read]) for key in ("image", "label"))
            if images.dtype != np.uint8:  # The records of a truncated file can be None.
                raise ValueError(f"it holds images of {images.dtype}")
        except MemoryError:
            raise
        except Exception as error:  # A damaged file fails in a dozen ways.
            raise damaged(self.folder, error) from error
        return images.astype(np.float32) / 127.5 - 1, labels.astype(np.int32)


def load(
    name: str,
    split: str,
    directory: Path,
    manual_dir: Path | None = None,
    size: int | None = None,
    *,
    labelled: bool = True,
) -> Data:
    """A split in memory: of a TFDS image classification set, of scikit-learn's digits, or of a folder of images.

    Args:
      name: "digits", a name of TFDS ("mnist", "cifar10", "imagenet_resized/64x64"), or the path of a folder with PNG or JPEG
        files. A folder has one subfolder per class; `folders` has the rules. Write "./mnist" for a folder of that name.
      split: "train", "test", or a part in TFDS' notation, "train[:10%]".
      directory: Where prepared sets of TFDS are kept. A missing one is prepared there. Folders of images need no preparation.
      manual_dir: A folder with the four IDX files of "mnist", "fashion_mnist", "kmnist" or "emnist/...". They are prepared
        without network or TensorFlow. For a set that TFDS does not download, the folder of its files.
      size: For a folder of images: crop the largest centred square of each, and resize it to `size x size` pixels.
      labelled: Whether labels are needed. If not, a folder without class folders is accepted; its labels are all 0.

    Raises:
      ValueError: If the set does not hold uint8 images of one size with labels. If it has no such split, or an empty one. If
        IDX files or images are damaged or do not match each other. If an argument does not apply to this kind of set.
      FileNotFoundError: If a folder or an IDX file is missing.
      ModuleNotFoundError: If TFDS needs TensorFlow to prepare the set, and it is not installed.
      RuntimeError: If TFDS could not prepare the set, or the prepared set is damaged.
    """
    source = records(name, split, directory, manual_dir, size, labelled=labelled)
    parts = [source.read(part) for part in np.array_split(np.arange(len(source)), max(1, len(source) // 1000))]
    images, labels = map(np.concatenate, zip(*parts, strict=True))
    return Data(images, labels, source.names, source.version)


def records(
    name: str,
    split: str,
    directory: Path,
    manual_dir: Path | None = None,
    size: int | None = None,
    *,
    labelled: bool = True,
) -> Records | folders.Images:
    """The same split as `load` gives, left on disk. Arguments and errors are those of `load`."""
    if folder := folders.named(name):
        return _images(folder, split, manual_dir, size, labelled)
    if size is not None:
        raise ValueError(
            f"size is {size}, but {name!r} is a set of TFDS. Only the images of a folder are resized. Leave it out."
        )
    from experiments.tools.prepare import checked, damaged, prepare

    builder = prepare(name, directory, manual_dir)
    features = checked(name, builder)
    image, label, folder = features["image"], features["label"], Path(builder.data_path)
    _parts(name, split, builder.info.splits)
    try:
        source = builder.as_data_source(split)
    except ValueError as error:
        raise damaged(folder, error) from error
    return Records(source, image.shape, tuple(label.names), str(builder.version), folder)


def described(name: str, version: str) -> str:
    """What a run's identity says of its data set. A folder is described by its files, wherever it is."""
    return f"{'folder' if folders.named(name) else name} {version}"


def _images(folder: Path, split: str, manual_dir: Path | None, size: int | None, labelled: bool) -> folders.Images:
    if manual_dir is not None:
        raise ValueError(
            f"manual_dir is {manual_dir}, but {folders.printable(folder)} is a folder of images. Leave manual_dir out."
        )
    found = folders.splits(folder, size)
    if labelled and not found["train"].names:
        shown = folders.printable(folder)
        raise ValueError(
            f"{shown} has images without labels, and this command needs labels. Put the images of each class into a folder of "
            f"its own. To train without labels: python3 -m experiments.fashion_mnist --dataset {shlex.quote(shown)}"
        )
    import tensorflow_datasets as tfds

    info = {
        each: tfds.core.SplitInfo(name=each, shard_lengths=[len(images)], num_bytes=0, filename_template=None)
        for each, images in found.items()
    }
    parts = [(found[each], range(start, end)) for each, start, end in _parts(folders.printable(folder), split, info)]
    index = [(source, i) for source, part in parts for i in part]
    paths, labels = tuple(source.paths[i] for source, i in index), np.array([source.labels[i] for source, i in index])
    return dataclasses.replace(found["train"], paths=paths, labels=labels)


def _parts(name: str, split: str, splits: Any) -> list[tuple[str, int, int]]:
    """`[(split, start, end)]` of TFDS' notation. Raises ValueError if one of them is empty."""
    import tensorflow_datasets as tfds

    count = {each: info.num_examples for each, info in splits.items()}
    parts = [
        (part.splitname, part.from_ or 0, count[part.splitname] if part.to is None else part.to)
        for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    ]
    if any(start >= end for _, start, end in parts):
        sizes = ", ".join(f"{each} {number}" for each, number in count.items())
        raise ValueError(f"the split {split!r} of {name!r} is empty. Its splits and their numbers of images: {sizes}.")
    return parts


class Batches(grain.DatasetIterator[tuple[np.ndarray, np.ndarray]]):
    """Endless batches. Some are read ahead.

    The state is `{"next_index": the number of batches drawn}`, in JSON. It does not depend on the workers, so a run can be
    resumed with another number of workers or processes. Grain's own state depends on the number of workers.
    """

    def __init__(self, steps: grain.MapDataset, read: grain.ReadOptions, workers: int):
        super().__init__()
        self._steps, self._read, self._workers = steps, read, workers
        self._drawn, self._ahead = 0, None

    def _reading(self) -> grain.DatasetIterator[tuple[np.ndarray, np.ndarray]]:
        if self._ahead is None:
            steps = self._steps[self._drawn :].to_iter_dataset(self._read)
            if self._workers:
                if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags.
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
            raise ValueError(f"next_index must be the number of batches drawn, 0 or more, got {drawn}.")
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
    """Endless batches `(images [B, H, W, C], labels [B])`. Each epoch has its own order.

    A batch may hold the end of one epoch and the start of the next. The order of the global batch depends on the seed and not
    on the number of processes. Each process reads its own rows, `B = size / processes`.

    Args:
      source: The data set: `Data`, or what `records` returns if it does not fit into memory.
      size: Rows of the global batch.
      seed: Seed of the order and the flips.
      process: The number of this process, from 0; None: `jax.process_index()`.
      processes: The number of processes; None: `jax.process_count()`.
      flip: Mirror each image left to right with probability 1/2.
      workers: Processes that read ahead, for images that are slow to decode; 0: a thread reads. Workers import the main
        module again, so a script needs `if __name__ == "__main__"`.
      read: Grain's options: threads, and the number of batches that are read ahead.

    Raises:
      ValueError: If the source is empty, or `size` is not a multiple of the number of processes.
    """
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    if size < 1 or size % processes or not 0 <= process < processes:
        raise ValueError(f"size must be a multiple of processes, got size {size} for process {process} of {processes}.")
    if not len(source):
        raise ValueError("the source is empty, expected at least one image.")
    rows = slice(size // processes * process, size // processes * (process + 1))

    def draw(number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        mirrored = flip & (rng.random(size) < 0.5)
        images, labels = source.read(_order(number, len(source), size, seed)[rows])
        return (np.where(mirrored[rows, None, None, None], images[:, :, ::-1], images) if flip else images), labels

    return Batches(grain.MapDataset.range(sys.maxsize).seed(seed).random_map(draw), read, workers)


def _order(number: int, records: int, size: int, seed: int) -> np.ndarray:
    """Indices `[size]` of one global batch. This is 100 times faster than Grain's shuffle of single indices."""
    at = np.arange(number * size, (number + 1) * size)
    epochs = at // records
    return np.concatenate([_permutation(records, seed, e)[at[epochs == e] % records] for e in range(epochs[0], epochs[-1] + 1)])


@functools.lru_cache(maxsize=4)
def _permutation(records: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(records)
