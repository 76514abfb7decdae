"""Files made to harm a reader: they declare more than they hold, contain themselves, grow when unpacked, or ask for calls."""

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from file_kinds import KINDS, weights, zipped

from experiments.tools import idx, shards

MADE = tuple[Callable[[Path], Any], Callable[[Path], Any]]
ZEROS = 1 << 26


def pickles(instructions: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> MADE:
    files = {"archive/data.pkl": instructions, **{f"archive/data/{name[1:]}": content for name, content in members.items()}}
    return lambda place: (place / "w.pt").write_bytes(zipped(files, compression)), weights("w.pt")


def tensors(size: int, shape: bytes, strides: bytes, dtype: bytes = b"FloatStorage") -> bytes:
    """`{"w": a tensor}` in a storage "0"."""
    storage = b"(X\x07\0\0\0storagectorch\n" + dtype + b"\nX\x01\0\0\x000X\x03\0\0\0cpu" + number(size) + b"tQ"
    return b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + strides + b"\x89}tRs."


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def json_file(name: str, kind: str, text: str) -> MADE:
    return lambda place: (place / name).write_text(text), KINDS[kind].read


def settings(kind: str, **changes: Any) -> MADE:
    def make(place: Path) -> None:
        KINDS[kind].write(place)
        path = place / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make, KINDS[kind].read


def safetensors(header: Any, length: int | None = None, rest: bytes = b"") -> MADE:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = (len(text) if length is None else length).to_bytes(8, "little") + text + rest
    return lambda place: (place / "w.safetensors").write_bytes(content), weights("w.safetensors")


def of(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def idx_bomb(place: Path) -> None:
    pack = zlib.compressobj(9, wbits=31)
    images = b"\0\0\x08\x03" + np.array([ZEROS // 4096, 64, 64], ">u4").tobytes()
    (place / "images").write_bytes(pack.compress(images) + pack.compress(bytes(ZEROS)) + pack.flush())
    (place / "labels").write_bytes(gzip.compress(b"\0\0\x08\x01" + np.array([1], ">u4").tobytes() + b"\0"))


def shard(array: bytes, compression: int = zipfile.ZIP_STORED) -> MADE:
    def make(place: Path) -> None:
        KINDS["shards"].write(place)
        (place / "shard-00000.npz").write_bytes(zipped({"images.npy": array, "labels.npy": array}, compression))

    return make, shards.samples


def npy(shape: tuple[int, ...], body: bytes, dtype: str = "|u1") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + body


def wide_picture(place: Path) -> None:
    chunk = lambda kind, body: len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    header = np.array([40_000, 40_000], ">u4").tobytes() + b"\x08\x02\0\0\0"
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    (place / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b""))


def itself(place: Path) -> None:
    (place / "w.bin.index.json").write_text(json.dumps({"weight_map": {"a": "w.bin.index.json"}}))


DOUBLED = b"}(U\x01ah%cU\x01bh%cuq%c"
SCHEDULE, UNET = "a PNDMScheduler's settings", "a U-Net's settings"
FOUR = b"(K\x04t"
HOSTILE: dict[str, MADE] = {
    "22 dictionaries, each held twice": pickles(b"}q\0" + b"".join(DOUBLED % (i, i, i + 1) for i in range(22)) + b"."),
    "lists, each held twice": pickles(
        b"]q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(100)) + b"0}U\x01ahds."
    ),
    "a dictionary of itself": pickles(b"}q\0U\x01ah\0s."),
    "a list of itself": pickles(b"}U\x01a]q\0h\0as."),
    "a memo of 2^27 objects": pickles(b"}r\xff\xff\xff\x07."),
    "a string of 2^31 bytes": pickles(b"X\xff\xff\xff\x7f."),
    "a string of 2^62 bytes": pickles(b"\x8d\0\0\0\0\0\0\0\x40."),
    "a whole number of 2^31 bytes": pickles(b"\x8b\xff\xff\xff\x7f."),
    "a whole number of 200,000 digits": pickles(b"I" + b"9" * 200_000 + b"\n."),
    "200,000 dictionaries": pickles(b"}" * 200_000 + b"."),
    "200,000 objects to remember": pickles(b"N" + b"\x94" * 200_000 + b"."),
    "tuples within each other": pickles(b")" + b"\x85" * 4000 + b"."),
    "a pickle that unpacks to 67 MB": pickles(b"N" * ZEROS + b".", zipfile.ZIP_DEFLATED),
    "a storage of 2^27 numbers": pickles(tensors(2**27, b"(" + number(2**27) + b"t", b"(K\x01t"), _0=bytes(16)),
    "a storage of 2^62 numbers": pickles(tensors(2**62, b"(" + number(2**62) + b"t", b"(K\x01t"), _0=bytes(16)),
    "four numbers repeated 2^27 times": pickles(tensors(4, b"(" + number(2**27) + b"t", b"(K\0t"), _0=bytes(16)),
    "a tensor of 99 axes": pickles(tensors(4, b"(" + b"K\x01" * 99 + b"t", b"(" + b"K\x01" * 99 + b"t"), _0=bytes(16)),
    "a negative stride": pickles(tensors(4, FOUR, b"(J\xff\xff\xff\xfft"), _0=bytes(16)),
    "a call of os.system": pickles(b"cos\nsystem\n(U\x04trueTR.".replace(b"TR", b"tR")),
    "a call of builtins.eval": pickles(b"\x8c\x08builtins\x8c\x04eval\x93(U\x011tR."),
    "a new object": pickles(b"ccollections\nOrderedDict\n)\x81."),
    "two members of one name": (
        lambda place: (place / "w.pt").write_bytes(zipped({"a/data.pkl": b"}.", "b/data.pkl": b"}."})),
        weights("w.pt"),
    ),
    "an index of itself": (itself, weights("w.bin.index.json")),
    **{
        f"an index that names {name!r}": json_file(
            "w.bin.index.json", "pickles and their index", json.dumps({"weight_map": {"a": name}})
        )
        for name in ("../w.bin", "/etc/passwd", "..", "", "a\0.bin", "\ud800.bin", "x" * 300 + ".bin", "none.bin")
    },
    "JSON 100,000 deep": json_file("config.json", UNET, "[" * 100_000),
    "JSON 900 deep": json_file("config.json", UNET, '{"a":' * 900 + "1" + "}" * 900),
    "JSON of 20 MB": json_file("config.json", UNET, '{"a":"' + "x" * 20_000_000 + '"}'),
    "a whole number of 4,000 digits": json_file("config.json", UNET, '{"layers_per_block":' + "9" * 4000 + "}"),
    "10^9 training steps": settings(SCHEDULE, num_train_timesteps=10**9),
    "10^9 layers": settings("a text encoder's settings", num_hidden_layers=10**9),
    "10^9 blocks": settings(UNET, layers_per_block=10**9),
    "a header of 2^62 bytes": safetensors(b"{}", 2**62),
    "a header of 2^27 bytes": safetensors(b"{}", 2**27),
    "2^62 numbers": safetensors({"a": of([2**62], 0, 2**64)}, rest=bytes(16)),
    "two tensors in one place": safetensors({"a": of([4], 0, 16), "b": of([4], 0, 16)}, rest=bytes(16)),
    "a hole between tensors": safetensors({"a": of([1], 0, 4), "b": of([1], 12, 16)}, rest=bytes(16)),
    "bytes of no tensor": safetensors({"a": of([1], 0, 4)}, rest=bytes(16)),
    "one name twice": safetensors(b'{"a":' + json.dumps(of([4], 0, 16)).encode() + b"," + b'"a":{}}', rest=bytes(16)),
    "float8": safetensors({"a": of([16], 0, 16, "F8_E4M3")}, rest=bytes(16)),
    "IDX files that unpack to 67 MB": (idx_bomb, lambda place: idx.pair(place / "images", place / "labels", (64, 64, 1), 10)),
    "a shard of 2^40 images": shard(npy((2**40, 3, 2, 1), b"")),
    "a shard of 2^28 images": shard(npy((2**28, 1, 1, 1), bytes(99))),
    "a shard that unpacks to 67 MB": shard(npy((ZEROS, 1, 1, 1), bytes(ZEROS)), zipfile.ZIP_DEFLATED),
    "a shard of objects": shard(npy((1,), b"cos\n\x93N0.", "|O")),
    "a picture of 1.6 billion pixels": (wide_picture, KINDS["a PNG"].read),
}
