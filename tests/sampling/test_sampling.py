"""The loop: evaluations and skipped branches, devices, keys, conditions, and errors."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from counted import LABELS, LEVELS, B, Counted
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from quick import quick_keys
from worlds import classes, mixture, peaked, peaks

import guidance_jax as gj


def log_prob(x, level):
    return -((x - jnp.asarray(LABELS, x.dtype)[:, None]) ** 2).sum(1)


def test_batched_cfg_is_one_call_of_2b_per_step():
    assert Counted(peaks).run(gj.cfg(3.0)) == [2 * B] * 20


def test_no_guidance_evaluates_only_the_base():
    counted = Counted(peaks)
    assert counted.run(gj.chain()) == [B] * 20
    with pytest.warns(UserWarning, match=r"rescale\(fraction=0.7\) only changes what others add"):
        assert counted.run(gj.rescale(0.7)) == [B] * 20


def test_classifier_guidance_is_one_call_of_b_per_step():
    assert Counted(peaks).run(gj.classifier(log_prob, 2.0), conds={"uncond": jnp.full_like(LABELS, -1)}) == [B] * 20


@pytest.mark.slow
@pytest.mark.parametrize("around", [lambda g: g, lambda g: gj.chain(g, gj.rescale(0.7)), lambda g: gj.add(g)])
def test_an_interval_skips_the_unconditional_branch(around):
    ratio = np.asarray(LEVELS.ratio)[:-1]
    low, high = ratio[15], ratio[2]
    batches = Counted(peaks).run(around(gj.during(gj.cfg(3.0), low, high)))
    assert batches == [2 * B if low < r <= high else B for r in ratio]
    assert batches.count(2 * B) == 13


def test_an_interval_skips_the_classifier():
    calls = []

    def watched(x, level):
        jax.debug.callback(lambda x: calls.append(len(x)), x)
        return log_prob(x, level)

    low, high = LEVELS.ratio[15], LEVELS.ratio[2]
    guidance = gj.during(gj.classifier(watched, 2.0), low, high)
    jax.block_until_ready(gj.sample(quick_keys(B), peaked(LABELS), guidance, gj.ddim(), LEVELS, (3,)))
    jax.effects_barrier()
    assert len(calls) == 13


def test_heun_counts_its_corrector_which_follows_the_choice_of_its_step():
    """The base has 2 N - 1 evaluations. A corrector that ends outside the interval is guided if its step is."""
    counted = Counted(peaks)
    assert counted.run(gj.chain(), gj.heun()) == [B] * 39
    low, high = LEVELS.ratio[15], LEVELS.ratio[2]
    assert counted.run(gj.during(gj.cfg(3.0), low, high), gj.heun()) == [B] * 4 + [2 * B] * 26 + [B] * 9


def test_two_intervals_skip_independently():
    third = jnp.full_like(LABELS, 2)
    ratio = np.asarray(LEVELS.ratio)
    guidance = gj.chain(gj.during(gj.cfg(3.0), ratio[10], ratio[0]), gj.during(gj.cfg(2.0, cond="third"), ratio[15], ratio[5]))
    conds = {"cond": LABELS, "uncond": jnp.full_like(LABELS, -1), "third": third}
    # Both want uncond, only the second wants third. All three are one call, or one each where the intervals differ.
    assert Counted(peaks).run(guidance, conds=conds) == [B, B] * 5 + [3 * B] * 10 + [B] * 5


@pytest.mark.slow
@pytest.mark.parametrize("over", ["scales", "labels", "keys"])
def test_an_interval_still_skips_under_vmap(over):
    low, high = LEVELS.ratio[15], LEVELS.ratio[2]

    def generate(scale, labels, key):
        return gj.evaluations(key, peaked(labels), gj.during(gj.cfg(scale), low, high), gj.ddim(), LEVELS, (3,))

    mapped = {"scales": (0, None, None), "labels": (None, 0, None), "keys": (None, None, 0)}[over]
    axes = jnp.linspace(0, 4, 3), jnp.stack([LABELS] * 3), jnp.stack([quick_keys(B, s) for s in range(3)])
    given = [all_ if axis == 0 else all_[0] for all_, axis in zip(axes, mapped, strict=True)]
    counts = jax.vmap(generate, in_axes=mapped)(*given)
    assert (counts == 20 + 13).all()


def test_the_program_of_an_interval_contains_a_conditional_even_under_vmap():
    def generate(scale):
        return gj.sample(quick_keys(B), peaked(LABELS), gj.during(gj.cfg(scale), 0.1, 1.0), gj.ddim(), LEVELS, (3,))

    program = jax.jit(jax.vmap(generate)).lower(jnp.arange(3.0)).compile().as_text()
    assert program
    assert "conditional(" in program


def test_an_interval_with_mapped_bounds_is_right(x64):
    levels = gj.levels(gj.schedules.edm(), 12, gj.spacings.karras())

    def generate(low):
        return gj.sample(quick_keys(B), peaked(LABELS), gj.during(gj.cfg(3.0), low, 20.0), gj.ddim(), levels, (3,))

    lows = np.array([0.05, 0.5, 3.0])
    together, alone = jax.vmap(generate)(lows), [generate(low) for low in lows]
    np.testing.assert_allclose(together, alone, rtol=1e-10)
    assert np.abs(np.diff(alone, axis=0)).max((1, 2)).min() > 1e-3


def sharded(devices):
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec("batch"))


def test_eight_devices_give_the_samples_of_one_and_exchange_nothing(x64):
    """In float64, because strong guidance amplifies float32 roundings, which differ between batches of 2 and of 16.

    Merging branches moves nothing between devices. Concatenation along the batch would.
    """
    assert len(jax.devices()) == 8
    levels = gj.levels(gj.schedules.edm(), 20, gj.spacings.karras())
    guidance = lambda scale: gj.chain(gj.during(gj.cfg(scale), 0.1, 20.0), gj.rescale(0.7))
    program = jax.jit(lambda key, labels, w: gj.sample(key, peaked(labels), guidance(w), gj.dpmpp_2m(), levels, (3,)))
    arguments = quick_keys(16), jnp.arange(16) % 3, jnp.linspace(0.0, 5.0, 16)
    spread = [jax.device_put(argument, sharded(8)) for argument in arguments]
    one, over_eight = program(*arguments), program.lower(*spread).compile()
    many = over_eight(*spread)
    assert one.dtype == jnp.float64
    assert len(many.sharding.device_set) == 8
    np.testing.assert_allclose(many, one, rtol=1e-11, atol=1e-11)
    text = over_eight.as_text()
    assert text
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text


def test_conditions_may_be_any_pytree():
    """Labels, labels and embeddings with a mask, and none, through one network each."""
    embeddings, mask = (
        jax.random.normal(jax.random.key(0), (B, 4, 3)),
        jnp.arange(4)[None] < 1 + jnp.arange(B)[:, None] % 4,
    )
    conds = {
        "labels": LABELS,
        "both": (LABELS, {"embeddings": embeddings, "mask": mask}),
        "none": None,
    }

    def network(x, t, cond):
        total = jnp.zeros_like(x)
        for leaf in jax.tree.leaves(cond):
            leaf = leaf.astype(x.dtype)
            total = total + leaf.reshape(len(x), -1).mean(1)[:, None]
        return jnp.tanh(x + total)

    denoise = gj.denoiser(network, predicts="v")

    @jax.jit
    def samples():
        """With each kind of condition, in one call of both branches and in one call each."""
        found = {}
        for name, cond in conds.items():
            null = jax.tree.map(jnp.zeros_like, cond)
            apart = gj.branches(denoise, cond=cond), gj.branches(denoise, uncond=null)
            either = gj.branches(denoise, cond=cond, uncond=null), apart
            found[name] = [gj.sample(quick_keys(B), each, gj.cfg(2.0), gj.ddim(), LEVELS, (3,)) for each in either]
        return found

    found = samples()
    for name, (together, apart) in found.items():
        np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6, err_msg=name)
    assert len(np.unique([together for together, _ in found.values()], axis=0)) == 3


def test_a_sample_depends_only_on_its_key():
    few, many = quick_keys(64)[:3], quick_keys(64)
    run = lambda key: gj.sample(key, peaked(jnp.zeros(len(key), int)), gj.cfg(2.0), gj.ddpm(), LEVELS, (3,))
    drawn = run(many)
    np.testing.assert_allclose(drawn[:3], run(few), rtol=1e-5, atol=1e-5)
    assert len(np.unique(drawn[:, 0])) == 64


def test_vectors_images_and_sequences_can_be_sampled():
    shapes = (4,), (4, 4, 2), (5, 3)
    denoise = gj.denoiser(lambda x, t, cond: jnp.tanh(x) * (1 + cond.reshape(-1, *[1] * (x.ndim - 1))), predicts="v")
    branches = gj.branches(denoise, cond=jnp.ones(2), uncond=jnp.zeros(2))
    guidance = gj.chain(gj.cfg(jnp.array([0.0, 5.0])), gj.rescale(0.7))
    samples = jax.jit(lambda: [gj.sample(quick_keys(2), branches, guidance, gj.dpmpp_2m(), LEVELS, shape) for shape in shapes])
    for x, shape in zip(samples(), shapes, strict=True):
        assert x.shape == (2, *shape)
        assert np.isfinite(x).all()


M = mixture()
GOOD = {
    "keys": quick_keys(B),
    "branches": classes(M, LABELS),
    "guidance": gj.cfg(2.0),
    "sampler": gj.ddim(),
    "levels": LEVELS,
    "shape_or_x": (3,),
}


def logits(n):
    return lambda x, t: jnp.zeros((len(x), n))


def flip(levels):
    return jax.tree.map(lambda field: field[::-1], levels)


BAD = {
    "old-style keys": ({"keys": jax.random.PRNGKey(0)}, TypeError, "jax.random.key"),
    "one key": ({"keys": jax.random.key(0)}, ValueError, "one per sample"),
    "label too large": ({"branches": classes(M, LABELS + 1)}, ValueError, r"label 3 is outside -1\.\.2"),
    "labels of another batch": ({"branches": classes(M, LABELS[:3])}, ValueError, r"'cond' must be .*B = 8.*\(3,\)"),
    "conditions that differ": (
        {"branches": gj.branches(M.denoise, cond=LABELS, uncond=None)},
        ValueError,
        "'cond' and 'uncond' differ",
    ),
    "misspelt branch": ({"guidance": gj.cfg(2.0, uncond="unconf")}, ValueError, "'unconf'.*Did you mean 'uncond'"),
    "missing branch": ({"branches": gj.branches(M.denoise, cond=LABELS)}, ValueError, "reads a branch 'uncond'"),
    "a branch twice": ({"branches": (classes(M, LABELS), classes(M, LABELS))}, ValueError, "two networks have .*'cond'"),
    "scale of another batch": ({"guidance": gj.cfg(jnp.ones(3))}, ValueError, r"cfg: scale has shape \(3,\).*\[B\]"),
    "scale as a column": ({"guidance": gj.cfg(jnp.ones((B, 1)))}, ValueError, "cfg: scale has shape"),
    "fraction of another batch": ({"guidance": gj.rescale(jnp.ones(3))}, ValueError, "rescale: fraction has shape"),
    "levels that rise": ({"levels": flip(LEVELS)}, ValueError, "must decrease in sigma / alpha"),
    "levels that repeat": (
        {"levels": jax.tree.map(lambda f: jnp.repeat(f, 2), LEVELS)},
        ValueError,
        r"decrease.*\[80\. 80\.\] from level 0 on",
    ),
    "one level": ({"levels": gj.schedules.edm()(0.0)}, ValueError, r"\[steps\+1\]"),
    "NaN in x": ({"shape_or_x": jnp.ones((B, 3)).at[2, 1].set(jnp.nan)}, ValueError, r"1 of 8 samples: \[2\]"),
    "infinite x": ({"shape_or_x": jnp.ones((B, 3)).at[4, 1].set(jnp.inf)}, ValueError, r"1 of 8 samples: \[4\]"),
    "x of another batch": ({"shape_or_x": jnp.ones((3, 3))}, ValueError, "B = 8"),
    "integer x": ({"shape_or_x": jnp.ones((B, 3), int)}, TypeError, "floating"),
    "wrong shape": ({"shape_or_x": (4,)}, ValueError, r"x must be \[B, 3\]"),
    "logits of too few classes": (
        {"guidance": gj.classifier(gj.scores.class_log_prob(logits(2), LABELS), 1.0)},
        ValueError,
        r"label 2 is outside 0\.\.1",
    ),
    "logits of too many classes": (
        {"guidance": gj.classifier(gj.scores.class_log_prob(logits(7), LABELS, classes=3), 1.0)},
        ValueError,
        r"logits must be \[8, 3\], got float32\[8,7\]; .*\[B, classes\]",
    ),
    "logits without a batch": (
        {"guidance": gj.classifier(gj.scores.class_log_prob(lambda x, t: jnp.zeros(3), LABELS), 1.0)},
        ValueError,
        r"logits must be \[8, classes\], got float32\[3\]; .*\[B, classes\]",
    ),
    "log-prob of the whole batch": (
        {"guidance": gj.classifier(lambda x, level: x.sum(), 1.0)},
        ValueError,
        "one number per sample",
    ),
}


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **kwargs: COMPILED.append(event) if "backend_compile" in event else None
)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises_before_any_computation(case):
    change, kind, message = BAD[case]
    COMPILED.clear()
    with pytest.raises(kind, match=message):
        gj.sample(**(GOOD | change))
    assert not COMPILED


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gj.branches(M.denoise), "at least one condition"),
        (lambda: gj.during(gj.cfg(2.0), 5.0, 1.0), "low must be below high"),
        (lambda: gj.during(gj.cfg(2.0), jnp.zeros(3)), "must be a scalar"),
    ],
)
def test_wrong_parts_raise(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_rescale_of_a_single_element_raises():
    denoise = gj.denoiser(lambda x, t, cond: x, predicts="eps")
    with pytest.raises(ValueError, match="at least two elements"):
        gj.sample(
            quick_keys(2),
            gj.branches(denoise, cond=None, uncond=None),
            gj.chain(gj.cfg(2.0), gj.rescale(0.7)),
            gj.ddim(),
            LEVELS,
            (1,),
        )


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        (jnp.zeros(2), (3,), "^this mixture takes integer labels, got float32"),
        (jnp.zeros(2, int), 3, r"^x must be an array .*shape_or_x.*, got the int 3;"),
        (jnp.zeros(2, int), [3], r"^x must be an array .*shape_or_x.*, got the list \[3\];"),
    ],
)
def test_errors_do_not_rely_on_the_checked_annotations_of_these_tests(labels, shape, message):
    """The messages of the library, without the checks that the import hook adds."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(TypeError, match=message):
            gj.sample(quick_keys(2), gj.branches(M.denoise, cond=labels), gj.chain(), gj.ddim(), LEVELS, shape)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_the_correct_arguments_are_accepted():
    COMPILED.clear()
    assert np.isfinite(gj.sample(**GOOD)).all()
    assert COMPILED
