"""The names of arguments and choices in diffusers, k-diffusion and other code, for error messages that give the name here."""

import difflib

ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("guidance_scale", "cfg_scale", "cond_scale", "w", "weight", "strength"), ("scale", "share")),
    **dict.fromkeys(("num_inference_steps", "num_steps", "num_train_timesteps", "n", "num_timesteps"), ("steps",)),
    **dict.fromkeys(("prediction_type", "parameterization", "objective"), ("predicts",)),
    **dict.fromkeys(("shape", "x", "x0", "latents", "x_T", "image"), ("shape_or_x", "x", "x0")),
    **dict.fromkeys(("key", "rng", "seed", "generator"), ("keys", "key")),
    **dict.fromkeys(("model", "net", "network", "unet", "denoiser", "fn"), ("network", "denoise", "branches")),
    **dict.fromkeys(("scheduler", "solver"), ("sampler", "schedule")),
    **dict.fromkeys(("timesteps", "sigmas", "path"), ("levels", "path")),
    **dict.fromkeys(("p", "prob", "probability", "dropout", "drop_rate"), ("rate",)),
    **dict.fromkeys(("y", "labels", "class_labels", "condition", "model_kwargs"), ("labels", "cond")),
    **dict.fromkeys(("callback", "callback_on_step_end"), ("trace",)),
    **dict.fromkeys(("s_noise",), ("noise_scale",)),
    **dict.fromkeys(("s_churn",), ("gamma", "amount")),
    **dict.fromkeys(("s_tmin", "start"), ("low",)),
    **dict.fromkeys(("s_tmax", "stop"), ("high",)),
    **dict.fromkeys(("guidance_rescale", "phi"), ("fraction",)),
    **dict.fromkeys(("momentum_beta", "momentum"), ("beta",)),
    **dict.fromkeys(("t", "timestep", "sigma"), ("level",)),
    "beta_start": ("beta_min",),
    "beta_end": ("beta_max",),
    "solver_order": ("order",),
    "variance_type": ("variance",),
    "steps_offset": ("offset",),
    "shift": ("factor",),
    "null_cond": ("null",),
}
"""Names of arguments in diffusers, k-diffusion and other code, and their names here."""
INSTEAD = {
    "use_karras_sigmas": "for Karras' levels, use gj.levels(schedule, steps, gj.spacings.karras())",
    "use_exponential_sigmas": "for such levels, use gj.levels(schedule, steps, gj.spacings.exponential())",
    "timestep_spacing": "for the levels of a run, use gj.levels(schedule, steps, spacing)",
    "num_inference_steps": "for the levels of a run, use gj.levels(schedule, steps, spacing)",
    "guidance_scale": "for a scale, use the guidance gj.cfg(scale)",
    "guidance_rescale": "use gj.chain(gj.cfg(scale), gj.rescale(fraction))",
    "negative_prompt": "it is the condition of a branch, gj.branches(denoise, cond=..., uncond=...)",
    "prompt": "it is the condition of a branch, gj.branches(denoise, cond=..., uncond=...)",
    "prediction_type": "for what a network predicts, use gj.denoiser(network, predicts)",
    "beta_schedule": "for a schedule, use gj.schedules",
    "clip_sample": "to clip, use gj.denoisers.clip(denoise)",
    "thresholding": "use gj.chain(gj.cfg(scale), gj.dynamic_threshold(99.5))",
}
"""What to use for settings of diffusers that are not an argument of the same function here."""
CHOICES = {
    **dict.fromkeys(("epsilon", "noise", "pred_noise"), "eps"),
    **dict.fromkeys(("sample", "x_start", "pred_x0", "x_0"), "x0"),
    **dict.fromkeys(("v_prediction", "pred_v"), "v"),
    **dict.fromkeys(("flow_prediction", "flow"), "velocity"),
    **dict.fromkeys(("fixed_small", "fixed_small_log"), "small"),
    **dict.fromkeys(("fixed_large", "fixed_large_log"), "large"),
    **dict.fromkeys(("learned_range",), "learned"),
}
"""Choices in diffusers and other code, and their names here."""


def translated(name: str, parameters: list[str]) -> str:
    """What to use for an unknown argument: the parameter of another name, or of a similar one. It ends in "; " or is empty."""
    close = [known for known in ARGUMENTS.get(name, ()) if known in parameters] or difflib.get_close_matches(name, parameters)
    if close:
        return f"did you mean {close[0]}? "
    return f"{INSTEAD[name]}; " if name in INSTEAD else ""
