"""CLIP's tokenisers, from a model's files: texts to token ids."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guidance_jax.checks.door import door
from guidance_jax.pretrained.checks import FilePath, Texts
from guidance_jax.pretrained.clip import CLIPTextConfig
from guidance_jax.pretrained.directories import read_json

__all__ = ["Tokenize", "open_tokenizer"]

SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "sep_token": None,
    "pad_token": "<|endoftext|>",
    "cls_token": None,
    "mask_token": None,
}
"""The special tokens, and their defaults."""
OTHERS = {"extra_special_tokens", "additional_special_tokens"}
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""A piece of text that is encoded by itself: a word, a single digit, or a run of other characters."""
SIDES = ("right", "left")
LONGEST = 100_000
"""The maximum window. A larger number, such as 10^30, means that the file sets none."""
EXCERPT = 60
"""The maximum number of characters of a prompt in an error."""


Tokenize = Callable[..., np.ndarray]
"""`(texts, *, whole=False) -> ids [B, window]`, int32: the start token, the text's tokens, the end token, and padding.

None is the empty text. With `whole`, a text longer than the window raises. Otherwise its end is cut off, with a warning.
"""


@door()
def open_tokenizer(directory: FilePath, encoder: CLIPTextConfig | None = None) -> Tokenize:
    """A model's tokeniser, as in transformers, from `tokenizer.json`, or from `vocab.json` and `merges.txt`.

    It encodes byte pairs of the lower-case text. Other files in the directory set the padding token ("!" in Stable Diffusion 2
    and XL's second encoder), the window, and added tokens, such as those of textual inversion. Added tokens come from
    `added_tokens_decoder` of `tokenizer_config.json` if it exists, and otherwise from `special_tokens_map.json` and
    `added_tokens.json`. If `<cat>_1` exists beside a token `<cat>`, then `<cat>` stands for both, as in diffusers' pipelines.

    Args:
      directory: The directory with these files.
      encoder: The configuration of the text encoder. Its positions are the default window, 77 without it. Its vocabulary bounds
        the ids.

    Raises:
      FileNotFoundError: If the files do not exist.
      ValueError: If the files are damaged, are of another tokeniser, or do not fit the encoder; when called, if the encoder's
        vocabulary has no place for a token.
      ImportError: If the package tokenizers is not installed.
      TypeError: When called, if texts are not a list of strings.

    Reference: Radford et al. 2021, arXiv:2103.00020; transformers 5, models/clip/tokenization_clip.py and
    tokenization_utils_base.py.
    """
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ImportError("tokenising needs the package tokenizers: pip install guidance_jax[pretrained].") from error
    directory = Path(directory)
    whole, vocabulary, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        raise FileNotFoundError(f"there is neither {whole} nor both {vocabulary.name} and {merges.name} beside it.")
    config = _optional(directory / "tokenizer_config.json")
    kind = config.get("tokenizer_class") or "CLIPTokenizer"
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise ValueError(f"{directory} holds a {kind}, expected CLIPTokenizer.")
    published = _optional(whole)
    try:
        named, others, listed = _special(directory, config, published)
        tokenizer = _built(published.get("model"), vocabulary, merges, str(named["unk_token"]))
        _add(tokenizer, named, others, listed)
        tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
        start, end, padding, unknown = (str(named[f"{name}_token"]) for name in ("bos", "eos", "pad", "unk"))
        sides = [_side(config, published, of) for of in ("padding", "truncation")]
    except Exception as error:  # The package raises only Exception.
        raise ValueError(f"the tokeniser's files in {directory} are damaged: {error}. Download them again.") from error
    ids = [_id(tokenizer, content, unknown) for content in (start, end, padding)]
    rows = encoder.vocab_size if encoder else None
    for content, number in zip((start, end, padding), ids, strict=True):
        if number is None or (rows and number >= rows):
            raise ValueError(f"the vocabulary in {directory} has no {content!r}, or the encoder has no row for it.")
    window = _window(directory / "tokenizer_config.json", config, encoder)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}

    @door()
    def tokenize(texts: Texts, *, whole: bool = False) -> np.ndarray:
        texts = ["" if text is None else str(text) for text in texts]
        out = np.full((len(texts), window), ids[2], np.int32)
        for row, given in zip(out, texts, strict=True):
            encoding, text = _encoded(tokenizer, given, added)
            kept, cut = encoding.ids, len(encoding.ids) - (window - 2)
            if cut > 0:
                after = sides[1] == "right"
                kept = kept[:-cut] if after else kept[cut:]
                place = encoding.offsets[window - 2 if after else cut][0]
                _report(given, text[place:] if after else text[:place], window, whole)
            if rows and max(kept, default=0) >= rows:
                token = tokenizer.id_to_token(max(kept))
                raise ValueError(f"{given[:EXCERPT]!r} has the token {token!r}, for which the encoder has no row.")
            wrapped = [ids[0], *kept, ids[1]]
            row[slice(len(wrapped)) if sides[0] == "right" else slice(window - len(wrapped), window)] = wrapped
        return out

    return tokenize


