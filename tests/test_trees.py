"""States that are trees: as vectors, and padded."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import keys

import guidance_jax as gj

B, N, K = 3, 4, 2
COUNTS = jnp.array([4, 2, 3])
ZEROS = lambda *shape: jnp.asarray(np.zeros(shape), float)
CLOUD = {"position": ZEROS(N, 3), "type": ZEROS(N, K)}
PARAMETERS = {"mean": ZEROS(2), "scale": ZEROS()}


@functools.cache
def path():
    return gj.levels(gj.schedules.cosine(), 5, gj.spacings.trailing())


MASK = jnp.asarray(np.arange(N)[None] < np.asarray(COUNTS)[:, None])


def normed(prediction, context):
    """A guidance that takes a norm over the whole state."""
    gap = context["cond"].x0 - context["uncond"].x0
    return prediction.x0 + 2 * gap / jnp.linalg.norm(gap, axis=1, keepdims=True)


GUIDANCES = {
    "apg": gj.apg(2.5, max_norm=0.7),
    "norms and a gradient": gj.chain(
        gj.stateless(normed, needs=["cond", "uncond"]),
        gj.clip_norm(0.7),
        gj.stateless(lambda p, context: p.x0 - 0.1 * context.pullback(p.x0), derivatives=[None]),
    ),
}


def drawn(like, seed=1, batch=B):
    """A tree of numbers with a batch of them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=(batch, *leaf.shape)), float), like)


def attention(cloud, t, given):
    """A network of clouds in which each point attends to all points that exist, for either branch's condition."""
    mask = given.mask.astype(jnp.float32)[:, :, None]
    mean = jax.tree.map(lambda leaf: (mask * leaf).sum(1, keepdims=True) / mask.sum(1, keepdims=True), cloud)
    shift = given.cond[:, None, None]
    return {
        "position": 0.5 * cloud["position"] - mean["position"] + jnp.sin(shift) + mean["type"].sum(2, keepdims=True),
        "type": 0.3 * cloud["type"] + mean["type"] + shift * jnp.cos(mean["position"][:, :, :K]),
    }


def padded_run(n, guidance, sampler):
    """Samples of clouds of `COUNTS` points, padded to n."""
    flat = gj.trees.flat({"position": ZEROS(n, 3), "type": ZEROS(n, K)}, points=True)
    mask = jnp.asarray(np.arange(n)[None] < np.asarray(COUNTS)[:, None])
    given: dict[str, Any] = {name: gj.trees.Padded(jnp.full(B, c), mask) for name, c in (("cond", 1.0), ("uncond", 0.0))}
    two = gj.branches(gj.denoiser(flat.network(attention), predicts="eps"), **given)
    trace, start = lambda state: (state.x, state.x0), (flat.size,)

    @jax.jit
    def run():
        there = flat.mask(mask)
        x, along = gj.sample(keys(B), two, guidance, gj.trees.zero_padding(sampler, there), path(), start, trace=trace)
        return flat.unravel(x), there, x, along

    return jax.tree.map(np.asarray, run())


@pytest.mark.parametrize("points", [False, True])
def test_unravel_undoes_ravel(points):
    flat, cloud = gj.trees.flat(CLOUD, points=points), drawn(CLOUD)
    x = flat.ravel(cloud)
    assert x.shape == (B, flat.size) == (B, N * (3 + K))
    jax.tree.map(np.testing.assert_array_equal, flat.unravel(x), cloud)
    np.testing.assert_allclose((x**2).sum(1), sum((leaf**2).sum((1, 2)) for leaf in cloud.values()), rtol=1e-6)


def test_the_points_of_a_cloud_follow_one_after_the_other():
    cloud = drawn(CLOUD)
    x = gj.trees.flat(CLOUD, points=True).ravel(cloud).reshape(B, N, 3 + K)
    np.testing.assert_array_equal(x, jnp.concatenate([cloud["position"], cloud["type"]], axis=2))


