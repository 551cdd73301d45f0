"""One transformer over clips and words: what is masked, what the passes compare, what even heads cost, and a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

import videogen
from tests.training.test_accumulation import compare
from videogen import losses, tasks
from videogen.configs import all_in_one, violet
from videogen.errors import UserError
from videogen.evaluation import protocols
from videogen.losses.masked_modelling import block_or_attended_mask
from videogen.nn import MicroBatch, named_key
from videogen.runs.records import FILE, read_metrics
from videogen.tasks.fused_settings import digests
from videogen.training.loop import train

KEY, STEP = jax.random.key(3), jnp.zeros((), int)
LAYERS = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}


def shortened(config: ConfigDict, clip: tuple[int, int, int]) -> ConfigDict:
    config.data.clip.update(dict(zip(("frames", "height", "width"), clip, strict=True)))
    config.data.batch_size = config.data.eval_batch_size = 4
    config.text.tokenizer = {"name": "bytes", "path": "", "length": 12, "vocabulary_size": 257}
    config.optimizer.model.update({"name": "adamw", "learning_rate": 1e-2, "warmup": 0})
    return config


def tiny(clip: tuple[int, int, int] = (2, 12, 12), **masking) -> ConfigDict:
    """VIOLET on patches of 6 pixels."""
    config = shortened(violet.get_config("size=debug"), clip)
    config.model.network.encoder = {"name": "patches", "patch": 6, "transformer": LAYERS, "temporal": 0}
    config.model.network.bert = {"width": 16, "layers": 1, "heads": 2, "hidden": 32}
    config.model.masking.update(masking)
    config.parts.tokenizer.model.update({"width": 8, "norm_groups": 2})
    return config


def tiny_shared(**losses_) -> ConfigDict:
    config = shortened(all_in_one.get_config("size=debug"), (2, 12, 12))
    config.model.network.transformer = LAYERS
    config.model.embed = 8
    config.losses.contrastive.weight = losses_.get("contrastive", 0.0)
    return config


def batch(size: int = 4, clip: tuple[int, int, int] = (2, 12, 12)) -> dict:
    random = np.random.default_rng(0)
    ids = random.integers(1, 257, (size, 12)).astype(np.int32)
    # The first and the third caption are the same.
    ids[2] = ids[0]
    mask = np.arange(12)[None] < np.array([12, 5, 12, 9] * (size // 4))[:, None]
    video = random.integers(0, 256, (size, *clip, 3), np.uint8)
    return {"video": video, "text_ids": ids, "text_mask": mask}


NETWORKS: dict[str, tuple] = {}
"""Networks by what they are made of; masks and negatives change none of it."""


def built(config: ConfigDict) -> tuple:
    task = tasks.build(config)
    made_of = str((config.model.network, config.data.clip, sorted(task.wanted)))
    if made_of not in NETWORKS:
        NETWORKS[made_of] = nnx.split(nnx.Dict({**task.init(nnx.Rngs(0)), **task.frozen(None)}))
    return task, dict(nnx.merge(*NETWORKS[made_of]).items())


def outputs(task, modules, given, micro=MicroBatch()):
    split = nnx.split(nnx.Dict(modules))

    @jax.jit
    def run(state, given):
        return task.forward(dict(nnx.merge(split[0], state).items()), given, KEY, micro)

    return run(split[1], jax.tree.map(jnp.asarray, given))


def values(task, modules, found) -> dict:
    return losses.combine(task.terms, modules, found, KEY, STEP, MicroBatch())[1]


@pytest.mark.slow
def test_counts_are_of_patches_alone():
    """49 patches and [CLS] at 15 %: 7 and not 8, in boxes and by attention."""
    for blocks in (0.0, 1.0):
        config = tiny((1, 42, 42), blocks=blocks)
        config.losses.matching.weight = config.losses.words.weight = 0.0
        task, modules = built(config)
        masked = outputs(task, modules, batch(clip=(1, 42, 42))).features["masked"]
        assert masked["places"].shape == (4, 49) and masked["places"].sum(1).tolist() == [7] * 4
        assert "words" not in masked


def test_masked_places_and_words_of_both_passes():
    task, modules = built(tiny(video=0.5, words=0.25))
    given = batch()
    found = outputs(task, modules, given)
    assert set(found.passes) == {"words", "codes", "matching"}
    places, words = found.features["masked"]["places"], found.features["masked"]["words"]
    assert places.sum(1).tolist() == [4] * 4
    # round(0.25 · 12, 5, 12, 9), and nothing of the padding.
    assert words.sum(1).tolist() == [3, 1, 3, 2] and not (np.asarray(words) & ~given["text_mask"]).any()
    codes = found.passes["codes"]
    assert codes.prediction.shape == (4, 2, 2, 2, 64) and codes.target.shape == (4, 2, 2, 2)
    np.testing.assert_array_equal(codes.exists, places.reshape(4, 2, 2, 2))
    np.testing.assert_array_equal(found.passes["words"].target, given["text_ids"])
    assert found.passes["words"].prediction.shape == (4, 12, 257)


def test_masked_pixels_and_words_change_no_prediction():
    task, modules = built(tiny(video=0.5, blocks=1.0))
    given = batch()
    found = outputs(task, modules, given)
    places = np.asarray(found.features["masked"]["places"]).reshape(4, 2, 2, 2)
    hidden = np.repeat(np.repeat(places, 6, 2), 6, 3)[..., None]
    other = outputs(task, modules, {**given, "video": np.where(hidden, 255 - given["video"], given["video"])})
    for name in ("words", "codes"):
        np.testing.assert_allclose(other.passes[name].prediction, found.passes[name].prediction, atol=1e-5)
    shown = outputs(task, modules, {**given, "video": np.where(hidden, given["video"], 255 - given["video"])})
    assert float(jnp.abs(shown.passes["codes"].prediction - found.passes["codes"].prediction).max()) > 1e-3


@pytest.mark.slow
def test_attention_of_a_pass_without_masks_draws_places():
    task, modules = built(tiny(video=0.25, blocks=0.0))
    given = batch(64)
    found = outputs(task, modules, given)
    net = modules["model"].network
    clips = task.reader.clips(modules, {"video": jnp.asarray(given["video"])})
    ids, mask = jnp.asarray(given["text_ids"]), jnp.asarray(given["text_mask"])
    mass = net.fuse(net.see(clips.inputs, clips.seconds), ids, mask, probed=True).mass
    keys = MicroBatch().keys(named_key(KEY, "places"), 64)
    places = found.features["masked"]["places"]
    np.testing.assert_array_equal(places, block_or_attended_mask(keys, mass, (2, 2, 2), 0.25, 0.0))
    even = block_or_attended_mask(keys, jnp.ones_like(mass), (2, 2, 2), 0.25, 0.0)
    assert bool((places != even).any())


def test_heads_that_are_even_cost_the_logarithm():
    task, modules = built(tiny(video=0.5))
    model = modules["model"]
    for head in (model.visual["codes"], model.matching):
        head.outer.kernel.set_value(jnp.zeros_like(head.outer.kernel.get_value()))
    table = model.network.bert.embedding.table
    table.set_value(jnp.zeros_like(table.get_value()))
    found = values(task, modules, outputs(task, modules, batch()))
    assert float(found["codes"]) == pytest.approx(np.log(64), rel=1e-5)
    assert float(found["words"]) == pytest.approx(np.log(257), rel=1e-5)
    # Of four texts two are equal: these have two others, and the rest have three.
    assert float(found["matching"]) == pytest.approx((np.log(3) + np.log(4)) / 2, rel=1e-5)
    assert float(found["loss"]) == pytest.approx(sum(float(found[n]) for n in ("codes", "words", "matching")), rel=1e-5)


def test_nothing_masked_costs_nothing_and_ids_elsewhere_do_not_count():
    task, modules = built(tiny(video=0.0, words=0.0, blocks=1.0))
    found = values(task, modules, outputs(task, modules, batch()))
    assert float(found["codes"]) == 0 and float(found["words"]) == 0
    task, modules = built(tiny(video=0.5, blocks=1.0))
    found = outputs(task, modules, batch())
    codes = found.passes["codes"]
    moved = losses.Pass(codes.prediction, jnp.where(codes.exists, codes.target, 63), codes.exists)
    other = losses.Outputs({**found.passes, "codes": moved}, features=found.features)
    assert float(values(task, modules, other)["codes"]) == float(values(task, modules, found)["codes"])


def test_negatives_are_no_clip_or_caption_of_the_same():
    """Every candidate is another text than the own one; a clip that is shown twice is no negative of itself."""
    task, modules = built(tiny())
    given = batch()
    given["video"][3] = given["video"][1]
    found = outputs(task, modules, given).passes["matching"]
    assert found.target.tolist() == [0] * 4 and found.prediction.shape == (4, 4)
    # Clip 0: texts 1, 3. Clip 1: texts 0, 2, as clip 3 is the same. Clip 2: 1, 3. Clip 3: 0, 2.
    assert found.exists.sum(1).tolist() == [3] * 4
    model = modules["model"]
    clips = task.reader.clips(modules, {"video": jnp.asarray(given["video"])})
    seen = model.network.see(clips.inputs, clips.seconds)
    every = np.stack([model.match(seen, *rows(given, text)) for text in range(4)], axis=1)
    for clip, others in enumerate(([1, 3], [0, 2], [1, 3], [0, 2])):
        scores = np.asarray(found.prediction[clip])[np.asarray(found.exists[clip])]
        np.testing.assert_allclose(sorted(scores), sorted(every[clip, [clip, *others]]), rtol=1e-4, atol=1e-5)
        assert scores[0] == pytest.approx(every[clip, clip], rel=1e-4, abs=1e-5)


def rows(given: dict, text: int) -> tuple:
    return tuple(jnp.repeat(jnp.asarray(given[name][text : text + 1]), 4, 0) for name in ("text_ids", "text_mask"))


def test_yes_or_no_costs_log_two_and_says_yes_where_there_is_no_other():
    task, modules = built(tiny_shared())
    head = modules["model"].matching
    head.outer.kernel.set_value(jnp.zeros_like(head.outer.kernel.get_value()))
    found = outputs(task, modules, batch(16))
    assert float(values(task, modules, found)["matching"]) == pytest.approx(np.log(2), rel=1e-5)
    assert set(found.passes["matching"].target.tolist()) == {0, 1}
    given = batch()
    given["text_ids"][:], given["text_mask"][:] = given["text_ids"][0], True
    assert outputs(task, modules, given).passes["matching"].target.tolist() == [1] * 4


def test_the_contrastive_option_compares_clips_and_texts_by_themselves():
    task, modules = built(tiny_shared(contrastive=1.0))
    given = batch()
    found = outputs(task, modules, given)
    compared = found.passes["contrastive"]
    np.testing.assert_allclose(jnp.linalg.norm(compared.prediction, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(compared.target, axis=1), 1, rtol=1e-5)
    # Equal captions are right for each other's clips; the temperature is 0.05.
    logits = 20.0 * np.asarray(compared.prediction) @ np.asarray(compared.target).T
    right, total = np.eye(4) + np.eye(4)[[2, 1, 0, 3]] * [[1], [0], [1], [0]], 0.0
    for x in (logits, logits.T):
        logs = x - np.log(np.exp(x).sum(1, keepdims=True))
        total -= np.sum(logs * right / right.sum(1, keepdims=True)) / 4
    assert float(values(task, modules, found)["contrastive"]) == pytest.approx(total / 2, rel=1e-4)
    scale = modules["model"].scale
    scale.logarithm.set_value(jnp.float32(5.0))
    task.updates["model"](modules, {}, {}, KEY, STEP)
    assert float(scale()) == pytest.approx(100, rel=1e-5)


class Pieces:
    """``##`` goes on with a word: ids 5, 6; 1 and 2 are markers."""

    begins = np.array([True, True, True, True, True, False, False, True])
    markers = np.arange(8) < 3


