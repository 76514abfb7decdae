"""Equations of traced programs."""

import jax


def equations(jaxpr):
    """The equations of a program and of all programs nested in it."""
    for e in jaxpr.eqns:
        yield e
        for value in jax.tree.leaves(list(e.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products(f, *given):
    """The matrix products and convolutions of a function."""
    names = ("dot_general", "conv_general_dilated", "ragged_dot_general")
    return [e for e in equations(jax.make_jaxpr(f)(*given).jaxpr) if e.primitive.name in names]
