"""Tests of data sets: they are prepared from files and read again, and damaged ones raise."""

import gzip
import importlib.util
import io
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def header(*shape):
    return b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()


def content(array):
    return header(*array.shape) + array.astype(np.uint8).tobytes()


def arrays(seed=0, classes=10, train=47, test=13):
    rng = np.random.default_rng(seed)
    part = lambda n: (rng.integers(256, size=(n, 28, 28)), rng.permutation(np.arange(n) % classes))
    return {"train": part(train), "test": part(test)}


def write(folder, parts, prefix="", test="t10k", zipped=True):
    folder.mkdir(exist_ok=True)
    for split, pair in parts.items():
        for name, array in zip(FILES[split], pair, strict=True):
            path = folder / f"{prefix}{name.replace('t10k', test)}{'.gz' * zipped}"
            path.write_bytes(gzip.compress(content(array), 1) if zipped else content(array))
    return folder


def pairs(images, labels):
    """The sorted pairs of the bytes of an image and its label."""
    images = np.round((np.asarray(images) + 1) * 127.5) if np.issubdtype(images.dtype, np.floating) else images
    return sorted((image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from experiments.tools import data

    where = tmp_path_factory.mktemp("data")
    return {split: data.load("digits", split, where) for split in ("train", "test")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A small Fashion-MNIST: the folder of the prepared set, its arrays, and the folder of its files."""
    from experiments.tools import prepare

    root, parts = tmp_path_factory.mktemp("fashion"), arrays()
    prepare.prepare("fashion_mnist", root / "sets", write(root / "files", parts))
    return root / "sets", parts, root / "files"


def test_the_digits_equal_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    shipped: Any = load_digits()
    assert {split: len(d) for split, d in digits.items()} == {"train": 1437, "test": 360}
    images = np.concatenate([d.images for d in digits.values()])
    labels = np.concatenate([d.labels for d in digits.values()])
    sixteenths = np.round((images[..., 0] + 1) * 8).astype(int)
    raw = lambda images, labels: sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))
    assert raw(sixteenths, labels) == raw(shipped.images.astype(int), shipped.target)
    assert (np.bincount(digits["test"].labels) >= 34).all()
    assert images.min() == -1
    assert images.max() == 1


def test_idx_files_become_a_set_that_equals_that_of_tfds(prepared):
    import tensorflow_datasets as tfds

    from experiments.tools import data, prepare

    directory, parts, files = prepared
    for split, (images, labels) in parts.items():
        read = data.load("fashion_mnist", split, directory)
        assert pairs(read.images, read.labels) == pairs(images, labels)
        assert (read.images.shape, read.images.dtype, read.labels.dtype) == ((len(images), 28, 28, 1), np.float32, np.int32)
        assert (read.classes, read.version) == (10, "3.0.1")
        left = data.records("fashion_mnist", split, directory, files)
        index = np.array([3, 0, 7])
        assert (len(left), left.shape) == (len(images), (28, 28, 1))
        for ours, theirs in zip(left.read(index), read.read(index), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
    ours: Any = prepare.prepare("fashion_mnist", directory).info
    theirs: Any = tfds.builder("fashion_mnist").info
    assert set(ours.features) == set(theirs.features)
    for key in ("shape", "np_dtype"):
        assert getattr(ours.features["image"], key) == getattr(theirs.features["image"], key)
    assert ours.features["label"].names == theirs.features["label"].names
    assert ours.features["label"].names[9] == "Ankle boot"
    assert {split: info.num_examples for split, info in ours.splits.items()} == {"train": 47, "test": 13}
    assert (ours.full_name, ours.description, ours.supervised_keys) == (
        theirs.full_name,
        theirs.description,
        ("image", "label"),
    )


def test_emnist_has_its_own_file_names_and_classes(tmp_path):
    from experiments.tools import data, prepare

    parts = arrays(classes=37, train=40)
    files = write(tmp_path / "files", parts, "emnist-letters-", test="test", zipped=False)
    read = data.load("emnist/letters", "train", tmp_path, files)
    assert pairs(read.images, read.labels) == pairs(*parts["train"])
    assert (read.classes, prepare.prepare("emnist/letters", tmp_path).info.full_name) == (37, "emnist/letters/3.1.0")


def test_a_set_that_tfds_prepared_is_read(tmp_path, prepared):
    import PIL.Image
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification.mnist import FashionMNIST

    from experiments.tools import data, prepare

    _, parts, files = prepared

    class WithImage(FashionMNIST, skip_registration=True):
        name = "fashion_mnist"

        def _split_generators(self, dl_manager) -> Any:
            return {split: self._pngs(*part) for split, part in parts.items()}

        def _pngs(self, images, labels):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                png = io.BytesIO()
                PIL.Image.fromarray(image.astype(np.uint8)).save(png, "png")
                png.seek(0)
                yield i, {"image": png, "label": int(label)}

    WithImage(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    assert isinstance(prepare.prepare("fashion_mnist", tmp_path).info.features["image"], tfds.features.Image)
    read = data.load("fashion_mnist", "train", tmp_path, files)
    assert pairs(read.images, read.labels) == pairs(*parts["train"])


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
DAMAGES = {
    "cut gzip": (IMAGES, lambda raw: raw[:-9], "not a complete gzip file"),
    "flipped gzip": (IMAGES, lambda raw: raw[:500] + bytes(100) + raw[600:], "not a complete gzip file"),
    "empty": (LABELS, lambda raw: b"", "is empty"),
    "empty within": (LABELS, lambda raw: gzip.compress(b""), "begins with b''"),
    "no IDX": (LABELS, lambda raw: b"<html>not found</html>", "expected an IDX"),
    "of floats": (LABELS, lambda raw: gzip.compress(b"\0\0\x0d\1" + bytes(8)), "expected an IDX"),
    "cut header": (IMAGES, lambda raw: gzip.compress(header(47, 28, 28)[:9]), "ends within its header: got 9 bytes"),
    "cut body": (IMAGES, lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), r"\(47, 28, 28\), 36848 bytes, but has 36847"),
    "extra bytes": (LABELS, lambda raw: gzip.compress(gzip.decompress(raw) + b"\0"), "47 bytes, but has 48"),
    "no records": (LABELS, lambda raw: gzip.compress(header(0)), "has 0"),
    "too few labels": (
        LABELS,
        lambda raw: gzip.compress(content(np.zeros(46))),
        r"labels \(46,\) for the images \(47, 28, 28\)",
    ),
    "labels for images": (IMAGES, lambda raw: gzip.compress(content(np.zeros(47))), r"\(47,\), expected images of \(28, 28\)"),
    "another size": (
        IMAGES,
        lambda raw: gzip.compress(content(np.zeros((47, 32, 32)))),
        r"\(47, 32, 32\), expected images of \(28",
    ),
    "label out of range": (
        LABELS,
        lambda raw: gzip.compress(content(np.full(47, 10))),
        "label 10, expected 0 to 9",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_raise_by_name_and_nothing_is_written(tmp_path, prepared, damage):
    from experiments.tools import data

    name, change, message = DAMAGES[damage]
    files = Path(shutil.copytree(prepared[2], tmp_path / "files"))
    (files / name).write_bytes(change((files / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        data.load("fashion_mnist", "test", tmp_path / "sets", files)
    assert [path.name for path in (tmp_path / "sets").rglob("*")] == [".lock"]


def test_missing_files_raise_with_the_name_of_their_package(tmp_path, prepared):
    from experiments.tools import data

    files = Path(shutil.copytree(prepared[2], tmp_path / "files"))
    load = lambda files: data.load("fashion_mnist", "test", tmp_path / "sets", files)
    for name in (LABELS, "t10k-images-idx3-ubyte.gz"):
        (files / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{files} lacks {LABELS}, t10k-images-idx3-ubyte.gz.*dataset-fashion-mnist"):
        load(files)
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        load(tmp_path / "nowhere")
    # With all files it works.
    for name in (LABELS, "t10k-images-idx3-ubyte.gz"):
        shutil.copy(prepared[2] / name, files)
    assert len(load(files)) == 13


def test_files_that_differ_from_the_prepared_ones_raise(tmp_path, prepared):
    from experiments.tools import data

    other = arrays()
    other["test"][0][0, 0, 0] ^= 1
    with pytest.raises(ValueError, match="prepared from other files than those in"):
        data.load("fashion_mnist", "train", prepared[0], write(tmp_path / "files", other))
    assert len(data.load("fashion_mnist", "train", prepared[0], tmp_path / "not there")) == 47


@pytest.mark.slow
def test_after_a_kill_during_preparation_the_next_call_works(tmp_path, prepared):
    from experiments.tools import data

    script = (
        "import os, signal, sys; from pathlib import Path; from experiments.tools import data, idx; write = idx.builder\n"
        "def builder(*arguments):\n"
        "    made = write(*arguments); examples = type(made)._examples\n"
        "    def dies(self, images, labels):\n"
        "        for i, example in enumerate(examples(self, images, labels)):\n"
        "            if len(images) == 13 and i == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "            yield example\n"
        "    type(made)._examples = dies; return made\n"
        "idx.builder = builder; data.load('fashion_mnist', 'train', *map(Path, sys.argv[1:]))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script, tmp_path, prepared[2]], cwd=root, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    left = [path.name for path in (tmp_path / "fashion_mnist").iterdir()]
    assert len(left) == 1
    assert left[0].startswith("incomplete.")
    read = data.load("fashion_mnist", "test", tmp_path, prepared[2])
    assert pairs(read.images, read.labels) == pairs(*prepared[1]["test"])
    assert [path.name for path in (tmp_path / "fashion_mnist").iterdir()] == ["3.0.1"]


def test_four_threads_prepare_one_set(tmp_path, prepared):
    from experiments.tools import data

    sizes = []
    load = lambda: sizes.append(len(data.load("fashion_mnist", "test", tmp_path, prepared[2])))
    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [13] * 4
    assert [path.name for path in (tmp_path / "fashion_mnist").iterdir()] == ["3.0.1"]


def test_a_damaged_prepared_set_raises(tmp_path, prepared):
    from experiments.tools import data

    where = Path(shutil.copytree(prepared[0], tmp_path / "sets"))
    (path,) = where.rglob("*train.array_record*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RuntimeError, match=f"{path.parent} is damaged: .*Move it away"):
        data.load("fashion_mnist", "train", where)
    assert len(data.load("fashion_mnist", "test", where)) == 13


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"3", b"{}", b"\xff\xfe", b"[" * 100_000, None])
def test_a_prepared_set_with_a_damaged_or_missing_description_raises(tmp_path, prepared, name, raw):
    """The file is missing if `raw` is None."""
    from experiments.tools import data

    where = Path(shutil.copytree(prepared[0], tmp_path / "sets"))
    (path,) = where.rglob(name)
    path.unlink() if raw is None else path.write_bytes(raw)
    before = sorted(where.rglob("*"))
    with pytest.raises(RuntimeError, match=f"the set in {path.parent} is damaged: .*Move it away"):
        data.load("fashion_mnist", "train", where)
    assert sorted(where.rglob("*")) == before


def test_a_directory_without_its_set_raises(tmp_path):
    from experiments.tools import data

    place = tmp_path / "digits" / "1.0.0"
    place.mkdir(parents=True)
    for change in (
        lambda: None,
        lambda: (place.rmdir(), place.write_text("")),
        lambda: (place.unlink(), place.symlink_to("x")),
    ):
        change()
        with pytest.raises(RuntimeError, match=r"the set in .*digits/1\.0\.0 is damaged"):
            data.load("digits", "train", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the directory .*file cannot be made: it is a file"):
        data.load("digits", "train", tmp_path / "file")


@pytest.mark.parametrize("split", ["test[:0]", "test[5:3]", "test[:0%]", "train[:9]+test[3:3]"])
def test_an_empty_split_raises_with_the_sizes_of_the_splits(prepared, split):
    from experiments.tools import data

    with pytest.raises(ValueError, match=r"is empty\. Its splits and their numbers of images: .*test 13"):
        data.load("fashion_mnist", split, prepared[0])
    with pytest.raises(ValueError, match="Unknown split 'tset'"):
        data.load("fashion_mnist", "tset", prepared[0])


def test_a_set_that_tfds_cannot_prepare_raises(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    from experiments.tools import data

    load = lambda name, files=None: data.load(name, "train", tmp_path, files)
    find_spec = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "tensorflow" else find_spec(name, *rest)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", absent)
        for name, mend in (
            ("mnist", "--manual-dir"),
            ("fashion_mnist", "dataset-fashion-mnist"),
            ("cifar10", "copy the folder"),
        ):
            with pytest.raises(
                ModuleNotFoundError,
                match=f"'{name}' is not prepared yet.*needs TensorFlow once.*pip install tensorflow.*{mend}",
            ):
                load(name)
    with pytest.raises(tfds.core.DatasetNotFoundError, match="Did you mean: cifar11"):
        load("cifar11")
    with pytest.raises(ValueError, match="expected uint8 images with class labels"):
        load("imdb_reviews")
    with pytest.raises(ValueError, match="images of many sizes"):
        load("tf_flowers")
    with pytest.raises(ValueError, match="made of no IDX files"):
        load("cifar10", tmp_path)

    def fails(error):
        def download_and_prepare(self, **options):
            raise error

        return download_and_prepare

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: True)
    for error, kind, message in (
        (ConnectionError("no route to host"), RuntimeError, "could not prepare 'mnist': no route to host.*--manual-dir"),
        (ModuleNotFoundError("No module named 'tensorflow'"), ModuleNotFoundError, "'mnist' is not prepared yet"),
    ):
        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fails(error))
        with pytest.raises(kind, match=f"(?s){message}"):
            load("mnist")
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
