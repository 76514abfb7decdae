"""The pullback and the JVP of every branch against jax.grad and jax.jvp of the denoiser; each costs one forward pass."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import keys, step

import guidance_jax as gj

B, SHAPE = 4, (4, 3, 2)
RNG = np.random.default_rng(0)
WEIGHTS, POOR = RNG.normal(size=(2, 6, 6)) / 2
CONDS = {name: RNG.normal(size=(B, 6)) for name in ("cond", "uncond", "weak")}
X, COTANGENT, TANGENT = RNG.normal(size=(3, *SHAPE))


class World:
    """Three branches, of one network or of two. It records the batch size of every trace and evaluation."""

    def __init__(self, networks, batched=True):
        self.traced, self.evaluated, self.level = [], [], gj.schedules.cosine()(0.6)

        def denoise(weights):
            def network(x, t, cond):
                self.traced.append(len(x))
                jax.debug.callback(lambda x: self.evaluated.append(len(x)), x)
                return jnp.tanh(x.reshape(len(x), -1) @ weights.astype(x.dtype) + cond * t[:, None]).reshape(x.shape)

            return gj.denoiser(network, predicts="v")

        self.of = dict.fromkeys(CONDS, denoise(WEIGHTS))
        conds = {name: jnp.asarray(cond) for name, cond in CONDS.items()}
        if networks == 2:
            self.of["weak"] = denoise(POOR)
            first = gj.branches(self.of["cond"], batched=batched, cond=conds["cond"], uncond=conds["uncond"])
            self.branches = first, gj.branches(self.of["weak"], batched=batched, weak=conds["weak"])
        else:
            self.branches = gj.branches(self.of["cond"], batched=batched, **conds)

    def x0(self, name, x):
        """The denoiser's prediction of x0 at x in a branch."""
        return self.of[name](x, self.level, jnp.asarray(CONDS[name])).x0

    def look(self, guidance):
        """What a guidance reads at X, and its number of evaluations."""
        x = jnp.asarray(X)
        state = gj.State(x, (), guidance.init(x), jnp.int32(0), jnp.zeros_like(x))
        self.traced.clear()
        self.evaluated.clear()
        _, after, context = gj.guide(self.branches, guidance, step(self.level, batch=B)).look(state, self.level)
        jax.effects_barrier()
        return context, int(after.evaluations)


