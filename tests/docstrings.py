"""What a docstring lacks compared with its code, by the project's rules, as far as a program can check them."""

import ast
import doctest
import functools
import inspect
import re
import textwrap
import types
from typing import Any

import jax
import jax.numpy as jnp

import guidance_jax as gj

SECTIONS = ("Args", "Returns", "Raises", "Example", "Reference", "References")
EQUATIONS = ("guidance", "samplers", "schedules", "scores", "metrics", "particles", "likelihood")
"""The rooms whose functions are formulae."""
SHAPE = re.compile(r"`\(\)`|\[[A-Za-z0-9 ,.+*/'\[\]-]+\]|PRNG key|likewise|the same|as (of|for) `|the shape of")
EQUATION = re.compile(r"`[^`]*( = |<-|==| [-+*/<>] |\^|\||min\(|exp\(|mean of )[^`]*`|^ {4,}\S.* = ", re.MULTILINE)
SOURCE = re.compile(r'arXiv:\d{4}\.\d{4,5}|openreview \w+|doi:\S+|(19|20)\d\d, (\w+, )?"')
SHOWN = re.compile(r">>> [^\n]*\n(  (>>>|\.\.\.)[^\n]*\n)*  (?!>>>|\.\.\.)\S")
SENTENCE = re.compile(r"\.(\s|$)")
ENTRY = re.compile(r"[^a-z].*\.\s*$", re.DOTALL)
"""An entry of `Args` as a sentence: it begins with a capital letter or code, and ends with a full stop."""
ARRAYS = re.compile(r"\b(Array|ArrayLike|Features)\b")
"""Annotations whose shape is documented once, where the kind is defined: `Scale`, `Labels`."""
JAXTYPED = re.compile(r"\b(Float|Int|Bool|Integer|Shaped|Num)\[")
BARE = re.compile(r"\b(Array|Any|tuple|dict|list)\b")


def pasted(test: doctest.DocTest) -> doctest.TestResults:
    """Runs the examples of one docstring after two lines alone: `import jax, jax.numpy as jnp`, `import guidance_jax as gj`."""
    test.globs = {"__name__": "__main__", "jax": jax, "jnp": jnp, "gj": gj}
    return doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)


def wide(text: str, first: int) -> list[str]:
    """The lines of a docstring's examples that have more than 100 columns, with their numbers in the file."""
    lines, found = text.split("\n"), []
    for example in doctest.DocTestParser().get_examples(text):
        shown = range(example.lineno, example.lineno + example.source.count("\n") + example.want.count("\n"))
        found += [f"{first + i}: {lines[i].strip()}" for i in shown if len(lines[i]) > 100]
    return found


def public() -> dict[str, Any]:
    """Every public function and class, by its shortest name from `gj`: those of its `__all__`, and of its modules."""
    found: dict[int, tuple[str, Any]] = {}

    def walk(module: types.ModuleType, prefix: str) -> None:
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, types.ModuleType):
                walk(value, f"{prefix}{name}.")
            elif inspect.isclass(value) or inspect.isfunction(value):
                known, _ = found.get(id(value), (None, None))
                if known is None or prefix.count(".") < known.count("."):
                    found[id(value)] = f"{prefix}{name}", value

    walk(gj, "")
    return dict(sorted(found.values()))