def test_words_are_numbered_by_pieces_or_whole():
    ids = jnp.array([[1, 3, 5, 6, 4, 7, 2, 0], [5, 3, 5, 4, 0, 0, 0, 0]])
    mask = jnp.array([[True] * 7 + [False], [True] * 4 + [False] * 4])
    for whole, expected in (
        (True, [[-1, 0, 0, 0, 1, 2, -1, -1], [0, 1, 1, 2, -1, -1, -1, -1]]),
        (False, [[-1, 0, 1, 2, 3, 4, -1, -1], [0, 1, 2, 3, -1, -1, -1, -1]]),
    ):
        task = tasks.build(tiny(whole_words=whole))
        task.texts = Pieces
        assert task.word_numbers(ids, mask).tolist() == expected
    task.texts = None
    assert task.word_numbers(ids, mask)[0].tolist() == [0, 1, 2, 3, 4, 5, 6, -1]


@pytest.mark.slow
def test_masks_are_drawn_by_the_number_of_the_example():
    task, modules = built(tiny(video=0.5, words=0.5, blocks=1.0))
    given = batch(8)
    whole = outputs(task, modules, given).features["masked"]
    odd = {name: value[1::2] for name, value in given.items()}
    half = outputs(task, modules, odd, MicroBatch(1, 2)).features["masked"]
    for name in ("places", "words"):
        np.testing.assert_array_equal(half[name], whole[name][1::2])


