"""VIOLET, E-ViLM, All-in-one, VidLA and the recognition of clips: sizes of the published parts, what their stages have,
and what begins as a published network."""

import importlib

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from videogen import tasks
from videogen.configs import all_in_one, evilm, recognition, retrieval, vidla, violet
from videogen.errors import UserError
from videogen.planning.programs import complete_for_planning
from videogen.runs.records import FILE, read_metrics
from videogen.training.loop import train
from videogen.training.warm_start import starting_weights

SYSTEMS = {"violet": violet, "evilm": evilm, "all_in_one": all_in_one, "vidla": vidla, "recognition": recognition}


def sizes(module: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def built(config: ConfigDict) -> tuple:
    task = tasks.build(config)
    return task, nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))


def transformer(width: int, layers: int, hidden: int) -> int:
    """Blocks with biases everywhere and two norms."""
    attention = 4 * (width**2 + width)
    return layers * (attention + 2 * width * hidden + hidden + width + 4 * width)


@pytest.mark.parametrize("name", SYSTEMS)
def test_only_debug_computes_in_float32(name):
    dtypes = [SYSTEMS[name].get_config(f"size={size}").parallel.dtype for size in ("debug", "small", "paper")]
    assert dtypes == ["float32", "bfloat16", "bfloat16"]


@pytest.mark.parametrize(("name", "published"), [("Ti", 12e6), ("S", 33e6), ("B", 110e6)])
def test_all_in_one_is_as_large_as_published(name, published):
    task, modules = built(all_in_one.get_config(f"size=paper,model={name}"))
    width = all_in_one.PUBLISHED[name][0]
    vit = transformer(width, 12, 4 * width) + 2 * width + 3 * 256 * width + width + 197 * width + width
    words = 30_522 * width + 40 * width + 2 * width
    own = 3 * width + width + 2 * width  # times, the masked word, kinds
    heads = (width**2 + width + 2 * width + 30_522) + (width**2 + width + 2 * width + 2)
    assert sizes(modules["model"]) == vit + words + own + heads
    assert sizes(modules["model"]) == pytest.approx(published, rel=0.05)
    assert task.bucket_tokens == [3 * 196] and task.masking.whole_words and task.model.matching == "binary"
    assert task.wanted == {"words", "matching"}


def test_violet_is_video_swin_b_and_bert_base():
    task, modules = built(violet.get_config("size=paper"))
    network = modules["model"].network
    assert task.grid == (4, 7, 7) and network.width == 768
    # BERT-base without its pooler.
    assert sizes(network.bert) == 108_891_648
    # Video Swin-B, 88,048,984 with patches of two frames, without its 400 classes.
    swin = network.encoder.network
    assert swin.patches.size == (1, 4, 4) and swin.width == 1024 and swin.classifier is None
    assert sizes(swin) == 88_048_984 - 400 * 1025 - 3 * 16 * 128
    head = modules["model"].visual["codes"]
    assert [head.inner.inputs, head.inner.outputs, head.outer.outputs] == [768, 1536, 8192]
    assert task.terms["matching"].temperature == 0.05 and task.model.negatives == 3
    assert {name: term.weight for name, term in task.terms.items()} == dict.fromkeys(("codes", "matching", "words"), 1)


def test_e_vilm_is_small_beside_violet():
    _, small = built(evilm.get_config("size=paper"))
    _, large = built(violet.get_config("size=paper"))
    assert sizes(small["model"]) < 0.15 * sizes(large["model"])


def test_vidla_is_clip_and_what_it_adds():
    task, modules = built(vidla.get_config("size=paper"))
    # CLIP ViT-B/32 with its logit scale; twelve levels' tokens; norm and attention over time in twelve layers.
    clip, levels, time = 151_277_313, 12 * 768, 12 * (2 * 768 + 4 * (768**2 + 768))
    assert sizes(modules["towers"]) == clip + levels + time
    assert task.bucket_tokens == [1 + 12 + 12 * 49]
    assert set(task.parts_of(task.config)) == {"clip_image", "clip_text"}
    # The retrieval config has the same towers without what is added.
    assert sizes(built(retrieval.get_config("size=paper"))[1]["towers"]) == clip


@pytest.mark.slow
@pytest.mark.parametrize("size", ["debug", "small", "paper"])
def test_every_stage_of_every_size_can_be_built(size):
    for name, system in SYSTEMS.items():
        for stage in system.STAGES:
            config = system.get_config(f"stage={stage},size={size}")
            assert importlib.import_module(f"videogen.configs.{name}") is system
            task = tasks.class_of(config)
            assert complete_for_planning(config) == []
            assert set(task.parts_of(config)) <= set(config.parts), (name, stage)
            if stage not in ("tokenizer",):
                built(config)


def test_stages_of_recognition():
    expected = {"ids": {"codes"}, "pixels": {"pixels"}} | dict.fromkeys(recognition.STAGES[3:], {"labels"})
    for stage, wanted in expected.items():
        config = recognition.get_config(f"stage={stage},size=debug")
        task, _ = built(config)
        protocol = "recognition" if stage.startswith("of_") else None
        assert task.wanted == wanted and task.default_protocol(config) == protocol, stage
        assert set(task.parts_of(config)) == ({"tokenizer"} if stage in ("ids", "of_inputs") else set())
    assert {config.steps for config in map(recognised, ("of_ids", "of_inputs", "of_pixels", "of_nothing"))} == {800}
    # Ids as inputs: the grid of the tokenizer.
    assert built(recognised("of_inputs"))[0].grid == (4, 6, 6)


