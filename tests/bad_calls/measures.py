# type: ignore  # every row is wrong, its types too
"""Wrong calls of training, metrics, oracles, particles and likelihoods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import guidance_jax as gj
from bad_calls.world import DISCRETE, EDM, KEYS, LABELS, LEVEL, MIXTURE, NULL, PATH, TORCH, TWO, B, Row, Tensor, X, log_prob

KEY, MANY = jax.random.key(0), jnp.arange(8.0).reshape(4, 2)
LEVELS = EDM(jnp.zeros(B))
EYES, EVEN = jnp.stack([jnp.eye(2)] * 2), jnp.ones(2)
TILTED, CFG = gj.targets.tilted(2.0), gj.cfg(2.0)
CLEAN = gj.schedules.flow()


def network(x, t, cond):
    return x


def lost(predicts="x0", key=KEY, x0=X, level=LEVELS, network=network):
    return gj.training.denoising_loss(network, predicts, key, x0, level, LABELS)


def mixture(means=MIXTURE.means, covariances=EYES, weights=EVEN, labels=LABELS):
    return gj.oracles.GaussianMixture(means, covariances, weights, labels)


def particles(target=TILTED, size=2, **wrong):
    two = gj.branches(MIXTURE.denoise, cond=0 * LABELS, uncond=NULL)
    right = {"keys": KEYS, "branches": two, "sampler": gj.ddpm(), "levels": PATH, "shape_or_x": (2,), "size": size}
    return gj.feynman_kac(**{"target": target} | right | wrong)


def calibration(**wrong):
    return gj.calibrate(**{"keys": KEYS, "branches": TWO, "x0": X, "levels": PATH} | wrong)


measured = functools.cache(calibration)


def nats(guidance=CFG, x=X, branches=TWO, schedule=CLEAN, **more):
    return gj.log_likelihood(branches, guidance, x, schedule, **more)


ROWS: dict[str, Row] = {
    # Calibration.
    "a calibration of one sample more": (lambda: calibration(x0=MANY), ValueError, r"B = 2 keys.*x of shape \(4, 2\)"),
    "a calibration of a shape": (lambda: calibration(x0=(2,)), TypeError, r"calibrate: x0 must be an array.*the tuple \(2,\)"),
    "a calibration of other labels": (
        lambda: calibration(keys=jax.random.split(KEY, 4), x0=MANY),
        ValueError,
        r"branch 'cond'.*\[B, \.\.\.\] with B = 4.*\(2,\)",
    ),
    "a calibration of no such branch": (lambda: calibration(uncond="weak"), ValueError, r"a branch 'weak'.*'cond', 'uncond'"),
    "a calibration at a level": (lambda: calibration(levels=LEVEL), ValueError, r"levels.*\[steps\+1\].*gj\.levels"),
    "a calibration by a key": (lambda: calibration(keys=KEY), ValueError, r"keys must be \[B\].*shape \(\)"),
    "a negative power": (lambda: calibration(power=-1.0), ValueError, r"calibrate: power.*\[0, inf\).*-1\.0"),
    "a calibration of broken samples": (lambda: calibration(x0=X * jnp.nan), ValueError, r"x must be finite.*2 of 2"),
    "a calibration and a number": (lambda: measured() + 1.0, TypeError, r"added to another Calibration.*the float 1\.0"),
    "calibrations of other levels": (
        lambda: measured() + jax.tree.map(lambda sums: sums[:2], measured()),
        ValueError,
        r"two calibrations must have the same levels.*sigma / alpha",
    ),
    # Training.
    "a loss of one label": (
        lambda: gj.training.denoising_loss(network, "x0", KEY, X, LEVELS, LABELS[:1]),
        ValueError,
        r"denoising_loss: cond must be \[B, \.\.\.\] with B = 2, one per sample of x0, got shape \(1,\)",
    ),
    "a loss of three labels": (
        lambda: gj.training.denoising_loss(network, "x0", KEY, X, LEVELS, {"y": jnp.zeros(3, int)}),
        ValueError,
        r"denoising_loss: cond\['y'\] must be \[B, \.\.\.\] with B = 2.*got shape \(3,\)",
    ),
    "an edm loss of one label": (
        lambda: gj.training.edm_loss(network, 0.5, KEY, X, LEVELS, LABELS[:1]),
        ValueError,
        r"edm_loss: cond must be .*B = 2.*got shape \(1,\)",
    ),
    "a loss of one label, inside jit": (
        lambda: jax.jit(lambda x0: gj.training.denoising_loss(network, "x0", KEY, x0, LEVELS, LABELS[:1]))(X),
        ValueError,
        r"denoising_loss: cond must be .*B = 2.*got shape \(1,\)",
    ),
    "an edm loss without a deviation": (
        lambda: gj.training.edm_loss(network, KEY, X, LEVELS, LABELS),
        TypeError,
        r"edm_loss: sigma_data must be a positive number, got key<fry>",
    ),
    "a loss of PyTorch": (lambda: lost(x0=Tensor(B, 2)), TypeError, rf"denoising_loss: x0.*{TORCH}"),
    "a drop of a probability": (
        lambda: gj.training.drop(KEY, LABELS, 10, p=0.1),
        TypeError,
        r"drop: .*'p'; did you mean rate\? it takes key, cond, null, rate",
    ),
    "a drop of two batches": (
        lambda: gj.training.drop(KEY, (LABELS, jnp.zeros(3, int)), (10, 10), 0.1),
        ValueError,
        r"drop: cond\[1\] must be .*B = 2, as its first leaf, got shape \(3,\)",
    ),
    "a drop of PyTorch": (lambda: gj.training.drop(KEY, Tensor(2), 10, 0.1), TypeError, rf"drop: cond.*{TORCH}"),
    "keys of a batch": (lambda: gj.training.noise_levels(KEYS, EDM, 4), ValueError, r"one PRNG key.*\(2,\)"),
    "levels of an empty batch": (
        lambda: gj.training.noise_levels(KEY, EDM, 0),
        ValueError,
        r"n must be an integer, at least 1, got 0",
    ),
    "levels for a batch of images": (
        lambda: gj.training.noise_levels(KEY, EDM, X),
        TypeError,
        r"n must be an integer.*float32\[2,2\]",
    ),
    "levels of a schedule, not called": (
        lambda: gj.training.noise_levels(KEY, gj.schedules.edm, 4),
        TypeError,
        r"function edm.*call it, edm\(",
    ),
    "log-normal levels of whole steps": (
        lambda: gj.training.log_normal_levels(KEY, DISCRETE, 4),
        ValueError,
        r"continuous.*1000 steps.*noise_levels",
    ),
    "log-normal levels of a negative deviation": (
        lambda: gj.training.log_normal_levels(KEY, EDM, 4, deviation=-1.0),
        ValueError,
        r"deviation.*-1",
    ),
    "bytes to be noised": (
        lambda: gj.training.diffuse(KEY, np.zeros((B, 2), np.uint8), LEVELS),
        TypeError,
        r"x0 must be an array of floating.*uint8.*\[-1, 1\]",
    ),
    "levels of another batch": (
        lambda: gj.training.diffuse(KEY, X, EDM(jnp.zeros(3))),
        ValueError,
        r"level.*\[B\] = \(2,\).*\(3,\)",
    ),
    "times for levels": (
        lambda: gj.training.diffuse(KEY, X, jnp.zeros(B)),
        TypeError,
        r"level must be a NoiseLevel, got float32\[2\]",
    ),
    "data and keys of two sizes": (lambda: gj.diffuse(KEYS[:1], X, LEVEL), ValueError, r"B = 1.*\(2, 2\)"),
    "one key for the data": (lambda: gj.diffuse(KEY, X, LEVEL), ValueError, r"shape \(\).*jax\.random\.split"),
    "bytes to start from": (lambda: gj.diffuse(KEYS, X.astype(int), LEVEL), TypeError, r"x must be .*floating.*got int32"),
    "a path to start from": (lambda: gj.diffuse(KEYS, X, PATH), ValueError, r"level.*\[B\] = \(2,\).*\(4,\)"),
    "a loss of an unknown prediction": (lambda: lost("u"), ValueError, r"'velocity', got 'u'"),
    "a loss of another shape": (
        lambda: lost(network=lambda x, t, c: x[:, :1]),
        ValueError,
        r"must be \[2, 2\], got float32\[2,1\].*shaped as x",
    ),
    "a loss of bytes": (lambda: lost(x0=jnp.ones((B, 2), jnp.uint8)), TypeError, r"x0.*floating.*uint8"),
    "a loss of no network": (lambda: lost(network=X), TypeError, r"network.*function, got float32\[2,2\]"),
    "a weight of an unknown prediction": (lambda: gj.training.min_snr(LEVELS, "noise"), ValueError, r"'eps'.*got 'noise'"),
    "a weight below zero": (lambda: gj.training.min_snr(LEVELS, "eps", -5.0), ValueError, r"min_snr: gamma.*above 0.*-5"),
    "a weight of a time": (
        lambda: gj.training.min_snr(0.5, "eps"),
        TypeError,
        r"level must be a NoiseLevel, got the float 0\.5",
    ),
    "an edm loss of no deviation": (
        lambda: gj.training.edm_loss(network, 0.0, KEY, X, LEVELS, LABELS),
        ValueError,
        r"sigma_data.*positive.*0\.0",
    ),
    "a classifier without classes": (
        lambda: gj.training.classifier_loss(lambda x, t: x.sum(1), KEY, X, LEVELS, LABELS),
        ValueError,
        r"logits must be \[2, classes\], got float32\[2\]; .*\[B, classes\]",
    ),
    "a label that no logit is of": (
        lambda: gj.training.classifier_loss(lambda x, t: x, KEY, X, LEVELS, LABELS + 1),
        ValueError,
        r"label 2.*0\.\.1",
    ),
    "a classifier of float labels": (
        lambda: gj.training.classifier_loss(lambda x, t: x, KEY, X, LEVELS, X[0]),
        TypeError,
        r"integer labels.*float32",
    ),
    "a drop rate in percent": (lambda: gj.training.drop(KEY, LABELS, 10, 15.0), ValueError, r"rate.*\[0, 1\].*15"),
    "nothing to drop": (lambda: gj.training.drop(KEY, None, None, 0.1), ValueError, r"no leaves|condition.*None"),
    "a null of another structure": (lambda: gj.training.drop(KEY, {"y": LABELS}, 10, 0.1), ValueError, r"null.*structure.*'y'"),
    "a null of another shape": (lambda: gj.training.drop(KEY, X, jnp.zeros(3), 0.1), ValueError, r"null.*\(3,\).*\(2, 2\)"),
    "an average of other parameters": (lambda: gj.training.ema({"a": X}, {"b": X}, 0), ValueError, r"'a'.*'b'"),
    "a null of nothing": (
        lambda: gj.training.drop(KEY, LABELS, None, 0.1),
        TypeError,
        r"drop: null must be a real number.*None",
    ),
    "a decay for a step": (
        lambda: gj.training.ema(X, X, 0.999, 0),
        ValueError,
        r"step must be an integer, got 0\.999; for the decay",
    ),
    "a reward without its level": (
        lambda: gj.targets.rewarded(TILTED, lambda x0: x0.sum(1)),
        TypeError,
        r"log_reward must take \(x0, level\), but the function <lambda> takes \(x0\)",
    ),
    "checked, and called": (
        lambda: gj.checked(X),
        TypeError,
        r"a function, got float32\[2,2\]; use checked\(generate\)\(scale\)",
    ),
    "an average that grows": (lambda: gj.training.ema(X, X, 0, decay=1.5), ValueError, r"ema: decay.*\[0, 1\].*1\.5"),
    # Metrics.
    "fid of PyTorch": (lambda: gj.metrics.fid(Tensor(4, 2), MANY), TypeError, rf"fid: real.*{TORCH}"),
    "labels of PyTorch": (lambda: gj.metrics.accuracy(X, Tensor(2)), TypeError, rf"accuracy: labels.*{TORCH}"),
    "fid of one point": (lambda: gj.metrics.fid(MANY, MANY[:1]), ValueError, r"at least 2 points.*1"),
    "fid of two widths": (lambda: gj.metrics.fid(MANY, MANY[:, :1]), ValueError, r"different sizes D.*2.*1.*same network"),
    "fid of images": (lambda: gj.metrics.fid(MANY[:, :, None], MANY), ValueError, r"\[N, D\], got float32\[4,2,1\]; reshape"),
    "fid of bytes": (
        lambda: gj.metrics.fid(MANY.astype(jnp.uint8), MANY),
        TypeError,
        r"fid: real must be an array of floating numbers, \[N, D\], got uint8\[4,2\].*cast",
    ),
    "fid of lists": (lambda: gj.metrics.fid([[1.0], [2.0]], MANY), TypeError, r"array.*the list"),
    "features with NaN": (lambda: gj.metrics.moments(MANY.at[2].set(jnp.nan)), ValueError, r"1 of 4 rows.*first is 2"),
    "moments of nothing": (lambda: gj.metrics.moments(MANY[:0]), ValueError, r"moments: x is empty.*float32\[0,2\]"),
    "moments for features": (lambda: gj.metrics.kid(gj.metrics.moments(MANY), MANY), TypeError, r"real.*array.*a Moments"),
    "covariances of another width": (
        lambda: gj.metrics.frechet_distance(jnp.zeros(2), jnp.eye(2), jnp.zeros(2), jnp.eye(3)),
        ValueError,
        r"cov_b must have the shape \(2, 2\), as mean_a.*got \(3, 3\)",
    ),
    "merged arrays": (lambda: gj.metrics.merge(MANY, MANY), TypeError, r"a Moments, got float32\[4,2\].*metrics\.moments"),
    "a KID of one subset": (
        lambda: gj.metrics.kid_subsets(MANY, MANY, KEY, subsets=1, size=2),
        ValueError,
        r"subsets must be an integer, at least 2, got 1",
    ),
    "a KID of large subsets": (
        lambda: gj.metrics.kid_subsets(MANY, MANY, KEY, size=5),
        ValueError,
        r"real and fake must have at least 5 points for size=5, got 4 and 4",
    ),
    "an energy of one point": (
        lambda: gj.metrics.energy_distance(MANY, MANY[:1]),
        ValueError,
        r"at least 2 points, got 4 and 1",
    ),
    "a kernel of no width": (
        lambda: gj.metrics.mmd(MANY, MANY, 0.0),
        ValueError,
        r"mmd: bandwidth must be a positive number, got 0\.0",
    ),
    "no neighbours": (
        lambda: gj.metrics.precision_recall(MANY, MANY, k=0),
        ValueError,
        r"precision_recall: k must be an integer, at least 1, got 0",
    ),
    "half a neighbour": (lambda: gj.metrics.precision_recall(MANY, MANY, k=1.5), TypeError, r"k must be an integer.*1\.5"),
    "more neighbours than points": (
        lambda: gj.metrics.density_coverage(MANY, MANY, k=4),
        ValueError,
        r"real must have at least 5 points for k=4 neighbours, got 4",
    ),
    "neighbours beyond the set": (
        lambda: gj.metrics.neighbours(MANY),
        ValueError,
        r"x must have at least 6 points for k=5 neighbours, got 4",
    ),
    "more neighbours than were found": (
        lambda: gj.metrics.precision_recall(MANY, gj.metrics.neighbours(MANY, 2)),
        ValueError,
        r"fake has 2 neighbours per point, fewer than k=3; use gj\.metrics\.neighbours\(x, 3\)",
    ),
    "a KID of neighbours": (
        lambda: gj.metrics.kid(gj.metrics.neighbours(MANY, 2), MANY),
        TypeError,
        r"real must be an array of floating numbers, \[N, D\], got a Neighbours",
    ),
    "a Vendi score of no order": (
        lambda: gj.metrics.vendi(MANY, order=0),
        ValueError,
        r"vendi: order must be a number above 0, got 0",
    ),
    "a Vendi score of nothing": (lambda: gj.metrics.vendi(jnp.zeros((2, 2))), ValueError, r"all zero.*in 2 of 2 rows"),
    "lines of no number": (
        lambda: gj.metrics.sliced_wasserstein(MANY, MANY, KEY, projections=0),
        ValueError,
        r"projections.*at least 1.*0",
    ),
    "lines of a seed": (lambda: gj.metrics.sliced_wasserstein(MANY, MANY, 0), TypeError, r"one PRNG key.*the int 0"),
    "predicted classes for logits": (
        lambda: gj.metrics.accuracy(LABELS, LABELS),
        ValueError,
        r"accuracy: logits must be \[N, C\], got int32\[2\]",
    ),
    "labels of another number": (
        lambda: gj.metrics.accuracy(X, jnp.zeros(3, int)),
        ValueError,
        r"labels must be \(2,\), one per row of the logits, got \(3,\)",
    ),
    "logits in lists": (
        lambda: gj.metrics.accuracy([[1.0, 2.0]] * B, LABELS),
        TypeError,
        r"accuracy: logits.*array.*the list",
    ),
    "labels in lists": (lambda: gj.metrics.accuracy(X, [0, 1]), TypeError, r"labels.*array.*the list \[0, 1\]"),
    "logits in whole numbers": (lambda: gj.metrics.accuracy(X.astype(int), LABELS), TypeError, r"logits.*floating.*int32"),
    "a label beyond the logits": (
        lambda: gj.metrics.accuracy(X, LABELS + 1),
        ValueError,
        r"label 2 is outside 0\.\.1.*2 logits",
    ),
    "a label below the logits": (lambda: gj.metrics.accuracy(X, NULL), ValueError, r"label -1 is outside 0\.\.1.*2 logits"),
    "an inception score of lists": (
        lambda: gj.metrics.inception_score([[1.0, 2.0]] * B),
        TypeError,
        r"inception_score: logits.*array.*the list",
    ),
    "a covariance in lists": (
        lambda: gj.metrics.frechet_distance(jnp.zeros(1), [[1.0]], jnp.zeros(1), jnp.eye(1)),
        TypeError,
        r"frechet_distance: cov_a.*array.*the list",
    ),
    "a temperature of NaN": (
        lambda: gj.targets.annealed(jnp.nan),
        ValueError,
        r"annealed: beta must be a positive number, got nan",
    ),
    "a tilt of NaN": (lambda: gj.targets.tilted(jnp.nan), ValueError, r"tilted: scale must be a finite number, got nan"),
    "means of NaN": (lambda: mixture(means=MIXTURE.means * jnp.nan), ValueError, r"Mixture: means must be finite.*4 of 4"),
    "logits of NaN": (lambda: gj.metrics.accuracy(X * jnp.nan, LABELS), ValueError, r"NaN in 2 of 2 rows"),
    "labels of probabilities": (lambda: gj.metrics.accuracy(X, X[0]), TypeError, r"array of integers, \[N\], got float32\[2\]"),
    "more splits than samples": (
        lambda: gj.metrics.inception_score(X, splits=3),
        ValueError,
        r"logits must have at least 3 points for splits=3, got 2",
    ),
    "an inception score of one axis": (
        lambda: gj.metrics.inception_score(X[0]),
        ValueError,
        r"inception_score: logits must be \[N, C\], got float32\[2\]",
    ),
    # Oracles.
    "means of one axis": (lambda: mixture(means=jnp.zeros(2)), ValueError, r"means must be \[K, D\], got float32\[2\]"),
    "covariances of no axes": (
        lambda: mixture(covariances=jnp.ones((2, 2))),
        ValueError,
        r"covariances must be \[2, 2, 2\], got float32\[2,2\]; means are \[2, 2\]",
    ),
    "a covariance that is none": (
        lambda: mixture(covariances=jnp.stack([jnp.eye(2), -jnp.eye(2)])),
        ValueError,
        r"positive definite.*-1",
    ),
    "a covariance of two sides": (
        lambda: mixture(covariances=jnp.array([[[1.0, 0.5], [0.0, 1.0]]] * 2)),
        ValueError,
        r"symmetric",
    ),
    "a component of no weight": (lambda: mixture(weights=jnp.array([1.0, 0.0])), ValueError, r"weights must be positive.*0"),
    "a class left out": (lambda: mixture(labels=jnp.array([0, 2])), ValueError, r"every class.*\[0 2\]"),
    "classes as floats": (
        lambda: mixture(labels=jnp.array([0.0, 1.0])),
        TypeError,
        r"labels must be an array of integer numbers, \[2\], got float32.*astype\(int\)",
    ),
    "means of integers": (lambda: mixture(means=jnp.zeros((2, 2), int)), TypeError, r"means.*floating.*int32\[2,2\]"),
    "means in lists": (lambda: mixture(means=[[0.0, 1.0], [1.0, 0.0]]), TypeError, r"means.*array.*the list"),
    "x of another dimension": (
        lambda: MIXTURE.denoise(jnp.ones((B, 3)), LEVEL, LABELS),
        ValueError,
        r"x must be \[B, 2\].*got.*\(2, 3\)",
    ),
    "one label for many x": (
        lambda: MIXTURE.score(X, LEVEL, jnp.int32(0)),
        ValueError,
        r"label must be \[B\] = \(2,\).*shape \(\)",
    ),
    "a class that is not there": (lambda: MIXTURE.sample(KEY, 3, 2), ValueError, r"label 2.*-1\.\.1"),
    "a sample of none": (lambda: MIXTURE.sample(KEY, 0), ValueError, r"n must be an integer, at least 1, got 0"),
    "a sample by many keys": (lambda: MIXTURE.sample(KEYS, 3), ValueError, r"one PRNG key.*\(2,\)"),
    "a time for the oracle": (lambda: MIXTURE.log_prob(X, 0.5, LABELS), TypeError, r"level.*a NoiseLevel, got the float 0\.5"),
    "a tilt below one": (
        lambda: MIXTURE.sample_tilted(KEY, 3, 0, 0.5),
        ValueError,
        r"scale must be a number in \[1, inf\).*0\.5",
    ),
    # Particles.
    "one particle": (lambda: particles(size=1), ValueError, r"size must be 2 or more.*2, got 1"),
    "particles that do not divide": (
        lambda: particles(size=3),
        ValueError,
        r"size must be.*a divisor of the number of keys, 2, got 3",
    ),
    "half a particle": (lambda: particles(size=1.5), TypeError, r"size must be an integer.*1\.5"),
    "a group of two classes": (lambda: particles(branches=TWO), ValueError, r"'cond'.*differs within a group of 2.*repeat"),
    "a threshold of particles": (lambda: particles(threshold=2), ValueError, r"threshold.*\[0, 1\].*2"),
    "weights in no interval": (
        lambda: particles(low=5.0, high=1.0),
        ValueError,
        r"feynman_kac: the interval is empty.*5\.0.*1\.0",
    ),
    "a guidance for a target": (lambda: particles(gj.cfg(2.0)), TypeError, r"target.*a Target, got the Guidance.*tilted"),
    "a target, not called": (lambda: particles(gj.targets.tilted), TypeError, r"target.*function tilted.*call it, tilted\("),
    "a target of a branch that is not there": (
        lambda: particles(gj.targets.tilted(2.0, cond="red")),
        ValueError,
        r"'red'.*only 'cond', 'uncond'",
    ),
    "kernels of a sampler without": (lambda: particles(kernels=True, sampler=gj.heun()), ValueError, r"kernels.*ddpm\(\)"),
    "kernels that draw nothing": (lambda: particles(kernels=True, sampler=gj.ddim()), ValueError, r"draws nothing.*ddpm\(\)"),
    "weights of churn": (
        lambda: particles(sampler=gj.churn(gj.euler(), EDM, 0.2)),
        ValueError,
        r"not churn, recurrence.*heun_sde",
    ),
    "weights of an unguided predictor": (
        lambda: particles(sampler=gj.predictor_corrector(gj.ddpm())),
        ValueError,
        r"follows the base alone.*guided=True",
    ),
    "a power from pure noise": (
        lambda: particles(gj.targets.annealed(2.0), levels=gj.levels(CLEAN, 3, gj.spacings.uniform())),
        ValueError,
        r"sum 2\.0, not 1.*alpha = 0.*t_max",
    ),
    "no exponents": (lambda: gj.targets.product({}), ValueError, r"at least one branch"),
    "an exponent for all": (lambda: gj.targets.product(2.0), TypeError, r"product: exponents.*the float 2\.0.*\{"),
    "an exponent that follows the level": (
        lambda: gj.targets.tilted(lambda level: 2.0),
        TypeError,
        r"tilted: scale must be a finite number, got the function.*one number for all levels.*low and high",
    ),
    "two exponents of a branch": (lambda: gj.targets.tilted(jnp.ones(2)), ValueError, r"tilted: scale.*\(2,\).*vmap"),
    "an exponent in words": (lambda: gj.targets.tilted("2"), TypeError, r"tilted: scale.*number.*'2'"),
    "exponents of no density": (lambda: gj.targets.product({"cond": -1.0}), ValueError, r"sum -1.*rest"),
    "the rest of a branch that has one": (
        lambda: gj.targets.product({"cond": 1.0}, rest="cond"),
        ValueError,
        r"rest='cond'.*already",
    ),
    "a reward of one number": (
        lambda: particles(gj.targets.rewarded(gj.targets.tilted(2.0), lambda x0, l: x0.sum())),
        ValueError,
        r"log_reward returns must be \[2\], got float32\[\]; .*\[B\]",
    ),
    "a reward that is a number": (
        lambda: gj.targets.rewarded(gj.targets.tilted(2.0), 1.0),
        TypeError,
        r"log_reward.*function, got the float 1\.0",
    ),
    "a reward of a guidance": (
        lambda: gj.targets.rewarded(gj.cfg(2.0), log_prob),
        TypeError,
        r"target.*a Target, got the Guidance",
    ),
    "a reward guided by a sampler": (
        lambda: gj.targets.rewarded(gj.targets.tilted(2.0), log_prob, guidance=gj.ddim()),
        TypeError,
        r"guidance.*a Guidance, got the Sampler",
    ),
    "a drift of a guidance": (lambda: gj.targets.drift(gj.cfg(2.0)), TypeError, r"target.*a Target, got the Guidance"),
    # Likelihood.
    "a likelihood with momentum": (lambda: nats(gj.apg(2.0)), ValueError, r"keeps 1 arrays.*beta=0"),
    "a likelihood of a drawn condition": (
        lambda: nats(branches=gj.branches(MIXTURE.denoise, cond=LABELS, uncond=gj.conditions.random_labels(2))),
        ValueError,
        r"the same in every step.*'uncond'.*arrays",
    ),
    "probes without keys": (lambda: nats(probes=2), ValueError, r"probes=2 needs keys.*got keys=None.*split"),
    "no probes": (lambda: nats(probes=0, keys=KEYS), ValueError, r"probes must be an integer, at least 1, got 0"),
    "a likelihood of a shape": (lambda: nats(x=(2,)), TypeError, r"x must be an array.*the tuple \(2,\)"),
    "a likelihood of bytes": (lambda: nats(x=X.astype(jnp.uint8)), TypeError, r"floating.*uint8"),
    "a likelihood of two scales": (lambda: nats(gj.cfg(jnp.ones(2))), ValueError, r"cfg: scale.*\(2,\).*one sample at a time"),
    "a likelihood of a sampler": (lambda: nats(gj.ddim()), TypeError, r"guidance.*a Guidance, got the Sampler"),
    "a likelihood along a path": (lambda: nats(schedule=PATH), TypeError, r"a Schedule, got a NoiseLevel"),
    "a likelihood of no tolerance": (lambda: nats(tolerance=0.0), ValueError, r"tolerance.*positive.*0\.0"),
    "a likelihood of no steps": (lambda: nats(max_steps=0), ValueError, r"max_steps.*at least 1.*0"),
    "bits of a size": (lambda: gj.bits_per_dimension(X[0], 784), TypeError, r"shape.*the int 784.*\(28, 28, 1\)"),
    "bits of no width": (lambda: gj.bits_per_dimension(X[0], (2,), width=0.0), ValueError, r"width.*positive.*0\.0"),
}
