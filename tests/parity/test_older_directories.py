"""Older directories are corrected as by diffusers' pipelines: levels and image sizes agree, from the same files."""

import inspect
import json
import shutil

import numpy as np
import pytest
from pipelines import STABLE, first, transformers, xl
from reference import diffusers

from guidance_jax.pretrained import autoencoder, clip, schedulers, text_to_image, unet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

# The file of CompVis/stable-diffusion-v1-1, from before steps_offset, clip_sample and prediction_type.
PNDM = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.2.2", **STABLE, "skip_prk_steps": True, "tensor_format": "pt"}
DDIM = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.2.2", **STABLE, "timestep_values": None, "trained_betas": None}
EULER = {"_class_name": "EulerDiscreteScheduler", **STABLE, "timestep_spacing": "leading", "steps_offset": 0}
XL, IMAGES = "StableDiffusionXLPipeline", "StableDiffusionImg2ImgPipeline"
PAINTS = "StableDiffusionInpaintPipeline"
FIRST = "StableDiffusionPipeline"
OLDER = {
    "1.1": (FIRST, PNDM, {"sample_size": 32, "_diffusers_version": "0.2.2"}),
    "ddim": (FIRST, DDIM, {"sample_size": 32, "_diffusers_version": "0.8.1"}),
    "no offset": (FIRST, DDIM | {"steps_offset": 0, "clip_sample": True}, {"sample_size": 32, "_diffusers_version": "0.9.0"}),
    "another offset": (FIRST, DDIM | {"steps_offset": 3}, {"sample_size": 96, "_diffusers_version": "0.6.0.dev0"}),
    "spaced otherwise": (FIRST, DDIM | {"timestep_spacing": "trailing"}, {"sample_size": 16, "_diffusers_version": "0.10.2"}),
    "image to image": (IMAGES, DDIM, {"sample_size": 8, "_diffusers_version": "0.6.0"}),
    "inpainting": (PAINTS, PNDM, {"sample_size": 32, "_diffusers_version": "0.7.0.dev0"}),
    "two sides": (FIRST, EULER, {"sample_size": [8, 12], "_diffusers_version": "0.6.0"}),
    "no size": (FIRST, PNDM, {"sample_size": None}),
    "a size left out": (FIRST, PNDM, {"sample_size": ...}),
    "xl": (XL, EULER, {"sample_size": 32, "_diffusers_version": "0.6.0"}),
    "xl, no offset": (XL, DDIM | {"clip_sample": False}, {"sample_size": 128}),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    made = {kind: tmp_path_factory.mktemp(kind) for kind in (FIRST, XL)}
    first(made[FIRST], diffusers.DDIMScheduler())
    xl(made[XL], diffusers.DDIMScheduler())
    return made


def changed(path, settings, whole=False):
    held = {} if whole else json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (held | settings).items() if value is not ...}))


def older(directories, directory, kind, scheduler, unet, named=None):
    """The same weights with other settings files, and diffusers' pipeline of them."""
    shutil.copytree(directories[XL if kind == XL else FIRST], directory, dirs_exist_ok=True)
    changed(directory / "scheduler" / "scheduler_config.json", scheduler, whole=True)
    changed(directory / "unet" / "config.json", unet)
    changed(
        directory / "model_index.json", {"_class_name": kind, "scheduler": ["diffusers", named or scheduler["_class_name"]]}
    )
    return getattr(diffusers, kind).from_pretrained(directory)


@pytest.mark.parametrize(("kind", "scheduler", "unet"), OLDER.values(), ids=OLDER)
def test_levels_and_sizes_of_older_directories_agree(tmp_path, directories, kind, scheduler, unet):
    pipeline = older(directories, tmp_path, kind, scheduler, unet)
    model = text_to_image.load(tmp_path)
    pipeline.scheduler.set_timesteps(4)
    visited = np.unique(pipeline.scheduler.timesteps)[::-1]  # PNDM visits one of them twice.
    np.testing.assert_array_equal(model.levels(4).t[: len(visited)], visited)
    size = pipeline.unet.config.sample_size
    if size is None:
        assert model.size is None
        with pytest.raises(ValueError, match="do not state its training size"):
            model.latents()
        return
    assert model.latents() == (*(size if isinstance(size, list) else (size, size)), 4)


def test_the_index_names_the_schedulers_class(tmp_path, directories):
    """The index takes precedence over the scheduler's own file. Here it names another class for PNDM's settings."""
    scheduler = PNDM | {"steps_offset": 1, "timestep_spacing": "trailing", "set_alpha_to_one": False}
    pipeline = older(directories, tmp_path, FIRST, scheduler, {}, named="EulerDiscreteScheduler")
    pipeline.scheduler.set_timesteps(4)
    levels = text_to_image.load(tmp_path).levels(4)
    np.testing.assert_allclose(levels.ratio, pipeline.scheduler.sigmas, rtol=5e-4)


@pytest.mark.parametrize("kind", [XL, PAINTS])
def test_clipping_that_a_pipeline_turns_on_raises(tmp_path, directories, kind):
    pipeline = older(directories, tmp_path, kind, DDIM, {})
    assert pipeline.scheduler.config.clip_sample
    with pytest.raises(ValueError, match="scheduler: clip_sample=True of a DDIMScheduler is not supported"):
        text_to_image.load(tmp_path)


def defaults(kind):
    """The defaults of a class for settings that a file omits."""
    parameters = inspect.signature(kind.__init__).parameters
    return {name: value.default for name, value in parameters.items() if value.default is not inspect.Parameter.empty}


READERS = {
    "unet": (unet.unet_condition_config, diffusers.UNet2DConditionModel),
    "vae": (autoencoder.autoencoder_config, diffusers.AutoencoderKL),
}


@pytest.mark.parametrize(("read", "kind"), READERS.values(), ids=READERS)
def test_an_omitted_setting_has_the_default_of_diffusers(read, kind):
    taken = defaults(kind)
    assert read({}) == read(taken)
    for name in taken:
        assert read({other: value for other, value in taken.items() if other != name}) == read(taken), name


def test_an_omitted_setting_of_an_encoder_has_the_default_of_transformers():
    for kind in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        whole = clip.clip_text_config(transformers.CLIPTextConfig(architectures=[kind]).to_dict())
        assert clip.clip_text_config({"architectures": [kind]}) == whole


@pytest.mark.parametrize("name", sorted(schedulers.SCHEDULERS.keys() - {"DPMSolverSDEScheduler"}))  # That one needs torchsde.
def test_an_omitted_setting_of_a_scheduler_has_the_default_of_diffusers(name):
    taken = defaults(getattr(diffusers, name))
    assert schedulers.SCHEDULERS[name] == {setting: taken[setting] for setting in schedulers.SCHEDULERS[name]}
    # All its other settings are known, and their defaults are supported.
    assert taken.keys() <= schedulers.HEEDED | schedulers.OF_SAMPLERS | schedulers.ONLY.keys()
    beside = {setting: value for setting, value in taken.items() if setting in schedulers.ONLY and setting != "clip_sample"}
    assert all(value in schedulers.ONLY[setting] for setting, value in beside.items())
