"""Weights of published files: each is used once, damaged files raise, and nothing in a file is executed."""

import collections
import json
import os
import pickle
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from pickled import Global, tensor, write
from safetensors.numpy import save_file

from guidance_jax import networks, pretrained
from guidance_jax.networks.layers import GroupNorm
from guidance_jax.pretrained.layers import Conv


class Small(nnx.Module):
    """One weight of each kind."""

    def __init__(self, *, rngs):
        self.stem = nnx.List([Conv(3, 8, rngs=rngs), jax.nn.silu, Conv(8, 4, 1, rngs=rngs)])
        self.norm = GroupNorm(4, 2, 1e-5, rngs=rngs)
        self.table = nnx.Embed(5, 4, rngs=rngs)
        self.last = nnx.Linear(4, 6, rngs=rngs)

    def __call__(self, x, y):
        for layer in self.stem:
            x = layer(x)
        return self.last(self.norm(x).mean((1, 2)) + self.table(y))


SHAPES = {
    "stem.0.weight": (8, 3, 3, 3),
    "stem.0.bias": (8,),
    "stem.2.weight": (4, 8, 1, 1),
    "stem.2.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "table.weight": (5, 4),
    "last.weight": (6, 4),
    "last.bias": (6,),
}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def load(tensors, **options) -> Any:
    return pretrained.load(Small, tensors, **options)


def test_every_kind_of_weight_is_loaded_in_its_place(arrays):
    module = load(pretrained.from_arrays(arrays))
    assert np.array_equal(module.stem[0].kernel[...], arrays["stem.0.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(module.last.kernel[...], arrays["last.weight"].T)
    assert np.array_equal(module.norm.gain[...], arrays["norm.weight"])
    assert np.array_equal(module.table.embedding[...], arrays["table.weight"])
    assert pretrained.parameter_count(module) == sum(array.size for array in arrays.values())
    apply, params = networks.from_nnx(module)
    assert jax.jit(apply)(params, jnp.ones((2, 5, 7, 3)), jnp.array([0, 4])).shape == (2, 6)


def test_published_is_the_inverse_of_load(arrays):
    expected = {name: leaf.shape for name, leaf in pretrained.published(pretrained.abstract(Small)).items()}
    assert expected == {name: array.shape for name, array in arrays.items()}
    back = pretrained.published(load(pretrained.from_arrays(arrays)))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_a_convolution_of_one_pixel_may_be_a_dense_layer(arrays):
    arrays["last.weight"] = arrays["last.weight"][..., None]
    assert np.array_equal(load(pretrained.from_arrays(arrays)).last.kernel[...], arrays["last.weight"][..., 0].T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("norm.bias"), "1 missing: norm.bias"),
        (lambda arrays: arrays.update(extra=np.zeros(3, np.float32)), "1 left over: extra"),
        (lambda arrays: arrays.update({"last.bias": np.zeros(7, np.float32)}), r"last.bias \(7,\), expected \(6,\)"),
        (
            lambda arrays: arrays.update({"last.weight": np.zeros((4, 6), np.float32)}),
            r"last.weight \(4, 6\), expected \(6, 4\)",
        ),
        (lambda arrays: arrays.update({"old.bias": np.zeros(6, np.float32)}), "last.bias occurs twice"),
    ],
)
def test_the_error_of_weights_that_do_not_fit_names_them(arrays, change, message):
    change(arrays)
    with pytest.raises(ValueError, match=message):
        load(pretrained.from_arrays(arrays), rename=lambda name: name.replace("old.", "last."))


