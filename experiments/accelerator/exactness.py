"""Exactness: the library in float32 on the device against float64 on the host, and what a network's precision may change.

Accelerators multiply matrices in a lower precision by default: NVIDIA's in TF32, with 10 bits of mantissa, TPUs in bfloat16,
with 7. The library asks for float32 wherever it multiplies matrices itself. Two columns would show a product that does not:

- The error of a run on exact mixtures, in which all products are the library's. It is about 1e-6. One product in TF32 gives
  1e-4 to 1e-3. For comparison, the same program also runs in float32 on the host.
- The same run with a network whose products have the device's default precision, once with that default for everything else
  and once with the highest. If the library leaves no product to the default, both are the same program. If they are not, the
  column has the difference of their results.

The row "a product in the default precision" has such a product, and shows what both columns then say.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import guidance_jax as gj
from experiments.accelerator import timing, worlds
from experiments.accelerator.cases import THREE, Case, Run, cases
from experiments.accelerator.worlds import Data, World

DEFAULT, HIGHEST = "default", "highest"
HASTY: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""The CPU's programs run once, so they are compiled in a hurry."""
AHEAD = 8
"""The number of rows whose programs compile at the same time."""
SECONDS_PER_ROW = 3.0


class Lowered(NamedTuple):
    """A traced program with its arguments.

    Args:
      program: What `lower` returns.
      given: The arguments.
      wide: Whether it is in float64.
    """

    program: Any
    given: Data
    wide: bool

    def compile(self, pool: ThreadPoolExecutor) -> Future[Any]:
        host = jax.tree.leaves(self.given)[0].devices() == {jax.devices("cpu")[0]}
        return pool.submit(self.program.compile, HASTY if host else None)

    def __call__(self, program: Any) -> Any:
        with jax.enable_x64(self.wide):
            return jax.tree.map(np.asarray, program(self.given))


def lowered(run: Run, device: Any, world: Callable[[Data], World], wide: bool = False) -> Lowered:
    """The traced program of a row on a device, in float32 or float64. Both draw the same numbers."""
    with jax.enable_x64(wide), jax.default_device(device), worlds.float32_draws():
        given = worlds.data().cast(np.float64 if wide else np.float32, device)
        levels = {"levels": given.levels, "longer": given.longer}
        program = jax.jit(lambda given: run(world(given._replace(**levels)), given._replace(**levels))).lower(given)
    return Lowered(program, given, wide)


def pinned(run: Run, device: Any) -> list[Lowered]:
    """The row with a network in the device's default precision: everything else first in the default, then in the highest."""
    found = []
    for outside in (DEFAULT, HIGHEST):
        with jax.default_matmul_precision(outside):
            found.append(lowered(run, device, lambda given: worlds.trained(given, DEFAULT)))
    return found


def error(found: Any, right: Any) -> float:
    """The largest difference, relative to the root mean square of the right values: the maximum over all arrays.

    It is infinite where a value is not a number, which a maximum of numbers would skip.
    """
    one = lambda a, b: float(np.abs(np.float64(a) - b).max() / np.sqrt((np.float64(b) ** 2).mean()))
    apart = [one(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True)]
    return max(apart) if np.isfinite(apart).all() else float("inf")


def network_error(device: Any) -> float:
    """How much the default precision changes the network itself: what the second column would show."""
    given = worlds.data().cast(np.float32, device)
    x, level = given.target, gj.schedules.cosine()(0.5)
    level = jax.tree.map(lambda field: jnp.asarray(field, x.dtype), level)
    at = lambda precision: worlds.trained(given, precision).networks[0].denoise(x, level, jnp.asarray(worlds.LABELS)).x0
    return error(jax.jit(lambda: at(DEFAULT))(), np.asarray(jax.jit(lambda: at(HIGHEST))()))


class Begun(NamedTuple):
    """A row whose programs are being compiled.

    Args:
      case: The row.
      programs: The program on the device, in float64 on the host, and maybe in float32 there.
      same: Whether both programs with the network are the same. None if the row has no such programs.
      network: The programs with the network, if they differ.
      error: What tracing raised.
    """

    case: Case
    programs: list[tuple[Lowered, Future[Any]]]
    same: bool | None
    network: list[tuple[Lowered, Future[Any]]]
    error: Exception | None = None


def begin(case: Case, device: Any, pool: ThreadPoolExecutor) -> Begun:
    """Traces a row and starts to compile it. An exception is kept for `finish`."""
    try:
        return traced(case, device, pool)
    except Exception as error:
        return Begun(case, [], None, [], error)


