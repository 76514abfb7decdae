"""Scenes of two digits side by side, captions of them, and the scenes that agree with each caption.

A scene is a pair, left and right, of digits 0 to 9 or `EMPTY`. There are 121 scenes. So the meaning of a caption is a table of
the scenes that agree with it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.tools import data

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EMPTY = 10
"""The cell without a digit, also as a class of the judge."""
SIDE = 8
SHAPE = (SIDE, 2 * SIDE, 1)
LENGTH = 10
"""The length of every caption in tokens, with a start and an end."""


@dataclasses.dataclass(frozen=True)
class Form:
    """One kind of caption.

    Args:
      template: The text. "{a}" and "{b}" are two different digits with their article, and "{a:bare}" is one without it.
      true: `(left, right, a, b)` to whether the caption agrees with the scene.
      weight: Relative frequency in training, among the kinds that can describe a scene.
    """

    template: str
    true: Callable[[int, int, int, int], bool]
    weight: int = 1

    @property
    def digits(self) -> int:
        """The number of digits that it names."""
        return sum(f"{{{name}" in self.template for name in "ab")


def _some(left: int, right: int, digit: int) -> bool:
    return digit in (left, right)


FORMS: dict[str, Form] = {
    "left of": Form("{a} to the left of {b}", lambda l, r, a, b: (l, r) == (a, b), weight=5),
    "right of": Form("{a} to the right of {b}", lambda l, r, a, b: (r, l) == (a, b), weight=2),
    "and": Form("{a} and {b}", lambda l, r, a, b: {l, r} == {a, b}, weight=4),
    "two": Form("two {a:plural}", lambda l, r, a, b: l == r == a, weight=2),
    "alone": Form("{a} alone", lambda l, r, a, b: {l, r} == {a, EMPTY}, weight=2),
    "one": Form("{a}", lambda l, r, a, b: _some(l, r, a)),
    "on the left": Form("{a} on the left", lambda l, r, a, b: l == a),
    "on the right": Form("{a} on the right", lambda l, r, a, b: r == a),
    "or": Form("{a} or {b}", lambda l, r, a, b: _some(l, r, a) or _some(l, r, b)),
    "but no": Form("{a} but no {b:bare}", lambda l, r, a, b: _some(l, r, a) and not _some(l, r, b)),
    "no": Form("no {a:bare}", lambda l, r, a, b: not _some(l, r, a)),
    "no digits": Form("no digits", lambda l, r, a, b: l == r == EMPTY),
    "empty": Form("an empty scene", lambda l, r, a, b: l == r == EMPTY),
}
"""Every kind of caption except the empty text, which agrees with every scene.

