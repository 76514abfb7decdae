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


def generator(model, steps=3, size=(16, 24)):
    @jax.jit
    def generate(params, keys, prompts, negative, scale):
        cond, uncond = (model.encode(params, texts, *size) for texts in (prompts, negative))
        two = gj.branches(model.denoiser(params), cond=cond, uncond=uncond)
        return gj.sample(keys, two, gj.cfg(scale), gj.dpmpp_2m(), model.levels(steps), model.latents(*size))

    return generate


def drawn(model, cond, sampler, path, start):
    @jax.jit
    def draw(params, cond):
        return gj.sample(keys(2), gj.branches(model.denoiser(params), cond=cond), gj.chain(), sampler, path, start)

    return draw(model.params, cond)


@pytest.mark.parametrize("kind", ["first", "xl"])
def test_a_sample_depends_on_its_own_prompts_and_scales(kind, request):
    model = text_to_image.load(request.getfixturevalue(kind))
    generate = generator(model)
    texts, negative, scale = ["a dog", "the cat", "a dog"], ["mat", None, "mat"], jnp.array([7.5, 3.0, 1.0])
    x = generate(model.params, keys(3), model.tokenize(texts), model.tokenize(negative), scale)
    assert x.shape == (3, 8, 12, 4)
    alone = generate(model.params, keys(3)[1:2], model.tokenize(["the cat"]), model.tokenize([None]), scale[1:2])
    np.testing.assert_allclose(x[1:2], alone, rtol=1e-4, atol=1e-4)
    # At scale 1 the negative prompt has no effect.
    unguided = generate(model.params, keys(3)[2:], model.tokenize(["a dog"]), model.tokenize([""]), scale[2:])
    np.testing.assert_allclose(x[2:], unguided, rtol=1e-4, atol=1e-4)
    other = generate(model.params, keys(3)[1:2], model.tokenize(["the dog"]), model.tokenize([None]), scale[1:2])
    assert jnp.abs(other - alone).max() > 0.01
    images = jax.jit(model.decode)(model.params, x / 20)
    assert images.shape == (3, 16, 24, 3)
    assert jnp.abs(images).max() <= 1


def test_no_text_is_zeros_for_xl_and_the_empty_text_for_others(first, xl):
    model = text_to_image.load(xl)
    cond = jax.jit(model.encode, static_argnums=(2, 3))(model.params, model.tokenize([None, "", "a dog"]), 16, 24)
    assert not cond.text.states[0].any()
    assert not cond.text.pooled[0].any()
    assert cond.text.states[1:].any(2).all()
    assert cond.text.pooled[1:].any(1).all()
    assert np.array_equal(cond.text.sizes, [[16, 24, 0, 0, 16, 24]] * 3)
    encoded = jax.jit(model.encode)(model.params, model.tokenize(["a"]), sizes=jnp.array([5, 6, 1, 2, 7, 8]))
    assert np.array_equal(encoded.text.sizes, [[5, 6, 1, 2, 7, 8]])
    model = text_to_image.load(first)
    states = jax.jit(model.encode)(model.params, model.tokenize([None, ""])).text.states
    assert np.array_equal(states[0], states[1])


def test_images_are_encoded_and_decoded_also_by_tiles(first):
    model = text_to_image.load(first)
    assert model.latents() == (8, 8, 4)
    with pytest.raises(ValueError, match=r"height must be a multiple of \d, .*got 15 pixels"):
        model.latents(15, 16)
    images = picture(2, 16, 24)
    z = jax.jit(model.encode_image)(model.params, images)
    drawn = jax.jit(model.encode_image)(model.params, images, keys(2))
    _, log_variance = jax.jit(model.vae[0])(model.params["vae"], images)
    spread = (drawn - z) / model.latent.scaling_factor / jnp.exp(log_variance / 2)
    assert 0.9 < spread.std() < 1.1
    decode = jax.jit(model.decode, static_argnames="tile")
    whole, tiled = decode(model.params, z), decode(model.params, z, tile=8)
    assert 0 < jnp.abs(whole - tiled).max() < 1
    moved = text_to_image.load(first)._replace(latent=model.latent.__class__(block_out_channels=(8, 12), shift_factor=0.5))
    np.testing.assert_allclose(
        jax.jit(moved.encode_image)(model.params, images), z - 0.5 * moved.latent.scaling_factor, atol=1e-5
    )
    np.testing.assert_allclose(jax.jit(moved.decode)(model.params, z - 0.5 * moved.latent.scaling_factor), whole, atol=1e-4)


