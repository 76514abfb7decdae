"""Tests of generation in shards: one key per sample, one set per directory, and no shard with damage or with NaN."""

import contextlib
import dataclasses
import json
import resource
import tracemalloc

import generator
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.tools import generate, models, shards

N = 22
"""Two shards of two batches of four samples, and a last shard of one and a half batches."""


@pytest.fixture(scope="module")
def program():
    """One compiled program for all tests."""
    return jax.jit(generator.program)


@pytest.fixture
def draw(program, tmp_path):
    def drawn(
        name="set",
        count=N,
        *,
        batch=4,
        shard=8,
        seed=3,
        scale=2.0,
        identity=None,
        labels=None,
        program=program,
        devices=1,
        finish=None,
    ):
        labels = np.arange(count) if labels is None else labels
        size = {"batch": batch, "shard": shard, "devices": jax.devices()[:devices], "finish": finish}
        return generate.generate(
            program, generator.inputs(scale), labels, seed, tmp_path / name, identity or {"scale": scale}, **size
        )

    return drawn


def pixels(labels):
    """The labels as floating images `[B, 1, 1, 1]`."""
    return labels[:, None, None, None].astype(float)


def contents(of: shards.Shards):
    return {path.name: path.read_bytes() for path in of.directory.glob("*")}


def test_sample_i_has_the_key_of_its_number_and_its_label(draw):
    labels = np.random.default_rng(0).integers(0, 3, N)
    images, kept = draw(labels=labels).samples()
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(kept, labels)
    keys = lambda numbers: jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(numbers)
    by_hand = jax.jit(lambda inputs, numbers, labels: generator.guided(inputs, keys(numbers), labels))
    expected = np.asarray(by_hand(generator.inputs(), np.arange(N), np.int32(labels)))
    np.testing.assert_allclose(generator.decoded(images), expected, atol=1e-5)
    assert np.abs(np.diff(np.sort(expected[:, 0]))).min() > 1e-4


def test_the_set_is_the_same_for_every_default_generator(draw):
    """With rbg, `jax.vmap` uses only the first key, so every set uses threefry2x32, also one that is continued."""
    images, _ = draw().samples()
    draw("grown", 10)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(draw("grown").samples()[0], images)