def test_tables_beside_the_weights_are_ignored_if_the_network_says_so(arrays):
    arrays["positions"] = np.arange(4)
    load(pretrained.from_arrays(arrays), ignored=["positions"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_go_to_the_devices_in_parts(arrays, dtype):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    read = []

    def watched(name, array):
        return pretrained.Tensor(array.shape, lambda index: read.append((name, array[index].size)) or array[index])

    module = load(
        {name: watched(name, array) for name, array in arrays.items()}, dtype=dtype, sharding=pretrained.fully_sharded(mesh)
    )
    kernel = module.stem[0].kernel[...]
    assert kernel.dtype == dtype
    assert np.array_equal(kernel, arrays["stem.0.weight"].transpose(2, 3, 1, 0).astype(dtype))
    assert [shard.data.shape for shard in kernel.addressable_shards] == [(3, 3, 3, 2)] * 4
    assert [size for name, size in read if name == "stem.0.weight"] == [54] * 4


def test_safetensors_of_every_dtype_are_read(tmp_path, arrays):
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        save_file({name: array.astype(dtype) for name, array in arrays.items()}, tmp_path / "w.safetensors")
        module = load(pretrained.open_weights(tmp_path / "w.safetensors"))
        assert np.array_equal(module.last.kernel[...], arrays["last.weight"].T.astype(dtype).astype(np.float32))


def test_safetensors_in_several_files_are_read(tmp_path, arrays):
    names = list(arrays)
    parts = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    for file, held in parts.items():
        save_file({name: arrays[name] for name in held}, tmp_path / file)
    index = tmp_path / "w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, held in parts.items() for name in held}}))
    assert np.array_equal(load(pretrained.open_weights(index)).last.bias[...], arrays["last.bias"])
    index.write_text('{"weight_map": {"a": "../w.safetensors"}}')
    with pytest.raises(ValueError, match="beside it"):
        pretrained.open_weights(index)
    for text in ("{", "[]", "{}"):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json.* is damaged"):
            pretrained.open_weights(index)
    save_file({name: arrays[name] for name in names[3:]}, tmp_path / "b.safetensors")
    index.write_text(json.dumps({"weight_map": {name: file for file, held in parts.items() for name in held}}))
    with pytest.raises(ValueError, match=f"each once: {names[3]}"):
        pretrained.open_weights(index)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_truncated_safetensors_raise(tmp_path, arrays, kept):
    path = tmp_path / "w.safetensors"
    save_file(arrays, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="damaged or truncated"):
        pretrained.open_weights(path)


def test_a_wrong_path_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        pretrained.open_weights(tmp_path)
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="not a file of weights"):
        pretrained.open_weights(tmp_path / "w.h5")


def test_pickled_tensors_are_mapped_from_the_file(tmp_path, arrays):
    pickled = {name: tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())}
    path = write(tmp_path / "w.pt", {"ema": pickled}, {str(i): array for i, array in enumerate(arrays.values())})
    found = pretrained.open_weights(path)
    assert all(np.array_equal(found["ema." + name].read(...), array) for name, array in arrays.items())
    module = load(found, rename=lambda name: name.removeprefix("ema."))
    assert np.array_equal(module.last.kernel[...], arrays["last.weight"].T)


def test_views_of_one_storage_in_half_precision_are_read(tmp_path):
    base = np.arange(12).astype(ml_dtypes.bfloat16)
    pickled = {"t": tensor("0", base, "BFloat16Storage", (3, 2), (1, 6), 1), "whole": tensor("0", base, "BFloat16Storage")}
    found = pretrained.open_weights(write(tmp_path / "w.pt", pickled, {"0": base}))
    assert np.array_equal(found["t"].read(...).astype(float), [[1, 7], [2, 8], [3, 9]])


@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("argparse", "Namespace"),
        ("numpy", "load"),
    ],
    ids=".".join,
)
def test_a_pickle_that_asks_for_any_other_call_raises(tmp_path, name):
    path = write(tmp_path / "w.pt", {"w": ("call", Global(*name), (f"touch {tmp_path}/ran",))}, {})
    with pytest.raises(ValueError, match=rf"refused: it asks for {name[0]}\.{name[1]}.*no code is run"):
        pretrained.open_weights(path)
    assert not (tmp_path / "ran").exists()


def test_a_malicious_pickle_raises(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(collections.OrderedDict(w=Evil())))
    with pytest.raises(ValueError, match="refused"):
        pretrained.open_weights(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "options",
    [{"shape": (5,)}, {"offset": 1}, {"strides": (2,)}, {"offset": -1}, {"strides": (-1,)}, {"size": 5}, {"size": -1}],
    ids=str,
)
def test_a_tensor_outside_its_storage_raises(tmp_path, options):
    base = np.arange(4, dtype=np.float32)
    path = write(tmp_path / "w.pt", {"w": tensor("0", base, **options)}, {"0": base})
    with pytest.raises(ValueError, match=r"lies outside its storage|too short"):
        pretrained.open_weights(path)


def test_truncated_compressed_and_foreign_pickles_raise(tmp_path):
    base = np.arange(4, dtype=np.float32)
    path = write(tmp_path / "w.pt", {"w": tensor("0", base)}, {"0": base})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="truncated"):
        pretrained.open_weights(path)
    with pytest.raises(ValueError, match="compressed"):
        pretrained.open_weights(write(path, {"w": tensor("0", base)}, {"0": base}, zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="holds no tensors"):
        pretrained.open_weights(write(path, {"epoch": 3}, {}))
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValueError, match="not of PyTorch's format"):
        pretrained.open_weights(path)
