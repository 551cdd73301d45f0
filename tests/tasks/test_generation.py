"""The Phenaki sheet's invariants 10-12: extension, stories and image animation with a tiny untrained system."""

import jax
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import larp, nbp, phenaki
from videogen.configs.networks import cvivit
from videogen.errors import UserError
from videogen.shapes import Extension

WINDOW = 5


def make(frames: int, side: int, tokenizer) -> tasks.VideoGenerator:
    config = phenaki.get_config("stage=generator,size=debug")
    config.data.clip.update({"frames": frames, "height": side, "width": side})
    config.parts.tokenizer.model = tokenizer
    config.model.transformer.update({"width": 32, "layers": 1, "heads": 2, "mlp_width": 64})
    config.text.encoder.update({"width": 32, "heads": 2})
    config.sampler.update({"steps": 3, "guidance_scale": 2.0, "choice_temperature": 1.0})
    task = tasks.build(config)
    rngs = nnx.Rngs(0)
    modules = task.init(rngs) | task.frozen(None)
    # Untrained text hardly moves an untrained generator: stronger text makes the prompt matter.
    text = modules["generator"].text_encoder.embedding.table
    text.set_value(text.get_value() * 500)
    return tasks.VideoGenerator(task, modules)


@pytest.fixture(scope="module")
def generator():
    tokenizer = cvivit("debug")
    tokenizer.update({"width": 32, "heads": 2, "mlp_width": 64, "encoder_layers": (1, 1), "decoder_layers": (1, 1)})
    tokenizer.quantizer.size = 32
    return make(WINDOW, 16, tokenizer)


def text(*ids: int) -> dict[str, np.ndarray]:
    return {"text_ids": np.array([[i] * 4 for i in ids], np.int32), "text_mask": np.ones((len(ids), 4), bool)}


@pytest.mark.parametrize(("segments", "frames"), [(1, 11), (2, 17), (3, 23)])
def test_segments_of_the_paper_add_six_frames(segments, frames):
    extension = Extension(window=11, overlap=5)
    assert extension.frames(segments) == frames == 11 + (segments - 1) * (11 - 5)
    assert extension.segments(frames) == segments and extension.segments(frames + 1) == segments + 1


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6, 7, 8, 12])
def test_any_length_can_be_drawn(generator, frames):
    video = generator.generate(text(1, 2), frames, seed=0, overlap=3)
    assert video.shape == (2, frames, 16, 16, 3) and video.dtype == np.uint8


def test_a_longer_video_starts_with_the_shorter_one(generator):
    short, long = (generator.generate(text(1), n, seed=0, overlap=3) for n in (WINDOW, 11))
    np.testing.assert_array_equal(long[:, :WINDOW], short)
    seven = generator.generate(text(1), 7, seed=0, overlap=3)
    np.testing.assert_array_equal(long[:, :7], seven)


def test_a_segment_depends_on_the_prompts_up_to_it_only(generator):
    one = generator.generate([text(1), text(2), text(3)], 9, seed=0, overlap=3)
    other = generator.generate([text(1), text(2), text(9)], 9, seed=0, overlap=3)
    np.testing.assert_array_equal(one[:, :7], other[:, :7])
    changed = generator.generate([text(1), text(9), text(3)], 9, seed=0, overlap=3)
    np.testing.assert_array_equal(one[:, :5], changed[:, :5])
    assert (one[:, 5:] != changed[:, 5:]).any()


def test_overlap_is_encoded_through_the_first_frame_path(generator):
    """The kept frames enter as a fresh clip: their prefix codes are those of the kept frames alone."""
    video = generator.generate(text(1), WINDOW, seed=0, overlap=3)
    kept, whole = generator.tokenize(video[:, -3:]), generator.tokenize(video)
    assert kept.layout.only.grid.time == 2
    assert (kept.only.values[:, 0] != whole.only.values[:, 1]).any()


