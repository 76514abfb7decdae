"""The operations of a program, counted in what JAX traces: those of matrix products, convolutions and attention.

The compiler's own count leaves out what it hands to cuDNN. It counts a loop once on some platforms.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

ATTENTION = {"dot_product_attention_fwd": 4, "dot_product_attention_bwd": 10}
"""Operations of cuDNN's fused attention per query, key and channel. The gradient has five products, forward has two."""


def operations(function: Callable[..., Any], *arguments: Any) -> float:
    """The operations of a function: two for each multiplication and its addition. Arguments may be shapes.

    A loop of known length counts as often as it runs. A condition counts as its largest branch.

    Args:
      function: Any function that JAX can trace.
      *arguments: Its arguments.

    Raises:
      ValueError: If a loop of unknown length has products.
    """
    return _program(jax.make_jaxpr(function)(*arguments).jaxpr)


def _program(program: Any) -> float:
    return sum(map(_equation, program.eqns))


def _equation(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(value.aval, "shape", ()) for value in equation.invars]
    out = math.prod(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2.0 * out * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        _, inward, *window = parameters["dimension_numbers"].rhs_spec
        each = math.prod(shapes[1][axis] for axis in (inward, *window))
        # A dilated input has zeros between its pixels. Nobody has to multiply by them.
        return 2.0 * out * each / math.prod(parameters["lhs_dilation"] or (1,))
    for kind, times in ATTENTION.items():
        if name.startswith(kind):
            (batch, *middle, width), keys = shapes[0], shapes[1]
            sequence, heads = middle if parameters["layout"] == 0 else middle[::-1]
            return float(times * batch * heads * width * sequence * (keys[1] if parameters["layout"] == 0 else keys[2]))
    inner = [_program(program) for program in _programs(parameters.values())]
    if name == "while" and sum(inner):
        raise ValueError("a loop of unknown length has products, so the operations cannot be counted.")
    if name == "cond":
        return max(inner)
    return sum(inner) * parameters.get("length", 1) if name == "scan" else sum(inner)


def _programs(values: Any) -> Iterator[Any]:
    """The programs among the parameters of an equation."""
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _programs(value)
        elif hasattr(program := getattr(value, "jaxpr", value), "eqns"):
            yield program
