"""Text-to-image against diffusers' pipeline in PyTorch: same network, weights, latents, texts, steps and device.

diffusers' pipeline runs eagerly and under `torch.compile`. It uses PyTorch's fused attention, and the memory layout of
convolutions that its documentation recommends, channels last.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.accelerator import timing

PAIRS = 7
MODE = "reduce-overhead"
"""The mode of `torch.compile`. It uses CUDA graphs. "max-autotune" would spend minutes on its search."""
EAGER, COMPILED = "diffusers, eager", "diffusers, torch.compile"
NEEDED = {EAGER: 45.0, COMPILED: 75.0}
"""Seconds of each row. The first also loads the weights and compiles our program, unless it is compiled already."""


def unable(smoke: bool) -> str | None:
    """Why this part cannot run here, or None."""
    for name in ("torch", "diffusers"):
        try:
            importlib.import_module(name)
        except Exception as error:  # A build for another device fails in many ways.
            return f"{name} cannot be imported: {error}"
    import torch

    if smoke:
        return None
    if jax.default_backend() != "gpu":
        return f"JAX runs on {jax.default_backend()}, and PyTorch has no such device here"
    return None if torch.cuda.is_available() else "PyTorch finds no GPU"


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How far latents differ, in standard deviations of the second: at most, and as a root mean square."""
    apart = np.abs(one - other) / other.std()
    return {"maximum": float(apart.max()), "rms": float(np.sqrt((apart**2).mean()))}


def against(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> dict[str, Any]:
    """One row: the paired times of both, and the difference of their latents."""
    first = timing.seconds(theirs)
    found = timing.ratio(timing.paired(theirs, ours, pairs))
    return {"method": name, "first_call": first, **found, "difference": difference(ours(), theirs())}


def measure(smoke: bool, minutes: float, out: Path) -> Iterator[dict[str, Any]]:
    """One row per way to run diffusers' pipeline: eager, then compiled.

    Args:
      smoke: A toy network in float32, and `torch.compile` without a compiler behind it.
      minutes: The time. A row that does not fit is left out.
      out: Not used.
    """
    clock = timing.Clock(minutes)
    if reason := unable(smoke):
        yield {"method": "diffusers", "reason": reason}
        return
    import torch

    from experiments.benchmarks import diffusers

    preset = diffusers.PRESETS["smoke" if smoke else "gpu"]
    config = diffusers.Config(batch=1 if smoke else 4, steps=3 if smoke else 20)
    if smoke:
        torch.set_num_threads(1)
    if lacks := None if smoke else clock.lacks(NEEDED[EAGER]):
        yield {"method": EAGER, "reason": lacks}
        return
    unet, scheduler = diffusers.published(preset)
    ours, bare, took = diffusers.ours(unet, preset, config)
    unet = unet.to(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    shared = {"parameters": unet.num_parameters(), "batch": config.batch, "steps": config.steps, "dtype": preset.dtype, **took}
    eager = diffusers.theirs(unet, scheduler, preset, config)
    pairs = 2 if smoke else PAIRS
    found = against(EAGER, ours, eager, pairs)
    exact = dataclasses.replace(preset, dtype="float32")
    reference = diffusers.theirs(unet.float(), scheduler, exact, config)()
    unet.to(getattr(torch, preset.dtype))  # The weights are as before: each of them was rounded to this dtype.
    apart = {name: difference(run(), reference) for name, run in (("ours", ours), ("theirs", eager))}
    yield {**found, **shared, "network": timing.seconds(bare), "from_float32": apart}
    if lacks := None if smoke else clock.lacks(NEEDED[COMPILED]):
        yield {"method": COMPILED, "reason": lacks}
        return
    how: Any = {"backend": "eager"} if smoke else {"mode": MODE}
    compiled = diffusers.theirs(torch.compile(unet, fullgraph=True, **how), scheduler, preset, config)
    found = against(f"{COMPILED}, {next(iter(how.values()))}", ours, compiled, pairs)
    yield {**found, **shared, "from_eager": difference(compiled(), eager())}


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table."""
    heads = ("seconds", "guidance_jax", "our time relative to theirs", "first call", "latents differ by (rms, maximum)")
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for row in rows:
        if "reason" in row:
            lines.append(f"| {row['method']} | {row['reason']} {'| ' * (len(heads) - 1)}|")
            continue
        (theirs, ours), (low, high), apart = row["seconds"], row["quartiles"], row["difference"]
        cells = (
            f"{theirs:.3f}",
            f"{ours:.3f}",
            f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})",
            f"{row['first_call']:.0f} s, ours {row['compile']:.0f} s",
            f"{apart['rms']:.1e}, {apart['maximum']:.1e}",
        )
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    for row in rows:
        if apart := row.get("from_float32"):
            both = f"{apart['ours']['rms']:.1e} for ours and {apart['theirs']['rms']:.1e} for theirs"
            lines += ["", f"From diffusers' latents in float32 the root mean square is {both}."]
        if apart := row.get("from_eager"):
            lines += ["", f"diffusers' two ways differ from each other by {apart['rms']:.1e} (rms), {apart['maximum']:.1e}."]
    return "\n".join(lines)
