"""Training on given pixels: the mixture, what is shown, completion, and the protocol that judges it."""

import time
import types
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from videogen import data, tasks
from videogen.conditioning import NULL_LABEL, SHORT_NAMES, TASKS, Conditioning
from videogen.configs import magvit, nbp
from videogen.data import shapes_source
from videogen.data.inputs import HeldOut
from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.evaluation import completion, protocols
from videogen.evaluation.prompts import unseen_prompts
from videogen.inference import sampling


def config(**weights: float):
    config = magvit.get_config("stage=generator,size=debug")
    config.data.clip.update({"frames": 4, "height": 16, "width": 16})
    config.parts.tokenizer.model.update({"width": 8, "multipliers": (1, 1, 1), "norm_groups": 2})
    config.parts.tokenizer.model.quantizer.size = 32
    config.model.transformer.update({"width": 32, "layers": 1, "heads": 2, "mlp_width": 64})
    config.text.encoder.update({"width": 32, "heads": 2})
    config.sampler.update({"steps": 3})
    config.tasks.update(weights)
    return config


@pytest.fixture(scope="module")
def system():
    task = tasks.build(config(inpaint_dynamic=0))
    return task, task.init(nnx.Rngs(0)) | task.frozen(None)


def batch(count: int) -> dict[str, np.ndarray]:
    source = data.build({"name": "shapes"}, clip=data.Clip(4, 16, 16, 8.0), seed=0, split="train")
    ids = np.ones((count, 24), np.int32)
    video = np.stack([source[i]["video"] for i in range(count)])
    return {"video": video, "text_ids": ids, "text_mask": np.ones((count, 24), bool)}


@pytest.mark.slow
def test_the_mixture_trains_and_is_evaluated(system):
    task, modules = system
    loss, outcome = task.generator_loss(modules, batch(4), jax.random.key(0), jnp.zeros((), int))
    assert np.isfinite(loss) and outcome.metrics["loss"] == loss
    scores = task.evaluate(modules, [batch(4)], seed=0)
    assert scores == task.evaluate(modules, [batch(4)], seed=0)
    assert {"loss", "accuracy", "mask_ratio"} == scores.keys()


def test_one_pass_of_the_text_encoder_gives_each_batch_its_own(system):
    task, modules = system
    ids = np.arange(10 * 24).reshape(10, 24) % 500
    mask = np.arange(24) < np.arange(1, 11)[:, None]
    batches = [{"text_ids": ids[part], "text_mask": mask[part]} for part in (slice(6), slice(6, 10))]
    encoder = modules["generator"].text_encoder
    for prepared, one in zip(task.prepare({"text_encoder": encoder}, batches), batches, strict=True):
        together, alone = task.conditioning(modules, prepared), task.conditioning(modules, one)
        np.testing.assert_array_equal(together.text.mask, one["text_mask"])
        np.testing.assert_allclose(together.text.features, alone.text.features, atol=1e-5)


def test_tasks_are_drawn_by_weight(system, monkeypatch):
    task, modules = system
    seen = []

    def given(modules, video, drawn):
        seen.append(np.asarray(drawn))
        return None, None

    def loss(codes, conditioning, key, **shown):
        return jnp.zeros(()), {}

    monkeypatch.setattr(task, "given", given)
    generator = SimpleNamespace(
        generator=SimpleNamespace(loss=loss, statistics=None), text_encoder=modules["generator"].text_encoder
    )
    many = {"tokens/video": jnp.zeros((4000, 2, 4, 4, 1), int), "video": np.zeros((4000, 2, 1, 1, 3), np.uint8)}
    monkeypatch.setattr(task, "conditioning", lambda modules, batch: Conditioning(label=jnp.zeros(4000, int)))
    task.generator_loss({"generator": generator}, many, jax.random.key(0), jnp.zeros((), int))
    shares = np.bincount(seen[0], minlength=len(TASKS)) / 4000
    np.testing.assert_allclose(shares, task.tasks, atol=0.03)
    assert shares[list(TASKS).index("inpaint_dynamic")] == 0


