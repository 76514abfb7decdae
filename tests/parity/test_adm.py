"""ADM, its classifier and a whole run of ADM-G against PyTorch, on random weights saved under the published names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adm_reference import Classifier, Spaced, UNet, gradient_of, randomised, torch
from worlds import keys, sampler_noise

import guidance_jax as gj
from guidance_jax import networks, pretrained
from guidance_jax.pretrained import adm

SMALL = adm.ADMConfig(32, 32, (1, 2), 1, (16,), num_classes=7, num_head_channels=32)
VARIANTS = {
    "as 256 x 256": SMALL,
    "new order": dataclasses.replace(SMALL, num_head_channels=16, use_new_attention_order=True, num_res_blocks=2),
    "heads by number": dataclasses.replace(SMALL, num_head_channels=None, num_heads=4, attention_resolutions=(32, 16)),
    "unconditional": dataclasses.replace(SMALL, num_classes=None, channel_mult=(1, 1, 2), attention_resolutions=(16, 8)),
    "half widths, three channels": dataclasses.replace(
        SMALL, model_channels=64, channel_mult=(0.5, 1, 1), attention_resolutions=(8,), learn_sigma=False
    ),
    "sums and convolutions": dataclasses.replace(SMALL, use_scale_shift_norm=False, resblock_updown=False),
    "convolutions, new order": dataclasses.replace(
        SMALL, resblock_updown=False, use_new_attention_order=True, num_head_channels=16
    ),
    "sums": dataclasses.replace(SMALL, use_scale_shift_norm=False, learn_sigma=False, num_classes=None),
}


def reference(config, kind=UNet, seed=0):
    """The PyTorch network of a configuration, with random weights."""
    sizes = dataclasses.asdict(config)
    del sizes["in_channels"]
    sizes["num_head_channels"] = -1 if config.num_head_channels is None else config.num_head_channels
    if kind is Classifier:
        del sizes["learn_sigma"]
        sizes["classes"] = sizes.pop("num_classes")
    return randomised(kind(**sizes), seed)


def saved(network, path):
    torch.save(network.state_dict(), path)
    return pretrained.open_weights(path)


def ours(config, network, path, module: Any = adm.ADM):
    """The pure function with the weights that PyTorch saved, and the weights."""
    return networks.from_nnx(pretrained.load(lambda rngs: module(config, rngs=rngs), saved(network, path / "w.pt")))


def images(seed, *shape):
    """The same images in both layouts."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return jnp.asarray(x), torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def close(found, expected, tolerance=2e-5):
    """Compares channels last with channels first, for values of order 1."""
    expected = np.moveaxis(expected.detach().numpy(), 1, -1)
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - expected).max() <= tolerance
    assert expected.std() > 0.1


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_has_the_outputs_of_pytorch(config, tmp_path):
    network = reference(config)
    apply, params = ours(config, network, tmp_path)
    x, theirs = images(1, 3, 24, 40, 3)
    t, labels = np.array([0, 999, 373]), None if config.num_classes is None else np.array([6, 0, 3])
    with torch.no_grad():
        expected = network(theirs, torch.from_numpy(t), None if labels is None else torch.from_numpy(labels))
    found = jax.jit(apply)(params, x, jnp.asarray(t, jnp.float32), None if labels is None else jnp.asarray(labels))
    close(found, expected)


CLASSIFIERS = {
    "as released": SMALL,
    "sums, convolutions, new order": dataclasses.replace(
        SMALL, use_scale_shift_norm=False, resblock_updown=False, use_new_attention_order=True, num_head_channels=16
    ),
    "half widths": dataclasses.replace(SMALL, model_channels=64, channel_mult=(0.5, 1, 1), attention_resolutions=(8, 16)),
}