def test_shards_and_growth_do_not_change_the_bits_and_the_batch_size_changes_only_rounding(draw):
    images, labels = draw().samples()
    for size in (4, 12, 40):
        np.testing.assert_array_equal(draw(f"shards of {size}", shard=size).samples()[0], images)
    np.testing.assert_allclose(
        generator.decoded(draw("larger batch", batch=8).samples()[0]), generator.decoded(images), atol=1e-5, rtol=0
    )

    grown = draw("grown", 10)
    assert len(grown.samples()[0]) == 10
    first = grown.path(0).stat()
    grown = draw("grown", 22)
    assert (grown.path(0).stat().st_ino, grown.path(0).stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    np.testing.assert_array_equal(grown.samples()[0], images)
    before = contents(grown)
    np.testing.assert_array_equal(draw("grown", 13).samples()[0], images[:13])
    assert contents(grown) == before
    for count in (13, 22):
        np.testing.assert_array_equal(shards.samples(grown.directory, count)[0], images[:count])
    np.testing.assert_array_equal(shards.samples(grown.directory)[1], labels)
    with pytest.raises(FileNotFoundError, match="a set of 22 samples, and 23 are requested"):
        shards.samples(grown.directory, 23)


def test_a_sweep_of_scales_is_traced_once(draw):
    traced = 0

    def program(inputs, keys, labels):
        nonlocal traced
        traced += 1
        return jnp.full((len(keys), 2, 2, 1), inputs[1] / 8) + 0 * pixels(labels)

    for scale in (0.0, 1.0, 4.0):
        images, _ = draw(f"scale {scale}", scale=scale, program=program).samples()
        np.testing.assert_array_equal(images, np.full((N, 2, 2, 1), round((scale / 8 + 1) * 127.5)))
    draw("compiled by the caller", program=jax.jit(program))
    assert traced == 1


def test_values_are_rounded_to_the_nearest_byte(draw):
    # Two values are 0.005 below and above the middle of the bytes 99 and 100. Two are out of [-1, 1].
    values = jnp.array([99.495, 99.505, -3.0, 300.0]) / 127.5 - 1
    shades = lambda inputs, keys, labels: jnp.tile(values[None, None, :, None], (len(keys), 1, 1, 1))
    np.testing.assert_array_equal(draw(program=shades).samples()[0][0, 0, :, 0], [99, 100, 0, 255])


@pytest.mark.parametrize("harm", ["cut", "emptied", "pixel", "header", "directory of the archive"])
def test_a_damaged_shard_is_drawn_again_with_a_warning(draw, harm):
    whole = draw()
    before, path = contents(whole), whole.path(1)
    content = bytearray(path.read_bytes())
    if harm == "cut":
        content = content[: len(content) // 2]
    elif harm == "emptied":
        content = bytearray()
    else:
        at = {"pixel": content.index(whole.samples()[0][9].tobytes()), "header": content.index(b"NUMPY") + 12}
        at["directory of the archive"] = content.index(b"PK\x01\x02") + 1
        content[at[harm]] ^= 8
    path.write_bytes(content)
    with pytest.raises(shards.DamagedError, match=r"shard-00001\.npz is damaged"):
        whole.samples()
    with pytest.warns(UserWarning, match=r"shard-00001\.npz is damaged .* It is made again"):
        again = draw()
    assert contents(again) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 4}, "seed is 3 there, and 4 is requested"),
        ({"scale": 2.5}, "scale is 2.0 there, and 2.5 is requested"),
        ({"shard": 4}, "shard is 8 there, and 4 is requested"),
        ({"labels": np.array([0, 1, 5, *range(3, N)])}, "the label of sample 2 is 2 there, and 5 is requested"),
        ({"identity": {"scale": 2.0, "net": {"width": 8}}}, 'net is "nothing" there, and {"width": 8} is requested'),
    ],
)
def test_a_directory_of_another_set_raises_and_stays_unchanged(draw, other, message):
    before = contents(draw())
    with pytest.raises(ValueError, match=r"holds another set: .*Nothing is changed there: use another directory") as error:
        draw(**other)
    assert message in str(error.value)
    assert contents(draw()) == before


def test_shards_of_another_set_raise(draw):
    one, other = draw("one"), draw("other", seed=4)
    other.path(1).replace(one.path(1))
    with pytest.raises(ValueError, match=r"shard-00001\.npz belongs to another set than identity\.json"):
        draw("one")
    one.path(0).replace(one.path(1))
    with pytest.raises(ValueError, match=r"shard-00001\.npz holds other samples than its name"):
        one.read(1)
    (one.directory / "identity.json").unlink()
    with pytest.raises(ValueError, match=r"holds shard-00001\.npz, but no identity\.json, which is not of the requested set"):
        draw("one")


DAMAGES = [b"", b"{}", b"[1]", b"null", b'{"shard"', b"\xff\xfe", b"[" * 100_000, None]
DAMAGES += [
    json.dumps({"shard": 8, "identity": {}, "labels": [0], **wrong}).encode()
    for wrong in ({"shard": 0}, {"shard": "8"}, {"labels": []}, {"labels": [0.5]}, {"labels": 3}, {"labels": [2**40]})
]


