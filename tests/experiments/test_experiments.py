"""The parts of the experiments that could go wrong silently: data, checkpoints, closed forms, configs."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_closed_forms_of_the_gaussian_job():
    from experiments.gaussians import closed_forms

    for w in (0.0, 1.0):
        forms = closed_forms(w, 0.5, 2.0)
        assert {round(v, 12) for v in forms.values()} == {(2.0, 0.5)[int(w)]}
    # The reverse SDE's variance, integrated numerically: dV/dr along r = sigma from infinity to 0.
    w, v_c, v_u = 3.0, 0.5, 2.0
    variance = 1e8
    r = np.geomspace(1e4, 1e-4, 400_001)
    for a, b in itertools.pairwise(r):
        pull = w / (v_c + a * a) + (1 - w) / (v_u + a * a)
        h = (a * a - b * b) / 2
        variance = variance * (1 - 2 * h * pull) ** 2 + 2 * h
    assert math.isclose(variance, closed_forms(w, v_c, v_u)["ddpm"], rel_tol=2e-3)
    assert closed_forms(-1.0, 0.5, 2.0)["tilted"] == np.inf  # not a density


def test_the_gaussian_jobs_tilted_table_is_of_the_exact_law():
    import guidance_jax as gj
    from experiments.gaussians import exact, pooled, statistics, two_modes

    # At scale 1 the tilted density is p(x | y), of weights a half each: its moments are known.
    form = exact(two_modes(), 1.0)
    np.testing.assert_allclose([form["mean"], form["variance"]], [-0.25, 1.25**2 + 0.35], rtol=1e-5)
    np.testing.assert_allclose(form["log_normaliser"], 0, atol=1e-5)
    tail = [math.erfc((mean + 0.25) / math.sqrt(2 * v)) / 2 for mean, v in ((-1.5, 0.3), (1.0, 0.4))]
    np.testing.assert_allclose(form["share"], np.mean(tail), rtol=1e-4)

    log_weights = jnp.log(jnp.array([0.25, 0.75, 0.5, 0.5]))
    x = jnp.array([[1.0, 9.0], [2.0, 9.0], [-1.0, 9.0], [3.0, 9.0]])
    two = jnp.array([2.0, 2.0])
    found = gj.particles.Particles(x, log_weights, jnp.log(jnp.array([1.0, 3.0])), two, two, two, two, two, jnp.int32(0))
    means, errors = pooled(found, statistics(x, 1.0))
    np.testing.assert_allclose(means, [0.25 * 1.75 + 0.75 * 1.0, 0.25 * 0.75 + 0.75 * 4.0, 0.75 * 0.5], rtol=1e-6)
    np.testing.assert_allclose(errors[0], np.sqrt(2 * ((0.25 * 0.5625) ** 2 + (0.75 * 0.1875) ** 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"), [({"particles": 3000}, "two groups"), ({"tilted_scales": (0.5,)}, "at least 1")]
)
def test_a_gaussian_job_that_makes_no_sense_is_told(change, message):
    from experiments.gaussians import Config

    with pytest.raises(ValueError, match=message):
        Config(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": (1.0, 2.0)}, "scales must hold 0.0"),
        ({"samples": 0}, "at least 1"),
        ({"drop_rate": 1.5}, "drop_rate"),
    ],
)
def test_a_config_that_makes_no_sense_is_told(change, message):
    from experiments.digits import Config

    with pytest.raises(ValueError, match=message):
        Config(**change)


def test_jitter_moves_by_a_pixel_at_most():
    from experiments.tools.evaluator import jitter

    image = np.full((200, 8, 8, 1), -1.0, np.float32)
    image[:, 4, 4] = 9.0
    moved = np.asarray(jitter(jax.random.key(0), jnp.asarray(image)))[..., 0]
    at = np.array([np.unravel_index(m.argmax(), m.shape) for m in moved])
    assert set(map(tuple, (at - 4).tolist())) == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}


def test_montage_keeps_every_tile_in_its_place():
    from experiments.tools.pictures import montage

    images = np.linspace(-1, 1, 6).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 8, 8, 1))
    canvas = montage(images)
    side = canvas.shape[0] // 2
    for r in range(2):
        for c in range(3):
            assert np.isclose(canvas[r * side + side // 2, c * side + side // 2, 0], (images[r, c, 0, 0, 0] + 1) / 2)
    assert (canvas[0] == 1).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright_as_its_camera_says(tmp_path, orientation):
    """EXIF 2.32, tag 274: how the stored rows and columns lie."""
    from experiments.text_to_image import read

    upright = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    mirrored, turned = upright[:, ::-1], upright.transpose(1, 0, 2)
    stored = {
        1: upright,
        2: mirrored,
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: turned,
        6: turned[::-1],
        7: turned[::-1, ::-1],
        8: turned[:, ::-1],
    }[orientation]
    exif = PIL.Image.Exif()
    exif[274] = orientation
    PIL.Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(read(tmp_path / "a.png"), upright / 127.5 - 1, atol=1e-6)
    assert read(tmp_path / "a.png", (6, 10), "nearest").shape == (6, 10, 3)


def test_pictures_of_every_kind_are_read_and_what_is_none_is_told(tmp_path):
    from experiments.text_to_image import read

    colours = np.random.default_rng(0).integers(0, 256, (3, 5, 4), np.uint8)
    grey, deep = colours[..., 0], colours[..., 0].astype(np.uint16) * 257
    for array, mode in ((colours[..., :3], "RGB"), (colours, "RGBA"), (grey, "L"), (colours[..., :2], "LA"), (deep, "I;16")):
        PIL.Image.fromarray(array).save(tmp_path / "a.png")
        with PIL.Image.open(tmp_path / "a.png") as file:
            assert file.mode == mode
        expected = colours[..., :3] if mode.startswith("RGB") else grey[..., None].repeat(3, 2)
        np.testing.assert_allclose(read(tmp_path / "a.png"), expected / 127.5 - 1, atol=1e-6)
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"", b"no picture", whole[: len(whole) // 2], whole[:40]):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.png is no picture that can be read"):
            read(tmp_path / "b.png")
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        read(tmp_path / "nothing.png")


@pytest.fixture
def no_constants():
    """No program may hold an array of more than 4 kB: XLA would fold it, for seconds, and say so."""
    before = jax.config.values["jax_captured_constants_warn_bytes"]
    jax.config.update("jax_captured_constants_warn_bytes", 4000)
    yield
    jax.config.update("jax_captured_constants_warn_bytes", before)


def test_the_judges_programs_hold_no_images_and_no_weights(no_constants):
    from flax import nnx

    import guidance_jax as gj
    from experiments import digits, exact_digits
    from experiments.tools import data
    from experiments.tools.evaluator import Evaluator

    rng = np.random.default_rng(0)
    real = data.Data(rng.normal(size=(40, 8, 8, 1)).astype(np.float32), np.arange(40, dtype=np.int32) % 10, ("a",) * 10, "1")
    assert real.images.nbytes > 4000
    evaluator = Evaluator((8, 8, 1), 10, 4, 2, rngs=nnx.Rngs(0))
    apply, params = gj.networks.from_nnx(evaluator)
    samples = rng.normal(size=(2, 10, 3, 8, 8, 1)).astype(np.float32)
    rows = digits.judge({"evaluator": (apply, params)}, evaluator, jnp.asarray(samples), real, real)
    flat = samples[1].reshape(30, 8, 8, 1)
    features = evaluator.features(jnp.asarray(flat))
    assert rows[1]["accuracy"] == pytest.approx(float((apply(params, flat).argmax(1) == np.repeat(np.arange(10), 3)).mean()))
    found = [float(part) for part in gj.metrics.precision_recall(evaluator.features(jnp.asarray(real.images)), features)]
    np.testing.assert_allclose([rows[1]["precision"], rows[1]["recall"]], found, rtol=1e-6)

    config = exact_digits.Config(components=2, samples=2, steps=1)
    many = dataclasses.replace(real, images=real.images.repeat(5, 0), labels=real.labels.repeat(5))
    world, _ = exact_digits.fit(config, many, many)
    assert sum(part.nbytes for part in jax.tree.leaves(world.judge)) > 4000
    exact_digits.measure(world, world.judge, jnp.asarray(rng.normal(size=(10, 3, 2)), jnp.float32))
