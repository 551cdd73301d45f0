"""The transformer of LTX-Video beside its class in diffusers, on random weights; its clock, its times, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import diffusion
from videogen.conditioning import Conditioning, EncodedText
from videogen.denoisers import read_denoiser
from videogen.encoders.loading import fill
from videogen.errors import UserError
from videogen.generators import NormalisedLatents, build_sampler
from videogen.generators.flow import FlowTransformer
from videogen.generators.public import PREFIXES
from videogen.generators.public.ltx import (
    CONDITION_PIPELINE,
    ltx_described,
    ltx_model,
    ltx_names,
    ltx_sampler,
    ltx_transformer,
)
from videogen.nn import ClipRotary, read_transformer
from videogen.shapes import TokenGrid

SIZES = {
    # 32 channels leave one pair that is not turned, 36 leave none; heads of 16 and 12.
    "two heads": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2},
    "three heads": {"num_attention_heads": 3, "attention_head_dim": 12, "num_layers": 1},
}
SCHEDULER = {"base_image_seq_len": 1024, "base_shift": 0.95, "max_image_seq_len": 4096, "max_shift": 2.05}
SCHEDULER |= {"shift": 1.0, "shift_terminal": 0.1, "use_dynamic_shifting": True}


def config_of(size):
    sizes = SIZES[size]
    width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    return {**sizes, "in_channels": 4, "out_channels": 4, "caption_channels": 12, "cross_attention_dim": width}


def built(config, grid=(3, 4, 6), pipeline=""):
    """The structure of a transformer over normalised latents."""
    found = ltx_described(config, pipeline)
    settings = {name: value for name, value in found.model.items() if name != "name"}

    def make():
        width = found.text_width
        model = FlowTransformer(found.channels, grid, **settings, context_width=width, rngs=nnx.Rngs(0))
        model.statistics = NormalisedLatents()
        return model

    return nnx.eval_shape(make)


def velocity(model, latents, t, text, mask, rate):
    said = Conditioning(EncodedText(jnp.asarray(text), jnp.asarray(mask)), rate=jnp.asarray(rate, jnp.float32))
    return np.asarray(model.predict(jnp.asarray(latents), jnp.asarray(t), model.prepare(said)))


def reference_of(size):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    reference = diffusers.LTXVideoTransformer3DModel(**config_of(size)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return reference, {name: x.numpy() for name, x in reference.state_dict().items()}


def check_velocity(size, fps, pipeline):
    import torch

    reference, tensors = reference_of(size)
    abstract = built(config_of(size), pipeline=pipeline)
    model = fill(abstract, ltx_names(abstract), tensors, "a file")
    rng = np.random.default_rng(0)
    grid = (3, 2, 4)
    latents = rng.standard_normal((2, *grid, 4)).astype(np.float32)
    text = rng.standard_normal((2, 7, 12)).astype(np.float32)
    mask, t = np.arange(7) < np.array([[7], [3]]), np.array([0.9991, 0.3], np.float32)
    given = {"num_frames": grid[0], "height": grid[1], "width": grid[2]}
    if pipeline:
        ids = diffusers_condition_ids(grid)
        given["video_coords"] = torch.cat([ids[:, :1] * (1.0 / fps), ids[:, 1:]], dim=1)
    else:
        given["rope_interpolation_scale"] = (8 / fps, 32, 32)
    with torch.no_grad():
        said = map(torch.from_numpy, (latents.reshape(2, -1, 4), text, t * 1000, mask))
        expected = reference(*said, **given, return_dict=False)[0].numpy().reshape(latents.shape)
    found = velocity(model, latents, t, text, mask, [fps, fps])
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= 2e-5
    other = velocity(model, latents, t, text, mask, [fps, 2 * fps])
    # The rate of the other clip changes nothing, and that of its own does.
    np.testing.assert_allclose(other[0], found[0], atol=1e-5)
    assert np.abs(other[1] - found[1]).max() > 1e-3


def diffusers_condition_ids(grid):
    from diffusers import LTXConditionPipeline

    ids = LTXConditionPipeline._prepare_video_ids(2, *grid)
    return LTXConditionPipeline._scale_video_ids(ids, scale_factor=32, scale_factor_t=8).float()


def test_the_velocity_of_ltx():
    check_velocity("two heads", 25, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, fps, pipeline",
    [("two heads", 30, CONDITION_PIPELINE), ("three heads", 24, ""), ("three heads", 25, CONDITION_PIPELINE)],
)
def test_the_velocity_of_other_sizes_rates_and_clocks(size, fps, pipeline):
    check_velocity(size, fps, pipeline)


@pytest.mark.parametrize("alone, expected", [(True, (0, 0.04, 0.36, 4.52)), (False, (0, 0.32, 0.64, 4.8))])
def test_the_clock(alone, expected):
    clock = ClipRotary(first_alone=alone)
    seconds = np.asarray(clock.seconds(16, jnp.array([25.0, 50.0])))
    np.testing.assert_allclose(seconds[0, [0, 1, 2, 15]], expected, atol=1e-6)
    np.testing.assert_allclose(seconds[1], seconds[0] / 2, atol=1e-6)
    angles = clock.angles((16, 2, 3), 2, 8, jnp.array([25.0, 50.0]))
    assert angles.shape == (2, 96, 2, 4)
    # 16 channels: two pairs are not turned, then time, row and column of the lowest factor, and of the highest.
    flat = np.asarray(angles).reshape(2, 16, 2, 3, 8)
    assert not flat[..., :2].any()
    np.testing.assert_allclose(flat[0, :, 1, 2, 2], np.pi / 2 * (seconds[0] / 10 - 1), rtol=1e-5)
    lowest = np.pi / 2 * (np.array([32, 64]) / 1024 - 1)
    np.testing.assert_allclose(flat[0, 0, 1, 2, 3:5], lowest, rtol=1e-5)
    np.testing.assert_allclose(flat[0, 0, 1, 2, 6:8], 1e4 * lowest, rtol=1e-5)


def test_positions_in_seconds_are_refused_without_a_rate_and_elsewhere():
    model = nnx.eval_shape(lambda: built(config_of("two heads")))
    with pytest.raises(UserError, match="need the frame rate of the clips"):
        model.clock.angles((1, 1, 1), 2, 16, None)
    with pytest.raises(UserError, match="even heads and a width of 6 or more"):
        ClipRotary().angles((1, 1, 1), 1, 4, jnp.ones(1))
    for rotary, match in (
        ({"name": "clock"}, "unknown rotary 'clock'"),
        ({"name": "clip", "base": 0.5}, "base of rotary 'clip' must be"),
        ({"name": "clip", "cell": (8, 32)}, "must have 3 entries"),
    ):
        with pytest.raises(UserError, match=match):
            read_denoiser({"width": 8, "layers": 1, "heads": 1, "mlp_width": 8, "rotary": rotary})
    with pytest.raises(UserError, match="rotary of section 'transformer' must be True or False"):
        read_transformer({"width": 8, "layers": 1, "heads": 1, "mlp_width": 8, "rotary": {"name": "clip"}})


def test_the_shift_follows_the_tokens():
    for tokens, mu in ((1024, 0.95), (4096, 2.05), (6120, 2.7747)):
        assert np.log(diffusion.shift_by_exponent(tokens)) == pytest.approx(mu, abs=1e-4)
    shift = diffusion.shift_by_exponent(6120)
    assert float(diffusion.shift_time(np.float64(0.5), shift)) == pytest.approx(0.9413, abs=1e-4)
    # Training, validation and sampling ask the model, which counts the tokens of the clip: 960×544×89 pixels.
    model = built(config_of("two heads"), grid=(12, 17, 30))
    assert model.shift_of(TokenGrid(12, 17, 30)) == shift
    assert model.shift_of(TokenGrid(1, 32, 32)) == pytest.approx(np.exp(0.95))


@pytest.mark.parametrize("tokens, steps", [(1024, 50), (6120, 8)])
def test_the_times_are_those_of_the_scheduler(tokens, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    mu = float(np.log(diffusion.shift_by_exponent(tokens)))
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    sampler = build_sampler({**ltx_sampler(SCHEDULER), "steps": steps})
    found = sampler.points(diffusion.build("process", {"name": "rectified_flow"}), np.exp(mu))
    np.testing.assert_allclose(found, scheduler.sigmas.numpy(), atol=2e-6)
    assert found[-2] == pytest.approx(0.1)


def test_the_times_of_the_later_pipeline():
    pytest.importorskip("diffusers")
    from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

    settings = ltx_sampler({"use_dynamic_shifting": False, "shift": 1.0}, CONDITION_PIPELINE)
    sampler = build_sampler({**settings, "steps": 40})
    found = sampler.points(diffusion.build("process", {"name": "rectified_flow"}), 7.0)
    np.testing.assert_allclose(found, [*linear_quadratic_schedule(40), 0.0], atol=1e-6)
    # A folder without a scheduler has the published one.
    assert ltx_sampler({}) == ltx_sampler(SCHEDULER)
    assert ltx_sampler({"shift": 3.0})["shift"] == 3.0
    with pytest.raises(UserError, match="'max_shift': 1.15.* is not LTX-Video's"):
        ltx_sampler({**SCHEDULER, "max_shift": 1.15})


@pytest.mark.slow
def test_original_names_are_those_of_the_folder():
    from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers

    _, tensors = reference_of("two heads")
    renamed = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm"}
    old = {}
    for name, tensor in tensors.items():
        for new, original in renamed.items():
            name = name.replace(new, original)
        old[f"model.diffusion_model.{name}"] = tensor
    assert convert_ltx_transformer_checkpoint_to_diffusers(dict(old)).keys() == tensors.keys()
    abstract = built(config_of("two heads"))
    one = fill(abstract, ltx_names(abstract), tensors, "a file")
    two = fill(abstract, ltx_names(abstract), old, "a file", prefixes=PREFIXES)
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(two)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="1 tensors that are not known"):
        fill(abstract, ltx_names(abstract), {**tensors, "extra": np.zeros(1)}, "a file")


def test_what_was_not_published_is_refused():
    config = config_of("two heads")
    for changes, match in (
        ({"out_channels": 8}, "4 channels in and 8 out"),
        ({"cross_attention_dim": 16}, "texts of 16, is not one that was published"),
        ({"qk_norm": None}, "qk_norm=None is not one that was published"),
        ({"patch_size": 2}, "patch_size=2 is not one that was published: 1 is known"),
        ({"num_layers": None}, "lacks or has another kind of"),
    ):
        with pytest.raises(UserError, match=match):
            ltx_described({**config, **changes})
    with pytest.raises(UserError, match="lacks or has another kind of 'caption_channels'"):
        ltx_described({name: value for name, value in config.items() if name != "caption_channels"})
    # A config may say its clock; else the pipeline does.
    for said, pipeline, alone in ((None, "", False), (None, CONDITION_PIPELINE, True), (True, "LTXPipeline", True)):
        own = config | ({} if said is None else {"causal_temporal_positioning": said})
        assert ltx_described(own, pipeline).model["transformer"]["rotary"]["first_alone"] is alone


@pytest.mark.slow
def test_the_published_size_has_the_parameters_of_the_class():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        reference = diffusers.LTXVideoTransformer3DModel()
    expected = sum(p.numel() for p in reference.parameters())
    count = sum(x.size for x in jax.tree.leaves(nnx.state(built(reference.config), nnx.Param)))
    # Ours holds what stands for the empty text besides.
    assert count == expected + 4096
    found = ltx_described(reference.config)
    assert found.model == ltx_model(ltx_transformer(2048, 28, 32, first_alone=False)) and found.channels == 128