def test_cfg_of_a_dictionary_of_parameters_is_cfg_leaf_by_leaf():
    flat = gj.trees.flat(PARAMETERS)

    def network(tree, t, cond):
        return {"mean": jnp.sin(tree["mean"]) + cond[:, None], "scale": tree["scale"] * cond + tree["mean"].sum(1)}

    denoise = gj.denoiser(flat.network(network), predicts="x0")
    level, two = path()[1], gj.branches(denoise, cond=jnp.array([1.0] * B), uncond=jnp.array([0.0] * B))

    @jax.jit
    def program(tree):
        guided = flat.unravel(gj.guided(two, gj.cfg(3.0))(flat.ravel(tree), level).x0)
        return guided, *(network(tree, None, cond) for cond in two.conds.values())

    guided, c, u = jax.tree.map(np.asarray, program(drawn(PARAMETERS)))
    expected = jax.tree.map(lambda c, u: u + 3 * (c - u), c, u)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), guided, expected)
    samples = jax.eval_shape(lambda: flat.unravel(gj.sample(keys(B), two, gj.cfg(3.0), gj.ddim(), path(), (flat.size,))))
    assert jax.tree.map(jnp.shape, samples) == {"mean": (B, 2), "scale": (B,)}


def of_cloud(guidance):
    """The network's two predictions of a padded cloud, and the guided one, as trees."""
    flat, cloud, level = gj.trees.flat(CLOUD, points=True), drawn(CLOUD), path()[2]
    given = [gj.trees.Padded(jnp.array([c] * B), MASK) for c in (1.0, 0.0)]
    two = gj.branches(gj.denoiser(flat.network(attention), predicts="x0"), cond=given[0], uncond=given[1])

    @jax.jit
    def program(cloud):
        x, denoise = flat.ravel(cloud), gj.guided(two, guidance)
        found = denoise(x, level, denoise.init(x))[0].x0
        return [attention(cloud, None, each) for each in given], flat.unravel(found)

    return jax.tree.map(np.asarray, program(cloud))


def test_cfg_of_a_cloud_is_cfg_leaf_by_leaf():
    (c, u), found = of_cloud(gj.cfg(3.0))
    expected = jax.tree.map(lambda c, u: np.where(MASK[:, :, None], u + 3 * (c - u), 0), c, u)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("guidance", ["clip_norm", "apg"])
def test_a_bounded_norm_is_over_all_entries_except_padding(guidance):
    """The norm is over both leaves and all points of a cloud, for any output of the network in the padding."""
    most = 0.7
    # The change is 3 times a difference with bounded length, or a single such difference.
    bounded = {"clip_norm": gj.chain(gj.cfg(4.0), gj.clip_norm(3 * most)), "apg": gj.apg(4.0, beta=0.0, max_norm=most, eta=1.0)}
    (c, u), found = of_cloud(bounded[guidance])
    gap = jax.tree.map(lambda c, u: np.where(MASK[:, :, None], c - u, 0), c, u)
    length = np.sqrt(sum((leaf**2).sum((1, 2), keepdims=True) for leaf in jax.tree.leaves(gap)))
    assert (length > most).all()
    expected = jax.tree.map(lambda c, d: np.where(MASK[:, :, None], c, 0) + 3 * d * most / length, c, gap)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


def test_a_network_receives_zeros_as_padding():
    """Also a network that reads its mask nowhere."""
    flat, cloud = gj.trees.flat(CLOUD, points=True), drawn(CLOUD)

    @jax.jit
    def program(cloud):
        seen = []
        t = jnp.array([0.0] * B)
        flat.network(lambda cloud, t, given: seen.append(cloud) or cloud)(flat.ravel(cloud), t, gj.trees.Padded(t, MASK))
        return seen[0]

    expected = jax.tree.map(lambda leaf: np.where(MASK[:, :, None], leaf, 0), cloud)
    jax.tree.map(np.testing.assert_array_equal, program(cloud), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guidance", "sampler"), [("apg", gj.dpmpp_2m()), ("norms and a gradient", gj.dpmpp_sde())], ids=GUIDANCES
)
def test_padding_stays_0_and_nothing_depends_on_it(guidance, sampler):
    clouds, there, x, along = padded_run(N, GUIDANCES[guidance], sampler)
    for values in (x, *along):
        assert (np.where(there, 0, values) == 0).all()
    assert np.isfinite(x).all()
    assert (np.where(there, x, 1) != 0).all()
    wide, *_ = padded_run(N + 3, GUIDANCES[guidance], sampler)
    cut = jax.tree.map(lambda leaf: leaf[:, :N], wide)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), clouds, cut)


