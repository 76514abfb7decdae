"""Every guidance that diffusers implements as a guider, against that guider."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import (
    STEPS,
    close,
    cumulative,
    diffusers,
    from_torch,
    guide,
    guiders,
    levels_of,
    network,
    prepared,
    to_torch,
    torch,
    walk,
)
from worlds import keys, step

import guidance_jax as gj

WORLDS = {"x0": (5, 6), "eps": (3, 4, 8, 2), "v": (4, 5, 3), "velocity": (1, 8, 4, 3)}
"""The space in which a guider acts, and the shape there."""
K = 2.8
NAMES = ("cond", "uncond", "perturbed", "modality")


def in_space(method):
    return lambda w, space: gj.in_space(space, method(w))


AUTO = {"auto_guidance_layers": 0, "dropout": 0.1}
PAG = {"perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0, "perturbed_guidance_layers": 0}
SLG = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0, "skip_layer_guidance_layers": 0}
PERTURBED = {
    "pag": functools.partial(guiders.PerturbedAttentionGuidance, perturbed_guidance_scale=K, **PAG),
    "slg": functools.partial(guiders.SkipLayerGuidance, skip_layer_guidance_scale=K, **SLG),
    "seg": functools.partial(guiders.SmoothedEnergyGuidance, seg_guidance_scale=K, seg_guidance_layers=0),
}
METHODS: dict[str, tuple[Iterable[Any], Callable[..., gj.Guidance]]] = {
    "cfg": ([guiders.ClassifierFreeGuidance], in_space(gj.cfg)),
    "autoguidance": (
        [functools.partial(guiders.AutoGuidance, **AUTO)],
        in_space(lambda w: gj.autoguidance(w, weak="uncond")),
    ),
    "cfg_zero_star": (
        [functools.partial(guiders.ClassifierFreeZeroStarGuidance, zero_init_steps=2)],
        lambda w, space: gj.cfg_zero_star(w, 2, predicts=space),
    ),
    "tcfg": ([guiders.TangentialClassifierFreeGuidance], in_space(gj.tcfg)),
    "mambo_g": (
        [functools.partial(guiders.MagnitudeAwareGuidance, alpha=0.9)],
        in_space(lambda w: gj.mambo_g(w, 0.9)),
    ),
    "perturbed": (PERTURBED.values(), in_space(lambda w: gj.chain(gj.cfg(w), gj.perturbed(K)))),
}


def draw(shape, seed=0) -> tuple[Any, dict[str, Any]]:
    """x, and the network's output of each branch. The outputs are similar, as those of a trained network."""
    rng = np.random.default_rng(seed)
    shared, dtype = rng.normal(size=shape), jnp.result_type(float)
    outputs = {name: jnp.asarray(shared + 0.5 * rng.normal(size=shape), dtype) for name in NAMES}
    return jnp.asarray(rng.normal(size=shape), dtype), outputs


@functools.partial(jax.jit, static_argnums=2)
def read(outputs, x, space):
    """The predictions of networks with these outputs."""
    denoise, level = gj.denoiser(lambda x, t, output: output, predicts=space), gj.schedules.cosine()(0.6)
    return {name: denoise(x, level, output) for name, output in outputs.items()}, level


def ours(method, space):
    """The prediction of the guidance `method(*parameters)` and its state, compiled once."""

    @jax.jit
    def call(parameters, x, outputs, number=3, state=None):
        predictions, level = read(outputs, x, space)
        context = gj.Context(x, level, step(level, number=number, batch=len(x)), predictions["cond"], predictions)
        guidance = method(*parameters)
        return guidance.update(context.base, guidance.init(x) if state is None else state, context)

    return call


def same(prediction, output, x, space, tolerance):
    """Compares a prediction with that of a network with this output."""
    theirs = read({"theirs": from_torch(output)}, x, space)[0]["theirs"]
    close(prediction.x0, theirs.x0, tolerance)
    close(prediction.eps, theirs.eps, tolerance)


def each(make, outputs, number=3):
    """The i-th guider's prediction of the i-th sample. Every guider receives the whole batch."""
    predictions = {name: to_torch(output) for name, output in outputs.items()}
    batch = range(len(outputs["cond"]))
    return torch.stack([guide(make(i), predictions, number, STEPS)[i] for i in batch])


