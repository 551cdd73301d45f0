"""Every size of the HiTVideo config, and that its layers add up after a short training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import videogen
from videogen import data, tasks
from videogen.configs import hitvideo, magvit2
from videogen.shapes import VideoShape
from videogen.training.loop import train
from videogen.training.state import parameter_count


@functools.cache
def modules_of(argument: str) -> dict[str, nnx.Module]:
    config = hitvideo.get_config(argument)
    return nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))


@pytest.mark.parametrize(("quantizer", "bits"), [("fsq", np.log2(64_000)), ("lfq", 16), ("vq", 16)])
def test_paper_layers(quantizer, bits):
    """Sheet, sections 2B and 3: 48 + 320 + 1,280 tokens of 16 bits, of which the top two layers have 0.021 bpp."""
    model, shape = modules_of(f"size=paper,quantizer={quantizer}")["tokenizer"], VideoShape(17, 128, 128)
    layout = model.layout(shape)
    assert {name: segment.shape for name, segment in layout.segments} == {
        "layer_3": (3, 4, 4), "layer_2": (5, 8, 8), "layer_1": (5, 16, 16)
    }  # fmt: skip
    assert [segment.tokens for _, segment in layout.segments] == [48, 320, 1280]
    assert layout.bits == pytest.approx(1648 * bits)
    assert layout.bits / shape.pixels == pytest.approx(0.095, abs=0.001)
    assert (48 + 320) * bits / shape.pixels == pytest.approx(0.021, abs=0.001)


def test_paper_network():
    """The networks of MAGVIT-v2 (370M), and per stage a down-sampling, four blocks and a read-out of 512 channels."""
    width, code = 512, 256
    count = parameter_count(nnx.state(modules_of("size=paper")["tokenizer"], nnx.Param))
    convolution = 27 * width * width
    stage = (convolution + width) + 4 * (2 * convolution + 4 * width) + 2 * width + (width + 1) * code
    coding = 3 * (code * 6 + 6 + 6 * code + code)
    ups = 9 * code * (8 + 4) * code + (8 + 4) * code
    own = 2 * stage + coding + ups + 2 * code
    assert count - own == pytest.approx(370e6, rel=0.04)
    plain = nnx.eval_shape(lambda: tasks.build(as_magvit2()).init(nnx.Rngs(0)))["tokenizer"]
    assert count - own == parameter_count(nnx.state(plain, nnx.Param))


def as_magvit2():
    """The same networks without layers: a latent as wide as the sum of the codes."""
    config = magvit2.get_config("stage=tokenizer,size=paper,quantizer=vq")
    config.model.quantizer = {"name": "vq", "size": 2, "width": 256}
    return config


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("quantizer", ["fsq", "lfq", "vq"])
def test_smaller_sizes_build(size, quantizer):
    argument = f"size={size},quantizer={quantizer}"
    model, clip = modules_of(argument)["tokenizer"], hitvideo.get_config(argument).data.clip
    layout = model.layout(VideoShape(clip.frames, clip.height, clip.width))
    assert [segment.tokens for _, segment in layout.segments] == {"debug": [18, 27, 108], "small": [12, 80, 320]}[size]
    assert len(model.quantizer.counted) == 3


@pytest.mark.parametrize("name", hitvideo.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in hitvideo.SWEEPS[name]:
        config = hitvideo.get_config("size=debug")
        config.update_from_flattened_dict(change)
        model = nnx.eval_shape(lambda c=config: tasks.build(c).init(nnx.Rngs(0)))["tokenizer"]
        found = {"residual": model.quantizer.residual, "conditioned": not model.quantizer.residual}
        (value,) = change.values()
        assert found[value] if name == "form" else model.layer_drop == value


@pytest.mark.slow
def test_a_short_training_orders_the_layers(tmp_path):
    """2: of a trained tokenizer every layer adds to the picture; its run is saved, loaded and measured by layer."""
    config = hitvideo.get_config("size=debug")
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    config.data.batch_size = config.data.eval_batch_size = 8
    config.model.update({"width": 8, "middle_blocks": 0, "code_width": 16, "layer_drop": 0.5})
    config.model.layer_strides = ((1, 2, 2), (2, 2, 2))
    config.steps = config.eval_every = config.checkpoint_every = 150
    config.ema.decay = 0.9
    train(config, tmp_path / "run")
    loaded = videogen.load(tmp_path / "run")
    model = loaded.tokenizer
    video = np.stack([loaded_clip(config, i) for i in range(16)])
    rebuild = jax.jit(lambda video, tokens: model.detokenize(model.tokenize(video, tokens)), static_argnums=1)
    errors = [float(np.mean((rebuild(jnp.asarray(video), n) - video) ** 2)) for n in (2, 14, 62)]
    assert errors[0] > 1.05 * errors[1] and errors[1] > 1.05 * errors[2]
    values = loaded.task.evaluate(loaded.modules, [{"video": np.uint8((video + 1) * 127.5)}], seed=0)
    names = {f"codebook_usage_layer_{i}" for i in (1, 2, 3)}
    assert names <= set(values) and values["bits_per_pixel"] == pytest.approx(62 * np.log2(1000) / (5 * 16 * 16))


def loaded_clip(config, index: int) -> np.ndarray:
    """A clip of the source in [-1, 1]."""
    clip = data.Clip(config.data.clip.frames, config.data.clip.height, config.data.clip.width, config.data.clip.fps)
    source = data.build(config.data.source, clip=clip, seed=0, split="train")
    return source[index]["video"].astype(np.float32) / 127.5 - 1