def test_only_told_tasks_see_the_label(system):
    task, _ = system
    told = task.conditioning_of_tasks(Conditioning(label=jnp.arange(10)), jnp.arange(10)).label
    assert [label != NULL_LABEL for label in told.tolist()] == [t.uses_conditioning for t in TASKS.values()]


def test_completion_depends_on_given_pixels_only(system):
    generator, videos = tasks.VideoGenerator(*system), batch(3)["video"]
    names = ["frame_prediction", "inpaint_central", "outpaint_vertical"]
    drawn, filled = generator.complete(names, videos, seed=0)
    region = np.stack([TASKS[name].region(4, 16, 16) for name in names])[..., None]
    np.testing.assert_array_equal(np.where(region, filled, 0), np.where(region, videos, 0))
    other = np.where(region, videos, 255 - videos)
    np.testing.assert_array_equal(generator.complete(names, other, seed=0)[0], drawn)
    assert (generator.complete(names, videos, seed=1)[0] != drawn).any()
    assert drawn.shape == videos.shape and drawn.dtype == np.uint8


def test_given_pixels_are_those_of_the_video_unless_they_are_not_to_be_pasted(system):
    generator, videos = tasks.VideoGenerator(*system), batch(3)["video"]
    names = ["inpaint_central", "outpaint_dynamic", "interpolation"]
    region = np.stack([TASKS[name].region(4, 16, 16) for name in names])[..., None]
    pasted, plain = (generator.complete(names, videos, seed=0, paste=paste)[0] for paste in (True, False))
    np.testing.assert_array_equal(pasted, np.where(region, videos, plain))
    assert (np.where(region, plain, 0) != np.where(region, videos, 0)).any()


@pytest.mark.slow
def test_tasks_that_are_not_told_train_and_draw_without_text(system, monkeypatch):
    """What reaches the generator in training, and what decides a completion."""
    task, modules = system
    seen, generator = [], modules["generator"].generator
    original = type(generator).loss

    def record(self, codes, conditioning, key, **rest):
        seen.append((np.asarray(conditioning.text.mask).any(-1), np.asarray(rest["given"].task)))
        return original(self, codes, conditioning, key, **rest)

    monkeypatch.setattr(type(generator), "loss", record)
    task.generator_loss(modules, batch(16), jax.random.key(0), jnp.zeros((), int))
    ((told, drawn),) = seen
    np.testing.assert_array_equal(told, [list(TASKS.values())[task].uses_conditioning for task in drawn])
    assert told.any() and not told.all()
    # Text that is as strong as an untrained generator needs it to be.
    encoder = modules["generator"].text_encoder.embedding.table
    weak = encoder.get_value()
    try:
        encoder.set_value(weak * 500)
        sampler, videos = tasks.VideoGenerator(task, modules, {"guidance_scale": 1.0}), batch(1)["video"]
        stories = [{"text_ids": np.full((1, 24), i, np.int32), "text_mask": np.ones((1, 24), bool)} for i in (1, 9)]
        for name in ("inpaint_central", "conditional_generation"):
            one, other = (sampler.complete([name], videos, 0, story, paste=False)[0] for story in stories)
            assert (one != other).any() == TASKS[name].uses_conditioning
    finally:
        encoder.set_value(weak)


@pytest.mark.parametrize(("short", "name"), SHORT_NAMES.items())
def test_a_file_is_completed_by_the_short_name_of_a_task(system, tmp_path, short, name):
    task, modules = system
    loaded = types.SimpleNamespace(
        config=task.config,
        task=task,
        modules=modules,
        generator=lambda sampler, tile: tasks.VideoGenerator(task, modules),
    )
    write_video(tmp_path / "clip.mp4", batch(1)["video"][0], 8.0)
    drawn, compared = sampling.complete_video(loaded, short, str(tmp_path / "clip.mp4"), [], seed=0)
    assert drawn.shape == (1, 4, 16, 16, 3)
    np.testing.assert_array_equal(
        compared, sampling.complete_video(loaded, name, str(tmp_path / "clip.mp4"), [], seed=0)[1]
    )
    with pytest.raises(UserError, match=f"{name} takes no prompt"):
        sampling.complete_video(loaded, short, str(tmp_path / "clip.mp4"), ["a red circle"], seed=0)