Only the preposition and the order of the digits together determine the left digit. "left of" is more frequent than "right of",
so that the order alone carries information. With equal frequencies a model needs very long to learn either.
"""
PAIRED = ("left of", "right of", "and")
"""The kinds that name both digits of a scene."""


@dataclasses.dataclass(frozen=True)
class Noun:
    """A digit that formats itself in a template.

    Args:
      digit: The digit, 0 to 9.
    """

    digit: int

    def __format__(self, form: str) -> str:
        word = DIGITS[self.digit]
        if form == "plural":
            return word + ("es" if word in ("zero", "six") else "s")
        return word if form == "bare" else f"{'an' if word == 'eight' else 'a'} {word}"


def caption(form: str, a: int = 0, b: int = 0) -> str:
    """The caption of a kind with digits a and b.

    Example:
      >>> caption("left of", 3, 8), caption("two", 6), caption("but no", 5, 2)
      ('a three to the left of an eight', 'two sixes', 'a five but no two')
    """
    return FORMS[form].template.format(a=Noun(a), b=Noun(b))


def arguments(form: str) -> Iterator[tuple[int, int]]:
    """All pairs of digits that give different captions of a kind."""
    digits = FORMS[form].digits
    return itertools.permutations(range(10), 2) if digits == 2 else ((a, 0) for a in range(10 if digits else 1))


@functools.cache
def parse(text: str) -> tuple[str, int, int]:
    """The kind of a caption and its digits. The empty text gives ("", 0, 0).

    Raises:
      ValueError: if the text is no caption.

    Example:
      >>> parse("a three to the left of an eight")
      ('left of', 3, 8)
    """
    if not text:
        return "", 0, 0
    if text not in _language():
        raise ValueError(f"{text!r} is no caption, expected one like {', '.join(caption(form, 3, 7) for form in FORMS)}.")
    return _language()[text]


@functools.cache
def _language() -> dict[str, tuple[str, int, int]]:
    return {caption(form, a, b): (form, a, b) for form in FORMS for a, b in arguments(form)}


@functools.cache
def asked(text: str) -> np.ndarray:
    """A table `[11, 11]` that is True at `[left, right]` if the caption agrees with that scene.

    Raises:
      ValueError: if the text is no caption.

    Example:
      >>> int(asked("a three").sum()), bool(asked("a three to the left of a seven")[3, 7])
      (21, True)
    """
    form, a, b = parse(text)
    if not form:
        return np.ones((11, 11), bool)
    return np.array([[FORMS[form].true(l, r, a, b) for r in range(11)] for l in range(11)])


def met(texts: Sequence[str], scenes: np.ndarray) -> np.ndarray:
    """Whether each scene `[N, 2]` agrees with its caption, `[N]`."""
    return np.array([asked(text)[left, right] for text, (left, right) in zip(texts, scenes, strict=True)], bool)


def held_out(a: Any, b: Any) -> Any:
    """Whether these two digits, in any order, are never in training. This holds for 10 of 45 pairs."""
    return ((a - b) % 10 == 3) | ((a - b) % 10 == 7)


VOCABULARY = ("<pad>", *sorted({word for text in _language() for word in text.split()}), "<start>", "<end>")
START, END = len(VOCABULARY) - 2, len(VOCABULARY) - 1


def tokenise(texts: Sequence[str]) -> np.ndarray:
    """Captions as token numbers `[N, LENGTH]`: the start, the words, the end, and padding with 0.

    Raises:
      ValueError: if a word is unknown, or if a text is too long.

    Example:
      >>> [VOCABULARY[number] for number in tokenise(["two sixes"])[0, :5]]
      ['<start>', 'two', 'sixes', '<end>', '<pad>']
    """
    return np.array([_tokens(text) for text in texts], np.int32).reshape(len(texts), LENGTH)


@functools.cache
def _tokens(text: str) -> tuple[int, ...]:
    words = text.split()
    if unknown := [word for word in words if word not in VOCABULARY[1:-2]]:
        raise ValueError(f"{unknown[0]!r} in {text!r} is an unknown word. The known words are {', '.join(VOCABULARY[1:-2])}.")
    if len(words) > LENGTH - 2:
        raise ValueError(f"{text!r} has {len(words)} words, expected at most {LENGTH - 2}.")
    return (START, *map(VOCABULARY.index, words), END, *[0] * (LENGTH - 2 - len(words)))


SHARES = {"pair": 0.64, "alone": 0.2, "twins": 0.1, "empty": 0.06}
"""The frequency in training of scenes with two different digits, with one, with two equal digits, and with none."""


@functools.cache
def prior() -> np.ndarray:
    """The probability of each scene in training, `[11, 11]`. It is 0 for the pairs that are held out."""
    left, right = np.indices((11, 11))
    empty = (left == EMPTY).astype(int) + (right == EMPTY)
    kinds = {
        "pair": (empty == 0) & (left != right) & ~held_out(left, right),
        "alone": empty == 1,
        "twins": (empty == 0) & (left == right),
        "empty": empty == 2,
    }
    return np.sum([share * kinds[name] / kinds[name].sum() for name, share in SHARES.items()], axis=0)


@functools.cache
def captions(left: int, right: int) -> dict[str, list[str]]:
    """All captions that agree with a scene, by kind."""
    kinds = {form: [caption(form, *digits) for digits in arguments(form)] for form in FORMS}
    true = {form: [text for text in texts if asked(text)[left, right]] for form, texts in kinds.items()}
    return {form: texts for form, texts in true.items() if texts}


@functools.cache
def _drawn(left: int, right: int) -> list[list[str]]:
    """The lists of `captions`, each repeated by the weight of its kind."""
    return [texts for form, texts in captions(left, right).items() for _ in range(FORMS[form].weight)]


def describe(rng: np.random.Generator, left: int, right: int) -> str:
    """A random caption that agrees with a scene. The kind is drawn by its weight, then a caption of that kind uniformly."""
    kinds = _drawn(left, right)
    texts = kinds[rng.integers(len(kinds))]
    return texts[rng.integers(len(texts))]


class Cells:
    """Images of single digits, from which scenes are made."""

    def __init__(self, digits: data.Data):
        blank = np.full((1, *digits.images.shape[1:]), -1, np.float32)
        self.images = np.concatenate([digits.images[np.argsort(digits.labels, kind="stable")], blank])
        self.counts = np.append(np.bincount(digits.labels, minlength=10), 1)
        self.starts = np.cumsum(self.counts) - self.counts

    def picture(self, rng: np.random.Generator, scenes: np.ndarray) -> np.ndarray:
        """Images `[N, 8, 16, 1]` of scenes `[N, 2]`, with a random image of the digit in each cell."""
        at = self.starts[scenes] + (rng.random(scenes.shape) * self.counts[scenes]).astype(int)
        return np.concatenate([self.images[at[:, 0]], self.images[at[:, 1]]], axis=2)


class Scenes:
    """Endless batches of images `[B, 8, 16, 1]` and tokens of captions `[B, LENGTH]`.

    A batch depends on the seed and on its number only.

    Args:
      cells: the images of single digits.
      size: the number of scenes per batch.
      seed: the seed of scenes, images and captions.
    """

    def __init__(self, cells: Cells, size: int, seed: int):
        self.cells, self.size, self.seed, self.drawn = cells, size, seed, 0

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, self.drawn))
        self.drawn += 1
        scenes = np.stack(np.divmod(rng.choice(121, self.size, p=prior().ravel()), 11), axis=1)
        return self.cells.picture(rng, scenes), tokenise([describe(rng, *scene) for scene in scenes.tolist()])

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.drawn}

    def set_state(self, state: dict[str, int]) -> None:
        self.drawn = state["next_index"]
