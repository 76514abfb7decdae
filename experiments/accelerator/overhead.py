"""The cost of guidance beyond the network, for published networks at full size with random weights in bfloat16.

A guided run is timed against the same calls of the bare network, in turn and in one process.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import guidance_jax as gj
from experiments.accelerator import networks, timing
from experiments.accelerator.flops import operations
from experiments.tools import stable_diffusion
from guidance_jax.pretrained.adm import ADM, CLASSIFIERS, RELEASED, ADMClassifier, ADMConfig
from guidance_jax.pretrained.dit import DiT, DiTConfig, dit_config
from guidance_jax.pretrained.unet import Text, UNetConditionConfig

STEPS = 20
PAIRS = 7


@dataclasses.dataclass(frozen=True)
class Case:
    """A guided run and the calls of the bare networks in it, compiled.

    Args:
      batch: The number of samples.
      steps: The number of sampler steps. The bare side calls each network as often.
      guided: Runs the guided sampling.
      bare: Each network's call, at the batch size of the guided run.
      program: The compiled guided run.
      seconds: The time for tracing and compiling of the bare calls and of the guided run, in that order.
      operations: The number of operations of a guided run.
      parameters: The number of parameters.
    """

    batch: int
    steps: int
    guided: Callable[[], Array]
    bare: tuple[Callable[[], Any], ...]
    program: Any
    seconds: tuple[float, float]
    operations: float
    parameters: int


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The compiled program, and the seconds for tracing and compiling it."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - start


def unet(smoke: bool) -> Case:
    """Stable Diffusion 1.5's U-Net at 512 x 512 pixels with CFG and DPM-Solver++ (2M)."""
    small = UNetConditionConfig(widths=(8,), depths=(1,), heads=(2,), blocks=1, text=16, groups=4)
    config, side, batch, dtype = (small, 8, 2, "float32") if smoke else (stable_diffusion.SIZES, 64, 4, "bfloat16")
    steps = 4 if smoke else STEPS
    programs = stable_diffusion.programs(config, side, batch, steps, dtype)
    params = networks.drawn(programs.shapes)
    x, cond, uncond = map(jnp.asarray, stable_diffusion.inputs(config.text, side, batch))
    keys, both = jax.random.split(jax.random.key(0), batch), stable_diffusion.doubled(x, cond, uncond)
    return Case(
        batch,
        steps,
        lambda: programs.guided(params, keys, x, Text(cond), Text(uncond), jnp.float32(7.5)),
        (lambda: programs.network(params, *both),),
        programs.guided,
        (programs.seconds["network"], programs.seconds["guided"]),
        steps * operations(programs.apply, programs.shapes, *both),
        networks.count(programs.shapes),
    )


def dit(smoke: bool) -> Case:
    """DiT-XL/2 at 256 x 256 pixels with CFG on three of four channels, as in its publication."""
    small = DiTConfig(8, 2, hidden_size=16, depth=1, num_heads=2, num_classes=10)
    config, batch, dtype, steps = (small, 2, "float32", 4) if smoke else (dit_config(), 8, "bfloat16", STEPS)
    apply, shapes = networks.described(lambda rngs: DiT(config, rngs=rngs), dtype)
    levels = gj.levels(gj.schedules.ddpm_linear(), steps, gj.spacings.trailing())
    sample = (config.input_size, config.input_size, config.in_channels)

    def generate(params: Any, keys: Array, labels: Array, scale: Array) -> Array:
        denoise = gj.denoisers.learned_variance(lambda x, t, cond: apply(params, x, t, cond), predicts="eps")
        branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, config.num_classes))
        return gj.sample(keys, branches, gj.on_channels(gj.cfg(scale), 3), gj.dpmpp_2m(), levels, sample)

    labels = jnp.arange(batch) % config.num_classes
    both = jnp.ones((2 * batch, *sample)), jnp.full(2 * batch, 500.0), jnp.concatenate([labels, labels])
    arguments = jax.random.split(jax.random.key(0), batch), labels, jnp.float32(4)
    network, first = compiled(apply, shapes, *both)
    guided, second = compiled(generate, shapes, *arguments)
    params = networks.drawn(shapes)
    return Case(
        batch,
        steps,
        lambda: guided(params, *arguments),
        (lambda: network(params, *both),),
        guided,
        (first, second),
        steps * operations(apply, shapes, *both),
        networks.count(shapes),
    )


