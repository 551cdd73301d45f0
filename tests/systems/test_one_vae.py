"""Every size of the OneVAE config, and the way from the continuous network to both uses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import videogen
from tests.training.test_warm_start import begin, flat, write_run
from videogen import tasks
from videogen.configs import one_vae
from videogen.shapes import VideoShape
from videogen.training.loop import train
from videogen.training.state import parameter_count


@functools.cache
def model_of(argument: str) -> nnx.Module:
    config = one_vae.get_config(argument)
    return nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))["tokenizer"]


def count(argument: str) -> int:
    return parameter_count(nnx.state(model_of(argument), nnx.Param))


def expected(model: str) -> int:
    """The published widths in the networks of ``convolutional``, to the last parameter (sheet, section 2)."""
    width, blocks, latent = 96, 2, 256
    widths = [width * m for m in one_vae.MODELS[model]["multipliers"]]
    strides = [t * 4 for t in one_vae.MODELS[model]["temporal_strides"]]
    deep = widths[-1]

    def block(a: int, b: int) -> int:
        return 27 * a * b + 27 * b * b + a + b + (a * b if a != b else 0)

    def levels(order: list[int]) -> int:
        ins = [order[0], *order[:-1]]
        return sum(block(a, b) + (blocks - 1) * block(b, b) for a, b in zip(ins, order, strict=True))

    attention = deep + deep * 3 * deep + 2 * deep + deep * deep + deep
    middle = 2 * block(deep, deep) + attention
    downs = sum(27 * w * w + w for w in widths[:-1])
    ups = sum((27 * w + 1) * w * s for w, s in zip(widths[:0:-1], strides[::-1], strict=True))
    encoder = 27 * 3 * width + width + levels(widths) + downs + middle + deep + (deep + 1) * 2 * latent
    decoder = 27 * latent * deep + deep + middle + levels(widths[::-1]) + ups + width + 27 * width * 3 + 3
    fine = 9 * latent * latent + latent + deep * deep + deep
    codes = latent * 12 + 12 + 12 * latent + latent
    return encoder + decoder + codes + (fine if one_vae.MODELS[model]["first_frame"] == "fine" else 0)


@pytest.mark.parametrize("model", one_vae.MODELS)
def test_paper_sizes(model):
    assert count(f"size=paper,model={model}") == expected(model)
    without = count(f"stage=vae,size=paper,model={model}")
    assert count(f"size=paper,model={model}") - without == 256 * 12 + 12 + 12 * 256 + 256


@pytest.mark.parametrize(
    ("model", "frames", "segments"),
    [
        ("888", 33, {"video": (5, 32, 32)}),
        ("888", 17, {"video": (3, 32, 32)}),
        ("888", 1, {"video": (1, 32, 32)}),
        ("81616", 33, {"first": (1, 32, 32), "rest": (4, 16, 16)}),
        ("81616", 17, {"first": (1, 32, 32), "rest": (2, 16, 16)}),
        ("81616", 1, {"first": (1, 32, 32)}),
        ("161616", 33, {"first": (1, 32, 32), "rest": (2, 16, 16)}),
        ("161616", 17, {"first": (1, 32, 32), "rest": (1, 16, 16)}),
        ("161616", 1, {"first": (1, 32, 32)}),
    ],
)
def test_paper_tokens(model, frames, segments):
    """1: the grids of section 3, two tokens of 64,000 codes at each place."""
    layout = model_of(f"size=paper,model={model}").layout(VideoShape(frames, 256, 256))
    assert {name: segment.shape for name, segment in layout.segments} == segments
    assert {segment.vocabulary for _, segment in layout.segments} == {(64_000, 64_000)}
    positions = {("81616", 33): 2048, ("161616", 33): 1536}
    assert layout.tokens == positions.get((model, frames), layout.tokens)


def test_the_published_recipe():
    config = one_vae.get_config("size=paper")
    adversarial, rate = config.losses.adversarial, config.optimizer.tokenizer
    assert (adversarial.weight, adversarial.start, config.losses.l1.weight) == (0.1, 20_000, 1.0)
    assert (rate.learning_rate, rate.clip, config.ema.decay, config.parallel.dtype) == (5e-5, 1.0, 0.9999, "bfloat16")
    assert config.model.quantizer.discrete_share == 0.5


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize("codes", ["fsq", "vq", "lfq"])
def test_smaller_sizes_build(size, codes):
    model = model_of(f"size={size},codes={codes}")
    bits = 2 * {"debug": 6, "small": 14}[size]
    assert np.log2(np.float64(model.vocabulary)).sum() == pytest.approx(bits, rel=0.06)
    assert model_of(f"stage=vae,size={size}").vocabulary == () and count(f"size={size}") > 5e5


@pytest.mark.parametrize("name", one_vae.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in one_vae.SWEEPS[name]:
        ((key, value),) = change.items()
        config = one_vae.get_config(f"size=debug,{key[1:]}={value}" if key.startswith(":") else "size=debug")
        if name == "codes":
            assert config.model.quantizer.codes.base.name == value
        else:
            config.update_from_flattened_dict(change)
            assert tasks.build(config).config.model.quantizer.discrete_share == value


def tiny(stage: str, **changes):
    """One stage on clips of 5 × 16 × 16, for a few steps."""
    config = one_vae.get_config(f"stage={stage},size=debug")
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    config.data.batch_size = config.data.eval_batch_size = 4
    config.model.update({"width": 4, "multipliers": (1, 2), "spatial_strides": (2,), "temporal_strides": (2,)})
    config.steps = config.eval_every = config.checkpoint_every = config.log_every = 2
    config.update_from_flattened_dict(changes)
    return config


def test_the_joint_stage_begins_with_the_average_of_the_continuous_one(tmp_path):
    """10: shared weights are those of the moving average, in the new weights and in their average; only the two linear
    maps are new."""
    old = write_run(tmp_path / "vae", tiny("vae"))
    new, _, own = begin(tmp_path / "vae", tiny("tokenizer"), tmp_path / "new")
    averages = flat(old["ema"])
    for part in ("params", "ema"):
        found, fresh = flat(new[part]["tokenizer"]), flat(own[part]["tokenizer"])
        taken = {name.removeprefix("tokenizer."): x for name, x in averages.items() if name.startswith("tokenizer.")}
        for name, value in found.items():
            np.testing.assert_array_equal(value, taken.get(name, fresh[name]))
        assert {name.rpartition(".")[0] for name in set(found) - set(taken)} == {
            "quantizer.to_code",
            "quantizer.from_code",
        }


@pytest.mark.slow
def test_both_stages_train_and_are_loaded(tmp_path):
    """The first step of the joint stage has the reconstruction of the first; both uses are measured."""
    train(tiny("vae"), tmp_path / "vae")
    joint = tiny("tokenizer")
    joint.start_from.run = str(tmp_path / "vae")
    train(joint, tmp_path / "joint")
    vae, model = (videogen.load(tmp_path / name) for name in ("vae", "joint"))
    video = np.random.default_rng(0).integers(0, 256, (4, 5, 16, 16, 3), np.uint8)
    before, after = (loaded.task.evaluate(loaded.modules, [{"video": video}], seed=0) for loaded in (vae, model))
    assert "bits_per_pixel" in after and "bits_per_pixel" not in before
    assert after["continuous_psnr"] == pytest.approx(before["psnr"], abs=0.5) and after["psnr"] > 5
    rebuild = jax.jit(lambda video: model.tokenizer.detokenize(model.tokenizer.tokenize(video)))
    assert rebuild(jnp.asarray(video / 127.5 - 1, jnp.float32)).shape == video.shape