def test_image_to_image_keeps_the_image_that_little_noise_hides(first):
    model = text_to_image.load(first)
    z = jax.jit(model.encode_image)(model.params, picture(2, 16, 24))
    path = gj.schedules.strength(model.levels(20), 0.05)
    cond = jax.jit(model.encode)(model.params, model.tokenize(["a dog", "cat"]))
    x = gj.diffuse(keys(2), z, jax.tree.map(lambda field: field[0], path))
    x = drawn(model, cond, gj.ddim(), path, x)
    assert 0 < jnp.abs(x - z).max() < 0.5


def test_inpainting_keeps_the_known_part(first):
    model = text_to_image.load(first)
    z = jax.jit(model.encode_image)(model.params, picture(2, 16, 24))
    known = np.ones((2, 16, 24, 1))
    known[:, 5:12, 7:] = 0
    mask = model.mask(known)
    assert np.array_equal(mask[0, :, :, 0] == 0, np.outer(np.isin(np.arange(8), [2, 3, 4, 5]), np.arange(12) >= 3))
    cond = jax.jit(model.encode)(model.params, model.tokenize(["a dog", "cat"]))
    x = drawn(model, cond, gj.inpaint(gj.ddim(), z, mask), model.levels(3, gj.spacings.trailing()), z.shape[1:])
    np.testing.assert_allclose(x * mask, z * mask, atol=1e-5)
    assert jnp.abs(x - z).max() > 0.5


def test_inpainting_networks_require_their_channels(tmp_path, first):
    model = text_to_image.load(write_model(tmp_path / "nine", unet={"in_channels": 9}))
    known = np.ones((1, 16, 16, 1), bool)
    known[:, :, :5] = False
    channels = jax.jit(model.painted)(model.params, picture(1, 16, 16), known)
    assert np.array_equal(channels[0, 0, :, 0], [1, 1, 1, 0, 0, 0, 0, 0])
    level = jax.tree.map(lambda field: field[0], model.levels(2))
    x, prompts = jnp.ones((1, 8, 8, 4)), model.tokenize(["a dog"])
    for beside, given in ((channels, model), (None, text_to_image.load(first))):
        cond = jax.jit(given.encode)(given.params, prompts, channels=beside)
        denoise = jax.jit(lambda params, cond, given=given: given.denoiser(params)(x, level, cond))
        assert denoise(given.params, cond).eps.shape == x.shape
        wrong = cond._replace(channels=x if beside is None else None)
        with pytest.raises(ValueError, match="channels beside the latents"):
            given.denoiser(given.params)(x, level, wrong)
    with pytest.raises(ValueError, match="a network of 8 channels is not supported"):
        text_to_image.load(write_model(tmp_path / "eight", unet={"in_channels": 8}))


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
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=0.01, atol=1e-5)
    x = generator(half)(half.params, keys(1), half.tokenize(["a dog"]), half.tokenize([None]), jnp.array([2.0]))
    assert x.dtype == jnp.float32
    assert jnp.isfinite(x).all()
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
    "class": ("model_index.json", edited(_class_name="FluxPipeline"), ValueError, "holds a FluxPipeline, expected"),
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


def test_a_wrong_directory_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no directory {tmp_path}/nothing"):
        text_to_image.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"model_index\.json"):
        text_to_image.load(tmp_path)


MEASURED = """
import functools, json, sys
import jax, jax.numpy as jnp
from experiments.tools import memory
from guidance_jax.pretrained import text_to_image
load = functools.partial(text_to_image.load, dtype=getattr(jnp, sys.argv[3]))
jax.block_until_ready(load(sys.argv[2]))  # What packages take once.
model, rise = memory.peak(lambda: jax.block_until_ready(load(sys.argv[1])))
print(json.dumps([rise, sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_no_second_copy(first, tmp_path, dtype):
    wide = {"block_out_channels": [256, 512], "norm_num_groups": 32, "layers_per_block": 2, "attention_head_dim": 8}
    directory = write_model(tmp_path / "wide", unet=wide)
    command = [sys.executable, "-c", MEASURED, str(directory), str(first), dtype]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    rise, size = json.loads(out.splitlines()[-1])
    assert size > (150e6 if dtype == "float32" else 75e6)
    assert rise < 1.2 * size + 80e6, f"{rise / 1e6:.0f} MB for {size / 1e6:.0f} MB of parameters"
