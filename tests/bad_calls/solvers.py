# type: ignore  # every row is wrong, its types too
"""Wrong samplers and networks."""

import jax.numpy as jnp
from flax import linen, nnx

import guidance_jax as gj
from bad_calls.world import (
    EDM,
    LABELS,
    NULL,
    PATH,
    B,
    Row,
    X,
    log_prob,
    stepped,
)

THREE, TIMES = jnp.ones(3), jnp.ones(B)
SMALL = gj.networks.UNetConfig((8, 8, 1), classes=10, widths=(8,))
TOKENS = gj.networks.Tokens(LABELS, jnp.ones((B, 3, 4)), jnp.ones((B, 3), bool))


def unet(**wrong):
    return gj.networks.UNetConfig(**{"shape": (8, 8, 1), "classes": 10, "widths": (8, 16)} | wrong)


def dit(**wrong):
    return gj.networks.DiTConfig(**{"shape": (8, 8, 1), "classes": 10, "width": 8, "blocks": 1, "heads": 2} | wrong)


def mlp(x=X, t=TIMES, labels=LABELS, **sizes):
    made = {"shape": (2,), "classes": 3, "width": 8, "blocks": 1} | sizes
    return nnx.eval_shape(lambda: gj.networks.MLP(**made, rngs=nnx.Rngs(0))(x, t, labels))


def ask(network, config, x, cond=LABELS):
    return nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0))(x, jnp.ones(B), cond))