def test_a_single_cloud_is_the_same_among_padded_ones():
    clouds, *_ = padded_run(N, gj.cfg(2.0), gj.ddpm())
    own = gj.trees.flat({"position": ZEROS(2, 3), "type": ZEROS(2, K)}, points=True)

    def network(cloud, t, cond):
        return attention(cloud, t, gj.trees.Padded(cond, jnp.ones((1, 2))))

    two = gj.branches(gj.denoiser(own.network(network), predicts="eps"), cond=jnp.ones(1), uncond=jnp.zeros(1))
    run = jax.jit(lambda: own.unravel(gj.sample(keys(B)[1:2], two, gj.cfg(2.0), gj.ddpm(), path(), (own.size,))))
    alone = run()
    cut = jax.tree.map(lambda leaf: leaf[1:2, :2], clouds)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), alone, cut)


def test_each_leaf_may_have_its_own_mask():
    flat = gj.trees.flat(PARAMETERS)
    mask = flat.mask({"mean": jnp.array([[True, False]] * B), "scale": jnp.array([1, 0, 1])})
    np.testing.assert_array_equal(mask, [[1, 0, 1], [1, 0, 0], [1, 0, 1]])


def test_padding_draws_no_noise_in_a_kernel():
    sampler = gj.trees.zero_padding(gj.ddpm(), jnp.array([[1, 1, 0]]))
    kernel: Any = sampler.kernel
    mean, deviation = kernel(gj.Prediction(jnp.ones((1, 3)), jnp.ones((1, 3))), path()[1], path()[2])
    assert mean.shape == (1, 3)
    assert bool((deviation[0, :2] > 0).all())
    assert deviation[0, 2] == 0


def test_the_parameters_of_a_network_are_leaves():
    flat = gj.trees.flat(PARAMETERS)
    apply = lambda params, tree, t, cond: jax.tree.map(lambda leaf: params * leaf, tree)
    network = flat.network(jax.tree_util.Partial(apply, jnp.float32(2)))
    assert jax.tree.leaves(network) == [2]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, network)
    np.testing.assert_array_equal(doubled(jnp.ones((1, 3)), jnp.ones(1), None), [[4, 4, 4]])


WRONG = {
    "labels": (lambda: gj.trees.flat({"type": jnp.zeros(3, int)}), TypeError, r"flat: example.*floating.*int32\[3\]"),
    "nothing": (lambda: gj.trees.flat({}), ValueError, "flat: example must hold at least one array"),
    "points of two lengths": (
        lambda: gj.trees.flat({"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)}, points=True),
        ValueError,
        r"one length, got shapes \(3, 2\), \(2,\)",
    ),
    "a scalar among points": (lambda: gj.trees.flat({"a": jnp.zeros(())}, points=True), ValueError, "one length"),
    "a sample without a batch": (
        lambda: gj.trees.flat(PARAMETERS).ravel(PARAMETERS),
        ValueError,
        r"tree must have the shapes \{'mean': \('B', 2\), 'scale': \('B',\)\}, got \{'mean': \(2,\), 'scale': \(\)\}",
    ),
    "another tree": (lambda: gj.trees.flat(PARAMETERS).ravel(drawn(CLOUD)), ValueError, "tree must have the shapes"),
    "another vector": (lambda: gj.trees.flat(PARAMETERS).unravel(jnp.ones((2, 4))), ValueError, r"\[B, 3\].*float32\[2,4\]"),
    "no network": (lambda: gj.trees.flat(PARAMETERS).network(PARAMETERS), TypeError, r"network must be a function.*the dict"),  # pyright: ignore[reportArgumentType]
    "no sampler": (lambda: gj.trees.zero_padding(gj.ddim, 1.0), TypeError, r"sampler must be a Sampler.*call it, ddim"),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tree_that_does_not_fit_raises(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
