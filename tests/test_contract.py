"""Every method with every sampler, from one table. A new public function of `guidance` fails until it has a row here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import SAMPLERS, SHAPE, TABLE, B, World, network, run, updates, world
from quick import quick_keys
from worlds import keys, mixture

import guidance_jax as gj
from guidance_jax import guidance, samplers

COMBINATORS = {"add", "chain", "direction", "during", "in_space", "relative_to", "source", "stateless", "fit_linear"}


KINDS = ("cfg", "cfg_pp", "apg", "adaptive", "feedback", "dps", "classifier", "reuse")
"""A contrast, another eps, shaping with momentum, skipping, its own memory, a gradient through the network, one outside it,
and reused predictions."""

SHARES = (0.3, 0.6, 1.0, 1.2)


REMEMBERING = ("apg", "cfg_zero_star", "feedback", "linear_reuse", "reuse", "adaptive", "momentum")
"""Methods that are checked in whole runs: they have memory, or depend on the number of the step."""


def values(row):
    """One value per sample, between the neutral one and beyond the usual one."""
    return jnp.array([row.neutral + share * (row.usual - row.neutral) for share in SHARES])


def between(row, difference):
    """These values, or one of them with its neighbours at a difference."""
    second = float(values(row)[1])
    return values(row) if difference is None else jnp.array([second - difference, second, second + difference, second])


def sharded(program, whole=()):
    """A program of rows in which each device has one row, by `shard_map` with its default check.

    The arguments whose numbers are in `whole` are whole on every device.
    """
    mesh = jax.make_mesh((B,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:B])
    rows, everywhere = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()

    @jax.jit
    def call(*given):
        specs = tuple(everywhere if i in whole else rows for i in range(len(given)))
        return jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=rows)(*given)

    return call


@functools.cache
def alone(name):
    """The method's run with one value per sample and each sample on a device of its own, and the number of its traces."""
    traces = []

    def generate(value, w):
        traces.append(1)
        return run(TABLE[name].make(value, w), w)

    program = sharded(generate)
    return lambda value, w: program(jnp.broadcast_to(jnp.asarray(value, float), B), w), traces


@functools.cache
def runs(name):
    """The run of a whole batch for several values at once, the samples' sums, and their derivatives in the values."""

    def total(value, w):
        x = run(TABLE[name].make(value, w), w)
        return x.sum(), x

    return jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True), in_axes=(0, None)))


def ends(number=None):
    """The number of a step and the levels at its ends: of one in the middle, or of a step of `run`."""
    if number is None:
        return jnp.int32(0), gj.schedules.cosine()(0.6), gj.schedules.cosine()(0.5)
    levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
    return jnp.int32(number), levels[number], levels[number + 1]


def predictions(methods, w, at):
    """The prediction of each method, by name, in one step of a batch."""
    branches = gj.branches(gj.denoiser(network, "v"), **w.conds)
    return updates(methods, branches, w.keys, jnp.cos(3 * w.target), *at)


def step(given, w, at):
    """As `predictions`, of the methods with these values."""
    return predictions({name: TABLE[name].make(value, w) for name, value in given.items()}, w, at)


@functools.cache
def alone_in_a_step():
    """As `alone`, of a step of all methods without memory: one program."""
    traces = []

    def predict(given, w, at):
        traces.append(1)
        return step(given, w, at)

    return sharded(predict, whole=(2,)), traces


@functools.cache
def moved(which, number=None):
    """The x0 and the eps of each method without memory in a step, each sample alone.

    `which` names its value, or the sample that has it, or is "own" for one value per sample.
    """

    def value(row):
        given = values(row) if which == "own" else getattr(row, which) if isinstance(which, str) else values(row)[which]
        return jnp.broadcast_to(jnp.asarray(given, float), B)

    given = {name: value(row) for name, row in TABLE.items() if name not in REMEMBERING}
    found = alone_in_a_step()[0](given, world(), ends(number))
    return {name: np.stack([p.x0, p.eps]) for name, p in found.items()}


@functools.cache
def unmoved(number):
    """As `moved`, of what stands before each method."""
    sources = {name: row.source for name, row in TABLE.items() if name not in REMEMBERING}
    return {name: np.stack([p.x0, p.eps]) for name, p in bases()(sources, world(), ends(number)).items()}


@functools.cache
def bases():
    return jax.jit(predictions)


@functools.cache
def steps():
    """As `runs`, of a step of all methods without memory: one program."""

    def total(given, w):
        found = {name: p.x0 for name, p in step(given, w, ends()).items()}
        sums = {name: x0.sum() for name, x0 in found.items()}
        return sum(sums.values()), (sums, found)

    return jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True), in_axes=(0, None)))


