"""Outputs and options of the loop: a trace, gradients in the memory of one step, and a progress bar."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from quick import quick_keys
from worlds import keys, path, peaked

import guidance_jax as gj
from guidance_jax.noise import SAMPLER, at_level

LABELS = jnp.arange(4) % 3
LEVELS = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())


def arguments(scale=2.0, sampler=None, guidance=gj.cfg, levels=LEVELS):
    return quick_keys(4), peaked(LABELS), guidance(scale), sampler or gj.ddpm(), levels, (3,)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* guides nowhere:UserWarning")  # the run that stops before the interval
def test_the_trace_is_the_state_after_each_step():
    """It equals a run that stops there: x, the guided x0, the memories of sampler and guidance, the evaluations so far.

    `test_cut_runs` compares the traces of all samplers with their steps.
    """
    guidance = lambda w: gj.chain(gj.during(gj.cfg(w), 0.05, 20.0), gj.momentum(-0.5))
    state, trace = gj.run(*arguments(2.0, gj.dpmpp_sde(), guidance), trace=lambda state: state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[-1]), state, trace)
    until, nothing = gj.run(*arguments(2.0, gj.dpmpp_sde(), guidance, path(LEVELS, slice(5))))
    assert nothing is None
    stopped = jax.tree.map(lambda field: field[3], trace)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), stopped, until)
    assert (np.diff(trace.evaluations) > 0).all()
    assert len(np.unique(np.asarray(trace.x0)[:, 0, 0])) == 6


def test_a_trace_has_the_requested_values_of_every_run_under_vmap():
    record = lambda state: {"x": state.x[:, 0], "norm": jnp.linalg.norm(state.x0, axis=1)}
    one = lambda scale: gj.sample(*arguments(scale), trace=record)
    scales = jnp.array([1.0, 2.0, 4.0])
    x, along = jax.jit(jax.vmap(one))(scales)
    assert jax.tree.map(jnp.shape, along) == {"x": (3, 6, 4), "norm": (3, 6, 4)}
    for i, scale in enumerate(scales):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), (x, along), one(scale))
    np.testing.assert_allclose(along["x"][:, -1], x[:, :, 0], rtol=1e-6)


@pytest.mark.slow
def test_gradients_in_scales_levels_and_parameters_are_right_with_and_without_remat(x64):
    """They agree with difference quotients along a direction in each, and with each other."""
    levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())

    def total(inputs, remat):
        scale, ratio, params = inputs
        denoise = gj.denoiser(lambda x, t, cond: jnp.tanh(x @ params + t[:, None] * cond[:, None]), predicts="v")
        branches = gj.branches(denoise, cond=jnp.arange(1.0, 5.0), uncond=jnp.zeros(4))
        guidance = gj.chain(gj.during(gj.cfg(scale), 0.05), gj.momentum(-0.3))
        moved = gj.NoiseLevel(levels.t, levels.alpha, levels.alpha * ratio)
        return (gj.sample(quick_keys(4), branches, guidance, gj.dpmpp_2m(), moved, (3,), remat=remat) ** 2).sum()

    inputs = (jnp.array([1.0, 2.0, 3.0, 0.5]), levels.ratio, jax.random.normal(jax.random.key(0), (3, 3)))
    gradient = jax.jit(jax.value_and_grad(total), static_argnums=1)
    (value, plain), (again, kept) = gradient(inputs, False), gradient(inputs, True)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), (value, plain), (again, kept))
    for i, at in enumerate(inputs):
        direction = jax.random.normal(jax.random.key(i + 1), at.shape) * (at if i == 1 else 1)
        either = [gradient((*inputs[:i], at + h * direction, *inputs[i + 1 :]), True)[0] for h in (1e-6, -1e-6)]
        np.testing.assert_allclose((kept[i] * direction).sum(), (either[0] - either[1]) / 2e-6, rtol=1e-5)


B, D, WIDTH, DEPTH = 8, 16, 1024, 4


def gradients_bytes(steps, remat):
    """The temporary memory of a gradient in parameters and scale, for a network whose activations need most of the memory."""

    def network(params, x, t, cond):
        h = x @ params["in"]
        for row in params["rows"]:
            h = jnp.tanh(h * row[None] + cond[:, None])
        return h @ params["out"]

    def loss(params, scale):
        denoise = gj.denoiser(functools.partial(network, params), predicts="v")
        branches = gj.branches(denoise, cond=jnp.ones(B), uncond=jnp.zeros(B))
        levels = gj.levels(gj.schedules.cosine(), steps, gj.spacings.karras())
        return gj.sample(quick_keys(B), branches, gj.cfg(scale), gj.ddim(), levels, (D,), remat=remat).sum()

    shapes = {"in": (D, WIDTH), "rows": (DEPTH, WIDTH), "out": (WIDTH, D)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    memory = compiled.memory_analysis()
    assert memory
    return memory.temp_size_in_bytes


@pytest.mark.slow
def test_with_remat_the_memory_of_a_gradient_grows_by_one_state_per_step_and_not_by_the_activations():
    state, activations = 4 * B * D, 4 * 2 * B * WIDTH * DEPTH
    few, many = gradients_bytes(10, True), gradients_bytes(50, True)
    assert many - few <= 40 * 1.1 * state
    assert many < 3 * activations
    assert gradients_bytes(50, False) >= 50 * activations


def bars(captured):
    """The states of a progress bar in the order in which they were written."""
    return [line.strip() for line in captured.err.replace("\r", "\n").splitlines() if line.strip()]


def shown(capsys, run):
    result = jax.block_until_ready(run())
    jax.effects_barrier()
    return bars(capsys.readouterr()), result


@pytest.fixture
def bar():
    return pytest.importorskip("jax_tqdm", reason='jax-tqdm is not installed: pip install -e ".[test]"')


RUNS = {
    "in a jit of the caller's": lambda run: jax.jit(run)(2.0),
    "vmap": lambda run: jax.vmap(run)(jnp.arange(3.0)),
    "gradient": lambda run: jax.grad(lambda scale: run(scale, remat=True).sum())(2.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", RUNS)
def test_the_progress_bar_shows_every_step_once_and_changes_nothing(how, bar, capsys):
    levels = gj.levels(gj.schedules.cosine(), 30, gj.spacings.karras())
    plain = lambda scale, **asked: gj.sample(*arguments(scale, gj.ddim(), levels=levels), **asked)
    lines, with_bar = shown(capsys, lambda: RUNS[how](functools.partial(plain, progress="drawing")))
    assert lines[0].startswith("drawing:   0%")
    assert "| 0/30 [" in lines[0]
    assert sum("| 30/30 [" in line for line in lines) == 1
    nothing, without = shown(capsys, lambda: RUNS[how](plain))
    assert nothing == []
    np.testing.assert_allclose(with_bar, without, rtol=1e-5, atol=1e-6)


def scans(program):
    """The equations in the body of each loop of a program, by their names."""
    found = []
    for e in program.eqns:
        inner = [value.jaxpr for value in e.params.values() if hasattr(value, "jaxpr")]
        if e.primitive.name == "scan":
            found += [[each.primitive.name for each in body.eqns] for body in inner]
        else:
            found += [names for body in inner for names in scans(body)]
    return found


def test_a_run_without_a_bar_contains_no_part_of_it(bar, monkeypatch):
    """It has no callback, no more equations than a loop by hand, and does not import jax-tqdm."""
    given, branches = keys(4), peaked(LABELS)
    run = lambda given, scale, **asked: gj.sample(given, branches, gj.cfg(scale), gj.ddim(), LEVELS, (3,), **asked)

    def by_hand(given, scale):
        def body(state, inputs):
            number, level, after = inputs
            step = gj.Step(number, level, after, given)
            mine = at_level(given, level, SAMPLER)
            after = gj.ddim().step(gj.guide(branches, gj.cfg(scale), step), state, step.level, step.next, mine)
            return after._replace(number=number + 1), None

        state = gj.State(jnp.zeros((4, 3)), (), (), jnp.int32(0), jnp.zeros((4, 3)), jnp.int32(0))
        inputs = jnp.arange(6, dtype=jnp.int32), path(LEVELS, slice(-1)), path(LEVELS, slice(1, None))
        return jax.lax.scan(body, state, inputs)[0]

    assert "callback" in str(jax.make_jaxpr(functools.partial(run, progress="drawing"))(given, 2.0))
    for module in [name for name in sys.modules if name.startswith("jax_tqdm")]:
        monkeypatch.setitem(sys.modules, module, None)
    program, expected = jax.make_jaxpr(run)(given, 2.0), jax.make_jaxpr(by_hand)(given, 2.0)
    assert "callback" not in str(program)
    assert scans(program.jaxpr) == scans(expected.jaxpr)
    assert len(scans(program.jaxpr)) == 1
    with pytest.raises(ImportError, match=r"progress='drawing' needs the package jax-tqdm: pip install jax-tqdm"):
        run(given, 2.0, progress="drawing")


def test_a_bar_over_several_devices_raises():
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    spread = jax.device_put(keys(4), NamedSharding(mesh, PartitionSpec("batch")))
    with pytest.raises(ValueError, match="progress needs a run on one device, but this batch is on 4"):
        gj.sample(spread, *arguments()[1:], progress="drawing")


def test_sampling_has_one_loop():
    """Other loops are those over pairs in metrics, and over the tiles of a large image."""
    sources = {path: path.read_text() for path in Path(gj.__file__).parent.rglob("*.py")}
    loops = {path.name: count for path, text in sources.items() if (count := text.count("lax.scan("))}
    assert {name: count for name, count in loops.items() if name not in ("pairs.py", "autoencoder_tiles.py")} == {
        "sampling.py": 1
    }
