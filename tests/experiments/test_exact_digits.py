"""Tests of the training-free experiment: its files, its errors, and its findings."""

import gzip
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.smoke
@pytest.mark.slow
def test_cfg_raises_the_distance_and_autoguidance_lowers_it(tmp_path):
    """The smoke run, and the files that it writes.

    CFG raises accuracy and also the distance. CFG in an interval hardly raises the distance. For the under-fitted model CFG
    raises the distance and autoguidance lowers it. The exact classifier guides as CFG does.
    """
    from experiments.exact_digits import SCANS, Config, main

    metrics = main(Config(out=tmp_path, smoke=True))
    names = {path.name for path in (tmp_path / "smoke").iterdir()}
    assert {"curves.png", "scans.png", "samples_exact.png", "samples_underfit.png", "metrics.json"} <= names
    assert json.loads((tmp_path / "smoke" / "metrics.json").read_text())["apart"] == metrics["apart"] < 1e-3
    assert metrics["judge_on_real"] > 0.97
    for method, rows in metrics["results"].items():
        assert np.isfinite([list(row.values()) for row in rows]).all(), method
    at = lambda name, scale: next(row for row in metrics["results"][name] if row["scale"] == scale)
    unguided, at_one, cfg = at("no guidance", 1), at("CFG", 1), at("CFG", 4)
    assert (at_one["evaluations"], unguided["evaluations"]) == (32, 16)
    np.testing.assert_allclose(at_one["class_fd"], unguided["class_fd"], rtol=1e-3)
    interval = metrics["scans"]["interval"]["rows"][list(itertools.product(*SCANS["interval"].values())).index((0.3, 0.7))]
    assert min(cfg["fd"] / unguided["fd"] / 3, cfg["class_fd"] / unguided["class_fd"]) > 3
    assert interval["class_fd"] < 1.5 * unguided["class_fd"]
    assert min(cfg["judged"], interval["judged"]) > unguided["judged"] + 0.01
    under = at("under-fitted", 1)
    worse, repaired = (at(f"under-fitted, {name}", 2) for name in ("CFG", "autoguidance"))
    assert under["fd"] > 2.5 * unguided["fd"]
    assert worse["fd"] > 2 * under["fd"]
    assert max(repaired[key] / under[key] for key in ("fd", "class_fd")) < 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [({"scales": (1.0, 2.0)}, "scales must include"), ({"weak": 0.1}, "below weak"), ({"samples": 1}, "at least 2")],
)
def test_a_config_with_a_wrong_value_raises(change, message):
    from experiments.exact_digits import Config

    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_fashion_mnist_is_read_in_the_order_of_its_files(tmp_path):
    from experiments.exact_digits import fashion

    images, labels = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 256, np.array([0, 9, 5])
    header = lambda *shape: b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = header(*array.shape) + array.astype(np.uint8).tobytes()
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
        images, labels = images[::-1], labels[::-1]
    read = fashion(tmp_path, "train"), fashion(tmp_path, "test")
    for split, order in zip(read, (1, -1), strict=True):
        np.testing.assert_allclose(split.images[::order, ..., 0], images / 127.5 - 1, atol=1e-6)
        np.testing.assert_array_equal(split.labels[::order], labels)


def test_the_program_of_the_judge_has_no_images_and_no_weights_as_constants(no_constants):
    from experiments import exact_digits
    from experiments.tools import data

    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(40, 8, 8, 1)).astype(np.float32), np.arange(40, dtype=np.int32) % 10
    config = exact_digits.Config(components=2, samples=2, steps=1)
    many = data.Data(images.repeat(5, 0), labels.repeat(5), ("a",) * 10, "1")
    world, _ = exact_digits.fit(config, many, many)
    assert sum(part.nbytes for part in jax.tree.leaves(world.judge)) > 4000
    exact_digits.measure(world, world.judge, jnp.asarray(rng.normal(size=(10, 3, 2)), jnp.float32))
