"""One table, every method and every sampler. A new public function of `guidance` or `samplers` enters by itself."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import classes, keys, mixture

import guidance_jax as gj
from guidance_jax import guidance, samplers

B = 6
LABELS = jnp.arange(B) % 3
COMBINATORS = {"add", "chain", "during", "stateless"}
METHODS = sorted(set(guidance.__all__) - COMBINATORS)
SAMPLERS = sorted(samplers.__all__)
PARAMETER = {"scale": (1.5, 1.0), "phi": (0.7, 0.0)}
"""A parameter's usual value, and the one at which a method changes nothing (from a conditional base)."""
NEUTRAL = {"classifier": 0.0}


def log_prob(m):
    return lambda x, level: m.class_log_prob(x, level, (LABELS if len(x) == B else LABELS[: len(x)]))


def number(name):
    """The name of a method's numeric parameter."""
    (found,) = [p for p in inspect.signature(getattr(guidance, name)).parameters if p in PARAMETER]
    return found


def build(name, m, value=None, log_p=None):
    """A method with its parameter at `value`; shapers have a source before them."""
    function = getattr(guidance, name)
    given = {"log_prob": log_p or log_prob(m), number(name): PARAMETER[number(name)][0] if value is None else value}
    method = function(**{p: given[p] for p in inspect.signature(function).parameters if p in given})
    return gj.chain(gj.cfg(2.0), method) if function.__module__.endswith("shaping") else method


def source(name):
    """What stands before a shaper."""
    return gj.cfg(2.0) if getattr(guidance, name).__module__.endswith("shaping") else gj.chain()


LEVELS = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())


def run(m, method, sampler="ddim", labels=LABELS, key=None, levels=LEVELS):
    key = keys(len(labels)) if key is None else key
    return gj.sample(key, classes(m, labels), method, getattr(samplers, sampler)(), levels, (3,))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", METHODS)
def test_works_with_every_sampler_and_jit_is_eager(name, sampler):
    m = mixture()
    eager = run(m, build(name, m), sampler)
    assert eager.shape == (B, 3)
    assert eager.dtype == jnp.float32
    assert np.isfinite(eager).all()
    np.testing.assert_allclose(jax.jit(lambda: run(m, build(name, m), sampler))(), eager, rtol=1e-5, atol=1e-5)
    with jax.disable_jit():
        np.testing.assert_allclose(run(m, build(name, m), sampler), eager, rtol=1e-4, atol=1e-4)
    assert np.abs(eager - run(m, source(name), sampler)).max() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_neutral_parameter_is_the_base(name):
    m = mixture()
    neutral = NEUTRAL.get(name, PARAMETER[number(name)][1])
    np.testing.assert_allclose(run(m, build(name, m, neutral)), run(m, source(name)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_one_trace_for_many_values(name):
    m, traces = mixture(), []

    @jax.jit
    def generate(key, labels, value, low, high, levels):
        traces.append(1)
        method = gj.during(build(name, m, value, lambda x, level: m.class_log_prob(x, level, labels)), low, high)
        return run(m, method, labels=labels, key=key, levels=levels)

    different = set()
    for seed, value, low, high in [(0, 0.5, 0.0, 9.0), (1, -1.0, 0.1, 9.0), (0, 2.0, 0.0, 50.0), (0, 2.0, 0.2, 1.0)]:
        x = generate(keys(B, seed), (LABELS + seed) % 3, value, low, high, LEVELS)
        different.add(float(x.sum()))
    assert len(traces) == 1
    assert len(different) == 4


@pytest.mark.parametrize("name", METHODS)
def test_vmap_over_values_labels_and_keys_is_a_loop(name):
    m = mixture()

    def generate(value, labels, key):
        log_p = lambda x, level: m.class_log_prob(x, level, labels)
        return run(m, gj.during(build(name, m, value, log_p), 0.1, 20.0), labels=labels, key=key)

    values = jnp.array([0.0, 0.5, 1.0, 2.5])
    together = jax.vmap(generate, in_axes=(0, None, None))(values, LABELS, keys(B))
    for value, x in zip(values, together, strict=True):
        np.testing.assert_allclose(x, generate(value, LABELS, keys(B)), rtol=1e-4, atol=1e-5)
    batch = generate(2.0, LABELS, keys(B))
    each = jax.vmap(generate, in_axes=(None, 0, 0))(2.0, LABELS[:, None], keys(B)[:, None])
    np.testing.assert_allclose(each[:, 0], batch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", METHODS)
def test_batch_mates_do_nothing(name, sampler):
    m = mixture()

    def generate(rows, value):
        log_p = lambda x, level: m.class_log_prob(x, level, LABELS[rows])
        return run(m, build(name, m, value[rows], log_p), sampler, labels=LABELS[rows], key=keys(B)[rows])

    value = jnp.linspace(0.2, 3.0, B)
    everyone = generate(jnp.arange(B), value)
    order = jnp.array([4, 0, 5, 2, 1, 3])
    np.testing.assert_allclose(generate(order, value), everyone[order], rtol=1e-4, atol=1e-5)
    for i in (0, 5):
        np.testing.assert_allclose(generate(jnp.array([i]), value)[0], everyone[i], rtol=1e-4, atol=1e-5)


def flat(x, t, cond):
    """A network whose branches agree and whose x0 has no spread."""
    return jnp.ones_like(x)


@pytest.mark.parametrize("name", METHODS)
def test_finite_with_finite_gradients_at_no_difference_and_no_spread(name):
    m = mixture()
    denoise = gj.denoiser(flat, predicts="x0")
    branches = gj.branches(denoise, cond=LABELS, uncond=LABELS)

    def total(value):
        return gj.sample(keys(B), branches, build(name, m, value), gj.ddim(), LEVELS, (3,)).sum()

    assert all(np.isfinite(jax.value_and_grad(total)(value)).all() for value in (0.0, 1.0, 7.5))


@pytest.mark.parametrize("name", METHODS)
def test_gradient_in_the_parameter_is_the_difference_quotient(x64, name):
    m = mixture()

    def total(value):
        levels = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())
        return run(m, build(name, m, value), levels=levels).sum()

    np.testing.assert_allclose(jax.grad(total)(0.6), (total(0.6 + 1e-5) - total(0.6 - 1e-5)) / 2e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", METHODS)
def test_a_bfloat16_network_leaves_the_state_float32(name, sampler):
    m, seen = mixture(), []

    def network(x, t, cond):
        seen.append(x.dtype)
        return jnp.tanh(x.astype(jnp.bfloat16)) + cond[:, None].astype(jnp.bfloat16)

    denoise = gj.denoiser(network, predicts="v")
    branches = gj.branches(denoise, cond=LABELS, uncond=jnp.full_like(LABELS, -1))
    x = gj.sample(keys(B), branches, build(name, m), getattr(samplers, sampler)(), LEVELS, (3,))
    assert x.dtype == jnp.float32
    assert set(seen) == {jnp.dtype("float32")}
    half = gj.sample(keys(B), branches, build(name, m), getattr(samplers, sampler)(), LEVELS, jnp.ones((B, 3), jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_every_public_method_has_its_row():
    for name in METHODS:
        assert number(name) in PARAMETER
    assert len(METHODS) >= 3
