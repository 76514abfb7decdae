"""The code of both READMEs and of the guide pages runs as a reader would paste it, and prints what its comments say."""

import ast
import contextlib
import io
import re
import tokenize
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / ".github" / "site" / "guide").glob("*.md"))]
CHINESE = ROOT / "README.zh-CN.md"
IMPORTS = "import jax, jax.numpy as jnp\nimport guidance_jax as gj\n"


def said(comments: dict[int, str], last: int, lines: list[str]) -> str:
    """What a statement prints according to the comment on its last line, or else to the lines of comment below it."""
    if last in comments:
        return comments[last]
    below = []
    while last + 1 in comments and lines[last].lstrip().startswith("#"):
        last += 1
        below.append(comments[last])
    return " ".join(below)


def test_the_chinese_readme_has_the_code_of_the_english_one():
    """All but the words in comments, which begin with the first character that is not ASCII."""
    english, chinese = (
        re.findall(r"^```\w+\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE) for page in (PAGES[0], CHINESE)
    )
    assert len(english) == len(chinese) > 3
    for ours, theirs in zip(english, chinese, strict=True):
        for line, translated in zip(ours.splitlines(), theirs.splitlines(), strict=True):
            code, comment, words = translated.partition("# ")
            assert line == translated or (not words.isascii() and line.startswith(code + comment)), translated


def test_code_has_at_most_100_columns():
    blocks = [
        block
        for page in (*PAGES, CHINESE)
        for block in re.findall(r"^```py.*?\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    assert len(blocks) > 50
    assert [line for block in blocks for line in block.splitlines() if len(line) > 100] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_prints_what_it_says(page):
    names: dict[str, object] = {"__name__": "__main__"}
    exec(IMPORTS, names)
    text = page.read_text()
    for block in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        code = "\n" * text.count("\n", 0, block.start(1)) + block[1]  # a traceback then has the line of the page
        lines = code.splitlines()
        tokens = tokenize.generate_tokens(io.StringIO(code).readline)
        comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        for statement in ast.parse(code).body:
            run = compile(ast.Module([statement], []), str(page), "exec")
            # As for a reader: the tests themselves run with strict promotion.
            with (
                contextlib.redirect_stdout(io.StringIO()) as printed,
                jax.numpy_dtype_promotion("standard"),
                jax.numpy_rank_promotion("allow"),
            ):
                exec(run, names)
            if printed.getvalue():
                last = statement.end_lineno or 0
                assert printed.getvalue().split() == said(comments, last, lines).split(), f"{page.name}, line {last}"
