"""I3D against its graph written out in NumPy, in the names of both of its published files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import save_file

from tests.encoders.oracles import assert_near
from tests.encoders.test_convolutions import convolve_same, pool_same
from videogen.encoders.i3d import BLOCKS, BRANCHES, I3d, tf1_bilinear
from videogen.encoders.preprocessing import in_range
from videogen.errors import UserError


class Reference:
    """The published graph on maps ``[batch, time, height, width, channel]``, in TensorFlow's layout."""

    def __init__(self):
        self.weights, self.generator = {}, np.random.default_rng(0)

    def draw(self, name, shape, scale=1.0, base=0.0):
        value = base + scale * self.generator.standard_normal(shape, np.float32)
        return self.weights.setdefault(name, np.asarray(value, np.float32))

    def unit(self, x, name, outputs, side, stride=1):
        inputs = x.shape[-1]
        kernel = self.draw(f"{name}/conv_3d/w", (side, side, side, inputs, outputs), (2 / (inputs * side**3)) ** 0.5)
        y = convolve_same(x, kernel, (stride,) * 3)
        norm, shape = f"{name}/batch_norm", (1, 1, 1, 1, outputs)
        mean, shift = self.draw(f"{norm}/moving_mean", shape, 0.2), self.draw(f"{norm}/beta", shape, 0.5)
        variance = np.abs(self.draw(f"{norm}/moving_variance", shape, 0.1, 1.0))
        self.weights[f"{norm}/moving_variance"] = variance
        return np.maximum((y - mean) / np.sqrt(variance + 1e-3) + shift, 0)

    def block(self, x, name, widths):
        a, b, c, d, e, f = widths
        slip = "a" if name == "Mixed_5b" else "b"
        one = self.unit(x, f"{name}/Branch_0/Conv3d_0a_1x1", a, 1)
        two = self.unit(x, f"{name}/Branch_1/Conv3d_0a_1x1", b, 1)
        two = self.unit(two, f"{name}/Branch_1/Conv3d_0b_3x3", c, 3)
        three = self.unit(x, f"{name}/Branch_2/Conv3d_0a_1x1", d, 1)
        three = self.unit(three, f"{name}/Branch_2/Conv3d_0{slip}_3x3", e, 3)
        four = self.unit(pool_same(x, (3, 3, 3), (1, 1, 1)), f"{name}/Branch_3/Conv3d_0b_1x1", f, 1)
        return np.concatenate([one, two, three, four], -1)

    def maps(self, x):
        x = self.unit(x, "Conv3d_1a_7x7", 64, 7, 2)
        x = self.unit(pool_same(x, (1, 3, 3), (1, 2, 2)), "Conv3d_2b_1x1", 64, 1)
        x = pool_same(self.unit(x, "Conv3d_2c_3x3", 192, 3), (1, 3, 3), (1, 2, 2))
        for name, rest in BLOCKS.items():
            x = self.block(x, name, rest) if name.startswith("Mixed") else pool_same(x, *rest)
        return x

    def head(self, x):
        """Means of 2×7×7 windows, a 1×1×1 convolution, then the mean over time."""
        kernel = self.draw("Logits/Conv3d_0c_1x1/conv_3d/w", (1, 1, 1, x.shape[-1], 400), 0.05)
        bias = self.draw("Logits/Conv3d_0c_1x1/conv_3d/b", (400,))
        places = [x[:, t : t + 2, :7, :7].mean((1, 2, 3)) for t in range(x.shape[1] - 1)]
        return np.mean([place @ kernel[0, 0, 0] + bias for place in places], axis=0)


