"""Tests of the text-to-image command: the pictures that it reads and its calibrated scale."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from published import keys, write_model

import guidance_jax as gj
from guidance_jax.pretrained import text_to_image

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_rotated_as_its_camera_recorded(tmp_path, orientation):
    """EXIF 2.32, tag 274: the orientation of the stored rows and columns."""
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


def test_pictures_of_every_kind_are_read_and_other_files_raise(tmp_path):
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


@pytest.mark.slow
def test_the_calibrated_scale_is_measured_on_the_prompts(tmp_path):
    from experiments.text_to_image import Config, measured, program

    one = lambda down, up: {"block_out_channels": [8], "down_block_types": [down], "up_block_types": [up]}
    unet, vae = one("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), one("DownEncoderBlock2D", "UpDecoderBlock2D")
    directory = write_model(tmp_path / "model", unet=unet, vae=vae)
    model = text_to_image.load(directory)
    options = {"model": directory, "prompts": ("a dog", "the cat"), "steps": 3, "batch": 2, "calibration": 4}
    config, size = Config(guidance="calibrated", **options), (4, 6)
    curve = measured(model, config, size)
    np.testing.assert_allclose(curve.ratio, model.levels(3).ratio[:-1], rtol=1e-5)
    assert ((curve.rho > 0) & (curve.rho <= 1)).all()
    texts = model.tokenize(config.prompts), model.tokenize([None, None])
    arguments = model.params, keys(2), *texts, jnp.full(2, 6.0), None, None
    images = jax.jit(program(model, config, size))(*arguments, gj.Curve(curve.ratio, jnp.ones(3)))
    np.testing.assert_allclose(images, jax.jit(program(model, Config(**options), size))(*arguments), atol=1e-5)  # CFG
    with pytest.raises(ValueError, match="whole pictures"):
        Config(directory, ("a dog",), guidance="calibrated", image=directory, mask=directory)
