"""From a published `scheduler_config.json` to a schedule, the network's prediction, and the levels of a run.

The caller chooses the sampler: the file's settings of solvers, orders and variances have no effect.

Times and noise levels are those of diffusers, with two differences. With `use_karras_sigmas` and `use_exponential_sigmas` the
levels are the same. The network receives the fractional time of each level, as in diffusers' Euler, Heun and LMS schedulers.
Its DPM-Solver, UniPC, DEIS and KDPM2 schedulers round this time to a whole step.

With `linspace` the Euler, Heun, LMS, KDPM2 and DPM-Solver-SDE schedulers visit fractional steps and interpolate sigma / alpha
linearly between whole ones. These levels are the same here. The network receives the time that belongs to each level, less than
.01 of a step from theirs.
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
from guidance_jax.pretrained.checks import SchedulerConfig
from guidance_jax.pretrained.settings import FLAG, NULL, TEXT, between, check_settings, either, several, whole
from guidance_jax.schedules import spacings
from guidance_jax.schedules.schedule import Schedule
from guidance_jax.schedules.spacings import Spacing

__all__ = ["Scheduling", "scheduling"]

MOST = 100_000
"""The maximum number of training steps of a schedule."""


class Scheduling(NamedTuple):
    """The schedule of a network's training, and the runs that it was published with.

    Args:
      schedule: The schedule of the training.
      predicts: The network's prediction: "eps", "v" or "x0".
      spacing: The training steps that a run visits. They are whole unless the spacing is even in the noise.
      clean: Whether a run ends in clean data. Otherwise it ends at the noise of training step 0.

    Raises:
      ValueError: From `levels`, if they do not decrease, or steps exceed those of the schedule.

    Example:
      >>> schedule, spacing = gj.schedules.scaled_linear(), gj.spacings.trailing()
      >>> found = gj.pretrained.schedulers.Scheduling(schedule, "eps", spacing, clean=True)
      >>> print(found.levels(2).sigma.round(1))
      [1.  0.8 0. ]
    """

    schedule: Schedule
    predicts: str
    spacing: Spacing
    clean: bool

    @door()
    def levels(self, steps: Count, spacing: Spacing | None = None) -> NoiseLevel:
        """The path of a run.

        Args:
          steps: The number of steps of the sampler. If a run visits training step 0 and also ends there, the last step would do
            nothing, so it is omitted.
          spacing: A spacing from `spacings` in place of the published one. The run then ends in clean data.

        Raises:
          TypeError: If steps is not an integer.
          ValueError: If steps is below 1 or exceeds those of the schedule, or the levels do not decrease.
        """
        if spacing is not None or self.clean:
            return schedules.levels(self.schedule, steps, spacing or self.spacing)
        # Computes concrete numbers, also within jit.
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
"""The kind of each setting."""
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
"""The settings that have an effect here, per scheduler of diffusers, and their defaults."""
HEEDED = set[str]().union(*SCHEDULERS.values())
LINEAR = spacings.uniform()
FRACTIONAL = ("Euler", "LMS", "Heun", "KDPM2", "DPMSolverSDE")
"""Schedulers whose linspace is not rounded to whole steps."""
STRIDING = ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPC", "DEIS")
"""Schedulers that space one more step than they take, and omit the last."""
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
"""The supported values of settings that do not support all."""
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
"""Settings of the sampler, or without effect here. Some are of files before version 0.5."""


@door()
def scheduling(config: SchedulerConfig) -> Scheduling:
    """The schedule and spacing that a `scheduler_config.json` describes.

    Args:
      config: The parsed file, or `json.loads(scheduler.to_json_string())` of a scheduler of diffusers.

    Raises:
      TypeError: If config is not a dictionary.
      ValueError: If the scheduler or a setting is unknown or not supported. The error names it.

    Example:
      >>> config = {"_class_name": "PNDMScheduler", "steps_offset": 1}
      >>> config |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
      >>> stable = gj.pretrained.schedulers.scheduling(config)
      >>> print(stable.predicts, stable.levels(4).t)
      eps [751. 501. 251.   1.   0.]

    Reference: diffusers 0.42, "schedulers".
    """
    check_settings(config, KINDS)
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ValueError(f"the scheduler {name} is unknown, expected one of {', '.join(SCHEDULERS)}.")
    known = HEEDED | OF_SAMPLERS | ONLY.keys()
    unknown = [setting for setting in config if setting not in known and not setting.startswith("_")]
    if unknown:
        raise ValueError(f"the settings {', '.join(unknown)} of a {name} are unknown.")
    heeded = SCHEDULERS[name] | {setting: value for setting, value in config.items() if setting in SCHEDULERS[name]}
    settings = {setting: value for setting, value in config.items() if setting not in HEEDED} | heeded
    for setting, supported in ONLY.items():
        value = settings.get(setting, supported[0])
        if value not in supported:
            raise ValueError(f"{setting}={value!r} of a {name} is not supported, expected {' or '.join(map(repr, supported))}.")
    if heeded.get("use_karras_sigmas") and heeded.get("use_exponential_sigmas"):
        raise ValueError(f"use_karras_sigmas and use_exponential_sigmas of a {name} exclude each other, got both.")
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
    """Evenly spaced fractional training steps. sigma / alpha, and not its logarithm, is linear between whole steps."""

    def spacing(schedule: Schedule, steps: int) -> Array:
        assert schedule.steps is not None
        whole = np.arange(schedule.steps, dtype=np.float64)
        t = np.linspace(whole[-1], 0, steps)
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), np.errstate(divide="ignore"):
            alpha, sigma = map(np.asarray, schedule.alpha_sigma(jnp.asarray(whole)))
            ratio = np.interp(t, whole, sigma / alpha)
            between = np.asarray(schedule.inverse(jnp.asarray(np.where(np.isfinite(ratio), ratio, 1))))
        # Whole steps stay exact. So do steps next to pure noise, whose ratio is infinite.
        return jnp.asarray(np.where((t == np.round(t)) | ~np.isfinite(ratio), t, between), jnp.result_type(float))

    return spacing


def _striding(spaced: Spacing) -> Spacing:
    def spacing(schedule: Schedule, steps: int) -> Array:
        return spaced(schedule, steps + 1)[:-1]

    return spacing


def _between(spaced: Spacing | None, even: Any) -> Spacing:
    """Evenly spaced, in some measure, between the ends of a spacing or of the schedule."""

    def spacing(schedule: Schedule, steps: int) -> Array:
        if spaced is None:
            return even()(schedule, steps)
        ratio = schedule(spaced(schedule, steps)).ratio
        return even(sigma_min=ratio[-1], sigma_max=ratio[0])(schedule, steps)

    return spacing
