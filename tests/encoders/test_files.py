"""Folders and files of weights, whole or in parts."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from videogen.encoders.files import Weights, read_config
from videogen.errors import UserError


def test_folders_and_files_give_the_same_arrays(tmp_path):
    weights = {"a": torch.randn(2, 3), "b": torch.randn(4).to(torch.bfloat16)}
    (tmp_path / "torch").mkdir()
    (tmp_path / "safe").mkdir()
    torch.save(weights, tmp_path / "torch/pytorch_model.bin")
    save_file(weights, tmp_path / "safe/model.safetensors")
    for path in ("torch", "torch/pytorch_model.bin", "safe", "safe/model.safetensors"):
        loaded = Weights(tmp_path / path)
        assert set(loaded) == {"a", "b"} and len(loaded.hash()) == 64
        np.testing.assert_array_equal(loaded["a"], weights["a"])
        np.testing.assert_array_equal(loaded["b"].astype(np.float32), weights["b"].float())


def test_what_headers_say_beside_the_tensors(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.bin")
    assert Weights(tmp_path / "a.bin").metadata == {}
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    assert Weights(tmp_path / "1.safetensors").metadata == {}
    save_file({"b": torch.ones(1)}, tmp_path / "2.safetensors", metadata={"config": "{}", "format": "pt"})
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = Weights(tmp_path)
    assert loaded.metadata == {"config": "{}", "format": "pt"}
    (tmp_path / "2.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot read"):
        _ = loaded.metadata


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_parts_with_an_index(tmp_path, name):
    parts = {"1": {"a": torch.ones(2)}, "2": {"b": torch.zeros(3)}}
    suffix = name.rpartition(".")[2]
    for number, weights in parts.items():
        (save_file if suffix == "safetensors" else torch.save)(weights, tmp_path / f"{number}.{suffix}")
    index = {"weight_map": {key: f"{number}.{suffix}" for number, weights in parts.items() for key in weights}}
    (tmp_path / f"{name}.index.json").write_text(json.dumps(index))
    loaded = Weights(tmp_path)
    np.testing.assert_array_equal(loaded["a"], [1, 1])
    np.testing.assert_array_equal(loaded["b"], [0, 0, 0])
    index["weight_map"]["a"] = "../x.bin"
    (tmp_path / f"{name}.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="'../x.bin', which is not in"):
        Weights(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        UserError,
        match=r"no folder with model\.safetensors or diffusion_pytorch_model\.safetensors or pytorch_model\.bin",
    ):
        Weights(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="no dictionary"):
        read_config(tmp_path)
