"""Tests that numbers outside a parameter's range raise an error that names the function and the parameter.

Every numeric parameter of every public guidance, sampler, scale, spacing, schedule, target and training function gets NaN,
infinities, and numbers too large for float32.
"""

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidance_jax as gj
from guidance_jax import guidance, samplers, scales, schedules, spacings, targets, training

B, SHAPE = 2, (4, 2)
ONES = lambda *shape: jnp.asarray(np.ones(shape), float)
X, LABELS, KEY = ONES(B, *SHAPE), jnp.array([0, 1]), jax.random.key(0)
KEYS = jax.random.wrap_key_data(jnp.asarray(np.arange(4, dtype=np.uint32).reshape(2, 2)))
COSINE, FLOW = gj.schedules.cosine(), gj.schedules.flow(t_max=0.99)


def cosine(t):
    """The level of the cosine schedule at a time, or those at several, by NumPy: collecting the tests compiles nothing."""
    return gj.NoiseLevel(*(jnp.asarray(field, float) for field in (t, np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t))))


LEVEL, NEXT, PATH = cosine(np.array(0.5)), cosine(np.array(0.4)), cosine(np.array([0.9, 0.5, 0.1, 0.0]))
CLOSE = lambda x0: -((x0 - 1) ** 2).mean((1, 2))
NOISY = lambda x, level: CLOSE(x)
CFG = gj.cfg(2.0)
NAMES = ("cond", "uncond", "weak", "perturbed", "random", "retimed", "negative", "image")
SCALED = gj.denoiser(lambda x, t, c: x * c[:, None, None], "x0")
NETWORK = gj.branches(SCALED, batched=True, **{name: jnp.array([0.0, 1.0]) for name in NAMES})
BAD = {"nan": jnp.nan, "inf": jnp.inf, "-inf": -jnp.inf, "1e39": 1e39}

ARGUMENTS = {
    guidance: {
        "apg": {"scale": 2.0},
        "beta_cfg": {"scale": 2.0},
        "classifier": {"log_prob": NOISY, "scale": 1.0},
        "compose": {"scales": lambda v: {"cond": v}},
        "dps": {"measure": lambda x: x, "measurement": lambda v: np.full((B, *SHAPE), v), "rate": 0.1},
        "dual_cfg": {"scale": 2.0, "middle_scale": 1.5},
        "during": {"guidance": CFG, "low": 0.1, "high": 1e30},
        "fdg": {"scales": lambda v: (v, 2.0)},
        "freedom": {"log_prob": CLOSE, "rate": 0.1},
        "masked": {"guidance": CFG, "mask": 1.0},
        "lgd": {"log_prob": CLOSE, "scale": 1.0},
        "linear_reuse": {"scale": 2.0, "coefficients": lambda v: np.array([1.0, v, 1.0])},
        "mean_shift": {"log_prob": NOISY, "scale": 1.0},
        "mpgd": {"log_prob": CLOSE, "rate": 0.1},
        "perp_neg": {"scale": 2.0, "negatives": lambda v: {"negative": v}},
        "pigdm": {"measure": lambda x: x, "pseudoinverse": lambda y: y, "measurement": lambda v: np.full((B, *SHAPE), v)},
        "recfg": {"scale": 2.0, "ratio": 0.9},
        "reuse": {"guidance": CFG, "every": 2},
        "adaptive": {"guidance": CFG},
        "tfg": {"log_prob": CLOSE, "rho": 0.1, "mu": 0.1},
        "universal": {"log_prob": CLOSE, "scale": 0.1, "rate": 0.1},
        "unless_one": {"guidance": CFG},
    },
    samplers: {
        "dpmpp_2s": {"schedule": COSINE, "eta": 0.5},
        "churn": {"sampler": gj.heun(), "schedule": COSINE, "amount": 0.1, "low": -1e30, "high": 1e30},
        "forget": {"sampler": gj.dpmpp_2m()},
        "inpaint": {"sampler": gj.ddpm(), "known": lambda v: v, "mask": 1.0},
        "post_step": {"sampler": gj.ddim(), "log_prob": NOISY, "scale": 1.0},
        "predictor_corrector": {"predictor": gj.ddim()},
        "restart": {"sampler": gj.heun(), "schedule": COSINE, "steps": 2, "times": 2, "low": 1e-9, "high": 1e30},
        "projected": {"sampler": gj.ddim(), "project": lambda x: x},
        "recur": {"sampler": gj.ddim(), "times": 2, "low": 0.1, "high": 1e30},
    },
    scales: {name: {"schedule": COSINE, "scale": 2.0, "min": 1.0, "power": 2.0} for name in scales.__all__}
    | {"calibrated": {"curve": gj.Curve(jnp.array([0.1, 10.0]), jnp.array([1.0, 0.1])), "scale": 2.0}},
    spacings: {},
    schedules: {
        "below": {"path": PATH, "ratio": 5.0},
        "discrete": {"betas": lambda v: np.array([1e-3, v])},
        "flow": {"t_max": 0.99},
        "shift": {"schedule": FLOW, "factor": 3.0},
        "strength": {"path": PATH, "share": 0.5},
    },
    targets: {
        "annealed": {"beta": 2.0},
        "product": {"exponents": lambda v: {"cond": v}, "rest": "uncond"},
        "tilted": {"scale": 2.0},
    },
    training: {
        "classifier_loss": {"classify": lambda x, t: x[:, 0], "key": KEY, "x0": X, "level": LEVEL, "labels": LABELS},
        "denoising_loss": {"network": lambda x, t, c: x, "key": KEY, "x0": X, "level": LEVEL, "cond": None, "predicts": "v"},
        "diffuse": {"key": KEY, "level": LEVEL},
        "drop": {"key": KEY, "cond": ONES(B, 3), "null": lambda v: v, "rate": 1.0},
        "edm_loss": {"network": lambda x, t, c: x, "key": KEY, "x0": X, "level": LEVEL, "cond": None, "sigma_data": 0.5},
        "ema": {"average": ONES(2), "params": ONES(2), "step": 3},
        "log_normal_levels": {"key": KEY, "schedule": COSINE, "n": 2},
        "min_snr": {"level": cosine(np.array([0.3, 0.6])), "predicts": "v"},
    },
}
"""The other arguments of each function. A function of `v` puts the number into an argument that is not itself a number."""
OPEN = {
    ("apg", "max_norm"): {"inf"},
    ("clip_norm", "max_norm"): {"inf"},
    ("dynamic_threshold", "limit"): {"inf"},
    ("adaptive", "threshold"): {"inf", "-inf"},
    ("during", "low"): {"-inf"},
    ("during", "high"): {"inf"},
    ("recur", "low"): {"-inf"},
    ("recur", "high"): {"inf"},
    ("churn", "low"): {"-inf"},
    ("churn", "high"): {"inf"},
    ("below", "ratio"): {"inf"},
    ("forget", "ratios"): {"inf"},
    ("min_snr", "gamma"): {"inf"},
}
"""Parameters for which an infinite number has a meaning: bounds."""
NUMBERS = re.compile(
    "Scale|ArrayLike|Scalar|float|Number|Sample|AtLeast|Positive|Negative|Fraction|Ratio|Integer|Period|Mask|Share|Known|Rates|"
    "Cosine|Cutoff|Exponent|Infinite|Limit|Percentile|Power|Prior|Rate|Sigma|Temperature|Time"
)
"""The annotations of numbers."""


