"""Tests of the ImageNet script with small networks, from files of weights to a file of images."""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pickled import tensor, write
from safetensors.numpy import save_file
from small_adm import CLASSIFIER, TINY, arrays, build

import guidance_jax as gj
from guidance_jax import networks, pretrained
from guidance_jax.pretrained import adm, autoencoder, dit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def pickled(path, held):
    """A `.pt` file, as `torch.save` writes a state dict."""
    entries = {name: tensor(str(i), array) for i, (name, array) in enumerate(held.items())}
    write(path, entries, {str(i): array for i, array in enumerate(held.values())})


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The script with two additional models on one device, and the directory of their weights."""
    from experiments import imagenet
    from experiments.tools.generate import generate

    weights = tmp_path_factory.mktemp("weights")
    small = imagenet.ADM(TINY, CLASSIFIER, ("small.pt", "classifier.pt"), 30.0)
    latents = imagenet.DiT(
        dit.DiTConfig(4, 2, 4, 16, 1, 2, num_classes=5),
        autoencoder.AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4),
        ("dit.pt", "vae.safetensors"),
    )
    pickled(weights / "small.pt", arrays(build(TINY)))
    pickled(weights / "classifier.pt", arrays(build(CLASSIFIER, adm.ADMClassifier), 1))
    pickled(weights / "dit.pt", arrays(build(latents.network, dit.DiT)))
    save_file(arrays(build(latents.autoencoder, autoencoder.AutoencoderKL)), weights / "vae.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(imagenet.MODELS, "small", small)
        patch.setitem(imagenet.MODELS, "latents", latents)
        patch.setattr(imagenet, "generate", functools.partial(generate, devices=jax.devices()[:1]))
        yield imagenet, weights


def config(imagenet, out, **changes):
    script, weights = imagenet
    asked = {"model": "small", "weights": weights, "samples": 20, "steps": 3, "batch": 20, "shard": 20}
    return script.Config(out=out, **(asked | changes))


def images(imagenet, out, **changes):
    return imagenet[0].main(config(imagenet, out, **changes)).samples()


@pytest.fixture(scope="module")
def usual(imagenet, tmp_path_factory):
    """The images of ADM-G, their labels, and their directory."""
    out = tmp_path_factory.mktemp("usual")
    return *images(imagenet, out), out


@pytest.mark.slow
def test_adm_g_reads_files_of_weights_and_writes_the_file_for_the_evaluator(imagenet, usual):
    import matplotlib.pyplot as plt

    found, labels, out = usual
    assert found.shape == (20, 8, 8, 3)
    np.testing.assert_array_equal(labels, np.arange(20) % 5)
    with np.load(out / "samples_20x8x8x3.npz") as held:
        np.testing.assert_array_equal(held["arr_0"], found)
        np.testing.assert_array_equal(held["arr_1"], labels)
    assert plt.imread(out / "grid.png").shape[0] > 5 * 8
    identity = json.loads((out / "identity.json").read_text())["identity"]
    assert identity["weights"]["small.pt"] == hashlib.sha256((imagenet[1] / "small.pt").read_bytes()).hexdigest()
    assert (identity["scale"], identity["sampler"], identity["steps"]) == (30.0, "ddpm", 3)
    with pytest.raises(ValueError, match=r"holds another set: scale is 30\.0 there"):
        images(imagenet, out, scale=1.0)


@pytest.mark.slow
def test_adm_g_is_the_released_recipe_and_rounds_bytes_down(usual):
    kinds = ((TINY, adm.ADM), 0), ((CLASSIFIER, adm.ADMClassifier), 1)
    (denoise, params), (classify, weights) = (
        networks.from_nnx(pretrained.load(build(*kind), pretrained.from_arrays(arrays(build(*kind), seed))))
        for kind, seed in kinds
    )

    @jax.jit
    def sample(params, weights, keys, labels):
        network = gj.denoisers.learned_variance(lambda x, t, y: denoise(params, x, t, y), "eps")
        log_prob = gj.scores.class_log_prob(lambda x, t: classify(weights, x, t), labels)
        x = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (8 * 8 * 3,)).reshape(8, 8, 3))(keys)
        levels = gj.levels(gj.schedules.ddpm_linear(), 3, gj.spacings.uniform())
        guidance = gj.mean_shift(log_prob, jnp.float32(30), variance="learned")
        branches = gj.branches(gj.denoisers.clip(network), cond=labels)
        return gj.sample(keys, branches, guidance, gj.ddpm("learned"), levels, x)

    keys = jnp.stack([jax.random.fold_in(jax.random.key(0), i) for i in range(20)])
    below = usual[0].astype(float)
    expected = (np.asarray(sample(params, weights, keys, jnp.asarray(usual[1]))) + 1) * 127.5
    assert ((below <= expected + 0.1) & (expected - 0.1 < below + 1)).all()
    assert 0.4 < (expected - below)[(below > 0) & (below < 255)].mean() < 0.6


@pytest.mark.slow
def test_options_change_the_images(imagenet, usual, tmp_path, monkeypatch):
    unguided, _ = images(imagenet, tmp_path / "a", scale=0.0)
    ddim, _ = images(imagenet, tmp_path / "b", sampler="ddim", steps=4)
    assert (unguided != usual[0]).mean() > 0.1
    assert (ddim != usual[0]).mean() > 0.5
    monkeypatch.setattr(imagenet[0], "generate", imagenet[0].generate.func)
    half, _ = images(imagenet, tmp_path / "c", scale=0.0, dtype="bfloat16", batch=24, shard=24)  # On all devices.
    assert 0 < np.abs(unguided.astype(float) - half).mean() < 5


@pytest.mark.slow
def test_dit_reads_files_of_weights_and_draws_images(imagenet, tmp_path):
    three, _ = images(imagenet, tmp_path / "a", model="latents", samples=5)
    four, labels = images(imagenet, tmp_path / "b", model="latents", samples=5, guided_channels=4)
    assert three.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(labels, np.arange(5))
    assert (three != four).mean() > 0.01


def test_missing_and_wrong_files_raise(imagenet, tmp_path):
    weights = imagenet[1]
    whole = (weights / "classifier.pt").read_bytes()
    (tmp_path / "small.pt").write_bytes(whole)
    with pytest.raises(ValueError, match=r"small\.pt is no https://.*missing: .* left over: .* belongs to this configuration"):
        images(imagenet, tmp_path / "out", weights=tmp_path)
    (tmp_path / "small.pt").write_bytes(whole[:-50])
    with pytest.raises(ValueError, match="truncated"):
        images(imagenet, tmp_path / "out", weights=tmp_path)
    for model, file, source in (
        ("adm-64", "64x64_diffusion.pt", "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"),
        ("adm-256-uncond", "256x256_diffusion_uncond.pt", "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"),
        ("dit-512", "DiT-XL-2-512x512.pt", "https://dl.fbaipublicfiles.com/DiT/models/"),
    ):
        with pytest.raises(FileNotFoundError, match=f"there is no .*{file}: download {source}{file} into {tmp_path}"):
            images(imagenet, tmp_path / "out", weights=tmp_path, model=model)
    (tmp_path / "small.pt").write_bytes((weights / "small.pt").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"classifier\.pt: download"):
        images(imagenet, tmp_path / "out", weights=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "adm-1024"}, "model must be one of adm-64, adm-128"),
        ({"sampler": "heun"}, "sampler must be one of ddpm, ddim"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"steps": 1001}, "steps from 1 to 1000"),
        ({"sampler": "ddim", "steps": 30}, "must divide 1000"),
        ({"guided_channels": 2}, "must be 3 or 4"),
    ],
)
def test_a_config_with_a_wrong_value_raises(imagenet, change, message):
    with pytest.raises(ValueError, match=message):
        config(imagenet, None, **({"steps": None} | change))


def test_a_label_out_of_range_raises(imagenet, tmp_path):
    with pytest.raises(ValueError, match="labels must be from 0 to 4"):
        images(imagenet, tmp_path, labels=(5,))


def test_published_recipes_have_the_values_of_the_released_flags(imagenet):
    models = imagenet[0].MODELS
    scales = {name: models[name].scale for name in models if name.startswith("adm")}
    assert scales == {"adm-64": 1.0, "adm-128": 0.5, "adm-256": 1.0, "adm-256-uncond": 10.0, "adm-512": 4.0}
    cosine = {name for name in scales if models[name].schedule is gj.schedules.ddpm_cosine}
    assert cosine == {"adm-64"}
    for steps in (10, 25, 100, 250, 1000):
        section = np.cumsum(np.full(steps, 999 / (steps - 1))) - 999 / (steps - 1)
        t = gj.spacings.uniform()(gj.schedules.ddpm_linear(), steps)
        np.testing.assert_array_equal(np.sort(np.asarray(t)), np.round(section))
