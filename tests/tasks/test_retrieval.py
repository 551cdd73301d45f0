"""Two towers: what they read, that every parameter learns, accumulation, warnings, and a run from the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

import videogen
from tests.training.test_accumulation import compare
from videogen import tasks
from videogen.configs import retrieval
from videogen.errors import UserError
from videogen.evaluation import protocols
from videogen.language.reducing import Reducing
from videogen.language.towers import read_at, unit_rows
from videogen.nn import MicroBatch
from videogen.reducers.base import Reducer
from videogen.runs.records import FILE, read_metrics
from videogen.training.loop import train


def tiny() -> ConfigDict:
    """Four frames of 8 x 8 pixels, towers of width 16."""
    config = retrieval.get_config("size=debug")
    config.data.clip.update({"frames": 4, "height": 8, "width": 8})
    config.data.batch_size = config.data.eval_batch_size = 4
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
    config.model.embed = 8
    config.model.video.encoder.update({"patch": 4, "transformer": sizes})
    config.model.video.transformer = {**sizes, "layers": 2}
    config.model.video.hooks = ({"layer": 0, "name": "bipartite", "removed": 6},)
    config.model.text.update({"width": 16, "layers": 1, "heads": 2})
    config.text.tokenizer = {"name": "bytes", "path": "", "length": 12, "vocabulary_size": 257}
    config.optimizer.towers.update({"name": "adamw", "learning_rate": 1e-2, "warmup": 0})
    return config


def batch(size: int = 4) -> dict:
    random = np.random.default_rng(0)
    ids = random.integers(1, 257, (size, 12)).astype(np.int32)
    # The first and the third caption are the same.
    ids[2] = ids[0]
    mask = np.arange(12)[None] < np.array([12, 5, 12, 9] * (size // 4))[:, None]
    video = random.integers(0, 256, (size, 4, 8, 8, 3), np.uint8)
    return {"video": video, "text_ids": ids, "text_mask": mask}


def built(config: ConfigDict) -> tuple:
    task = tasks.build(config)
    return task, task.init(nnx.Rngs(0))["towers"]


def test_texts_are_read_at_their_first_end_or_last_token():
    ids = jnp.array([[7, 9, 3, 9], [7, 4, 3, 5], [9, 1, 0, 0], [0, 0, 0, 0]])
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    assert read_at(ids, mask, 9).tolist() == [1, 2, 0, 0]
    assert read_at(ids, mask, None).tolist() == [3, 2, 1, 0]
    # An end id in the padding is none.
    assert read_at(jnp.array([[5, 9]]), jnp.array([[True, False]]), 9).tolist() == [0]


def test_unit_rows_have_a_gradient_where_there_is_nothing():
    assert unit_rows(jnp.array([[3.0, 4.0]]))[0].tolist() == pytest.approx([0.6, 0.8])
    slope = jax.grad(lambda x: unit_rows(x).sum())(jnp.zeros((1, 2)))
    assert bool(jnp.isfinite(slope).all())


@pytest.mark.slow
def test_padding_of_texts_and_frames_changes_nothing():
    _, towers = built(tiny())
    given = batch()
    ids, mask = jnp.asarray(given["text_ids"]), jnp.asarray(given["text_mask"])
    other = jnp.where(mask, ids, 3)
    np.testing.assert_allclose(towers.of_texts(other, mask), towers.of_texts(ids, mask), rtol=1e-5, atol=1e-6)
    config = tiny()
    config.model.video.hooks = ()
    _, towers = built(config)
    video, there = jax.random.uniform(jax.random.key(0), (2, 4, 8, 8, 3)), jnp.array([[True, True, True, False]] * 2)
    seconds = jnp.broadcast_to(jnp.arange(4) / 8, (2, 4))
    expected = towers.of_clips(video, seconds, there)
    np.testing.assert_allclose(
        towers.of_clips(video.at[:, 3].set(-1.0), seconds, there), expected, rtol=1e-5, atol=1e-6
    )
    assert float(jnp.abs(towers.of_clips(video, seconds) - expected).max()) > 1e-4
    np.testing.assert_allclose(jnp.linalg.norm(expected, axis=-1), 1.0, rtol=1e-5)


def test_reducers_between_layers():
    config = tiny()
    task, _ = built(config)
    # 4 frames of 4 patches, of which 6 went.
    assert task.bucket_tokens == [10]
    config.model.video.hooks = ()
    plain, towers = built(config)
    assert plain.bucket_tokens == [16]
    config.model.video.hooks = ({"layer": 0, "name": "bipartite", "removed": 0},)
    _, hooked = built(config)
    nnx.update(hooked, nnx.state(towers, nnx.Param))
    video, seconds = jax.random.uniform(jax.random.key(0), (2, 4, 8, 8, 3)), jnp.zeros((2, 4))
    np.testing.assert_allclose(hooked.of_clips(video, seconds), towers.of_clips(video, seconds), rtol=1e-4, atol=1e-5)


def test_rotary_angles_follow_the_tokens():
    config = tiny()
    config.model.video.transformer.rotary = True
    config.model.video.hooks = ({"layer": 0, "name": "medoids", "budget": 4, "segments": 2},)
    task, towers = built(config)
    assert task.bucket_tokens == [8] and towers.video.times is None
    video, seconds = jax.random.uniform(jax.random.key(0), (2, 4, 8, 8, 3)), jnp.broadcast_to(jnp.arange(4.0), (2, 4))
    # Only differences of times count.
    moved = towers.of_clips(video, seconds + 5.0)
    np.testing.assert_allclose(moved, towers.of_clips(video, seconds), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        (({"name": "bipartite", "removed": 2},), "every one says behind which layer it stands"),
        (({"layer": 0, "name": "bipartite", "removed": 2},) * 2, "two reducers stand behind layer 0"),
        (({"layer": 7, "name": "bipartite", "removed": 2},), "there is no layer 7"),
        (({"layer": 0, "name": "bipartite", "removed": 9},), "at most 8 can be merged away"),
        (({"layer": 0, "name": "bipartit", "removed": 2},), "unknown reducer 'bipartit'.*bipartite"),
    ],
)
def test_hooks_that_cannot_be_are_one_line(hooks, words):
    config = tiny()
    config.model.video.hooks = hooks
    with pytest.raises(UserError, match=words):
        tasks.build(config)


@pytest.mark.parametrize("changes", [{"buckets": ({"frames": 4, "batch_size": 2},)}, {"image_batch_size": 2}])
def test_clips_have_one_shape(changes):
    config = tiny()
    config.data.update(changes)
    with pytest.raises(UserError, match="leave data.buckets and images out"):
        tasks.build(config)


def test_a_reducer_that_needs_a_question_is_refused():
    class Asking(Reducer):
        needs = ("question",)

    with pytest.raises(UserError, match="Asking needs 'question', which layers do not have"):
        Reducing(Asking())


def test_the_scale_is_clamped_after_the_update():
    task, towers = built(tiny())
    towers.scale.logarithm.set_value(jnp.float32(5.0))
    task.updates["towers"]({"towers": towers}, {}, {}, jax.random.key(0), jnp.zeros((), int))
    assert float(towers.scale.logarithm.get_value()) == pytest.approx(np.log(100), rel=1e-6)


def test_a_run_at_chance_is_warned_of_after_the_warm_up():
    config = tiny()
    config.optimizer.towers.warmup = 300
    task, dead = tasks.build(config), {"contrastive": 1.39, "contrastive_chance": float(np.log(4))}
    assert task.warnings(dead, 300) == {} and set(task.warnings(dead, 301)) == {"contrastive"}
    assert task.warnings({**dead, "contrastive": 1.2}, 301) == {}


@pytest.mark.slow
def test_equal_captions_are_right_for_each_others_clips():
    task, towers = built(tiny())
    given = jax.tree.map(jnp.asarray, batch())
    _, outcome = task.loss({"towers": towers}, given, jax.random.key(0), jnp.zeros((), int), MicroBatch())
    clips, texts, right = task.embedded({"towers": towers}, [batch()])
    assert right.astype(int).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    logits = np.float64(outcome.metrics["contrastive_scale"]) * clips @ texts.T
    total = 0.0
    for x in (logits, logits.T):
        logs = x - np.log(np.exp(x).sum(1, keepdims=True))
        total -= np.sum(logs * right / right.sum(1, keepdims=True)) / 4
    assert float(outcome.metrics["loss"]) == pytest.approx(total / 2, rel=1e-4)


@pytest.mark.slow
def test_two_texts_of_a_clip():
    config = tiny()
    config.model.views, config.losses.contrastive.reads = ("text", "summary"), ("text", "summary")
    task, towers = built(config)
    given = jax.tree.map(jnp.asarray, batch())
    with pytest.raises(UserError, match="'summary'"):
        task.loss({"towers": towers}, given, jax.random.key(0), jnp.zeros((), int))
    summary = {"summary_ids": given["text_ids"], "summary_mask": given["text_mask"]}
    loss, _ = task.loss({"towers": towers}, given | summary, jax.random.key(0), jnp.zeros((), int))
    alone, other = built(tiny())
    expected, _ = alone.loss({"towers": other}, given, jax.random.key(0), jnp.zeros((), int))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_accumulation_is_the_step_of_the_whole_batch(count):
    config = tiny()
    # The first moments are then a tenth of the raw gradients.
    config.optimizer.towers.clip = 0.0
    metrics = compare(config, batch(8), count)
    assert float(metrics["contrastive_chance"]) == pytest.approx(np.log(8), rel=1e-6)


def test_the_parameters_of_the_published_towers():
    task = tasks.build(retrieval.get_config("size=paper"))
    towers = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))["towers"]
    counted = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(towers, nnx.Param)))
    # That of CLIP ViT-B/32 with its logit scale.
    assert counted == 151_277_313
    assert set(task.parts_of(task.config)) == {"clip_image", "clip_text"}


@pytest.mark.slow
def test_a_run_is_trained_resumed_loaded_and_measured(tmp_path):
    config = tiny()
    config.steps, config.eval_every, config.checkpoint_every, config.log_every = 3, 3, 3, 1
    train(config.copy_and_resolve_references(), tmp_path / "run")
    records = read_metrics(tmp_path / "run" / FILE)
    losses = [record["train/contrastive"] for record in records if "train/contrastive" in record]
    assert len(losses) == 3 and np.isfinite(losses).all()
    (evaluated,) = [record for record in records if "eval/text_to_video_recall_at_1" in record]
    # 8 held-out clips: the first ten are all of them.
    assert evaluated["eval/text_to_video_queries"] == 8 and evaluated["eval/video_to_text_recall_at_10"] == 100
    loaded = videogen.load(tmp_path / "run")
    fresh = jax.tree.leaves(nnx.state(tasks.build(config).init(nnx.Rngs(0))["towers"], nnx.Param))
    after = jax.tree.leaves(nnx.state(loaded.modules["towers"], nnx.Param))
    assert all(bool((a != b).any()) for a, b in zip(fresh, after, strict=True))
    record, pictures = protocols.evaluate(loaded, "retrieval", count=6, seed=0)
    json.dumps(record)
    found = record["metrics"]["retrieval"]
    assert found["text_to_video"]["queries"] == 6 and "retrieval" in record["protocol"]["measured"]
    assert "uses all queries of the test set" in found["video_to_text_dual_softmax"]["note"]
    assert len(pictures["videos"]) == len(pictures["correct"]) == 6
    with pytest.raises(UserError, match="use --protocol=retrieval"):
        protocols.evaluate(loaded, "reconstruction", count=6, seed=0)


@pytest.mark.slow
def test_the_command_trains(run_command, tmp_path):
    settings = {"steps": 3, "eval_every": 3, "checkpoint_every": 3, "data.batch_size": 4, "data.eval_batch_size": 4}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    done = run_command("train", "--config=retrieval:size=debug", f"--workdir={tmp_path}/run", *flags)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_published_towers_begin_as_their_folder_says(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    text = {**sizes, "vocab_size": 300, "max_position_embeddings": 16, "eos_token_id": 256}
    published = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    ).eval()
    published.save_pretrained(tmp_path / "clip")
    config = retrieval.get_config("size=paper,recipe=tempme")
    config.data.source.name = "shapes"
    config.data.clip.update({"frames": 4, "height": 8, "width": 8, "fps": 8.0})
    config.data.batch_size = config.data.eval_batch_size = 4
    config.data.workers = 0
    config.parallel.dtype = "float32"
    config.model.embed = 8
    config.model.video.reduction = {"name": "progressive_merging", "removed": 1, "layers": 1, "joins": (4,)}
    config.text.tokenizer = {"name": "bytes", "path": "", "length": 16, "vocabulary_size": 257}
    for part in ("clip_image", "clip_text"):
        config.parts[part].checkpoint = str(tmp_path / "clip")
    config.steps = config.eval_every = config.checkpoint_every = 2
    train(config, tmp_path / "run")
    towers = videogen.load(tmp_path / "run").modules["towers"]
    network = towers.text.network
    kernel = published.text_projection.weight.detach().numpy().T
    np.testing.assert_allclose(network.projection.kernel.get_value(), kernel, rtol=1e-6)
    assert network.end == 256
    table = published.vision_model.embeddings.position_embedding.weight.detach().numpy()
    np.testing.assert_allclose(towers.video.network.positions.table.get_value(), table, rtol=1e-6)
    # What is trained has moved: places of joined frames, and the low-rank updates.
    assert towers.video.positions.shape == (4, 16) and float(jnp.abs(towers.video.positions.get_value()).max()) > 0
    for tower in (towers.video, towers.text):
        update = tower.network.transformer.stack.layers.attention.query_key_value.lora
        assert float(jnp.abs(update.kernel()).max()) > 0
