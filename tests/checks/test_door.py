"""Tests of the decorators `door` and `part`: they check annotations at every public call and keep signatures."""

import inspect
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidance_jax as gj
from guidance_jax.checks.door import also, part, rule
from guidance_jax.checks.kinds import Branch, Count, Fraction, Number, Positive, Scale
from guidance_jax.guidance.scales import at


def same(a, b):
    if a is b:
        raise ValueError("the two must differ.")


@part(rule("low must be below high", lambda low, high: low < high), also(lambda name, other: same(name, other)))
def made(
    scale: Scale,
    low: Number = 0.0,
    high: Positive = 1.0,
    *parts: gj.Guidance,
    count: Count = 1,
    eta: Fraction = 0.5,
    name: Branch = "a",
    other: Branch | None = None,
    scales: Mapping[Branch, Scale] = {},
    several: Sequence[Scale] = (),
) -> gj.Guidance:
    """The sum of its own scale and all others, as a guidance of x0."""

    def update(prediction, context):
        return prediction.x0 + sum(at(each, context) for each in (scale, *scales.values(), *several))

    return gj.stateless(update)


anyhow: Any = made
"""`made` without its types, for calls that are wrong on purpose."""

WRONG = {
    "a string": (lambda: anyhow("2"), TypeError, "made: scale must be a finite number.*got the str '2'"),
    "nothing": (lambda: anyhow(), TypeError, "made: scale is missing; it must be a finite number"),
    "an unknown name": (lambda: anyhow(1.0, etta=0.1), TypeError, r"made: .*'etta'.*did you mean eta\?"),
    "one too many": (
        lambda: gj.cfg(1.0, "cond"),  # pyright: ignore[reportCallIssue]
        TypeError,
        "cfg: too many positional arguments; it takes scale, and by name cond, uncond",
    ),
    "not finite": (lambda: made(jnp.nan), ValueError, "made: scale must be .*finite.*got nan"),
    "below": (lambda: made(1.0, 0.0, 0.0), ValueError, "made: high must be a positive number, got 0.0"),
    "too large for float32": (lambda: made(1e39), ValueError, "made: scale.*1e[+]?39.*in float32 as inf"),
    "too large below 0": (lambda: made(-1e39), ValueError, "made: scale.*-1e[+]?39.*in float32 as -inf"),
    "a fraction above": (lambda: made(1.0, eta=1.5), ValueError, r"made: eta must be a number in \[0, 1\], got 1.5"),
    "a count of half": (
        lambda: anyhow(1.0, count=1.5),
        TypeError,
        "made: count must be an integer, at least 1, got the float 1.5",
    ),
    "a count of none": (lambda: made(1.0, count=0), ValueError, "made: count must be an integer, at least 1, got 0"),
    "a bool for a count": (lambda: made(1.0, count=True), TypeError, "made: count must be an integer"),
    "a condition for a name": (
        lambda: anyhow(1.0, name=jnp.ones(2)),
        TypeError,
        r"made: name must be the name of a branch.*float32\[2\]",
    ),
    "a broken rule": (lambda: made(1.0, 2.0, 1.0), ValueError, "made: low must be below high, got low 2.0 and high 1.0"),
    "another check": (lambda: made(1.0, name="b", other="b"), ValueError, "the two must differ"),
    "a wrong one of several": (
        lambda: anyhow(1.0, 0.0, 1.0, gj.chain(), 3.0),
        TypeError,
        r"made: parts\[1\] must be a Guidance.*the float 3.0",
    ),
    "a wrong one by name": (
        lambda: anyhow(1.0, scales={"a": None}),
        TypeError,
        r"made: scales\['a'\] must be a finite number.*None",
    ),
    "a list by name": (lambda: anyhow(1.0, scales=[1.0]), TypeError, "made: scales must be a dictionary, got the list"),
    "a wrong one in a list": (
        lambda: anyhow(1.0, several=(1.0, "2")),
        TypeError,
        r"made: several\[1\] must be a finite number",
    ),
    "a number for a list": (
        lambda: anyhow(1.0, several=2.0),
        TypeError,
        "made: several must be a list or a tuple, got the float",
    ),
    "an array for a number": (
        lambda: made(1.0, jnp.zeros(2)),
        ValueError,
        r"made: low has shape \(2,\), but must be a scalar; use jax.vmap",
    ),
    "not called": (lambda: anyhow(1.0, 0.0, 1.0, gj.cfg), TypeError, r"made: parts\[0\] must be a Guidance.*call it, cfg"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_error_of_a_wrong_argument_names_it_with_what_was_expected_and_what_it_got(name):
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()


def test_the_value_that_a_user_function_returns_is_checked_where_it_is_called():
    run = lambda value: gj.sample(
        jax.random.split(jax.random.key(0), 2),
        gj.branches(gj.denoiser(lambda x, t, c: 0 * x, "x0"), cond=None),
        made(lambda level: value),
        gj.ddim(),
        gj.levels(gj.schedules.edm(), 2, gj.spacings.karras()),
        (1,),
    )
    with pytest.raises(TypeError, match=r"made: scale, a function, must be a finite number.*the str 'a'"):
        run("a")
    with pytest.raises(ValueError, match="made: scale must be finite, got inf"):
        run(np.inf)
    with pytest.raises(ValueError, match=r"made: scale has shape \(3,\), but must be \(\) or \[B\] = \(2,\)"):
        run(jnp.ones(3))


def test_traced_values_are_checked_in_a_checked_program():
    program = gj.checked(jax.jit(lambda scale, low: made(scale, low) and scale))
    assert program(1.0, 0.5) == 1.0
    with pytest.raises(Exception, match=r"made: scale must be a finite number.*got nan"):
        program(jnp.nan, 0.5)
    with pytest.raises(Exception, match=r"made: low must be below high, got low 2.0 and high 1.0"):
        program(1.0, 2.0)


def test_the_decorator_keeps_the_signature_the_help_and_the_types():
    assert (
        str(inspect.signature(gj.cfg))
        == "(scale: Scale, *, cond: Branch = 'cond', uncond: Branch = 'uncond') -> guidance_jax.interfaces.Guidance"
    )
    assert str(gj.cfg.__doc__).startswith("Classifier-free guidance.")
    assert gj.cfg.__module__ == "guidance_jax.guidance.linear"
    assert pickle.loads(pickle.dumps(gj.cfg)) is gj.cfg


def test_a_call_remembers_its_arguments_with_static_ones_apart():
    guidance = made(2.0, 0.1, 3.0, gj.cfg(1.5), count=3, eta=0.0, scales={"x": 4.0}, several=(5.0,))
    assert repr(guidance) == (
        "made(scale=2.0, low=0.1, high=3.0, cfg(scale=1.5), count=3, eta=0.0, scales={'x': 4.0}, several=(5.0,))"
    )
    assert jax.tree.leaves(guidance) == [2.0, 0.1, 3.0, 1.5, 4.0, 5.0]
    again = jax.tree.unflatten(jax.tree.structure(guidance), jax.tree.leaves(guidance))
    assert again == guidance
    assert again != jax.tree.map(lambda leaf: leaf + 1, guidance)
    assert jax.tree.structure(made(1.0)) == jax.tree.structure(made(scale=3.0))
    assert jax.tree.structure(made(1.0, count=2)) != jax.tree.structure(made(1.0))
