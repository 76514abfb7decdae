"""From a Flax module, NNX or Linen, to a pure function of its parameters."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen, nnx

from guidance_jax.checks.door import CLASSES, door, part, rule
from guidance_jax.checks.kinds import class_kind
from guidance_jax.networks.checks import check_params

CLASSES[nnx.Module] = class_kind(nnx.Module, "from_linen(module, variables) takes a Linen one.")
CLASSES[linen.Module] = class_kind(linen.Module, "from_nnx(module) takes an NNX one.")


@door(rule("method must be one of the module's; leave it out for __call__", lambda module, method: hasattr(module, method)))
def from_nnx(module: nnx.Module, method: str = "__call__") -> tuple[Callable[..., Any], Any]:
    """The pure function `apply(params, *inputs)` of an NNX module, and its parameters.

    What the module holds besides parameters (batch statistics) stays as it is now: call `module.eval()` first. A module
    that draws random numbers when called is not a pure function.

    Args:
      module: `(x, t, cond) -> output`, or any other.
      method: Which of its methods, `"decode"` of an autoencoder.

    Returns:
      `apply` and `params`; jit and differentiate in `params` as you like.

    Raises:
      ValueError: If the module has no such method.

    Example:
      >>> apply, params = gj.networks.from_nnx(gj.networks.MLP((2,), classes=3, width=8, blocks=1, rngs=nnx.Rngs(0)))
      >>> print(apply(params, jnp.ones((5, 2)), jnp.ones(5), jnp.zeros(5, int)).shape)
      (5, 2)
    """
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return of_nnx(graph, rest, method), params


@part()
def of_nnx(graph: Any, rest: Any, method: str) -> Callable[..., Any]:
    """`apply(params, *inputs)` of an NNX module; what it holds besides parameters is a leaf."""

    def apply(params: Any, *inputs: Any) -> Any:
        check_params(params)
        return getattr(nnx.merge(graph, params, rest), method)(*inputs)

    return apply


@door(rule('variables must hold a collection "params", as module.init gives it', lambda variables: "params" in variables))
def from_linen(module: linen.Module, variables: Mapping[str, Any]) -> tuple[Callable[..., Any], Any]:
    """The pure function `apply(params, *inputs)` of a Linen module, and its parameters.

    Args:
      module: `(x, t, cond) -> output`, or any other.
      variables: What `module.init` gave; collections other than "params" (batch statistics) stay as they are.

    Returns:
      `apply` and `params`.

    Raises:
      ValueError: If variables have no collection "params".

    Example:
      >>> module = linen.Dense(2)
      >>> apply, params = gj.networks.from_linen(module, module.init(jax.random.key(0), jnp.ones((1, 3))))
      >>> print(apply(params, jnp.ones((5, 3))).shape)
      (5, 2)
    """
    rest = {name: collection for name, collection in variables.items() if name != "params"}
    return of_linen(module, rest), variables["params"]


@part()
def of_linen(module: linen.Module, rest: Mapping[str, Any]) -> Callable[..., Any]:
    """`apply(params, *inputs)` of a Linen module; its other collections are leaves."""

    def apply(params: Any, *inputs: Any) -> Any:
        check_params(params)
        return module.apply({"params": params, **rest}, *inputs)

    return apply
