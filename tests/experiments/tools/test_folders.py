"""Tests of folders of PNG or JPEG files as data sets: splits, labels, training, sampling, and errors."""

import dataclasses
import functools
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awake
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import guidance_jax as gj
from experiments.tools import data, folders
from guidance_jax import pretrained

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NAMES = ("one", "three", "two")
"""In the order of the alphabet, which is not the order of the digits."""


def digits(digit: int, count: int) -> np.ndarray:
    """`[count, 8, 8]` uint8."""
    shipped: Any = load_digits()
    return np.round(shipped.images[shipped.target == digit][:count] * (255 / 16)).astype(np.uint8)


def save(path: Path, image: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def load(folder: Path, split: str = "train", size: int | None = None, *, labelled: bool = True) -> data.Data:
    return data.load(str(folder), split, Path("/nowhere"), size=size, labelled=labelled)


@pytest.fixture
def classes(tmp_path):
    """Twelve PNG files per class."""
    for name in NAMES:
        for i, image in enumerate(digits({"one": 1, "two": 2, "three": 3}[name], 12)):
            save(tmp_path / "photos" / name / f"{i:02}.png", image)
    return tmp_path / "photos"


@pytest.fixture
def flat(tmp_path):
    """Twenty JPEG files without labels."""
    for i, image in enumerate(digits(0, 20)):
        save(tmp_path / "flat" / f"{i:02}.JPG", image, quality=95)
    return tmp_path / "flat"


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return np.asarray(image).tobytes()


def stored(images: np.ndarray) -> list[bytes]:
    """The pixels of images in [-1, 1] as bytes."""
    return [np.round((image + 1) * 127.5).astype(np.uint8).tobytes() for image in images]


def test_every_fifth_image_of_a_class_is_held_out(classes):
    found = {split: load(classes, split) for split in ("train", "test")}
    expected: dict[str, set[tuple[bytes, int]]] = {"train": set(), "test": set()}
    for label, name in enumerate(NAMES):
        for i, path in enumerate(sorted((classes / name).iterdir())):
            expected["train" if i % 5 else "test"].add((pixels(path), label))
    for split, one in found.items():
        assert one.names == NAMES
        assert (one.images.dtype, one.labels.dtype, one.images.shape[1:]) == (np.float32, np.int32, (8, 8, 1))
        assert set(zip(stored(one.images), one.labels.tolist(), strict=True)) == expected[split]
        assert len(one) == len(expected[split]) == {"train": 27, "test": 9}[split]
    assert len(set(found["train"].labels[:6].tolist())) > 1  # The classes are mixed.
    parts = [load(classes, part) for part in ("train[:10]", "train[10:]")]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), found["train"].images)
    both = load(classes, "test+train[:2]")
    np.testing.assert_array_equal(both.labels, np.concatenate([found["test"].labels, found["train"].labels[:2]]))


