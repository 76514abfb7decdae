"""Every method with every sampler, from one table. A new public function of `guidance` fails until it has a row here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import SAMPLERS, SHAPE, TABLE, B, World, network, run, world
from worlds import keys, mixture

import guidance_jax as gj
from guidance_jax import guidance, samplers

COMBINATORS = {"add", "chain", "direction", "during", "in_space", "relative_to", "source", "stateless", "fit_linear"}


def values(row):
    """Some values between the neutral one and beyond the usual one."""
    return jnp.array([row.neutral + share * (row.usual - row.neutral) for share in (0.3, 0.6, 1.0, 1.2)])


@functools.cache
def program(name):
    """The method's jitted run with one value per sample, and the number of its traces."""
    traces = []

    @jax.jit
    def generate(value, w):
        traces.append(1)
        return run(TABLE[name].make(value, w), w)

    return lambda value, w: generate(jnp.broadcast_to(jnp.float32(value), B), w), traces


@functools.cache
def before(source):
    return run(source, world())


def test_every_public_method_has_its_row():
    assert set(TABLE) == set(guidance.__all__) - COMBINATORS
    assert {name.partition("(")[0] for name in SAMPLERS} == set(samplers.__all__) - {"gaussian"}


@pytest.mark.parametrize("name", TABLE)
def test_the_neutral_value_is_the_base_and_the_usual_value_is_not(name):
    row, (generate, _) = TABLE[name], program(name)
    np.testing.assert_allclose(generate(row.neutral, world()), before(row.source), rtol=1e-5, atol=1e-5)
    assert np.abs(generate(row.usual, world()) - before(row.source)).max() > 1e-3


@pytest.mark.parametrize("name", TABLE)
def test_many_values_share_one_trace_per_sample_and_vmap_is_a_loop(name):
    w, (generate, traces) = world(), program(name)
    each = [generate(value, w) for value in values(TABLE[name])]
    by_sample = generate(values(TABLE[name]), w._replace())
    generate(values(TABLE[name])[0], w._replace(keys=keys(B, seed=1), target=w.target + 1))
    assert len(traces) == 1
    assert len({float(x.sum()) for x in each}) == len(each)
    for i, x in enumerate(each):
        np.testing.assert_allclose(by_sample[i], x[i], rtol=1e-4, atol=1e-5)
    together = jax.jit(jax.vmap(lambda value: run(TABLE[name].make(value, w), w)))(values(TABLE[name]))
    np.testing.assert_allclose(together, jnp.stack(each), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TABLE)
def test_a_sample_does_not_depend_on_its_batch(name):
    w, value, (generate, _) = world(), TABLE[name].usual, program(name)
    everyone = generate(value, w)
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_allclose(generate(value, jax.tree.map(lambda a: a[order], w)), everyone[order], rtol=1e-4, atol=1e-5)
    others = World(keys(B, 5), *jax.tree.map(lambda a: 2 * a - 1, w[1:]))
    strangers = jax.tree.map(lambda a, b: b.at[0].set(a[0]), w, others)
    np.testing.assert_allclose(generate(value, strangers)[0], everyone[0], rtol=1e-4, atol=1e-5)
    alone = run(TABLE[name].make(value, world(batch=1)), world(batch=1))
    np.testing.assert_allclose(alone[0], everyone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TABLE)
def test_jit_gives_the_eager_result(name):
    """`sample` always runs jitted. Here a method's own update, with its state, runs operation by operation."""
    w, level, after = world(), gj.schedules.cosine()(0.6), gj.schedules.cosine()(0.5)
    method = TABLE[name].make(jnp.float32(TABLE[name].usual), w)
    x, step = w.target, gj.Step(jnp.int32(0), level, after, w.keys)
    branches = gj.branches(gj.denoiser(network, "v"), **w.conds)

    def update(state):
        wanted = dict.fromkeys(method.needs, True)
        predictions, _, derivatives = gj.evaluate(branches, x, step, level, wanted, method.derivatives)
        base = predictions["cond"]
        return method.update(base, state, gj.Context(x, level, step, base, predictions, derivatives))

    jitted = jax.jit(update)(method.init(x))
    with jax.disable_jit():
        eager = update(method.init(x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), eager, jitted)


SEVERAL = {"beta_cfg", "compose", "dual_cfg", "perp_neg", "fdg", "fresca", "universal", "tfg", "clip_norm", "dynamic_threshold"}
"""Methods whose rows set several parameters from one value."""