FUNCTIONS = ("classify", "log_prob", "measure", "network", "project", "pseudoinverse", "schedule")
"""The parameters that are functions, or may be."""


def parameters():
    """The numeric parameters of every public function, by their annotations, and the arguments that ARGUMENTS puts a number
    into.
    """
    for room, given in ARGUMENTS.items():
        for name in room.__all__:
            function = getattr(room, name)
            if not inspect.isfunction(function) or name in (
                "levels",
                "rewarded",
                "source",
                "direction",
                "stateless",
                "add",
                "chain",
                "drift",
            ):
                continue
            for parameter in inspect.signature(function).parameters.values():
                into = given.get(name, {}).get(parameter.name)
                numeric = NUMBERS.search(str(parameter.annotation)) and "Callable" not in str(parameter.annotation)
                wraps = callable(into) and parameter.name not in FUNCTIONS
                if wraps or (numeric and not callable(into) and "Float[" not in str(parameter.annotation)):
                    yield room, name, parameter.name


PARAMETERS = list(parameters())


def made(room, name, parameter, value):
    """The arrays that a function computes, used as intended, with a value for one of its parameters."""
    function, given = getattr(room, name), dict(ARGUMENTS[room].get(name, {}))
    into: Any = given.get(parameter)
    own = inspect.signature(function).parameters
    if room is guidance and "scale" in own:
        given.setdefault("scale", 2.0)
    given = {
        key: (into if key == parameter else g)(1.0) if g is given.get(key) and _puts(key, g) else g for key, g in given.items()
    }
    given[parameter] = into(value) if _puts(parameter, into) else value
    several = own[parameter].kind is inspect.Parameter.VAR_POSITIONAL
    rest = [given.pop(parameter)] if several else []
    named = {key: g for key, g in given.items() if key in own}
    result = function(*named.values(), *rest) if several else function(**named)
    if room is guidance:
        shape = gj.State(X, (), result.init(X), jnp.int32(0), jnp.zeros_like(X))
        return gj.guide(NETWORK, result, gj.Step(jnp.int32(0), LEVEL, NEXT, KEYS))(shape, LEVEL)[0]
    if room is samplers:
        state = gj.State(X, result.init(X), (), jnp.int32(0), jnp.zeros_like(X))
        denoise = gj.guide(NETWORK, gj.chain(), gj.Step(jnp.int32(0), LEVEL, NEXT, KEYS))
        return result.step(denoise, state, LEVEL, NEXT, KEYS).x
    if room is scales:
        return result(LEVEL)
    if room is spacings:
        return result(COSINE, 3)
    return result(0.5).alpha if isinstance(result, gj.Schedule) else result


def _puts(parameter, value):
    return callable(value) and parameter not in (*FUNCTIONS, "guidance", "sampler")


def test_every_room_has_numeric_parameters():
    assert len(PARAMETERS) > 100
    assert {room for room, *_ in PARAMETERS} == set(ARGUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "name", "parameter"), PARAMETERS, ids=[f"{name}-{parameter}" for _, name, parameter in PARAMETERS]
)
def test_a_number_outside_the_range_raises(room, name, parameter):
    for bad, value in BAD.items():
        if bad in OPEN.get((name, parameter), ()):
            continue
        with pytest.raises((ValueError, TypeError)) as caught:
            jax.eval_shape(lambda value=value: jax.tree.leaves(made(room, name, parameter, value)) and X)
        message = str(caught.value)
        assert "guidance_jax" in str(caught.traceback[-1].path), (bad, message)
        assert name in message or parameter in message, (bad, message)
        assert re.search("nan|inf|e.?39", message, re.IGNORECASE), (bad, message)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameter"), OPEN)
def test_an_infinite_bound_is_no_bound(name, parameter):
    room = next(room for room, given, _ in PARAMETERS if given == name)
    for bad in OPEN[name, parameter]:
        found = jax.jit(lambda bad=bad: jax.tree.leaves(made(room, name, parameter, BAD[bad])))()
        assert found
        assert all(np.isfinite(leaf).all() for leaf in found)
