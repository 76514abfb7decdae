"""Guidance for diffusion models in JAX, as pure functions.

A denoiser wraps a network. Branches evaluate the denoiser under several conditions. A guidance combines the branches into one
prediction. A sampler goes from one noise level to the next. `sample` runs the loop over all levels.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from guidance_jax import (
    denoisers,
    guidance,
    likelihood,
    metrics,
    oracles,
    particles,
    samplers,
    schedules,
    scores,
    training,
    trees,
)
from guidance_jax.base import Branches, Context, NoiseLevel, Prediction, State, Step
from guidance_jax.calibration import calibrate
from guidance_jax.checks.traced import checked
from guidance_jax.denoisers import denoiser
from guidance_jax.guidance import (
    adaptive,
    add,
    amplify,
    apg,
    autoguidance,
    beta_cfg,
    cfg,
    cfg_pp,
    cfg_zero_star,
    chain,
    classifier,
    clip_norm,
    compose,
    conditions,
    direction,
    dps,
    dual_cfg,
    during,
    dynamic_threshold,
    fdg,
    feedback,
    fit_linear,
    freedom,
    fresca,
    icg,
    in_space,
    lgd,
    linear_reuse,
    mambo_g,
    masked,
    mean_shift,
    momentum,
    mpgd,
    on_channels,
    perp_neg,
    perturbed,
    pigdm,
    power_law,
    project,
    recfg,
    reg,
    relative_to,
    rescale,
    reuse,
    scales,
    source,
    stateless,
    tcfg,
    tfg,
    tsg,
    universal,
    unless_one,
)
from guidance_jax.guidance.curves import Calibration, Curve
from guidance_jax.guided import branches, evaluate, guide, guided
from guidance_jax.interfaces import Guidance, Sampler
from guidance_jax.likelihood import bits_per_dimension, log_likelihood
from guidance_jax.noise import diffuse
from guidance_jax.particles import targets
from guidance_jax.particles.smc import feynman_kac
from guidance_jax.samplers import (
    churn,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_sde,
    euler,
    euler_ancestral,
    flow_heun,
    forget,
    heun,
    heun_sde,
    inpaint,
    post_step,
    predictor_corrector,
    projected,
    recur,
    restart,
    unipc,
)
from guidance_jax.sampling import evaluations, run, sample
from guidance_jax.schedules import levels, spacings
from guidance_jax.schedules.schedule import Schedule

if TYPE_CHECKING:
    from guidance_jax import networks, pretrained

__all__ = [
    "Branches",
    "Calibration",
    "Context",
    "Curve",
    "Guidance",
    "NoiseLevel",
    "Prediction",
    "Sampler",
    "Schedule",
    "State",
    "Step",
    "adaptive",
    "add",
    "amplify",
    "apg",
    "autoguidance",
    "beta_cfg",
    "bits_per_dimension",
    "branches",
    "calibrate",
    "cfg",
    "cfg_pp",
    "cfg_zero_star",
    "chain",
    "checked",
    "churn",
    "classifier",
    "clip_norm",
    "compose",
    "conditions",
    "ddim",
    "ddpm",
    "denoiser",
    "denoisers",
    "diffuse",
    "direction",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_sde",
    "dps",
    "dual_cfg",
    "during",
    "dynamic_threshold",
    "euler",
    "euler_ancestral",
    "evaluate",
    "evaluations",
    "fdg",
    "feedback",
    "feynman_kac",
    "fit_linear",
    "flow_heun",
    "forget",
    "freedom",
    "fresca",
    "guidance",
    "guide",
    "guided",
    "heun",
    "heun_sde",
    "icg",
    "in_space",
    "inpaint",
    "levels",
    "lgd",
    "likelihood",
    "linear_reuse",
    "log_likelihood",
    "mambo_g",
    "masked",
    "mean_shift",
    "metrics",
    "momentum",
    "mpgd",
    "networks",
    "on_channels",
    "oracles",
    "particles",
    "perp_neg",
    "perturbed",
    "pigdm",
    "post_step",
    "power_law",
    "predictor_corrector",
    "pretrained",
    "project",
    "projected",
    "recfg",
    "recur",
    "reg",
    "relative_to",
    "rescale",
    "restart",
    "reuse",
    "run",
    "sample",
    "samplers",
    "scales",
    "schedules",
    "scores",
    "source",
    "spacings",
    "stateless",
    "targets",
    "tcfg",
    "tfg",
    "training",
    "trees",
    "tsg",
    "unipc",
    "universal",
    "unless_one",
]


def __getattr__(name: str) -> Any:
    """Imports `networks` and `pretrained` at their first use, since flax.nnx takes longer to import than the rest.

    `__version__` is the version of the installed package.
    """
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name in ("networks", "pretrained"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
