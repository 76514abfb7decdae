"""Host memory and time for loading published weights.

`python -m experiments.benchmarks.loading` writes the U-Net of Stable Diffusion 1.5 at full size with random weights, as float32
and as float16. It loads each file as float32 and as bfloat16, each time in a separate process. A peak of 1 is the size of the
parameters. With a second copy of them it would be 2. The files have 5.2 GB and are deleted at the end. The job needs the extra
`pretrained`.
"""

import dataclasses
import functools
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from safetensors.numpy import save_file

from experiments.tools import memory
from experiments.tools.stages import Progress
from guidance_jax import pretrained
from guidance_jax.pretrained.unet import UNet2DCondition, unet_condition_config

STORED = ("float32", "float16")
LOADED = ("float32", "bfloat16")
STABLE_DIFFUSION: dict[str, Any] = {"cross_attention_dim": 768}
SMOKE = {"block_out_channels": (8, 16, 16, 16), "cross_attention_dim": 12, "attention_head_dim": 2, "norm_num_groups": 4}


@dataclasses.dataclass(frozen=True)
class Config:
    """Host memory and time for loading published weights.

    Args:
      out: The directory for `loading.json`, and for the files of weights during the run.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    out: Path = Path("out/loading")
    smoke: bool = False

    @property
    def network(self) -> dict[str, Any]:
        return SMOKE if self.smoke else STABLE_DIFFUSION


def build(network: dict[str, Any]) -> functools.partial[UNet2DCondition]:
    return functools.partial(UNet2DCondition, unet_condition_config(network))


def write(network: dict[str, Any], dtype: str, file: Path) -> None:
    """Write a file of random weights."""
    rng = np.random.default_rng(0)
    shapes = pretrained.published(pretrained.abstract(build(network)))
    save_file({name: rng.random(leaf.shape, np.float32).astype(dtype) for name, leaf in shapes.items()}, file)


def measure(network: dict[str, Any], dtype: str, file: Path) -> dict[str, float]:
    """Load a file. Returns the parameters' size in GB, the peak of host memory relative to it, and the seconds."""
    pretrained.abstract(build(network))  # Memory for tracing must not count as memory for the weights.
    start = time.perf_counter()
    params, peak = memory.peak(
        lambda: jax.block_until_ready(
            jax.tree.leaves(pretrained.load(build(network), pretrained.open_weights(file), dtype=dtype))
        )
    )
    size = sum(leaf.nbytes for leaf in params)
    return {"gigabytes": size / 1e9, "peak": peak / size, "seconds": time.perf_counter() - start}


def main(config: Config) -> list[dict[str, Any]]:
    """Write, load and measure. Returns the contents of `loading.json`."""
    config.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with (
        tempfile.TemporaryDirectory(dir=config.out) as place,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes,
        Progress("files", len(STORED) * (1 + len(LOADED)), "step") as bar,
    ):
        for stored in STORED:
            file = Path(place) / f"{stored}.safetensors"
            processes.submit(write, config.network, stored, file).result()
            bar.update()
            bar.note(f"{stored} is written")
            for loaded in LOADED:
                row = processes.submit(measure, config.network, loaded, file).result()
                rows.append({"stored": stored, "loaded": loaded} | row)
                bar.update()
                bar.note(f"{stored} is loaded as {loaded}")
    (config.out / "loading.json").write_text(json.dumps(rows, indent=1))
    print("| file | parameters | GB | peak of host memory, relative to the parameters | seconds |\n|---|---|---|---|---|")
    for row in rows:
        cells = f"{row['gigabytes']:.2f} | {row['peak']:.2f} | {row['seconds']:.1f}"
        print(f"| {row['stored']} | {row['loaded']} | {cells} |")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
