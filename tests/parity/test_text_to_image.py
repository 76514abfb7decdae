"""Whole text-to-image pipelines, and schedulers, against those of diffusers, on tiny random models that diffusers saved."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layouts import aged, retokenised
from pipelines import DDIM, STABLE, ZERO, first, noise, refiner, second, xl
from reference import diffusers, from_torch, to_torch, torch

import guidance_jax as gj
from guidance_jax.pretrained import text_to_image
from guidance_jax.pretrained.schedulers import scheduling

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

PROMPTS, NEGATIVE = ["a dog on the mat!", "The red, red cat"], ["", "mat"]
SIZE, LATENTS = (16, 24), (8, 12)
STEPS = 10
ddim, dpm = diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler
V = {**STABLE, "prediction_type": "v_prediction"}
PIPELINES = {
    "first-old": (first, ddim(**STABLE), gj.ddim, NEGATIVE, aged),
    "first-new": (first, ddim(**DDIM), gj.ddim, NEGATIVE, lambda directory: None),
    "first-dpm": (first, dpm(**STABLE, timestep_spacing="leading", steps_offset=1), gj.dpmpp_2m, None, lambda directory: None),
    "second-ddim": (second, ddim(**{**DDIM, **ZERO}), gj.ddim, NEGATIVE, lambda at: retokenised(at, "tokenizer", "2.1")),
    "second-dpm": (second, dpm(**V), gj.dpmpp_2m, NEGATIVE, lambda directory: None),
    "xl-ddim": (xl, ddim(**DDIM), gj.ddim, None, lambda at: retokenised(at, "tokenizer_2", "xl")),
    "xl-dpm": (xl, dpm(**STABLE, timestep_spacing="trailing"), gj.dpmpp_2m, NEGATIVE, lambda directory: None),
}


def pipeline_of(model, sampler, path, sizes=(None, None), **options):
    """This library's latents and images, as one program for all prompts and starts. `sizes` are for the prompts and for the
    negative prompts.
    """
    keys = jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def run(params, prompts, negative, x):
        encode = lambda texts, sizes: model.encode(params, texts, *SIZE, sizes=sizes, **options)
        conds = {"cond": encode(prompts, sizes[0]), "uncond": encode(negative, sizes[1])}
        x = gj.sample(keys, gj.branches(model.denoiser(params), **conds), gj.cfg(7.5), sampler, path, x)
        return x, model.decode(params, x)

    return lambda negative, x: run(model.params, model.tokenize(PROMPTS), model.tokenize(negative or [None, None]), x)


def agree(ours, theirs, tolerance=1e-4):
    theirs = np.asarray(theirs)
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * max(1, np.abs(theirs).max())


def decoded(pipeline, latents):
    with torch.no_grad():
        return from_torch(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample.clamp(-1, 1))


@pytest.mark.parametrize(("make", "scheduler", "sampler", "negative", "rewrite"), PIPELINES.values(), ids=PIPELINES)
def test_whole_pipelines_agree(tmp_path, make, scheduler, sampler, negative, rewrite):
    """Both sides read the directory with its files as published."""
    torch.manual_seed(0)
    kind = type(make(tmp_path, scheduler))
    rewrite(tmp_path)
    pipeline = kind.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    x = noise(1, 2, *LATENTS, 4)
    options = {"prompt": PROMPTS, "negative_prompt": negative, "height": SIZE[0], "width": SIZE[1], "guidance_scale": 7.5}
    theirs = pipeline(**options, num_inference_steps=STEPS, latents=to_torch(x), output_type="latent").images
    model = text_to_image.load(tmp_path)
    generate = pipeline_of(model, sampler(), model.levels(STEPS))
    latents, images = generate(negative, x)
    agree(latents, from_torch(theirs))
    agree(images, decoded(pipeline, theirs))
    without = generate(["the", "the"], x)[0]
    assert np.abs(np.asarray(without) - np.asarray(latents)).max() > 0.05  # The prompts have an effect.


@pytest.mark.parametrize("refine", [False, True], ids=["first", "refiner"])
def test_image_to_image_agrees(tmp_path, refine):
    torch.manual_seed(0)
    make = refiner if refine else functools.partial(first, kind="StableDiffusionImg2ImgPipeline")
    pipeline = make(tmp_path, ddim(**DDIM))
    # In diffusers the refiner receives another aesthetic score with negative prompts.
    sizes = (None, (*SIZE, 0, 0, 2.5)) if refine else (None, None)
    model = text_to_image.load(tmp_path)
    images = np.tanh(noise(2, 2, *SIZE, 3))
    x0 = jax.jit(model.encode_image)(model.params, images)
    with torch.no_grad():
        mean = pipeline.vae.encode(to_torch(images)).latent_dist.mean * pipeline.vae.config.scaling_factor
    agree(x0, from_torch(mean), 1e-4)
    options = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "strength": 0.65, "guidance_scale": 7.5, "output_type": "latent"}
    generator = torch.Generator().manual_seed(5)
    theirs = pipeline(**options, image=mean, num_inference_steps=STEPS, generator=generator).images
    z = from_torch(torch.randn(mean.shape, generator=torch.Generator().manual_seed(5)))
    path = gj.schedules.strength(model.levels(STEPS), 0.65)
    x = path.alpha[0] * x0 + path.sigma[0] * z
    agree(pipeline_of(model, gj.ddim(), path, sizes)(NEGATIVE, x)[0], from_torch(theirs))


def test_inpainting_by_an_inpainting_network_agrees(tmp_path):
    torch.manual_seed(0)
    pipeline = first(tmp_path, ddim(**DDIM), "StableDiffusionInpaintPipeline", channels=9)
    model = text_to_image.load(tmp_path)
    images, x = np.tanh(noise(2, 2, *SIZE, 3)), noise(1, 2, *LATENTS, 4)
    known = np.ones((2, *SIZE, 1), np.float32)
    known[0, 3:9, 5:], known[1, :, :7] = 0, 0
    channels = np.asarray(jax.jit(model.painted)(model.params, images, known))
    options = {"prompt": PROMPTS, "negative_prompt": NEGATIVE, "strength": 1.0, "guidance_scale": 7.5, "output_type": "latent"}
    options |= {"image": to_torch(images), "mask_image": to_torch(1 - known), "latents": to_torch(x)}
    options |= {"height": SIZE[0], "width": SIZE[1], "masked_image_latents": to_torch(channels[..., 1:])}
    theirs = pipeline(**options, num_inference_steps=STEPS).images
    with torch.no_grad():
        mean = pipeline.vae.encode(to_torch(images * known)).latent_dist.mean * pipeline.vae.config.scaling_factor
    agree(channels[..., 1:], from_torch(mean), 1e-4)
    generate = pipeline_of(model, gj.ddim(), model.levels(STEPS), channels=jnp.asarray(channels))
    agree(generate(NEGATIVE, x)[0], from_torch(theirs))


SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {"lower_order_final": True},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "LMSDiscreteScheduler": {},
}
SPACED = [
    {},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1},
    {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"},
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1999},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.01 * i for i in range(1, 38)]},
]


FRACTIONAL = ["Euler", "EulerAncestral", "LMS", "Heun"]


@pytest.mark.parametrize("name", FRACTIONAL)
def test_steps_between_training_steps_are_the_published(name):
    """If the number of steps is not a divisor, the noise agrees to rounding and the time to a hundredth of a training step."""
    kind = getattr(diffusers, f"{name}DiscreteScheduler")
    for options, steps in itertools.product(({}, {"use_karras_sigmas": True}), (7, 75)):
        if options and "use_karras_sigmas" not in kind().config:
            continue
        scheduler = kind(**STABLE | options)
        scheduler.set_timesteps(steps)
        ours = scheduling(dict(scheduler.config) | {"_class_name": f"{name}DiscreteScheduler"}).levels(steps)
        assert len(ours.t) == steps + 1
        sigmas = np.asarray(scheduler.sigmas, np.float64)
        times = np.asarray(scheduler.timesteps, np.float64)
        if name == "Heun":  # which states each level twice
            sigmas, times = np.concatenate([sigmas[:1], sigmas[1::2]]), times[::2]
        np.testing.assert_allclose(ours.ratio[:steps], sigmas[:steps], rtol=2e-5)
        np.testing.assert_allclose(ours.t[:steps], times[:steps], atol=0.01)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_files_give_the_same_levels(tmp_path, name):
    """The times of a run and the noise at each, including the last."""
    kind = getattr(diffusers, name)
    for number, (options, steps) in enumerate(itertools.product(SPACED, (4, 10))):
        if "trained_betas" in options:
            options = {**options, "num_train_timesteps": 37}
        known = {key: value for key, value in options.items() if key in kind().config}
        scheduler = kind(**STABLE | SCHEDULERS[name] | known)
        scheduler.save_pretrained(tmp_path / str(number))
        scheduler.set_timesteps(steps)
        ours = scheduling(text_to_image.read_json(tmp_path / str(number) / "scheduler_config.json", "")).levels(steps)
        times = np.asarray(scheduler.timesteps, np.float64)
        # Some schedulers truncate or round the times that others pass on unchanged.
        np.testing.assert_allclose(ours.t[: len(times)], times, atol=1.01 if any("use" in key for key in known) else 0)
        if not hasattr(scheduler, "sigmas"):
            bar = scheduler.alphas_cumprod.numpy()[times.astype(int)]
            np.testing.assert_allclose(ours.alpha[:-1], bar**0.5, rtol=1e-3)
            continue
        sigmas = np.asarray(scheduler.sigmas, np.float64)
        compared = slice(1, len(ours.t)) if "rescale_betas_zero_snr" in known else slice(0, len(ours.t))
        np.testing.assert_allclose(ours.ratio[compared], sigmas[compared], rtol=5e-4)