def sections(doc: str) -> dict[str, str]:
    """The sections of a docstring by their headings. The text before the first heading is `""`."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", inspect.cleandoc(doc), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(section: str) -> dict[str, str]:
    """The entries `name: description` of a section, by name."""
    parts = re.split(r"^  \*{0,2}([\w.]+): ", section, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def same_as(section: str) -> Any:
    """The function or class whose section applies to this one ("The same as of `sample`."), or None."""
    same = re.search(r"^  The same as of `([\w.]+)`", section, re.MULTILINE)
    return next(value for name, value in public().items() if same[1] in (name, name.rpartition(".")[2])) if same else None


def errors(section: str) -> set[str]:
    """The exceptions that a section `Raises` names, or those of the section it refers to."""
    other = same_as(section)
    return set(entries(section)) | (errors(sections(other.__doc__)["Raises"]) if other else set())


@functools.cache
def tree(value: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]


def parameters(value: Any) -> dict[str, str]:
    """The annotations of the parameters, by name. A class has those of its `__init__`."""
    node = tree(value)
    if isinstance(node, ast.ClassDef):
        node = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    if node is None:
        return {}
    every = [*node.args.posonlyargs, *node.args.args, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg]
    return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in every if a and a.arg not in ("self", "cls")}


def fields(value: Any) -> dict[str, str]:
    """The fields of a named tuple or dataclass with the sentence under each. Other classes have none."""
    if not inspect.isclass(value) or not (hasattr(value, "_fields") or hasattr(value, "__dataclass_fields__")):
        return {}
    found, body = {}, tree(value).body
    for part, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(part, ast.AnnAssign):
            sentence = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and str(after.value.value)
            found[ast.unparse(part.target)] = sentence or ""
    return found


def methods(value: Any) -> dict[str, Any]:
    """The public methods and properties that a class itself defines."""
    if not inspect.isclass(value):
        return {}
    own = {part.name for part in tree(value).body if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")}
    found = {name: inspect.getattr_static(value, name) for name in own - {"tree_flatten", "tree_unflatten"}}
    return {n: m.fget if isinstance(m, property) else getattr(m, "__func__", m) for n, m in found.items()}


@functools.cache
def raised(value: Any, seen: frozenset[Any] = frozenset()) -> set[str]:
    """The exceptions that a function's statements raise and do not catch, and those of the library's functions that it calls.

    A TypeError counts only where its own statements raise it: any function with annotations may raise one for a wrong argument.
    """
    value = inspect.unwrap(value)
    if value in seen:
        return set()
    names = vars(inspect.getmodule(value)) if inspect.isclass(value) else value.__globals__

    def of(node: ast.AST) -> set[str]:
        parts = [of(part) for part in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Try):
            caught = {ast.unparse(kind) for handler in node.handlers for kind in getattr(handler.type, "elts", [handler.type])}
            parts[: len(node.body)] = [part - caught for part in parts[: len(node.body)]]
        found = set().union(*parts)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(ast.unparse(node.exc.func))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "demand":
            found.add(ast.unparse(node.args[2]) if len(node.args) > 2 else "ValueError")
        elif isinstance(node, ast.Call):
            called = names.get(node.func.id) if isinstance(node.func, ast.Name) else None
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                owner = value.__qualname__.partition(".")[0] if node.func.value.id == "self" else node.func.value.id
                called = getattr(names.get(owner), node.func.attr, None)
            # What it calls, and the functions that it passes as arguments.
            for one in (called, *(names.get(given.id) for given in node.args if isinstance(given, ast.Name))):
                if inspect.isfunction(one) and inspect.unwrap(one).__module__.startswith("guidance_jax"):
                    found |= raised(one, seen | {value}) - {"TypeError"}
        return found

    return of(tree(value))


def at_the_door(value: Any) -> bool:
    """Whether a function's arguments are checked by its annotations, that is, whether `door` or `part` decorates it."""
    return inspect.isfunction(value) and hasattr(value, "__wrapped__") and bool(tree(value).decorator_list)


