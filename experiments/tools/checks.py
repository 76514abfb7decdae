"""Checks of a data set before a job trains: it has enough images, and they fit the network."""

import math

import numpy as np

import guidance_jax as gj
from experiments.tools import data, folders


def check_count(name: str, split: str, found: data.Data, images: int, per_class: int = 1) -> None:
    """Argument validation of a split.

    Args:
      name: The name of the data set, for the error.
      split: "train" or "test".
      found: The split, with labels.
      images: The minimum number of images.
      per_class: The minimum number of images per class.

    Raises:
      ValueError: If the split or one of its classes has fewer images.
    """
    where = f"the {split} split of {folders.printable(name)}"
    fix = "use more images. In a folder without train and test, every fifth image of each class is in the test split."
    if len(found) < images:
        raise ValueError(f"{where} must have at least {images} images, got {len(found)}; {fix}")
    counts = np.bincount(found.labels, minlength=found.classes)
    if counts.min() < per_class:
        label = found.names[counts.argmin()]
        raise ValueError(f"{where} must have at least {per_class} images per class, got {counts.min()} of {label}; {fix}")


def check_size(name: str, shape: tuple[int, ...], *networks: gj.networks.UNetConfig) -> None:
    """Argument validation of the size of the images: a U-Net divides them into patches, and then halves them per level.

    Args:
      name: The name of the data set, for the error.
      shape: `(H, W, C)` of one image.
      networks: The networks to train. Their own `shape` is not used.

    Raises:
      ValueError: If the height or the width does not divide evenly.
    """
    multiple = math.lcm(*(network.patch * 2 ** (len(network.widths) - 1) for network in networks))
    height, width = shape[:2]
    if height % multiple or width % multiple:
        size = max(multiple, min(height, width) // multiple * multiple)
        fix = f"--size with a multiple of {multiple}, such as --size {size}" if folders.named(name) else "another network"
        raise ValueError(
            f"the height and width of images must be multiples of {multiple} to fit the network, got images of {width} x "
            f"{height} pixels; use {fix}."
        )