@pytest.mark.parametrize("config", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_the_classifier_and_its_gradient_are_those_of_pytorch(config, tmp_path):
    network = reference(config, Classifier)
    apply, params = ours(config, network, tmp_path, adm.ADMClassifier)
    x, theirs = images(2, 3, 32, 32, 3)
    labels = np.array([5, 0, 6])
    with torch.no_grad():
        expected = network(theirs, torch.full((3,), 421.0))
    close(jax.jit(apply)(params, x, jnp.full(3, 421.0)), expected)

    def score(params, x):
        log_prob = gj.scores.class_log_prob(lambda x, t: apply(params, x, t), jnp.asarray(labels), config.num_classes)
        return gj.scores.classifier_score(log_prob, x, gj.schedules.ddpm_linear()(421))

    expected = gradient_of(network, 1.0)(theirs, 421.0, torch.from_numpy(labels))
    size = float(expected.abs().max())
    close(jax.jit(score)(params, x) / size, expected / size)


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """A U-Net and a classifier in both frameworks."""
    path = tmp_path_factory.mktemp("weights")
    small = dataclasses.replace(SMALL, image_size=16, attention_resolutions=(8,))
    unet, classifier = reference(small, seed=3), reference(small, Classifier, seed=4)
    with torch.no_grad():
        unet.out[2].weight *= 0.5
    return unet, classifier, ours(small, unet, path), ours(small, classifier, path, adm.ADMClassifier)


LABELS = np.array([2, 6])
SCALE = 20.0


def run(guided, guidance, sampler, levels, start):
    (denoise, params), (classify, weights) = guided[2:]

    @jax.jit
    def sample(params, weights, scale):
        network = lambda x, t, y: denoise(params, x, t, y)
        clipped = gj.denoisers.clip(gj.denoisers.learned_variance(network, "eps"))
        log_prob = gj.scores.class_log_prob(lambda x, t: classify(weights, x, t), jnp.asarray(LABELS))
        branches = gj.branches(clipped, cond=jnp.asarray(LABELS))
        return gj.sample(keys(2), branches, guidance(log_prob, scale), sampler, levels, start)

    return sample(params, weights, jnp.float32(SCALE))


def test_a_whole_run_of_adm_g_is_the_released_samplers(guided):
    """With `last` it is. Without, the mean of the very last step differs, by less than the first beta, 1e-4."""
    unet, classifier, *_ = guided
    schedule, steps = gj.schedules.ddpm_linear(), 7
    levels = gj.levels(schedule, steps, gj.spacings.uniform())
    start, noisy = images(5, 2, 16, 16, 3)
    spaced = Spaced(np.linspace(1e-4, 0.02, 1000), np.round(np.linspace(0, 999, steps)).astype(int))
    y = torch.from_numpy(LABELS)

    @torch.no_grad()
    def released(gradient):
        """The run and its last prediction of x0, which only the classifier shifts."""
        x, before = noisy, noisy
        for number in range(steps):
            drawn = sampler_noise(keys(2), levels, number, start)
            noise = torch.from_numpy(np.array(drawn).transpose(0, 3, 1, 2).copy())
            before, x = x, spaced.ancestral(unet, gradient, x, steps - 1 - number, y, noise)
        return x, spaced.predicted(unet, before, 0, y)[0], gradient(before, 0.0, y)

    x, unmoved, gradient = released(gradient_of(classifier, SCALE))
    adm_g = lambda log_prob, scale: gj.mean_shift(log_prob, scale, variance="learned")
    close(run(guided, adm_g, gj.ddpm("learned"), levels, start), unmoved)
    moved_last = lambda log_prob, scale: gj.mean_shift(log_prob, scale, variance="learned", last=True)
    close(run(guided, moved_last, gj.ddpm("learned"), levels, start), x)
    assert 0 < (x - unmoved).abs().max() < 1.01e-4 * gradient.abs().max()
    assert (released(gradient_of(classifier, 0.0))[0] - x).abs().max() > 0.1


def test_a_whole_run_of_guided_ddim_is_the_released_samplers(guided):
    unet, classifier, *_ = guided
    schedule, steps = gj.schedules.ddpm_cosine(), 5
    levels = gj.levels(schedule, steps, gj.spacings.leading())
    start, noisy = images(6, 2, 16, 16, 3)
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    spaced = Spaced(np.minimum(1 - bar[1:] / bar[:-1], 0.999), np.arange(0, 1000, 1000 // steps))

    @torch.no_grad()
    def released(scale):
        x = noisy
        for i in reversed(range(steps)):
            x = spaced.ddim(unet, gradient_of(classifier, scale), x, i, torch.from_numpy(LABELS))
        return x

    close(run(guided, gj.classifier, gj.ddim(), levels, start), released(SCALE))
    assert (released(0.0) - released(SCALE)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "module", "lost"),
    [(UNet, adm.ADM, "input_blocks.2.0.in_layers.2.weight"), (Classifier, adm.ADMClassifier, "out.2.positional_embedding")],
)
def test_the_error_names_weights_that_do_not_fit(kind, module, lost, tmp_path):
    held = reference(SMALL, kind).state_dict()
    del held[lost]
    held["middle_block.1.qkv.weight"] = torch.zeros(64, 192, 1)
    held["middle_block.1.relative.weight"] = torch.zeros(3)
    torch.save(held, tmp_path / "w.pt")
    message = rf"1 missing: {lost}; 1 left over: middle_block\.1\.relative\.weight; 1 of another shape: middle_block\.1\.qkv"
    with pytest.raises(ValueError, match=message):
        pretrained.load(lambda rngs: module(SMALL, rngs=rngs), pretrained.open_weights(tmp_path / "w.pt"))
