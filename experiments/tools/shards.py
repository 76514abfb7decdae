"""A large set of images on disk, in shards: each is there whole or not at all, and a directory holds one set only."""

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
"""What is written into the directory of a set."""
OTHERS = ("models.json", "checkpoints", "lock", "dataset_info.json", "model_index.json")
"""What tells that a directory is of something else: a study, a training, a prepared data set, a model."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """A set of labelled images: who they are, and in which files. It may grow: shard 3 is the same however many follow."""

    directory: Path
    """Holds this set and no other."""
    labels: np.ndarray
    """`[N]` integers, the label of each sample."""
    size: int
    """Samples a shard; the last has what is left."""
    identity: dict[str, Any]
    """All that a sample depends on, besides its number and label; JSON can hold it."""

    @property
    def count(self) -> int:
        return -(-len(self.labels) // self.size)

    @functools.cached_property
    def told(self) -> dict[str, Any]:
        """The identity and the shard size, as JSON keeps them: what all shards of a directory have in common."""
        return json.loads(json.dumps({"shard": self.size, "identity": self.identity}))

    @functools.cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.told, sort_keys=True).encode()).hexdigest()

    def path(self, number: int) -> Path:
        return self.directory / f"shard-{number:05d}.npz"

    def indices(self, number: int) -> np.ndarray:
        return np.arange(number * self.size, min((number + 1) * self.size, len(self.labels)))

    def claim(self) -> None:
        """Make the directory this set's, if it is nobody's; or let the set that it holds grow to this size.

        Raises:
          ValueError: if it holds another set, or something else, with what differs and what to do.
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
            file.write(json.dumps({**self.told, "labels": self.labels.tolist()}).encode())

    def _recover(self, trouble: str, how: str) -> None:
        """See that all that is in a directory which does not tell its set is of this one."""
        if other := next((name for name in OTHERS if (self.directory / name).exists()), None):
            raise ValueError(
                f"{self.directory} holds {other}: it is of something else than a generated set; choose another directory."
            )
        found = {int(path.stem[6:]): path for path in self.directory.glob("shard-*.npz") if path.stem[6:].isdecimal()}
        for number, path in sorted(found.items()):
            try:
                self.read(number)
            except (FileNotFoundError, DamagedError):
                continue  # The last one of a smaller set, or one that is made again.
            except ValueError as error:
                raise ValueError(
                    f"{self.directory} holds {path.name}, {trouble}, and that is not of the set that is asked. Ask for the set"
                    f" that it is of, and {IDENTITY} is written anew; or {_ELSEWHERE}"
                ) from error
        if found or how == "damaged":
            warnings.warn(f"{self.directory / IDENTITY} was {how}: it is written anew.", stacklevel=4)

    def check(self) -> None:
        """See that the directory is this set's.

        Raises:
          ValueError: if it holds another set, with what differs and what to do.
        """
        there = _known(self.directory)
        both = min(len(there["labels"]), len(self.labels))
        labels = np.array(there.pop("labels")[:both])
        told = list(_differences(there, self.told))
        if (other := np.flatnonzero(labels != self.labels[:both])).size:
            i = other[0]
            told.append(f"the label of sample {i} is {labels[i]} there, and {self.labels[i]} is asked")
        if told:
            raise ValueError(f"{self.directory} holds another set: {'; '.join(told)}. Nothing is changed there; {_ELSEWHERE}")

    def clean(self) -> None:
        """Remove what interrupted writing has left."""
        disk.clean(self.directory, NAMES)

    def write(self, number: int, images: np.ndarray) -> None:
        """Images `[n, H, W, C]` uint8 of one shard, with their labels and indices.

        Raises:
          OSError: if the disk takes no more; the shards that are finished stay.
        """
        indices = self.indices(number)
        with self.kept(images.nbytes), replacing(self.path(number)) as file:
            np.savez(file, images=images, labels=self.labels[indices], indices=indices, set=np.array(self.digest))

    @contextlib.contextmanager
    def kept(self, size: int) -> Iterator[None]:
        """Says, of a file of `size` bytes that cannot be written, that what is finished is kept, and how to go on."""
        try:
            yield
        except UnwrittenError as error:
            stay, room = sum(self.path(i).exists() for i in range(self.count)), disk.room(self.directory, "it", size)
            raise UnwrittenError(
                error.errno,
                f"{error.strerror}. The {stay} of {self.count} shards that are finished stay; {room}."
                " Make room, or mend what else it is, and start again: it goes on from there",
            ) from error

    def read(self, number: int) -> np.ndarray:
        """Images `[n, H, W, C]` uint8 of one shard, the checksums of the file compared.

        Raises:
          FileNotFoundError: if it is not made yet, or was the last one of a smaller set.
          DamagedError: if it is not what was written.
          ValueError: if it is of another set.
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
            raise ValueError(f"{path} is of another set than {IDENTITY} beside it tells; {_ELSEWHERE}")
        both = min(len(own), len(indices))
        if not np.array_equal(own[:both], indices[:both]) or not np.array_equal(labels[:both], self.labels[indices[:both]]):
            raise ValueError(f"{path} holds other samples than its name and {IDENTITY} beside it tell; {_ELSEWHERE}")
        if both < len(indices):
            raise FileNotFoundError(f"{path} holds {both} samples of the {len(indices)}; run the generation again.")
        return images[:both]

    def finished(self, number: int) -> bool:
        """Whether a shard is there and whole; one that is damaged is to be made again, with a warning."""
        try:
            self.read(number)
        except FileNotFoundError:
            return False
        except DamagedError as error:
            warnings.warn(f"{error}; it is made again.", stacklevel=2)
            return False
        return True

    def parts(self) -> Iterator[np.ndarray]:
        """The images, a shard at a time.

        Raises:
          FileNotFoundError: if not all of them are there, with how many are missing.
          DamagedError: if a shard is not what was written.
        """
        missing = [number for number in range(self.count) if not self.path(number).exists()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of the {self.count} shards in {self.directory} are not made yet, {self.path(missing[0]).name}"
                " first; run the generation again, it makes what is missing."
            )
        yield from map(self.read, range(self.count))

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """All images `[N, H, W, C]` uint8 and labels `[N]`, in the order of their keys; raises as `parts` does."""
        parts = self.parts()
        first = next(parts)
        images = np.empty((len(self.labels), *first.shape[1:]), np.uint8)
        for number, part in enumerate(itertools.chain((first,), parts)):
            images[self.indices(number)] = part
        return images, self.labels

    def assemble(self, channels: int | None = None) -> Path:
        """One file of a finished set, in the layout of the evaluator of OpenAI's guided-diffusion.

        `arr_0` are the images, `[N, H, W, C]` uint8, and `arr_1` the labels, `[N]` int64; the name tells the shape, as in
        `samples_50000x64x64x3.npz`. It is written a shard at a time, so that the set need not fit into memory.

        Args:
          channels: 3 repeats the one channel of grey images, for evaluators that ask for colours; None keeps them as they are.

        Raises:
          ValueError: if the images cannot be given so many channels; else as `parts` does.
          OSError: if the disk takes no more.
        """
        parts = self.parts()
        first = next(parts)
        own: int = first.shape[3]
        channels = own if channels is None else channels
        if own not in (1, channels) or channels < 1:
            raise ValueError(f"images of {own} channels cannot be written with {channels}; only grey ones are repeated.")
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


_ELSEWHERE = "choose another directory, or remove this one."


def _check_declared(content: BinaryIO) -> None:
    """Raises unless each array is stored as it is, and as large as its header says: nothing is allocated before."""
    with zipfile.ZipFile(content) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise ValueError(f"{info.filename!r:.100} is compressed")
            with archive.open(info) as member:
                if np.lib.format.read_magic(member) != (1, 0):
                    raise ValueError(f"{info.filename!r:.100} is of another version")
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                if math.prod(shape) * dtype.itemsize != info.file_size - member.tell():
                    raise ValueError(f"{info.filename!r:.100} is not as large as its shape {shape}")


def _known(directory: Path) -> dict[str, Any]:
    """What a directory tells of its set."""
    path = directory / IDENTITY
    again = "Start the generation again by its own command: it is written anew, and what is finished stays"
    try:
        told = disk.read_json(path)
    except DamagedError as error:
        raise DamagedError(f"{error}. {again}") from error
    if told and not {"shard", "labels"} & told.keys():
        raise ValueError(
            f"{path} is of something else than a generated set, as of a training: it tells {', '.join(sorted(told))[:200]}."
            " Nothing is changed there; choose another directory."
        )
    size, labels, identity = (told.get(name) for name in ("shard", "labels", "identity"))
    numbers = isinstance(labels, list) and labels and all(type(label) is int and abs(label) < 2**31 for label in labels)
    if type(size) is not int or size < 1 or not numbers or not isinstance(identity, dict):
        raise DamagedError(f"{path} is damaged, or of another version (it needs shard, labels and identity). {again}")
    return told


def _differences(there: Any, asked: Any, name: str = "") -> Iterator[str]:
    """In words, what differs between two trees of JSON."""
    if isinstance(there, dict) and isinstance(asked, dict):
        for key in sorted(there.keys() | asked.keys()):
            inner = key if name in ("", "identity") else f"{name}.{key}"
            yield from _differences(there.get(key, "nothing"), asked.get(key, "nothing"), inner)
    elif there != asked:
        yield f"{name} is {json.dumps(there)} there, and {json.dumps(asked)} is asked"


def opened(directory: Path, count: int | None = None) -> Shards:
    """The set that a directory holds, or the first `count` samples of it.

    Raises:
      FileNotFoundError: if it holds none, or less.
    """
    if not (directory / IDENTITY).exists():
        raise FileNotFoundError(f"{directory} holds no generated set: it has no {IDENTITY}.")
    told = _known(directory)
    labels = np.array(told["labels"], np.int32)
    if count is not None and not 1 <= count <= len(labels):
        raise FileNotFoundError(f"{directory} holds a set of {len(labels)} samples, and {count} are asked.")
    return Shards(directory, labels[:count], told["shard"], told["identity"])


def samples(directory: Path, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All images `[N, H, W, C]` uint8 and labels `[N]` of a finished set, or the first `count`, in the order of their keys.

    Raises:
      FileNotFoundError: if there is no set, or not all of it.
      ValueError: if a shard is damaged.
    """
    return opened(directory, count).samples()
