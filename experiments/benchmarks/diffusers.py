"""The speed of text-to-image compared with diffusers' pipeline: same network, weights, latents, texts and steps.

`python -m experiments.benchmarks.diffusers` needs PyTorch and diffusers, which the extra `parity` installs. A U-Net with random
weights runs DPM-Solver++ (2M) with classifier-free guidance. Ours is one compiled program. Theirs is StableDiffusionPipeline.
Both run in turn, and so does the network alone, at the batch size of guidance. The preset cpu has a quarter of Stable
Diffusion's width in float32. The preset gpu has its full size in bfloat16, and also runs diffusers under `torch.compile`.
"""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

# PyTorch needs some of the same memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from experiments.tools import stable_diffusion
from experiments.tools.stages import each
from guidance_jax import networks, pretrained
from guidance_jax.pretrained.unet import Text, UNet2DCondition, unet_condition_config


@dataclasses.dataclass(frozen=True)
class Config:
    """The speed of text-to-image compared with diffusers' pipeline.

    Args:
      preset: cpu: a quarter of Stable Diffusion's width at 32 x 32 latents. gpu: its full size in bfloat16 at 64 x 64 latents.
      out: The directory for `diffusers.json`.
      batch: Number of images per batch. With guidance the network's batch has twice as many.
      steps: Number of sampler steps.
      scale: The guidance scale.
      rounds: Number of rounds. In each round every program is timed once.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    preset: Literal["cpu", "gpu"] = "cpu"
    out: Path = Path("out/diffusers")
    batch: int = 1
    steps: int = 20
    scale: float = 7.5
    rounds: int = 10
    smoke: bool = False


@dataclasses.dataclass(frozen=True)
class Preset:
    """A network by diffusers' options, and the device on which it runs.

    Args:
      network: The options of diffusers' U-Net.
      side: The side of the latents in pixels.
      dtype: The dtype of the network.
      device: The device of PyTorch.
      compiled: Whether diffusers' network runs under `torch.compile`.
    """

    network: dict[str, Any]
    side: int
    dtype: str
    device: str
    compiled: bool


QUARTER = {"block_out_channels": (80, 160, 320, 320), "cross_attention_dim": 192, "attention_head_dim": 2, "norm_num_groups": 8}
PRESETS = {
    "cpu": Preset(QUARTER, 32, "float32", "cpu", False),
    "gpu": Preset(stable_diffusion.NETWORK, 64, "bfloat16", "cuda", True),
    "smoke": Preset({**QUARTER, "block_out_channels": (8, 16, 16, 16)}, 8, "float32", "cpu", False),
}
Run = Callable[[], Any]


def published(preset: Preset) -> tuple[Any, Any]:
    """diffusers' network with random weights, made on its device in its dtype, and its scheduler."""
    torch.manual_seed(0)
    with torch.device(preset.device):
        unet = UNet2DConditionModel(sample_size=preset.side, **preset.network).eval()
    return unet.to(getattr(torch, preset.dtype)), DPMSolverMultistepScheduler(**stable_diffusion.SCHEDULER)