def adm(smoke: bool) -> Case:
    """ADM at 256 x 256 pixels with its classifier's gradient. The bare side calls the network and the gradient."""
    tiny = ADMConfig(8, 32, (1,), 1, (8,), num_classes=10, num_head_channels=32)
    config, of_classifier = (tiny, tiny) if smoke else (RELEASED["adm-256"], CLASSIFIERS[256])
    batch, dtype, steps = (2, "float32", 4) if smoke else (4, "bfloat16", STEPS)
    apply, shapes = networks.described(lambda rngs: ADM(config, rngs=rngs), dtype)
    classify, others = networks.described(lambda rngs: ADMClassifier(of_classifier, rngs=rngs), dtype)
    schedule, sample = gj.schedules.ddpm_linear(), (config.image_size, config.image_size, 3)
    levels, labels = gj.levels(schedule, steps, gj.spacings.trailing()), jnp.arange(batch)

    def log_prob(others: Any) -> Callable[..., Array]:
        return gj.scores.class_log_prob(lambda x, t: classify(others, x, t), labels, config.num_classes)

    def generate(params: Any, others: Any, keys: Array, scale: Array) -> Array:
        denoise = gj.denoisers.learned_variance(lambda x, t, cond: apply(params, x, t, cond), predicts="eps")
        guidance = gj.classifier(log_prob(others), scale)
        return gj.sample(keys, gj.branches(denoise, cond=labels), guidance, gj.ddim(), levels, sample)

    def gradient(others: Any, x: Array) -> Array:
        return gj.scores.classifier_score(log_prob(others), x, schedule(500.0))

    x = jnp.ones((batch, *sample))
    inputs, arguments = (x, jnp.full(batch, 500.0), labels), (jax.random.split(jax.random.key(0), batch), jnp.float32(1))
    network, first = compiled(apply, shapes, *inputs)
    pull, second = compiled(gradient, others, x)
    guided, third = compiled(generate, shapes, others, *arguments)
    params, weights = networks.drawn(shapes), networks.drawn(others)
    return Case(
        batch,
        steps,
        lambda: guided(params, weights, *arguments),
        (lambda: network(params, *inputs), lambda: pull(weights, x)),
        guided,
        (first + second, third),
        steps * (operations(apply, shapes, *inputs) + operations(gradient, others, x)),
        networks.count(shapes) + networks.count(others),
    )


CASES: dict[str, tuple[Callable[[bool], Case], float]] = {
    "Stable Diffusion 1.5, 512 px, CFG": (unet, 60),
    "DiT-XL/2, 256 px, CFG": (dit, 30),
    "ADM, 256 px, classifier": (adm, 60),
}
"""The cases by importance, each with the seconds that it takes."""


def row(title: str, case: Case, peak: float, before: int | None) -> dict[str, Any]:
    """The measures of one case."""

    def bare() -> Any:
        return [call() for _ in range(case.steps) for call in case.bare][-1]

    found = timing.ratio(timing.paired(bare, case.guided, PAIRS))
    after, rate = timing.high_water(), case.operations / found["seconds"][1]
    return {
        "network": title,
        "parameters": case.parameters,
        "batch": case.batch,
        "steps": case.steps,
        "compile": list(case.seconds),
        **found,
        "program_bytes": timing.memory(case.program),
        # The device tells the peak of the whole process, which is that of this case only if it rose.
        "peak_bytes": after if after is not None and after > (before or 0) else None,
        "operations": case.operations,
        "rate": rate,
        "peak_rate": peak,
        "share": rate / peak,
        "finite": bool(np.isfinite(np.asarray(case.guided())).all()),
    }


def measure(smoke: bool, minutes: float, out: Path) -> Iterator[dict[str, Any]]:
    """One row per case, in the order of importance.

    Args:
      smoke: Toy sizes in float32.
      minutes: The time. A case that does not fit is left out.
      out: Not used.
    """
    clock, peak = timing.Clock(minutes), timing.peak(smoke)
    failed: list[Exception] = []
    for title, (build, needed) in CASES.items():
        if not smoke and (lacks := clock.lacks(needed)):
            yield {"network": title, "reason": lacks}
            continue
        before = timing.high_water()
        try:
            found = row(title, build(smoke), peak, before)
        except Exception as error:  # One network that fails must not take the others with it.
            found = {"network": title, "reason": f"it stopped with {type(error).__name__}: {str(error)[:200]}"}
            failed.append(error)
        yield found
    if failed:
        raise failed[0]


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table."""
    heads = (
        "parameters",
        "batch",
        "guided run",
        "over the bare network",
        "compile: bare, guided",
        "memory",
        "TFLOP/s",
        "of a large product's rate",
    )
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for found in rows:
        if "reason" in found:
            lines.append(f"| {found['network']} | {found['reason']} {'| ' * (len(heads) - 1)}|")
            continue
        low, high = found["quartiles"]
        bare, guided = found["compile"]
        cells = (
            f"{found['parameters'] / 1e6:,.0f} M",
            str(found["batch"]),
            f"{found['seconds'][1]:.3f} s",
            f"{found['ratio']:.3f} ({low:.3f} to {high:.3f})",
            f"{bare:.0f} s, {guided:.0f} s",
            f"{(found['peak_bytes'] or found['program_bytes']) / 2**30:.1f} GB",
            f"{found['rate'] / 1e12:.0f}",
            f"{found['share']:.0%}",
        )
        lines.append(f"| {found['network']} | {' | '.join(cells)} |")
    return "\n".join(lines)
