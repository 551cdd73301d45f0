"""What a sampler section or a flag says is checked when a task is built, long before anything is drawn."""

import types

import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import nbp, phenaki, videodit
from videogen.errors import UserError
from videogen.inference import sampling

NAN = float("nan")
CONFIGS = {
    "masked": lambda: phenaki.generator("debug"),
    "next_block": lambda: nbp.generator("debug", "700M"),
    "flow": lambda: videodit.generator("debug", "1.3B"),
}


def config(kind: str, **sampler):
    config = CONFIGS[kind]()
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    if kind == "next_block":
        config.model.block = (1, 1, 4)
    with config.unlocked():
        for key, value in sampler.items():
            config.sampler[key] = value
    return config


@pytest.mark.parametrize(
    ("kind", "sampler", "message"),
    [
        ("masked", {"schedule": "cosinus"}, "did you mean 'cosine'"),
        ("masked", {"temperature": 0.0}, "temperature"),
        ("masked", {"final_temperature": NAN}, "final_temperature"),
        ("masked", {"choice_temperature": -1.0}, "choice_temperature"),
        ("masked", {"steps": 0}, "steps"),
        ("masked", {"top_k": -1}, "top_k"),
        ("masked", {"guidance_scale": NAN}, "guidance_scale"),
        ("masked", {"name": "blocks"}, "no setting|sampler.name=maskgit"),
        ("masked", {"name": "maskgti"}, "did you mean 'maskgit'"),
        ("next_block", {"top_p": 0.0}, "top_p"),
        ("next_block", {"top_p": 1.5}, "top_p"),
        ("next_block", {"top_k": -1}, "top_k"),
        ("next_block", {"temperature": -1.0}, "temperature"),
        ("next_block", {"guidance_scale": NAN}, "guidance_scale"),
        ("next_block", {"guidance_schedule": "lineal"}, "did you mean 'linear'"),
        ("flow", {"steps": 0}, "steps"),
        ("flow", {"guidance_scale": float("inf")}, "guidance_scale"),
        ("flow", {"shift": 0.0}, "shift"),
        ("flow", {"solver": {"name": "eular"}}, "did you mean 'euler'"),
        ("flow", {"solver": {"name": "ddim", "eta": 2.0}}, "eta"),
        ("flow", {"grid": {"name": "uniform", "start": 0.0}}, "start"),
        ("flow", {"grid": {"name": "uniform", "last": 1.0}}, "last"),
        ("flow", {"grid": {"name": "karras", "sigma_min": 90.0}}, "never rises"),
        ("flow", {"grid": {"name": "log_snr", "start": 1.0}}, "start below 1"),
        ("flow", {"guidance": {"name": "rescale", "share": 2.0, "inner": {"name": "classifier_free"}}}, "share"),
        ("flow", {"lag": 1}, 'times="frame"'),
        ("flow", {"lag": -1}, "lag"),
        ("flow", {"extension": "queue"}, 'times="frame"'),
        ("flow", {"extension": "windows"}, "did you mean 'window'"),
    ],
)
def test_a_task_with_a_sampler_that_cannot_draw_is_not_built(kind, sampler, message):
    with pytest.raises(UserError, match=message):
        tasks.build(config(kind, **sampler))


def test_a_prediction_of_noise_cannot_begin_where_there_is_nothing_else():
    changed = config("flow")
    changed.model.noise.prediction = "epsilon"
    with pytest.raises(UserError, match="start below 1"):
        tasks.build(changed)
    changed.sampler.grid.start = 0.99
    tasks.build(changed)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("masked", {"temperature": NAN}),
        ("masked", {"guidance_scale": NAN}),
        ("masked", {"extension": "queue"}),
        ("next_block", {"steps": 4}),
        ("flow", {"guidance_scale": NAN}),
        ("flow", {"temperature": 2.0}),
        ("flow", {"extension": "queue"}),
    ],
)
def test_flags_are_checked_like_the_section(kind, flags):
    task = tasks.build(config(kind))
    with pytest.raises(UserError):
        tasks.VideoGenerator(task, {}, flags)
    tasks.VideoGenerator(task, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"image_batch_size": 4}}, "2 latent frames are always given.*a clip of 1 has none to predict"),
        ({"data": {"buckets": ((3, 16, 16, 4, 1),)}}, "2 latent frames are always given.*a clip of 2 has none"),
    ],
)
def test_clips_of_which_given_frames_leave_nothing_are_refused_by_name(change, message):
    changed = config("next_block")
    changed.model.update({"start": "given", "given": 2})
    tasks.build(changed)
    changed.update(change)
    with pytest.raises(UserError, match=message):
        tasks.build(changed)