def in_torch(weights):
    """The names and the layout of the port to PyTorch."""
    endings = {
        "/conv_3d/w": ".conv3d.weight",
        "/conv_3d/b": ".conv3d.bias",
        **{f"/batch_norm/{a}": f".bn.{b}" for a, b in (("moving_mean", "running_mean"), ("beta", "bias"))},
        "/batch_norm/moving_variance": ".bn.running_var",
    }
    branches = {theirs: ours for ours, theirs, _ in BRANCHES} | {"Branch_2/Conv3d_0a_3x3": "b2b"}
    result = {}
    for name, value in weights.items():
        ending = next(e for e in endings if name.endswith(e))
        module = name.removesuffix(ending).replace("Logits/Conv3d_0c_1x1", "logits")
        block, _, branch = module.partition("/")
        module = f"{block}.{branches[branch]}" if branch else block
        value = np.transpose(value, (4, 3, 0, 1, 2)) if ending == "/conv_3d/w" else value.reshape(-1)
        result[module + endings[ending]] = torch.tensor(np.ascontiguousarray(value))
        if ending == "/batch_norm/beta":
            result[f"{module}.bn.weight"] = torch.ones(value.size)
            result[f"{module}.bn.num_batches_tracked"] = torch.tensor(0)
    return result


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Both files, a clip with odd sides, and the reference's last map of it."""
    reference, folder = Reference(), tmp_path_factory.mktemp("i3d")
    x = np.random.default_rng(0).uniform(-1, 1, (1, 9, 45, 36, 3)).astype(np.float32)
    maps = reference.maps(x)
    last = np.random.default_rng(1).uniform(0, 1, (2, 3, 7, 7, 1024)).astype(np.float32)
    logits = reference.head(last)
    save_file({f"RGB/inception_i3d/{k}:0": v for k, v in reference.weights.items()}, folder / "tf.safetensors")
    torch.save({f"model.{k}": v for k, v in in_torch(reference.weights).items()}, folder / "i3d.pt")
    return folder, x, maps, last, logits


@pytest.mark.parametrize("file", ["tf.safetensors", "i3d.pt"])
def test_equal_to_the_written_out_graph(published, file):
    folder, x, maps, last, logits = published
    ours = I3d.load(folder / file)
    assert_near(jax.jit(ours.maps)(x), maps)
    assert_near(jax.jit(ours.head)(last), logits)


def test_sides_in_time_and_refusals():
    """9 to 16 frames give one place in time after the last pooling, 17 to 24 two; 8 are refused."""

    def shape(name, *sides):
        clip = jax.ShapeDtypeStruct((1, *sides, 3), jnp.float32)
        return jax.eval_shape(lambda clip: getattr(I3d(rngs=nnx.Rngs(0)), name)(clip), clip).shape

    for frames, places in ((9, 2), (16, 2), (17, 3), (24, 3)):
        assert shape("maps", frames, 224, 224) == (1, places, 7, 7, 1024)
    assert shape("__call__", 17, 64, 48) == (1, 400)
    with pytest.raises(UserError, match="at least 9"):
        shape("__call__", 8, 64, 64)
    with pytest.raises(UserError, match=r"\[-1, 1\]"):
        nnx.eval_shape(lambda: I3d(rngs=nnx.Rngs(0)))(jnp.full((1, 9, 64, 64, 3), 2.0))


@pytest.mark.parametrize("sides", [(17, 40), (256, 256)])
def test_whole_numbers_and_floats_are_the_same_pixels_of_224(sides):
    """Case 5 of what users stumble over: clips that were scaled twice, or not at all, gave 0.125 for 0.015."""
    network = nnx.eval_shape(lambda: I3d(rngs=nnx.Rngs(0)))
    clips = np.random.default_rng(0).integers(0, 256, (1, 9, *sides, 3))
    whole = network.resized(in_range(jnp.asarray(clips, jnp.uint8)))
    assert whole.shape == (1, 9, 224, 224, 3) and abs(whole).max() <= 1
    np.testing.assert_allclose(network.resized(in_range(jnp.asarray(clips / 127.5 - 1, jnp.float32))), whole, atol=1e-5)


def test_resizing_is_that_of_tensorflow_1():
    np.testing.assert_array_equal(tf1_bilinear(2, 4) @ [0, 1], [0, 0.5, 1, 1])
    np.testing.assert_array_equal(tf1_bilinear(4, 2) @ [0, 1, 2, 3], [0, 2])
    np.testing.assert_array_equal(tf1_bilinear(5, 5), np.eye(5))


@pytest.mark.slow
def test_a_whole_clip(published):
    folder, *_ = published
    reference = Reference()
    x = np.random.default_rng(0).uniform(-1, 1, (1, 9, 224, 224, 3)).astype(np.float32)
    reference.weights = {}
    expected = reference.head(reference.maps(x))
    save_file(reference.weights, folder / "whole.safetensors")
    assert_near(jax.jit(I3d.load(folder / "whole.safetensors"))(x), expected)