@pytest.mark.parametrize("content", DAMAGES)
def test_a_damaged_identity_raises_when_read_and_is_written_again_from_the_shards(draw, content):
    """The identity is missing if `content` is None."""
    whole = draw()
    before, path = contents(whole), whole.directory / "identity.json"

    def hurt():
        path.unlink() if content is None else path.write_bytes(content)

    hurt()
    error, what = (FileNotFoundError, "no generated set") if content is None else (ValueError, r"damaged.*Start the generation")
    with pytest.raises(error, match=f"identity.*{what}|{what}.*identity"):
        shards.samples(whole.directory)
    with pytest.raises(ValueError, match=r"holds shard-00000\.npz, .*identity\.json.* not of the requested set"):
        draw(seed=4)
    with pytest.warns(UserWarning, match=r"identity\.json was (damaged|missing)\. It is written again"):
        draw(program=lambda *_: pytest.fail("drawn again"))
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (
            {"identity.json": b'{"name": "net", "seed": 0, "training": {"steps": 3}}', "lock": b""},
            "perhaps of a training: it holds name,",
        ),
        ({"identity.json": b'{"name": "net"', "lock": b""}, "holds lock"),
        ({"models.json": b"{}"}, r"holds models\.json"),
        ({"dataset_info.json": b"{}"}, r"holds dataset_info\.json"),
    ],
)
def test_a_directory_with_other_files_raises_and_stays_unchanged(draw, tmp_path, held, message):
    (tmp_path / "set").mkdir()
    for name, content in {**held, "3.tmp": b"of somebody else"}.items():
        (tmp_path / "set" / name).write_bytes(content)
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    with pytest.raises(ValueError, match=f"{message}.*[uU]se another directory"):
        draw()
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before


def test_a_directory_that_cannot_be_made_raises(draw, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, message in (("file", "it is a file"), ("file/set", "Not a directory"), ("link", "a link to nothing")):
        with pytest.raises(OSError, match=f"the directory .*{name} cannot be made: .*{message}"):
            draw(name)
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    assert draw("near").samples()[0].shape == draw("far").samples()[0].shape


def test_images_that_are_not_finite_raise_with_their_numbers_and_are_never_saved(draw, tmp_path):
    def program(inputs, keys, labels):
        broken = (labels == 10) | (labels == 13)
        return jnp.where(broken, jnp.array([0.0, jnp.nan, jnp.inf])[labels % 3], 0.0)[:, None, None, None]

    with pytest.raises(FloatingPointError, match=r"of 2 samples .* 10 \(label 10\), 13 \(label 13\)\. shard-00001") as error:
        draw(program=program, batch=8)
    assert "Use a smaller scale" in str(error.value)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["identity.json", "shard-00000.npz"]


def test_a_full_disk_raises_and_finished_shards_stay(draw, tmp_path):
    large = lambda inputs, keys, labels: jnp.zeros((len(keys), 64, 64, 1)) + 0.01 * pixels(labels)
    draw("small", 8, program=large)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(
            OSError, match=r"shard-00001\.npz cannot be written: File too large\. The 1 of 3 shards .* are kept"
        ):
            draw("small", program=large)
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["identity.json", "shard-00000.npz"]
    images, labels = draw("small", program=large).samples()
    # First the shards fit and the file with all of them does not. Then only the picture does not fit.
    again = lambda: draw("small", program=lambda *_: pytest.fail("drawn again"), finish=generate.assembled())
    whole = shards.opened(tmp_path / "small")
    for limit, finish, message in (
        (60_000, again, r"samples_22x64x64x1\.npz cannot be written: File too large\. .* takes 91\.29 kB, and"),
        (60, lambda: generate.grid(whole), r"grid\.png cannot be written: File too large\. .* takes .* and .* are free"),
    ):
        before = contents(whole)
        with contextlib.ExitStack() as stack:
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(OSError, match=message) as error:
                finish()
        assert "The 3 of 3 shards that are finished are kept" in str(error.value)
        assert contents(whole) == before
    again()
    with np.load(tmp_path / "small" / "samples_22x64x64x1.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], images)
    np.testing.assert_array_equal(images[:, 5, 7, 0], np.rint((0.01 * labels + 1) * 127.5))


def test_partial_files_of_an_interrupted_run_are_removed(draw, tmp_path):
    before = contents(draw())
    ours = ("shard-00002.npz.tmp", "0123abcd.identity.json.tmp", "0123abcd.grid.png.tmp", "samples_2x3x1x1.npz.tmp")
    for name in ours:
        (tmp_path / "set" / name).write_bytes(b"half")
    theirs = {"notes.tmp": b"of somebody else", "0123abcd.notes.json.tmp": b"too", "shard.npz.tmp": b"and this"}
    for name, content in theirs.items():
        (tmp_path / "set" / name).write_bytes(content)
    assert contents(draw()) == before | theirs


def test_a_file_that_is_being_written_is_never_removed(draw, tmp_path):
    whole = draw()
    with shards.replacing(whole.directory / "grid.png") as file:
        file.write(b"slow")
        draw()
    assert (whole.directory / "grid.png").read_bytes() == b"slow"


def test_another_program_cannot_write_before_the_set_is_finished(draw, tmp_path):
    def finish(whole):
        whole.assemble()
        with pytest.raises(RuntimeError, match="another program is writing into"):
            draw("set", 40)

    assert draw(finish=finish).samples()[0].shape == draw().samples()[0].shape
    with np.load(tmp_path / "set" / "samples_22x3x1x3.npz") as file:
        assert len(file["arr_1"]) == N


def test_a_second_program_in_the_same_directory_raises(draw, tmp_path):
    before = contents(draw())
    with shards.alone(tmp_path / "set"), pytest.raises(RuntimeError, match=r"another program is writing into .*set"):
        draw()
    assert contents(draw()) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 4, "devices": 8}, "a batch of 4 does not divide evenly among 8 devices. Use 8"),
        ({"batch": 0}, "a batch of 0 .* Use 1"),
        ({"batch": 8, "shard": 20}, "multiple of batch, got 20 and 8.* Use 16"),
        ({"batch": 8, "shard": 4}, "multiple of batch, got 4 and 8.* Use 8"),
        ({"labels": np.zeros(3)}, r"labels must be \[N\] integers, one per sample, got float64\[3\]"),
        ({"labels": np.zeros(0, int)}, "labels must be"),
        (
            {"program": lambda inputs, keys, labels: labels[:, None, None, None]},
            r"returned int32\[4, 1, 1, 1\], expected floating \[4, H",
        ),
        ({"program": lambda inputs, keys, labels: jnp.zeros((len(labels), 3))}, r"returned float32\[4, 3\], expected floating"),
    ],
)
def test_wrong_arguments_raise(draw, wrong, message):
    with pytest.raises(ValueError, match=message):
        draw(**wrong)


