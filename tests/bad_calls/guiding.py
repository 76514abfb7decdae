# type: ignore  # every row is wrong, its types too
"""Wrong guidances: scales, combinations, gradients, and parameters outside their range."""

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
    STEP,
    TORCH,
    TWO,
    B,
    Row,
    Tensor,
    X,
    guided,
    log_prob,
    on_images,
    sampled,
)

ONE, THREE = jnp.ones(1), jnp.ones(3)
GUIDED = gj.cfg(2.0)
CURVE = gj.Curve(ratio=jnp.array([0.1, 10.0]), rho=jnp.array([1.0, 0.1]))


def clean(x0):
    return -(x0**2).sum(1)


def classified(classify=lambda x, t: x, labels=LABELS, classes=None, **more):
    return gj.scores.class_log_prob(classify, labels, classes, **more)(X, LEVEL)


ROWS: dict[str, Row] = {
    # Scales.
    "a guidance scale": (
        lambda: gj.cfg(guidance_scale=7.5),
        TypeError,
        r"^cfg: got an unexpected keyword argument 'guidance_scale'; did you mean scale\? it takes scale, and by name cond",
    ),
    "a scale of one letter": (lambda: gj.cfg(w=3.0), TypeError, r"cfg: .*'w'; did you mean scale\?"),
    "a scale of PyTorch": (lambda: gj.cfg(Tensor()), TypeError, rf"cfg: scale.*{TORCH}"),
    "three scales for two samples": (lambda: guided(gj.cfg(THREE)), ValueError, r"cfg: scale.*\(3,\).*\[B\] = \(2,\)"),
    "a scale with axes": (lambda: guided(gj.cfg(jnp.ones((B, 1)))), ValueError, r"cfg: scale.*\(2, 1\).*vmap"),
    "a scale in a string": (lambda: guided(gj.cfg("3.0")), TypeError, r"cfg: scale.*number.*the str '3\.0'"),
    "no scale": (lambda: guided(gj.cfg(None)), TypeError, r"cfg: scale.*number.*None"),
    "scales by name": (lambda: guided(gj.cfg({"cond": 3.0})), TypeError, r"cfg: scale.*number.*the dict"),
    "a key for a scale": (lambda: guided(gj.cfg(KEYS)), TypeError, r"cfg: scale.*number.*key<fry>\[2\]"),
    "a complex scale": (lambda: guided(gj.cfg(1j)), TypeError, r"cfg: scale.*finite number, an array \[B\].*the complex 1j"),
    "scales as objects": (
        lambda: guided(gj.cfg(np.array([1.0, None]))),
        TypeError,
        r"cfg: scale.*finite number, an array \[B\].*object\[2\]",
    ),
    "a scale of NaN": (lambda: guided(gj.cfg(jnp.nan)), ValueError, r"cfg: scale.*finite.*nan"),
    "an infinite scale": (lambda: guided(gj.cfg(jnp.array([1.0, jnp.inf]))), ValueError, r"cfg: scale.*finite.*inf"),
    "a function of a wrong scale": (lambda: guided(gj.cfg(lambda level: THREE)), ValueError, r"cfg: scale.*\(3,\).*\[B\]"),
    "a function of no scale": (lambda: guided(gj.cfg(lambda level: None)), TypeError, r"cfg: scale.*number.*None"),
    "a scale's curve, not called": (
        lambda: guided(gj.cfg(gj.scales.linear)),
        TypeError,
        r"cfg: scale.*a function of the level, got the function linear: call it, linear\(",
    ),
    "a guidance for a scale": (
        lambda: guided(gj.cfg(GUIDED)),
        TypeError,
        r"cfg: scale.*number.*the Guidance cfg\(scale=2\.0\)",
    ),
    "a schedule for a scale": (lambda: guided(gj.cfg(EDM)), TypeError, r"cfg: scale.*number.*the Schedule edm"),
    "labels for a branch's name": (lambda: gj.cfg(2.0, cond=LABELS), TypeError, r"name of a branch.*int32\[2\].*gj\.branches"),
    "no name for a branch": (lambda: gj.cfg(2.0, uncond=None), TypeError, r"name of a branch.*None.*gj\.branches"),
    "a curve of no schedule": (lambda: gj.scales.cosine(3.0, EDM), TypeError, r"schedule.*a Schedule, got the float 3\.0"),
    "a curve of a schedule, not called": (
        lambda: gj.scales.linear(gj.schedules.flow, 3.0),
        TypeError,
        r"schedule.*function flow.*call it, flow\(",
    ),
    "a beta curve without a peak": (lambda: gj.scales.beta(EDM, 3.0, a=0.0), ValueError, r"beta: a.*\[1, inf\).*0\.0"),
    "a power of no number": (
        lambda: gj.scales.power_cosine(EDM, 3.0, power="4"),
        TypeError,
        r"power_cosine: power.*number.*'4'",
    ),
    "a scale for a calibrated curve": (
        lambda: gj.scales.calibrated(3.0, CURVE),
        TypeError,
        r"calibrated: curve.*a Calibration or a Curve, got the float 3\.0.*gj\.calibrate\(",
    ),
    "a calibrated scale without a curve": (
        lambda: gj.scales.calibrated(gj.calibrate, 3.0),
        TypeError,
        r"calibrated: curve.*function calibrate.*call it.*gj\.calibrate\(",
    ),
    "a calibrated scale of NaN": (lambda: gj.scales.calibrated(CURVE, jnp.nan), ValueError, r"calibrated: scale.*finite.*nan"),
    "three calibrated scales for two samples": (
        lambda: guided(gj.cfg(gj.scales.calibrated(CURVE, THREE))),
        ValueError,
        r"calibrated: scale.*\(3,\).*\[B\]",
    ),
    "a calibrated scale that no law has": (
        lambda: gj.scales.calibrated(CURVE, jnp.array([2.0, -0.5])),
        ValueError,
        r"scale -0\.5 needs rho.*sigma / alpha = 10 rho is 0\.1.*other direction",
    ),
    "a threshold below nothing": (
        lambda: gj.scales.calibrated(CURVE, 2.0, threshold=-1.0),
        ValueError,
        r"calibrated: threshold.*\[0, inf\).*-1",
    ),
    "a curve of two lengths": (
        lambda: gj.scales.calibrated(gj.Curve(ONE, THREE), 2.0),
        ValueError,
        r"one shape.*\(1,\).*\(3,\)",
    ),
    "a curve below nothing": (lambda: gj.scales.calibrated(gj.Curve(ONE, -ONE), 2.0), ValueError, r"rho >= 0.*rho \[-1\.\]"),
    "curves that are stacked": (
        lambda: gj.scales.calibrated(gj.Curve(jnp.ones((2, 3)), jnp.ones((2, 3))), 2.0),
        ValueError,
        r"one shape \[S\].*\(2, 3\)",
    ),
    # Combinations.
    "a guidance without its scale": (lambda: gj.unless_one(2.0, GUIDED), TypeError, r"unless_one: guidance.*the float 2\.0"),
    "a guidance for its scale": (
        lambda: guided(gj.unless_one(GUIDED, GUIDED)),
        TypeError,
        r"unless_one: scale.*number.*the Guidance cfg\(",
    ),
    "a list to chain": (lambda: gj.chain([GUIDED]), TypeError, r"chain: parts.*the list.*chain\(\*parts"),
    "a function to chain": (lambda: gj.chain(gj.cfg), TypeError, r"chain: parts.*function cfg.*call it, cfg\("),
    "none to chain": (lambda: gj.chain(GUIDED, None), TypeError, r"chain: parts.*None"),
    "a number to add": (lambda: gj.add(GUIDED, 2.0), TypeError, r"add: parts.*the float 2\.0"),
    "a sampler during": (lambda: gj.during(gj.ddim(), 0.1, 1.0), TypeError, r"during.*a Guidance, got the Sampler ddim"),
    "a reversed interval": (
        lambda: gj.during(GUIDED, 5.0, 0.2),
        ValueError,
        r"during: low must be below high.*empty.*5\.0.*0\.2",
    ),
    "an interval of vectors": (lambda: gj.during(GUIDED, THREE), ValueError, r"during: low.*\(3,\).*vmap"),
    "an interval of NaN": (lambda: gj.during(GUIDED, jnp.nan), ValueError, r"during: low must be.*got nan"),
    "an interval in a tuple": (
        lambda: gj.during(GUIDED, (0.2, 5.0)),
        TypeError,
        r"during: low.*number.*the tuple \(0\.2, 5\.0\)",
    ),
    "an interval of words": (lambda: gj.during(GUIDED, "low", "high"), TypeError, r"during: low.*number.*'low'"),
    "a bound for the guidance": (lambda: gj.during(0.2, 5.0, GUIDED), TypeError, r"during.*a Guidance, got the float 0\.2"),
    "an unknown space": (
        lambda: gj.in_space("epsilon", GUIDED),
        ValueError,
        r"in_space: predicts must be 'eps' or 'x0'.*got 'epsilon'",
    ),
    "a space behind its guidance": (
        lambda: gj.in_space(GUIDED, "v"),
        TypeError,
        r"in_space: predicts.*'eps'.*the Guidance cfg\(",
    ),
    "a space in a space": (
        lambda: guided(gj.in_space("v", gj.in_space("eps", GUIDED))),
        ValueError,
        r"must not have its own space.*chain",
    ),
    "cfg_pp in a space": (
        lambda: guided(gj.in_space("v", gj.cfg_pp(0.5))),
        ValueError,
        r"in_space.*its own space.*cfg_pp.*use chain\(",
    ),
    "a branch behind its guidance": (
        lambda: gj.relative_to(GUIDED, "cond"),
        TypeError,
        r"relative_to: branch.*name of a branch.*the Guidance cfg\(",
    ),
    "relative to a branch that is not there": (
        lambda: guided(gj.relative_to("conditional", GUIDED)),
        ValueError,
        r"'conditional'.*'cond'",
    ),
    "reuse of a number": (lambda: gj.reuse(2, GUIDED), TypeError, r"reuse.*a Guidance, got the int 2"),
    "reuse in every step and a half": (lambda: gj.reuse(GUIDED, 1.5), TypeError, r"reuse: every.*integer.*1\.5"),
    "reuse in no step": (lambda: gj.reuse(GUIDED, 0), ValueError, r"reuse: every.*at least 1.*0"),
    "adaptive without a guidance": (lambda: gj.adaptive(0.99), TypeError, r"adaptive.*a Guidance, got the float 0\.99"),
    "adaptive with three thresholds": (lambda: gj.adaptive(GUIDED, THREE), ValueError, r"adaptive: threshold.*\(3,\).*scalar"),
    "adaptive by NaN": (lambda: gj.adaptive(GUIDED, jnp.nan), ValueError, r"adaptive: threshold.*nan"),
    "reg of a scale": (lambda: gj.reg(3.0), TypeError, r"reg.*a Guidance, got the float 3\.0"),
    "stateless of a guidance": (
        lambda: gj.stateless(GUIDED),
        TypeError,
        r"stateless: update.*a function, got the Guidance cfg\(",
    ),
    "needs in one string": (lambda: gj.stateless(lambda p, c: p, needs="cond"), TypeError, r"needs.*'cond'.*\('cond',\)"),
    "needs that are no names": (
        lambda: gj.stateless(lambda p, c: p, needs=(LABELS,)),
        TypeError,
        r"name of a branch.*int32\[2\]",
    ),
    # Contrasts.
    "compose of nothing": (lambda: gj.compose({}), ValueError, r"compose: scales must have a scale for each condition.*\{\}"),
    "compose with a scale for none": (
        lambda: gj.compose({"uncond": 1.0}),
        ValueError,
        r"compose: scales.*none for uncond.*uncond 'uncond'",
    ),
    "compose of one scale": (lambda: gj.compose(3.0), TypeError, r"compose.*the float 3\.0.*\{"),
    "compose of a wrong scale": (
        lambda: guided(gj.compose({"cond": THREE})),
        ValueError,
        r"compose: scales\['cond'\].*\(3,\).*\[B\]",
    ),
    "dual_cfg without a middle": (lambda: guided(gj.dual_cfg(7.5, 1.5)), ValueError, r"'image'.*only 'cond', 'uncond'"),
    "perp_neg of a list": (lambda: gj.perp_neg(7.5, ["negative"]), TypeError, r"perp_neg.*the list \['negative'\].*\{"),
    "perp_neg of a branch that is not there": (lambda: guided(gj.perp_neg(7.5, {"ugly": 1.0})), ValueError, r"'ugly'.*only"),
    "recfg with a ratio of another shape": (lambda: guided(gj.recfg(2.0, THREE)), ValueError, r"recfg: ratio.*\(3,\)"),
    "recfg with a ratio of no number": (lambda: guided(gj.recfg(2.0, "1")), TypeError, r"recfg: ratio.*number.*'1'"),
    "beta_cfg with a power in words": (lambda: guided(gj.beta_cfg(2.0, "one")), TypeError, r"beta_cfg: power.*number.*'one'"),
    "power_law of too low a power": (lambda: guided(gj.power_law(2.0, -1.5)), ValueError, r"power_law: power.*above -1.*-1\.5"),
    "feedback above one": (lambda: guided(gj.feedback(1.5)), ValueError, r"feedback: prior.*above 0 and at most 1, got 1\.5"),
    "feedback with a bound below one": (
        lambda: guided(gj.feedback(max_scale=0.5)),
        ValueError,
        r"feedback: max_scale.*above 1, got 0\.5",
    ),
    "feedback below zero temperature": (
        lambda: guided(gj.feedback(temperature=-1.0)),
        ValueError,
        r"feedback: temperature.*-1",
    ),
    "apg of a negative length": (lambda: gj.apg(4.0, max_norm=-1.0), ValueError, r"apg: max_norm.*\[0, inf\].*-1"),
    "apg of three momenta": (lambda: guided(gj.apg(4.0, beta=THREE)), ValueError, r"apg: beta.*\(3,\)"),
    "apg of a scale of NaN": (lambda: guided(gj.apg(jnp.nan)), ValueError, r"apg: scale.*finite.*nan"),
    "cfg_zero_star of half a step": (lambda: gj.cfg_zero_star(4.0, 0.5), TypeError, r"zero_steps.*integer.*0\.5"),
    "cfg_zero_star of two numbers of steps": (lambda: gj.cfg_zero_star(4.0, LABELS), ValueError, r"zero_steps.*\(2,\).*scalar"),
    "cfg_zero_star of an unknown space": (
        lambda: gj.cfg_zero_star(4.0, predicts="flow"),
        ValueError,
        r"cfg_zero_star: predicts.*'velocity'.*got 'flow'",
    ),
    "cfg_pp of three scales": (lambda: guided(gj.cfg_pp(THREE)), ValueError, r"cfg_pp: scale.*\(3,\)"),
    # Shapers.
    "rescale of points": (
        lambda: sampled(
            guidance=gj.chain(GUIDED, gj.rescale(0.7)),
            shape_or_x=(1,),
            branches=gj.branches(gj.denoiser(lambda x, t, y: x, "x0"), cond=LABELS, uncond=NULL),
        ),
        ValueError,
        r"rescale.*two elements.*\(2, 1\)",
    ),
    "rescale by percents": (
        lambda: guided(gj.chain(GUIDED, gj.rescale(70.0))),
        ValueError,
        r"rescale: fraction.*\[0, 1\], got 70",
    ),
    "a percentile as a share": (lambda: gj.dynamic_threshold(0.995), ValueError, r"0\.\.100, 99\.5 and not 0\.995"),
    # Custom methods.
    "an update that returns nothing": (
        lambda: guided(gj.stateless(lambda prediction, context: None)),
        TypeError,
        r"stateless: update must return a Prediction, or an array.*the new x0, got None",
    ),
    "an update that returns a pair": (
        lambda: guided(gj.stateless(lambda prediction, context: (prediction, ()))),
        TypeError,
        r"stateless: update must return a Prediction.*got the tuple",
    ),
    "an update that returns one column": (
        lambda: guided(gj.stateless(lambda prediction, context: prediction.x0[:, :1])),
        ValueError,
        r"x0 that stateless: update returns must be \[2, 2\], got float32\[2,1\]; .*shaped as x",
    ),
    "an update that returns a prediction of one column": (
        lambda: guided(gj.stateless(lambda prediction, context: prediction.replace(eps=prediction.eps[:, :1]))),
        ValueError,
        r"the eps that stateless: update returns must be \[2, 2\], got float32\[2,1\]; .*shaped as x",
    ),
    "an update of one parameter": (
        lambda: gj.stateless(lambda prediction: prediction),
        TypeError,
        r"stateless: update must take \(prediction, context\).*takes \(prediction\)",
    ),
    "an update that reads a branch that it did not name": (
        lambda: guided(gj.stateless(lambda prediction, context: prediction + context["cond"] - context["weak"])),
        KeyError,
        r"no prediction of the branch 'weak'.*needs=\('weak',\)",
    ),
    "a formula that returns a number": (
        lambda: guided(gj.source(lambda c, u: 0.0, "cond", "uncond")),
        TypeError,
        r"the formula must return a Prediction, or an array.*the float 0\.0",
    ),
    "a formula that returns a number per sample": (
        lambda: guided(gj.source(lambda c, u: (c.x0 - u.x0).sum(1), "cond", "uncond")),
        ValueError,
        r"the x0 that the formula returns must be \[2, 2\], got float32\[2\]; .*shaped as x",
    ),
    "a formula that does not take its scale": (
        lambda: gj.source(lambda c, u: c - u, "cond", "uncond", w=2.0),
        TypeError,
        r"source: formula must take \(cond, uncond, w=\).*takes \(c, u\)",
    ),
    "a formula of more branches than there are": (
        lambda: gj.direction(lambda c, u: c - u, "cond"),
        TypeError,
        r"direction: formula must take \(cond\).*takes \(c, u\)",
    ),
    "a formula behind its branch": (
        lambda: gj.source("cond", "uncond"),
        TypeError,
        r"source: formula.*a function, got the str 'cond'",
    ),
    "a mask of labels": (lambda: gj.masked(GUIDED, jnp.array([0, 2])), ValueError, r"masked: mask.*\[0, 1\].*2"),
    "a mask of another shape": (lambda: guided(gj.masked(GUIDED, jnp.ones((3, 1)))), ValueError, r"mask.*\(3, 1\).*\(2, 2\)"),
    "a mask in words": (lambda: gj.masked(GUIDED, "left"), TypeError, r"masked: mask.*the str 'left'"),
    "a label that only the other network knows": (
        lambda: guided(GUIDED, branches=gj.branches(MIXTURE.denoise, cond=LABELS, null=NULL)),
        ValueError,
        r"'uncond'.*only 'cond', 'null'\. Use gj\.branches\(denoise, uncond=\.\.\.\)",
    ),
    "rescale by NaN": (lambda: guided(gj.rescale(jnp.nan)), ValueError, r"rescale: fraction.*\[0, 1\].*nan"),
    "momentum by its name": (lambda: guided(gj.momentum("heavy")), TypeError, r"momentum: beta.*number.*'heavy'"),
    "project of a matrix": (lambda: guided(gj.project(jnp.ones((2, 2)))), ValueError, r"project: eta.*\(2, 2\)"),
    "amplify by none": (lambda: guided(gj.amplify(None)), TypeError, r"amplify: scale.*number.*None"),
    "a percentile above 100": (lambda: guided(gj.dynamic_threshold(101.0)), ValueError, r"percentile.*\[0, 100\].*101"),
    "a threshold of no range": (
        lambda: guided(gj.dynamic_threshold(99.0, 0.0)),
        ValueError,
        r"limit.*above 0|limit.*\(0.*0\.0",
    ),
    "clip_norm of NaN": (lambda: guided(gj.clip_norm(jnp.nan)), ValueError, r"clip_norm: max_norm.*\[0, inf\].*nan"),
    # Skipping and frequencies.
    "linear_reuse of an even row": (lambda: gj.linear_reuse(3.0, jnp.ones(4)), ValueError, r"\[1 \+ 2 K\].*\(4,\)"),
    "linear_reuse in no step": (lambda: gj.linear_reuse(3.0, THREE, every=0), ValueError, r"every.*at least 1.*0"),
    "linear_reuse in half a step": (lambda: gj.linear_reuse(3.0, THREE, every=0.5), TypeError, r"every.*integer.*0\.5"),
    "linear_reuse of words": (lambda: gj.linear_reuse(3.0, "fit"), TypeError, r"coefficients.*number.*'fit'"),
    "fit_linear of lists": (lambda: gj.fit_linear([[1.0]] * 3, [[1.0]] * 3), TypeError, r"fit_linear: cond.*array.*the list"),
    "fit_linear of NaN": (
        lambda: gj.fit_linear(jnp.full((3, 8), jnp.nan), jnp.ones((3, 8))),
        ValueError,
        r"fit_linear: cond must be finite.*24 of 24",
    ),
    "a scale beyond float32": (
        lambda: guided(gj.cfg(1e39)),
        ValueError,
        r"cfg: scale must be a finite number, got 1e\+39, in float32 as inf",
    ),
    "fit_linear of two shapes": (
        lambda: gj.fit_linear(jnp.ones((3, 8, 2)), jnp.ones((3, 8, 1))),
        ValueError,
        r"\(3, 8, 2\).*\(3, 8, 1\)",
    ),
    "fit_linear of no past": (
        lambda: gj.fit_linear(jnp.ones((3, 8)), jnp.ones((3, 8)), past=0),
        ValueError,
        r"past.*at least 1.*0",
    ),
    "fit_linear of too few steps": (
        lambda: gj.fit_linear(jnp.ones((2, 8)), jnp.ones((2, 8)), past=2),
        ValueError,
        r"past=2.*2 steps",
    ),
    "fdg of points": (lambda: guided(gj.fdg()), ValueError, r"fdg.*\[B, H, W, C\].*\(2, 2\)"),
    "fdg of odd images": (lambda: on_images(gj.fdg(), (5, 4, 1)), ValueError, r"fdg.*halve.*\(2, 5, 4, 1\)"),
    "fdg of no scales": (lambda: gj.fdg(()), ValueError, r"fdg.*at least one.*\(\)"),
    "fdg of one number": (lambda: gj.fdg(5.0), TypeError, r"fdg: scales must be a list or a tuple, got the float 5\.0"),
    "fresca of points": (lambda: guided(gj.fresca(7.5)), ValueError, r"fresca.*\[B, H, W, C\].*\(2, 2\)"),
    "fresca of a cutoff in cells": (
        lambda: gj.fresca(7.5, cutoff=20),
        ValueError,
        r"fresca: cutoff.*fraction of the highest.*above 0 and at most 1.*20",
    ),
    # Classifiers.
    "a classifier behind its scale": (
        lambda: gj.classifier(4.0, log_prob),
        TypeError,
        r"log_prob.*function, got the float 4\.0",
    ),
    "logits for a classifier": (lambda: gj.classifier(X, 4.0), TypeError, r"log_prob.*function, got float32\[2,2\]"),
    "a classifier of one number": (
        lambda: guided(gj.classifier(lambda x, l: x.sum(), 1.0)),
        ValueError,
        r"log_prob returns must be \[2\], got float32\[\]; .*\[B\]",
    ),
    "a classifier of all logits": (
        lambda: guided(gj.classifier(lambda x, l: x, 1.0)),
        ValueError,
        r"log_prob returns must be \[2\], got float32\[2,2\]; .*\[B\]",
    ),
    "a classifier of predicted classes": (
        lambda: guided(gj.classifier(lambda x, l: x.argmax(1), 1.0)),
        TypeError,
        r"log_prob.*floating.*int32\[2\]",
    ),
    "a classifier that takes no level": (
        lambda: guided(gj.classifier(clean, 1.0)),
        TypeError,
        r"log_prob.*\(x, level\).*clean takes \(x0\)",
    ),
    "a classifier for its log_prob": (
        lambda: guided(gj.classifier(lambda x, t: x @ jnp.ones((2, 10)), 1.0)),
        ValueError,
        r"log_prob returns must be \[2\], got float32\[2,10\]; .*one number per sample.*class_log_prob\(classify",
    ),
    "a classifier of clean data for its log_prob": (
        lambda: guided(gj.freedom(lambda x0: x0 @ jnp.ones((2, 10)), 1.0)),
        ValueError,
        r"log_prob returns must be \[2\], got float32\[2,10\]; .*one number per sample.*log_softmax",
    ),
    "a log_prob of one parameter": (
        lambda: gj.mean_shift(lambda x: -(x**2).sum(1), 1.0),
        TypeError,
        r"mean_shift: log_prob.*\(x, level\).*takes \(x\)",
    ),
    "logits of integers": (
        lambda: classified(lambda x, t: x.astype(int)),
        TypeError,
        r"logits must be .*floating.*int32\[2,2\]",
    ),
    "a classifier without its time": (
        lambda: gj.scores.class_log_prob(lambda x: x, LABELS),
        TypeError,
        r"class_log_prob: classify.*\(x, t\).*takes \(x\)",
    ),
    "a classifier in a space": (
        lambda: guided(gj.in_space("eps", gj.classifier(log_prob, 1.0))),
        ValueError,
        r"in_space: .*its own space.*classifier\(.*use chain\(",
    ),
    "a classifier of three scales": (lambda: guided(gj.classifier(log_prob, THREE)), ValueError, r"classifier: scale.*\(3,\)"),
    "mean_shift of an unknown variance": (
        lambda: gj.mean_shift(log_prob, 1.0, variance="tiny"),
        ValueError,
        r"mean_shift: variance must be 'small' or 'large' or 'learned', got 'tiny'",
    ),
    "mean_shift of a variance that nothing predicts": (
        lambda: guided(gj.mean_shift(log_prob, 1.0, variance="learned")),
        ValueError,
        r"learned.*learned_variance",
    ),
    "logits without classes": (
        lambda: classified(lambda x, t: x.sum(1)),
        ValueError,
        r"logits must be \[2, classes\], got float32\[2\]; .*\[B, classes\]",
    ),
    "logits of other classes": (
        lambda: classified(classes=10),
        ValueError,
        r"logits must be \[2, 10\], got float32\[2,2\]; .*\[B, classes\]",
    ),
    "a label without a logit": (lambda: classified(labels=jnp.array([0, 2])), ValueError, r"label 2.*0\.\.1"),
    "labels of a classifier as floats": (
        lambda: classified(labels=jnp.zeros(2)),
        TypeError,
        r"class_log_prob: labels.*integers.*float32\[2\]",
    ),
    "one-hot labels": (
        lambda: classified(labels=jnp.eye(2, dtype=int)),
        ValueError,
        r"labels must be \[2\], got int32\[2,2\]; one per sample",
    ),
    "a temperature of zero": (lambda: classified(temperature=0.0), ValueError, r"class_log_prob: temperature.*positive.*0\.0"),
    "logits for a classify": (
        lambda: gj.scores.class_log_prob(X, LABELS),
        TypeError,
        r"classify.*function, got float32\[2,2\]",
    ),
    "a list for labels": (lambda: classified(labels=[0, 1]), TypeError, r"labels.*array.*the list \[0, 1\]"),
    "scores of two shapes": (lambda: gj.scores.bayes(X, X[:, :1]), ValueError, r"\(2, 2\).*\(2, 1\)"),
    "an array for a prediction": (
        lambda: gj.scores.score(X, LEVEL),
        TypeError,
        r"prediction.*a Prediction, got float32\[2,2\]",
    ),
    "a score of three scales": (lambda: gj.scores.guided(X, X, THREE), ValueError, r"scale.*\(3,\).*\[B\]"),
    # Clean data.
    "universal of one number": (
        lambda: guided(gj.universal(lambda x0: x0.sum(), 1.0)),
        ValueError,
        r"log_prob returns must be \[2\], got float32\[\]; .*\[B\]",
    ),
    "universal of fewer steps than none": (lambda: gj.universal(clean, 1.0, inner_steps=-1), ValueError, r"inner_steps.*0.*-1"),
    "universal of half a step": (lambda: gj.universal(clean, 1.0, inner_steps=0.5), TypeError, r"inner_steps.*integer.*0\.5"),
    "universal of a noise-aware classifier": (
        lambda: guided(gj.universal(log_prob, 1.0)),
        TypeError,
        r"log_prob.*\(x0\).*log_prob takes \(x.*level",
    ),
    "dps of another measurement": (
        lambda: guided(gj.dps(lambda x0: x0[:, :1], X, 0.5)),
        ValueError,
        r"measure\(x0\) must match the measurement, float32\[2,2\], .*got float32\[2,1\]",
    ),
    "dps with its arguments swapped": (
        lambda: gj.dps(X, lambda x0: x0, 0.5),
        TypeError,
        r"measure.*function, got float32\[2,2\]",
    ),
    "freedom of an array": (lambda: gj.freedom(X, 0.1), TypeError, r"log_prob.*function, got float32"),
    "freedom of words": (lambda: guided(gj.freedom(clean, "fast")), TypeError, r"rate.*number.*'fast'"),
    "mpgd of a column": (
        lambda: guided(gj.mpgd(lambda x0: x0[:, :1], 0.1)),
        ValueError,
        r"log_prob returns must be \[2\], got float32\[2,1\]; .*\[B\]",
    ),
    "pigdm back to another shape": (
        lambda: guided(gj.pigdm(lambda x: x[:, :1], lambda y: y, X[:, :1])),
        ValueError,
        r"pseudoinverse returns must be \[2, 2\], got float32\[2,1\]; .*shaped as x0",
    ),
    "pigdm of no variance": (
        lambda: guided(gj.pigdm(lambda x: x, lambda y: y, X, variance=-1.0)),
        ValueError,
        r"pigdm: variance.*\[0, inf\).*-1",
    ),
    "dps at three rates": (
        lambda: guided(gj.dps(lambda x0: x0, X, THREE)),
        ValueError,
        r"dps: rate has shape \(3,\).*\[B\]",
    ),
    "tfg of a smoothing with axes": (
        lambda: guided(gj.tfg(clean, 0.5, 0.5, smoothing=jnp.ones((B, 1)))),
        ValueError,
        r"tfg: smoothing has shape \(2, 1\).*\[B\]",
    ),
    "a measurement of NaN": (
        lambda: gj.dps(lambda x0: x0, X * jnp.nan, 0.5),
        ValueError,
        r"dps: measurement.*finite.*4 of 4",
    ),
    "pigdm without an inverse": (lambda: gj.pigdm(lambda x: x, X, X), TypeError, r"pseudoinverse.*function, got float32"),
    "lgd of no draws": (lambda: gj.lgd(clean, 1.0, draws=0), ValueError, r"draws.*at least 1.*0"),
    "lgd of a spread of NaN": (
        lambda: guided(gj.lgd(clean, 1.0, spread=jnp.nan)),
        ValueError,
        r"lgd: spread.*finite number, got nan",
    ),
    "tfg of no draws": (lambda: gj.tfg(clean, 0.5, 0.5, draws=0), ValueError, r"draws.*at least 1.*0"),
    "tfg of a smoothing in words": (
        lambda: guided(gj.tfg(clean, 0.5, 0.5, smoothing="no")),
        TypeError,
        r"tfg: smoothing.*number.*'no'",
    ),
    # Guidance with memory.
    "a state that init did not announce": (
        lambda: guided(gj.Guidance(frozenset(), lambda x: (), lambda prediction, state, context: (prediction, context.x))),
        ValueError,
        r"the state that a guidance's update returns must match .*, \(\), .*got float32\[2,2\]; its init must .*init=",
    ),
    "a state that is not given": (
        lambda: gj.guide(TWO, gj.momentum(-0.5), STEP)(gj.State(X, (), (), jnp.int32(0), X), LEVEL),
        ValueError,
        r"state\.guidance must be what momentum.* remembers, got \(\); use guidance\.init\(x\)",
    ),
    "a memory of nothing": (
        lambda: gj.guided(TWO, gj.momentum(-0.5))(X, LEVEL, ()),
        TypeError,
        r"guided: memory.*got the tuple \(\); use denoise\.init\(x\)",
    ),
    # Random conditions.
    "random labels of no classes": (lambda: gj.conditions.random_labels(0), ValueError, r"classes.*at least 1.*0"),
    "random labels of labels": (lambda: gj.conditions.random_labels(LABELS), TypeError, r"classes.*integer.*int32\[2\]"),
    "a retimed network without an offset": (
        lambda: sampled(branches=gj.branches(gj.conditions.retimed(MIXTURE.denoise), cond=LABELS, uncond=NULL)),
        TypeError,
        r"condition of a retimed.*tuple \(cond, offset \[B\]\), got int32\[2\]",
    ),
    "noise of the time by three": (
        lambda: gj.conditions.time_noise(THREE)(STEP),
        ValueError,
        r"time_noise: spread.*\(3,\).*\[B\]",
    ),
    "noise of the time, not called": (
        lambda: sampled(branches=gj.branches(MIXTURE.denoise, cond=LABELS, uncond=gj.conditions.time_noise)),
        TypeError,
        r"time_noise: spread.*number.*got a Step",
    ),
}
