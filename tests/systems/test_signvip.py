"""Every size of the SignViP config, its stages, and the chain from texts to videos."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import videogen
from launch import local, local_report
from videogen import tasks
from videogen.configs import signvip
from videogen.errors import UserError
from videogen.evaluation.protocols import evaluate
from videogen.inference.sampling import draw_videos
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape
from videogen.tasks.signs import exchanged
from videogen.training.loop import train
from videogen.training.state import parameter_count


@functools.cache
def task_of(argument: str) -> tasks.Task:
    return tasks.build(signvip.get_config(argument))


@functools.cache
def model_of(argument: str) -> nnx.Module:
    (module,) = nnx.eval_shape(lambda: task_of(argument).init(nnx.Rngs(0))).values()
    return module


def count(module: nnx.Module) -> int:
    return parameter_count(nnx.state(module, nnx.Param))


def convolution(inputs: int, outputs: int, side: int) -> int:
    return inputs * outputs * side**2 + outputs


def test_paper_sizes():
    """The encoder of maps by hand; the count of the denoiser is ours."""
    model = model_of("stage=diffusion,size=paper")
    tower = sum(convolution(a, b, 3) for a, b in ((3, 16), (16, 32), (32, 96), (96, 256)))
    gate = convolution(512, 256, 3) + convolution(256, 2, 7)
    assert count(model.encoder) == 2 * tower + gate == 1_713_538
    assert (model.grid, model.channels, model.encoder.width) == ((24, 34, 28), 4, 512)
    assert model.denoiser.stack.layers.cross_attention.key_value.kernel.shape == (28, 768, 2 * 1152)
    assert count(model) == 801_577_874
    assert count(model_of("stage=codec,size=paper")) == 190_804_484
    assert count(model_of("stage=translator,size=paper")) == TRANSLATOR


TRANSLATOR = 67_666_884


def test_the_published_translator():
    """8 layers of 512 channels, 12 branches of one layer, 400 frames and the text, 625 ids and two more for each."""
    task, model = task_of("stage=translator,size=paper"), model_of("stage=translator,size=paper").generator
    assert task.layout.only.sides == (("time", 400), ("query", 12)) and task.layout.only.vocabulary == (625,)
    assert (model.tower.depth, model.branches.depth, model.width, model.mask.size) == (8, 12, 512, 128)
    assert model.head.kernel.shape == (12, 512, 627) and model.token_drop == 0.4
    assert model.first.kernel.shape == (512, 512) and model.passes(model.grid) == 400
    block = 4 * 512**2 + 2 * 512 * 2048
    table, combiner = 12 * 625 * 43, (12 * 43 + 1) * 512
    parts = {"tower and branches": 20 * block, "heads": 12 * 512 * 628, "input": table + combiner, "text": 513 * 512}
    # Norms, biases and the null vector are the rest.
    assert sum(parts.values()) == pytest.approx(count(model), rel=2e-3)


def test_the_published_settings():
    config = signvip.get_config("stage=diffusion,size=paper")
    flow = config.model.denoising
    assert (flow.steps, flow.solver.name, flow.window, flow.overlap) == (50, "ddim", 24, 4)
    assert tuple(flow.guidance) == ((("reference",), 3.5),) and config.augmentation == 1e-3
    stages = {s: signvip.get_config(f"stage={s},size=paper") for s in ("diffusion", "codec", "translator")}
    rates = {s: next(iter(c.optimizer.values())).learning_rate for s, c in stages.items()}
    assert rates == {"diffusion": 1e-5, "codec": 5e-5, "translator": 1e-6}
    assert [c.data.batch_size for c in stages.values()] == [2, 16, 16] and {c.steps for c in stages.values()} == {
        50_000
    }


@pytest.mark.parametrize("size", ["debug", pytest.param("small", marks=pytest.mark.slow)])
def test_smaller_sizes_build(size):
    for stage in signvip.STAGES:
        assert count(model_of(f"stage={stage},size={size}")) > 2e5
        clip = signvip.get_config(f"stage={stage},size={size}").data.clip
        assert (clip.frames, clip.height, clip.width) == signvip.CLIPS[size]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), [("diffusion", "augmentation"), ("translator", "noise")])
def test_every_variant_of_the_sweeps_builds(stage, name):
    for change in signvip.SWEEPS[name]:
        config = signvip.get_config(f"stage={stage},size=debug")
        config.update_from_flattened_dict(change)
        tasks.build(config)


def test_parts_of_a_local_run_come_from_the_stages_before(tmp_path):
    stages = {stage.name: stage for stage in local.plan("signvip:size=debug", tmp_path, [])}
    assert list(stages) == ["vae", "diffusion", "codec", "translator"]
    wanted = {"diffusion": ("vae", "vae"), "codec": ("diffusion", "diffusion"), "translator": ("tokenizer", "codec")}
    for stage, (part, origin) in wanted.items():
        assert stages[stage].config.parts[part].checkpoint == str(tmp_path / origin)
        assert "--protocol=signs" in stages[stage].evaluate


def test_the_report_of_a_local_run_shows_what_was_read(tmp_path):
    stages = local.plan("signvip:size=debug", tmp_path, [])
    clips = np.zeros((2, 4, 16, 16, 3), np.uint8)
    for stage in stages[1:]:
        stage.clips.parent.mkdir(parents=True)
        (stage.directory / "metrics.jsonl").write_text('{"step": 2, "train/loss": 1.0}\n')
        np.savez(stage.clips, originals=clips, reconstructions=clips, captions=np.array(["a", "b"]))
    *_, shown = local_report.generator_sections(stages[3], 8.0, True)
    assert shown.title == "Translator: signs from texts" and shown.render().count("<video") == 2
    *_, shown = local_report.tokenizer_sections(stages[1], 8.0, True)
    assert shown.render().count("<video") == 2
    read = {"signs": {"words": 0.75, "sentences": 0.5, "appearance": 1.0}}
    metrics = {"translator": read, "protocol": {"translator": {"name": "signs", "held_out": True}}}
    items = local_report.headline(stages[3:], metrics | {"seconds": {"total": 60.0}, "hardware": "h"}).blocks[0].items
    assert [(label, value) for label, value, _ in items[:3]] == [
        ("words of signers", "75%"),
        ("sentences of signers", "50%"),
        ("appearance of signers", "100%"),
    ]


def test_maps_of_some_frames_are_those_of_others():
    """Each frame by the share: none at 0, all at 1, of frames of the batch; half of them at 0.5."""
    maps = jnp.arange(40 * 50.0).reshape(40, 50, 1, 1, 1)
    key, micro = jax.random.key(0), MicroBatch()
    found = exchanged(maps, 0.5, key, micro)
    assert abs(float((found != maps).mean()) - 0.5) < 0.05
    assert set(np.unique(found)) <= set(np.unique(maps))
    np.testing.assert_array_equal(exchanged(maps, 0.0, key, micro), maps)
    assert float((exchanged(maps, 1.0, key, micro) != maps).mean()) > 0.98
    # An example is drawn by its place in the whole batch.
    second = MicroBatch(1, 2)
    other = exchanged(maps[1::2], 0.5, key, second) != maps[1::2]
    np.testing.assert_array_equal(other, (found != maps)[1::2])


def test_clips_without_maps_are_refused():
    task = task_of("stage=diffusion,size=debug")
    video = jnp.zeros((1, 2, 8, 8, 3), jnp.uint8)
    with pytest.raises(UserError, match="set data.source.maps=True"):
        task.encoded(None, {"video": video}, video, jax.random.key(0), MicroBatch())


def narrow(stage: str, **parts: str):
    """The debug config with networks of a few channels, trained for two steps."""
    config = signvip.get_config(f"stage={stage},size=debug")
    clip, network = (4, 16, 16), {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    config.data.clip.update(dict(zip(("frames", "height", "width"), clip, strict=True)))
    config.data.batch_size = config.data.eval_batch_size = 2
    if stage == "vae":
        config.model.update({"width": 4, "multipliers": (1, 1, 1)})
    if stage == "diffusion":
        config.model.update({"clip": clip, "context_width": 8})
        config.model.encoder.channels = (4, 4, 4)
        config.model.denoiser.transformer = network
        config.model.denoising.update({"steps": 2, "window": 3, "overlap": 1, "guidance": ((("reference",), 1.5),)})
    if stage == "codec":
        config.model.update({"clip": clip, "width": 8})
    if stage == "translator":
        config.model.transformer = network
        config.text.encoder.update({"width": 16, "layers": 1, "heads": 2})
    for group in config.optimizer.values():
        group.warmup = 0
    config.steps = config.eval_every = config.checkpoint_every = config.log_every = 2
    for part, directory in parts.items():
        config.parts[part].checkpoint = str(directory)
    return config


def weights(module: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(module))]


@pytest.mark.slow
def test_the_chain_from_texts_to_videos(tmp_path):
    """Property 8 and users' case 12: every later stage leaves the weights before it equal to the bit, the judge reads
    clips of all three stages, and a sample is drawn of a text and a picture."""
    train(narrow("vae"), tmp_path / "vae")
    train(narrow("diffusion", vae=tmp_path / "vae"), tmp_path / "diffusion")
    train(narrow("codec", diffusion=tmp_path / "diffusion"), tmp_path / "codec")
    train(narrow("translator", tokenizer=tmp_path / "codec"), tmp_path / "translator")
    runs = {name: videogen.load(tmp_path / name) for name in signvip.STAGES}
    whole = runs["translator"].modules["tokenizer"]
    kept = {"vae": whole.model.vae, "diffusion": whole.model.tokenizer, "codec": whole.tokenizer}
    for name, module in kept.items():
        for before, after in zip(weights(runs[name].trained), weights(module), strict=True):
            np.testing.assert_array_equal(before, after)
    for name in ("diffusion", "codec", "translator"):
        record, pictures = evaluate(runs[name], "signs", 3, 0)
        found = record["metrics"]
        assert set(found["signs"]) == {"words", "sentences", "appearance"} and found["clips"] == 3
        assert pictures["reconstructions"].shape == (3, 4, 16, 16, 3)
    with pytest.raises(UserError, match="use --protocol=signs"):
        evaluate(runs["codec"], "reconstruction", 2, 0)
    picture = tmp_path / "signer.png"
    from PIL import Image

    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(picture)
    prompt = ["a signer in red signs hello then go"]
    with_picture = draw_videos(runs["translator"], prompt, seed=0, image=str(picture))
    assert with_picture.shape == (1, 4, 16, 16, 3)
    assert (with_picture != draw_videos(runs["translator"], prompt, seed=0)).any()
    assert draw_videos(runs["translator"], prompt, seed=0, frames=3).shape == (1, 3, 16, 16, 3)
    with pytest.raises(UserError, match="takes no image, video or story"):
        draw_videos(runs["translator"], prompt, seed=0, frames=9)
    assert runs["translator"].coder.drawn_with["guidance"] == [{"dropped": ["reference"], "scale": 1.5}]
    assert runs["translator"].coder.layout(VideoShape(4, 16, 16)).only.sides == (("time", 4), ("query", 4))