def lacking(value: Any, doc: str | None, ours: bool = False, silent: bool = False) -> list[str]:
    """What the docstring of a function or class lacks.

    Args:
      value: The function or class.
      doc: Its docstring.
      ours: Whether it comes from no paper, so that it needs no reference.
      silent: Whether it may lack an example.
    """
    if not doc:
        return ["a docstring"]
    parts, lacks = sections(doc), lacking_words(value, doc)
    code = " ".join(re.findall(r"`[^`]*`", parts[""]))
    kinds, given = parameters(value), entries(parts.get("Args", ""))
    undocumented = [name for name, sentence in fields(value).items() if not sentence and name not in given]
    lacks += [f"field {name}" for name in undocumented if "Args" in parts or not re.search(rf"\b{name}\b", code)]
    lacks += unexplained(value, given)
    lacks += [f"the shape of {name}" for name, entry in given.items() if shapeless(kinds.get(name, ""), entry)]
    if not returned(value, parts):
        lacks.append("Returns")
    if not silent and not SHOWN.search(parts.get("Example", "") + "\n"):
        lacks.append("an Example with what comes out")
    if not ours and not SOURCE.search(parts.get("Reference", parts.get("References", ""))):
        lacks.append("a Reference")
    formula = value.__module__.split(".")[1] in EQUATIONS and inspect.isfunction(value)
    if formula and not ours and not has_equation(parts[""]):
        lacks.append("an equation")
    for name, method in methods(value).items():
        lacks += [f"{name}: {lack}" for lack in lacking_words(method, method.__doc__)]
    return lacks


def unexplained(value: Any, given: dict[str, str]) -> list[str]:
    """The fields, or parameters of `__init__`, that the Args of a class do not explain."""
    if not inspect.isclass(value):
        return []
    wanted, below = parameters(value) or fields(value), fields(value)
    lacks = [f"Args: {name} is not explained" for name in wanted if name not in given]
    lacks += [f"Args: {name} is no sentence" for name, entry in given.items() if not ENTRY.match(entry)]
    return lacks + [f"Args: {name} is explained below the field" for name, entry in below.items() if entry]


def lacking_words(value: Any, doc: str | None) -> list[str]:
    """The sentence, parameters and errors that a docstring lacks."""
    if not doc:
        return ["a docstring"]
    parts = sections(doc)
    lacks = [] if SENTENCE.search(parts[""].split("\n\n")[0]) else ["a first sentence with a full stop"]
    if re.search(r"[Aa]rguments as for `", parts[""]):
        return lacks
    given, known, other = entries(parts.get("Args", "")), parameters(value), same_as(parts.get("Args", ""))
    documented = {
        *given,
        *(parameters(other) if other else ()),
        *(re.findall(r"`(\w+)`", parts[""]) if "Args" not in parts else ()),
    }
    lacks += [f"Args: {name}" for name in known if name not in documented]
    lacks += [f"Args: {name} is no parameter" for name in given if name not in known and name not in fields(value)]
    if at_the_door(value):
        lacks += [f"Args: {name} is no sentence" for name, entry in given.items() if not ENTRY.match(entry)]
    return lacks + [f"Raises: {error}" for error in sorted(raised(value) - errors(parts.get("Raises", "")))]


def shapeless(kind: str, entry: str) -> bool:
    """Whether the parameter is an array, and neither its annotation nor its entry states a shape."""
    arrays = ARRAYS.search(re.sub(r"Callable\[.*\]", "", kind))
    return bool(arrays) and not JAXTYPED.search(kind) and not SHAPE.search(entry)


def returned(value: Any, parts: dict[str, str]) -> bool:
    """Whether the result is documented: by a section, by a named type, or by an annotation with a shape."""
    node = tree(value)
    if isinstance(node, ast.ClassDef) or "Returns" in parts:
        return True
    kind = ast.unparse(node.returns) if node.returns else "Any"
    return not BARE.search(re.sub(r"\b(Callable|Float|Int|Bool|Integer)\[.*\]", "", kind)) or bool(SHAPE.search(parts[""]))


def has_equation(text: str) -> bool:
    """Whether it has an equation. Shapes do not count, and neither does the quantity `sigma / alpha` alone."""
    return bool(EQUATION.search(re.sub(r"\[[^\]]*\]|`sigma / alpha`", "", text)))
