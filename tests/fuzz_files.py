"""Valid files of every kind are changed at random and read. Each read gives the same values, or an error that names the file.

`python -m tests.fuzz_files 4000` tries 4,000 files. It prints the outcomes, and the memory and the time of reading.

A change is *silent* if a file with a checksum over its values gives other values without an error. These files have checksums:
PyTorch's pickles, gzipped IDX files, shards, PNGs, and an index, which names each weight that its files hold. JSON,
safetensors, plain IDX files and JPEGs have none, so other values from them are counted separately.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import io
import json
import random
import resource
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import jax
import numpy as np
from file_kinds import KINDS, ZIPS, zipped
from hostile import HOSTILE
from tqdm import tqdm

RARELY = 40
OUTCOMES = ("read the same", "refused", "other values, no checksum", "other values, checksum repaired", "SILENT", "RAW")
WORDS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 10**9, 2**53, 2**63, 10**30, -(10**18)),
    *(0.0, -0.5, 1e-320, 1e30, 1e308, "", "x", "1", "0.5", "../x", "/etc/passwd", "a/b", "\0", "\ud800", "x" * 300, "a.bin"),
    *([], [1], [None], [[]], {}, {"a": 1}, [1, "x", None], {"content": 3}, "linear", "leading", "trailing", [0.1, 0.2]),
)
TEXTS = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 3000, '{"a":' * 2000, "\ufeff", "nul", "'a'", "1_0", "+1")


def mutated(rng: random.Random, name: str, content: bytes, others: list[bytes]) -> tuple[bytes, bool]:
    """The changed content, and whether its checksums were recomputed."""
    ways: list[Callable[[], tuple[bytes, bool]]] = [lambda: (of_bytes(rng, content, others), False)]
    if name.endswith(".json"):
        ways += [lambda: (of_json(rng, content), False)] * 3
    if name.endswith(".safetensors"):
        ways += [lambda: (of_header(rng, content), False)] * 2
    if name.endswith((*ZIPS, ".npz")):
        ways += [lambda: (of_member(rng, content, others), True), lambda: (of_record(rng, content), False)]
    return rng.choice(ways)()


def of_bytes(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Flips bits, truncates, deletes, inserts, or overwrites numbers."""
    data, at = bytearray(content), rng.randrange(max(len(content), 1))
    size = rng.choice((1, 2, 4, 8, 16, 64, len(content) // 4 + 1))
    other = rng.choice(others)
    begin = rng.randrange(max(len(other), 1))
    match rng.randrange(8):
        case 0 | 1:
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            del data[at:]
        case 3:
            del data[at : at + size]
        case 4:
            data[at:at] = data[at : at + size]
        case 5:
            data[at : at + size] = other[begin : begin + size]
        case 6:
            data[at : at + size] = rng.randbytes(size)
        case 7:
            number = rng.choice((0, 1, 2**27, 2**31 - 1, 2**32 - 1, len(content), len(content) - 1))
            data[at : at + 4] = number.to_bytes(4, rng.choice(("little", "big")))
    return bytes(data)


def of_json(rng: random.Random, content: bytes) -> bytes:
    """Changes a value, deletes, duplicates or renames a name, or changes the text itself."""
    tree = json.loads(content)
    places = []

    def walk(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(tree)
    if not places or rng.random() < 0.1:
        return json.dumps(rng.choice(WORDS)).encode()
    place, key = rng.choice(places)
    way = rng.randrange(6)
    if way == 0:
        del place[key]
    elif way == 1 and isinstance(place, dict):
        place[rng.choice(("x", "", "_y", "a.b", key + " "))] = place.pop(key)
    elif way == 2:
        mark = f"mark {rng.random()}"
        place[key] = mark
        return json.dumps(tree).replace(json.dumps(mark), rng.choice(TEXTS)).encode()
    elif way == 3 and isinstance(place, dict):
        named, other = json.dumps(key), json.dumps(rng.choice(WORDS))
        return json.dumps(tree).replace(f"{named}:", f"{named}: {other}, {named}:").encode()
    elif way == 4:
        place[key] = [place[key]] if rng.random() < 0.5 else {"a": place[key]}
    else:
        place[key] = rng.choice(WORDS)
    return json.dumps(tree).encode()


def of_header(rng: random.Random, content: bytes) -> bytes:
    """Changes the JSON of a safetensors file and sets its length to match."""
    length = int.from_bytes(content[:8], "little")
    header = of_json(rng, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def of_member(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Changes, renames, deletes or duplicates a member of a zip, and writes the zip with new checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice([*files, *(name for name in files if name.endswith(".pkl"))])
    way = rng.randrange(8)
    if way == 0:
        del files[name]
    elif way == 1:
        files[rng.choice((name + "0", "x", "", "archive/data/0", name[:-1]))] = files.pop(name)
    elif way == 2:
        return zipped(files, zipfile.ZIP_DEFLATED)
    else:
        files[name] = of_bytes(rng, files[name], others)
    return zipped(files)


def of_record(rng: random.Random, content: bytes) -> bytes:
    """Flips a bit or overwrites a number in the zip's directory, or flips bits in a member and keeps its checksum."""
    data = bytearray(content)
    start = content.rfind(b"PK\1\2", 0, rng.randint(len(content) // 2, len(content)))
    if rng.random() < 0.5 and start > 0:
        at = start + rng.randrange(46)
        data[at] = rng.randrange(256)
    else:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


class Run(NamedTuple):
    """The outcome of one file."""

    outcome: str
    seconds: float
    peak: int
    """Bytes that Python held beyond what it held before."""
    size: int
    """The size of the files, in bytes."""
    message: str
    grown: int
    """How much more memory the process ever had after it than before, in bytes: what others than Python allocate, too."""


def tried(
    read: Callable[[], Any], place: Path, size: int, expected: Any = None, checked: bool = True, anew: bool = False
) -> Run:
    """Reads the file and reports the outcome."""
    most = held()
    tracemalloc.reset_peak()
    before, began = tracemalloc.get_traced_memory()[0], time.perf_counter()
    try:
        found, message = read(), ""
        outcome = "read the same" if same(found, expected) else "SILENT"
        if outcome == "SILENT" and (anew or not checked):
            outcome = OUTCOMES[3] if anew else OUTCOMES[2]
    except Exception as error:
        named = isinstance(error, ValueError | FileNotFoundError) and str(place) in str(error)
        outcome, message = "refused" if named else "RAW", f"{type(error).__name__}: {error}"
    seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1] - before
    return Run(outcome, seconds, peak, size, message, held() - most)


def held() -> int:
    """The maximum memory of the process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def same(found: Any, expected: Any) -> bool:
    one, other = jax.tree.flatten(found), jax.tree.flatten(expected)
    return one[1] == other[1] and all(_bits(a) == _bits(b) for a, b in zip(one[0], other[0], strict=True))


def _bits(leaf: Any) -> Any:
    return leaf if isinstance(leaf, str) else (np.asarray(leaf).dtype, np.shape(leaf), np.asarray(leaf).tobytes())


def fuzzed(count: int, seed: int = 0, rare: bool = True) -> dict[str, list[Run]]:
    """Reads `count` changed files. The same seed gives the same changes."""
    runs, often = defaultdict(list), [name for name, kind in KINDS.items() if not kind.rare]
    with tempfile.TemporaryDirectory() as root:
        valid, expected = {}, {}
        for name, kind in KINDS.items():
            if kind.rare and not rare:
                continue
            place = Path(root) / "valid" / name
            place.mkdir(parents=True)
            kind.write(place)
            valid[name] = {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
            expected[name] = kind.read(place)
        others = [content for files in valid.values() for content in files.values() if len(content) < 100_000]
        for i in tqdm(range(count), unit="file", disable=None):
            rng = random.Random(f"{seed} {i}")
            name = "a model directory" if rare and i % RARELY == RARELY - 1 else often[i % len(often)]
            kind, place = KINDS[name], Path(root) / f"{i}"
            path = rng.choice([path for path in valid[name] if kind.mutated(path.name)])
            content, anew = mutated(rng, path.name, valid[name][path], others)
            for file, whole in valid[name].items():
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).write_bytes(content if file == path else whole)
            size = len(content) + sum(len(whole) for file, whole in valid[name].items() if file != path)
            read, checked = lambda kind=kind, place=place: kind.read(place), kind.checked(path.name)
            run = tried(read, place, size, expected[name], checked, anew)
            runs[name].append(run._replace(message=f"run {i}, {path}: {run.message}"))
            for file in valid[name]:
                (place / file).unlink()
    return runs


def hostile() -> dict[str, Run]:
    """Files that declare more than they hold, contain themselves, or ask for calls. Each must be refused."""
    runs = {}
    with tempfile.TemporaryDirectory() as root:
        for i, (name, (make, read)) in enumerate(HOSTILE.items()):
            place = Path(root) / f"{i}"
            place.mkdir()
            make(place)
            size = sum(path.stat().st_size for path in place.iterdir())
            runs[name] = tried(lambda read=read, place=place: read(place), place, size)
    return runs


def main(count: int, seed: int = 0) -> None:
    """Try `count` changed files and every hostile one."""
    tracemalloc.start()
    runs = fuzzed(count, seed)
    for name, each in runs.items():
        counts = Counter(run.outcome for run in each)
        summary = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        peak, slowest = max(run.peak for run in each), max(run.seconds for run in each)
        print(f"{name} ({each[0].size / 1e3:.1f} kB): {summary}; at most {peak / 1e3:.0f} kB, {slowest:.2f} s")
    every = [run for each in runs.values() for run in each]
    bad = [run for run in every if run.outcome in ("RAW", "SILENT")]
    attacks = hostile()
    wrong = {name: run for name, run in attacks.items() if run.outcome != "refused"}
    for name, run in attacks.items():
        print(f"hostile, {name} ({run.size / 1e3:.1f} kB): {run.outcome}; {run.peak / 1e3:.0f} kB, {run.seconds:.2f} s")
    for line in [*(f"{run.outcome} {run.message}" for run in bad), *(f"{name}: {run.message}" for name, run in wrong.items())]:
        print(line[:500])
    counts = Counter(run.outcome for run in every)
    print(f"{len(every)} changed files: " + ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES))
    for what, each in (("changed", every), ("hostile", list(attacks.values()))):
        peak, slowest = max(each, key=lambda run: run.peak), max(run.seconds for run in each)
        print(
            f"reading {len(each)} {what} files: at most {peak.peak / 1e6:.2f} MB (of files of {peak.size / 1e6:.2f} MB) and "
            f"{slowest:.2f} s; the process grew by {sum(run.grown for run in each) / 1e6:.1f} MB"
        )
    print(f"{len(attacks) - len(wrong)} of {len(attacks)} hostile files were refused")
    if bad or wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]) or [1000])
