"""Caches and buffers follow the request: sizes, lengths and given frames of a flow generator."""

import functools

import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import phenaki, videodit
from videogen.configs.networks import cvivit
from videogen.errors import UserError

TRAINED = (16, 16)
TINY = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}


def tokenizer():
    config = cvivit("debug")
    small = {"width": 16, "heads": 2, "mlp_width": 16, "encoder_layers": (1, 1), "decoder_layers": (1, 1)}
    config.update(small)
    config.quantizer = {"name": "gaussian", "width": 4}
    return config


@functools.cache
def parts() -> tuple[tasks.Task, dict[str, nnx.Module]]:
    """The task and modules of an untrained generator with times of frames, of clips of 5 frames of 16×16."""
    config = videodit.get_config("stage=generator,size=debug")
    config.parts.tokenizer.model = tokenizer()
    config.data.clip.update({"frames": 5, "height": TRAINED[0], "width": TRAINED[1]})
    config.model.update({"times": "frame", "transformer": TINY})
    config.text.encoder.update({"width": 16, "heads": 2, "layers": 1})
    config.sampler.update({"steps": 2, "solver": {"name": "euler"}, "guidance_scale": 1.0})
    task = tasks.build(config)
    return task, task.init(nnx.Rngs(0)) | task.frozen(None)


@functools.cache
def generator(size: tuple[int, int], extension: str = "window") -> tasks.VideoGenerator:
    task, modules = parts()
    return tasks.VideoGenerator(task, modules, {"extension": extension}, size)


def text(count: int) -> dict[str, np.ndarray]:
    return {"text_ids": np.ones((count, 4), np.int32), "text_mask": np.ones((count, 4), bool)}


def clip(frames: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 256, (1, frames, *size, 3)).astype(np.uint8)


# The trained length, one block of two frames more, and four times as many; no, one or a block more of given frames.
REQUESTS = [(frames, given) for frames in (5, 7, 20) for given in (0, 1, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [TRAINED, (24, 16)], ids=str)
def test_every_length_is_drawn_from_any_given_frames_at_both_sizes(size):
    model = generator(size)
    for frames, given in REQUESTS:
        first = clip(given, size) if given else None
        video = model.generate(text(1), frames, seed=0, overlap=3, first_frames=first)
        assert video.shape == (1, frames, *size, 3), (frames, given)
        if given:
            np.testing.assert_array_equal(video[:, :given], first)


@pytest.mark.slow
@pytest.mark.parametrize("size", [TRAINED, (24, 16)], ids=str)
def test_a_queue_draws_every_length_at_both_sizes(size):
    model = generator(size, "queue")
    for frames in (5, 7, 20):
        assert model.generate(text(1), frames, seed=0).shape == (1, frames, *size, 3)


def test_what_cannot_be_drawn_is_one_line_with_frames_size_and_the_nearest():
    window, queue = generator(TRAINED), generator(TRAINED, "queue")
    for call, words in (
        (
            lambda: window.generate(text(1), 9, 0, first_frames=clip(2, TRAINED)),
            ("2 frames", "16x16", "1 is the nearest"),
        ),
        (
            lambda: window.generate(text(1), 3, 0, first_frames=clip(3, TRAINED)),
            ("video of 3", "16x16", "nearest is 4"),
        ),
        (
            lambda: queue.generate(text(1), 9, 0, first_frames=clip(1, TRAINED)),
            ("9 frames of 16x16", "from 1 given", "extension=window"),
        ),
        (lambda: generator((18, 16)), ("5 frames of 18x16 cannot be drawn", "the nearest is 16x16")),
        (lambda: generator((16, 39)), ("5 frames of 16x39 cannot be drawn", "the nearest is 16x40")),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert all(word in str(refused.value) for word in words) and "\n" not in str(refused.value), refused.value


def test_a_generator_with_a_table_of_places_draws_the_size_of_its_training():
    config = phenaki.get_config("stage=generator,size=debug")
    config.model.transformer.update(TINY)
    config.text.encoder.update({"width": 16, "heads": 2, "layers": 1})
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    with pytest.raises(UserError, match="5 frames of 24x16 cannot be drawn.*rotary.*the nearest is 16x16"):
        tasks.VideoGenerator(tasks.build(config), {}, None, (24, 16))


def test_windows_after_the_first_begin_where_the_arithmetic_says():
    """Five frames, then two more with an overlap of three; through a queue multiples of a window."""
    assert generator(TRAINED).window_starts(12, 3) == [5, 7, 9, 11] and generator(TRAINED).window_starts(5, 3) == []
    assert generator(TRAINED, "queue").window_starts(16) == [5, 10, 15]