def _special(
    directory: Path, config: Mapping[str, Any], published: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any], dict[int, Any]]:
    """The special tokens by name, those without a name, and all added tokens by id, as transformers finds them."""
    named = {name: token for name, token in config.items() if name in SPECIAL}
    others = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    if others is None and OTHERS & config.keys():
        others = []
    further = {name: token for name, token in config.items() if name not in SPECIAL and name.endswith("_token")}
    later = {name: token for name, token in further.items() if isinstance(token, str)}
    further = {name: token for name, token in further.items() if isinstance(token, dict)}
    if isinstance(others, dict):
        others, later = None, later | others
    if (decoder := config.get("added_tokens_decoder")) is not None:
        listed = {int(number): _token(token) for number, token in decoder.items()}
    else:
        mapped = _optional(directory / "special_tokens_map.json")
        tokens = {name: _token(token, special=True) for name, token in mapped.items() if isinstance(token, str | dict)}
        tokens.pop("extra_special_tokens", None)
        named |= {name: token for name, token in tokens.items() if name in SPECIAL}
        further |= {name: token for name, token in tokens.items() if name not in SPECIAL and name.endswith("_token")}
        more = mapped.get("extra_special_tokens")
        if isinstance(more, dict):
            others, later = None, later | more
        elif more is not None:
            others = others or []
            others = [*others, *(token for token in (_token(token, special=True) for token in more) if token not in others)]
        special = {str(token) for token in [*named.values(), *(others or [])] if token}
        if others is None:
            others = [_token(token, special=True) for token in mapped.get("additional_special_tokens") or []]
        listed = {}
        for content, number in _optional(directory / "added_tokens.json").items():
            flags = {"normalized": content not in special, "special": content in special}
            listed[int(number)] = _token({"content": content, **flags})
        for token in published.get("added_tokens", []):
            listed[int(token["id"])] = _token({name: value for name, value in token.items() if name != "id"})
    by_content = {token.content: token for token in listed.values()}
    named = {name: _token(token) for name, token in (SPECIAL | named).items()}
    named = {name: by_content.get(str(token), token) if token else token for name, token in named.items()}
    if missing := [name for name, token in SPECIAL.items() if token and named[name] is None]:
        raise ValueError(f"{' and '.join(missing)} must be strings, got null")
    named |= {name: _token(token) for name, token in (further | later).items()}
    return named, [_token(token) for token in others or []], listed


def _built(model: Any, vocabulary: Path, merges: Path, unknown: str) -> Any:
    """The byte pairs as transformers builds them. The normaliser and pre-tokeniser of a `tokenizer.json` have no effect."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    options: dict[str, Any] = {"unk_token": unknown, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
    if model is None:
        bpe = models.BPE.from_file(str(vocabulary), str(merges), **options)
    else:
        if model.get("type", "BPE") != "BPE":
            raise ValueError(f"a model of the type {model['type']} is not BPE")
        pairs: Any = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        bpe = models.BPE(vocab=model["vocab"], merges=pairs, **options)
    tokenizer = Tokenizer(bpe)
    clean = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(clean)
    pieces = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def _add(tokenizer: Any, named: Mapping[str, Any], others: Iterable[Any], listed: Mapping[int, Any]) -> None:
    """Adds the tokens that are matched whole in a text, in the order of transformers.

    A token that the vocabulary lacks gets the next id. If two have one content, the flags of the later one count.
    """
    from tokenizers import AddedToken

    adding = [listed[number] for number in sorted(listed)]
    known = {token.content for token in adding}
    for token in [*named.values(), *others]:
        if token is not None and str(token) not in known and token not in adding:
            adding.append(token)
    names = {str(token) for token in named.values() if token}
    adding = [AddedToken(token, special=True) if isinstance(token, str) else token for token in adding]
    for token in adding:
        token.special = token.special or token.content in names
    tokenizer.add_tokens(adding)


def _token(given: Any, **flags: bool) -> Any:
    """A token of the package if a file gives its flags; a string is returned as it is."""
    from tokenizers import AddedToken

    if not isinstance(given, dict):
        return given
    options: dict[str, Any] = {name: value for name, value in given.items() if name != "__type"} | flags
    return AddedToken(**options)


def _id(tokenizer: Any, content: str, unknown: str) -> int | None:
    number = tokenizer.token_to_id(content)
    return tokenizer.token_to_id(unknown) if number is None else number


def _side(config: Mapping[str, Any], published: Mapping[str, Any], of: str) -> str:
    side = config.get(f"{of}_side", (published.get(of) or {}).get("direction", "right").lower())
    if side not in SIDES:
        raise ValueError(f"{of}_side must be one of {SIDES}, got {side!r}")
    return side


def _window(path: Path, config: Mapping[str, Any], encoder: CLIPTextConfig | None) -> int:
    positions = encoder.max_position_embeddings if encoder else 77
    window = config.get("model_max_length", config.get("max_len"))
    if window is None or (isinstance(window, int | float) and window > LONGEST):
        return positions
    if not isinstance(window, int) or not 2 < window <= (positions if encoder else LONGEST):
        raise ValueError(
            f"{path} has model_max_length={window!r}, which is not a window of an encoder of {positions} positions."
        )
    return window


def _encoded(tokenizer: Any, text: str, added: set[str]) -> tuple[Any, str]:
    """The tokens, and the text with each token of several vectors written out: `<cat>` becomes `<cat> <cat>_1 <cat>_2`."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    written = text
    for token in dict.fromkeys(encoding.tokens):
        several = [token]
        while token in added and f"{token}_{len(several)}" in added:
            several.append(f"{token}_{len(several)}")
        if len(several) > 1:
            written = written.replace(token, " ".join(several))
    return (encoding if written == text else tokenizer.encode(written, add_special_tokens=False)), written


def _report(text: str, cut: str, window: int, whole: bool) -> None:
    message = f"{text[:40]!r}... is longer than the window of {window} tokens"
    rest = f"{cut[:EXCERPT]!r}" + (f"... of {len(cut):,} characters" if len(cut) > EXCERPT else "")
    if whole:
        raise ValueError(f"{message}; too long by {rest}.")
    warnings.warn(f"{message}; cut off: {rest}.", stacklevel=3)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, "of the tokeniser") if path.is_file() else {}
