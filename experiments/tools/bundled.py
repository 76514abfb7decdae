"""The digits that scikit-learn ships."""

from typing import Any

import numpy as np


def digits() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Images `[1797, 8, 8, 1]` in bytes, their labels, and the positions of each split. A fifth of the digits is held out."""
    from sklearn.datasets import load_digits  # Here, as Grain's workers import this module and need no scikit-learn.
    from sklearn.model_selection import train_test_split

    found: Any = load_digits()
    images = np.round(found.images[..., None] * (255 / 16)).astype(np.uint8)
    train, test = map(
        np.asarray, train_test_split(np.arange(len(images)), test_size=0.2, stratify=found.target, random_state=0)
    )
    return images, found.target, {"train": train, "test": test}