def reading(derivatives, needs=()):
    return gj.stateless(lambda prediction, context: prediction.x0, needs=needs, derivatives=derivatives)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "networks"),
    [
        ((None,), 1),
        (("cond",), 2),
        (("uncond",), 1),
        (("uncond",), 2),
        (("weak",), 2),
        (("uncond", "weak"), 1),
        ((None, "cond"), 1),
        ((None, "uncond", "weak"), 2),
    ],
    ids=str,
)
def test_the_derivatives_of_a_branch_are_those_of_the_denoiser(x64, names, networks):
    world = World(networks)
    context, count = world.look(reading(names, needs=CONDS))
    evaluated = sum(world.evaluated)
    for name in names:
        along = lambda x, name=name: world.x0(name or "cond", x)
        gradient = jax.grad(lambda x, along=along: (along(x) * COTANGENT).sum())(jnp.asarray(X))
        _, tangent = jax.jvp(along, (jnp.asarray(X),), (jnp.asarray(TANGENT),))
        np.testing.assert_allclose(context.pullback(jnp.asarray(COTANGENT), name), gradient, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(context.jvp(jnp.asarray(TANGENT), name), tangent, rtol=1e-12, atol=1e-14)
    for name in CONDS:
        np.testing.assert_allclose(context[name].x0, world.x0(name, jnp.asarray(X)), rtol=1e-12, atol=1e-14)
    # Three branches take three evaluations, however many of their derivatives are used.
    assert count == 3
    assert evaluated == 3 * B


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("name", [None, *CONDS])
def test_a_derivative_costs_one_forward_pass(x64, name, networks):
    world = World(networks)
    context, count = world.look(reading((name,)))
    # The base is always evaluated.
    passes = 1 if name in (None, "cond") else 2
    assert world.traced == world.evaluated == [B] * passes
    assert count == passes
    before = len(world.traced)
    for _ in range(3):
        context.pullback(jnp.asarray(COTANGENT), name)
        context.jvp(jnp.asarray(TANGENT), name)
    jax.effects_barrier()
    assert len(world.traced) == before
    assert len(world.evaluated) == passes


def test_branches_without_a_derivative_stay_in_one_batched_call(x64):
    world = World(1)
    world.look(reading(("weak",), needs=CONDS))
    assert world.evaluated == [B, 2 * B]


def test_branches_that_run_one_after_another_have_derivatives_too(x64):
    world = World(1, batched=False)
    context, count = world.look(reading(("uncond",), needs=CONDS))
    gradient = jax.grad(lambda x: (world.x0("uncond", x) * COTANGENT).sum())(jnp.asarray(X))
    np.testing.assert_allclose(context.pullback(jnp.asarray(COTANGENT), "uncond"), gradient, rtol=1e-12, atol=1e-14)
    assert count == 3


@pytest.mark.parametrize("networks", [1, 2])
def test_a_run_evaluates_each_branch_once_per_step(x64, networks):
    """It ascends the likelihood of the weak branch's x0 and descends that of the base's: two derivatives, two passes."""
    world, levels = World(networks), gj.levels(gj.schedules.cosine(), 5, gj.spacings.karras())

    def update(d, context):
        return d.x0 + 0.1 * (context.pullback(-context["weak"].x0, "weak") - context.pullback(context.base.x0))

    guidance = gj.stateless(update, needs=("weak",), derivatives=(None, "weak"))
    state, _ = gj.run(keys(B), world.branches, guidance, gj.ddim(), levels, SHAPE[1:])
    jax.effects_barrier()
    assert int(state.evaluations) == 2 * 5
    assert world.evaluated == [B] * 10


def test_a_run_with_derivatives_is_the_run_by_hand(x64):
    world, path = World(2), gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
    at = lambda name, x, level: world.of[name](x, level, jnp.asarray(CONDS[name]))
    guidance = gj.stateless(
        lambda d, context: d.x0 + 0.2 * context.pullback(-context["weak"].x0, "weak") + 0.1 * context.jvp(context.x, "uncond"),
        needs=("weak", "uncond"),
        derivatives=("weak", "uncond"),
    )
    x = start = path[0].sigma * jnp.asarray(X)
    for level, after in itertools.pairwise(path):
        base = at("cond", x, level)
        energy = lambda x, level=level: -(at("weak", x, level).x0 ** 2).sum() / 2
        _, along = jax.jvp(lambda x, level=level: at("uncond", x, level).x0, (x,), (x,))
        change = 0.2 * jax.grad(energy)(x) + 0.1 * along
        eps = base.eps - level.alpha / level.sigma * change
        x = after.alpha * (base.x0 + change) + after.sigma * eps
    found = gj.sample(keys(B), world.branches, guidance, gj.ddim(), path, start)
    np.testing.assert_allclose(found, x, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("of", [lambda context: context.pullback(context.x, "weak"), lambda context: context.jvp(context.x)])
def test_a_derivative_that_the_guidance_did_not_request_raises(of):
    guidance = gj.stateless(lambda d, context: of(context), derivatives=("uncond",))
    with pytest.raises(KeyError, match=r"no derivative of (the branch 'weak'|the base), only of 'uncond'.*derivatives=\("):
        World(1).look(guidance)


def test_a_derivative_of_a_missing_branch_raises():
    levels = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())
    with pytest.raises(ValueError, match=r"a branch 'weka', but there are only 'cond', .*Did you mean 'weak'"):
        gj.sample(keys(B), World(1).branches, reading(("weka",)), gj.ddim(), levels, SHAPE[1:])