def test_what_cannot_be_completed_is_refused(system):
    generator, videos = tasks.VideoGenerator(*system), batch(1)["video"]
    with pytest.raises(UserError, match="not trained on inpaint_dynamic"):
        generator.complete(["inpaint_dynamic"], videos, seed=0)
    with pytest.raises(UserError, match="tasks take"):
        generator.complete(["interpolation"], videos[:, :2], seed=0)


def test_pictures_show_every_task(system):
    task, modules = system
    (picture,) = task.pictures(modules, batch(4), seed=0)
    assert picture.captions == [name for name in TASKS if name != "inpaint_dynamic"]
    assert all(clip.shape == (4, 16, 16, 3) for row in picture.rows for clip in row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"inpaint_centre": 1.0}}, "unknown task 'inpaint_centre'"),
        ({"tasks": {"interpolation": -1.0}}, "negative"),
        ({"data": {"source": {"name": "tokens"}}}, "token cache"),
        ({"model": nbp.get_config("stage=generator,size=debug").model}, "takes no given pixels"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    changed = config()
    with changed.unlocked():
        changed.update(change)
    with pytest.raises(UserError, match=message):
        tasks.build(changed)


def test_without_weights_clips_are_drawn_from_text_alone():
    task = tasks.build(config(**dict.fromkeys(TASKS, 0)))
    assert task.tasks is None
    assert task.init(nnx.Rngs(0))["generator"].generator.task is None


def test_nearest_given_pixel_is_in_time_first():
    region = np.zeros((5, 4, 6), bool)
    region[0, 1, 1] = region[4, 1, 1] = region[2, 3, 5] = True
    time, row, column = completion.nearest_given(region)
    assert (time[1, 1, 1], time[3, 1, 1]) == (0, 4) and (row[1, 1, 1], column[1, 1, 1]) == (1, 1)
    assert (time[4, 3, 5], row[4, 3, 5], column[4, 3, 5]) == (2, 3, 5)
    assert (time[0, 0, 0], row[0, 0, 0], column[0, 0, 0]) == (0, 1, 1)


def test_the_protocol_compares_each_task_with_copies(system, monkeypatch):
    task, modules = system
    loaded = types.SimpleNamespace(
        config=task.config, task=task, modules=modules, text=None, generator=lambda: tasks.VideoGenerator(task, modules)
    )
    still = np.full((3, 4, 16, 16, 3), 90, np.uint8)
    samples = [{"video": v, "caption": ""} for v in still]
    monkeypatch.setattr(protocols, "held_out", lambda source, count, text: HeldOut(samples, 3, {}))
    monkeypatch.setattr(completion, "_story", lambda loaded, samples: task.unprompted(len(samples)))
    metrics, pictures = protocols.completion(protocols.Evaluation(loaded, 3, 0))
    assert metrics["clips"] == 3 and "inpaint_dynamic" not in metrics["tasks"] and len(metrics["tasks"]) == 9
    assert "copy" not in metrics["tasks"]["conditional_generation"]
    # Nothing moves and nothing has a form: a copy is the clip.
    assert all(m["copy"] == 100 > m["psnr"] for name, m in metrics["tasks"].items() if "copy" in m)
    assert len(pictures["videos"]) == len(pictures["captions"]) == 27


@pytest.mark.parametrize("split", ["eval", "composition"])
def test_prompts_never_occur_in_training_and_there_are_only_so_many(split):
    clip = {"frames": 1, "height": 16, "width": 16, "fps": 8.0}
    loaded = types.SimpleNamespace(config=ConfigDict({"data": {"source": {"name": "shapes"}, "clip": clip}, "seed": 0}))
    prompts = unseen_prompts(loaded, 200, split)
    assert len(set(prompts)) == 200
    assert {shapes_source.split_of(shapes_source.parse(prompt)) for prompt in prompts} == {split}
    known = len(data.build({"name": "shapes"}, clip=data.Clip(1, 16, 16), seed=0, split=split).captions())
    assert len(unseen_prompts(loaded, known, split)) == known
    begin = time.process_time()
    with pytest.raises(UserError, match=f"there are {known} different prompts"):
        unseen_prompts(loaded, known + 1, split)
    assert time.process_time() - begin < 2
