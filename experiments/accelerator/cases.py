"""The rows of the exactness: every method with three samplers, every sampler, the likelihood, and particles."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import guidance_jax as gj
from experiments.accelerator import worlds
from experiments.accelerator.worlds import SHAPE, Data, World

THREE = "ddpm", "dpmpp_2m", "heun"
"""The samplers of every method: one that draws, one that remembers, and one of two evaluations per step."""
CONTROL = "a product in the default precision"
Run = Callable[[World, Data], Any]


class Case(NamedTuple):
    """One row: a function of the world and its numbers.

    Args:
      kind: "method", "sampler", "likelihood", "particles" or "control".
      name: The name of the method, the sampler, ...
      sampler: The sampler.
      run: The function.
      both: Whether the row has all columns: also float32 on the host, and the network.
    """

    kind: str
    name: str
    sampler: str
    run: Run
    both: bool


def draw(world: World, given: Data, guidance: gj.Guidance, sampler: gj.Sampler) -> Array:
    """Samples of the images."""
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), len(world.labels))
    return gj.sample(keys, world.networks, guidance, sampler, given.levels, SHAPE)


def turned(given: Data) -> gj.Guidance:
    """CFG through an orthogonal matrix and back, by products that leave their precision to the default."""
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(worlds.SIZE,) * 2))[0], given.target.dtype)

    def update(prediction: gj.Prediction, context: gj.Context) -> gj.Prediction:
        there = lambda leaf: ((leaf.reshape(len(leaf), -1) @ turn) @ turn.T).reshape(leaf.shape)
        d = context["cond"] - context["uncond"]
        return prediction + gj.Prediction(there(d.x0), there(d.eps))

    return gj.stateless(update, needs=["cond", "uncond"])


def likelihood(world: World, given: Data, probes: int | None) -> Array:
    """The log-likelihood of points under CFG."""
    label = jnp.zeros(len(given.points), jnp.int32)
    branches = gj.branches(world.points, cond=label, uncond=jnp.full_like(label, world.null))
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), len(label))
    schedule = gj.schedules.edm(0.01, 40.0)
    return gj.log_likelihood(branches, gj.cfg(1.5), given.points, schedule, keys=keys, probes=probes)


def particles(world: World, given: Data, target: str, sampler: gj.Sampler, kernels: bool) -> dict[str, Array]:
    """What particles estimate: the log-normaliser, the weighted mean and the effective sample size of each group."""
    size, groups = 256, 4
    label = jnp.zeros(size * groups, jnp.int32)
    conds: dict[str, Any] = {"cond": label, "negative": label + 1, "uncond": jnp.full_like(label, world.null)}
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), len(label))
    branches, asked = gj.branches(world.points, **conds), worlds.targets(given)[target]
    found = gj.feynman_kac(keys, branches, asked, sampler, given.longer, (2,), size=size, kernels=kernels)
    mean = (jnp.exp(found.log_weights)[:, None] * found.x).reshape(groups, size, 2).sum(1)
    return {"log-normaliser": found.log_normaliser, "mean": mean, "effective": found.effective}


def cases(smoke: bool) -> list[Case]:
    """All rows, or a few of each kind. If time runs out, methods lack their second and third sampler."""
    given = worlds.data().cast(np.float32, jax.devices()[0])
    names, solvers = list(worlds.methods(worlds.exact(given), given)), list(worlds.samplers(given))
    targets, probes, three = list(worlds.targets(given)), (None, 8), THREE
    if smoke:
        names, solvers, targets, probes, three = names[::20], solvers[::11], targets[:1], probes[:1], THREE[:1]

    def method(name: str, solver: str) -> Run:
        return lambda world, given: draw(world, given, worlds.methods(world, given)[name], worlds.samplers(given)[solver])

    def sampler(name: str) -> Run:
        return lambda world, given: draw(world, given, gj.cfg(2.0), worlds.samplers(given)[name])

    control: Run = lambda world, given: draw(world, given, turned(given), gj.ddim())
    rows = [Case("control", CONTROL, "ddim", control, True)]
    rows += [Case("sampler", "cfg", name, sampler(name), True) for name in solvers]
    rows += [Case("method", name, three[0], method(name, three[0]), not smoke) for name in names]
    for count in probes:
        title = "exact divergence" if count is None else f"{count} probes"
        rows.append(Case("likelihood", title, "", lambda world, given, count=count: likelihood(world, given, count), not smoke))
    of_particles = [(name, "heun_sde(2.0)", gj.heun_sde(2.0), False) for name in targets]
    of_particles += [] if smoke else [("tilted", "ddpm, kernels", gj.ddpm(), True)]
    for name, title, solver, kernels in of_particles:
        run: Run = lambda world, given, name=name, solver=solver, kernels=kernels: particles(
            world, given, name, solver, kernels
        )
        rows.append(Case("particles", name, title, run, not smoke))
    return rows + [Case("method", name, solver, method(name, solver), False) for solver in three[1:] for name in names]
