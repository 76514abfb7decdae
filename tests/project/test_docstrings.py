"""Every public name has its sentence, equation, parameters with shapes, errors, example and source. Faults are detected."""

import ast
import doctest
import importlib
import inspect
import itertools
import pydoc
import re
import types
from pathlib import Path

import docstrings
import pytest
from docstrings import lacking, public
from typing_extensions import TypeAliasType

import guidance_jax as gj
from guidance_jax.checks import kinds

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / ".github" / "site" / "guide").glob("*.md"))
PUBLIC = public()
KINDS = {name: value for name, value in vars(kinds).items() if isinstance(value, TypeAliasType)}
"""The annotations that define what a parameter accepts."""

TYPES = (
    *(
        "Branches",
        "Calibration",
        "Context",
        "Curve",
        "Guidance",
        "NoiseLevel",
        "Prediction",
        "Sampler",
        "Schedule",
        "State",
        "Step",
    ),
    *("likelihood.Encoding", "metrics.Moments", "metrics.Neighbours", "particles.Particles", "targets.Target"),
    *("networks.DiTConfig", "networks.Perturbed", "networks.Tokens", "networks.UNetConfig"),
)
LOOP = ("branches", "checked", "evaluate", "evaluations", "guide", "guided", "levels", "run", "sample")
ALGEBRA = ("add", "amplify", "chain", "direction", "masked", "relative_to", "source", "stateless", "unless_one")
TEXTBOOK = (
    "metrics.accuracy",
    "metrics.moments",
    "metrics.neighbours",
    "oracles.GaussianMixture",
    "spacings.uniform",
    "training.diffuse",
)
HOUSE = (
    *("networks.MLP", "networks.MLPClassifier", "networks.conv_general_dilated", "networks.from_linen", "networks.from_nnx"),
    *("forget", "post_step", "samplers.gaussian"),
)
FILES = tuple(
    f"pretrained.{name}"
    for name in ("Tensor", "abstract", "from_arrays", "fully_sharded", "load", "open_weights", "parameter_count", "published")
)
PUBLISHED = tuple(
    f"pretrained.{name}"
    for name in (
        *("autoencoder.current_name", "clip.Encoded", "clip.clip_text_config", "clip.published_name", "schedulers.Scheduling"),
        *("schedulers.scheduling", "unet.Text", "unet.unet_condition_config"),
        *("text_to_image.Condition", "text_to_image.Model", "text_to_image.Prompts"),
    )
)
TREES = ("trees.Flat", "trees.Padded", "trees.flat", "trees.on_vectors", "trees.zero_padding")
OURS = {*TYPES, *LOOP, *ALGEBRA, *TREES, *TEXTBOOK, *HOUSE, *FILES, *PUBLISHED}
"""Names that come from no paper. They need no reference, and those of the algebra need no equation."""
OF_FILES = {
    "pretrained.text_to_image.Model": "it is made of a directory of gigabytes",
    "pretrained.text_to_image.load": "it reads a directory of gigabytes; tests/pretrained has tests with small ones",
    "pretrained.tokens.open_tokenizer": "it reads the files of a vocabulary; tests/pretrained/test_tokens.py writes small ones",
}
"""Names whose example would need a file, and why. They may lack an example."""
PATHS = {"schedules.below", "schedules.reverse"}
"""Parts of a path, which have no equation."""
NEVER = {"feynman_kac: Raises: ImportError", "euler: Raises: ValueError", "targets.drift: Raises: ValueError"}
"""Errors that these functions never raise, although their callees may. The first shows no progress bar, for which `run` needs
another package. The second draws no noise. The third passes `stateless` an update of the library.
"""


def found(name, doc):
    lacks = lacking(PUBLIC[name], doc, ours=name in OURS, silent=name in OF_FILES)
    known = {"an equation"} if name in PATHS else set()
    return [f"{name}: {lack}" for lack in lacks if lack not in known and f"{name}: {lack}" not in NEVER]


@pytest.mark.slow
def test_no_docstring_lacks_anything():
    lacks = [lack for name, value in PUBLIC.items() for lack in found(name, value.__doc__)]
    print(f"{len(PUBLIC)} public names, {len(lacks)} parts lacking")
    assert not lacks, "\n".join(lacks)
    assert set(PUBLIC) >= {*OURS, *OF_FILES, *PATHS}, "exceptions for names that no longer exist"
    assert len(PUBLIC) > 160


