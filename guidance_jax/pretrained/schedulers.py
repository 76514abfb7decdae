"""From a published `scheduler_config.json` to a schedule, what the network predicts, and the levels of a run.

The sampler is the caller's: what a file says of solvers, orders and variances has no effect.

Times and noise levels are diffusers', with these differences. With `use_karras_sigmas` and `use_exponential_sigmas` the
levels are the same, but the network is told the time between two training steps that belongs to each, as diffusers' Euler,
Heun and LMS schedulers tell it; its DPM-Solver, UniPC, DEIS and KDPM2 schedulers round it to a whole step. With `linspace` the
Euler, Heun, LMS, KDPM2 and DPM-Solver-SDE schedulers visit fractional steps, whose sigma / alpha they interpolate linearly:
that is kept, and the time told is the one whose level it is, less than .01 of a step away.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax import schedules
from guidance_jax.base import NoiseLevel
from guidance_jax.checks.door import door
from guidance_jax.checks.kinds import Count
from guidance_jax.checks.paths import check_levels
from guidance_jax.pretrained.settings import FLAG, NULL, TEXT, between, check_settings, either, several, whole
from guidance_jax.schedules import spacings
from guidance_jax.schedules.schedule import Schedule
from guidance_jax.schedules.spacings import Spacing

__all__ = ["Scheduling", "scheduling"]

MOST = 100_000
"""Training steps that a schedule may have."""


class Scheduling(NamedTuple):
    """What a scheduler's file says of a network's training, and of the runs that it was published with.

    Raises:
      ValueError: Of `levels`, if they do not decrease, or steps are too many for the schedule.

    Example:
      >>> told = gj.pretrained.schedulers.Scheduling(gj.schedules.scaled_linear(), "eps", gj.spacings.trailing(), clean=True)
      >>> print(told.levels(2).sigma.round(1))
      [1.  0.8 0. ]
    """

    schedule: Schedule
    """Of the network's training."""
    predicts: str
    """"eps", "v" or "x0"."""
    spacing: Spacing
    """Which training steps a run visits, whole ones but where it is even in the noise."""
    clean: bool
    """Whether a run ends in clean data; otherwise at the noise of training step 0."""

    @door()
    def levels(self, steps: Count, spacing: Spacing | None = None) -> NoiseLevel:
        """The path of a run.

        Args:
          steps: Of the sampler. Where a run visits training step 0 and ends there, the last step would do nothing, and is
            left out.
          spacing: Another one than the published, from `spacings`; the run then ends in clean data.

        Raises:
          TypeError: If steps is no integer.
          ValueError: If it is below 1, the levels do not decrease, or steps are too many for the schedule.
        """
        if spacing is not None or self.clean:
            return schedules.levels(self.schedule, steps, spacing or self.spacing)
        # Known numbers, within jit too.
        with jax.ensure_compile_time_eval():
            visited = self.spacing(self.schedule, steps)
            path = self.schedule(jnp.concatenate([visited[visited > 0], jnp.zeros(1)]))
        check_levels(path)
        return path


KINDS = {
    **dict.fromkeys(("beta_start", "beta_end"), between(0.0, 1.0)),
    **dict.fromkeys(("_class_name", "beta_schedule", "prediction_type", "timestep_spacing", "final_sigmas_type"), TEXT),
    **dict.fromkeys(("rescale_betas_zero_snr", "use_karras_sigmas", "use_exponential_sigmas"), either(FLAG, NULL)),
    "num_train_timesteps": whole(1, MOST),
    "set_alpha_to_one": FLAG,
    "steps_offset": whole(0, MOST),
    "trained_betas": either(NULL, several(between(0.0, 1.0), MOST)),
}
"""Of what settings must be."""
PREDICTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
LEADING = BETAS | {"timestep_spacing": "leading", "steps_offset": 0}
LINSPACE = BETAS | {"timestep_spacing": "linspace", "steps_offset": 0}
RESCALED = {"rescale_betas_zero_snr": False}
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False}
ENDING = {"final_sigmas_type": "zero"}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": LEADING | RESCALED | {"set_alpha_to_one": True, "clip_sample": True},
    "DDPMScheduler": LEADING | RESCALED | {"clip_sample": True},
    "PNDMScheduler": LEADING | {"set_alpha_to_one": False},
    "LMSDiscreteScheduler": LINSPACE | SIGMAS,
    "EulerDiscreteScheduler": LINSPACE | RESCALED | SIGMAS | ENDING,
    "EulerAncestralDiscreteScheduler": LINSPACE | RESCALED,
    "HeunDiscreteScheduler": LINSPACE | SIGMAS | STABLE | {"clip_sample": False},
    "KDPM2DiscreteScheduler": LINSPACE | SIGMAS | STABLE,
    "KDPM2AncestralDiscreteScheduler": LINSPACE | SIGMAS | STABLE,
    "DPMSolverSDEScheduler": LINSPACE | SIGMAS | STABLE,
    "DPMSolverMultistepScheduler": LINSPACE | RESCALED | SIGMAS | ENDING,
    "DPMSolverSinglestepScheduler": BETAS | SIGMAS | ENDING,
    "UniPCMultistepScheduler": LINSPACE | RESCALED | SIGMAS | ENDING,
    "DEISMultistepScheduler": LINSPACE | SIGMAS,
}
"""The settings that each of diffusers' schedulers heeds here, and what it takes where the file leaves one out."""
HEEDED = set[str]().union(*SCHEDULERS.values())
LINEAR = spacings.uniform()
FRACTIONAL = ("Euler", "LMS", "Heun", "KDPM2", "DPMSolverSDE")
"""Those whose linspace is not rounded to whole steps."""
STRIDING = ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPC", "DEIS")
"""Those which space one step more than they take, and leave out the last."""
ONLY: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "shift_terminal": (None,),
    "lambda_min_clipped": (-float("inf"), None),
    "clip_sample": (False,),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "prediction_type": tuple(PREDICTS),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "predict_epsilon": (True, None),
}
"""The values that are supported of some settings."""
OF_SAMPLERS = {
    "algorithm_type",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "flow_shift",
    "interpolation_type",
    "lower_order_final",
    "noise_sampler_seed",
    "predict_x0",
    "sample_max_value",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "tensor_format",
    "time_shift_type",
    "timestep_values",
}
"""Settings of the sampler, or without effect on what is supported; of files before version 0.5 too."""


