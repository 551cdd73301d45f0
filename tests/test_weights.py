"""Weights as safetensors: what was saved comes back, and a file that does not fit is named in one line."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import TensorSpec, serialize

from videogen.errors import UserError
from videogen.weights import load_weights, read_tensors, save_weights

TREE = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "count": np.int32(3)}


def write(path, **tensors: np.ndarray) -> None:
    specs = {
        name: TensorSpec(dtype=str(x.dtype), shape=x.shape, data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, x in tensors.items()
    }
    path.write_bytes(serialize(specs))


def test_what_was_saved_comes_back_and_may_be_saved_again(tmp_path):
    for _ in range(2):
        save_weights(tmp_path / "w", TREE)
    loaded = load_weights(tmp_path / "w", TREE)
    np.testing.assert_array_equal(loaded["a"]["kernel"], TREE["a"]["kernel"])
    assert loaded["count"] == 3 and loaded["count"].dtype == np.int32
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64, jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_other_floating_types_are_read(tmp_path, dtype):
    values = np.array([[0.5, -2.0]], dtype)
    write(tmp_path / "w", kernel=values)
    loaded = load_weights(tmp_path / "w", {"kernel": np.zeros((1, 2), np.float32)})["kernel"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, [[0.5, -2.0]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((1, 2), np.int32), "'kernel' has int32 values where float32 is needed"),
        (np.zeros((1, 2), bool), "'kernel' has bool values where float32 is needed"),
        (np.zeros((1, 2), np.complex64), "'kernel' has values of the unknown type C64"),
        (np.zeros((2, 2), np.float32), "1 tensors differ, the first is 'kernel'"),
    ],
)
def test_no_value_becomes_another(tmp_path, values, message):
    write(tmp_path / "w", kernel=values)
    with pytest.raises(UserError, match=message):
        load_weights(tmp_path / "w", {"kernel": np.zeros((1, 2), np.float32)})


def test_what_is_no_file_of_tensors_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello")
    save_weights(tmp_path / "cut", TREE)
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-3])
    expected = {"pipe": "no plain file", "folder": "no plain file", "none": "does not exist"}
    for name in ("pipe", "folder", "none", "text", "cut"):
        with pytest.raises(UserError, match=expected.get(name, "no valid safetensors file")) as refusal:
            read_tensors(tmp_path / name)
        assert "\n" not in str(refusal.value)