@pytest.mark.parametrize("name", sorted(set(TABLE) - SEVERAL))
def test_a_value_may_follow_the_level(name):
    row, w = TABLE[name], world()
    jax.eval_shape(lambda w: run(row.make(lambda level: row.usual * level.sigma, w), w), w)


def test_a_value_that_follows_the_level_is_its_value_there():
    w = world()
    values = jnp.array([3.0, 1.0, 2.0, 0.5])
    levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
    table = lambda level: values[jnp.argmin(jnp.abs(levels.sigma[:-1] - level.sigma))]
    denoise, x = gj.branches(gj.denoiser(network, "v"), **w.conds), jnp.zeros(0)
    for i, value in enumerate(values):
        x = gj.sample(w.keys, denoise, gj.cfg(value), gj.ddim(), levels[i : i + 2], x if i else SHAPE)
    np.testing.assert_allclose(run(gj.cfg(table), w), x, rtol=1e-5, atol=1e-5)


def flat(x, t, cond):
    """Equal branches without spread and without dependence on x."""
    return jnp.zeros_like(x)


@pytest.mark.parametrize("name", TABLE)
def test_results_and_gradients_are_finite_without_difference_and_without_spread(name):
    w, row = world(), TABLE[name]

    def total(value, target):
        own = w._replace(target=target)
        denoise = gj.denoiser(flat, predicts="x0")
        levels = gj.levels(gj.schedules.cosine(), 3, gj.spacings.karras())
        return gj.sample(w.keys, gj.branches(denoise, **w.conds), row.make(value, own), gj.ddim(), levels, SHAPE).sum()

    gradient = jax.jit(jax.value_and_grad(total))
    for target in (w.target, jnp.zeros_like(w.target)):
        assert all(np.isfinite(gradient(value, target)).all() for value in values(row))


@pytest.mark.parametrize("name", TABLE)
def test_the_gradient_in_the_parameter_is_the_difference_quotient(x64, name):
    w, h = world(), 1e-6
    total = lambda value: run(TABLE[name].make(value, w), w).sum()
    value = float(values(TABLE[name])[1])
    around, gradients = jax.jit(jax.vmap(jax.value_and_grad(total)))(jnp.array([value - h, value, value + h]))
    np.testing.assert_allclose(gradients[1], (around[2] - around[0]) / (2 * h), rtol=1e-5, atol=1e-7)


GRADIENTS = {"classifier", "mean_shift", "universal", "dps", "freedom", "mpgd", "pigdm", "lgd", "tfg", "reg"}
OWN_SPACE = GRADIENTS | {"cfg_pp", "feedback", "beta_cfg", "recfg", "cfg_zero_star"}
"""Methods that accept only the space of x0, or set another in their row."""


@pytest.mark.parametrize("name", TABLE)
def test_a_method_composes_with_every_other_part(name):
    row, w = TABLE[name], world()
    method = row.make(row.usual, w)
    together = gj.chain(gj.during(method, 0.1, 20.0), gj.add(gj.reuse(method, 2), gj.cfg(2.0)), gj.rescale(0.5))
    x = run(together, w)
    assert np.isfinite(x).all()
    assert np.abs(x - before(row.source)).max() > 1e-3
    inside = lambda: jax.eval_shape(lambda: run(gj.in_space("v", method), w))
    if name in OWN_SPACE:
        with pytest.raises(ValueError, match=r"use chain\(guidance, in_space\(\.\.\.\)\)"):
            inside()
    else:
        assert inside().shape == (B, *SHAPE)


EVERY_METHOD = ("ddpm", "heun", "dpmpp_2m")
"""A sampler that draws, one with two evaluations per step, and one with memory. They run every method. Other samplers run one
method of each kind."""
KINDS = ("cfg", "cfg_pp", "apg", "adaptive", "feedback", "dps", "classifier", "reuse")
"""A contrast, another eps, shaping with momentum, skipping, its own memory, a gradient through the network, one outside it,
and reused predictions."""
PAIRS = [(name, sampler) for sampler in SAMPLERS for name in (TABLE if sampler in EVERY_METHOD else KINDS) if sampler != "ddim"]


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_with_every_sampler_a_bfloat16_network_leaves_the_state_in_float32(name, sampler):
    w, row, seen = world(), TABLE[name], []

    def half(x, t, cond):
        seen.append(x.dtype)
        return network(x.astype(jnp.bfloat16), t.astype(jnp.bfloat16), cond.astype(jnp.bfloat16))

    x = run(row.make(row.usual, w), w, SAMPLERS[sampler], half)
    assert x.dtype == jnp.float32
    assert set(seen) == {jnp.dtype("float32")}
    assert np.isfinite(x).all()
    assert len(np.unique(np.asarray(x).round(4))) > B