def test_every_module_lists_its_public_names():
    modules = [value for name in gj.__all__ if isinstance(value := getattr(gj, name), types.ModuleType)]
    assert len(modules) > 10
    for module in modules:
        assert module.__doc__
        assert all(hasattr(module, name) for name in module.__all__)


def test_the_names_in_the_readme_the_guides_and_the_experiments_are_public():
    """So `__all__`, on which the rules above rely, omits no name that a user meets."""
    files = [ROOT / "README.md", *GUIDES, *sorted((ROOT / "experiments").rglob("*.py"))]
    used = {match for file in files for match in re.findall(r"\bgj\.(\w+)(?:\.(\w+))?", file.read_text())}
    assert len(used) > 60
    for first, second in used:
        assert first in gj.__all__, first
        if isinstance(module := getattr(gj, first), types.ModuleType) and second.strip("_") == second != "":
            assert second in module.__all__, f"{first}.{second}"


def test_every_kind_documents_what_it_accepts():
    """In a sentence below the kind, so that no parameter has to."""
    body = ast.parse(inspect.getsource(kinds)).body
    sentences = {ast.unparse(one.targets[0]): after for one, after in itertools.pairwise(body) if isinstance(one, ast.Assign)}
    assert len(KINDS) > 20
    for name in KINDS:
        sentence = sentences[name]
        assert isinstance(sentence, ast.Expr), name
        assert docstrings.SENTENCE.search(ast.literal_eval(sentence.value)), name


def test_doctest_finds_every_example():
    """`test_documents` runs the examples that doctest finds in each module."""
    for name, value in PUBLIC.items():
        module = importlib.import_module(value.__module__)
        whole = f"{module.__name__}.{value.__qualname__}"
        examples = [test.examples for test in doctest.DocTestFinder().find(module) if test.name == whole]
        assert name in OF_FILES or examples[0], name


def test_the_references_in_the_guides_are_those_of_the_docstrings():
    """A row of their tables and the docstring of that row's function have the same arXiv numbers."""
    text = "\n".join(page.read_text() for page in GUIDES)
    rows = re.findall(r"^\| (`.*?) \|.*\| ([^|]*) \|$", text, flags=re.MULTILINE)
    checked = 0
    for left, right in rows:
        names = [name for name in re.findall(r"`gj\.([a-z][\w.]*)[`(]", left.partition(" | ")[0]) if name in PUBLIC]
        docs = " ".join(PUBLIC[name].__doc__ for name in names)
        for number in re.findall(r"\b\d{4}\.\d{5}\b", right) if names else ():
            assert number in docs, (names, number)
            checked += 1
    assert checked > 30


def without(doc, part):
    """A docstring without one of its sections."""
    headings = "|".join(docstrings.SECTIONS)
    return re.sub(rf"^ *{part}:.*?(?=^ *(?:{headings}):|\Z)", "", doc, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "fault", "lack"),
    [
        ("cfg", lambda doc: "", "a docstring"),
        ("cfg", lambda doc: doc.replace("guidance.\n", "guidance\n", 1), "a first sentence"),
        ("cfg", lambda doc: doc.replace("`D = uncond + scale (cond - uncond)`", "A weighted sum.", 1), "an equation"),
        ("cfg", lambda doc: re.sub(r"      scale: .*?(?=      cond:)", "", doc, flags=re.DOTALL), "Args: scale"),
        ("cfg", lambda doc: doc.replace("      cond: ", "      condition: "), "Args: condition is no parameter"),
        ("cfg", lambda doc: doc.replace("cond: The branch", "cond: the branch"), "Args: cond is no sentence"),
        ("cfg", lambda doc: doc.replace("use about 7.5.", "use about 7.5"), "Args: scale is no sentence"),
        ("Guidance", lambda doc: doc.replace("      needs: ", "      reads: "), "field needs"),
        ("cfg", lambda doc: doc.replace("ValueError:", "KeyError:"), "Raises: ValueError"),
        ("cfg", lambda doc: doc.replace("      [[3. 1.]]\n", ""), "an Example"),
        ("cfg", lambda doc: re.sub(r"arXiv:\S+", "a paper", doc.replace("2022,", "")), "a Reference"),
        ("metrics.fid", lambda doc: without(doc, "Raises"), "Raises: ValueError"),
        ("evaluate", lambda doc: doc.replace("x: `[B, ...]`.", "x: The samples."), "the shape of x"),
        ("training.ema", lambda doc: without(doc, "Returns"), "Returns"),
        ("sample", lambda doc: doc.replace("ImportError:", "If"), "Raises: ImportError"),
        ("run", lambda doc: without(doc, "Args"), "Args: keys"),
        ("networks.UNet", lambda doc: doc.replace("      config:", "      sizes:"), "Args: config"),
        ("networks.UNetConfig", lambda doc: without(doc, "Args"), "Args: widths is not explained"),
        ("networks.Tokens", lambda doc: doc.replace("      mask: ", "      seen: "), "Args: mask is not explained"),
        (
            "networks.MLPClassifier",
            lambda doc: without(doc, "Args") + "Args:\n  The same as of `MLP`.",
            "Args: width is not exp",
        ),
        (
            "pretrained.clip.Encoded",
            lambda doc: doc.replace("last: `[B, L, D]`, the", "last: the"),
            "Args: last is no sentence",
        ),
        ("oracles.GaussianMixture", lambda doc: doc.replace("      weights:", "      shares:"), "Args: weights"),
    ],
)
def test_a_fault_is_detected(name, fault, lack):
    doc = PUBLIC[name].__doc__
    assert fault(doc) != doc
    assert any(entry.startswith(f"{name}: {lack}") for entry in found(name, fault(doc)))


