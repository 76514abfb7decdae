"""diffusers, the PyTorch reference, on the arrays of this library. Modules that import this one are skipped without it."""

import jax.numpy as jnp
import numpy as np
import pytest

import guidance_jax as gj

REASON = 'the PyTorch reference is not installed: pip install -e ".[parity]"'
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)
guiders = pytest.importorskip("diffusers.guiders", reason=REASON)
torch.set_num_threads(1)

STEPS = 10

BRANCHES = {"pred_cond": "cond", "pred_uncond": "uncond", "pred_cond_modality": "modality"}
"""This library's name of each prediction. All others are perturbed predictions."""


def to_torch(x):
    """From channels last to channels first."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def from_torch(x):
    return jnp.asarray(np.moveaxis(x.numpy(), 1, -1))


def close(ours, theirs, tolerance):
    """Compares relative to the largest absolute value of the array, or to 1 if that is smaller."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    difference = np.abs(ours - theirs).max() / max(1, np.abs(theirs).max())
    assert difference <= tolerance, f"differs by {difference:.2e}"


def guide(guider, predictions, number=0, steps=1):
    """The guider's result in one step of a run, from the predictions that it requests."""
    guider.set_state(number, steps, None)
    asked = guider.prepare_inputs({})
    for batch in asked:
        batch.noise_pred = predictions[BRANCHES.get(batch.__guidance_identifier__, "perturbed")]
    return guider(asked).pred


def prepared(scheduler, steps=STEPS):
    """The scheduler with its tables in the precision of the test. It computes some of them in float32 in any case."""
    scheduler.set_timesteps(steps)
    for name in ("sigmas", "alphas_cumprod", "timesteps"):
        table = getattr(scheduler, name, None)
        if table is not None and table.is_floating_point():
            setattr(scheduler, name, table.to(torch.float32))
    return scheduler


def cumulative(scheduler):
    """alpha and sigma of the levels of schedulers that store the product of (1 - beta)."""
    end = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0)).to(scheduler.alphas_cumprod.dtype)
    squared = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], end.reshape(1)])
    return squared**0.5, (1 - squared) ** 0.5


def levels_of(scheduler, process):
    """The path of a run whose alpha and sigma are `process(scheduler)`."""
    t = -torch.unique(-scheduler.timesteps)
    fields = (torch.cat([t, t[-1:]]), *process(scheduler))
    return gj.NoiseLevel(*(jnp.asarray(field.numpy(), jnp.result_type(float)) for field in fields))


def network(xp, x, t, cond):
    """A network that depends on all of its inputs, in either framework."""
    return xp.tanh(0.6 * x + (1 + 0.5 * xp.sin(t.reshape(-1, *[1] * (x.ndim - 1)))) * cond)


def walk(scheduler, output, x, **options):
    """A whole run of a scheduler with given timesteps. `output(number, x, t)` is the guided output of the network."""
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for number, t in enumerate(scheduler.timesteps):
        x = scheduler.step(output(number, scaled(x, t), t.to(x.dtype)), t, x, **options).prev_sample
    return x
