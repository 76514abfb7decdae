"""Files that PyTorch itself wrote."""

import argparse

import numpy as np
import pytest

from guidance_jax import pretrained

torch = pytest.importorskip("torch")


def values(tensor) -> np.ndarray:
    return tensor.detach().float().numpy()


def test_state_dicts_of_every_dtype_and_layout(tmp_path):
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


def test_a_state_dict_with_its_versions_and_nested_ones(tmp_path):
    network = torch.nn.Linear(3, 2)
    torch.save({"ema": network.state_dict(), "model": network.state_dict()}, tmp_path / "w.pt")
    read = pretrained.open_weights(tmp_path / "w.pt")
    assert sorted(read) == ["ema.bias", "ema.weight", "model.bias", "model.weight"]
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert np.array_equal(pretrained.open_weights(tmp_path / "w.pt")["weight"].read(...), values(network.weight))


def test_whole_modules_arguments_and_old_files_are_refused(tmp_path):
    for held in (torch.nn.Linear(3, 2), {"args": argparse.Namespace(a=1), "w": torch.ones(2)}):
        torch.save(held, tmp_path / "w.pt")
        with pytest.raises(ValueError, match="refused: it asks for"):
            pretrained.open_weights(tmp_path / "w.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"not of PyTorch's format since 1\.6"):
        pretrained.open_weights(tmp_path / "w.pt")
