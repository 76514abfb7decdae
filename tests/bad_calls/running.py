# type: ignore  # every row is wrong, its types too
"""Wrong runs: keys, branches, conditions, levels, starting points, and parts of the wrong type."""

import jax
import jax.numpy as jnp
import numpy as np

import guidance_jax as gj
from bad_calls.world import (
    EDM,
    KEYS,
    LABELS,
    LEVEL,
    MIXTURE,
    NULL,
    PATH,
    STEP,
    TORCH,
    TWO,
    B,
    Row,
    Tensor,
    X,
    sampled,
    stepped,
)

NAN = PATH.replace(sigma=PATH.sigma.at[1].set(jnp.nan))
UP = gj.schedules.reverse(PATH)
STATE = gj.run(KEYS, TWO, gj.cfg(2.0), gj.dpmpp_2m(), PATH, (2,))[0]
SAME = gj.branches(MIXTURE.denoise, cond=0 * LABELS, uncond=NULL)


def between(cond, uncond=NULL):
    return sampled(branches=gj.branches(MIXTURE.denoise, cond=cond, uncond=uncond))


def denoised(denoise):
    return sampled(branches=gj.branches(denoise, cond=LABELS, uncond=NULL))


def updated(update, init=lambda x: ()):
    return sampled(guidance=gj.Guidance(frozenset(), init, update))


def moved(step):
    return stepped(gj.Sampler(lambda x: (), step))