def inputs(preset: Preset, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents `[B, h, w, 4]`, and the states of the prompt and of the empty text, `[B, 77, d]`."""
    return stable_diffusion.inputs(preset.network["cross_attention_dim"], preset.side, batch)


def ours(unet: Any, preset: Preset, config: Config) -> tuple[Run, Run, dict[str, float]]:
    """The guided run, its calls of the network alone, and the seconds for loading and for compiling."""
    start = time.perf_counter()
    sizes = unet_condition_config(unet.config)
    weights = pretrained.from_arrays({name: array(weight) for name, weight in unet.state_dict().items()})
    network = pretrained.load(lambda rngs: UNet2DCondition(sizes, rngs=rngs), weights, dtype=preset.dtype)
    _, params = networks.from_nnx(network)
    jax.block_until_ready(params)
    loaded = time.perf_counter() - start
    programs = stable_diffusion.programs(sizes, preset.side, config.batch, config.steps, preset.dtype)
    x, cond, uncond = map(jnp.asarray, inputs(preset, config.batch))
    keys = jax.random.split(jax.random.key(0), config.batch)
    arguments = params, keys, x, Text(cond), Text(uncond), jnp.float32(config.scale)
    both = stable_diffusion.doubled(x, cond, uncond)

    def bare() -> None:
        for _ in range(config.steps):
            programs.network(params, *both).block_until_ready()

    return lambda: np.asarray(programs.guided(*arguments)), bare, {"load": loaded, "compile": programs.seconds["guided"]}


def array(weight: Any) -> np.ndarray:
    """A weight on the host in its own dtype. NumPy has bfloat16 from JAX, so PyTorch passes its bits."""
    weight = weight.cpu()
    return weight.view(torch.int16).numpy().view(jnp.bfloat16) if weight.dtype == torch.bfloat16 else weight.numpy()


def theirs(unet: Any, scheduler: Any, preset: Preset, config: Config) -> Run:
    """diffusers' pipeline on the same inputs."""
    dtype = getattr(torch, preset.dtype)
    pipe = StableDiffusionPipeline(
        vae=None,  # pyright: ignore[reportArgumentType]
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    latents, cond, uncond = (torch.from_numpy(each).to(preset.device, dtype) for each in inputs(preset, config.batch))
    latents = latents.permute(0, 3, 1, 2)

    def run() -> np.ndarray:
        made = pipe(
            prompt_embeds=cond,
            negative_prompt_embeds=uncond,
            latents=latents,
            guidance_scale=config.scale,
            num_inference_steps=config.steps,
            output_type="latent",
        )
        return made.images.float().permute(0, 2, 3, 1).cpu().numpy()  # pyright: ignore[reportAttributeAccessIssue]

    return run


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(config: Config) -> dict[str, Any]:
    """Measure, print the table and write `diffusers.json`."""
    if config.smoke:
        config = dataclasses.replace(config, steps=4, rounds=2, out=config.out / "smoke")
    preset = PRESETS["smoke" if config.smoke else config.preset]
    unet, scheduler = published(preset)
    guided, bare, took = ours(unet, preset, config)
    runs = {"guidance_jax": guided, "diffusers": theirs(unet, scheduler, preset, config), "network alone": bare}
    if preset.compiled:
        compiled = torch.compile(unet, mode="max-autotune", fullgraph=True)
        runs["diffusers, torch.compile"] = theirs(compiled, scheduler, preset, config)
    first = {name: seconds(run) for name, run in runs.items()}
    here, there = guided(), runs["diffusers"]()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in each("rounds", range(config.rounds), "round"):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(runs[name]))
    results = {
        "preset": config.preset,
        "device": str(jax.devices()[0]),
        "parameters": unet.num_parameters(),
        "load_s": took["load"],
        "compile_s": took["compile"],
        "first_s": first,
        "seconds": times,
        "difference": float(np.abs(here - there).max() / there.std()),
    }
    report(config, preset, results)
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "diffusers.json").write_text(json.dumps({**results, "config": dataclasses.asdict(config)}, default=str))
    return results


def report(config: Config, preset: Preset, results: dict[str, Any]) -> None:
    """Print the table."""
    times = results["seconds"]
    print(
        f"\nA U-Net of {results['parameters']:,} parameters in {preset.dtype} on {results['device']}, {config.steps} steps of "
        f"DPM-Solver++ (2M) with CFG at batch {config.batch}, {torch.get_num_threads()} threads of PyTorch. Ours loads in "
        f"{results['load_s']:.1f} s and compiles in {results['compile_s']:.1f} s. The latents differ by at most "
        f"{results['difference']:.1e} of their standard deviation. Seconds are medians of {config.rounds} rounds. The ratio "
        "is the median of paired ratios, our time divided by the other time of the same round.\n"
    )
    print("| | seconds, median | quartiles | our time relative to this, median of pairs |\n|---|---|---|---|")
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
        ratio = statistics.median(our / their for our, their in zip(times["guidance_jax"], taken, strict=True))
        print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main(tyro.cli(Config))