def recognised(stage: str) -> ConfigDict:
    return recognition.get_config(f"stage={stage},size=debug")


def test_models_of_all_in_one_are_of_one_size():
    with pytest.raises(UserError, match="models are of the published sizes: add size=paper"):
        all_in_one.get_config("size=debug,model=B")


def test_the_semantic_tokenizer_learns_from_features_alone():
    config = evilm.get_config("stage=tokenizer,size=debug")
    task = tasks.build(config)
    assert list(task.terms) == ["distillation"] and set(task.parts_of(config)) == {"semantic"}
    assert set(task.losses) == {"tokenizer", "distillation"}
    assert task.terms["distillation"].feature == "vectors"


@pytest.mark.slow
def test_parts_of_violet_begin_as_published(tmp_path):
    """All of BERT, and all of Video Swin but for the patches, which have another size."""
    config = violet.get_config("size=paper")
    bert = {"vocabulary_size": 300, "length": 32, "width": 16, "layers": 1, "heads": 2, "hidden": 32}
    swin = {"width": 8, "depths": (1, 1), "heads": (2, 2), "window": (2, 2, 2)}
    config.data.clip.update({"frames": 2, "height": 16, "width": 16})
    config.text.tokenizer = {"name": "bytes", "path": "", "length": 12, "vocabulary_size": 257}
    config.parallel.dtype = "float32"
    with config.unlocked(), config.ignore_type():
        config.model.network.encoder.model = {**swin, "patch": (1, 4, 4)}
        config.model.network.bert = bert
        config.model.targets, config.losses = {}, {"words": config.losses.words}
        config.parts = {"bert": {"checkpoint": "", "model": {"name": "bert", **bert}}}
        config.parts.video_swin = {"checkpoint": "", "model": {"name": "video_swin", **swin, "classes": 7}}
    task = tasks.build(config)
    frozen = task.frozen(None)
    found = starting_weights(config, tmp_path, task, frozen=frozen)
    network = task.init(nnx.Rngs(0))["model"].network
    new = {path for path in names(network) if ("model", "network", *path) not in found}
    own = {("class_token",), ("first_word",), ("masked_word",), ("places", "table"), ("times", "table")}
    own |= {("linear", "kernel"), ("linear", "bias"), ("norm", "scale"), ("norm", "shift")}
    own |= {("encoder", "network", "patches", "linear", name) for name in ("kernel", "bias")}
    assert new == own
    table = frozen["bert"].embedding.table.get_value()
    np.testing.assert_array_equal(found["model", "network", "bert", "embedding", "table"], table)


@pytest.mark.slow
def test_towers_of_vidla_begin_as_published(tmp_path):
    config = vidla.get_config("size=paper")
    image = {**vidla.IMAGES["debug"], "image_size": 8, "patch": 4, "embed": 8}
    text = {"vocabulary_size": 300, "length": 16, "embed": 8, "end": 256, "sizes": dict(image["sizes"])}
    config.data.clip.update({"frames": 2, "height": 8, "width": 8})
    config.text.tokenizer = {"name": "bytes", "path": "", "length": 16, "vocabulary_size": 257}
    config.parallel.dtype, config.model.embed = "float32", 8
    with config.unlocked(), config.ignore_type():
        config.model.video.model, config.model.text.model = image, text
        config.parts.clip_image.model = {"name": "clip_image", **image}
        config.parts.clip_text.model = {"name": "clip_text", **text}
    task = tasks.build(config)
    found = starting_weights(config, tmp_path, task, frozen=task.frozen(None))
    towers = task.init(nnx.Rngs(0))["towers"]
    new = {path for path in names(towers) if ("towers", *path) not in found}
    assert {path[-2:] for path in new if "time" in path} == {
        *((part, name) for part in ("query_key_value", "out") for name in ("kernel", "bias")),
        *(("time", f"{name}_bias") for name in ("query", "key", "value")),
    } - {("query_key_value", "bias")}
    rest = {path for path in new if not {"time", "time_norm"} & set(path)}
    assert rest == {("video", "levels"), ("scale", "logarithm")}


@pytest.mark.slow
def test_vidla_compares_clips_with_both_of_their_texts(tmp_path):
    config = vidla.get_config("size=debug")
    config.data.clip.update({"frames": 2, "height": 12, "width": 12})
    config.data.batch_size = config.data.eval_batch_size = 4
    config.model.video.model.update({"image_size": 12, "embed": 16})
    config.model.video.model.sizes.update({"width": 16, "hidden": 32, "layers": 1})
    config.model.embed = 16
    config.model.text.update({"width": 16, "layers": 1})
    config.text.tokenizer = {"name": "bytes", "path": "", "length": 96, "vocabulary_size": 257}
    config.steps = config.eval_every = config.checkpoint_every = 2
    config.log_every = 1
    train(config, tmp_path / "run")
    records = read_metrics(tmp_path / "run" / FILE)
    losses = [record["train/contrastive"] for record in records if "train/contrastive" in record]
    assert len(losses) == 2 and all(np.isfinite(losses))
    assert any("eval/text_to_video_recall_sum" in record for record in records)


def names(module: nnx.Module) -> set[tuple[str, ...]]:
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {tuple(map(str, path)) for path, _ in flat}
