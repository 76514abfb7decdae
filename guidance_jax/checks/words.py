"""Descriptions of values for error messages, and notes on errors that a user's own function raises."""

import contextlib
import difflib
import inspect
import reprlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from guidance_jax.programs.parts import Part


def described(value: Any) -> str:
    """A short description of a value for an error message: `float32[2,2]`, `the float 3.0`, `the function cfg`, `a Sampler`."""
    if of_torch(value):
        return _of_torch(value)
    if hasattr(value, "ndim") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Part):
        return article(type(value).__name__) if value.call is None else f"the {type(value).__name__} {value!r}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', '?')}"
    name = type(value).__name__
    if isinstance(value, bool | int | float | complex | str | bytes | list | dict | set) or type(value) is tuple:
        return f"the {name} {reprlib.repr(value)}"
    return article(name)


def of_torch(value: Any) -> bool:
    """Whether a value is a tensor, a module or a dtype of PyTorch, which is not imported for that."""
    return any(str(kind.__module__).partition(".")[0] == "torch" for kind in type(value).__mro__)


def _of_torch(value: Any) -> str:
    """The description of a value of PyTorch, with what to use instead of a tensor."""
    if not hasattr(value, "numpy"):
        return f"the PyTorch object {type(value).__name__}"
    kind = f"{str(value.dtype).removeprefix('torch.')}[{','.join(map(str, value.shape))}]"
    return f"a torch.Tensor {kind}: use jnp.asarray(x.numpy())"


ELSEWHERE: dict[str, tuple[str, ...]] = {
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


def elsewhere(name: str, parameters: list[str]) -> str:
    """What to use for an unknown argument: the parameter of another name, or of a similar one. It ends in "; " or is empty."""
    close = [known for known in ELSEWHERE.get(name, ()) if known in parameters] or difflib.get_close_matches(name, parameters)
    if close:
        return f"did you mean {close[0]}? "
    return f"{INSTEAD[name]}; " if name in INSTEAD else ""


def shown(value: Any) -> Any:
    """The value for an error message, or its description if the value is long. Of parameters, only the names are shown."""
    if isinstance(value, dict) and any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves([*value.values()])):
        return f"a dictionary of {', '.join(map(repr, value))}"
    if isinstance(value, type) or getattr(value, "size", 1) > 8 or (not isinstance(value, str) and len(str(value)) > 200):
        return described(value)
    return value


def check_takes(function: Any, name: str, *what: str, **named: Any) -> None:
    """Checks that a function accepts these arguments. A function without a signature passes.

    Args:
      function: The function.
      name: The name of the function in the error message.
      *what: The names of the positional arguments.
      **named: The keyword arguments.

    Raises:
      TypeError: If the function does not accept them. The message lists both argument lists.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*what, **named)
    except TypeError:
        given, taken = ", ".join([*what, *(f"{key}=" for key in named)]), ", ".join(signature.parameters)
        raise TypeError(f"{name} must take ({given}), but {described(function)} takes ({taken}){call_it(function)}.") from None


@contextlib.contextmanager
def noting(name: str, **given: Any) -> Iterator[None]:
    """Adds a note to an error that a user's function raises: its name and its arguments."""
    try:
        yield
    except Exception as error:
        words = ", ".join(f"{argument} {jax.tree.map(described, value)}" for argument, value in given.items()).replace("'", "")
        error.add_note(f"This was raised by {name}, called with {words}.")
        if isinstance(error, jax.errors.TracerBoolConversionError):
            error.add_note("Its arguments are traced: use jnp.where(level.ratio > 1, a, b) instead of if.")
        if isinstance(error, TypeError | AttributeError) and "Prediction" in str(error):
            error.add_note(
                "Predictions can be added, subtracted and scaled. Any other function takes x0: jnp.tanh(c.x0 - u.x0)."
            )
        if isinstance(error, jax.errors.TracerArrayConversionError) or "must be Tensor, not" in str(error):
            error.add_note("It must be JAX code, because it is traced: use jax.numpy in place of NumPy and PyTorch.")
        if "NoiseLevel" in str(error) and isinstance(error, TypeError | AttributeError):
            error.add_note("It receives a noise level: use level.t for the time, level.ratio for sigma / alpha.")
        if type(error).__name__ == "TraceContextError":
            error.add_note("A module that changes when called (dropout, batch norm) is not a pure function; use module.eval().")
        raise


def warn(message: str) -> None:
    """Warns at the line that called this library."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("guidance_jax", "jaxtyping", "jax"):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)


def article(name: str) -> str:
    """A name with its article. An abbreviation is pronounced letter by letter: an MLP, but a UNet and a Moment."""
    return f"{'an' if name[0] in ('AEFHILMNORSX' if name[1:2].isupper() else 'AEIOaeio') else 'a'} {name}"


def call_it(value: object) -> str:
    """The hint to call a function of this library whose result is expected; empty for any other value."""
    if not inspect.isfunction(value) or (value.__module__ or "").partition(".")[0] != "guidance_jax":
        return ""
    # A function of a docstring's example has the module's name too, so look it up in the module.
    own = getattr(sys.modules.get(value.__module__), value.__name__, None) is value
    return f": call it, {value.__name__}(...)" if own else ""
