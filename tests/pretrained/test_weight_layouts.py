"""The layouts in which weights are saved: training checkpoints, wrapped modules, several files; errors for all others."""

import json
import zipfile
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding
from pickled import tensor, write
from safetensors.numpy import save_file

from guidance_jax import pretrained

WEIGHTS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.arange(2, dtype=np.float32)}
OTHER = {name: array + 1 for name, array in WEIGHTS.items()}


def given(**parts):
    """Weights by name, nested in containers with the given names."""
    return {f"{prefix}.{name}": array for prefix, arrays in parts.items() for name, array in arrays.items()}


def loaded(arrays, **options):
    return pretrained.load(lambda rngs: nnx.Linear(3, 2, rngs=rngs), pretrained.from_arrays(arrays), **options)


def pickled(path, arrays, around=lambda tensors: tensors):
    tensors = {name: tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())}
    return write(path, around(tensors), {str(i): array for i, array in enumerate(arrays.values())})


LAYOUTS = {
    "alone": WEIGHTS,
    "a wrapped module": given(module=WEIGHTS),
    "a compiled module": given(_orig_mod=WEIGHTS),
    "a compiled module within": {"_orig_mod.weight": WEIGHTS["weight"], "bias": WEIGHTS["bias"]},
    "averages and a count": given(ema=WEIGHTS) | {"step": np.array(400_000)},
    "of Lightning": {"state_dict.model._orig_mod." + name: array for name, array in WEIGHTS.items()},
    "an optimizer beside": given(model=WEIGHTS) | {"optimizer.state.0.exp_avg": np.zeros((2, 3)), "best_acc1": np.array(1.0)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_trainings_are_loaded(layout):
    np.testing.assert_array_equal(loaded(LAYOUTS[layout]).kernel[...], WEIGHTS["weight"].T)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (given(ema=OTHER, model=WEIGHTS), "several times, as ema, model"),
        (given(ema={"bias": WEIGHTS["bias"]}, model=WEIGHTS), "several times, as ema, model"),
        (given(model=WEIGHTS) | {"extra": np.zeros(2)}, "1 left over: extra"),
        (given(model={"weight": WEIGHTS["weight"]}), "1 missing: bias"),
        (given(proj=WEIGHTS), "2 missing: bias, weight; 2 left over: proj.bias, proj.weight"),
        (given(_orig_mod=WEIGHTS) | WEIGHTS, "weight occurs twice"),
        (
            given(**{"model.diffusion_model": WEIGHTS, "first_stage_model": WEIGHTS}),
            "single-file checkpoint.*first_stage_model",
        ),
    ],
)
def test_any_other_layout_raises(arrays, message):
    with pytest.raises(ValueError, match=message):
        loaded(arrays)


@pytest.mark.parametrize("file", ["w.pt", "w.pth", "w.pth.tar", "w.ckpt", "w.bin"])
def test_scalars_and_lists_beside_tensors_are_ignored(tmp_path, file):
    beside = {"step": 3, "rates": [1e-4, None, True, ("a", 2)], "name": "small", 7: b"raw"}
    path = pickled(tmp_path / file, WEIGHTS, lambda tensors: {"ema": list(tensors.values()), **tensors, **beside})
    found = pretrained.open_weights(path)
    assert list(found) == ["ema.0", "ema.1", "weight", "bias"]
    np.testing.assert_array_equal(found["ema.0"].read(...), WEIGHTS["weight"])


def test_two_names_of_one_weight_raise(tmp_path):
    both = lambda tensors: {"a.b": tensors["weight"], "a": {"b": tensors["bias"]}}
    with pytest.raises(ValueError, match=r"w\.pt is refused: the name 'a\.b' occurs twice"):
        pretrained.open_weights(pickled(tmp_path / "w.pt", WEIGHTS, both))


def test_tensors_are_compared_with_their_checksums(tmp_path):
    path = pickled(tmp_path / "w.pt", WEIGHTS)
    content = bytearray(path.read_bytes())
    content[content.rindex(WEIGHTS["bias"].tobytes()) + 5] ^= 1
    path.write_bytes(content)
    found = pretrained.open_weights(path)
    np.testing.assert_array_equal(found["weight"].read(...), WEIGHTS["weight"])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"w\.pt: 'archive/data/1' is damaged: its checksum does not match"):
            found["bias"].read((slice(0, 1),))


@pytest.mark.parametrize("sharding", [None, SingleDeviceSharding(jax.devices()[0])])
def test_parameters_do_not_share_memory_with_the_file(tmp_path, sharding):
    large = {"weight": np.ones((1024, 3), np.float32), "bias": np.ones(1024, np.float32)}
    path = tmp_path / "w.pt"
    for shift in range(64):  # The position of a storage in the file decides whether JAX can use its memory.
        arrays = {"before": np.zeros(shift + 1, np.int8), **large}
        held = [tensor(str(i), a, "CharStorage" if i == 0 else "FloatStorage") for i, a in enumerate(arrays.values())]
        model = dict(zip(large, held[1:], strict=True))
        write(path, {"optimizer": held[:1], "model": model}, {str(i): a for i, a in enumerate(arrays.values())})
        build = lambda rngs: nnx.Linear(3, 1024, rngs=rngs)
        module: Any = pretrained.load(build, pretrained.open_weights(path), sharding=sharding)
        bias = module.bias[...]
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        assert (bias == 1).all()


def test_pickles_in_several_files_are_read(tmp_path):
    files = {"a.bin": ["weight"], "b.bin": ["bias"]}
    for file, names in files.items():
        pickled(tmp_path / file, {name: WEIGHTS[name] for name in names})
    index = tmp_path / "w.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, names in files.items() for name in names}}))
    found = pretrained.open_weights(index)
    assert all(np.array_equal(found[name].read(...), array) for name, array in WEIGHTS.items())
    index.write_text('{"weight_map": {"weight": "b.bin", "bias": "a.bin"}}')
    with pytest.raises(ValueError, match=r"index\.json names the wrong files for weights.*bias, weight"):
        pretrained.open_weights(index)


def test_the_errors_of_float8_and_foreign_files_name_them(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match=r"w\.safetensors .*'a' has the dtype 'F8_E4M3'.*take the file in float16"):
        pretrained.open_weights(tmp_path / "w.safetensors")
    with zipfile.ZipFile(tmp_path / "w.ckpt", "w") as archive:
        archive.writestr("model.h5", b"")
    with pytest.raises(ValueError, match=r"w\.ckpt is truncated or damaged.*it has no data\.pkl"):
        pretrained.open_weights(tmp_path / "w.ckpt")


def test_safetensors_are_read_as_their_own_package_reads_them(tmp_path):
    arrays = {"empty": np.zeros((0, 3), np.float32), "number": np.array(3), "odd": np.arange(3, dtype=np.uint8), **WEIGHTS}
    save_file(arrays, tmp_path / "w.safetensors", {"format": "np"})
    found = pretrained.open_weights(tmp_path / "w.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        read = found[name].read((slice(None),) * array.ndim)
        assert (found[name].shape, read.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(read, array)