def test_train_and_test_folders_are_the_splits(classes, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(classes, tmp_path / "own" / split)
    shutil.rmtree(tmp_path / "own" / "test" / "two")
    with pytest.raises(ValueError, match=r"train and test in .*own must have the same classes.*two"):
        load(tmp_path / "own")
    save(tmp_path / "own" / "test" / "two" / "x.png", digits(2, 1)[0])
    assert {split: len(load(tmp_path / "own", split)) for split in ("train", "test")} == {"train": 36, "test": 25}
    save(tmp_path / "own" / "loose.png", digits(2, 1)[0])
    with pytest.raises(ValueError, match=r"holds train, test and loose\.png"):
        load(tmp_path / "own")


def test_the_version_depends_on_the_files_and_not_on_the_path(classes, tmp_path):
    version = load(classes).version
    moved = Path(shutil.copytree(classes, tmp_path / "elsewhere"))
    assert load(moved).version == load(moved, "test").version == version
    assert data.described(str(moved), version) == data.described(str(classes), version) == f"folder {version}"
    assert data.described("mnist", "3.0.1") == "mnist 3.0.1"
    save(moved / "one" / "00.png", digits(1, 13)[12])
    assert len({load(moved).version, load(classes, size=4).version, version}) == 3


def test_a_name_is_a_folder_if_tfds_has_no_such_set(classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folders.named("photos") == Path("photos")
    assert folders.named("./digits") == Path("digits")
    (tmp_path / "digits").mkdir()
    (tmp_path / "emnist" / "letters").mkdir(parents=True)
    for name in ("digits", "emnist/letters", "mnist:3.0.1", "nothing"):
        assert folders.named(name) is None
    with pytest.raises(ValueError, match=r'dataset must be a folder or a name of TFDS, got ""; use "\." for the current'):
        data.load("", "train", tmp_path)
    with pytest.raises(ValueError, match=r"'nothing' is neither a folder nor a data set of TFDS"):
        data.load("nothing", "train", tmp_path)
    with pytest.raises(ValueError, match=r"size is 8, but 'digits' is a set of TFDS"):
        data.load("digits", "train", tmp_path, size=8)
    with pytest.raises(ValueError, match=r"photos is a folder of images\. Leave manual_dir out"):
        data.load("photos", "train", tmp_path, tmp_path)


def test_colours_transparency_and_rotated_photographs_are_read(tmp_path):
    folder, grey = tmp_path / "mixed", np.full((4, 6), 100, np.uint8)
    folder.mkdir()
    save(folder / "a.png", grey)
    save(folder / "b.png", grey)
    assert load(folder, labelled=False).images.shape == (1, 4, 6, 1)
    clear = np.zeros((4, 6, 4), np.uint8)
    clear[:, 3:] = (255, 0, 0, 255)
    save(folder / "b.png", clear)
    (image,) = stored(load(folder, labelled=False).images)
    np.testing.assert_array_equal(np.frombuffer(image, np.uint8).reshape(4, 6, 3)[0, ::5], [[255, 255, 255], [255, 0, 0]])
    exif = Image.Exif()
    exif[274] = 6  # Rotated by 90 degrees.
    Image.fromarray(np.repeat(grey.T[..., None], 3, 2)).save(folder / "c.jpg", exif=exif)
    assert load(folder, labelled=False).images.shape == (2, 4, 6, 3)


def test_resizing_crops_the_centre_and_keeps_images_of_the_right_size(classes, tmp_path):
    wide = np.zeros((8, 12), np.uint8)
    wide[:, 2:10] = digits(1, 1)[0]
    wide[:, :2] = 255
    save(classes / "one" / "00.png", wide)
    with pytest.raises(ValueError, match=r"one/01\.png is 8 x 8 pixels and .*one/00\.png is 12 x 8 pixels.*--size N"):
        load(classes)
    assert digits(1, 1)[0].tobytes() in stored(load(classes, "test", size=8).images)
    assert load(classes, size=5).images.shape == (27, 5, 5, 1)
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        load(classes, size=0)


def broken(folder: Path) -> None:
    (folder / "two" / "03.png").write_bytes((folder / "two" / "03.png").read_bytes()[:60])


def no_png(folder: Path) -> None:
    (folder / "two" / "03.png").write_text("<html>")


def deep(kind: int, channels: int) -> Callable[[Path], object]:
    """A change that writes a 16-bit PNG file with a colour type of the PNG standard. Pillow writes grey ones only."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header, rows = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0), zlib.compress((b"\0" + bytes(16 * channels)) * 8)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return lambda folder: (folder / "two" / "03.png").write_bytes(content)


def rename(folder: Path, names: tuple[str, ...]) -> None:
    for old, new in zip(NAMES, names, strict=False):
        (folder / old).rename(folder / new)


CHANGES = {
    "cut": (broken, ValueError, r"two/03\.png cannot be read as a PNG or JPEG file: .*Replace it"),
    "no PNG": (no_png, ValueError, r"two/03\.png cannot be read as a PNG or JPEG file\. Replace it"),
    **{
        f"16 bits, {name}": (deep(*kind), ValueError, r"two/03\.png must have at most 8 bits per channel, got 16 bits; use a")
        for name, kind in {"grey": (0, 1), "RGB": (2, 3), "grey and alpha": (4, 2), "RGBA": (6, 4)}.items()
    },
    "nowhere": (shutil.rmtree, FileNotFoundError, r"there is no folder .*photos\."),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("")), NotADirectoryError, r"photos is a file. Use a folder"),
    "empty": (lambda f: [shutil.rmtree(f / name) for name in NAMES], ValueError, r"photos is empty\. Use a folder with PNG"),
    "an empty class": (lambda f: (f / "four").mkdir(), ValueError, r"class folder .*photos/four holds no image"),
    "one image": (lambda f: save(f / "four" / "a.png", digits(4, 1)[0]), ValueError, r"photos/four holds one image.*two"),
    "other files": (lambda f: (f / "one" / "notes.txt").write_text(""), ValueError, r"one holds files.*not PNG or JPEG: notes"),
    "loose images": (
        lambda f: save(f / "a.png", digits(4, 1)[0]),
        ValueError,
        r"photos holds class folders \(one, \.\.\.\) and loose images \(a\.png, \.\.\.\)",
    ),
    "deeper": (lambda f: (f / "one" / "more").mkdir(), ValueError, r"photos/one holds the folder more\."),
    **{
        f"a class called {', '.join(names)}": (
            functools.partial(rename, names=names),
            ValueError,
            rf"photos must be classes, or exactly train and test, got {', '.join(names)}; use the names train and test",
        )
        for names in (("test", "train", "val"), ("Test", "Train"), ("train",), ("VALIDATION",), ("test", "valid"))
    },
    "a class that is not UTF-8": (
        lambda f: (f / "one").rename(f / os.fsdecode(b"caf\xe9")),
        ValueError,
        r"name of a class must be UTF-8, got the folder .*photos/caf\\xe9; use another name",
    ),
    "a damaged file whose name is not UTF-8": (
        lambda f: (f / "one" / os.fsdecode(b"caf\xe9.png")).write_text("<html>"),
        ValueError,
        r"one/caf\\xe9\.png cannot be read as a PNG or JPEG file\. Replace it",
    ),
    "no labels": (
        lambda f: [(shutil.copytree(f / "one", f, dirs_exist_ok=True), [shutil.rmtree(f / name) for name in NAMES])],
        ValueError,
        r"images without labels, and this command needs labels.*python3 -m experiments\.fashion_mnist --dataset",
    ),
    "no such split": (lambda f: None, ValueError, "Unknown split 'val'"),
    "an empty split": (lambda f: None, ValueError, r"the split 'test\[:0\]' .* is empty\..*train 27, test 9"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_folder_raises_and_the_message_names_the_fix(classes, name):
    change, error, message = CHANGES[name]
    change(classes)
    with pytest.raises(error, match=message):
        load(classes, {"no such split": "val", "an empty split": "test[:0]"}.get(name, "train"))


def test_a_file_name_that_is_not_utf8_is_accepted(classes):
    version, expected = load(classes).version, stored(load(classes, "test").images)
    first = classes / "one" / "00.png"
    first.rename(first.with_name(os.fsdecode(b"00\xe9.png")))
    assert sorted(stored(load(classes, "test").images)) == sorted(expected)
    assert load(classes).version != version


def test_the_suggested_command_quotes_a_path_with_spaces(flat):
    spaced = flat.rename(flat.with_name("my photos"))
    with pytest.raises(ValueError, match=r"--dataset '/.*/my photos'$"):
        load(spaced)


def test_hidden_files_are_ignored(classes):
    (classes / ".DS_Store").write_text("")
    (classes / "one" / ".DS_Store").write_text("")
    (classes / ".thumbnails").mkdir()
    assert load(classes).names == NAMES


def test_a_file_that_changes_its_size_later_raises(classes):
    source = data.records(str(classes), "train", Path("/nowhere"))
    assert isinstance(source, folders.Images)
    for path in source.paths:
        save(path, np.zeros((8, 9), np.uint8))
    with pytest.raises(ValueError, match=r"\.png has changed: it is 9 x 8 pixels now and was 8 x 8 pixels"):
        source.read(np.array([0]))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The smallest study. Its initial parameters are drawn by NumPy. optax does not run under strict promotion."""
    from experiments.fashion_mnist import study
    from experiments.tools import models

    @functools.cache
    def abstract(kind, settings):
        module, config = models.MODULES[kind]
        return gj.networks.from_nnx(pretrained.abstract(functools.partial(module, config(**json.loads(settings)))))

    def build(described, seed=0):
        apply, params = abstract(described["kind"], json.dumps(described["config"], sort_keys=True))
        return models.Trained(apply, awake.drawn(params, seed), described.get("predicts"))

    monkeypatch.setattr(models, "build", build)

    network = gj.networks.UNetConfig((8, 8, 1), 10, widths=(8,), heads=2)
    training = study.Training(steps=2, batch=8)
    small = dataclasses.replace(
        study.PRESETS["smoke"][1],
        out=tmp_path / "out",
        network=network,
        classifier_network=network,
        denoiser=dataclasses.replace(training, snapshots=(1, 2)),
        classifier=training,
        evaluator=training,
        samples=16,
        headline=16,
        steps=2,
        batch=16,
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield small


@pytest.mark.slow
def test_a_folder_of_classes_has_networks_samples_and_a_judge(classes, config, monkeypatch):
    """The steps of the study. The networks are traced with the folder's batches and not trained."""
    from experiments.fashion_mnist import study
    from experiments.tools import models

    drawn = {}

    def untrained(name, loss, params, batches, training, seed, directory, identity, tell):
        drawn[name] = images, labels = next(batches)
        assert jax.eval_shape(loss, params, jax.random.key(seed), images, labels).shape == ()
        assert identity["data"] == f"folder {found.version}, 27 images"
        return params

    monkeypatch.setattr(study, "fit", untrained)
    monkeypatch.setattr(models, "restore", lambda path, like, step: like)
    config, found = dataclasses.replace(config, dataset=str(classes)), load(classes)
    config.out.mkdir()
    run, judge, digest, _ = study.train(config, found, load(classes, "test"))
    assert drawn.keys() == {"denoiser", "classifier", "clean", "evaluator"}
    of_folder = set(zip(stored(found.images), found.labels.tolist(), strict=True))
    for images, labels in drawn.values():
        assert set(zip(stored(images), labels.tolist(), strict=True)) <= of_folder
    assert judge is not None
    assert run.names == NAMES
    assert json.loads((config.out / "models.json").read_text())["names"] == list(NAMES)
    row = study.Sweep(run, judge, config.out / "samples", digest, steps=2, batch=16, seed=1).row("cfg", 2.0, 16)
    assert row["samples"] == 16
    assert np.isfinite([row[name] for name in ("accuracy", "fd", "precision", "recall")]).all()


@pytest.mark.slow
def test_a_folder_without_labels_trains_an_unconditional_model(flat, config, capsys, monkeypatch):
    """The loss of the study is traced. The one that is trained is linear, which compiles faster."""
    from experiments.fashion_mnist import study
    from experiments.tools import generate, models

    losses = study.losses

    def flat_losses(*given):
        def loss(params, key, images, labels):
            assert jax.eval_shape(losses(*given)["denoiser"], params, key, images, labels).shape == ()
            return sum(leaf.sum() for leaf in jax.tree.leaves(params)) * jnp.where((labels == 0).all(), 1.0, jnp.nan)

        return {"denoiser": loss}

    monkeypatch.setattr(study, "losses", flat_losses)

    found = study.main(dataclasses.replace(config, dataset=str(flat)))
    assert "denoiser is unconditional" in (printed := capsys.readouterr().out)
    assert f"experiments.tools.generate {config.out} --guidance unconditional" in printed
    assert (Path(found["samples"]) / "grid.png").exists()
    assert len(list(Path(found["samples"]).glob("samples_16x8x8x1.npz"))) == 1
    assert json.loads((config.out / "models.json").read_text())["names"] == []
    run = models.load(config.out)
    assert set(run.networks) == {"denoiser", "early", "weak"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.networks["denoiser"].params)), "a label was not 0"
    models.check(run, models.WAYS["autoguidance"])
    with pytest.raises(ValueError, match=r"CFG needs class labels.*Use one of: unconditional, autoguidance"):
        generate.main(generate.Config(config.out, config.out / "more"))
    with pytest.raises(ValueError, match=r"labels must be empty: the run has no classes, got \(0,\)"):
        generate.main(generate.Config(config.out, config.out / "more", guidance="unconditional", labels=(0,)))