@pytest.mark.slow
def test_a_missing_section_or_parameter_is_detected_in_every_name():
    """A fault of each kind in every docstring that has that part."""
    seen = 0
    for name, value in PUBLIC.items():
        parts = docstrings.sections(value.__doc__)
        for part in {"Example"} - ({"Example"} if name in OF_FILES else set()) | ({"Reference"} if name not in OURS else set()):
            part = "References" if part == "Reference" and "References" in parts else part
            assert found(name, without(value.__doc__, part)), (name, part)
            seen += 1
        for parameter in docstrings.entries(parts.get("Args", "")):
            gone = re.sub(rf"^ *\*{{0,2}}{parameter}: ", "      and ", value.__doc__, count=1, flags=re.MULTILINE)
            assert found(name, gone), (name, parameter)
            seen += 1
    print(f"{seen} faults seen")
    assert seen > 600


def test_an_undocumented_field_or_method_is_detected():
    record = type("Record", (), {"__doc__": "One. "})
    assert lacking(record, None) == ["a docstring"]
    fields = docstrings.entries(docstrings.sections(str(gj.State.__doc__))["Args"])
    assert fields["memory"].strip() == "The memory of the sampler."
    assert set(docstrings.methods(gj.oracles.GaussianMixture)) >= {"denoise", "score", "log_prob", "sample", "sample_tilted"}
    assert docstrings.raised(gj.oracles.GaussianMixture.sample) == {"ValueError"}


def test_the_core_types_document_their_fields_under_args():
    data = (gj.Branches, gj.Context, gj.NoiseLevel, gj.Prediction, gj.State, gj.Step)
    for kind in (*data, gj.Guidance, gj.Sampler, gj.Schedule):
        assert set(docstrings.entries(docstrings.sections(str(kind.__doc__))["Args"])) == set(docstrings.fields(kind)), kind


def test_help_shows_the_names_of_kinds_and_not_their_definitions():
    """The decorator keeps the short names of kinds in signatures, editors and `help`."""
    assert str(inspect.signature(gj.cfg)).startswith("(scale: Scale, *, cond: Branch = 'cond', uncond: Branch = 'uncond') -> ")
    assert "(scale: Scale, *, cond: Branch = 'cond'" in pydoc.plain(pydoc.render_doc(gj.cfg))
    decorated = {name: value for name, value in PUBLIC.items() if docstrings.at_the_door(value)}
    assert set(decorated) >= {"cfg", "during", "guided", "sample", "source"}
    for name, value in decorated.items():
        shown, given = str(inspect.signature(value)), docstrings.parameters(value)
        assert (value.__name__, list(inspect.signature(value).parameters)) == (name.rpartition(".")[2], list(given)), name
        assert not re.search(r"Annotated|Kind\(|TypeAliasType|<function|<lambda>", shown), (name, shown)
        for parameter, kind in given.items():
            assert kind not in KINDS or re.search(rf"\b{parameter}: {kind}\b", shown), (name, shown)
