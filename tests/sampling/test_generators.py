"""Keys of every generator of JAX: each sample depends only on its own key, or the generator is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as generators
from worlds import gaussians, path

import guidance_jax as gj
from guidance_jax import conditions
from guidance_jax.noise import step_keys

RIGHT = ("threefry2x32", "threefry4x32", "philox2x32", "philox4x32")
"""Newer versions of JAX know all of them."""
WRONG = ("rbg", "unsafe_rbg")
MESSAGE = r'generator (unsafe_)?rbg.*first key.*jax.random.split\(jax.random.key\(0, impl="threefry2x32"\), B\)'
LEVELS = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())
LEVEL = path(LEVELS, 1)
PLAIN = gj.denoiser(lambda x, t, cond: x / 3 + (0 if cond is None else cond), predicts="x0")


def keys(generator, n=4):
    try:
        return jax.random.split(jax.random.key(0, impl=generator), n)
    except ValueError:
        pytest.skip(f"this version of JAX has no {generator}")


def run(keys, guidance=None, sampler=None, start=(3,), **more):
    branches = gj.branches(PLAIN, cond=jnp.zeros((len(keys), 1)), **more)
    return gj.run(keys, branches, guidance or gj.chain(), sampler or gj.ddpm(), LEVELS, start)[0].x


def stepped(keys):
    return gj.Step(jnp.int32(0), LEVEL, path(LEVELS, 2), keys)


def particles(keys):
    both = gj.branches(PLAIN, cond=jnp.zeros((len(keys), 1)), uncond=jnp.ones((len(keys), 1)))
    found = gj.feynman_kac(keys, both, gj.targets.tilted(1.0), gj.heun_sde(2.0), LEVELS, (3,), size=2)
    return found.x


DRAW = {
    "sample": run,
    "sample from x": lambda keys: run(keys, start=jnp.ones((len(keys), 3))),
    "sample in jit": lambda keys: jax.jit(run)(keys),
    "lgd": lambda keys: run(keys, gj.lgd(lambda x0: -(x0**2).sum(1), 1.0, draws=2), gj.ddim(), jnp.ones((len(keys), 3))),
    "a condition": lambda keys: run(
        keys, gj.icg(2.0), gj.ddim(), random=lambda step: conditions.time_noise(1.0)(step)[:, None]
    ),
    "inpaint": lambda keys: run(keys, sampler=gj.inpaint(gj.ddim(), 0.0, jnp.array([1, 0, 0]))),
    "diffuse": lambda keys: gj.diffuse(keys, jnp.ones((len(keys), 3)), LEVEL),
    "feynman_kac": particles,
    "evaluations": lambda keys: gj.evaluations(keys, gj.branches(PLAIN, cond=None), gj.chain(), gj.ddim(), LEVELS, (3,)),
    "step_keys": lambda keys: jax.vmap(jax.random.normal)(step_keys(stepped(keys))),
    "random_labels": lambda keys: conditions.random_labels(1000)(stepped(keys)),
    "a sampler by hand": lambda keys: (
        gj.ddpm()
        .step(
            gj.guide(gj.branches(PLAIN, cond=None), gj.chain(), stepped(keys)),
            gj.State(jnp.ones((len(keys), 3)), (), (), jnp.int32(0), jnp.ones((len(keys), 3))),
            path(LEVELS, 0),
            LEVEL,
            keys,
        )
        .x
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("generator", WRONG)
@pytest.mark.parametrize("what", DRAW)
def test_a_generator_that_draws_by_the_first_key_raises(what, generator):
    with pytest.raises(ValueError, match=MESSAGE):
        DRAW[what](keys(generator))


def draws(keys):
    """Those of `diffuse`, and of a guidance or a condition."""
    return DRAW["diffuse"](keys), jax.vmap(jax.random.normal)(step_keys(stepped(keys)))


def all_draws(keys):
    """Those too of a run: its start, sampler, condition and guidance."""
    drawn = lambda step: conditions.time_noise(1.0)(step)[:, None]
    guidance = gj.add(gj.icg(2.0), gj.lgd(lambda x0: -(x0**2).sum(1), 1.0, draws=2))
    return run(keys, guidance, random=drawn), *draws(keys)


@pytest.mark.slow
@pytest.mark.parametrize("generator", RIGHT)
def test_with_any_other_generator_a_sample_depends_on_its_own_key(generator):
    """Neither on the other keys nor on its place in the batch. The keys have 2, 4, 1 and 2 words."""
    given, drawn = keys(generator, 5), jax.jit(all_draws if generator == "threefry2x32" else draws)
    together, moved = drawn(given[:4]), drawn(given[jnp.array([4, 2, 1, 0])])
    for here, there in zip(together, moved, strict=True):
        np.testing.assert_allclose(there[1:], here[2::-1], rtol=1e-5, atol=1e-6)
        assert len(np.unique(np.append(here, there[:1]).reshape(5, -1)[:, 0])) == 5


def test_a_custom_generator_that_draws_by_the_first_key_raises_too():
    def made(name, bits):
        seed = lambda number: jnp.zeros(2, jnp.uint32) + number.astype(jnp.uint32)
        fold = lambda key, number: key * 3 + number.astype(jnp.uint32)
        split = lambda key, shape: (
            jnp.broadcast_to(key, (*shape, 2)) + jnp.arange(2 * np.prod(shape), dtype=jnp.uint32).reshape(*shape, 2)
        )
        own = generators.define_prng_impl(
            key_shape=(2,), seed=seed, split=split, random_bits=bits, fold_in=fold, name=name, tag=name[:3]
        )
        return jax.random.split(jax.random.key(0, impl=own), 4)

    @jax.custom_batching.custom_vmap
    def first(key):
        return key[0]

    @first.def_vmap
    def _(axis_size, in_batched, key):
        return jnp.broadcast_to(key[0, 0], axis_size), True

    def bits(word):
        return lambda key, width, shape: jnp.full(shape, word(key), jnp.uint32).astype(f"uint{width}")

    assert run(made("of-all", bits(lambda key: key[0]))).shape == (4, 3)
    with pytest.raises(ValueError, match="threefry2x32"):
        run(made("of-first", bits(first)))


@pytest.mark.slow
def test_a_default_of_another_generator_raises_or_changes_nothing_that_draws_by_one_key():
    """As on TPU. Functions of one key work there. For functions of one key per sample, the error states what to write."""
    x0, level = jnp.ones((500, 4)), gj.schedules.edm()(jnp.zeros(500))
    network = lambda x, t, cond: 0 * x
    one = gj.oracles.GaussianMixture(jnp.zeros((1, 2)), jnp.eye(2)[None], jnp.ones(1), jnp.zeros(1, int))

    @jax.jit
    def drawn(key):
        a, b = jax.random.normal(key, (2, 60, 2))
        return {
            "normal": [
                gj.training.diffuse(key, x0, level)[1],
                one.sample(key, 500),
                one.sample_tilted(key, 500, 0, 1.0),
            ],
            "losses": [
                gj.training.denoising_loss(network, "eps", key, x0, level, None),
                gj.training.edm_loss(network, 1.0, key, x0, level, None),
                gj.training.classifier_loss(lambda x, t: x, key, x0, level, jnp.zeros(500, int)),
            ],
            "levels": [make(key, gj.schedules.edm(), 100).t for make in LEVELS_OF_TRAINING],
            "dropped": (gj.training.drop(key, jnp.zeros(500, int), 1, 0.5) == 1).sum(),
            "parents": gj.particles.systematic(key, jnp.zeros(100)),
            "error": gj.metrics.kid_subsets(a, b + 1, key, subsets=5, size=20)[1],
            "distance": gj.metrics.sliced_wasserstein(a, b + 1, key),
        }

    with jax.default_prng_impl("rbg"):
        key = jax.random.key(0)
        assert jax.random.key_impl(key) == "rbg"
        with pytest.raises(ValueError, match=MESSAGE):
            run(jax.random.split(key, 4))
        found = drawn(key)
        assert run(jax.random.split(jax.random.key(0, impl="threefry2x32"), 4)).shape == (4, 3)
        nats = lambda **asked: gj.log_likelihood(
            gaussians(0.0, 1.0, 0.0, 1.0)[0], gj.chain(), jnp.ones((2, 1)), gj.schedules.flow(), **asked
        )
        assert jax.eval_shape(nats).shape == (2,)
        with pytest.raises(ValueError, match=MESSAGE):
            nats(keys=jax.random.split(key, 2), probes=2)
    for normal in found["normal"]:
        np.testing.assert_allclose(np.var(normal), 1, atol=0.15)
        assert len(np.unique(normal)) == normal.size
    assert (np.std(found["losses"], axis=1) > 0.1).all()
    assert [len(np.unique(t)) for t in found["levels"]] == [100, 100]
    assert 150 < found["dropped"] < 350
    assert len(np.unique(found["parents"])) == 100
    assert found["error"] > 0
    assert found["distance"] > 0.3


LEVELS_OF_TRAINING = gj.training.noise_levels, gj.training.log_normal_levels