def worlds_of_a_batch():
    """A batch, permuted, and its first sample among others."""
    w, order = world(), np.array([2, 0, 3, 1])
    others = World(keys(B, 5), *jax.tree.map(lambda a: 2 * a - 1, w[1:]))
    strangers = jax.tree.map(lambda a, b: b.at[0].set(a[0]), w, others)
    return {"usual": w, "permuted": jax.tree.map(lambda a: a[order], w), "strangers": strangers}, order


@functools.cache
def found(world_name, difference):
    """The x0 of a step for several values, the sums, and the derivatives, each by name of the method."""
    given = {name: between(row, difference) for name, row in TABLE.items() if name not in REMEMBERING}
    (_, (sums, x0)), slopes = steps()(given, worlds_of_a_batch()[0][world_name])
    return jax.tree.map(np.asarray, (x0, sums, slopes))


def together(name, world_name="usual", difference=None):
    """x, its sums and their derivatives for several values: of a whole run if the method has memory, otherwise of one step."""
    if name not in REMEMBERING:
        return tuple(of[name] for of in found(world_name, difference))
    (sums, x), slopes = runs(name)(between(TABLE[name], difference), worlds_of_a_batch()[0][world_name])
    return np.asarray(x), np.asarray(sums), np.asarray(slopes)


@functools.cache
def before(source, double=True):
    assert double == (jnp.zeros(()).dtype == jnp.float64)
    return np.asarray(run(source, world()))


def test_every_public_method_has_its_row():
    assert set(TABLE) == set(guidance.__all__) - COMBINATORS
    assert {name.partition("(")[0] for name in SAMPLERS} == set(samplers.__all__) - {"gaussian"}


