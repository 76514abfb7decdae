"""Guidances with different intervals compile few copies of the network, skip evaluations, and give the same samples."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import keys

import guidance_jax as gj

B, STEPS = 3, 6
levels = lambda: gj.levels(gj.schedules.cosine(), STEPS, gj.spacings.karras())
RATIO = np.asarray(levels().ratio)
NAMES = [f"b{i}" for i in range(7)]
CONDS = dict(zip(["cond", *NAMES], np.random.default_rng(0).normal(size=(8, B)), strict=True))
# Each interval opens after step i and closes before another step. They overlap, and no two are equal.
OPEN = [range(i % 3, min(i % 3 + 2 + i // 3, STEPS)) for i in range(7)]
BOUNDS = [(RATIO[steps[-1]] * 0.99, RATIO[steps[0]] * 1.01) for steps in OPEN]


class Network:
    """A denoiser that records its copies in a program as it is traced, and its batch sizes as it runs."""

    def __init__(self, weight=1.0):
        self.traced, self.batches = [], []
        self.denoise = gj.denoiser(functools.partial(self.network, weight), predicts="v")

    def network(self, weight, x, t, cond):
        self.traced.append(len(x))
        jax.debug.callback(lambda x: self.batches.append(len(x)), x)
        return jnp.tanh(weight * x + cond[:, None] * jnp.arange(1.0, 4.0)[None]) + t[:, None]


def gated(k, bounds=BOUNDS, always=False):
    """`k` guidances, each with its own branch and its own interval. With `always`, every branch is evaluated in every step."""
    scale = lambda i: 0.5 - 0.1 * i
    inside = [gj.cfg(2.0, uncond=name) if i % 3 == 2 else gj.perturbed(scale(i), weak=name) for i, name in enumerate(NAMES[:k])]
    parts = [gj.during(guidance, *own) for guidance, own in zip(inside, bounds, strict=False)]
    return gj.chain(*(part.replace(wants=None) if always else part for part in parts))


def one(network, k, **more):
    conds: dict[str, Any] = {name: jnp.asarray(CONDS[name]) for name in ("cond", *NAMES[:k])}
    return gj.branches(network.denoise, **conds, **more)


def two(network, other, k):
    """Odd branches use the other network."""
    conds: dict[str, Any] = {name: jnp.asarray(CONDS[name]) for name in ("cond", *NAMES[:k])}
    of_other = NAMES[1:k:2]
    mine = {name: cond for name, cond in conds.items() if name not in of_other}
    return gj.branches(network.denoise, **mine), gj.branches(other.denoise, **{name: conds[name] for name in of_other})


def run(networks, guidance, sampler=None):
    """Run under one jit, with the conditions and the guidance as arguments."""
    networks = networks if type(networks) is tuple else (networks,)

    @jax.jit
    def generate(conds, guidance):
        own = lambda network, given: network._replace(conds=dict(zip(network.conds, given, strict=True)))
        given = tuple(map(own, networks, conds))
        return gj.run(keys(B), given, guidance, sampler or gj.ddim(), levels(), (3,))[0]

    return jax.block_until_ready(generate([list(network.conds.values()) for network in networks], guidance))


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 7])
def test_gates_compile_few_copies_skip_closed_branches_and_do_not_change_samples(x64, k):
    network = Network()
    state = run(one(network, k), gated(k))
    jax.effects_barrier()
    print(f"{k} gates: {len(network.traced)} copies of the network, of batches {network.traced}")
    assert len(network.traced) <= min(k + 1, 3)
    opened = sum(len(steps) for steps in OPEN[:k])
    assert int(state.evaluations) == STEPS + opened
    assert sum(network.batches) == (STEPS + opened) * B
    everything = run(one(network, k), gated(k, always=True))
    assert int(everything.evaluations) == STEPS * (1 + k)
    np.testing.assert_allclose(state.x, everything.x, rtol=1e-12, atol=1e-12)


def test_a_heun_step_is_gated_as_a_whole(x64):
    network = Network()
    state = run(one(network, 4), gated(4), gj.heun())
    everything = run(one(network, 4), gated(4, always=True), gj.heun())
    np.testing.assert_allclose(state.x, everything.x, rtol=1e-12, atol=1e-12)
    # The last step has no corrector.
    each = [1 + sum(i in steps for steps in OPEN[:4]) for i in range(STEPS)]
    assert int(state.evaluations) == 2 * sum(each) - each[-1]


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 5])
def test_gates_on_two_networks_compile_few_copies_and_do_not_change_samples(x64, k):
    network, other = Network(), Network(0.5)
    state = run(two(network, other, k), gated(k))
    copies = len(network.traced), len(other.traced)
    everything = run(two(network, other, k), gated(k, always=True))
    np.testing.assert_allclose(state.x, everything.x, rtol=1e-12, atol=1e-12)
    print(f"{k} gates over two networks: {copies} copies")
    assert max(copies) <= 3
    assert int(state.evaluations) == STEPS + sum(len(steps) for steps in OPEN[:k])


def test_gates_with_one_condition_after_another_evaluate_only_open_branches(x64):
    network = Network()
    state = run(one(network, 3, batched=False), gated(3))
    jax.effects_barrier()
    batches, copies = list(network.batches), len(network.traced)
    np.testing.assert_allclose(state.x, run(one(network, 3), gated(3)).x, rtol=1e-12, atol=1e-12)
    assert copies <= 3
    assert batches == [B] * (STEPS + sum(len(steps) for steps in OPEN[:3]))


ALIKE = {
    "one gate around all": lambda: gj.during(gj.chain(gj.cfg(2.0, uncond="b0"), gj.perturbed(0.5, weak="b1")), *BOUNDS[0]),
    "two gates of one interval": lambda: gj.chain(
        gj.during(gj.cfg(2.0, uncond="b0"), *BOUNDS[0]), gj.during(gj.perturbed(0.5, weak="b1"), *BOUNDS[0])
    ),
}


@pytest.mark.parametrize("how", ALIKE)
def test_equal_gates_stay_in_one_batched_call(how):
    network = Network()
    run(one(network, 2), ALIKE[how]())
    jax.effects_barrier()
    assert network.batches == [3 * B if i in OPEN[0] else B for i in range(STEPS)]
    assert len(network.traced) <= 3


def test_one_gate_compiles_two_copies():
    network = Network()
    run(one(network, 1), gated(1))
    jax.effects_barrier()
    assert sorted(network.traced) == [B, 2 * B]
    assert network.batches == [2 * B if i in OPEN[0] else B for i in range(STEPS)]


def test_the_evaluations_do_not_depend_on_whether_equal_gates_are_one_object(x64):
    """Two booleans that are one array, or two equal arrays."""
    network, level = Network(), levels()[2]
    branches, x = one(network, 3), np.random.default_rng(1).normal(size=(B, 3))
    step = gj.Step(jnp.int32(2), level, levels()[3], keys(B))
    wanted = jax.jit(lambda conds: jax.vmap(lambda cond: network.denoise(jnp.asarray(x), level, cond))(conds))
    alone = dict(zip(CONDS, jax.tree.leaves(wanted(np.stack([*CONDS.values()])).x0)[0], strict=True))

    @functools.partial(jax.jit, static_argnums=1)
    def found(arrays, which):
        gates = {name: arrays[i] for name, i in zip(NAMES, which, strict=False)}
        predictions, count, _ = gj.evaluate(branches, jnp.asarray(x), step, level, gates)
        return {name: p.x0 for name, p in predictions.items()}, {name: p.eps for name, p in predictions.items()}, count

    # Which gates are one array, and all values of the arrays.
    for which in ((0, 1, 2), (0, 0, 1), (0, 1, 0), (0, 0, 0)):
        for given in itertools.product([False, True], repeat=len(set(which))):
            bits = [given[i] for i in which]
            x0, eps, count = found([np.bool_(bit) for bit in given], which)
            assert count == 1 + sum(bits), (which, bits)
            for name, bit in zip(NAMES, bits, strict=False):
                ours = alone[name if bit else "cond"]
                np.testing.assert_allclose(x0[name], ours, rtol=1e-12, err_msg=f"{which} {bits}")
                eps_of = (x - float(level.alpha) * ours) / float(level.sigma)
                np.testing.assert_allclose(eps[name], eps_of, rtol=1e-9, err_msg=f"{which} {bits}")


@pytest.mark.slow
@pytest.mark.parametrize("networks", [1, 2])
def test_bounds_may_differ_from_run_to_run_under_vmap(x64, networks):
    """Each run of the grid equals the run alone, and counts the evaluations that it would need alone."""
    network, other, k = Network(), Network(0.5), 3
    branches = one(network, k) if networks == 1 else two(network, other, k)
    lows = np.array([[low * f for low, _ in BOUNDS[:k]] for f in (1.0, 0.3, 5.0)])
    highs = np.array([[high * f for _, high in BOUNDS[:k]] for f in (1.0, 4.0, 8.0)])

    def generate(low, high):
        guidance = gated(k, bounds=list(zip(low, high, strict=True)))
        state, _ = gj.run(keys(B), branches, guidance, gj.ddim(), levels(), (3,))
        return state.x, state.evaluations

    x, count = jax.vmap(generate)(lows, highs)
    alone = jax.jit(generate)
    for i in range(3):
        wanted, evaluated = alone(lows[i], highs[i])
        np.testing.assert_allclose(x[i], wanted, rtol=1e-12, atol=1e-12)
        assert int(count[i]) == int(evaluated)
    assert len({int(each) for each in count}) > 1
    if networks == 2:
        return
    # Also with the guidance as an argument, because a guidance is data.
    grid = jax.vmap(lambda low, high: gated(k, bounds=list(zip(low, high, strict=True))))(lows, highs)
    again = jax.vmap(lambda guidance: gj.sample(keys(B), branches, guidance, gj.ddim(), levels(), (3,)))(grid)
    np.testing.assert_allclose(again, x, rtol=1e-12, atol=1e-12)


def test_the_base_is_the_first_branch_whatever_its_name():
    """It is also the first branch when the branches are data of a compiled program, although JAX sorts the keys of a
    dictionary.
    """
    denoise = gj.denoiser(lambda x, t, cond: 0 * x + cond[:, None], predicts="x0")
    two = gj.branches(denoise, zebra=jnp.ones(2), ant=jnp.zeros(2))
    assert list(jax.tree.map(lambda leaf: leaf, two).conds) == ["zebra", "ant"]
    np.testing.assert_allclose(gj.sample(keys(2), two, gj.chain(), gj.ddim(), levels(), (3,)), jnp.ones((2, 3)), rtol=1e-5)
