"""Runs of video-language models: trained, resumed, exported; frozen tokenizers and encoders; published decoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import videogen
from tests.tasks.test_understanding import batch, loss, scored, tiny
from videogen import tasks
from videogen.configs import language, tokenflow
from videogen.data.text import ByteTokenizer
from videogen.errors import UserError
from videogen.tasks.base import to_video
from videogen.training.loading import export_safetensors
from videogen.training.loop import train

pytestmark = pytest.mark.slow


def stage(**changes):
    config = tiny(**{"text.tokenizer.length": 40, "data.source.kinds": ("colour", "form"), **changes})
    config.steps, config.eval_every, config.checkpoint_every, config.log_every = 4, 4, 2, 1
    return config


def arrays(run):
    return jax.tree.leaves(nnx.state(run.modules["language"]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of four steps, and one that stopped after two; both draw what they see of a clip."""
    folder = tmp_path_factory.mktemp("understanding")
    changes = {"model.vision.frames": (2, 3), "model.vision.subsets": (6,)}
    run = train(stage(**changes), folder / "straight")
    assert {"loss", "chosen", "chance", "written", "chosen/colour"} <= set(
        run.task.evaluate(videogen.load(folder / "straight").modules, run.start.evaluated.batches(4, run.start.text), 0)
    )
    half = stage(**changes)
    half.steps = 2
    train(half, folder / "resumed")
    train(stage(**changes), folder / "resumed")
    return folder


def test_a_resumed_run_is_the_same_to_the_bit_and_so_is_its_export(runs):
    straight, resumed = (videogen.load(runs / name) for name in ("straight", "resumed"))
    for a, b in zip(arrays(straight), arrays(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    export_safetensors(straight, runs / "export")
    for a, b in zip(arrays(straight), arrays(videogen.load(runs / "export")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_preferring_begins_at_the_run_that_it_is_compared_with(runs):
    config = stage()
    config.losses.preference = {"name": "preference", "beta": 0.1, "weight": 1.0}
    config.parts.reference = {"checkpoint": str(runs / "straight"), "model": {}, "hash": ""}
    config.start_from.run = str(runs / "straight")
    config.steps = 1
    run = train(config, runs / "preferring")
    lines = (runs / "preferring" / "metrics.jsonl").read_text()
    assert '"train/preference": 0.69314' in lines and run.config.parts.reference.hash
    export_safetensors(videogen.load(runs / "preferring"), runs / "preferred")
    assert set(videogen.load(runs / "preferred").modules) == {"language"}


def parted(part: dict, encoder: dict, clip: tuple[int, int, int], name: str = "tokenizer", **changes):
    config = tiny(**{"model.vision.reducers": (), **changes})
    config.data.clip.update(dict(zip(("frames", "height", "width"), clip, strict=True)))
    config.model.vision.encoder = encoder
    config.parts[name] = {"checkpoint": "", "model": part, "hash": ""}
    task = tasks.build(config)
    task.texts = ByteTokenizer(5)
    modules = task.init(nnx.Rngs(0)) | {name: task.structure_of_part(name)}
    rng = np.random.default_rng(0)
    examples = {**batch(2), "video": rng.integers(0, 256, (2, *clip, 3)).astype(np.uint8)}
    examples["times"] = np.broadcast_to(np.arange(clip[0], dtype=np.float32) / 4, (2, clip[0]))
    return task, modules, examples


def learns(task, modules, examples):
    (value, metrics), gradient = loss(task, modules, examples, gradient=True)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient) if leaf.dtype == jnp.float32)
    return metrics


def test_a_row_of_continuous_tokens_is_read():
    config = language.continuous("debug")
    network = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    config.update({"clip": (2, 8, 8), "patch": (2, 4, 4), "queries": 4, "encoder": network, "decoder": network})
    task, modules, examples = parted(config.to_dict(), {"name": "tokens"}, (2, 8, 8))
    assert task.reader.features.sides == (1, 1, 4) and learns(task, modules, examples)["visual_kept"] == 4
    # A token cache gives the same.
    tokens = modules["tokenizer"].tokenize(to_video(jnp.asarray(examples["video"])))
    cached = {name: array for name, array in examples.items() if name != "video"}
    cached |= {"tokens/video": np.asarray(tokens.only.values)}
    np.testing.assert_allclose(loss(task, modules, cached)[0], loss(task, modules, examples)[0], rtol=1e-5)
    # Statistics of the tokens are measured, and moved by the update.
    statistics = modules["language"].vision.encoder.statistics
    outcome = task.loss(modules, examples, jax.random.key(0), jnp.zeros((), int))[1]
    task.updates["language"](modules, outcome.sums, {}, jax.random.key(0), jnp.zeros((), int))
    mean = tokens.only.values.reshape(8, -1).mean(0)
    np.testing.assert_allclose(statistics.mean.get_value(), mean, rtol=1e-4, atol=1e-6)


def flow():
    return tokenflow.get_config("stage=tokenizer,size=debug").model.to_dict()


def test_halves_of_codes_are_read_by_name():
    """TokenFlow: the semantic and the pixel half side by side are the whole."""
    found = {}
    for reading in ("semantic", "pixel", ""):
        task, modules, examples = parted(flow(), {"name": "tokens", "reading": reading}, tuple(flow()["clip"]))
        clips = task.reader.clips(modules, examples)
        found[reading] = np.asarray(clips.inputs)
    np.testing.assert_array_equal(np.concatenate([found["semantic"], found["pixel"]], axis=-1), found[""])
    learns(task, modules, examples)
    with pytest.raises(UserError, match="the tokenizer has no reading 'semantics'; did you mean 'semantic'"):
        parted(flow(), {"name": "tokens", "reading": "semantics"}, tuple(flow()["clip"]))


def test_a_frozen_image_encoder_sees_every_frame():
    section = {"name": "dinov2", "width": 16, "layers": 1, "heads": 2, "hidden": 32, "patch": 4, "image_size": 8}
    task, modules, examples = parted(section, {"name": "frozen", "side": 8}, (2, 8, 8), "encoder")
    assert task.reader.features.sides == (2, 2, 2) and task.parts_of(task.config) == {"encoder": "published"}
    metrics = learns(task, modules, examples)
    assert metrics["visual_kept"] == 8


def test_a_published_decoder_answers_with_low_rank_updates_and_hooks():
    model = {"vocabulary_size": 257, "width": 16, "layers": 3, "heads": 2, "hidden": 16, "key_value_heads": 1}
    config = tiny()
    config.model.backbone = {
        **{"name": "decoder", "model": {**model, "head_width": 8}, "lora": {"rank": 2, "alpha": 2}},
        "hooks": ({"layer": 0, "name": "merge_attended", "ratio": 0.5}, {"layer": 1, "name": "beside"}),
    }
    task = tasks.build(config)
    task.texts = ByteTokenizer(5)
    modules = task.init(nnx.Rngs(0))
    _, nats, counted, _ = scored(task, modules, batch())
    said = task.answering(modules).run(batch())
    np.testing.assert_allclose(said["nats"], np.where(counted, nats, 0).sum(1), rtol=2e-5)