def test_equal_clips_share_their_numbers():
    video = jnp.asarray(batch(4)["video"]).at[2].set(batch(4)["video"][0])
    found = np.asarray(digests(video))
    assert found.shape == (4, 4) and (found[0] == found[2]).all() and len({tuple(row) for row in found}) == 3
    assert (np.asarray(digests(video.at[2, 0, 0, 0, 0].add(1)))[2] != found[0]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accumulate": 2}, "it goes with accumulate=1"),
        ({"losses.words.reads": "word"}, "reads the pass 'word', which this model does not give.*words"),
        ({"losses.words.reads": "labels"}, "set config.classes"),
        ({"losses.words.reads": "contrastive"}, "set model.embed"),
        ({"model.masking.with_words": False}, "set model.masking.with_words=True"),
        ({"model.masking.videos": 0.1}, "no setting 'videos'"),
        ({"model.targets.codes.name": "code"}, "unknown visual target 'code'"),
        ({"losses": 0}, "losses must be a section"),
        ({"model.network": 3}, "model.network must be a section"),
        ({"model.targets": ()}, "model.targets must be a section"),
        ({"model.targets.codes": 1}, "model.targets.codes must be a section"),
        ({"data.image_batch_size": 2}, "leave data.buckets and images out"),
    ],
)
def test_what_cannot_be_is_one_line(change, words):
    config, ((path, value),) = tiny(), change.items()
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    with section.unlocked(), section.ignore_type():
        section[key] = value
    with pytest.raises(UserError, match=words):
        # As a run begins.
        tasks.class_of(config).parts_of(config)
        tasks.build(config)