def test_blocks_of_several_frames_take_no_images():
    changed = config("next_block")
    changed.data.clip.frames = 7
    changed.model.block = (2, 1, 4)
    tasks.build(changed)
    changed.data.image_batch_size = 4
    with pytest.raises(UserError, match="grid of 1 along time does not divide into blocks of 2"):
        tasks.build(changed)


def test_clips_without_labels_are_refused_by_a_class_model():
    changed = config("masked")
    changed.classes, changed.text.encoder = 3, {"name": "none"}
    with pytest.raises(UserError, match="the clips have no labels"):
        tasks.build(changed).conditioning({}, {"video": np.zeros((1, 5, 16, 16, 3), np.uint8)})


def test_prompts_of_a_story_that_have_no_window_are_named(monkeypatch, caplog):
    """A window of 5 frames and two of 2 more: nine frames have room for three prompts."""
    task = tasks.build(config("masked"))
    drawn = {}
    generator = tasks.VideoGenerator(task, {})

    def generate(story, frames, seed, **rest):
        drawn.update(story=story)
        return np.zeros((1, frames, 2, 2, 3), np.uint8)

    monkeypatch.setattr(generator, "generate", generate)
    loaded = types.SimpleNamespace(
        config=task.config,
        generator=lambda sampler, tile, size: generator,
        text=types.SimpleNamespace(encode=encode, is_cut=lambda prompt: False),
    )
    with caplog.at_level("WARNING", logger="absl"):
        sampling.draw_videos(loaded, ["a", "b", "c", "d", "e"], seed=0, story=True, frames=9)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("not used" in line for line in said)
    assert said[0].endswith(": d") and said[1].endswith(": e")
    caplog.clear()
    sampling.draw_videos(loaded, ["a", "b", "c"], seed=0, story=True)
    assert not caplog.records and len(drawn["story"]) == 3


def encode(prompts):
    return np.zeros((len(prompts), 4), np.int32), np.ones((len(prompts), 4), bool)


def test_a_model_without_captions_draws_unlabelled_too():
    """Text and classes: what is not said is null, not missing."""
    changed = config("masked")
    changed.classes = 3
    changed.model.transformer.update({"width": 16, "layers": 1, "heads": 2, "mlp_width": 32})
    changed.text.encoder.update({"width": 16, "heads": 2})
    changed.sampler.steps = 2
    changed.parts.tokenizer.model.update({"width": 16, "heads": 2, "mlp_width": 32})
    changed.parts.tokenizer.model.update({"encoder_layers": (1, 1), "decoder_layers": (1, 1)})
    task = tasks.build(changed)
    modules = task.init(nnx.Rngs(0)) | task.frozen(None)
    generator = tasks.VideoGenerator(task, modules)
    nothing = generator.generate({}, 5, seed=0, count=2)
    np.testing.assert_array_equal(generator.generate(task.unprompted(2), 5, seed=0), nothing)
    assert generator.generate({"label": np.array([1, 2])}, 5, seed=0).shape == nothing.shape == (2, 5, 16, 16, 3)
    with pytest.raises(UserError, match="equally many"):
        generator.generate({"label": np.array([1, 2])}, 5, seed=0, count=3)
    with pytest.raises(UserError, match="give count"):
        generator.generate({}, 5, seed=0)
