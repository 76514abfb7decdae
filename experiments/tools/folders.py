"""Folders of PNG or JPEG files as data sets: one subfolder per class, or a flat folder without labels. Pillow reads them.

A folder with exactly two subfolders, `train` and `test`, has these splits. Each is class folders, or images without labels.
From any other folder, every fifth image of each class is the test split: files 1, 6, 11, ... in the order of their names.
The class names are the names of the folders, sorted. They are in UTF-8 and no names of splits, such as train or val. Within a
split, the order is a fixed shuffle (by a digest of the names).

If all files are grey, images have one channel. If one file has colours or a palette, all become RGB. Transparent pixels are
blended with white. JPEG files are turned as their EXIF data say. Hidden files, whose names begin with a dot, are ignored.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
SPLITS = {"train", "test"}
RESERVED = SPLITS | {"val", "valid", "validation"}
"""Names of splits, in any case: no class has one of them."""
HELD_OUT = 5
"""One image in so many is held out, where the folder has no splits."""
GREY = {"1", "L", "LA"}
COLOUR = {"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"}
DEPTH_AT = 24
"""The position of the bit depth in a PNG file, in the header chunk IHDR."""
TURNED = 5
"""EXIF orientations from here on exchange width and height."""
Groups = dict[str, dict[str, list[Path]]]
"""`{split: {class: files}}`; a flat folder has the one class "", which is none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """A split of a folder, on disk: files are decoded when they are read.

    Args:
      paths: The file of each image.
      labels: `[N]`, int32: positions in `names`; 0 everywhere without labels.
      names: The class names; empty without labels.
      shape: `(H, W, C)` of every image that is read.
      version: A digest of the whole folder's files, their labels and `shape`; it does not depend on where the folder is.
      resized: Whether images are cropped and resized to `shape`.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    shape: tuple[int, int, int]
    version: str
    resized: bool

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images `[B, H, W, C]`, float32 in [-1, 1], and labels `[B]`, int32, of the files `index`, `[B]`.

        Raises:
          ValueError: If a file is damaged, or has changed its size since the folder was listed.
        """
        images = np.stack([self._decoded(self.paths[i]) for i in index.tolist()])
        return images.astype(np.float32) / 127.5 - 1, self.labels[index]

    def _decoded(self, path: Path) -> np.ndarray:
        height, width, channels = self.shape
        try:
            with Image.open(path, formats=FORMATS) as opened:
                opened.load()
                image: Any = ImageOps.exif_transpose(opened) if opened.format != "PNG" else opened
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("L" if channels == 1 else "RGB")
        except MemoryError:
            raise
        except Exception as error:  # A damaged file fails in a dozen ways.
            raise _damaged(path, error) from error
        if self.resized:
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        if image.size != (width, height):
            raise ValueError(f"{printable(path)} has changed: it is {_size(image.size)} now and was {_size((width, height))}.")
        return np.asarray(image).reshape(self.shape)


def named(name: str) -> Path | None:
    """The folder that the name of a data set stands for; None if it is a name of TFDS.

    A name that begins with ".", "/" or "~" is always a folder. Any other name is a folder if there is one and TFDS has no
    data set of that name.

    Raises:
      ValueError: If the name is empty.
    """
    if not name:
        raise ValueError('dataset must be a folder or a name of TFDS, got ""; use "." for the current directory.')
    if name.startswith((".", "/", "~")):
        return Path(name).expanduser()
    if not Path(name).exists():
        return None
    import tensorflow_datasets as tfds  # Here, as folders are also read where there is no TFDS.

    known = name.partition("/")[0].partition(":")[0] in tfds.list_builders(with_community_datasets=False)
    return None if known else Path(name)


def printable(path: Path | str) -> str:
    """A path for messages and reports. Bytes that are not UTF-8 become escapes, such as \\xe9, since print rejects them."""
    return os.fsencode(path).decode(errors="backslashreplace")


