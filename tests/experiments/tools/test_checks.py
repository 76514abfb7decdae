"""Tests of the checks before a job trains: the number of images and their size."""

import dataclasses
import importlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

import guidance_jax as gj
from experiments.tools import checks, data

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def small(tmp_path, monkeypatch) -> Callable[..., str]:
    """A function that writes a folder with train and test and returns its path. A job that starts to train fails."""

    def write(train: dict[str, int], test: dict[str, int], size: tuple[int, int] = (8, 8)) -> str:
        rng = np.random.default_rng(0)
        for split, counts in {"train": train, "test": test}.items():
            for name, count in counts.items():
                folder = tmp_path / "small" / split / name
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"{i}.png")
        return str(tmp_path / "small")

    def never(*_):
        raise AssertionError("the job started to train")

    for name, function in {"digits": "train", "exact_digits": "fit", "fashion_mnist.study": "train"}.items():
        monkeypatch.setattr(importlib.import_module(f"experiments.{name}"), function, never)
    return write


@pytest.mark.parametrize(
    ("job", "train", "test", "message"),
    [
        ("digits", (9, 9), (1, 1), r"test split of .*small must have at least 4 images, got 2; use more images\. In a folder"),
        ("digits", (9, 1), (3, 3), r"train split of .*small must have at least 2 images per class, got 1 of b; use more"),
        ("exact_digits", (1, 1), (2, 2), r"train split of .*small must have at least 24 images, got 2; use more images"),
        ("exact_digits", (24, 1), (2, 2), r"train split of .*small must have at least 2 images per class, got 1 of b"),
        ("fashion_mnist.study", (9, 9), (2, 3), r"test split of .*small must have at least 6 images, got 5; use more"),
        ("fashion_mnist.study", (2, 1), (6, 6), r"train split of .*small must have at least 6 images, got 3; use more"),
    ],
)
def test_a_job_with_too_few_images_raises_before_it_trains(job, train, test, message, small, tmp_path):
    module = importlib.import_module(f"experiments.{job}")
    name = small(*(dict(zip("ab", counts, strict=True)) for counts in (train, test)))
    with pytest.raises(ValueError, match=message):
        module.main(module.Config(out=tmp_path / "out", dataset=name))


def test_more_components_than_values_raise_before_the_fit(small, tmp_path):
    from experiments import exact_digits

    with pytest.raises(ValueError, match=r"components must be at most 16, the number of values of an image, got 24; use fewer"):
        exact_digits.main(exact_digits.Config(out=tmp_path, dataset=small({"a": 30}, {"a": 4}), size=4))


@pytest.mark.parametrize("preset", ["default", "small", "gpu"])
@pytest.mark.parametrize(("size", "pixels", "fix"), [((30, 30), "30 x 30", 28), ((50, 40), "40 x 50", 40)])
def test_images_that_do_not_fit_the_network_raise_before_training(preset, size, pixels, fix, small, tmp_path):
    from experiments.fashion_mnist import study

    config = dataclasses.replace(study.PRESETS[preset][1], out=tmp_path, dataset=small({"a": 6}, {"a": 6}, size))
    message = (
        rf"must be multiples of 4 .*got images of {pixels} pixels; use --size with a multiple of 4, such as --size {fix}\."
    )
    with pytest.raises(ValueError, match=message):
        study.main(config)
    with pytest.raises(AssertionError, match="started to train"):
        study.main(dataclasses.replace(config, size=fix))


def test_the_multiple_is_that_of_all_networks():
    network = lambda patch, *widths: gj.networks.UNetConfig((24, 24, 1), 10, widths=widths, patch=patch)
    checks.check_size("mnist", (12, 24, 1), network(3, 8), network(1, 8, 8, 8))
    with pytest.raises(ValueError, match=r"multiples of 12 .*got images of 24 x 8 pixels; use another network\."):
        checks.check_size("mnist", (8, 24, 1), network(3, 8), network(1, 8, 8, 8))


def test_counts_at_the_minimum_are_accepted():
    found = data.Data(np.zeros((4, 2, 2, 1), np.float32), np.array([0, 0, 1, 1], np.int32), ("a", "b"), "1")
    checks.check_count("mnist", "test", found, 4, 2)
    for least in ((5, 2), (4, 3)):
        with pytest.raises(ValueError, match="must have at least"):
            checks.check_count("mnist", "test", found, *least)
