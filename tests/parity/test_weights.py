"""Files that PyTorch itself wrote."""

import argparse
from typing import Any

import numpy as np
import pytest
from flax import nnx

from guidance_jax import pretrained

torch = pytest.importorskip("torch")


def values(tensor) -> np.ndarray:
    return tensor.detach().float().numpy()


def test_state_dicts_of_every_dtype_and_layout_are_read(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    whole = torch.arange(24.0).reshape(4, 6)
    held = {
        **network.state_dict(),
        "view": whole[1:, ::2],
        "transposed": whole.T,
        "half": whole.half(),
        "bfloat16": whole.bfloat16(),
        "parameter": torch.nn.Parameter(whole.clone()),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "bits": torch.tensor([True, False]),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    torch.save(held, tmp_path / "w.pt")
    read = {name: tensor.read(...) for name, tensor in pretrained.open_weights(tmp_path / "w.pt").items()}
    assert read.keys() == held.keys()
    for name, array in read.items():
        assert np.array_equal(array.astype(np.float32), values(held[name])), name


def test_a_versioned_state_dict_and_nested_ones_are_read(tmp_path):
    network = torch.nn.Linear(3, 2)
    torch.save({"ema": network.state_dict(), "model": network.state_dict()}, tmp_path / "w.pt")
    read = pretrained.open_weights(tmp_path / "w.pt")
    assert sorted(read) == ["ema.bias", "ema.weight", "model.bias", "model.weight"]
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert np.array_equal(pretrained.open_weights(tmp_path / "w.pt")["weight"].read(...), values(network.weight))


def test_whole_modules_arguments_and_old_files_raise(tmp_path):
    for held in (torch.nn.Linear(3, 2), {"args": argparse.Namespace(a=1), "w": torch.ones(2)}):
        torch.save(held, tmp_path / "w.pt")
        with pytest.raises(ValueError, match="refused: it asks for"):
            pretrained.open_weights(tmp_path / "w.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"w\.pt has PyTorch's format before 1\.6"):
        pretrained.open_weights(tmp_path / "w.pt")
    torch.save({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is refused.*float8"):
        pretrained.open_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("file", ["w.pt", "w.pth.tar", "w.ckpt", "w.bin"])
def test_training_checkpoints_are_loaded_without_the_rest_of_their_content(tmp_path, file):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    plan = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20])
    beside = {
        "optimizer": optimizer.state_dict(),
        "lr_schedulers": [plan.state_dict()],
        "epoch": 3,
        "best_acc1": torch.tensor(71.0),
        "loss": np.float64(0.5),
        "rng_state": torch.get_rng_state(),
        "history": [(1, 0.5), (2, None)],
        "place": torch.device("cpu"),
        "dtype": torch.float32,
        "size": torch.Size([2, 3]),
        "name": "small",
    }
    weights = network.state_dict()
    wrapped = {"module." + name: value for name, value in weights.items()}
    compiled = {"_orig_mod." + name: value for name, value in weights.items()}
    layouts = [{"state_dict": wrapped, **beside}, {"ema": compiled, "step": 400_000}, wrapped, compiled, {"model": weights}]
    for layout in layouts:
        torch.save(layout, tmp_path / file)
        module: Any = pretrained.load(lambda rngs: nnx.Linear(3, 2, rngs=rngs), pretrained.open_weights(tmp_path / file))
        np.testing.assert_array_equal(module.kernel[...].T, values(network.weight))
        np.testing.assert_array_equal(module.bias[...], values(network.bias))