def splits(folder: Path, size: int | None = None) -> dict[str, Images]:
    """The splits "train" and "test" of a folder, after a look at every file's header.

    Args:
      folder: One subfolder per class, or images without labels; or `train` and `test`, each of which is one of the two.
      size: Crop the largest centred square of each image, and resize it to `size x size` pixels with Pillow's Lanczos filter.
        None: no resizing; all images must have one size.

    Raises:
      FileNotFoundError: If there is no such folder.
      NotADirectoryError: If it is a file.
      ValueError: If the folder or one of its class folders has no image, mixes images and folders, or has other files. If the
        name of a class is the name of a split or is not UTF-8. If `train` and `test` have different classes. If a file is
        damaged or has more than 8 bits per channel. If sizes differ and `size` is None.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}.")
    groups = _grouped(folder)
    names = tuple(name for name in groups["train"] if name)
    known = hashlib.sha256()
    first: tuple[Path, tuple[int, int]] | None = None
    colour = False
    for split, classes in groups.items():
        for name, paths in classes.items():
            for path in paths:
                found, grey, digest = _header(path)
                first = first or (path, found)
                if size is None and found != first[1]:
                    raise ValueError(
                        f"{printable(first[0])} is {_size(first[1])} and {printable(path)} is {_size(found)}: all images must "
                        "have one size. Use --size N (in Python: size=N) to crop the centre square of each and resize it to "
                        "N x N pixels."
                    )
                colour |= not grey
                known.update(f"{split}/{name}/{path.name}/{digest}\n".encode(errors="surrogateescape"))
    assert first is not None
    width, height = (size, size) if size else first[1]
    shape = (height, width, 3 if colour else 1)
    known.update(str(shape).encode())

    def images(classes: dict[str, list[Path]]) -> Images:
        pairs = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
        name = lambda pair: f"{pair[1]}/{pair[0].name}".encode(errors="surrogateescape")
        pairs.sort(key=lambda pair: hashlib.sha256(name(pair)).digest())
        paths, labels = zip(*pairs, strict=True)
        return Images(paths, np.array(labels, np.int32), names, shape, known.hexdigest()[:12], size is not None)

    return {split: images(classes) for split, classes in groups.items()}


def _grouped(folder: Path) -> Groups:
    """The files of a folder by split and class."""
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {printable(folder)}. Use the path of a folder with PNG or JPEG files.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{printable(folder)} is a file. Use a folder of PNG or JPEG files.")
    if {path.name for path in _listed(folder)[0]} == SPLITS:
        _, loose = _listed(folder)
        if loose:
            raise ValueError(
                f"{printable(folder)} holds train, test and {printable(loose[0].name)}. Move that image into a class folder of "
                "train or test."
            )
        groups = {split: _classes(folder / split) for split in ("train", "test")}
        train, test = (list(classes) for classes in groups.values())
        if train != test:
            alone = sorted(set(train) ^ set(test))
            shown = ", ".join(name or "images without a class folder" for name in alone[:5])
            raise ValueError(
                f"train and test in {printable(folder)} must have the same classes. Only one of them has: {shown}."
            )
        return groups
    groups: Groups = {"train": {}, "test": {}}
    for name, paths in _classes(folder).items():
        if len(paths) < 2:
            where = f"the class folder {printable(folder / name)}" if name else printable(folder)
            raise ValueError(
                f"{where} holds one image. Use at least two, one of them to hold out; or make folders train and test."
            )
        groups["test"][name] = paths[::HELD_OUT]
        groups["train"][name] = [path for i, path in enumerate(paths) if i % HELD_OUT]
    return groups


def _classes(folder: Path) -> dict[str, list[Path]]:
    """`{class: files}` of class folders, sorted by name; `{"": files}` of a flat folder."""
    inside, files = _listed(folder)
    if parts := [path.name for path in inside if path.name.lower() in RESERVED]:
        raise ValueError(
            f"the folders in {printable(folder)} must be classes, or exactly train and test, got {', '.join(parts)}; use the "
            "names train and test for the two splits, and no third split. A class needs another name."
        )
    if inside and files:
        raise ValueError(
            f"{printable(folder)} holds class folders ({printable(inside[0].name)}, ...) and loose images "
            f"({printable(files[0].name)}, ...). Use class folders alone, or images alone for training without labels."
        )
    if not inside and not files:
        raise ValueError(
            f"{printable(folder)} is empty. Use a folder with PNG or JPEG files, or with one folder of them per class."
        )
    if files:
        return {"": files}
    classes = {}
    for one in inside:
        if printable(one.name) != one.name:
            raise ValueError(f"the name of a class must be UTF-8, got the folder {printable(one)}; use another name for it.")
        deeper, files = _listed(one)
        if deeper:
            raise ValueError(
                f"the class folder {printable(one)} holds the folder {printable(deeper[0].name)}. A class folder holds images "
                "only. Splits are exactly two folders, train and test, each with class folders."
            )
        if not files:
            raise ValueError(f"the class folder {printable(one)} holds no image. Add PNG or JPEG files to it, or remove it.")
        classes[one.name] = files
    return classes


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the images in a folder, sorted by name; hidden ones are left out."""
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders, files = ([path for path in inside if path.is_dir() == kind] for kind in (True, False))
    if others := [path for path in files if path.suffix.lower() not in SUFFIXES]:
        shown = ", ".join(printable(path.name) for path in others[:3]) + (", ..." if len(others) > 3 else "")
        raise ValueError(
            f"{printable(folder)} holds files that are not PNG or JPEG: {shown}. Remove them, or convert them to PNG."
        )
    return folders, files


def _header(path: Path) -> tuple[tuple[int, int], bool, str]:
    """Width and height, whether it is grey, and a digest of the file; pixels are not decoded."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(DEPTH_AT)
            depth = file.read(1)
        with Image.open(path, formats=FORMATS) as image:
            (width, height), mode = image.size, image.mode
            deep = image.format == "PNG" and depth == b"\x10"  # Pillow reads 16-bit colours as 8-bit ones, without an error.
            if image.format != "PNG" and image.getexif().get(ExifTags.Base.Orientation, 1) >= TURNED:
                width, height = height, width
    except Exception as error:  # A damaged file fails in a dozen ways.
        raise _damaged(path, error) from error
    if deep or mode not in GREY | COLOUR:
        what = "16 bits" if deep else f"pixels of Pillow's mode {mode}"
        raise ValueError(
            f"{printable(path)} must have at most 8 bits per channel, got {what}; use a converted copy of the file."
        )
    return (width, height), mode in GREY, digest


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _damaged(path: Path, error: Exception) -> ValueError:
    why = "" if isinstance(error, Image.UnidentifiedImageError) else f": {str(error).strip() or type(error).__name__}"
    return ValueError(f"{printable(path)} cannot be read as a PNG or JPEG file{why}. Replace it, or remove it.")
