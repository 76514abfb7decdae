"""ADM: its released sizes, what it refuses, its arithmetic; and ImageNet's script from files of weights to a file of images."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import test_weights
from flax import nnx
from safetensors.numpy import save_file

import guidance_jax as gj
from guidance_jax import networks, pretrained
from guidance_jax.pretrained import adm, autoencoder, dit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMALL = adm.ADMConfig(16, 32, (1, 2), 1, (8,), num_classes=5, num_head_channels=32)
TINY = dataclasses.replace(SMALL, image_size=8, channel_mult=(1,))
CLASSIFIER = dataclasses.replace(TINY, model_channels=64, channel_mult=(0.5,), attention_resolutions=())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("adm-256", 553_838_086),
        (64, 65_438_568),
        (256, 54_096_360),
    ],
)
def test_the_released_sizes_have_the_published_parameter_counts(name, count):
    build = adm.ADMClassifier if isinstance(name, int) else adm.ADM
    config = (adm.RELEASED | adm.CLASSIFIERS)[name]
    network: Any = pretrained.abstract(lambda rngs: build(config, rngs=rngs))
    assert pretrained.parameter_count(network) == count
    if name == "adm-256":
        network.label_emb = None
        assert pretrained.parameter_count(network) == 552_814_086  # The unconditional one.


def arrays(module, seed=0):
    """Random weights by the published names and shapes, none of them 0."""
    rng, found = np.random.default_rng(seed), {}
    for name, leaf in pretrained.published(nnx.eval_shape(module)).items():
        dense = len(leaf.shape) > 1 and not name.endswith(("label_emb.weight", "positional_embedding"))
        spread = leaf.shape[1:] if dense else (10,)
        found[name] = (rng.standard_normal(leaf.shape) / np.sqrt(np.prod(spread))).astype(np.float32)
    return found


def build(config: Any = SMALL, module: Any = adm.ADM):
    return lambda rngs=None: module(config, rngs=rngs or nnx.Rngs(0))


@pytest.fixture(scope="module")
def network():
    return networks.from_nnx(pretrained.load(build(TINY), pretrained.from_arrays(arrays(build(TINY)))))


def test_bfloat16_is_close_and_stays_bfloat16(network):
    apply, params = network
    half = pretrained.load(build(TINY), pretrained.from_arrays(arrays(build(TINY))), dtype=jnp.bfloat16)
    x, t, labels = jax.random.normal(jax.random.key(0), (3, 4, 8, 3)), jnp.array([0.0, 500.0, 999.0]), jnp.array([0, 4, 2])
    found = jax.jit(lambda half, *inputs: half(*inputs))(half, x, t, labels)
    assert found.dtype == jnp.bfloat16
    exact = jax.jit(apply)(params, x, t, labels)
    error = np.abs(found.astype(jnp.float32) - exact)
    assert 1e-4 < error.max() < 0.1 * np.abs(exact).max()
    classify = pretrained.load(
        build(CLASSIFIER, adm.ADMClassifier),
        pretrained.from_arrays(arrays(build(CLASSIFIER, adm.ADMClassifier))),
        dtype=jnp.bfloat16,
    )
    assert jax.eval_shape(classify, jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)).dtype == jnp.float32


def test_a_sample_is_the_same_alone(network):
    apply, params = network
    x, t, labels = jax.random.normal(jax.random.key(0), (2, 6, 5, 3)), jnp.array([10.0, 900.0]), jnp.array([1, 3])
    both = jax.jit(apply)(params, x, t, labels)
    alone = jax.jit(apply)(params, x[1:], t[1:], labels[1:])
    np.testing.assert_allclose(both[1:], alone, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"channel_mult": (1, 1, 1, 1, 1, 1)},
            r"image_size must halve evenly.*got image_size 16 and channel_mult \(1, 1, 1, 1, 1, 1\)",
        ),
        ({"model_channels": 40}, "multiples of the norms' 32 groups, got .* and model_channels 40"),
        ({"num_head_channels": 48}, "must divide into the heads.*num_head_channels 48"),
        ({"num_head_channels": None, "num_heads": 3}, "must divide into the heads.*num_heads 3"),
        ({"num_res_blocks": 0}, "ADMConfig: num_res_blocks must be an integer, at least 1, got 0"),
    ],
)
def test_sizes_that_make_no_network_are_told(change, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(SMALL, **change)


def test_calls_that_do_not_fit_are_told(network):
    apply, params = network
    small = lambda *inputs, **changes: jax.eval_shape(lambda: build(dataclasses.replace(SMALL, **changes))()(*inputs))
    x, t, labels = jnp.zeros((2, 16, 16, 3)), jnp.zeros(2), jnp.array([1, 3])
    with pytest.raises(ValueError, match="multiples of 2 for this network"):
        small(jnp.zeros((2, 16, 15, 3)), t, labels)
    with pytest.raises(ValueError, match="num_classes=5 got labels None"):
        apply(params, x, t)
    with pytest.raises(ValueError, match="label 5 is outside"):
        apply(params, x, t, jnp.array([5, 0]))
    with pytest.raises(ValueError, match="num_classes=None got labels"):
        small(x, t, labels, num_classes=None)
    with pytest.raises(ValueError, match=r"samples of \(16, 16, 3\), got x of shape \(2, 32, 8, 3\)"):
        jax.eval_shape(lambda: build(SMALL, adm.ADMClassifier)()(jnp.zeros((2, 32, 8, 3)), t))
    for lost in ("num_classes", "num_head_channels"):
        with pytest.raises(ValueError, match="ADMClassifier: config must have num_classes and num_head_channels"):
            adm.ADMClassifier(dataclasses.replace(SMALL, **{lost: None}), rngs=nnx.Rngs(0))


# The script, on small networks in the published formats.


def pickled(path, held):
    """A `.pt` file, as `torch.save` writes a state dict."""
    entries = {name: test_weights.tensor(str(i), array) for i, (name, array) in enumerate(held.items())}
    test_weights.write(path, entries, {str(i): array for i, array in enumerate(held.values())})


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The script with two more models, on one device, and the directory of their weights."""
    from experiments import imagenet
    from experiments.generate import generate

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
    """The images of ADM-G, their labels and directory."""
    out = tmp_path_factory.mktemp("usual")
    return *images(imagenet, out), out


