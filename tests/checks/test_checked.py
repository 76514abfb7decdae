"""Tests of `checks.checked`: it checks traced values inside the program, and without it the program is unchanged."""

import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from quick import quick_keys
from worlds import classes, mixture

import guidance_jax as gj
from guidance_jax import checks
from guidance_jax.checks import traced

B = 3
LABELS = jnp.asarray(np.arange(B), int)
X = jnp.asarray(np.ones((B, 3)), float)


@functools.cache
def path():
    return gj.levels(gj.schedules.edm(), 3, gj.spacings.karras())


def with_sigma(number, sigma):
    """The path with another sigma at one level."""
    return path().replace(sigma=jnp.where(np.arange(4) == number, sigma, path().sigma))


def two(labels=LABELS):
    denoise = gj.denoiser(lambda x, t, label: jnp.tanh(x) + label[:, None].astype(x.dtype), predicts="x0")
    return gj.branches(denoise, cond=labels, uncond=0 * labels - 1)


def of_a_mixture(labels):
    """The branches of a mixture whose classes are known in the program."""
    with jax.ensure_compile_time_eval():
        known = mixture()
    return classes(known, labels)


in_a_checked_program = functools.cache(gj.checked)


def generate(scale=2.0, levels=None, x=None, guidance=gj.cfg, sampler=None, branches=None):
    start, levels = X if x is None else x, path() if levels is None else levels
    return gj.sample(quick_keys(B), branches or two(), guidance(scale), sampler or gj.ddim(), levels, start)


def interval(scale):
    return gj.chain(gj.during(gj.reuse(gj.cfg(scale), 2), 0.1, 100.0), gj.clip_norm(scale))


def classified(scale):
    return gj.classifier(lambda x, level: -((x - 1) ** 2).sum(1) / (1 + level.sigma**2), scale)


@functools.cache
def checked():
    return gj.checked(generate)


WRONG = {
    "a scale": (lambda: {"scale": jnp.nan}, r"cfg: scale must be a finite number, got nan"),
    "one of the scales": (
        lambda: {"scale": jnp.array([1.0, jnp.inf, 2.0])},
        r"cfg: scale must be a finite number, got .*inf",
    ),
    "levels": (lambda: {"levels": with_sigma(1, 90.0)}, r"(?s)levels must decrease.*sigma .*9"),
    "a level of NaN": (lambda: {"levels": with_sigma(1, jnp.nan)}, r"(?s)levels must have finite.*nan"),
    "tiny levels": (lambda: {"levels": with_sigma(2, 1e-30)}, r"(?s)levels must have finite.*at least 1\.1e-19 unless it is 0"),
    "x": (lambda: {"x": jnp.full((B, 3), jnp.inf)}, r"x must be finite at the start of the run, got NaN"),
}
"""Arguments of one program, except for the case with one scale per sample."""


def grouped(labels):
    target = gj.targets.rewarded(gj.targets.tilted(1.5), lambda x0, level: jnp.where(labels == 2, jnp.nan, -(x0**2).sum(1)))
    return gj.feynman_kac(quick_keys(4), two(labels % 2), target, gj.ddpm(), path(), (3,), size=2).x


MORE = {
    "a label": (
        lambda labels: generate(branches=of_a_mixture(labels)),
        jnp.array([0, 7, 2]),
        r"label .*7.* is outside -1\.\.2",
    ),
    "an interval": (
        lambda low: generate(guidance=lambda w: gj.during(gj.cfg(w), low, 1.0)),
        5.0,
        r"during: low must be below high, .*got low 5.* and high 1",
    ),
    "recurrence": (
        lambda low: generate(sampler=gj.recur(gj.ddim(), 2, low, 1.0)),
        5.0,
        r"recur: low must be below high, got low 5.* and high 1",
    ),
    "a group": (grouped, jnp.array([0, 1, 0, 0]), r"branches\['cond'\] differs within a group of 2 particles"),
    "a reward": (grouped, jnp.array([2, 2, 0, 0]), r"log_reward returned NaN or inf at sigma"),
    "known data": (
        lambda known: generate(sampler=gj.inpaint(gj.ddpm(), known, 1)),
        jnp.nan,
        r"inpaint: known must be finite inside the mask, got NaN .* 1 places",
    ),
    "a beta": (lambda beta: gj.targets.annealed(beta).exponents, jnp.nan, r"annealed: beta must be a positive number, got nan"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:feynman_kac")
@pytest.mark.parametrize("name", MORE)
def test_traced_values_are_checked_wherever_known_values_are(name):
    call, wrong, message = MORE[name]
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        in_a_checked_program(call)(wrong)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_traced_value_raises(name):
    make, message = WRONG[name]
    right = {"scale": 2.0, "levels": path(), "x": X}
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        checked()(**right | make())


@pytest.mark.parametrize("guidance", [interval, classified])
def test_checks_work_inside_branches_of_the_program_and_gradients(guidance):
    run = gj.checked(lambda scale: generate(scale, guidance=guidance, sampler=gj.heun()))
    np.testing.assert_allclose(
        run(1.5), jax.jit(lambda scale: generate(scale, guidance=guidance, sampler=gj.heun()))(1.5), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(checkify.JaxRuntimeError, match="must be"):
        run(jnp.nan)


def test_the_error_names_the_step_that_diverged():
    wild = gj.stateless(
        lambda prediction, context: prediction.replace(x0=jnp.where(context.step.number == 1, jnp.inf, prediction.x0))
    )
    with pytest.raises(checkify.JaxRuntimeError, match="x is not finite after step 1"):
        gj.checked(lambda scale: generate(scale, guidance=lambda scale: wild))(2.0)


def test_a_function_that_was_compiled_before_is_checked_too():
    compiled = jax.jit(lambda scale: generate(scale))
    assert np.isnan(compiled(jnp.nan)).all()
    with pytest.raises(checkify.JaxRuntimeError, match="finite"):
        gj.checked(compiled)(jnp.nan)
    assert np.isnan(compiled(jnp.nan)).all()


def insisting():
    """The modules of `checks` that check traced values."""
    modules = [importlib.import_module(f"guidance_jax.checks.{found.name}") for found in pkgutil.iter_modules(checks.__path__)]
    return [module for module in modules if hasattr(module, "insist")]


def test_an_unchecked_program_contains_no_checks(monkeypatch):
    program = lambda: str(jax.make_jaxpr(lambda *given: generate(*given))(2.0, path(), X))
    asked_not = program()
    monkeypatch.setattr(traced.checkify, "check", lambda *_, **__: pytest.fail("a check is in the program"))
    with monkeypatch.context() as none:
        for module in insisting():
            none.setattr(module, "insist", lambda *_, **__: None)
        assert asked_not == program()