def test_the_progress_starts_at_the_number_of_existing_samples(draw, capsys, monkeypatch):
    from experiments.tools import stages

    monkeypatch.setattr(stages, "EVERY", 0.0)
    draw("set", 16)
    capsys.readouterr()
    draw()
    assert "20 of 22 samples" in capsys.readouterr().out
    draw()
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_the_assembled_file_has_the_format_of_openais_evaluator(draw):
    grey = lambda inputs, keys, labels: (5 * pixels(labels) + jnp.arange(6.0).reshape(1, 3, 2, 1)) / 127.5 - 1
    drawn = draw(program=grey, labels=np.arange(N) % 3)
    images = 5 * (np.arange(N) % 3)[:, None, None, None] + np.arange(6).reshape(3, 2, 1)
    for channels, name in ((None, "samples_22x3x2x1.npz"), (3, "samples_22x3x2x3.npz")):
        path = drawn.assemble(channels)
        assert path == drawn.directory / name
        with np.load(path) as file:
            assert file.files == ["arr_0", "arr_1"]
            assert [file[name].dtype for name in file.files] == [np.uint8, np.int64]
            np.testing.assert_array_equal(file["arr_0"], np.repeat(images, channels or 1, axis=3))
            np.testing.assert_array_equal(file["arr_1"], np.arange(N) % 3)
    with pytest.raises(ValueError, match="images of 1 channels cannot be written with 0"):
        drawn.assemble(0)
    drawn.path(1).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 shards .* are not made yet, shard-00001\.npz first"):
        drawn.assemble()


