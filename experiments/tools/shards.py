"""A large set of images on disk, in shards. Each shard is complete or missing. A directory holds one set only."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from experiments.tools import disk
from experiments.tools.disk import DamagedError, UnwrittenError, alone, replacing

__all__ = ["DamagedError", "Shards", "UnwrittenError", "alone", "opened", "replacing", "samples"]

IDENTITY = "identity.json"
NAMES = r"identity\.json|shard-\d{5,}\.npz|samples_\d+(x\d+){3}\.npz|grid\.png"
"""The names of the files of a set."""
OTHERS = ("models.json", "checkpoints", "lock", "dataset_info.json", "model_index.json")
"""Files that identify another kind of directory: a study, a training, a prepared data set, a model."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """A set of labelled images in files. The set can be extended: existing shards do not change.

    Args:
      directory: The directory of this set. It holds nothing else.
      labels: `[N]` integers, the label of each sample.
      size: Samples per shard. The last shard has the remainder.
      identity: All that a sample depends on besides its number and label, JSON-able.
    """

    directory: Path
    labels: np.ndarray
    size: int
    identity: dict[str, Any]

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-len(self.labels) // self.size)

    @functools.cached_property
    def stored(self) -> dict[str, Any]:
        """The identity and the shard size as JSON stores them. All shards of a directory share them."""
        return json.loads(json.dumps({"shard": self.size, "identity": self.identity}))

    @functools.cached_property
    def digest(self) -> str:
        """A digest of `stored`, which each shard stores."""
        return hashlib.sha256(json.dumps(self.stored, sort_keys=True).encode()).hexdigest()

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.directory / f"shard-{number:05d}.npz"

    def indices(self, number: int) -> np.ndarray:
        """The numbers of the samples in a shard."""
        return np.arange(number * self.size, min((number + 1) * self.size, len(self.labels)))

    def claim(self) -> None:
        """Writes this set's identity into an empty directory, or extends the set that the directory holds to this size.

        Raises:
          ValueError: If the directory holds another set or something else. The message names the differences.
        """
        path = self.directory / IDENTITY
        try:
            if path.exists():
                self.check()
                if len(_known(self.directory)["labels"]) >= len(self.labels):
                    return
            else:
                self._recover(f"but no {IDENTITY}", "missing")
        except DamagedError as error:
            self._recover(f"and {error}", "damaged")
        with replacing(path) as file:
            file.write(json.dumps({**self.stored, "labels": self.labels.tolist()}).encode())

    def _recover(self, trouble: str, how: str) -> None:
        """Checks that all shards in a directory without a valid identity belong to this set."""
        if other := next((name for name in OTHERS if (self.directory / name).exists()), None):
            raise ValueError(
                f"{self.directory} holds {other}, so it is not the directory of a generated set. Use another directory."
            )
        found = {int(path.stem[6:]): path for path in self.directory.glob("shard-*.npz") if path.stem[6:].isdecimal()}
        for number, path in sorted(found.items()):
            try:
                self.read(number)
            except (FileNotFoundError, DamagedError):
                continue  # The last shard of a smaller set, or one that is made again.
            except ValueError as error:
                raise ValueError(
                    f"{self.directory} holds {path.name}, {trouble}, which is not of the requested set. Request its own"
                    f" set, and {IDENTITY} is written again; or {_ELSEWHERE}"
                ) from error
        if found or how == "damaged":
            warnings.warn(f"{self.directory / IDENTITY} was {how}. It is written again.", stacklevel=4)

    def check(self) -> None:
        """Checks that the directory holds this set.

        Raises:
          ValueError: If it holds another set. The message names the differences.
        """
        there = _known(self.directory)
        both = min(len(there["labels"]), len(self.labels))
        labels = np.array(there.pop("labels")[:both])
        differences = list(_differences(there, self.stored))
        if (other := np.flatnonzero(labels != self.labels[:both])).size:
            i = other[0]
            differences.append(f"the label of sample {i} is {labels[i]} there, and {self.labels[i]} is requested")
        if differences:
            raise ValueError(
                f"{self.directory} holds another set: {'; '.join(differences)}. Nothing is changed there: {_ELSEWHERE}"
            )

    def clean(self) -> None:
        """Removes the temporary files of interrupted writes."""
        disk.clean(self.directory, NAMES)

    def write(self, number: int, images: np.ndarray) -> None:
        """Writes the images `[n, H, W, C]` uint8 of one shard, with their labels and indices.

        Raises:
          OSError: If the disk is full. Finished shards are kept.
        """
        indices = self.indices(number)
        with self.kept(images.nbytes), replacing(self.path(number)) as file:
            np.savez(file, images=images, labels=self.labels[indices], indices=indices, set=np.array(self.digest))

    @contextlib.contextmanager
    def kept(self, size: int) -> Iterator[None]:
        """Adds to the error of a file of `size` bytes that finished shards are kept, and what to do."""
        try:
            yield
        except UnwrittenError as error:
            stay, room = sum(self.path(i).exists() for i in range(self.count)), disk.room(self.directory, "it", size)
            raise UnwrittenError(
                error.errno,
                f"{error.strerror}. The {stay} of {self.count} shards that are finished are kept; {room}."
                " Free some space, or fix the cause, and start again: the run continues from there",
            ) from error

    def read(self, number: int) -> np.ndarray:
        """The images `[n, H, W, C]` uint8 of one shard, with its checksums verified.

        Raises:
          FileNotFoundError: If it is not made yet, or is the short last shard of a smaller set.
          DamagedError: If it has changed since it was written.
          ValueError: If it belongs to another set.
        """
        path, indices = self.path(number), self.indices(number)
        content = io.BytesIO(path.read_bytes())
        try:
            _check_declared(content)
            content.seek(0)
            with np.load(content) as members:
                images, labels, own, digest = (members[name] for name in ("images", "labels", "indices", "set"))
        except Exception as error:  # A damaged archive fails in a dozen ways.
            raise DamagedError(f"{path} is damaged ({type(error).__name__}: {error})") from error
        if str(digest) != self.digest:
            raise ValueError(f"{path} belongs to another set than {IDENTITY} beside it: {_ELSEWHERE}")
        both = min(len(own), len(indices))
        if not np.array_equal(own[:both], indices[:both]) or not np.array_equal(labels[:both], self.labels[indices[:both]]):
            raise ValueError(f"{path} holds other samples than its name and {IDENTITY} say: {_ELSEWHERE}")
        if both < len(indices):
            raise FileNotFoundError(f"{path} holds {both} of {len(indices)} samples. Run the generation again.")
        return images[:both]

    def finished(self, number: int) -> bool:
        """Whether a shard is complete. A damaged one gives False and a warning, and is made again."""
        try:
            self.read(number)
        except FileNotFoundError:
            return False
        except DamagedError as error:
            warnings.warn(f"{error}. It is made again.", stacklevel=2)
            return False
        return True

    def parts(self) -> Iterator[np.ndarray]:
        """The images, one shard at a time.

        Raises:
          FileNotFoundError: If shards are missing. The message has their number.
          DamagedError: If a shard has changed since it was written.
        """
        missing = [number for number in range(self.count) if not self.path(number).exists()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {self.count} shards in {self.directory} are not made yet, {self.path(missing[0]).name}"
                " first. Run the generation again: it makes the missing ones."
            )
        yield from map(self.read, range(self.count))

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """All images `[N, H, W, C]` uint8 and labels `[N]`, in order. Raises as `parts` does."""
        parts = self.parts()
        first = next(parts)
        images = np.empty((len(self.labels), *first.shape[1:]), np.uint8)
        for number, part in enumerate(itertools.chain((first,), parts)):
            images[self.indices(number)] = part
        return images, self.labels

    def assemble(self, channels: int | None = None) -> Path:
        """Writes a finished set to one file, in the layout of the evaluator of OpenAI's guided-diffusion.

        `arr_0` are the images, `[N, H, W, C]` uint8, and `arr_1` the labels, `[N]` int64. The name has the shape, as in
        `samples_50000x64x64x3.npz`. Shards are written one at a time, so the set need not fit into memory.

        Args:
          channels: 3 repeats the single channel of grey images, for evaluators that need colours. None keeps the channels.

        Raises:
          ValueError: If the images cannot have so many channels. Otherwise as `parts` does.
          OSError: If the disk is full.
        """
        parts = self.parts()
        first = next(parts)
        own: int = first.shape[3]
        channels = own if channels is None else channels
        if own not in (1, channels) or channels < 1:
            raise ValueError(
                f"images of {own} channels cannot be written with {channels}. Use {own}; only grey images can be repeated."
            )
        shape = (len(self.labels), *first.shape[1:3], channels)
        path = self.directory / f"samples_{'x'.join(map(str, shape))}.npz"
        size = math.prod(shape) + 8 * len(self.labels) + 1000
        with self.kept(size), replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for images in itertools.chain((first,), parts):
                    member.write(np.repeat(images, channels // own, axis=3).data)
            with archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, self.labels.astype(np.int64))
        return path


_ELSEWHERE = "use another directory, or remove this one."


def _check_declared(content: BinaryIO) -> None:
    """Raises unless each array is stored uncompressed, with the size in its header. Nothing is allocated before this check."""
    with zipfile.ZipFile(content) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"{info.filename!r:.100} is compressed")
            with archive.open(info) as member:
                if np.lib.format.read_magic(member) != (1, 0):
                    raise ValueError(f"{info.filename!r:.100} is of another version")
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                if math.prod(shape) * dtype.itemsize != info.file_size - member.tell():
                    raise ValueError(f"{info.filename!r:.100} does not have the size of its shape {shape}")


def _known(directory: Path) -> dict[str, Any]:
    """The identity file of a directory."""
    path = directory / IDENTITY
    again = "Start the generation again with its own command: the file is written again, and finished shards are kept"
    try:
        content = disk.read_json(path)
    except DamagedError as error:
        raise DamagedError(f"{error}. {again}") from error
    if content and not {"shard", "labels"} & content.keys():
        raise ValueError(
            f"{path} is not of a generated set, perhaps of a training: it holds {', '.join(sorted(content))[:200]}."
            " Nothing is changed there: use another directory."
        )
    size, labels, identity = (content.get(name) for name in ("shard", "labels", "identity"))
    numbers = isinstance(labels, list) and labels and all(type(label) is int and abs(label) < 2**31 for label in labels)
    if type(size) is not int or size < 1 or not numbers or not isinstance(identity, dict):
        raise DamagedError(f"{path} is damaged, or of another version (it needs shard, labels and identity). {again}")
    return content


def _differences(there: Any, asked: Any, name: str = "") -> Iterator[str]:
    """The differences between two trees of JSON, in words."""
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in sorted(there.keys() | asked.keys()):
            inner = key if name in ("", "identity") else f"{name}.{key}"
            yield from _differences(there.get(key, "nothing"), asked.get(key, "nothing"), inner)
    elif there != asked:
        yield f"{name} is {json.dumps(there)} there, and {json.dumps(asked)} is requested"


def opened(directory: Path, count: int | None = None) -> Shards:
    """The set in a directory, or its first `count` samples.

    Raises:
      FileNotFoundError: If the directory holds no set, or fewer samples.
    """
    if not (directory / IDENTITY).exists():
        raise FileNotFoundError(f"{directory} holds no generated set: it has no {IDENTITY}.")
    content = _known(directory)
    labels = np.array(content["labels"], np.int32)
    if count is not None and not 1 <= count <= len(labels):
        raise FileNotFoundError(f"{directory} holds a set of {len(labels)} samples, and {count} are requested.")
    return Shards(directory, labels[:count], content["shard"], content["identity"])


def samples(directory: Path, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All images `[N, H, W, C]` uint8 and labels `[N]` of a finished set, or the first `count`, in order.

    Raises:
      FileNotFoundError: If there is no set, or a shard is missing.
      ValueError: If a shard is damaged.
    """
    return opened(directory, count).samples()
