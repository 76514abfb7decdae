"""`sample` outside `jit` compiles once per structure, and parts are data for `vmap`, `grad`, `==` and pickle."""

import functools
import pickle
import time
import types
from collections.abc import Callable
from typing import Any, ClassVar

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import TABLE, updates, world
from contract import network as contract_network
from flax import nnx
from jax.tree_util import Partial
from worlds import keys

import guidance_jax as gj
from guidance_jax.checks import known
from guidance_jax.checks.values import check_labels
from guidance_jax.programs import compiled

B, CLASSES = 4, 5


class Traced:
    """Records of traces. It is a class because a function would depend on a list that it reads."""

    calls: ClassVar[list[str]] = []


TRACES = Traced.calls


def apply(params, x, t, cond):
    Traced.calls.append("apply")
    check_labels(cond, CLASSES, "this network")
    return x @ params["kernel"] + params["table"][cond]


def params(seed):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    rng = np.random.default_rng(seed)
    return {"kernel": draw(3, 3), "table": draw(CLASSES, 3)}


class Module(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.linear, self.embed = nnx.Linear(3, 3, rngs=rngs), nnx.Embed(CLASSES, 3, rngs=rngs)

    def __call__(self, x, t, cond):
        Traced.calls.append("nnx")
        return self.linear(x) + self.embed(cond)


class Tree(equinox.Module):
    linear: equinox.nn.Linear
    table: jax.Array
    activation: Callable[[jax.Array], jax.Array]

    def __init__(self, seed):
        self.linear, self.activation = equinox.nn.Linear(3, 3, key=jax.random.key(seed)), jax.nn.silu
        self.table = params(seed)["table"]

    def __call__(self, x, t, cond):
        Traced.calls.append("equinox")
        return self.activation(jax.vmap(self.linear)(x)) + self.table[cond]


NETWORKS = {"partial": lambda seed: Partial(apply, params(seed)), "nnx": Module, "equinox": Tree}
LABELS = np.arange(B, dtype=np.int32)


@functools.cache
def levels():
    return gj.levels(gj.schedules.cosine(), 12, gj.spacings.karras())


@functools.cache
def four_levels():
    return gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())


def ones(size):
    return jnp.asarray(np.ones((B, size), np.float32))


def drawn(network, scale=2.0, low=0.1, labels=LABELS, seed=0, path=None):
    """A run that creates all its parts anew, as a cell of a notebook does."""
    two = gj.branches(gj.denoiser(network, predicts="v"), cond=labels, uncond=np.full_like(labels, CLASSES - 1))
    return gj.sample(keys(B, seed), two, gj.during(gj.cfg(scale), low, 5.0), gj.ddim(), path or levels(), (3,))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_an_eager_call_traces_the_network_once(name):
    make = NETWORKS[name]
    calls = {
        "first call": lambda: drawn(make(0)),
        "second call": lambda: drawn(make(0)),
        "another scale": lambda: drawn(make(0), scale=3.5),
        "another interval": lambda: drawn(make(0), low=1.0),
        "other parameters": lambda: drawn(make(1)),
        "other keys": lambda: drawn(make(0), seed=1),
        "other labels": lambda: drawn(make(0), labels=LABELS[::-1]),
        "other levels": lambda: drawn(make(0), path=gj.levels(gj.schedules.edm(), 12, gj.spacings.karras(5.0))),
    }
    found, samples = {}, {}
    for what, call in calls.items():
        TRACES.clear()
        start = time.perf_counter()
        samples[what] = np.asarray(call())
        found[what] = len(TRACES)
        print(f"{name}, {what}: {found[what]} traces, {time.perf_counter() - start:.3f} s")
    assert found.pop("first call") > 0
    assert not any(found.values()), found
    np.testing.assert_array_equal(samples["first call"], samples["second call"])
    for what in list(calls)[2:]:
        assert np.abs(samples[what] - samples["first call"]).max() > 1e-3, what


