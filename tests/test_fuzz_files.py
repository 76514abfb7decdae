"""Changed files give the same values or raise by name, in little memory. `python -m tests.fuzz_files 4000` tries more."""

import io
import json
import tracemalloc
import warnings

import numpy as np
import pytest
from file_kinds import KINDS
from fuzz_files import fuzzed, hostile
from hostile import FOUR, HOSTILE, pickles, tensors
from PIL import Image

from experiments.text_to_image import read
from experiments.tools import idx
from guidance_jax.pretrained.settings import read_json

EACH = 5


@pytest.fixture(scope="module", autouse=True)
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.slow
def test_changed_files_are_read_the_same_or_refused_by_name():
    kinds = sum(not kind.rare for kind in KINDS.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = fuzzed(EACH * kinds, rare=False)
    every = [run for each in runs.values() for run in each]
    bad = [run.message for run in every if run.outcome in ("RAW", "SILENT")]
    assert not bad, "\n".join(bad)
    assert {run.outcome for run in every} >= {"refused", "read the same", "other values, no checksum"}
    assert len(every) == EACH * kinds
    # The first read compiles, which needs more memory than reading does.
    assert max(run.peak for run in every) < 20e6


@pytest.mark.slow
def test_files_made_to_harm_are_refused_in_little_memory_and_time():
    runs = hostile()
    assert runs.keys() == HOSTILE.keys()
    for name, run in runs.items():
        assert run.outcome == "refused", f"{name}: {run.message}"
        assert run.peak < 1e6 + 25 * run.size, f"{name}: {run.peak} bytes for {run.size}"
        assert run.seconds < 60, name
    assert sum(run.grown for run in runs.values()) < 100e6


def test_the_harmless_originals_of_the_harmful_pickles_are_read(tmp_path):
    make, opened = pickles(tensors(4, FOUR, b"(K\x01t"), _0=np.arange(4, dtype=np.float32).tobytes())
    make(tmp_path)
    np.testing.assert_array_equal(opened(tmp_path)["w"], np.arange(4, dtype=np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": Infinity}', "Infinity is not a number"),
        (b'{"a": 1e999}', "exceeds the range of numbers"),
        (b'{"a": "\xff"}', "can't decode"),
        (b"\xff\xfe{\0}\0", "can't decode"),
        (b"[1]", "must hold a JSON object, got list"),
        (b'{"a": ' + b"9" * 40 + b"}", "an integer of 40 digits"),
        (b'{"a": ' * 70 + b"1" + b"}" * 70, "nested deeper than 64"),
        (b'{"a": ' * 70_000, "nested deeper than 64"),
        (b"", "Expecting value"),
    ],
)
def test_the_error_of_a_damaged_settings_file_names_it(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"config\.json, the settings, is damaged: .*{message}"):
        read_json(tmp_path / "config.json", "the settings")
    with pytest.raises(ValueError, match=r"config\.json, the settings, (has [\d,]+ bytes|is damaged)"):
        read_json(tmp_path / "config.json", "the settings", 0)


def test_settings_of_published_files_are_read(tmp_path):
    held = {"lambda_min_clipped": -float("inf"), "model_max_length": int(1e30), "_name": "ä", "rate": 1e-5, "sizes": [1, 2]}
    (tmp_path / "config.json").write_text(json.dumps(held))
    assert read_json(tmp_path / "config.json", "the settings") == held


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_rotated_as_its_camera_recorded(tmp_path, turn):
    seen = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
    # The stored image for each orientation in EXIF 2.32, tag 274. Reading must restore the original image.
    stored = [seen, seen[:, ::-1], seen[::-1, ::-1], seen[::-1], *(seen.swapaxes(0, 1)[s] for s in SIDES)][turn - 1]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[274] = turn
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(read(tmp_path / "a.png"), seen / np.float32(127.5) - 1, atol=1e-6)


SIDES = (
    (slice(None), slice(None)),
    (slice(None, None, -1), slice(None)),
    (slice(None, None, -1), slice(None, None, -1)),
    (slice(None), slice(None, None, -1)),
)


def test_grey_deep_and_transparent_pictures_are_read(tmp_path):
    grey = np.arange(0, 65536, 3000, dtype=np.uint16).reshape(2, 11)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    np.testing.assert_allclose(read(tmp_path / "deep.png")[..., 1], grey / np.float32(32767.5) - 1, atol=1e-6)
    for mode in ("L", "LA", "RGBA", "P", "1"):
        Image.new(mode, (5, 3)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read(tmp_path / "a.png"), np.full((3, 5, 3), -1, np.float32))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png is no picture that can be read"):
        read(tmp_path / "a.png")


def test_idx_files_of_too_many_axes_are_refused(tmp_path):
    stream = io.BytesIO(b"\0\0\x08\x46" + np.ones(70, ">u4").tobytes() + b"\1")
    (tmp_path / "labels").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="labels has 70 axes"):
        idx.read(tmp_path / "labels")