@functools.cache
def sharded(program):
    """A program of a world with its rows split over devices by `shard_map`, with its default check."""
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.sharding.PartitionSpec("rows")
    return jax.jit(jax.shard_map(program, mesh=mesh, in_specs=rows, out_specs=rows))


@pytest.mark.parametrize("name", TABLE)
def test_every_method_runs_in_shard_map_as_without(name):
    row, w = TABLE[name], world()
    found = sharded(lambda w: run(row.make(jnp.float32(row.usual), w), w))(w)
    np.testing.assert_allclose(found, program(name)[0](row.usual, w), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"ddim"}))
def test_every_sampler_runs_in_shard_map_as_without(sampler):
    """With a guidance that has memory, skips evaluations, and has one number per sample."""
    w = world()
    generate = lambda w: run(gj.adaptive(gj.cfg(2.0 + w.target[:, 0, 0]), 0.97), w, SAMPLERS[sampler])
    np.testing.assert_allclose(sharded(generate)(w), jax.jit(generate)(w), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:feynman_kac")
def test_particles_run_in_shard_map_with_whole_groups_on_a_device():
    w = world()
    w = jax.tree.map(lambda leaf: jnp.repeat(leaf, 4, axis=0), w)._replace(keys=keys(4 * B))

    def generate(w):
        levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
        target = gj.targets.rewarded(gj.targets.tilted(1.05), lambda x0, level: -0.1 * (x0**2).mean((1, 2)))
        branches = gj.branches(gj.denoiser(network, "v"), cond=w.conds["cond"], uncond=w.conds["uncond"])
        found = gj.feynman_kac(w.keys, branches, target, gj.ddpm(), levels, SHAPE, size=4, threshold=1.0)
        return found.x, found.log_weights, found.log_normaliser

    for ours, theirs in zip(sharded(generate)(w), jax.jit(generate)(w), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    jax.effects_barrier()


def test_wrappers_and_the_exact_tilt_run_in_shard_map_as_without():
    m, labels = mixture(2), jnp.arange(B) % 3
    levels = gj.levels(gj.schedules.edm(), 4, gj.spacings.karras())

    def generate(given):
        k, labels, x = given
        exact = m.sample_tilted(k[0], len(labels), labels, 2.0)
        denoise = gj.denoisers.clip(gj.conditions.retimed(gj.denoiser(lambda x, t, y: x * t[:, None], "v")), -3.0, 3.0)
        cond, none = (labels, jnp.zeros_like(x[:, 0])), (labels, jnp.full_like(x[:, 0], 0.1))
        two = gj.branches(denoise, batched=False, cond=cond, retimed=none)
        start = gj.diffuse(k, x, levels[1])
        first = gj.sample(k, two, gj.during(gj.reuse(gj.tsg(2.0), 2), 0.1), gj.heun(), levels[1:], start)
        anew = gj.branches(m.denoise, cond=labels, random=gj.conditions.random_labels(3))
        second = gj.sample(k, anew, gj.chain(gj.icg(2.0), gj.momentum(-0.5)), gj.ddim(0.5), levels, (2,), remat=True)
        edm = gj.branches(gj.denoisers.edm(lambda x, t, y: x * t[:, None]), cond=labels)
        slope = jax.grad(lambda w: gj.sample(k, edm, gj.chain(gj.amplify(w)), gj.ddim(), levels, (2,)).sum())(x[:, 0])
        return exact, first, second, slope

    given = keys(B), labels, jnp.ones((B, 2))
    exact, *found = sharded(generate)(given)
    assert np.isfinite(exact).all()
    for ours, theirs in zip(found, jax.jit(generate)(given)[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_likelihood_in_shard_map_raises_because_of_diffrax():
    m = mixture(2)
    found = lambda given: gj.log_likelihood(gj.branches(m.denoise, cond=given[1]), gj.chain(), given[0], gj.schedules.flow())
    with pytest.raises(ValueError, match=r"check_vma=False"):
        sharded(found)((jnp.ones((B, 2)), jnp.arange(B) % 3))
