"""Text-to-image from model directories that the tests write: samples, errors, and memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import keys, picture, write_model
from safetensors.numpy import load_file, save_file

import guidance_jax as gj
from guidance_jax.pretrained import text_to_image


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("xl"), xl=True)


class Programs:
    """A model and its functions, each compiled once, for batches of three images of 16 x 24 pixels."""

    def __init__(self, directory):
        self.model = model = text_to_image.load(directory)
        self.encode_image, self.decode = jax.jit(model.encode_image), jax.jit(model.decode, static_argnames="tile")
        self.encode = jax.jit(model.encode, static_argnums=(2, 3))

        @jax.jit
        def sample(params, cond, uncond, scale, path, start):
            two = gj.branches(model.denoiser(params), cond=cond, uncond=uncond)
            return gj.sample(keys(3), two, gj.cfg(scale), gj.ddim(), path, start)

        self.sample = sample

    def cond(self, texts):
        return self.encode(self.model.params, self.model.tokenize(texts), 16, 24)

    def draw(self, texts, negative, scale, path, start):
        return np.asarray(self.sample(self.model.params, self.cond(texts), self.cond(negative), np.float32(scale), path, start))


@pytest.fixture(scope="module")
def of_first(first):
    return Programs(first)


@pytest.fixture(scope="module")
def of_xl(xl):
    return Programs(xl)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["of_first", "of_xl"])
def test_a_sample_depends_on_its_own_prompts_and_scales(kind, request):
    of = request.getfixturevalue(kind)
    path = of.model.levels(2)
    start = np.float32(path.sigma[0]) * np.random.default_rng(0).standard_normal((3, 8, 12, 4), np.float32)
    draw = lambda *asked: of.draw(*asked, path, start)
    x = draw(["a dog", "the cat", "a dog"], ["mat", None, "mat"], [7.5, 3.0, 1.0])
    assert x.shape == (3, *of.model.latents(16, 24)) == (3, 8, 12, 4)
    # Nothing changes for the second sample. At scale 1, the negative prompt of the third one has no effect.
    other = draw(["the dog", "the cat", "a dog"], ["mat", None, "the cat"], [7.5, 3.0, 1.0])
    np.testing.assert_allclose(x[1:], other[1:], rtol=1e-4, atol=1e-4)
    assert np.abs(x - other)[0].max() > 0.01
    other = draw(["a dog", "the cat", "cat"], ["cat", None, "mat"], [7.5, 5.0, 1.0])
    assert (np.abs(x - other).max((1, 2, 3)) > 0.01).all()


@pytest.mark.slow
def test_no_text_is_zeros_for_xl_and_the_empty_text_for_others(of_first, of_xl):
    text = jax.tree.map(np.asarray, of_xl.cond([None, "", "a dog"]).text)
    assert not text.states[0].any()
    assert not text.pooled[0].any()
    assert text.states[1:].any(2).all()
    assert text.pooled[1:].any(1).all()
    assert np.array_equal(text.sizes, [[16, 24, 0, 0, 16, 24]] * 3)
    model, sizes = of_xl.model, np.array([5, 6, 1, 2, 7, 8])
    only_sizes = jax.jit(lambda params, prompts: model.encode(params, prompts, sizes=sizes).text.sizes)
    encoded = only_sizes(model.params, model.tokenize(["a"]))
    assert np.array_equal(encoded, [[5, 6, 1, 2, 7, 8]])
    states = np.asarray(of_first.cond([None, "", "a dog"]).text.states)
    assert np.array_equal(states[0], states[1])


def test_images_are_encoded_and_decoded_also_by_tiles(of_first):
    model = of_first.model
    assert model.latents() == (8, 8, 4)
    with pytest.raises(ValueError, match=r"height must be a multiple of \d, .*got 15 pixels"):
        model.latents(15, 16)
    z = of_first.encode_image(model.params, picture(3, 16, 24))
    whole, tiled = (np.asarray(of_first.decode(model.params, z, tile=tile)) for tile in (None, 8))
    assert whole.shape == (3, 16, 24, 3)
    assert np.abs(whole).max() <= 1
    assert 0 < np.abs(whole - tiled).max() < 1


def test_latents_are_shifted_and_scaled(of_first):
    """With an autoencoder whose moments and images are known."""
    mean, log_variance = np.random.default_rng(0).standard_normal((2, 2, 8, 12, 4), np.float32)
    encode = lambda params, images: (jnp.asarray(mean), jnp.asarray(log_variance))
    latent = of_first.model.latent.__class__(block_out_channels=(8, 12), shift_factor=0.5)
    model = of_first.model._replace(latent=latent, vae=(encode, lambda params, z: z))
    run = jax.jit(lambda images: [model.encode_image(model.params, images, drawn) for drawn in (None, keys(2))])
    z, drawn = map(np.asarray, run(picture(2, 16, 24)))
    np.testing.assert_allclose(z, (mean - 0.5) * 0.18215, rtol=1e-5, atol=1e-6)
    spread = (drawn - z) / 0.18215 / np.exp(log_variance / 2)
    assert 0.9 < spread.std() < 1.1
    images = jax.jit(lambda z: model.decode(model.params, z))(z)
    np.testing.assert_allclose(images, np.clip(mean, -1, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_image_to_image_keeps_the_image_that_little_noise_hides(of_first):
    model = of_first.model
    z = of_first.encode_image(model.params, picture(3, 16, 24))
    path = gj.schedules.strength(model.levels(100), 0.02)
    start = jax.jit(gj.diffuse)(keys(3), z, path[0])
    x = of_first.draw(["a dog", "cat", "mat"], [None] * 3, [1.0] * 3, path, start)
    assert 0 < np.abs(x - z).max() < 0.5


@pytest.mark.slow
def test_inpainting_keeps_the_known_part(of_first):
    model = of_first.model
    z = np.asarray(of_first.encode_image(model.params, picture(3, 16, 24)))
    known = np.ones((3, 16, 24, 1))
    known[:, 5:12, 7:] = 0
    mask = np.asarray(model.mask(known))
    assert np.array_equal(mask[0, :, :, 0] == 0, np.outer(np.isin(np.arange(8), [2, 3, 4, 5]), np.arange(12) >= 3))

    @jax.jit
    def draw(params, cond, z, mask):
        path, one = model.levels(2, gj.spacings.trailing()), gj.branches(model.denoiser(params), cond=cond)
        return gj.sample(keys(3), one, gj.chain(), gj.inpaint(gj.ddim(), z, mask), path, z.shape[1:])

    x = np.asarray(draw(model.params, of_first.cond(["a dog", "cat", "mat"]), z, mask))
    np.testing.assert_allclose(x * mask, z * mask, atol=1e-5)
    assert np.abs(x - z).max() > 0.5


@pytest.mark.slow
def test_inpainting_networks_require_their_channels(tmp_path, of_first):
    model = text_to_image.load(write_model(tmp_path / "nine", unet={"in_channels": 9}))
    known = np.ones((1, 16, 16, 1), bool)
    known[:, :, :5] = False
    latents = jnp.zeros((1, 8, 8, 4))
    channels = model._replace(vae=(lambda params, images: (latents, latents), model.vae[1])).painted(
        model.params, picture(1, 16, 16), known
    )
    assert np.array_equal(np.asarray(channels)[0, 0, :, 0], [1, 1, 1, 0, 0, 0, 0, 0])
    level, x, prompts = model.levels(2)[0], jnp.ones((1, 8, 8, 4)), model.tokenize(["a dog"])
    for beside, given in ((channels, model), (None, of_first.model)):
        encode = lambda params, given=given, beside=beside: given.encode(params, prompts, channels=beside)
        denoise = lambda params, given=given, encode=encode: given.denoiser(params)(x, level, encode(params))
        assert jax.eval_shape(denoise, given.params).eps.shape == x.shape
        wrong = jax.eval_shape(encode, given.params)._replace(channels=x if beside is None else None)
        with pytest.raises(ValueError, match="channels beside the latents"):
            jax.eval_shape(lambda cond, given=given: given.denoiser(given.params)(x, level, cond), wrong)
    with pytest.raises(ValueError, match="a network of 8 channels is not supported"):
        text_to_image.load(write_model(tmp_path / "eight", unet={"in_channels": 8}))


@pytest.mark.slow
def test_bfloat16_several_files_and_variants_are_loaded(first, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(first, directory)
    part = directory / "unet"
    arrays = load_file(part / "diffusion_pytorch_model.safetensors")
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    names = sorted(arrays)
    held = {"a.fp16.safetensors": names[:40], "b.fp16.safetensors": names[40:]}
    for file, some in held.items():
        save_file({name: halves[name] for name in some}, part / file)
    index = {"weight_map": {name: file for file, some in held.items() for name in some}}
    (part / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps(index))
    whole, half = (text_to_image.load(directory, dtype=jnp.bfloat16, variant=variant) for variant in (None, "fp16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(half.params), strict=True):
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0.01, atol=1e-5)

    def generate(params, prompts):
        one = gj.branches(half.denoiser(params), cond=half.encode(params, prompts))
        return gj.sample(keys(1), one, gj.chain(), gj.ddim(), half.levels(2), half.latents())

    assert jax.eval_shape(generate, half.params, half.tokenize(["a dog"])).dtype == jnp.float32
    (part / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"unet: expected diffusion_pytorch_model.*found a.fp16.*variant=\"fp16\""):
        text_to_image.load(directory)
    with pytest.raises(FileNotFoundError, match="variant 'fp61'"):
        text_to_image.load(first, variant="fp61")
    with pytest.raises(ValueError, match="float32 or bfloat16, got the class float16"):
        text_to_image.load(first, dtype=jnp.float16)


def edited(**changes):
    def edit(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def without(name):
    def edit(path):
        arrays = load_file(path)
        del arrays[name]
        save_file(arrays, path)

    return edit


BROKEN = {
    "index": ("model_index.json", Path.unlink, FileNotFoundError, "there is no .*model_index.json, which a directory"),
    "json": ("model_index.json", cut, None, None),
    "flux": (
        "model_index.json",
        edited(_class_name="FluxPipeline"),
        ValueError,
        "holds a FluxPipeline, expected .*SD3 and FLUX are not",
    ),
    "sd3": ("model_index.json", edited(_class_name="StableDiffusion3Pipeline"), ValueError, "SD3 and FLUX are not"),
    "class": (
        "model_index.json",
        edited(_class_name="WanPipeline"),
        ValueError,
        r"holds a WanPipeline, expected [^;]*Pipeline\.$",
    ),
    "unet": ("model_index.json", edited(unet=["diffusers", "UNet3D"]), ValueError, "unet is a UNet3D, expected"),
    "encoder": ("model_index.json", edited(text_encoder=[None, None]), ValueError, "names no text encoder"),
    "config": ("vae/config.json", Path.unlink, FileNotFoundError, "vae/config.json, the configuration of the vae"),
    "damaged": ("unet/config.json", cut, None, None),
    "setting": ("unet/config.json", edited(act_fn="relu"), ValueError, "unet: .*act_fn"),
    "activation": (
        "text_encoder/config.json",
        edited(hidden_act="relu"),
        ValueError,
        "text_encoder: .*hidden_act must be .*got 'relu'",
    ),
    "weights": ("vae/diffusion_pytorch_model.safetensors", Path.unlink, FileNotFoundError, "no weights in .*vae"),
    "truncated": ("unet/diffusion_pytorch_model.safetensors", cut, ValueError, "unet.*damaged or truncated"),
    "missing": (
        "text_encoder/model.safetensors",
        without("text_model.final_layer_norm.bias"),
        ValueError,
        "text_encoder: .*1 missing: text_model.final_layer_norm.bias",
    ),
    "scheduler": ("scheduler/scheduler_config.json", Path.unlink, FileNotFoundError, "configuration of the scheduler"),
    "solver": ("scheduler/scheduler_config.json", edited(_class_name="Mine"), ValueError, "scheduler: the scheduler Mine"),
    "vocabulary": ("tokenizer/vocab.json", Path.unlink, FileNotFoundError, r"neither .*tokenizer.json nor both vocab.json"),
    "merges": ("tokenizer/vocab.json", cut, ValueError, "tokeniser's files in .*tokenizer are damaged"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "edit", "error", "message"), BROKEN.values(), ids=BROKEN)
def test_a_damaged_or_unsupported_directory_raises(first, tmp_path, name, edit, error, message):
    directory = tmp_path / "model"
    shutil.copytree(first, directory)
    path = directory / name
    if error is None:
        path.write_text(path.read_text()[:-4])
        error, message = ValueError, f"{name}, .* is damaged"
    else:
        edit(path)
    with pytest.raises(error, match=message):
        text_to_image.load(directory)


REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
READ = r' --include "\*\.json" --include "\*\.txt" --include "\*\.fp16\.safetensors" --exclude .*pass variant="fp16"\.$'
MISSING = {
    "stable-diffusion-v1-5": f"Download it, only .*hf download {REPOSITORY} --local-dir stable-diffusion-v1-5{READ}",
    "a place/stable-diffusion-v1-5": f"Download it, only .*hf download .* --local-dir 'a place/stable-diffusion-v1-5'{READ}",
    "someone/a-model": f"Download it, only .*hf download someone/a-model --local-dir someone/a-model{READ}",
    "nothing": f"Download a model, such as .*hf download {REPOSITORY} --local-dir stable-diffusion-v1-5{READ}",
    "here/nothing": "Download a model, such as",
    "black-forest-labs/FLUX.1-dev": "Download a model, such as",
    "stable-diffusion-3.5-medium": "Download a model, such as",
}


@pytest.mark.parametrize(("directory", "message"), MISSING.items(), ids=MISSING)
def test_a_missing_directory_says_how_to_download_it(tmp_path, monkeypatch, directory, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    whole = f"^there is no directory {tmp_path}/{directory}\\. .*XL are supported; SD3 and FLUX are not\\. {message}"
    with pytest.raises(FileNotFoundError, match=whole):
        text_to_image.load(directory)


def test_a_file_of_flux_is_not_supported(tmp_path):
    (tmp_path / "flux1-dev.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"one file, expected a directory .*SD3 and FLUX are not\.$"):
        text_to_image.load(tmp_path)


def test_a_wrong_directory_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        text_to_image.load(tmp_path)


MEASURED = """
import json, sys
import jax, jax.numpy as jnp
from experiments.tools import memory
from guidance_jax.pretrained import text_to_image
jax.block_until_ready(text_to_image.load(sys.argv[2], dtype=jnp.bfloat16))  # What packages take once.
kept = []  # Memory of the first model must not be free for the second.
for dtype in (jnp.bfloat16, jnp.float32):
    model, rise = memory.peak(lambda: jax.block_until_ready(text_to_image.load(sys.argv[1], dtype=dtype)))
    kept.append(model)
    print(json.dumps([rise, sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own memory")
def test_loading_holds_no_second_copy(first, tmp_path):
    wide = {"block_out_channels": [256, 512], "norm_num_groups": 32, "layers_per_block": 2, "attention_head_dim": 8}
    directory = write_model(tmp_path / "wide", unet=wide)
    command = [sys.executable, "-c", MEASURED, str(directory), str(first)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    for line, least in zip(out.splitlines()[-2:], (75e6, 150e6), strict=True):
        rise, size = json.loads(line)
        assert size > least
        assert rise < 1.2 * size + 80e6, f"{rise / 1e6:.0f} MB for {size / 1e6:.0f} MB of parameters"
