"""Every method and every sampler, called as a user would, on one small world."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from worlds import keys

import guidance_jax as gj

B, SHAPE = 4, (8, 2)
CONDS = ("cond", "uncond", "weak", "perturbed", "random", "retimed", "negative", "image")


class World(NamedTuple):
    """The arrays of a batch, one row per sample: its key, the conditions of its branches, and the targets of its guidance."""

    keys: jax.Array
    conds: dict[str, Any]
    target: jax.Array

    def log_prob(self, x0):
        return -((x0 - self.target) ** 2).mean((1, 2))

    def noisy(self, x, level):
        return self.log_prob(x) / (1 + level.sigma**2)


def world(dtype=float, batch=B):
    rng = np.random.default_rng(0)
    conds = {name: jnp.asarray(rng.normal(size=(B, 2))[:batch], dtype) for name in CONDS}
    return World(keys(B)[:batch], conds, jnp.asarray(rng.normal(size=(B, *SHAPE))[:batch], dtype))


def network(x, t, cond):
    wave = jnp.linspace(0.5, 1.5, SHAPE[0], dtype=x.dtype)[None, :, None]
    return jnp.tanh(x * wave + cond[:, None] * wave**2) + 0.3 * t[:, None, None]


class Row(NamedTuple):
    make: Callable[[Any, World], gj.Guidance]
    usual: float = 2.5
    neutral: float = 1.0
    """The value at which it changes nothing."""
    source: gj.Guidance = gj.chain()
    """What stands before it; for `cfg_pp`, whose base is the unconditional model, what it then is."""


def shaper(make, usual, neutral):
    return Row(lambda v, w: gj.chain(gj.cfg(2.0), make(v)), usual, neutral, gj.cfg(2.0))


def gradient(make, usual=0.3):
    return Row(make, usual, 0.0)


TABLE = {
    "cfg": Row(lambda v, w: gj.cfg(v)),
    "autoguidance": Row(lambda v, w: gj.autoguidance(v)),
    "compose": Row(lambda v, w: gj.compose({"cond": v, "negative": 1 - v})),
    "dual_cfg": Row(lambda v, w: gj.dual_cfg(v, (1 + v) / 2)),
    "perturbed": Row(lambda v, w: gj.perturbed(v), neutral=0.0),
    "icg": Row(lambda v, w: gj.icg(v)),
    "tsg": Row(lambda v, w: gj.tsg(v)),
    "perp_neg": Row(lambda v, w: gj.perp_neg(v, {"negative": v - 1})),
    "tcfg": Row(lambda v, w: gj.tcfg(v)),
    "mambo_g": Row(lambda v, w: gj.mambo_g(v, 2.0)),
    "power_law": Row(lambda v, w: gj.power_law(v)),
    "beta_cfg": Row(lambda v, w: gj.in_space("eps", gj.beta_cfg(v, (v - 1) / 5))),
    "recfg": Row(lambda v, w: gj.in_space("eps", gj.recfg(v, 0.9))),
    "fdg": Row(lambda v, w: gj.fdg((v, (1 + v) / 2))),
    "fresca": Row(lambda v, w: gj.fresca(v, 1.0, (9 + v) / 10)),
    "classifier": gradient(lambda v, w: gj.classifier(w.noisy, v)),
    "mean_shift": gradient(lambda v, w: gj.mean_shift(w.noisy, v, at_mean=True)),
    "universal": gradient(lambda v, w: gj.universal(w.log_prob, v, inner_steps=2, rate=v / 5)),
    "dps": gradient(lambda v, w: gj.dps(lambda x0: {"half": x0[:, :4]}, {"half": w.target[:, :4]}, v)),
    "freedom": gradient(lambda v, w: gj.freedom(w.log_prob, v)),
    "mpgd": gradient(lambda v, w: gj.mpgd(w.log_prob, v)),
    "pigdm": gradient(
        lambda v, w: gj.pigdm(lambda x: x[..., :1], lambda y: jnp.concatenate([y, 0 * y], 2), w.target[..., :1], v)
    ),
    "lgd": gradient(lambda v, w: gj.lgd(w.log_prob, v, draws=3)),
    "tfg": gradient(lambda v, w: gj.tfg(w.log_prob, v, v / 5, inner_steps=2, smoothing=0.1, draws=2)),
    "masked": Row(lambda v, w: gj.masked(gj.cfg(v), jnp.linspace(0.2, 1.0, SHAPE[0])[:, None])),
    "on_channels": Row(lambda v, w: gj.on_channels(gj.cfg(v), 1)),
    "apg": Row(lambda v, w: gj.apg(v, max_norm=2.0)),
    "cfg_zero_star": Row(lambda v, w: gj.cfg_zero_star(v, 0)),
    "cfg_pp": Row(lambda v, w: gj.cfg_pp(v), 0.6, 0.0, gj.cfg(0.0)),
    "reg": Row(lambda v, w: gj.reg(gj.cfg(v))),
    "feedback": Row(lambda v, w: gj.feedback(v), 0.7, 1.0),
    "linear_reuse": Row(lambda v, w: gj.linear_reuse(v, jnp.array([1.0, -0.9, 0.8]))),
    "reuse": Row(lambda v, w: gj.reuse(gj.cfg(v), 2)),
    "adaptive": Row(lambda v, w: gj.adaptive(gj.cfg(v), 0.97)),
    "unless_one": Row(lambda v, w: gj.unless_one(gj.cfg(v), v)),
    "rescale": shaper(lambda v: gj.rescale(v), 0.7, 0.0),
    "momentum": shaper(lambda v: gj.momentum(v), -0.5, 0.0),
    "clip_norm": shaper(lambda v: gj.clip_norm(1 / v), 2.0, 0.0),
    "project": shaper(lambda v: gj.project(v), 0.2, 1.0),
    "amplify": shaper(lambda v: gj.amplify(v), 2.0, 1.0),
    "dynamic_threshold": shaper(lambda v: gj.dynamic_threshold(90.0, 0.3 / v), 1.0, 0.0),
}
COSINE = gj.schedules.cosine()
SAMPLERS: dict[str, gj.Sampler] = {
    "ddim": gj.ddim(),
    "ddim(eta)": gj.ddim(0.7),
    "ddpm": gj.ddpm(),
    "dpmpp_2m": gj.dpmpp_2m(),
    "dpmpp_2s(eta)": gj.dpmpp_2s(COSINE, eta=0.7),
    "dpmpp_3m": gj.dpmpp_3m(),
    "dpmpp_sde": gj.dpmpp_sde(),
    "euler": gj.euler(),
    "churn(euler)": gj.churn(gj.euler(), COSINE, 0.2),
    "euler_ancestral": gj.euler_ancestral(),
    "flow_heun": gj.flow_heun(),
    "forget": gj.forget(gj.dpmpp_2m(), 1.0),
    "heun": gj.heun(),
    "churn(heun)": gj.churn(gj.heun(), COSINE, 0.2),
    "heun_sde": gj.heun_sde(),
    "inpaint": gj.inpaint(gj.ddpm(), jnp.ones(SHAPE), jnp.arange(SHAPE[0])[:, None] < 2),
    "post_step": gj.post_step(gj.ddim(), lambda x, level: -(x**2).mean((1, 2)), 0.1),
    "predictor_corrector": gj.predictor_corrector(gj.ddim()),
    "projected": gj.projected(gj.ddpm(), lambda x: x - x.mean(1, keepdims=True)),
    "recur": gj.recur(gj.ddim(), 2),
    "restart": gj.restart(gj.dpmpp_2m(), COSINE, 2, 2, 0.5, 2.0),
    "unipc": gj.unipc(3),
}


def run(method, w, sampler=None, network=network):
    denoise = gj.denoiser(network, predicts="v")
    levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
    return gj.sample(w.keys, gj.branches(denoise, **w.conds), method, sampler or SAMPLERS["ddim"], levels, SHAPE)


def updates(methods, branches, keys, x, number, level, after):
    """The prediction of each method, by name, in one step from its initial memory. All branches are evaluated once."""
    wanted = {need: True for method in methods.values() for need in method.needs}
    asked = frozenset().union(*(method.derivatives for method in methods.values()))
    step = gj.Step(jnp.asarray(number, jnp.int32), level, after, keys)
    found, _, derivatives = gj.evaluate(branches, x, step, level, wanted, asked)
    context = gj.Context(x, level, step, found["cond"], found, derivatives)
    return {name: method.update(context.base, method.init(x), context)[0] for name, method in methods.items()}