def traced(case: Case, device: Any, pool: ThreadPoolExecutor) -> Begun:
    """Traces a row and starts to compile it."""
    host = jax.devices("cpu")[0]
    places = [(device, False), (host, True)] + [(host, False)] * (case.both and device.platform != "cpu")
    programs = [lowered(case.run, place, worlds.exact, wide) for place, wide in places]
    outside = pinned(case.run, device) if case.both else []
    same = outside[0].program.as_text() == outside[1].program.as_text() if outside else None
    both = lambda lowered: [(one, one.compile(pool)) for one in lowered]
    return Begun(case, both(programs), same, both(outside) if same is False else [])


def finish(begun: Begun) -> dict[str, Any]:
    """The row, when its programs are compiled."""
    case = begun.case
    if begun.error is not None:
        raise begun.error
    found, right, *more = (one(program.result()) for one, program in begun.programs)
    row = {"kind": case.kind, "name": case.name, "sampler": case.sampler, "error": error(found, right)}
    row["host_error"] = error(more[0], right) if more else None
    if begun.same is not None:
        row["same_program"] = begun.same
        default, highest = (one(program.result()) for one, program in begun.network) if begun.network else (None, None)
        row["default_changes"] = error(default, highest) if begun.network else 0.0
    return row


def measure(smoke: bool, minutes: float, out: Path) -> Iterator[dict[str, Any]]:
    """One row per method and sampler, and so on. The first says how much the default precision changes a network here.

    Args:
      smoke: A few rows of each kind.
      minutes: The time. Rows that do not fit are left out.
      out: Not used.
    """
    clock, device = timing.Clock(minutes), jax.devices()[0]
    todo, waiting = deque(cases(smoke)), deque[Begun]()
    yield {"kind": "network", "name": "the network in the default precision", "default_changes": network_error(device)}
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while todo or waiting:
            while todo and len(waiting) < AHEAD and (smoke or clock.left > 0):
                waiting.append(begin(todo.popleft(), device, pool))
            if not waiting:
                yield {"kind": "left out", "name": f"{len(todo)} rows", "reason": clock.lacks(SECONDS_PER_ROW * len(todo))}
                break
            begun = waiting.popleft()
            try:
                row = finish(begun)
            except Exception as error:  # The other rows may still run.
                case, failed = begun.case, failed + (not isinstance(error, ImportError))
                reason = f"{type(error).__name__}: {error}"[:300]
                row = {"kind": case.kind, "name": case.name, "sampler": case.sampler, "reason": reason}
            yield row
    if failed:
        raise RuntimeError(f"{failed} rows failed. The file has the reasons.")


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown tables: one row per method, then one per sampler and so on, and the largest error of all."""
    kept = [row for row in rows if "error" in row]
    usual = [row for row in kept if row["kind"] != "control"]
    lines = [f"{row['name']}: {row['reason']}" for row in rows if "reason" in row]
    for row in rows:
        if row["kind"] == "network":
            lines.append(f"The default precision changes the network itself by {row['default_changes']:.1e}.")
        elif row["kind"] == "control":
            parts = f"error {row['error']:.1e}, changed by the default precision by {row['default_changes']:.1e}"
            lines.append(f"A row with a product in the default precision, for comparison: {parts}.")
    if usual:
        worst = max(usual, key=lambda row: row["error"])
        lines.append(f"{len(usual)} rows. The largest error is {worst['error']:.1e} ({worst['name']}, {worst['sampler']}).")
    if twice := [row for row in usual if row["host_error"]]:
        most = max(row["error"] / row["host_error"] for row in twice)
        lines.append(
            f"In {len(twice)} rows the host also ran in float32. The device's error is at most {most:.1f} times the host's."
        )
    if checked := [row for row in usual if "same_program" in row]:
        other = [row for row in checked if not row["same_program"]]
        lines.append(
            f"With the network, {len(checked) - len(other)} of {len(checked)} are the same program at the highest precision."
        )
        lines += [f"The default precision changes {row['name']} by {row['default_changes']:.1e}." for row in other]
    methods: dict[str, dict[str, str]] = {}
    for row in usual:
        if row["kind"] == "method":
            methods.setdefault(row["name"], {})[row["sampler"]] = f"{row['error']:.1e}"
    if methods:
        lines += ["", f"| method | {' | '.join(THREE)} |", "|---|" + "---:|" * len(THREE)]
        lines += [f"| {name} | {' | '.join(found.get(one, '') for one in THREE)} |" for name, found in methods.items()]
    if others := [row for row in kept if row["kind"] != "method"]:
        lines += ["", "| | | error | on the host in float32 |", "|---|---|---:|---:|"]
        for row in others:
            host = "" if row["host_error"] is None else f"{row['host_error']:.1e}"
            lines.append(f"| {row['kind']}: {row['name']} | {row['sampler']} | {row['error']:.1e} | {host} |")
    return "\n".join(lines).strip()