@pytest.mark.parametrize("name", sorted(set(TABLE) - set(REMEMBERING)))
def test_a_method_that_is_checked_in_one_step_has_no_memory(name):
    w = world()
    assert not jax.tree.leaves(jax.eval_shape(TABLE[name].make(TABLE[name].usual, w).init, w.target))


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_the_neutral_value_is_the_base_and_the_usual_value_is_not(x64, name):
    """A method without memory is checked in the first step, a later one and the last one, and any other after a run."""
    if name not in REMEMBERING:
        for number in (0, 2, 3):
            np.testing.assert_allclose(moved("neutral", number)[name], unmoved(number)[name], rtol=1e-9, atol=1e-9)
        assert np.abs(moved("usual")[name] - unmoved(None)[name]).max() > 1e-3
        return
    row, (generate, _) = TABLE[name], alone(name)
    np.testing.assert_allclose(generate(row.neutral, world()), before(row.source), rtol=1e-9, atol=1e-9)
    assert np.abs(generate(row.usual, world()) - before(row.source)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_values_share_a_trace_and_per_sample_or_vmapped_or_sharded_they_are_the_same(x64, name):
    """A method without memory is checked in one step, and any other in a run."""
    w, row = world(), TABLE[name]
    if name in REMEMBERING:
        generate, traces = alone(name)
        by_sample, each = generate(values(row), w), [np.asarray(generate(value, w)) for value in values(row)]
        generate(values(row)[0], w._replace(keys=keys(B, seed=1), target=w.target + 1))
        vmapped, wanted = together(name)[0], np.stack(each)
    else:
        own, found, traces = moved("own")[name], [moved(i)[name] for i in range(B)], alone_in_a_step()[1]
        by_sample, each = own.swapaxes(0, 1), [one.swapaxes(0, 1) for one in found]
        vmapped, wanted = together(name)[0], np.stack(found)[:, 0]
    assert len(traces) == 1
    assert len({float(x.sum()) for x in each}) == len(each)
    for i, x in enumerate(each):
        np.testing.assert_allclose(by_sample[i], x[i], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(vmapped, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_one_value_per_sample_or_vmapped_is_the_same_in_a_step_of_every_method(x64):
    given = {name: values(row) for name, row in TABLE.items() if name not in REMEMBERING}
    for name, prediction in jax.jit(step)(given, world(), ends()).items():
        vmapped = together(name)[0]
        assert len(np.unique(vmapped[:, 0, 0, 0])) == len(vmapped), name
        np.testing.assert_allclose(prediction.x0, vmapped[np.arange(B), np.arange(B)], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_a_sample_does_not_depend_on_its_batch(x64, name):
    """Permuted, and among others. The sharded runs above have it alone."""
    everyone, order = together(name)[0], worlds_of_a_batch()[1]
    np.testing.assert_allclose(together(name, "permuted")[0], everyone[:, order], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(together(name, "strangers")[0][:, 0], everyone[:, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TABLE)
def test_the_gradient_in_the_parameter_is_the_difference_quotient(x64, name):
    _, sums, slopes = together(name, difference=1e-6)
    np.testing.assert_allclose(slopes[1], (sums[2] - sums[0]) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apg", "adaptive", "feedback", "dps"])
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", REMEMBERING)
def test_a_run_and_its_gradients_are_finite_without_difference_and_without_spread(name):
    w, row = world(), TABLE[name]

    def total(value, target):
        own = w._replace(target=target)
        denoise = gj.denoiser(flat, predicts="x0")
        levels = gj.levels(gj.schedules.cosine(), 3, gj.spacings.karras())
        return gj.sample(w.keys, gj.branches(denoise, **w.conds), row.make(value, own), gj.ddim(), levels, SHAPE).sum()

    gradient = jax.jit(jax.vmap(jax.value_and_grad(total), in_axes=(0, None)))
    for target in (w.target, jnp.zeros_like(w.target)):
        assert np.isfinite(gradient(values(row), target)).all()


@pytest.mark.slow
def test_a_step_of_every_method_and_its_gradients_are_finite_without_difference_and_without_spread():
    w, level, after = world(), gj.schedules.cosine()(0.6), gj.schedules.cosine()(0.5)
    branches = gj.branches(gj.denoiser(flat, predicts="x0"), **w.conds)

    def totals(given, target):
        own = w._replace(target=target)
        methods = {name: TABLE[name].make(value, own) for name, value in given.items()}
        found = updates(methods, branches, w.keys, w.target, 0, level, after)
        sums = {name: p.x0.sum() + p.eps.sum() for name, p in found.items()}
        return sum(sums.values()), sums

    gradient = jax.jit(jax.vmap(jax.value_and_grad(totals, has_aux=True), in_axes=(0, None)))
    for target in (w.target, jnp.zeros_like(w.target)):
        (_, sums), slopes = gradient({name: values(row) for name, row in TABLE.items()}, target)
        for name in TABLE:
            assert np.isfinite(sums[name]).all(), name
            assert np.isfinite(slopes[name]).all(), name


GRADIENTS = {"classifier", "mean_shift", "universal", "dps", "freedom", "mpgd", "pigdm", "lgd", "tfg", "reg"}
OWN_SPACE = GRADIENTS | {"cfg_pp", "feedback", "beta_cfg", "recfg", "cfg_zero_star"}
"""Methods that accept only the space of x0, or set another in their row."""


def composed(name, w):
    """A method, guided in an interval and in another space, beside a reused copy of itself, and shaped."""
    method = TABLE[name].make(TABLE[name].usual, w)
    inner = method if name in OWN_SPACE else gj.in_space("v", method)
    return gj.chain(gj.during(inner, 0.1, 20.0), gj.add(gj.reuse(method, 2), gj.cfg(2.0)), gj.rescale(0.5))


WHOLE = ("apg", "adaptive", "feedback", "dps")


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_a_method_composes_with_every_other_part(name):
    """Four runs, which shape with momentum, skip, remember, and take a gradient. The others are traced, and their first step
    runs below.
    """
    row, w = TABLE[name], world()
    method = row.make(row.usual, w)
    if name in OWN_SPACE:
        with pytest.raises(ValueError, match=r"use chain\(guidance, in_space\(\.\.\.\)\)"):
            jax.eval_shape(lambda: run(gj.in_space("v", method), w))
    chain = composed(name, w)
    if name in WHOLE:
        x = run(chain, w)
        assert np.isfinite(x).all()
        assert np.abs(x - before(row.source, double=False)).max() > 1e-3
    else:
        assert jax.eval_shape(lambda: run(chain, w)).shape == (B, *SHAPE)


@pytest.mark.slow
def test_a_step_of_every_composition_and_its_gradients_in_all_numbers_are_finite():
    w, level, after = world(), gj.schedules.cosine()(0.6), gj.schedules.cosine()(0.5)
    branches = gj.branches(gj.denoiser(network, "v"), **w.conds)

    def total(methods):
        found = {name: p.x0 for name, p in updates(methods, branches, w.keys, w.target, 0, level, after).items()}
        return sum(x0.sum() for x0 in found.values()), found

    methods = {name: TABLE[name].make(jnp.float32(TABLE[name].usual), w) for name in TABLE}
    chains = {name: composed(name, w) for name in TABLE if name not in WHOLE}
    (_, found), slopes = jax.jit(jax.value_and_grad(total, allow_int=True, has_aux=True))(methods | {"nothing": gj.chain()})
    for name, slope in slopes.items():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope) if leaf.dtype == jnp.float32), name
    _, steps = jax.jit(total)(chains)
    for name, x0 in steps.items():
        assert np.isfinite(x0).all(), name
        assert np.abs(x0 - found["nothing"]).max() > 1e-3, name


def half(x, t, cond):
    return network(x.astype(jnp.bfloat16), t.astype(jnp.bfloat16), cond.astype(jnp.bfloat16))


def sampled(method, sampler):
    """The abstract samples, and the dtypes that a bfloat16 network receives."""
    seen = []

    def recorded(x, t, cond):
        seen.append(x.dtype)
        return half(x, t, cond)

    x = jax.eval_shape(lambda w: run(method(w), w, SAMPLERS[sampler], recorded), world())
    return (x.shape, x.dtype, set(seen))


IN_FLOAT32 = ((B, *SHAPE), jnp.float32, {jnp.dtype("float32")})


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_with_every_method_a_bfloat16_network_receives_and_leaves_float32(name):
    assert sampled(lambda w: TABLE[name].make(TABLE[name].usual, w), "heun") == IN_FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_every_sampler_a_bfloat16_network_receives_and_leaves_float32(sampler):
    """With another eps, a gradient through the network, and memory, in one guidance. One that skips runs below."""
    parts = [(TABLE[name], TABLE[name].usual) for name in ("cfg_pp", "dps", "feedback")]
    assert sampled(lambda w: gj.add(*(row.make(usual, w) for row, usual in parts)), sampler) == IN_FLOAT32


def guided_by_memory(sampler):
    """A run of a bfloat16 network by a guidance that has memory, skips evaluations, and has one number per sample."""
    return lambda w: run(gj.adaptive(gj.cfg(2.0 + w.target[:, 0, 0]), 0.97), w, SAMPLERS[sampler], half)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_traced_in_shard_map(sampler):
    """A carry that varies over the devices, or a sum across them, raises while tracing."""
    assert jax.eval_shape(sharded(guided_by_memory(sampler)), world()).shape == (B, *SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["dpmpp_2s(eta)", "predictor_corrector", "restart"])
def test_a_sampler_of_each_kind_runs_in_shard_map_as_without(sampler):
    """One that draws and evaluates twice, one with inner steps, and one around another, which has memory."""
    generate, w = guided_by_memory(sampler), world()._replace(keys=quick_keys(B))
    found = np.asarray(jax.jit(generate)(w))
    assert np.isfinite(found).all()
    assert len(np.unique(found.round(4))) > B
    np.testing.assert_allclose(sharded(generate)(w), found, rtol=1e-4, atol=1e-5)


RUN = list(zip(KINDS, 3 * ("ddpm", "heun", "dpmpp_2m"), strict=False))
"""Each kind of method, with a sampler that draws, one of two evaluations per step, or one with memory."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sampler"), RUN)
def test_each_kind_of_method_runs_with_another_sampler(name, sampler):
    w, row = world()._replace(keys=quick_keys(B)), TABLE[name]
    x = np.asarray(run(row.make(row.usual, w), w, SAMPLERS[sampler], half))
    assert np.isfinite(x).all()
    assert len(np.unique(x.round(4))) > B


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:feynman_kac")
def test_particles_run_in_shard_map_with_whole_groups_on_a_device():
    w = world()
    w = jax.tree.map(lambda leaf: jnp.repeat(leaf, 4, axis=0), w)._replace(keys=quick_keys(4 * B))

    def generate(w):
        levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
        target = gj.targets.rewarded(gj.targets.tilted(1.05), lambda x0, level: -0.1 * (x0**2).mean((1, 2)))
        branches = gj.branches(gj.denoiser(network, "v"), cond=w.conds["cond"], uncond=w.conds["uncond"])
        found = gj.feynman_kac(w.keys, branches, target, gj.ddpm(), levels, SHAPE, size=4, threshold=1.0)
        return found.x, found.log_weights, found.log_normaliser

    for ours, theirs in zip(sharded(generate)(w), jax.jit(generate)(w), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    jax.effects_barrier()


@pytest.mark.slow
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

    given = quick_keys(B), labels, jnp.ones((B, 2))
    exact, *found = sharded(generate)(given)
    assert np.isfinite(exact).all()
    for ours, theirs in zip(found, jax.jit(lambda given: generate(given)[1:])(given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_likelihood_in_shard_map_raises_because_of_diffrax():
    m = mixture(2)
    found = lambda given: gj.log_likelihood(gj.branches(m.denoise, cond=given[1]), gj.chain(), given[0], gj.schedules.flow())
    with pytest.raises(ValueError, match=r"check_vma=False"):
        sharded(found)((jnp.ones((B, 2)), jnp.arange(B) % 3))
