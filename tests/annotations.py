"""Annotations of the library that are checked at every call.

A check takes a hundred times as long to make as to do. A function within a function would have a new one at each definition, so
only its first three definitions are checked.
"""

import ast
import collections

import beartype
import jaxtyping
from jaxtyping import _import_hook

check = beartype.beartype
defined = collections.Counter()


def first_three(decorate):
    def decorated(function):
        defined[function.__code__] += 1
        return decorate(function) if defined[function.__code__] <= 3 else function

    return decorated


class Annotated(_import_hook.JaxtypingTransformer):
    def visit_FunctionDef(self, node):  # noqa: N802
        within = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        super().visit_FunctionDef(node)
        if within:
            named = ast.parse("jaxtyping._import_hook.Typechecker.lookup['first_three']", mode="eval").body
            first = ast.copy_location(ast.Call(named, [node.decorator_list[-1]], []), node)
            node.decorator_list[-1] = ast.fix_missing_locations(first)
        return node


def install():
    _import_hook.Typechecker.lookup["first_three"] = first_three
    _import_hook.JaxtypingTransformer = Annotated
    jaxtyping.install_import_hook("guidance_jax", "annotations.check")