SPACES = dict(zip(METHODS, itertools.cycle([("x0", "v"), ("eps", "velocity")]))) | {"cfg": tuple(WORLDS)}
"""Where each method is compared. The way into a space is the same for all of them."""
CASES = [(name, space, 1e-8) for name, spaces in SPACES.items() for space in spaces] + [(name, "x0", 1e-5) for name in METHODS]


@pytest.mark.parametrize(("name", "space", "tolerance"), CASES, indirect=["tolerance"])
def test_the_guider_agrees_for_every_sample_at_its_own_scale(name, space, tolerance):
    kinds, method = METHODS[name]
    # The norm of diffusers' mambo_g raises for more than two axes after the batch.
    x, outputs = draw(WORLDS[space][: 3 if name == "mambo_g" else None])
    w = np.linspace(7.5, -0.7, len(x))
    # diffusers rescales the network's output, in which the guider acts.
    mine = ours(lambda w, phi: gj.chain(method(w, space), gj.in_space(space, gj.rescale(phi))), space)
    for phi in (0 * w, np.linspace(1, 0.2, len(x))):
        prediction, _ = mine((w, phi), x, outputs)
        # In the original formulation, scale 0 is the conditional model.
        for kind, original in itertools.product(kinds, (False, True)):
            make = lambda i, phi=phi, kind=kind, original=original: kind(
                guidance_scale=w[i] - original, guidance_rescale=phi[i], use_original_formulation=original
            )
            same(prediction, each(make, outputs), x, space, tolerance)


@pytest.mark.parametrize(
    ("scales", "space", "shape"),
    [((10.0, 5.0), "x0", (3, 16, 8, 3)), ((3.0, -0.5, 1.7), "eps", (2, 16, 12, 4))],
    ids=["2 levels", "3 levels"],
)
def test_fdg_is_kornias_pyramid(scales, space, shape, tolerance):
    pytest.importorskip("kornia", reason="diffusers takes the pyramid of FDG from kornia")
    # kornia pads to powers of two, and diffusers returns the padded size if neither side is 1 or a side cannot be halved.
    x, outputs = draw(shape)
    predictions = {name: to_torch(output) for name, output in outputs.items()}
    mine = ours(lambda phi, *scales: gj.in_space(space, gj.chain(gj.fdg(scales), gj.rescale(phi))), space)
    for phi in (0.0, 0.7):
        prediction, _ = mine((phi, *scales), x, outputs)
        for original in (False, True):
            theirs = guiders.FrequencyDecoupledGuidance(
                guidance_scales=[w - original for w in scales], guidance_rescale=phi, use_original_formulation=original
            )
            same(prediction, guide(theirs, predictions), x, space, tolerance)


@pytest.mark.parametrize("space", ["x0", "eps"])
def test_apg_agrees_through_the_steps_of_a_run(space, tolerance):
    def method(w, beta, max_norm, eta):
        return gj.in_space(space, gj.apg(w, beta=beta, max_norm=max_norm, eta=eta))

    def from_u(w, *parameters):
        # In its native formulation diffusers adds w times the difference to u. The paper adds w - 1 times the difference to c.
        return gj.add(method(w + 1, *parameters), gj.cfg(0.0))

    formulations = ((method, ours(method, space), True), (from_u, ours(from_u, space), False))
    # diffusers writes no momentum as None, and no bound on the length as 0.
    for beta, most, eta in [(None, 0.0, 1.0), (-0.5, 0.0, 0.0), (None, 2.5, 0.3), (-0.75, 1.2, 0.0), (0.4, 9.0, 0.6)]:
        for build, mine, original in formulations:
            theirs = guiders.AdaptiveProjectedGuidance(
                guidance_scale=4.0 - original,
                adaptive_projected_guidance_momentum=beta,
                adaptive_projected_guidance_rescale=most,
                eta=eta,
                use_original_formulation=original,
            )
            parameters = (4.0, beta or 0.0, most or np.inf, eta)
            state = build(*parameters).init(draw(WORLDS[space])[0])
            for number in range(4):
                x, outputs = draw(WORLDS[space], seed=number)
                prediction, state = mine(parameters, x, outputs, number, state)
                output = guide(theirs, {name: to_torch(output) for name, output in outputs.items()}, number, steps=4)
                same(prediction, output, x, space, tolerance)


def test_zero_star_is_zero_in_the_first_steps(tolerance):
    x, outputs = draw((4, 6))
    mine = ours(lambda: gj.cfg_zero_star(3.0, 2), "velocity")
    for number in range(4):
        make = lambda i: guiders.ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=2)
        output = each(make, outputs, number)
        assert bool(output.any()) == (number >= 2)
        same(mine((), x, outputs, number)[0], output, x, "velocity", tolerance)