def test_assembly_needs_the_memory_of_a_few_shards_only(tmp_path):
    large = shards.Shards(tmp_path, np.zeros(64, np.int32), 2, {})
    large.claim()
    for number in range(large.count):
        large.write(number, np.full((2, 256, 256, 3), number, np.uint8))
    tracemalloc.start()
    path = large.assemble()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one = 2 * 256 * 256 * 3
    assert peak < 8 * one < path.stat().st_size / 3
    with np.load(path) as file:
        np.testing.assert_array_equal(file["arr_0"][:, 0, 0, 0], np.arange(64) // 2)


def test_the_grid_has_one_row_per_class(draw):
    shade = lambda inputs, keys, labels: jnp.tile(pixels(labels) * 50 / 127.5 - 1, (1, 40, 40, 3))
    picture = generate.grid(draw(program=shade, labels=generate.balanced(N, (4, 0, 2))), columns=5)
    whole = np.rint(255 * plt.imread(picture)[..., :3])
    margin, shown = np.split(whole, [whole.shape[1] - 5 * 44], axis=1)
    assert margin.shape[0] == 3 * 44
    assert all((margin[44 * row : 44 * row + 44] < 100).any() for row in range(3))  # The name of each class.
    for row, label in enumerate((0, 2, 4)):
        assert (shown[44 * row + 2 : 44 * row + 42, 2:42] == 50 * label).all()
    np.testing.assert_array_equal(generate.balanced(5, (4, 0, 2)), [4, 0, 2, 4, 0])


def test_the_command_draws_guided_samples_of_the_run(monkeypatch, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    models.save(run, (4, 4, 1), ("a", "b", "c"), {"denoiser": {"kind": "UNet", "config": {}, "checkpoint": "here"}})
    # A denoiser whose x0 is the shade of the class: v = alpha eps - sigma x0 for every noise.
    shades = jnp.array([-0.5, 0.0, 0.5, 0.25])

    def network(params, x, t, label):
        level = models.SCHEDULE(t)
        alpha, sigma = (jnp.reshape(field, (-1, 1, 1, 1)) for field in (level.alpha, level.sigma))
        x0 = jnp.broadcast_to(params[label][:, None, None, None], x.shape)
        return (alpha * x - x0) / sigma

    monkeypatch.setattr(
        models, "load", lambda path: models.Run((4, 4, 1), ("a", "b", "c"), {"denoiser": models.Trained(network, shades, "v")})
    )
    config = generate.Config(run, tmp_path / "out", samples=12, steps=4, batch=8, shard=8, scale=2.0, labels=(2, 0), channels=3)
    drawn = generate.main(config)
    images, labels = drawn.samples()
    np.testing.assert_array_equal(labels, [2, 0] * 6)
    # At scale 2 the result is twice the shade of the class minus the shade without a class.
    expected = np.clip(np.where(labels == 2, 2 * 0.5 - 0.25, 2 * -0.5 - 0.25), -1, 1)
    np.testing.assert_allclose(images[:, 0, 0, 0], np.rint((expected + 1) * 127.5), atol=1)
    names = {"identity.json", "shard-00000.npz", "shard-00001.npz", "samples_12x4x4x3.npz", "grid.png"}
    assert {path.name for path in drawn.directory.iterdir()} == names
    held = json.loads((drawn.directory / "identity.json").read_text())["identity"]
    assert held["scale"] == 2.0
    assert held["networks"]["denoiser"]["checkpoint"] == "here"
    with pytest.raises(ValueError, match="labels must be classes of the run, 0 to 2"):
        generate.main(dataclasses.replace(config, labels=(3,)))
    with pytest.raises(ValueError, match=r"guidance must be one of .*cfg.*got 'cgf'"):
        dataclasses.replace(config, guidance="cgf")
