"""Published files of low-rank updates: every tensor that is not zero is used, or the file is refused."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from videogen.encoders.loading import Source
from videogen.encoders.lora_files import Lora, Updated, read_lora
from videogen.errors import UserError

TABLE = {
    "stack.query.kernel": Source(("blocks.{}.attn1.to_q.weight|blocks.{}.self_attn.q.weight",)),
    "stack.query.bias": "blocks.{}.attn1.to_q.bias|blocks.{}.self_attn.q.bias",
    "stack.norm.scale": "blocks.{}.norm2.weight|blocks.{}.norm3.weight",
    "stack.table": "blocks.{}.scale_shift_table|blocks.{}.modulation",
    "embed.kernel": "patch_embedding.weight",
}


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    found = {"patch_embedding.weight": rng.standard_normal((4, 2, 1, 2, 2)).astype(np.float32)}
    for layer in range(2):
        found |= {
            f"blocks.{layer}.attn1.to_q.weight": rng.standard_normal((4, 6)).astype(np.float16),
            f"blocks.{layer}.attn1.to_q.bias": rng.standard_normal(4).astype(np.float32),
            f"blocks.{layer}.norm2.weight": rng.standard_normal(4).astype(np.float32),
            f"blocks.{layer}.scale_shift_table": rng.standard_normal((1, 6, 4)).astype(np.float32),
        }
    return found


def updated(weights, tmp_path, tensors, strength=1.0, without=()):
    path = tmp_path / "lora.safetensors"
    save_file({name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}, path)
    return Updated(weights, TABLE, 2, Lora(path, strength, without))


def factors(rank=2, outputs=4, inputs=6):
    rng = np.random.default_rng(1)
    return rng.standard_normal((rank, inputs)), rng.standard_normal((outputs, rank))


@pytest.mark.parametrize(
    "module, down, up",
    [
        ("diffusion_model.blocks.1.self_attn.q", "lora_A.weight", "lora_B.weight"),
        ("transformer.blocks.1.attn1.to_q", "lora_A.weight", "lora_B.weight"),
        ("transformer.blocks.1.attn1.to_q", "lora_A.default.weight", "lora_B.default.weight"),
        ("blocks.1.self_attn.q", "lora_down.weight", "lora_up.weight"),
        ("lora_unet_blocks_1_self_attn_q", "lora_down.weight", "lora_up.weight"),
    ],
)
def test_updates_are_added_by_any_of_the_names(weights, tmp_path, module, down, up):
    a, b = factors()
    found = updated(weights, tmp_path, {f"{module}.{down}": a, f"{module}.{up}": b}, strength=0.5)
    name = "blocks.1.attn1.to_q.weight"
    expected = weights[name].astype(np.float32) + 0.5 * (b @ a)
    assert found[name].dtype == np.float32
    np.testing.assert_allclose(found[name], expected, atol=1e-6)
    for other in weights:
        if other != name:
            np.testing.assert_array_equal(found[other], weights[other])
    assert list(found) == list(weights) and len(found) == len(weights)


def test_alpha_scales_by_the_rank_and_kernels_keep_their_sides(weights, tmp_path):
    a, b = factors(rank=2, outputs=4, inputs=8)
    tensors = {
        "diffusion_model.patch_embedding.lora_down.weight": a.reshape(2, 2, 1, 2, 2),
        "diffusion_model.patch_embedding.lora_up.weight": b.reshape(4, 2, 1, 1, 1),
        "diffusion_model.patch_embedding.alpha": np.array(1.0),
    }
    found = updated(weights, tmp_path, tensors)
    expected = weights["patch_embedding.weight"] + 0.5 * (b @ a).reshape(4, 2, 1, 2, 2)
    np.testing.assert_allclose(found["patch_embedding.weight"], expected, atol=1e-6)


def test_whole_differences_of_biases_norms_and_tables(weights, tmp_path):
    tensors = {
        "diffusion_model.blocks.0.self_attn.q.diff_b": np.ones(4),
        "diffusion_model.blocks.0.norm3.diff": np.full(4, 0.1),
        "diffusion_model.blocks.1.diff_m": np.full((1, 6, 4), 2.0),
    }
    found = updated(weights, tmp_path, tensors, strength=0.5)
    for name, change in (
        ("blocks.0.attn1.to_q.bias", 0.5),
        ("blocks.0.norm2.weight", 0.05),
        ("blocks.1.scale_shift_table", 1.0),
        ("blocks.1.norm2.weight", 0.0),
    ):
        np.testing.assert_allclose(found[name] - weights[name], change, atol=1e-6)


def test_two_files_are_added_one_after_another(weights, tmp_path):
    first = updated(weights, tmp_path, {"blocks.0.attn1.to_q.diff_b": np.ones(4)})
    other = tmp_path / "other.safetensors"
    save_file({"blocks.0.attn1.to_q.diff_b": np.full(4, 2.0, np.float32)}, other)
    both = Updated(first, TABLE, 2, Lora(other))
    np.testing.assert_allclose(both["blocks.0.attn1.to_q.bias"] - weights["blocks.0.attn1.to_q.bias"], 3, atol=1e-6)
    assert "blocks.0.attn1.to_q.bias" in both and "nothing" not in both


def test_what_is_not_zero_is_never_lost(weights, tmp_path, caplog):
    a, b = factors()
    base = {"blocks.0.attn1.to_q.lora_A.weight": a, "blocks.0.attn1.to_q.lora_B.weight": b}
    picture = {"blocks.0.cross_attn.k_img.lora_A.weight": a, "blocks.0.cross_attn.k_img.lora_B.weight": b}
    with pytest.raises(UserError, match=r"'blocks.0.cross_attn.k_img.lora_A.weight' is not zero and fits no tensor"):
        updated(weights, tmp_path, base | picture)
    with caplog.at_level("INFO", logger="absl"):
        updated(weights, tmp_path, base | picture, without=("*.k_img.*",))
    assert "used 2 of 4 tensors; left out: k_img" in caplog.text
    # A factor of zeros makes the update zero.
    zero = picture | {"blocks.0.cross_attn.k_img.lora_B.weight": np.zeros_like(b)}
    updated(weights, tmp_path, base | zero)
    with pytest.raises(UserError, match="norm9.diff' is not zero"):
        updated(weights, tmp_path, base | {"blocks.0.norm9.diff": np.ones(4)})


def test_what_cannot_be_is_one_line(weights, tmp_path):
    a, b = factors()
    for tensors, match in (
        ({"blocks.0.attn1.to_q.weight": a}, "is no file of low-rank updates: it has the tensor"),
        ({"blocks.0.attn1.to_q.lora_A.weight": a}, "has one of the two factors"),
        ({"blocks.0.attn1.to_q.diff_b": np.ones(5)}, r"does not fit blocks.0.attn1.to_q.bias of shape \[4\]"),
        (
            {"blocks.0.attn1.to_q.lora_A.weight": a[:, :5], "blocks.0.attn1.to_q.lora_B.weight": b},
            r"does not fit blocks.0.attn1.to_q.weight of shape \[4, 6\]",
        ),
    ):
        with pytest.raises(UserError, match=match):
            updated(weights, tmp_path, tensors)


def test_a_file_and_its_strength():
    assert read_lora("a/b.safetensors") == Lora(Path("a/b.safetensors"), 1.0, ())
    assert read_lora("a/b.safetensors", ["x"]).without == ["x"]
    assert read_lora("a=b.safetensors=-0.5", ["x"])[1:] == (-0.5, ["x"])
    assert str(read_lora("a=b.safetensors=-0.5").path) == "a=b.safetensors"
    for text in ("a.safetensors=", "a.safetensors=much", "a.safetensors=nan"):
        with pytest.raises(UserError, match="must be FILE or FILE=STRENGTH"):
            read_lora(text)