def scheduling(config: Mapping[str, Any]) -> Scheduling:
    """What a `scheduler_config.json` says.

    Args:
      config: The file, parsed.

    Raises:
      ValueError: Naming the scheduler, or each setting, that is not known or not supported.

    Example:
      >>> config = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
      >>> stable = gj.pretrained.schedulers.scheduling({**config, "steps_offset": 1})
      >>> print(stable.predicts, stable.levels(4).t)
      eps [751. 501. 251.   1.   0.]

    Reference: diffusers 0.42, "schedulers".
    """
    check_settings(config, KINDS)
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(f"the scheduler {name} is not known, only {', '.join(SCHEDULERS)}.")
    known = HEEDED | OF_SAMPLERS | ONLY.keys()
    unknown = [setting for setting in config if setting not in known and not setting.startswith("_")]
    if unknown:
        raise ValueError(f"the settings {', '.join(unknown)} of a {name} are not known.")
    heeded = SCHEDULERS[name] | {setting: value for setting, value in config.items() if setting in SCHEDULERS[name]}
    told = {setting: value for setting, value in config.items() if setting not in HEEDED} | heeded
    for setting, supported in ONLY.items():
        value = told.get(setting, supported[0])
        if value not in supported:
            raise ValueError(f"{setting}={value!r} of a {name} is not supported, only {' or '.join(map(repr, supported))}.")
    schedule = _schedule(heeded)
    if heeded.get("rescale_betas_zero_snr"):
        schedule = schedules.zero_terminal_snr(schedule)
    clean = heeded.get("set_alpha_to_one", heeded.get("final_sigmas_type", "zero") == "zero")
    clean = clean and name != "DEISMultistepScheduler"
    return Scheduling(schedule, PREDICTS[heeded["prediction_type"]], _spacing(name, heeded), clean)


def _schedule(config: Mapping[str, Any]) -> Schedule:
    first, last, steps = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
    if config["trained_betas"] is not None:
        return schedules.discrete(np.asarray(config["trained_betas"]))
    if config["beta_schedule"] == "linear":
        return schedules.discrete(np.linspace(first, last, steps))
    if config["beta_schedule"] == "scaled_linear":
        return schedules.scaled_linear(steps, first, last)
    return schedules.ddpm_cosine(steps)


def _spacing(name: str, config: Mapping[str, Any]) -> Spacing:
    spaced = {
        "leading": spacings.leading(config.get("steps_offset", 0)),
        "trailing": spacings.trailing(),
        "linspace": LINEAR,
    }[config.get("timestep_spacing", "linspace")]
    if spaced is LINEAR and name.startswith(FRACTIONAL):
        spaced = _fractional()
    striding = name.startswith(STRIDING)
    if striding and config.get("timestep_spacing") != "trailing":
        spaced = _striding(spaced)
    for setting, even in (("use_karras_sigmas", spacings.karras), ("use_exponential_sigmas", spacings.exponential)):
        if config.get(setting):
            return _between(None if striding else spaced, even)
    return spaced


def _fractional() -> Spacing:
    """Evenly over the training steps and between them, where sigma / alpha, and not its logarithm, is linear."""

    def spacing(schedule: Schedule, steps: int) -> Array:
        assert schedule.steps is not None
        whole = np.arange(schedule.steps, dtype=np.float64)
        t = np.linspace(whole[-1], 0, steps)
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), np.errstate(divide="ignore"):
            alpha, sigma = map(np.asarray, schedule.alpha_sigma(jnp.asarray(whole)))
            ratio = np.interp(t, whole, sigma / alpha)
            between = np.asarray(schedule.inverse(jnp.asarray(np.where(np.isfinite(ratio), ratio, 1))))
        # A whole step is itself, whatever the rounding; so is one beside pure noise, whose ratio is infinite.
        return jnp.asarray(np.where((t == np.round(t)) | ~np.isfinite(ratio), t, between), jnp.result_type(float))

    return spacing


def _striding(spaced: Spacing) -> Spacing:
    def spacing(schedule: Schedule, steps: int) -> Array:
        return spaced(schedule, steps + 1)[:-1]

    return spacing


def _between(spaced: Spacing | None, even: Any) -> Spacing:
    """Evenly in some measure between the ends of a spacing, or of the schedule."""

    def spacing(schedule: Schedule, steps: int) -> Array:
        if spaced is None:
            return even()(schedule, steps)
        ratio = schedule(spaced(schedule, steps)).ratio
        return even(sigma_min=ratio[-1], sigma_max=ratio[0])(schedule, steps)

    return spacing