def test_a_label_outside_the_range_raises_at_any_call(monkeypatch):
    monkeypatch.setattr(known, "_SEEN", type(known._SEEN)())
    network = Partial(apply, params(0))
    drawn(network, labels=np.array([1, 2, 1, 2]))
    TRACES.clear()
    drawn(network, labels=np.array([2, 2, 1, 1]))
    assert not TRACES
    drawn(network, labels=np.array([0, 3, 1, 1]))  # A new range is checked once.
    assert TRACES
    for wrong in (7, -1):
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"label {wrong} is outside 0\.\.4"):
                drawn(network, labels=np.array([1, 2, wrong, 2]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["a global", "a list", "an object", "NumPy", "an nnx module", "a scale", "an update", "an oracle"]
)
def test_a_function_never_uses_an_old_value_of_what_it_depends_on(kind, monkeypatch):
    """The function is the same, and a value that it reads is rebound, changed in place, or trained."""
    held, array, module, owner = [1.0], np.ones(1, np.float32), nnx.Linear(1, 1, rngs=nnx.Rngs(0)), types.SimpleNamespace(w=1.0)
    monkeypatch.setitem(globals(), "GLOBAL", jnp.float32(1))
    mixture = gj.oracles.GaussianMixture(jnp.array([[1.0]]), jnp.full((1, 1, 1), 1e-6), jnp.ones(1), jnp.array([0]))
    constant = lambda value: gj.denoiser(lambda x, t, cond: 0 * x + value(x), predicts="x0")
    denoise, guidance = constant(lambda x: 0.0), gj.chain()
    if kind == "a scale":
        denoise = gj.denoiser(lambda x, t, cond: 0 * x + cond[:, None], predicts="x0")
        guidance = gj.cfg(lambda level: held[0])
    elif kind == "an update":
        guidance = gj.Guidance(frozenset(), lambda x: (), lambda p, state, _: (p.replace(x0=p.x0 + held[0]), state))
    elif kind == "an oracle":
        denoise = mixture.denoise
    else:
        denoise = constant(
            {
                "a global": lambda x: GLOBAL,
                "a list": lambda x: held[0],
                "an object": lambda x: owner.w,
                "NumPy": functools.partial(lambda a, x: a[0], array),
                "an nnx module": lambda x: module(0 * x),
            }[kind]
        )
    conds: dict[str, Any] = {"cond": jnp.ones(B), "uncond": jnp.zeros(B)}
    conds = {"cond": jnp.zeros(B, int)} if kind == "an oracle" else conds
    two = gj.branches(denoise, **conds)
    draw = lambda: np.mean(gj.sample(keys(B), two, guidance, gj.ddim(), levels(), ones(1)))
    before, again = draw(), draw()
    assert before == again
    held[0], array[:], owner.w, mixture.means = 5.0, 5.0, 5.0, jnp.array([[5.0]])
    nnx.update(module, jax.tree.map(lambda leaf: leaf + 5.0, nnx.state(module)))
    monkeypatch.setitem(globals(), "GLOBAL", jnp.float32(5))
    assert abs(draw() - before) > 2


def test_a_function_that_counts_its_traces_is_traced_once():
    counted = []
    one = gj.branches(gj.denoiser(lambda x, t, cond: counted.append(1) or x / 2, predicts="x0"), cond=LABELS)
    draw = lambda: gj.sample(keys(B), one, gj.chain(), gj.ddim(), levels(), ones(3))
    draw()
    traces = len(counted)
    draw()
    assert len(counted) == traces


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(compiled, "KEPT", 2)
    monkeypatch.setattr(known, "KEPT", 2)
    monkeypatch.setattr(compiled, "_PROGRAMS", type(compiled._PROGRAMS)())
    monkeypatch.setattr(known, "_SEEN", type(known._SEEN)())
    for size in (2, 3, 4, 5):
        one = gj.branches(gj.denoiser(lambda x, t, cond: x / 2, predicts="x0"), cond=LABELS)
        gj.sample(keys(B), one, gj.chain(), gj.ddim(), levels(), ones(size))
        assert len(compiled._PROGRAMS) == len(known._SEEN) == min(size - 1, 2)


@pytest.mark.slow
def test_particles_likelihoods_and_calibrations_compile_once():
    traces = Traced.calls
    traces.clear()

    def apply(mean, x, t, cond):
        Traced.calls.append("apply")
        return 0 * x + mean

    one = lambda mean: gj.branches(gj.denoiser(Partial(apply, jnp.float32(mean)), predicts="x0"), cond=None, uncond=None)
    ddpm, schedule = gj.ddpm(), gj.schedules.flow(0.05)
    for run in (
        lambda v: gj.feynman_kac(keys(B), one(v), gj.targets.tilted(v), ddpm, four_levels(), (1,), size=B).x,
        lambda v: gj.log_likelihood(one(v), gj.cfg(v), ones(1), schedule),
        lambda v: gj.calibrate(keys(B), one(v), ones(1), four_levels(), power=v).along.cond,
    ):
        run(1.5)
        traces.clear()
        jax.block_until_ready(run(1.25))
        assert not traces


def through(method, w):
    """Samples of a method that is an argument, and their mean square."""
    two = gj.branches(gj.denoiser(contract_network, "v"), **w.conds)
    x = gj.sample(w.keys, two, method, gj.ddim(), four_levels(), w.target)
    return (x**2).mean(), x


def two_of(name, w):
    """A method with two values of its number, with the functions of the first."""
    make, usual = TABLE[name].make, TABLE[name].usual
    one, other = make(jnp.float32(usual), w), make(jnp.float32(0.9 * usual), w)
    return one, jax.tree.unflatten(jax.tree.structure(one), jax.tree.leaves(other))


OF_EACH_KIND = ("compose", "dps", "apg", "linear_reuse", "adaptive", "unless_one", "dynamic_threshold")
"""Numbers by name, a tree of arrays, a memory, an array, a method within a method, a number twice, and a shaper."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_a_guidance_is_an_argument_of_vmap(name):
    """Up to the program. One of each kind runs below."""
    w = world()
    both = jax.tree.map(lambda a, b: np.stack([a, b]), *two_of(name, w))
    _, together = jax.eval_shape(jax.vmap(through, in_axes=(0, None)), both, w)
    assert together.shape == (2, *w.target.shape)


def check_each(function, pairs):
    """Compares a function of methods, vmapped and with gradients, with itself. It returns a number and an x of each method."""
    both = jax.tree.map(lambda a, b: np.stack([a, b]), *({name: pair[i] for name, pair in pairs.items()} for i in range(2)))
    slopes, together = jax.jit(jax.vmap(jax.grad(function, allow_int=True, has_aux=True)))(both)
    alone = jax.jit(function)
    for i in range(2):
        _, expected = alone({name: pair[i] for name, pair in pairs.items()})
        for name in pairs:
            np.testing.assert_allclose(together[name][i], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
    for name in pairs:
        assert np.abs(together[name][0] - together[name][1]).max() > 1e-3, name
        real = [leaf for leaf in jax.tree.leaves(both[name]) if np.issubdtype(leaf.dtype, np.floating)]
        found = [leaf for leaf in jax.tree.leaves(slopes[name]) if np.issubdtype(leaf.dtype, np.floating)]
        assert len(found) == len(real), name
        assert all(np.isfinite(leaf).all() for leaf in found), name
        assert any(np.abs(leaf).max() > 0 for leaf in found), name


def test_a_step_of_a_guidance_of_each_kind_is_that_of_the_guidance_as_an_argument_of_vmap_and_of_grad():
    w, level, after = world(), four_levels()[1], four_levels()[2]
    two = gj.branches(gj.denoiser(contract_network, "v"), **w.conds)

    def step(methods):
        found = {name: p.x0 for name, p in updates(methods, two, w.keys, w.target, 0, level, after).items()}
        return sum((x0**2).mean() for x0 in found.values()), found

    check_each(step, {name: two_of(name, w) for name in OF_EACH_KIND})


def test_a_run_with_memory_is_that_of_the_guidance_as_an_argument_of_vmap_and_of_grad():
    w = world()

    def run(methods):
        total, x = through(methods["adaptive"], w)
        return total, {"adaptive": x}

    check_each(run, {"adaptive": two_of("adaptive", w)})


PARTS = {
    "cfg": lambda value: gj.cfg(value),
    "chain": lambda value: gj.chain(gj.during(gj.cfg(value), 0.1, 5.0), gj.rescale(0.7)),
    "a calibrated scale": lambda value: gj.scales.linear(gj.schedules.cosine(), value),
    "ddim": lambda value: gj.ddim(value / 4),
    "a sampler around one": lambda value: gj.recur(gj.ddpm(), 2, 0.0, value),
    "a schedule": lambda value: gj.schedules.edm(0.002, 40 * value),
    "a shifted schedule": lambda value: gj.schedules.shift(gj.schedules.flow(), value),
    "a spacing": lambda value: gj.spacings.karras(rho=value),
    "a denoiser": lambda value: gj.denoisers.edm(Partial(apply, {"kernel": value}), sigma_data=0.5),
    "a clipped one": lambda value: gj.denoisers.clip(gj.denoiser(Partial(apply, 1.0), "eps"), -1.0, value),
    "a target": lambda value: gj.targets.annealed(value),
    "a drift": lambda value: gj.targets.drift(gj.targets.tilted(value)),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_equal_by_value_and_survives_pickling(name):
    one, other = PARTS[name](2.0), PARTS[name](3.0)
    assert one == PARTS[name](2.0) != other
    assert hash(one) == hash(PARTS[name](2.0))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert repr(one) == repr(PARTS[name](2.0)) != repr(other) or "partial" in repr(one)
    for back in (pickle.loads(pickle.dumps(one)), jax.tree.map(lambda leaf: leaf, one)):
        assert back == one
        assert repr(back) == repr(one)


def test_the_repr_of_a_part_is_its_call():
    assert repr(gj.denoiser(Partial(apply, params(0)), predicts="v")) == "denoiser(network=partial(apply), predicts='v')"
    assert repr(gj.denoiser(Module(0), "eps")) == "denoiser(network=Module, predicts='eps')"
    assert repr(gj.targets.drift(gj.targets.tilted(2.0))) == "drift(Target(exponents={'cond': 2.0, 'uncond': -1.0}, total=1))"
    assert repr(gj.denoisers.clip(gj.denoiser(Tree(0), "x0"), high=2.0)) == (
        "clip(denoiser(network=Tree, predicts='x0'), high=2.0)"
    )


def test_an_unpickled_denoiser_denoises():
    denoise = gj.denoisers.clip(gj.denoiser(Partial(apply, params(0)), predicts="v"), -0.5, 0.5)
    x, level = ones(3), gj.NoiseLevel(*map(jnp.float32, (0.5, 0.6, 0.8)))
    back = pickle.loads(pickle.dumps(denoise))
    call = jax.jit(lambda denoise: denoise(x, level, LABELS).x0)
    np.testing.assert_array_equal(call(back), call(denoise))
    slope = jax.eval_shape(jax.grad(lambda denoise: denoise(x, level, LABELS).x0.sum()), denoise)
    assert len(jax.tree.leaves(slope)) == 4  # two parameters and two bounds