def test_animation_starts_with_the_picture(generator):
    still = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16, 3)).astype(np.uint8)
    video = generator.generate(text(1, 2), WINDOW, seed=0, first_frames=still)
    np.testing.assert_array_equal(video[:, :1], still)
    assert video.shape[1] == WINDOW


def test_seed_decides_everything(generator):
    same = [generator.generate(text(1), WINDOW, seed=s) for s in (3, 3, 4)]
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[0] != same[2]).any()


@pytest.mark.parametrize("overlap", [2, 5, 0])
def test_impossible_overlaps_are_refused(generator, overlap):
    with pytest.raises(UserError):
        generator.generate(text(1), 9, seed=0, overlap=overlap)


def test_a_window_coded_as_a_whole_does_not_slide():
    tokenizer = larp.larp("debug")
    network = {"width": 24, "layers": 1, "heads": 2, "mlp_width": 48}
    tokenizer.update({"encoder": network, "decoder": dict(network), "queries": 3})
    generator = make(4, 24, tokenizer)
    assert generator.generate(text(1, 2), 3, seed=0).shape == (2, 3, 24, 24, 3)
    given = np.zeros((1, 1, 24, 24, 3), np.uint8)
    for story, frames, first in (([text(1)], 5, None), ([text(1)] * 2, 4, None), ([text(1)], 4, given)):
        with pytest.raises(UserError, match="codes 4 frames as a whole"):
            generator.generate(story, frames, seed=0, first_frames=first)


def test_windows_and_videos_have_noise_of_their_own(generator, monkeypatch):
    """Two prompts, three windows: six different keys, each known to seed, place and window alone."""
    seen, original = [], generator._draw

    def record(states, batch, keys, prefix, grid):
        seen.append(np.asarray(jax.random.key_data(keys)))
        return original(states, batch, keys, prefix, grid)

    monkeypatch.setitem(generator.__dict__, "_draw", record)
    generator.generate(text(1, 2), 9, seed=0, overlap=3)
    generator.generate(text(3, 4), 9, seed=0, overlap=3)
    generator.generate(text(1, 2), 5, seed=1)
    assert len(seen) == 7
    np.testing.assert_array_equal(seen[:3], seen[3:6])
    assert len({tuple(key) for keys in (*seen[:3], seen[6]) for key in keys}) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "legal"), [((2, 1, 4), [3, 7]), pytest.param((1, 1, 4), [1, 3, 5, 7, 9], marks=pytest.mark.slow)]
)
def test_first_frames_are_whole_blocks(block, legal):
    """Six latents of 11 frames. A block of two frames is drawn at once, so one of them cannot be given."""
    config = nbp.generator("debug", "700M")
    config.data.clip.update({"frames": 11, "height": 16, "width": 16})
    config.model.update({"block": block, "start": "block"})
    config.model.transformer.update({"width": 16, "layers": 1, "heads": 2, "mlp_width": 32})
    config.text.encoder.update({"width": 16, "heads": 2})
    config.parts.tokenizer.model.update({"width": 16, "heads": 2, "mlp_width": 32})
    config.parts.tokenizer.model.update({"encoder_layers": (1, 1), "decoder_layers": (1, 1)})
    task = tasks.build(config)
    modules = task.init(nnx.Rngs(0)) | task.frozen(None)
    generator = tasks.VideoGenerator(task, modules)
    assert generator.prefix_lengths() == legal and generator.default_overlap() in legal
    clip = np.random.default_rng(0).integers(0, 256, (1, 11, 16, 16, 3)).astype(np.uint8)
    drawn = generator.generate(text(1), 11, seed=0, first_frames=clip[:, :3])
    np.testing.assert_array_equal(drawn[:, :3], clip[:, :3])
    # Whole blocks are drawn, also where fewer frames are asked for.
    assert generator.generate(text(1), 5, seed=0).shape == (1, 5, 16, 16, 3)
    assert generator.generate(text(1), 15, seed=0).shape == (1, 15, 16, 16, 3)
    for given in {1, 2, 5, 11} - set(legal):
        with pytest.raises(UserError, match=f"{given} frames cannot be given"):
            generator.generate(text(1), 11, seed=0, first_frames=clip[:, :given])
    with pytest.raises(UserError, match="none to draw"):
        generator.generate(text(1), 3, seed=0, first_frames=clip[:, :3])


