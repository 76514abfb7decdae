"""Adapters from a Flax module, NNX or Linen, to a pure function of its parameters."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen, nnx

from guidance_jax.checks.door import CLASSES, door, part, rule
from guidance_jax.checks.kinds import class_kind
from guidance_jax.networks.checks import check_params

CLASSES[nnx.Module] = class_kind(nnx.Module, "use from_linen(module, variables) for a Linen module.")
CLASSES[linen.Module] = class_kind(linen.Module, "use from_nnx(module) for an NNX module.")


@door(
    rule("method must name a method of the module; leave it out for __call__", lambda module, method: hasattr(module, method))
)
def from_nnx(module: nnx.Module, method: str = "__call__") -> tuple[Callable[..., Any], Any]:
    """The pure function `apply(params, *inputs)` of an NNX module, and its parameters.

    State other than parameters (batch statistics) keeps its current value: call `module.eval()` first. A module that draws
    random numbers when called is not a pure function.

    Args:
      module: The module, `(x, t, cond) -> output` or of any other signature.
      method: The name of the method to call, `"decode"` of an autoencoder for example.

    Returns:
      `apply` and `params`. `apply` can be jitted, and differentiated with respect to `params`.

    Raises:
      ValueError: If the module has no such method.

    Example:
      >>> from flax import nnx
      >>> network = gj.networks.MLP((2,), classes=3, width=8, blocks=1, rngs=nnx.Rngs(0))
      >>> apply, params = gj.networks.from_nnx(network)
      >>> print(jax.jit(apply)(params, jnp.ones((5, 2)), jnp.ones(5), jnp.zeros(5, int)).shape)
      (5, 2)
    """
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return of_nnx(graph, rest, method), params


@part()
def of_nnx(graph: Any, rest: Any, method: str) -> Callable[..., Any]:
    """`apply(params, *inputs)` of an NNX module. State other than parameters is a leaf of the part."""

    def apply(params: Any, *inputs: Any) -> Any:
        check_params(params)
        return getattr(nnx.merge(graph, params, rest), method)(*inputs)

    return apply


@door(rule('variables must hold a collection "params", as module.init gives it', lambda variables: "params" in variables))
def from_linen(module: linen.Module, variables: Mapping[str, Any]) -> tuple[Callable[..., Any], Any]:
    """The pure function `apply(params, *inputs)` of a Linen module, and its parameters.

    Args:
      module: The module, `(x, t, cond) -> output` or of any other signature.
      variables: The result of `module.init`. Collections other than "params" (batch statistics) keep their current values.

    Returns:
      `apply` and `params`.

    Raises:
      ValueError: If variables have no collection "params".

    Example:
      >>> from flax import linen
      >>> module = linen.Dense(2)
      >>> variables = module.init(jax.random.key(0), jnp.ones((5, 3)))
      >>> apply, params = gj.networks.from_linen(module, variables)
      >>> print(apply(params, jnp.ones((5, 3))).shape)
      (5, 2)
    """
    rest = {name: collection for name, collection in variables.items() if name != "params"}
    return of_linen(module, rest), variables["params"]


@part()
def of_linen(module: linen.Module, rest: Mapping[str, Any]) -> Callable[..., Any]:
    """`apply(params, *inputs)` of a Linen module. Collections other than "params" are leaves of the part."""

    def apply(params: Any, *inputs: Any) -> Any:
        check_params(params)
        return module.apply({"params": params, **rest}, *inputs)

    return apply