def test_adm_g_from_files_of_weights_to_the_evaluators_file(imagenet, usual):
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


def test_adm_g_is_the_released_recipe_with_its_bytes_cut_off(usual):
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


def test_options_change_the_images(imagenet, usual, tmp_path, monkeypatch):
    unguided, _ = images(imagenet, tmp_path / "a", scale=0.0)
    ddim, _ = images(imagenet, tmp_path / "b", sampler="ddim", steps=4)
    assert (unguided != usual[0]).mean() > 0.1
    assert (ddim != usual[0]).mean() > 0.5
    monkeypatch.setattr(imagenet[0], "generate", imagenet[0].generate.func)
    half, _ = images(imagenet, tmp_path / "c", scale=0.0, dtype="bfloat16", batch=24, shard=24)  # On all devices.
    assert 0 < np.abs(unguided.astype(float) - half).mean() < 5


def test_dit_from_files_of_weights_to_images(imagenet, tmp_path):
    three, _ = images(imagenet, tmp_path / "a", model="latents", samples=5)
    four, labels = images(imagenet, tmp_path / "b", model="latents", samples=5, guided_channels=4)
    assert three.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(labels, np.arange(5))
    assert (three != four).mean() > 0.01


def test_missing_and_wrong_files_are_told(imagenet, tmp_path):
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
    ("change", "told"),
    [
        ({"model": "adm-1024"}, "model must be one of adm-64, adm-128"),
        ({"sampler": "heun"}, "sampler must be one of ddpm, ddim"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"steps": 1001}, "steps from 1 to 1000"),
        ({"sampler": "ddim", "steps": 30}, "must divide 1000"),
        ({"guided_channels": 2}, "must be 3 or 4"),
    ],
)
def test_a_config_that_makes_no_sense_is_told(imagenet, change, told):
    with pytest.raises(ValueError, match=told):
        config(imagenet, None, **({"steps": None} | change))


def test_a_class_that_is_not_there_is_told(imagenet, tmp_path):
    with pytest.raises(ValueError, match="labels must be from 0 to 4"):
        images(imagenet, tmp_path, labels=(5,))


def test_published_recipes_are_those_of_the_released_flags(imagenet):
    models = imagenet[0].MODELS
    scales = {name: models[name].scale for name in models if name.startswith("adm")}
    assert scales == {"adm-64": 1.0, "adm-128": 0.5, "adm-256": 1.0, "adm-256-uncond": 10.0, "adm-512": 4.0}
    cosine = {name for name in scales if models[name].schedule is gj.schedules.ddpm_cosine}
    assert cosine == {"adm-64"}
    for steps in (10, 25, 100, 250, 1000):
        section = np.cumsum(np.full(steps, 999 / (steps - 1))) - 999 / (steps - 1)
        t = gj.spacings.uniform()(gj.schedules.ddpm_linear(), steps)
        np.testing.assert_array_equal(np.sort(np.asarray(t)), np.round(section))
