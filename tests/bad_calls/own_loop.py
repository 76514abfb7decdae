# type: ignore  # every row is wrong, its types too
"""Wrong calls of the guided denoiser in a custom loop and in a custom sampler, with known values and inside `jit`."""

import jax
import jax.numpy as jnp

import guidance_jax as gj
from bad_calls.world import LEVEL, MIXTURE, PATH, STEP, TORCH, TWO, Row, Tensor, X

STATE = gj.State(X, (), (), jnp.int32(0), X)
NOWHERE = gj.NoiseLevel(jnp.array(0.0), jnp.array(1.0), jnp.array(jnp.nan))
PATH_FOR_LEVEL = r"the level must be \(\) or \[B\] = \(2,\), got shape \(4,\); for one level of a path, use levels\[0\]"


def called(x=X, level=LEVEL, *memory, guidance=None):
    return gj.guided(TWO, gj.cfg(3.0) if guidance is None else guidance)(x, level, *memory)


def step(state=STATE, level=LEVEL):
    return gj.guide(TWO, gj.cfg(3.0), STEP)(state, level)


CALLS: dict[str, Row] = {
    "no memory": (
        lambda x: called(x, guidance=gj.chain(gj.cfg(3.0), gj.momentum(-0.5))),
        ValueError,
        r"guided: memory must be of chain\(cfg\(scale=3\.0\), momentum\(.*-0\.5\)\).*got None; use denoise\.init\(x\)",
    ),
    "a number for a memory": (
        lambda x: called(x, LEVEL, 3, guidance=gj.reuse(gj.cfg(3.0), 2)),
        TypeError,
        r"guided: memory must be .*got the int 3; use denoise\.init\(x\)",
    ),
    "the memory of another guidance": (
        lambda x: called(x, LEVEL, gj.guided(TWO, gj.cfg(3.0)).init(x), guidance=gj.reuse(gj.cfg(3.0), 2)),
        ValueError,
        r"guided: memory.*reuse\(.*denoise\.init\(x\)",
    ),
    "a whole path for a level": (lambda x: called(x, PATH), ValueError, PATH_FOR_LEVEL),
    "a whole path for a level of a step": (lambda x: step(STATE._replace(x=x), PATH), ValueError, PATH_FOR_LEVEL),
    "a number for a level": (
        lambda x: called(x, 0.5),
        TypeError,
        r"the level must be a NoiseLevel, got the float 0\.5; use schedule\(t\)",
    ),
    "a schedule for a level": (
        lambda x: called(x, gj.schedules.edm()),
        TypeError,
        r"the level must be a NoiseLevel, got the Schedule edm\(\); use schedule\(t\)",
    ),
    "a level of NaN": (lambda x: called(x, NOWHERE), ValueError, r"the level's \(alpha, sigma\).* must be finite, got NaN"),
    "x where a state is wanted": (
        lambda x: step(x),
        TypeError,
        r"takes \(state, level\), got float32\[2,2\] for the state.*gj\.guided\(branches, guidance\)\(x, level\)",
    ),
    "a state where x is wanted": (
        lambda x: called(STATE._replace(x=x)),
        TypeError,
        r"guided: x must be an array \[B, \.\.\.\] of floating numbers, got a State.*state\.x",
    ),
    "x of integers": (
        lambda x: called(x.astype(int)),
        TypeError,
        r"guided: x must be an array .* of floating numbers, got int32\[2,2\]",
    ),
    "x of another batch": (
        lambda x: called(jnp.concatenate([x, x])),
        ValueError,
        r"branch 'cond' must be \[B, \.\.\.\] with B = 4, one per sample of x, got shape \(2,\)",
    ),
    "x of another batch, to evaluate": (
        lambda x: gj.evaluate(TWO, x[:1], STEP, LEVEL, {"cond": True}),
        ValueError,
        r"branch 'cond' must be \[B, \.\.\.\] with B = 1, one per sample of x, got shape \(2,\)",
    ),
    "x of PyTorch": (lambda x: called(Tensor(2, 2)), TypeError, rf"guided: x must be.*{TORCH}"),
    "a branch that is not there": (
        lambda x: called(x, guidance=gj.cfg(3.0, cond="con")),
        ValueError,
        r"reads a branch 'con', but there are only 'cond'.*[Dd]id you mean",
    ),
    "no guidance": (
        lambda x: called(x, guidance=gj.cfg),
        TypeError,
        r"guided: guidance must be a Guidance, got the function cfg: call it, cfg\(\.\.\.\)",
    ),
    "a denoiser for branches": (
        lambda x: gj.guided(MIXTURE.denoise, gj.cfg(3.0))(x, LEVEL),
        TypeError,
        r"branches must be a Branches, got .*gj\.branches\(denoise",
    ),
}

ROWS: dict[str, Row] = {name: (lambda call=call: call(X), *expected) for name, (call, *expected) in CALLS.items()}
ROWS |= {f"{name}, inside jit": (lambda call=call: jax.jit(call)(X), *expected) for name, (call, *expected) in CALLS.items()}