def test_a_network_that_tells_no_attention_masks_boxes():
    config = tiny_shared()
    config.model.targets = {"pixels": {"name": "pixels"}}
    config.losses.pixels = {"name": "regression", "reads": "pixels", "weight": 1.0, "objective": "l2"}
    with pytest.raises(UserError, match="set model.masking.blocks=1.0"):
        tasks.build(config)
    config.model.masking.update({"blocks": 1.0, "video": 0.5})
    task, modules = built(config)
    found = outputs(task, modules, batch())
    compared = found.passes["pixels"]
    where = np.asarray(compared.exists)
    expected = np.square(np.asarray(compared.prediction) - np.asarray(compared.target))[where].mean()
    assert where.sum() == 4 * 4 and float(values(task, modules, found)["pixels"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["violet", "all_in_one"])
def test_accumulation_is_the_step_of_the_whole_batch(name):
    config = tiny(video=0.5) if name == "violet" else tiny_shared(contrastive=1.0)
    config.losses.matching.weight = 0.0
    config.optimizer.model.clip = 0.0
    compare(config, batch(8), 2)


@pytest.mark.slow
def test_every_pair_is_scored():
    task, modules = built(tiny())
    parts = [{name: value[:3] for name, value in batch().items()}, {n: v[3:] for n, v in batch().items()}]
    ranking = task.ranked(modules, parts)
    assert ranking.right.astype(int).tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    assert ranking.scale == pytest.approx(20.0)
    model, given = modules["model"], batch()
    clips = task.reader.clips(modules, {"video": jnp.asarray(given["video"])})
    seen = model.network.see(clips.inputs, clips.seconds)
    expected = np.stack([model.match(seen, *rows(given, text)) for text in range(4)])
    np.testing.assert_allclose(ranking.scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_is_trained_loaded_and_measured(tmp_path):
    config = violet.get_config("stage=tokenizer,size=debug")
    config.model.update({"width": 8, "norm_groups": 2})
    config.data.batch_size = config.data.eval_batch_size = 4
    config.steps = config.eval_every = config.checkpoint_every = 2
    train(config, tmp_path / "tokenizer")
    config = tiny()
    config.parts.tokenizer.checkpoint = str(tmp_path / "tokenizer")
    config.steps, config.eval_every, config.checkpoint_every, config.log_every = 3, 3, 3, 1
    train(config.copy_and_resolve_references(), tmp_path / "run")
    records = read_metrics(tmp_path / "run" / FILE)
    (evaluated,) = [record for record in records if "eval/text_to_video_recall_at_1" in record]
    assert evaluated["eval/text_to_video_queries"] == 8 and evaluated["eval/words"] > 0
    loaded = videogen.load(tmp_path / "run")
    assert "tokenizer" in loaded.task.training_only
    fresh = jax.tree.leaves(nnx.state(tasks.build(config).init(nnx.Rngs(0))["model"], nnx.Param))
    after = jax.tree.leaves(nnx.state(loaded.modules["model"], nnx.Param))
    assert all(bool((a != b).any()) for a, b in zip(fresh, after, strict=True))
    record, pictures = protocols.evaluate(loaded, "retrieval", count=6, seed=0)
    json.dumps(record)
    assert record["metrics"]["retrieval"]["text_to_video"]["queries"] == 6 and len(pictures["videos"]) == 6
    with pytest.raises(UserError, match="use --protocol=retrieval"):
        protocols.evaluate(loaded, "recognition", count=6, seed=0)
