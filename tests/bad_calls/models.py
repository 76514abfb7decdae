# type: ignore  # every row is wrong, its types too
"""Wrong paths, schedules and denoisers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import guidance_jax as gj
from bad_calls.world import (
    DISCRETE,
    EDM,
    LABELS,
    LEVEL,
    MIXTURE,
    NULL,
    PATH,
    TORCH,
    Row,
    Tensor,
    TorchModule,
    X,
    sampled,
    through,
)

KARRAS, THREE = gj.spacings.karras(), jnp.ones(3)


ROWS: dict[str, Row] = {
    # Paths.
    "steps as in diffusers": (
        lambda: gj.levels(EDM, num_inference_steps=20, spacing=KARRAS),
        TypeError,
        r"levels: .*'num_inference_steps'; did you mean steps\? it takes schedule, steps, spacing",
    ),
    "a spacing of PyTorch": (lambda: gj.levels(EDM, 3, lambda s, n: Tensor(3)), TypeError, rf"time must be.*{TORCH}"),
    "karras in k-diffusion's order": (
        lambda: gj.spacings.karras(0.1, 10.0),
        ValueError,
        r"karras: rho must come first, then sigma_min and sigma_max, got rho 0\.1 and .*use karras\(sigma_min=",
    ),
    "no steps": (lambda: gj.levels(EDM, 0, KARRAS), ValueError, r"steps.*at least 1.*0"),
    "half a step": (lambda: gj.levels(EDM, 2.5, KARRAS), TypeError, r"steps.*integer.*2\.5"),
    "a spacing for the steps": (lambda: gj.levels(EDM, KARRAS, 10), TypeError, r"steps.*integer.*the Function karras"),
    "a schedule, not called": (
        lambda: gj.levels(gj.schedules.cosine, 10, KARRAS),
        TypeError,
        r"a Schedule.*function cosine.*call it, cosine\(",
    ),
    "a schedule's name": (lambda: gj.levels("cosine", 10, KARRAS), TypeError, r"a Schedule.*'cosine'.*schedules\.cosine\(\)"),
    "levels without a spacing": (
        lambda: gj.levels(EDM, 10),
        TypeError,
        r"^levels: spacing is missing; use gj\.spacings\.karras\(\)\.$",
    ),
    "rates that are traced": (
        lambda: jax.jit(lambda rates: gj.schedules.discrete(rates)(0).t)(THREE / 9),
        ValueError,
        r"discrete: betas must be known.*traced.*outside of jit",
    ),
    "a spacing, not called": (
        lambda: gj.levels(EDM, 10, gj.spacings.karras),
        TypeError,
        r"levels: spacing.*function karras: call it, karras\(",
    ),
    "a spacing's name": (lambda: gj.levels(EDM, 10, "karras"), TypeError, r"spacing.*function.*'karras'.*karras\(\)"),
    "a spacing of another length": (
        lambda: gj.levels(EDM, 10, lambda s, n: jnp.ones(3)),
        ValueError,
        r"\[steps\] = \(10,\).*\(3,\)",
    ),
    "a spacing that takes no steps": (
        lambda: gj.levels(EDM, 10, lambda s: jnp.ones(3)),
        TypeError,
        r"spacing.*\(schedule, steps\).*takes \(s\)",
    ),
    "a spacing upward": (
        lambda: gj.levels(EDM, 3, lambda s, n: jnp.linspace(s.t_min, s.t_max, n)),
        ValueError,
        r"must decrease.*sigma \[0\.002 .*from level 0 on",
    ),
    "more steps than were trained": (
        lambda: gj.levels(DISCRETE, 1001, gj.spacings.uniform()),
        ValueError,
        r"at most the 1000 training steps.*got 1001",
    ),
    "karras to infinity": (
        lambda: gj.levels(gj.schedules.flow(), 5, KARRAS),
        ValueError,
        r"karras: sigma_max must be finite, got the schedule's inf.*; begin at karras\(sigma_max=80\.0\), or use uniform\(\)",
    ),
    "exponential to infinity": (
        lambda: gj.levels(gj.schedules.flow(), 5, gj.spacings.exponential()),
        ValueError,
        r"exponential: sigma_max must be finite, got the schedule's inf.*; begin at exponential\(sigma_max=80\.0\), or use",
    ),
    "karras of no rho": (lambda: gj.spacings.karras(rho=0.0), ValueError, r"karras: rho.*positive.*0\.0"),
    "karras of a schedule": (lambda: gj.spacings.karras(EDM, 10), TypeError, r"karras: rho.*number.*the Schedule edm\(\)"),
    "karras to a negative sigma": (
        lambda: gj.spacings.karras(sigma_min=-0.1),
        ValueError,
        r"karras: sigma_min.*positive.*-0\.1",
    ),
    "karras reversed": (
        lambda: gj.levels(EDM, 5, gj.spacings.karras(7.0, 80.0, 0.002)),
        ValueError,
        r"karras: sigma_min must be below sigma_max, got 80.*0\.002",
    ),
    "quadratic beyond the end": (
        lambda: gj.spacings.quadratic(1.5),
        ValueError,
        r"quadratic: reach.*above 0 and at most 1.*1\.5",
    ),
    "leading by a negative offset": (lambda: gj.spacings.leading(-1), ValueError, r"offset.*at least 0.*-1"),
    "leading by half a step": (lambda: gj.spacings.leading(0.5), TypeError, r"offset.*integer.*0\.5"),
    "a path of a sampler": (
        lambda: gj.schedules.reverse(gj.ddim()),
        TypeError,
        r"a NoiseLevel.*got the Sampler ddim\(\).*gj\.levels",
    ),
    "no level to reverse": (lambda: gj.schedules.reverse(LEVEL), ValueError, r"\[steps \+ 1\].*\(\)"),
    "a sigma for a time": (
        lambda: EDM(80.0),
        ValueError,
        r"time 80 is outside of this schedule.*-1\.55.* to 1\.09.*schedule\.at\(ratio\)",
    ),
    "sigmas of another model": (
        lambda: gj.levels(DISCRETE, 3, gj.spacings.karras(sigma_min=0.1, sigma_max=800.0)),
        ValueError,
        r"karras: sigma_max = 800\.0 is beyond the levels of this discrete schedule, which end at 157",
    ),
    "a strength, traced": (
        lambda: jax.jit(lambda share: gj.schedules.strength(PATH, share))(0.5),
        ValueError,
        r"strength: share.*traced.*outside of jit",
    ),
    "a ratio, traced": (
        lambda: jax.jit(lambda r: gj.schedules.below(PATH, r))(1.0),
        ValueError,
        r"ratio must be known.*traced.*outside",
    ),
    "parameters that are not bound": (
        lambda: through(gj.networks.from_nnx(nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0)))[0]),
        TypeError,
        r"apply takes the parameters first, got float32\[2,2\]; bind them.*network, called with x float32\[2,2\], t ",
    ),
    "a Linen module's own apply": (
        lambda: gj.denoiser(linen.Dense(2).apply, "x0"),
        TypeError,
        r"hold its parameters.*from_linen",
    ),
    "a strength of nothing": (lambda: gj.schedules.strength(PATH, 0.0), ValueError, r"strength.*at most 1, got 0\.0"),
    "a strength above one": (lambda: gj.schedules.strength(PATH, 1.5), ValueError, r"strength.*at most 1, got 1\.5"),
    "a strength that leaves no step": (lambda: gj.schedules.strength(PATH, 0.1), ValueError, r"at least one step.*0\.1 of 3"),
    "a strength of a schedule": (
        lambda: gj.schedules.strength(EDM, 0.5),
        TypeError,
        r"a NoiseLevel.*got the Schedule edm\(\).*gj\.levels",
    ),
    "below what is there": (lambda: gj.schedules.below(PATH, 1e-4), ValueError, r"at least one step.*0\.0001"),
    "below, traced": (lambda: jax.jit(lambda p: gj.schedules.below(p, 1.0))(PATH), ValueError, r"traced.*outside of jit"),
    # Schedules.
    "a time of PyTorch": (lambda: EDM(Tensor(2)), TypeError, rf"time must be.*{TORCH}"),
    "a ratio of PyTorch": (lambda: EDM.at(Tensor(2)), TypeError, rf"at: ratio must be.*{TORCH}"),
    "rates of PyTorch": (lambda: gj.schedules.discrete(Tensor(10)), TypeError, rf"discrete: betas.*{TORCH}"),
    "cumulative alphas for rates": (
        lambda: gj.schedules.discrete(DISCRETE(jnp.arange(1000)).alpha ** 2),
        ValueError,
        r"discrete: betas must leave alpha.*got 0 in float32; for alphas_cumprod a, use 1 - a / ",
    ),
    "a negative time": (lambda: gj.schedules.cosine()(-0.1), ValueError, r"time -0\.1 is outside.*0\.001 to 0\.992"),
    "a time beyond the data": (lambda: gj.schedules.linear()(-0.1), ValueError, r"time -0\.1 is outside.*1e-05 to 1"),
    "a time beyond the noise": (
        lambda: gj.schedules.flow()(jnp.array([0.5, 1.2])),
        ValueError,
        r"time 1\.2 is outside.*alpha would be -0\.2 and sigma 1\.2",
    ),
    "a step after the last": (lambda: DISCRETE(1000), ValueError, r"time 1000 must be one of the 1000 .*0 to 999"),
    "a step before the first": (lambda: DISCRETE(-1), ValueError, r"time -1 must be one of the 1000 .*0 to 999"),
    "a time in words": (lambda: EDM("0.5"), TypeError, r"time.*number.*'0\.5'"),
    "a complex time": (lambda: EDM(1j), TypeError, r"time.*real.*1j"),
    "a ratio in words": (lambda: EDM.at("high"), TypeError, r"ratio.*number.*'high'"),
    "a rate of one": (lambda: gj.schedules.discrete(np.ones(10)), ValueError, r"\(0, 1\).*\(10,\)"),
    "rates of two axes": (lambda: gj.schedules.discrete(np.full((2, 5), 0.1)), ValueError, r"one-dimensional.*\(2, 5\)"),
    "rates of NaN": (lambda: gj.schedules.discrete(np.array([0.1, np.nan])), ValueError, r"\(0, 1\).*nan"),
    "no rates": (lambda: gj.schedules.discrete(np.zeros(0)), ValueError, r"\(0,\)"),
    "rates that are none": (lambda: gj.schedules.discrete("linear"), TypeError, r"betas.*number.*'linear'"),
    "a schedule of no steps": (lambda: gj.schedules.ddpm_linear(0), ValueError, r"steps.*at least 1.*0"),
    "scaled_linear of half a step": (lambda: gj.schedules.scaled_linear(10.5), TypeError, r"steps.*integer.*10\.5"),
    "ddpm_cosine of fewer than no steps": (lambda: gj.schedules.ddpm_cosine(-1), ValueError, r"steps.*at least 1.*-1"),
    "cosine beyond its end": (lambda: gj.schedules.cosine(t_max=1.5), ValueError, r"cosine: t_max.*\[0, 1\].*1\.5"),
    "cosine reversed": (
        lambda: gj.schedules.cosine(0.9, 0.1),
        ValueError,
        r"cosine: t_min must be below t_max, got t_min 0\.9 and t_max 0\.1",
    ),
    "flow in training steps": (lambda: gj.schedules.flow(0, 1000), ValueError, r"flow: t_max.*\[0, 1\].*1000"),
    "linear of a negative rate": (lambda: gj.schedules.linear(beta_min=-0.1), ValueError, r"linear: beta_min.*-0\.1"),
    "linear of falling rates": (
        lambda: gj.schedules.linear(20.0, 0.1),
        ValueError,
        r"linear: beta_min must be below beta_max, got beta_min 20\.0 and beta_max 0\.1",
    ),
    "edm from no noise": (lambda: gj.schedules.edm(sigma_min=0.0), ValueError, r"edm: sigma_min.*positive.*0\.0"),
    "edm reversed": (
        lambda: gj.schedules.edm(80.0, 0.002),
        ValueError,
        r"edm: sigma_min must be below sigma_max, got sigma_min 80\.0 and sigma_max 0\.002",
    ),
    "edm of words": (lambda: gj.schedules.edm("min"), TypeError, r"edm: sigma_min.*number.*'min'"),
    "shift of a discrete schedule": (
        lambda: gj.schedules.shift(DISCRETE, 3.0),
        ValueError,
        r"continuous.*got schedule ddpm_linear.*discrete\(betas\)",
    ),
    "shift by nothing": (lambda: gj.schedules.shift(EDM, 0.0), ValueError, r"shift: factor.*positive number, got 0\.0"),
    "shift by three": (lambda: gj.schedules.shift(EDM, THREE), ValueError, r"shift.*\(3,\).*scalar"),
    "shift by a schedule": (lambda: gj.schedules.shift(3.0, EDM), TypeError, r"a Schedule, got the float 3\.0"),
    "zero terminal SNR of a continuous schedule": (
        lambda: gj.schedules.zero_terminal_snr(EDM),
        ValueError,
        r"discrete.*two steps.*got schedule edm.*t_max",
    ),
    "zero terminal SNR of a path": (lambda: gj.schedules.zero_terminal_snr(PATH), TypeError, r"a Schedule, got a NoiseLevel"),
    # Denoisers.
    "a prediction type": (
        lambda: gj.denoiser(lambda x, t, y: x, prediction_type="eps"),
        TypeError,
        r"denoiser: .*'prediction_type'; did you mean predicts\?",
    ),
    "a prediction of diffusers": (
        lambda: gj.denoiser(lambda x, t, y: x, "epsilon"),
        ValueError,
        r"predicts.*got 'epsilon'; it is 'eps' here",
    ),
    "a network of PyTorch": (
        lambda: gj.denoiser(TorchModule(), "eps"),
        TypeError,
        r"denoiser: network must be JAX code, got the PyTorch object TorchModule; write it in Flax",
    ),
    "a network that returns a tensor": (lambda: through(lambda x, t, y: Tensor(2, 2)), TypeError, rf"output must be.*{TORCH}"),
    "a clipped network": (
        lambda: gj.denoisers.clip(lambda x, t, y: x)(X, LEVEL, LABELS),
        TypeError,
        r"the denoiser must return a Prediction, got float32\[2,2\]; use gj\.denoiser",
    ),
    "a network and its parameters": (
        lambda: gj.denoiser((lambda p, x, t, y: x, {}), "eps"),
        TypeError,
        r"network must be a function, got the tuple.*Partial\(apply, params\)",
    ),
    "an unknown prediction": (lambda: gj.denoiser(lambda x, t, y: x, "noise"), ValueError, r"'eps' or 'x0'.*got 'noise'"),
    "no word of what is predicted": (lambda: gj.denoiser(lambda x, t, y: x, None), TypeError, r"predicts.*'eps'.*None"),
    "predictions in a list": (
        lambda: gj.denoiser(lambda x, t, y: x, ["eps"]),
        TypeError,
        r"predicts.*'eps'.*got the list \['eps'\]",
    ),
    "a network behind what it predicts": (
        lambda: gj.denoiser("eps", lambda x, t, y: x),
        TypeError,
        r"network.*function, got the str 'eps'",
    ),
    "params for a network": (lambda: gj.denoiser({"kernel": X}, "eps"), TypeError, r"network.*function, got the dict"),
    "a network's class": (lambda: gj.denoiser(gj.networks.MLP, "eps"), TypeError, r"network.*the class MLP.*rngs"),
    "a Linen module": (lambda: gj.denoiser(linen.Dense(2), "eps"), TypeError, r"network.*a Dense.*from_linen"),
    "a network of another shape": (
        lambda: through(lambda x, t, y: x[:, :1]),
        ValueError,
        r"must be \[\d, 2\], got float32\[\d,1\].*shaped as x.*learned_variance",
    ),
    "a network of two outputs": (
        lambda: through(lambda x, t, y: (x, None)),
        TypeError,
        r"network's output must be an array.*got the tuple",
    ),
    "a network of nothing": (lambda: through(lambda x, t, y: None), TypeError, r"network's output must be an array.*got None"),
    "a network of classes": (
        lambda: through(lambda x, t, y: x.astype(int)),
        TypeError,
        r"network's output must be.*floating.*got int32\[\d,2\]",
    ),
    "a network of complex numbers": (
        lambda: through(lambda x, t, y: x * 1j),
        TypeError,
        r"network's output must be.*floating.*got complex64\[\d,2\]",
    ),
    "a network that takes no condition": (
        lambda: through(lambda x, t: x),
        TypeError,
        r"network.*\(x, t, cond\).*takes \(x, t\)",
    ),
    "a time for a level": (
        lambda: gj.denoiser(lambda x, t, y: x, "x0")(X, 0.5, None),
        TypeError,
        r"level.*a NoiseLevel, got the float 0\.5.*schedule\(t\)",
    ),
    "a schedule for a level": (
        lambda: gj.denoiser(lambda x, t, y: x, "x0")(X, EDM, None),
        TypeError,
        r"level.*a NoiseLevel, got the Schedule",
    ),
    "three levels for two samples": (
        lambda: gj.denoiser(lambda x, t, y: x, "x0")(X, EDM(THREE), None),
        ValueError,
        r"level.*\[B\] = \(2,\).*\(3,\)",
    ),
    "a variance without channels": (
        lambda: sampled(
            branches=gj.branches(gj.denoisers.learned_variance(lambda x, t, y: x, "eps"), cond=LABELS, uncond=NULL)
        ),
        ValueError,
        r"must be \[2, 4\], got float32\[2,2\].*twice the channels",
    ),
    "data of no deviation": (lambda: gj.denoisers.edm(lambda x, t, y: x, 0.0), ValueError, r"edm: sigma_data.*positive.*0\.0"),
    "data of two deviations": (
        lambda: gj.denoisers.edm(lambda x, t, y: x, jnp.ones(2)),
        ValueError,
        r"edm: sigma_data.*\(2,\).*scalar",
    ),
    "a reversed range": (
        lambda: gj.denoisers.clip(MIXTURE.denoise, 1.0, -1.0),
        ValueError,
        r"clip: low must be below high, got low 1\.0 and high -1\.0",
    ),
    "a clipped range": (lambda: gj.denoisers.clip(-1.0, 1.0), TypeError, r"denoise.*function, got the float -1\.0"),
}