ROWS: dict[str, Row] = {
    # Samplers.
    "ddim of too much noise": (lambda: gj.ddim(1.5), ValueError, r"ddim: eta.*\[0, 1\].*1\.5"),
    "ddim of NaN": (lambda: gj.ddim(jnp.nan), ValueError, r"ddim: eta.*\[0, 1\].*nan"),
    "ddim of three etas": (lambda: gj.ddim(THREE), ValueError, r"ddim: eta.*\(3,\).*vmap"),
    "ddim of a schedule": (lambda: gj.ddim(EDM), TypeError, r"ddim: eta.*number.*the Schedule edm\(\)"),
    "ddpm of a middle variance": (lambda: gj.ddpm("medium"), ValueError, r"ddpm: variance.*'small' or 'large'.*'medium'"),
    "ddpm of a number": (lambda: gj.ddpm(0.5), TypeError, r"ddpm: variance.*'small' or 'large'.*0\.5"),
    "ddpm of a variance that nothing predicts": (lambda: stepped(gj.ddpm("learned")), ValueError, r"learned.*learned_variance"),
    "a sampler on Karras' levels": (
        lambda: gj.dpmpp_2m(use_karras_sigmas=True),
        TypeError,
        r"dpmpp_2m: .*'use_karras_sigmas'; .*gj\.spacings\.karras\(\)\); it takes no arguments",
    ),
    "an argument of a sampler that takes none": (
        lambda: gj.dpmpp_2m(2),
        TypeError,
        r"dpmpp_2m: too many positional arguments; it takes no arguments",
    ),
    "a variance of diffusers": (
        lambda: gj.ddpm("fixed_small"),
        ValueError,
        r"variance must be 'small'.*got 'fixed_small'; it is 'small' here",
    ),
    "churn of before": (lambda: gj.heun(churn=0.2), TypeError, r"heun: got an unexpected keyword argument 'churn'"),
    "churn without a schedule": (
        lambda: gj.churn(gj.heun()),
        TypeError,
        r"churn: schedule is missing; use gj\.schedules\.cosine\(\)",
    ),
    "churn without an amount": (lambda: gj.churn(gj.heun(), EDM), TypeError, r"churn: amount is missing"),
    "churn without a sampler": (lambda: gj.churn(EDM, 0.2), TypeError, r"churn: amount is missing|churn: sampler.*a Sampler"),
    "churn for the schedule": (lambda: gj.churn(gj.euler(), 0.2, EDM), TypeError, r"a Schedule, got the float 0\.2"),
    "churn below zero": (lambda: gj.churn(gj.euler(), EDM, -0.2), ValueError, r"churn: amount.*\[0, inf\).*-0\.2"),
    "endless churn": (lambda: gj.churn(gj.heun(), EDM, jnp.inf), ValueError, r"churn: amount.*in \[0, inf\), got inf"),
    "churn of two amounts": (lambda: gj.churn(gj.heun(), EDM, jnp.ones(2)), ValueError, r"churn: amount.*\(2,\).*vmap"),
    "churn in a reversed interval": (
        lambda: gj.churn(gj.heun(), EDM, 0.1, 5.0, 1.0),
        ValueError,
        r"churn: low must be at most high, got low 5\.0 and high 1\.0",
    ),
    "endless noise": (
        lambda: gj.churn(gj.euler(), EDM, 0.1, noise_scale=jnp.inf),
        ValueError,
        r"churn: noise_scale.*\[0, inf\), got inf",
    ),
    "an SDE of endless noise": (lambda: gj.heun_sde(jnp.inf), ValueError, r"heun_sde: eta.*\[0, inf\), got inf"),
    "endless curvature": (lambda: gj.dpmpp_3m(curvature=jnp.inf), ValueError, r"dpmpp_3m: curvature.*\[0, inf\), got inf"),
    "known data of NaN": (
        lambda: gj.inpaint(gj.ddpm(), jnp.nan, 1),
        ValueError,
        r"inpaint: known must be finite.*in 1 places",
    ),
    "levels that float32 flushes to zero": (
        lambda: stepped(gj.unipc(), levels=PATH.replace(sigma=PATH.sigma.at[2].set(1e-38))),
        ValueError,
        r"levels must have .*sigma >= 0, at least 1\.1e-19 unless it is 0.*got.*level 2",
    ),
    "churn in words": (lambda: gj.churn(gj.heun(), EDM, "some"), TypeError, r"churn: amount.*number.*'some'"),
    "churn with a schedule, not called": (
        lambda: gj.churn(gj.heun(), gj.schedules.edm, 0.2),
        TypeError,
        r"a Schedule.*function edm.*call it, edm\(",
    ),
    "ancestral below zero": (lambda: gj.euler_ancestral(-1.0), ValueError, r"euler_ancestral: eta.*-1"),
    "dpmpp_2s of a path": (lambda: gj.dpmpp_2s(PATH), TypeError, r"a Schedule, got a NoiseLevel"),
    "dpmpp_2s of negative noise": (lambda: gj.dpmpp_2s(EDM, noise_scale=-1.0), ValueError, r"dpmpp_2s: noise_scale.*-1"),
    "dpmpp_3m of a negative curvature": (lambda: gj.dpmpp_3m(curvature=-0.5), ValueError, r"dpmpp_3m: curvature.*-0\.5"),
    "dpmpp_sde of negative noise": (lambda: gj.dpmpp_sde(-1.0), ValueError, r"dpmpp_sde: eta.*-1"),
    "heun_sde of three etas": (lambda: gj.heun_sde(THREE), ValueError, r"heun_sde: eta.*\(3,\).*vmap"),
    "unipc of order four": (lambda: gj.unipc(4), ValueError, r"order must be 1, 2 or 3.*4"),
    "unipc of a third variant": (lambda: gj.unipc(variant=3), ValueError, r"variant must be 1 or 2.*3"),
    "recur never": (lambda: gj.recur(gj.ddim(), 0), ValueError, r"recur: times.*at least 1.*0"),
    "recur one time and a half": (lambda: gj.recur(gj.ddim(), 1.5), TypeError, r"recur: times.*integer.*1\.5"),
    "recur what remembers": (lambda: stepped(gj.recur(gj.dpmpp_2m(), 2)), ValueError, r"remembers the step before.*ddim\(\)"),
    "recur a guidance": (lambda: gj.recur(gj.cfg(2.0), 2), TypeError, r"recur: sampler.*a Sampler, got the Guidance cfg"),
    "recur in a reversed interval": (
        lambda: gj.recur(gj.ddim(), 2, 5.0, 1.0),
        ValueError,
        r"recur: low must be below high, got low 5\.0 and high 1\.0",
    ),
    "an image in bytes": (
        lambda: gj.inpaint(gj.ddpm(), jnp.full((B, 2), 200, jnp.uint8), jnp.ones(2)),
        TypeError,
        r"inpaint: known must be floating, got uint8\[2,2\].*scale images to \[-1, 1\]",
    ),
    "a sampler of another schedule": (
        lambda: stepped(gj.dpmpp_2s(gj.schedules.cosine())),
        ValueError,
        r"schedule must match the levels: at sigma / alpha = .* its t .*; use one schedule for both",
    ),
    "churn by another schedule, within": (
        lambda: stepped(gj.forget(gj.churn(gj.heun(), gj.schedules.flow(), 0.2), 1.0)),
        ValueError,
        r"schedule must match the levels",
    ),
    "a mask of percents": (lambda: gj.inpaint(gj.ddpm(), X, 100 * X), ValueError, r"inpaint: mask.*in \[0, 1\].*100"),
    "a mask of another shape": (
        lambda: stepped(gj.inpaint(gj.ddpm(), X, THREE)),
        ValueError,
        r"mask has shape \(3,\).*\(2, 2\)",
    ),
    "known data of another shape": (
        lambda: stepped(gj.inpaint(gj.ddpm(), THREE, 1)),
        ValueError,
        r"known has shape \(3,\).*\(2, 2\)",
    ),
    "a mask before its sampler": (
        lambda: gj.inpaint(X, X, gj.ddpm()),
        TypeError,
        r"inpaint: sampler.*a Sampler, got float32\[2,2\]",
    ),
    "known data in words": (lambda: gj.inpaint(gj.ddpm(), "left", 1), TypeError, r"inpaint: known.*number.*'left'"),
    "post_step of three scales": (
        lambda: stepped(gj.post_step(gj.ddim(), log_prob, THREE)),
        ValueError,
        r"post_step: scale.*\(3,\)",
    ),
    "post_step of one number": (
        lambda: stepped(gj.post_step(gj.ddim(), lambda x, l: x.sum(), 1.0)),
        ValueError,
        r"log_prob returns must be \[2\], got float32\[\]; .*\[B\]",
    ),
    "post_step of a scale alone": (
        lambda: gj.post_step(gj.ddim(), 1.0, log_prob),
        TypeError,
        r"log_prob.*function, got the float 1\.0",
    ),
    "fewer corrections than none": (
        lambda: gj.predictor_corrector(gj.ddim(), -1),
        ValueError,
        r"predictor_corrector: corrections.*at least 0, got -1",
    ),
    "half a correction": (lambda: gj.predictor_corrector(gj.ddim(), 0.5), TypeError, r"corrections.*integer.*0\.5"),
    "corrections of three sizes": (lambda: stepped(gj.predictor_corrector(gj.ddim(), size=THREE)), ValueError, r"size.*\(3,\)"),
    "a corrector without a predictor": (lambda: gj.predictor_corrector(2), TypeError, r"predictor.*a Sampler, got the int 2"),
    "forget nowhere": (
        lambda: gj.forget(gj.dpmpp_2m()),
        ValueError,
        r"forget: there must be at least one ratio, as in forget",
    ),
    "forget at a vector": (lambda: gj.forget(gj.dpmpp_2m(), THREE), ValueError, r"forget: ratios.*\(3,\).*scalar"),
    "forget at NaN": (lambda: gj.forget(gj.dpmpp_2m(), jnp.nan), ValueError, r"forget: ratios\[0\].*nan"),
    "forget a ratio": (lambda: gj.forget(1.0, gj.dpmpp_2m()), TypeError, r"forget: sampler.*a Sampler, got the float 1\.0"),
    "restart without a schedule": (
        lambda: gj.restart(gj.heun(), 2, 2, 0.06, 0.3),
        TypeError,
        r"restart: schedule must be a Schedule, got the int 2",
    ),
    "restart for the schedule": (lambda: gj.restart(gj.heun(), 2, EDM, 2, 0.1, 1.0), TypeError, r"a Schedule, got the int 2"),
    "restart as before": (
        lambda: gj.restart(gj.dpmpp_2m(), 0.2, 2.0),
        TypeError,
        r"restart: schedule must be .*the float 0\.2",
    ),
    "restart in no steps": (lambda: gj.restart(gj.heun(), EDM, 0, 2, 0.1, 1.0), ValueError, r"restart: steps.*at least 1.*0"),
    "restart never": (lambda: gj.restart(gj.heun(), EDM, 2, 0, 0.1, 1.0), ValueError, r"restart: times.*at least 1.*0"),
    "restart one time and a half": (lambda: gj.restart(gj.heun(), EDM, 2, 1.5, 0.1, 1.0), TypeError, r"times.*integer.*1\.5"),
    "restart in a reversed interval": (
        lambda: gj.restart(gj.heun(), EDM, 2, 2, 1.0, 0.1),
        ValueError,
        r"restart: low must be below high, got low 1\.0 and high 0\.1",
    ),
    "restart from data": (lambda: gj.restart(gj.heun(), EDM, 2, 2, 0.0, 1.0), ValueError, r"restart: low.*positive.*0"),
    "restart from endless noise": (
        lambda: gj.restart(gj.heun(), EDM, 2, 2, 0.1, jnp.inf),
        ValueError,
        r"restart: high.*positive.*inf",
    ),
    "restart at a vector": (lambda: gj.restart(gj.heun(), EDM, 2, 2, THREE / 10, 9.0), ValueError, r"low.*\(3,\).*vmap"),
    "restart with negative noise": (
        lambda: gj.restart(gj.heun(), EDM, 2, 2, 0.1, 1.0, noise_scale=-1.0),
        ValueError,
        r"restart: noise_scale.*\[0, inf\), got -1",
    ),
    "restart by another schedule": (
        lambda: stepped(gj.restart(gj.heun(), gj.schedules.flow(), 2, 2, 0.1, 1.0)),
        ValueError,
        r"the sampler.s schedule must match the levels: at sigma / alpha = ",
    ),
    "restart backwards": (
        lambda: stepped(gj.restart(gj.heun(), EDM, 2, 2, 0.1, 1.0), levels=gj.schedules.reverse(PATH)),
        ValueError,
        r"from data to noise, and this sampler cannot; use ddim\(\) or heun\(\)",
    ),
    "a kernel of a mean alone": (
        lambda: stepped(gj.samplers.gaussian(lambda p, a, b: p.x0)),
        TypeError,
        r"kernel.*\(mean, deviation\).*0\.0 to draw nothing, got float32\[2,2\]",
    ),
    "a projection of another shape": (
        lambda: stepped(gj.projected(gj.ddim(), lambda x: x[:, :1])),
        ValueError,
        r"projected: what project returns must be \[2, 2\], got float32\[2,1\]; .*shaped as x",
    ),
    "a projection that is none": (
        lambda: gj.projected(gj.ddim(), X),
        TypeError,
        r"projected: project.*function, got float32\[2,2\]",
    ),
    "a projection of a level": (
        lambda: gj.projected(gj.ddim(), lambda x, level: x),
        TypeError,
        r"projected: project must take \(x\), but .* takes \(x, level\)",
    ),
    "a kernel that is none": (lambda: gj.samplers.gaussian(1.0), TypeError, r"kernel.*function, got the float 1\.0"),
    # Networks.
    "images of another size": (
        lambda: ask(gj.networks.UNet, SMALL, jnp.ones((B, 4, 4, 1))),
        ValueError,
        r"samples of \(8, 8, 1\), got x of shape \(2, 4, 4, 1\)",
    ),
    "points of another size": (lambda: mlp(jnp.ones((B, 3))), ValueError, r"samples of 2 numbers, got x of shape \(2, 3\)"),
    "a label beyond the null": (lambda: mlp(labels=jnp.array([0, 4])), ValueError, r"label 4.*0\.\.3"),
    "a negative label": (lambda: mlp(labels=NULL), ValueError, r"label -1.*0\.\.3"),
    "float labels of a network": (lambda: mlp(labels=jnp.ones(B)), TypeError, r"integer labels.*float32"),
    "labels of another batch": (
        lambda: mlp(labels=jnp.zeros(3, int)),
        ValueError,
        r"labels must be \[B\] = \(2,\).*got int32\[3\]",
    ),
    "one time for all": (lambda: mlp(t=jnp.float32(0.5)), ValueError, r"t must be \[B\] = \(2,\).*got float32\[\]"),
    "a network of no width": (lambda: mlp(width=0), ValueError, r"width.*at least 1.*0"),
    "a network of half a block": (lambda: mlp(blocks=1.5), TypeError, r"blocks.*integer.*1\.5"),
    "a U-Net of one axis": (lambda: unet(shape=(8,)), ValueError, r"\(height, width, channels\).*\(8,\)"),
    "a U-Net that does not halve": (lambda: unet(shape=(9, 9, 1)), ValueError, r"halve evenly.*shape \(9, 9, 1\)"),
    "a U-Net of odd groups": (lambda: unet(widths=(12,)), ValueError, r"multiples of groups.*\(12,\).*8"),
    "a U-Net of no levels": (lambda: unet(widths=()), ValueError, r"widths.*at least one level"),
    "attention at no level": (lambda: unet(attention=(2,)), ValueError, r"attention must name levels.*\(2,\)"),
    "heads that do not divide": (lambda: unet(attention=(0,), heads=3), ValueError, r"divide into heads.*8.*heads 3"),
    "a U-Net of half precision": (lambda: unet(dtype="float16"), ValueError, r"'float32' or 'bfloat16', got 'float16'"),
    "a U-Net of a number": (lambda: unet(shape=8), TypeError, r"shape must be .height, width, channels..*got the int 8"),
    "patches that do not divide": (lambda: dit(patch=3), ValueError, r"squares of patch pixels.*\(8, 8, 1\).*3"),
    "a DiT of odd heads": (lambda: dit(heads=3), ValueError, r"divide into heads.*8.*heads 3"),
    "a perturbed block that is not there": (lambda: dit(perturbed=(1,)), ValueError, r"perturbed must name blocks.*\(1,\)"),
    "tokens for a DiT of labels": (
        lambda: ask(gj.networks.DiT, dit(), jnp.ones((B, 8, 8, 1)), TOKENS),
        ValueError,
        r"no tokens.*tokens=",
    ),
    "tokens of another width": (
        lambda: ask(gj.networks.DiT, dit(tokens=8), jnp.ones((B, 8, 8, 1)), TOKENS),
        ValueError,
        r"width 8, got.*width 4",
    ),
    "sizes for a config": (
        lambda: gj.networks.UNet((8, 8, 1), rngs=nnx.Rngs(0)),
        TypeError,
        r"config.*a UNetConfig.*\(8, 8, 1\)",
    ),
    "another network's config": (
        lambda: gj.networks.DiT(SMALL, rngs=nnx.Rngs(0)),
        TypeError,
        r"config.*a DiTConfig, got a UNetConfig",
    ),
    "a class for a module": (lambda: gj.networks.from_nnx(gj.networks.MLP), TypeError, r"a Module, got the class MLP"),
    "a Linen module for NNX": (lambda: gj.networks.from_nnx(linen.Dense(2)), TypeError, r"a Module, got a Dense.*from_linen"),
    "a method that is not there": (
        lambda: gj.networks.from_nnx(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), "encode"),
        ValueError,
        r"method must name a method of the module.*a Linear.*'encode'",
    ),
    "Linen without variables": (
        lambda: gj.networks.from_linen(linen.Dense(2), {"kernel": X}),
        ValueError,
        r'"params", as module\.init gives it, got variables a dictionary of \'kernel\'\.$',
    ),
    "an NNX module for Linen": (
        lambda: gj.networks.from_linen(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), {"params": {}}),
        TypeError,
        r"a Module, got a Linear.*from_nnx",
    ),
}