def test_a_perturbed_branch_without_cfg_agrees(tolerance):
    x, outputs = draw((4, 6))
    mine = ours(gj.perturbed, "eps")
    for kind, original in itertools.product(PERTURBED.values(), (False, True)):
        make = lambda i, kind=kind, original=original: kind(guidance_scale=1.0 - original, use_original_formulation=original)
        # Without CFG the native formulation counts the scale from the perturbed prediction, the original one from cond.
        prediction, _ = mine((K if original else K - 1,), x, outputs)
        same(prediction, each(make, outputs), x, "eps", tolerance)


def test_three_terms_at_once_agree(tolerance):
    """LTX-2's guider adds all terms to cond. Scale 1 of the third term turns it off."""
    x, outputs = draw((4, 6))
    method = lambda: gj.chain(gj.cfg(3.0), gj.perturbed(K), gj.perturbed(1.5, weak="modality"), gj.rescale(0.7))
    make = lambda i: guiders.LTX2Guidance(guidance_scale=3.0, stg_scale=K, modality_scale=2.5, guidance_rescale=0.7)
    same(ours(method, "x0")((), x, outputs)[0], each(make, outputs), x, "x0", tolerance)


def during(guidance, levels, start, stop):
    """The steps from `start` to `stop`, which is excluded, counted from 0."""
    return gj.during(guidance, levels.ratio[stop], levels.ratio[start])


RUNS = {
    # Guided steps are int(start N) <= i < int(stop N), for N = STEPS = 10. A perturbed branch needs int(start N) < i.
    "cfg": (
        lambda: guiders.ClassifierFreeGuidance(3.0, start=0.25, stop=0.8),
        lambda levels: during(gj.cfg(3.0), levels, 2, 8),
    ),
    "to the end": (lambda: guiders.ClassifierFreeGuidance(3.0, start=0.5), lambda levels: during(gj.cfg(3.0), levels, 5, 10)),
    "rescaled": (
        lambda: guiders.ClassifierFreeGuidance(3.0, guidance_rescale=0.7, start=0.1, stop=0.6),
        lambda levels: gj.in_space("eps", gj.chain(during(gj.cfg(3.0), levels, 1, 6), gj.rescale(0.7))),
    ),
    "apg": (
        lambda: guiders.AdaptiveProjectedGuidance(
            2.0,
            adaptive_projected_guidance_momentum=-0.5,
            adaptive_projected_guidance_rescale=2.0,
            eta=0.2,
            use_original_formulation=True,
            start=0.2,
            stop=0.7,
        ),
        lambda levels: during(gj.in_space("eps", gj.apg(3.0, beta=-0.5, max_norm=2.0, eta=0.2)), levels, 2, 7),
    ),
    "pag": (
        lambda: guiders.PerturbedAttentionGuidance(
            2.0,
            perturbed_guidance_scale=K,
            perturbed_guidance_start=0.3,
            perturbed_guidance_stop=0.9,
            perturbed_guidance_layers=0,
            use_original_formulation=True,
            start=0.1,
            stop=0.6,
        ),
        lambda levels: gj.chain(during(gj.cfg(3.0), levels, 1, 6), during(gj.perturbed(K), levels, 4, 9)),
    ),
    "cfg_zero_star": (
        lambda: guiders.ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=2),
        lambda levels: gj.cfg_zero_star(3.0, 2, predicts="eps"),
    ),
}


@pytest.mark.parametrize("tolerance", [1e-8], indirect=True)
@pytest.mark.parametrize("name", RUNS)
def test_intervals_and_states_agree_through_a_whole_run(name, tolerance):
    make, method = RUNS[name]
    scheduler, guider = prepared(diffusers.DDIMScheduler(clip_sample=False)), make()
    levels = levels_of(scheduler, cumulative)
    x, conds = draw((4, 4, 8, 2))

    def output(number, x, t):
        return guide(guider, {name: network(torch, x, t, to_torch(cond)) for name, cond in conds.items()}, number, STEPS)

    denoise = gj.denoiser(lambda x, t, cond: network(jnp, x, t, cond), predicts="eps")
    mine = gj.sample(keys(4), gj.branches(denoise, **conds), method(levels), gj.ddim(), levels, x)
    close(mine, from_torch(walk(scheduler, output, to_torch(x))), tolerance)