def untold(config) -> tuple[tasks.Task, dict]:
    """A tiny system that is told nothing."""
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    config.model.transformer.update({"width": 16, "layers": 1, "heads": 2, "mlp_width": 32})
    config.parts.tokenizer.model.update({"width": 16, "heads": 2, "mlp_width": 32})
    config.parts.tokenizer.model.update({"encoder_layers": (1, 1), "decoder_layers": (1, 1)})
    with config.unlocked():
        config.text = {"encoder": {"name": "none"}, "tokenizer": {"name": "bytes", "path": "", "length": 1}}
    task = tasks.build(config)
    return task, task.init(nnx.Rngs(0)) | task.frozen(None)


def test_pictures_of_clips_of_which_nothing_is_known():
    """A folder of videos without captions and classes gives batches of pixels alone."""
    config = phenaki.generator("debug")
    config.sampler.steps = 2
    clip = np.random.default_rng(0).integers(0, 256, (6, 5, 16, 16, 3)).astype(np.uint8)
    task, modules = untold(config)
    (picture,) = task.pictures(modules, {"video": clip}, seed=0)
    assert len(picture.rows) == 4 and all(drawn.shape == (5, 16, 16, 3) for _, drawn in picture.rows)


@pytest.mark.slow
def test_pictures_begin_with_the_given_frames_of_held_out_clips_or_codes():
    config = nbp.generator("debug", "700M")
    config.model.update({"start": "given", "given": 2, "block": (1, 1, 4)})
    task, modules = untold(config)
    clip = np.random.default_rng(0).integers(0, 256, (6, 5, 16, 16, 3)).astype(np.uint8)
    (picture,) = task.pictures(modules, {"video": clip}, seed=0)
    for original, drawn in picture.rows:
        np.testing.assert_array_equal(drawn[:3], original[:3])
    codes = np.asarray(task.tokens(modules, {"video": clip}).only.values)
    (cached,) = task.pictures(modules, {"tokens/video": codes}, seed=0)
    decoded = tasks.base.to_pixels(task.detokenize(modules, task.tokens(modules, {"tokens/video": codes})))
    assert len(cached.rows) == 4
    for (original, drawn), expected in zip(cached.rows, decoded, strict=False):
        # Whole numbers of a pixel, up to the rounding of another batch.
        np.testing.assert_allclose(original, expected, atol=1)
        np.testing.assert_array_equal(drawn[:3], original[:3])


def test_what_was_drawn_is_kept_when_its_decoder_fails(generator, monkeypatch):
    kept, computed = {}, []

    def keep(name, compute):
        if name not in kept:
            computed.append(name)
            kept[name] = compute()
        return kept[name]

    expected = generator.generate(text(1, 2), 9, seed=3)

    def fails(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    decode = generator._decode
    monkeypatch.setitem(generator.__dict__, "_decode", fails)
    with pytest.raises(UserError, match=r"not enough memory to decode .* --tile=8x8"):
        generator.generate(text(1, 2), 9, seed=3, keep=keep)
    assert computed == ["tokens_0_0"]
    # The same command goes on from what was drawn, and ends as one that was not interrupted.
    monkeypatch.setitem(generator.__dict__, "_decode", decode)
    np.testing.assert_array_equal(generator.generate(text(1, 2), 9, seed=3, keep=keep), expected)
    assert computed[0] == "tokens_0_0" and len(set(computed)) == len(computed) > 1

    def other(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: another fault")

    monkeypatch.setitem(generator.__dict__, "_decode", other)
    with pytest.raises(jax.errors.JaxRuntimeError, match="another fault"):
        generator.generate(text(1, 2), 9, seed=3, keep=keep)