ROWS: dict[str, Row] = {
    # Keys.
    "keys of PyTorch": (lambda: sampled(keys=Tensor(2)), TypeError, rf"keys.*{TORCH}"),
    "one raw key": (
        lambda: sampled(keys=jax.random.PRNGKey(0)),
        TypeError,
        r"jax\.random\.key .*got uint32\[2\].*jax\.random\.split",
    ),
    "one key, not split": (lambda: sampled(keys=jax.random.key(0)), ValueError, r"\[B\].*shape \(\).*jax\.random\.split"),
    "a matrix of keys": (lambda: sampled(keys=KEYS[:, None]), ValueError, r"\[B\].*shape \(2, 1\)"),
    "a seed for keys": (lambda: sampled(keys=0), TypeError, r"got the int 0.*jax\.random\.split"),
    "a list of keys": (lambda: sampled(keys=list(KEYS)), TypeError, r"array of PRNG keys.*got the list"),
    "no keys, none": (lambda: sampled(keys=None), TypeError, r"array of PRNG keys.*got None"),
    "keys of rbg": (
        lambda: sampled(keys=jax.random.wrap_key_data(jnp.asarray(np.zeros((B, 4), np.uint32)), impl="rbg")),
        ValueError,
        r"generator rbg.*first key.*impl=\"threefry2x32\"",
    ),
    "a state of another sampler": (
        lambda: stepped(gj.ddim(), shape_or_x=STATE),
        ValueError,
        r"its memory must be \(\), .*got .*float32\[2,2\].*state\.x",
    ),
    "a state of another batch": (
        lambda: stepped(gj.dpmpp_2m(), shape_or_x=STATE, keys=KEYS[:1]),
        ValueError,
        r"B = 1.*x of shape \(2, 2\)",
    ),
    "particles from a state": (
        lambda: gj.feynman_kac(KEYS, SAME, gj.targets.tilted(2.0), gj.ddpm(), PATH, STATE, size=2),
        TypeError,
        r"got a State.*state\.x",
    ),
    "data that are a state": (lambda: gj.diffuse(KEYS, STATE, LEVEL), TypeError, r"got a State.*state\.x"),
    "an empty batch": (lambda: sampled(keys=KEYS[:0]), ValueError, r"at least one.*shape \(0,\)"),
    "more keys than x": (lambda: sampled(keys=jax.random.split(KEYS[0], 3), shape_or_x=X), ValueError, r"B = 3.*\(2, 2\)"),
    "more keys than labels": (lambda: sampled(keys=jax.random.split(KEYS[0], 3)), ValueError, r"'cond'.*B = 3.*\(2,\)"),
    # Branches.
    "conditions in their order": (
        lambda: gj.branches(MIXTURE.denoise, LABELS, NULL),
        TypeError,
        r"branches: too many positional.*by name batched, the conds; use gj\.branches\(denoise, cond=labels, uncond=null\)",
    ),
    "conditions in a dictionary": (
        lambda: gj.branches(MIXTURE.denoise, {"cond": LABELS}),
        TypeError,
        r"branches: too many positional.*use gj\.branches\(denoise, cond=labels, uncond=null\)",
    ),
    "conditions in a dictionary, by name": (
        lambda: gj.branches(MIXTURE.denoise, conds={"cond": LABELS, "uncond": NULL}),
        TypeError,
        r"go by name, got a dictionary under the name conds; use branches\(denoise, cond=\.\.\., uncond=\.\.\.\)",
    ),
    "batched in words": (
        lambda: gj.branches(MIXTURE.denoise, batched="no", cond=LABELS),
        TypeError,
        r"branches: batched must be True or False, got the str 'no'",
    ),
    "an unconditional branch": (
        lambda: sampled(branches=gj.branches(MIXTURE.denoise, cond=LABELS, unconditional=NULL)),
        ValueError,
        r"'uncond'.*Rename the branch, gj\.branches\(denoise, uncond=\.\.\.\), or ask for 'unconditional'",
    ),
    "a denoiser for branches": (lambda: sampled(branches=MIXTURE.denoise), TypeError, r"branches.*gj\.branches\(denoise, cond"),
    "a dict for branches": (lambda: sampled(branches={"cond": LABELS}), TypeError, r"branches.*dict.*gj\.branches\(denoise"),
    "no networks": (lambda: sampled(branches=()), ValueError, r"branches must hold a network.*gj\.branches\(denoise"),
    "a denoiser among branches": (lambda: sampled(branches=(TWO, MIXTURE.denoise)), TypeError, r"branches\[1\].*gj\.branches"),
    "two branches of one name": (lambda: sampled(branches=(TWO, TWO)), ValueError, r"unique.*two networks.*'cond'"),
    "a misspelt branch": (
        lambda: sampled(branches=gj.branches(MIXTURE.denoise, cond=LABELS, uncnd=NULL)),
        ValueError,
        r"'uncond'.*Did you mean 'uncnd'",
    ),
    "a branch that is not there": (
        lambda: sampled(guidance=gj.autoguidance(2.0)),
        ValueError,
        r"reads a branch 'weak'.*only 'cond', 'uncond'",
    ),
    "branches without a condition": (lambda: gj.branches(MIXTURE.denoise), ValueError, r"no condition.*cond=labels"),
    "Branches by hand without a condition": (
        lambda: sampled(branches=gj.Branches(MIXTURE.denoise, {})),
        ValueError,
        r"no condition.*cond=labels",
    ),
    "labels for a denoiser": (lambda: gj.branches(LABELS, cond=LABELS), TypeError, r"denoise.*int32\[2\].*gj\.denoiser"),
    "a schedule for a denoiser": (lambda: gj.branches(EDM, cond=LABELS), TypeError, r"denoise.*Schedule.*gj\.denoiser"),
    "a network that no denoiser wraps": (
        lambda: denoised(lambda x, t, y: x),
        TypeError,
        r"a Prediction, got float32\[2,2\].*gj\.denoiser",
    ),
    "a denoiser of x0 and eps, unnamed": (lambda: denoised(lambda x, t, y: (x, x)), TypeError, r"a Prediction, got the tuple"),
    "a denoiser of one number per sample": (
        lambda: denoised(lambda x, t, y: gj.Prediction(x.sum(1), x)),
        ValueError,
        r"x0 .*must be \[2, 2\], got float32\[2\]; .*shaped as x",
    ),
    "a denoiser of another eps": (
        lambda: denoised(lambda x, t, y: gj.Prediction(x, x[:, :1])),
        ValueError,
        r"eps .*must be \[2, 2\], got float32\[2,1\]; .*shaped as x",
    ),
    # Conditions.
    "one null for all": (lambda: between(LABELS, -1), TypeError, r"'uncond'.*got the int -1; use jnp\.full\(2, -1\)"),
    "labels of PyTorch": (lambda: between(Tensor(2, dtype="int64")), TypeError, rf"branch 'cond'.*{TORCH}"),
    "too few labels": (lambda: between(LABELS[:1], NULL[:1]), ValueError, r"'cond'.*B = 2.*\(1,\)"),
    "branches of two dtypes": (
        lambda: between(LABELS, NULL.astype(jnp.int8)),
        ValueError,
        r"int32\[2\] and int8\[2\]; make them equal, or",
    ),
    "branches of two shapes": (lambda: between(LABELS, jnp.zeros((B, 3), int)), ValueError, r"'cond' and 'uncond' differ"),
    "branches of two structures": (
        lambda: between(LABELS, {"y": NULL}),
        ValueError,
        r"'cond' and 'uncond' differ in structure.*int32\[2\] and \{'y': 'int32\[2\]'\}",
    ),
    "one label for all": (lambda: between(jnp.int32(0), jnp.int32(-1)), ValueError, r"'cond'.*\[B, \.\.\.\] with B = 2.*\(\)"),
    "a list of labels": (lambda: between([0, 1], [-1, -1]), TypeError, r"'cond'\[0\].*the int 0.*array"),
    "a prompt, not encoded": (lambda: between("a cat", ""), TypeError, r"'cond'.*the str 'a cat'.*array"),
    "labels as objects": (lambda: between(np.array([0, None]), NULL), TypeError, r"'cond'.*object.*array"),
    "labels as floats": (
        lambda: between(LABELS.astype(float), NULL.astype(float)),
        TypeError,
        r"integer labels.*float32.*astype",
    ),
    "a label too large": (lambda: between(jnp.array([0, 2])), ValueError, r"label 2.*-1\.\.1"),
    "a label too small": (lambda: between(LABELS, jnp.array([-1, -2])), ValueError, r"label -2.*-1\.\.1"),
    "a drawn condition of another batch": (
        lambda: between(LABELS, lambda step: jnp.zeros(3, int)),
        ValueError,
        r"'uncond'.*B = 2.*\(3,\)",
    ),
    "a drawn condition for none": (lambda: between(LABELS, lambda step: None), ValueError, r"'cond' and 'uncond' differ"),
    # Guidances and samplers.
    "cfg, not called": (lambda: sampled(guidance=gj.cfg), TypeError, r"guidance.*function cfg.*call it"),
    "a scale for a guidance": (lambda: sampled(guidance=3.0), TypeError, r"guidance.*the float 3\.0.*cfg\(3\.0\)"),
    "none for a guidance": (lambda: sampled(guidance=None), TypeError, r"guidance.*None.*chain\(\)"),
    "a list of guidances": (lambda: sampled(guidance=[gj.cfg(2.0)]), TypeError, r"guidance.*list.*chain"),
    "a sampler for a guidance": (lambda: sampled(guidance=gj.ddim()), TypeError, r"guidance.*got the Sampler ddim\(\)"),
    "a target for a guidance": (
        lambda: sampled(guidance=gj.targets.tilted(2.0)),
        TypeError,
        r"guidance.*a Target.*feynman_kac",
    ),
    "a guidance for a sampler": (lambda: stepped(gj.cfg(2.0)), TypeError, r"sampler.*got the Guidance cfg"),
    "ddim, not called": (lambda: stepped(gj.ddim), TypeError, r"sampler.*function ddim.*call it"),
    "a sampler's name": (lambda: stepped("ddim"), TypeError, r"sampler.*the str 'ddim'.*ddim\(\)"),
    "none for a sampler": (lambda: stepped(None), TypeError, r"sampler.*None.*ddim\(\)"),
    "the type Sampler": (lambda: stepped(gj.Sampler), TypeError, r"sampler.*class Sampler"),
    "a guidance that returns a prediction alone": (
        lambda: updated(lambda p, s, c: p),
        TypeError,
        r"\(prediction, state\), got a Prediction",
    ),
    "a guidance that returns an array": (
        lambda: updated(lambda p, s, c: (p.x0, s)),
        TypeError,
        r"\(prediction, state\), got the tuple.*float32\[2,2\]",
    ),
    "a guidance that forgets to return": (
        lambda: updated(lambda p, s, c: None),
        TypeError,
        r"\(prediction, state\), got None.*stateless",
    ),
    "a guidance of another x0": (
        lambda: updated(lambda p, s, c: (p.replace(x0=p.x0[:, :1]), s)),
        ValueError,
        r"x0 .*must be \[2, 2\], got float32\[2,1\]; .*shaped as x",
    ),
    "a guidance that remembers another thing": (
        lambda: updated(lambda p, s, c: (p, p.x0), lambda x: x[:, :1]),
        ValueError,
        r"the state .*must match .*2,1.*got float32\[2,2\].*init",
    ),
    "a sampler that returns x": (
        lambda: moved(lambda d, s, a, b, k: s.x),
        TypeError,
        r"step must return a State, got float32\[2,2\]",
    ),
    "a sampler that returns nothing": (
        lambda: moved(lambda d, s, a, b, k: None),
        TypeError,
        r"step must return a State, got None",
    ),
    "a sampler of another x": (
        lambda: moved(lambda d, s, a, b, k: s._replace(x=s.x[:1])),
        ValueError,
        r"the x that a sampler's step.*2,2.*got float32\[1,2\]",
    ),
    "a sampler of another memory": (
        lambda: moved(lambda d, s, a, b, k: s._replace(memory=s.x)),
        ValueError,
        r"memory.*step.*init",
    ),
    # Levels.
    "a schedule for levels": (
        lambda: sampled(levels=EDM),
        TypeError,
        r"levels.*the Schedule edm\(\).*gj\.levels\(schedule, steps, spacing\)",
    ),
    "an array of sigmas": (lambda: sampled(levels=PATH.sigma), TypeError, r"levels.*float32\[4\].*gj\.levels"),
    "steps for levels": (lambda: sampled(levels=50), TypeError, r"levels.*the int 50.*gj\.levels"),
    "levels in a plain tuple": (lambda: sampled(levels=tuple(PATH)), TypeError, r"levels.*tuple.*gj\.levels"),
    "lists in the levels": (
        lambda: sampled(levels=gj.NoiseLevel([0, 1], [1, 1], [1.0, 0.0])),
        TypeError,
        r"levels\.t must be an array.*got the list",
    ),
    "levels of integers": (
        lambda: sampled(levels=gj.NoiseLevel(*jnp.array([[2, 1], [1, 1], [1, 0]]))),
        TypeError,
        r"levels\.t.*floating.*int32\[2\]",
    ),
    "one level": (lambda: sampled(levels=LEVEL), ValueError, r"levels.*\[steps\+1\], got float32\[\].*gj\.levels"),
    "a path of one entry": (
        lambda: sampled(levels=jax.tree.map(lambda f: f[:1], PATH)),
        ValueError,
        r"levels.*at least 2 entries, got \[1\]",
    ),
    "levels of two lengths": (
        lambda: sampled(levels=PATH.replace(sigma=PATH.sigma[1:])),
        ValueError,
        r"levels.*one length.*got \[3, 4\]",
    ),
    "levels with NaN": (lambda: sampled(levels=NAN), ValueError, r"finite.*nan"),
    "an infinite level": (
        lambda: sampled(levels=PATH.replace(sigma=PATH.sigma.at[0].set(jnp.inf))),
        ValueError,
        r"finite.*inf.*t_max",
    ),
    "a negative level": (
        lambda: sampled(levels=PATH.replace(sigma=PATH.sigma - 1)),
        ValueError,
        r"levels.*sigma >= 0.*got.*-1",
    ),
    "a level twice": (
        lambda: sampled(levels=PATH.replace(sigma=PATH.sigma.at[1].set(80.0))),
        ValueError,
        r"decrease.*sigma \[80\. 80\.\] from level 0 on.*without repeats",
    ),
    "levels upward with ddpm": (
        lambda: sampled(levels=UP, sampler=gj.ddpm(), shape_or_x=X),
        ValueError,
        r"increase throughout.*ddim\(\)",
    ),
    "levels upward from noise": (lambda: sampled(levels=UP), ValueError, r"increase throughout.*use x"),
    "levels upward from no noise": (
        lambda: sampled(levels=jax.tree.map(lambda f: f[::-1], PATH), shape_or_x=X),
        ValueError,
        r"sigma > 0.*reverse",
    ),
    # Starting points.
    "x of PyTorch": (lambda: sampled(shape_or_x=Tensor(B, 2)), TypeError, rf"x must be.*{TORCH}"),
    "data of PyTorch": (lambda: gj.diffuse(KEYS, Tensor(B, 2), LEVEL), TypeError, rf"x must be.*{TORCH}"),
    "a shape by name": (
        lambda: gj.sample(KEYS, TWO, gj.cfg(2.0), gj.ddim(), PATH, shape=(2,)),
        TypeError,
        r"sample: got an unexpected keyword argument 'shape'; did you mean shape_or_x\? it takes keys, ",
    ),
    "steps of a run": (lambda: sampled(num_steps=3), TypeError, r"sample: .*'num_steps'.*it takes keys, .*by name trace"),
    "a shape in a list": (lambda: sampled(shape_or_x=[2]), TypeError, r"shape_or_x.*tuple.*\[2\]"),
    "a shape of one number": (lambda: sampled(shape_or_x=2), TypeError, r"shape_or_x.*tuple.*\b2\b"),
    "a shape of floats": (lambda: sampled(shape_or_x=(2.0,)), TypeError, r"integers.*got the tuple \(2\.0,\)"),
    "a shape with a negative axis": (lambda: sampled(shape_or_x=(-1, 2)), ValueError, r"at least 1.*got \(-1, 2\)"),
    "a shape without axes": (lambda: sampled(shape_or_x=()), ValueError, r"shape_or_x.*\(1,\), got \(\)"),
    "a shape with the batch in it": (
        lambda: sampled(shape_or_x=(B, 2)),
        ValueError,
        r"x must be \[B, 2\].*got x of shape \(\d, 2, 2\)",
    ),
    "images as bytes": (lambda: sampled(shape_or_x=np.zeros((B, 2), np.uint8)), TypeError, r"floating.*got uint8.*\[-1, 1\]"),
    "complex x": (lambda: sampled(shape_or_x=X.astype(complex)), TypeError, r"floating.*got complex64"),
    "x as objects": (lambda: sampled(shape_or_x=np.array([[1, None]] * B)), TypeError, r"floating.*got object"),
    "x in lists": (lambda: sampled(shape_or_x=[[1.0, 2.0]] * B), TypeError, r"shape_or_x.*tuple.*1\.0"),
    "no start": (lambda: sampled(shape_or_x=None), TypeError, r"shape_or_x.*tuple.*None"),
    "x with NaN": (lambda: sampled(shape_or_x=X.at[1].set(jnp.nan)), ValueError, r"NaN or infinite.*1 of 2 samples: \[1\]"),
    "x without a batch": (lambda: sampled(shape_or_x=X[0]), ValueError, r"\[B, \.\.\.\].*\(2,\)"),
    # Other arguments.
    "names of branches to evaluate": (
        lambda: gj.evaluate(TWO, X, STEP, LEVEL, wanted=("cond",)),
        TypeError,
        r"evaluate: wanted must be a dictionary, got the tuple.*use \{\"cond\": True\}",
    ),
    "a trace that is no function": (lambda: sampled(trace=True), TypeError, r"trace.*the bool True.*lambda state"),
    "a progress bar without a name": (lambda: sampled(progress=True), TypeError, r"progress.*name.*the bool True"),
    "an unknown branch to evaluate": (
        lambda: gj.evaluate(TWO, X, STEP, LEVEL, {"weak": True}),
        ValueError,
        r"'weak'.*only 'cond', 'uncond'",
    ),
    "a level for a step": (lambda: gj.guide(TWO, gj.cfg(2.0), LEVEL), TypeError, r"step.*a NoiseLevel.*Step"),
}
