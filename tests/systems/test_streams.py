"""Models of streams of every size: tokens of a frame, layers, sizes of the published parts; a run, and its protocol."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

import videogen
from tests.tasks.test_watching import tiny
from videogen import encoders, tasks
from videogen.configs import streams
from videogen.configs.streams import LLAMA3, SIGLIP
from videogen.data.inputs import abstract_batch, build_source
from videogen.errors import UserError
from videogen.evaluation import protocols
from videogen.planning.programs import complete_for_planning
from videogen.runs.records import FILE, read_metrics
from videogen.training.loop import train


def count(make) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)))


@pytest.mark.parametrize(
    ("size", "each", "frames", "main", "sparse"), [("debug", 5, 24, 144, (1, 3)), ("small", 10, 64, 704, (1, 3, 5, 7))]
)
def test_frames_are_so_many_tokens_and_every_second_layer_is_sparse(size, each, frames, main, sparse):
    for layers in ("depth", "dense"):
        task = tasks.build(streams.get_config(f"size={size},layers={layers}"))
        assert (task.stream.each, task.stream.frames, task.stream.main) == (each, frames, main)
        hooks = task.config.model.backbone.get("hooks") or ()
        assert tuple(hook["layer"] for hook in hooks) == (sparse if layers == "depth" else ())
        assert all(hook["share"] == 0.2 and hook["name"] == "depth" for hook in hooks)


def test_published_parts_have_their_sizes():
    """Llama 3 8B and the image tower of SigLIP L/16 at 384 pixels."""
    assert count(lambda: encoders.described({"name": "decoder", **LLAMA3})) == 8_030_261_248
    assert count(lambda: encoders.described(SIGLIP)) == 316_283_904


@pytest.mark.slow
def test_the_paper_size_is_built_without_its_arrays():
    config = streams.get_config("size=paper")
    complete_for_planning(config)
    task = tasks.build(config)
    assert task.stream.main == 744 * 11 == 8184 and task.stream.each == 10 and task.width == 4096
    assert [hook["layer"] for hook in config.model.backbone.hooks] == list(range(1, 32, 2))
    modules = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    backbone = modules["language"].stream.backbone
    # Of ten tokens of a frame two are seen by a sparse layer.
    assert backbone.seen_by_layers(task.stream.spans)[:4] == [10, 2, 10, 2]


@pytest.mark.slow
def test_a_run_is_trained_loaded_and_measured(tmp_path):
    config = tiny(**{"data.clip.frames": 18, "text.tokenizer.length": 34})
    config.steps, config.eval_every, config.checkpoint_every, config.log_every = 3, 3, 3, 1
    train(config.copy_and_resolve_references(), tmp_path / "run")
    records = read_metrics(tmp_path / "run" / FILE)
    losses = [record["train/streaming"] for record in records if "train/streaming" in record]
    assert len(losses) == 3 and np.isfinite(losses).all()
    (evaluated,) = [record for record in records if "eval/fluency" in record]
    assert {"eval/spoken", "eval/false_per_minute", "eval/time_difference", "eval/right/future"} <= set(evaluated)
    loaded = videogen.load(tmp_path / "run")
    record, pictures = protocols.evaluate(loaded, "streams", count=3, seed=0)
    json.dumps(record)
    found = record["metrics"]["streams"]
    assert found["sessions"] == 3 and found["threshold"] == 0.8 and found["forgets"] == "oldest"
    assert "streams" in record["protocol"]["measured"] and record["metrics"]["clips"] == 3
    assert 0 <= found["told_right"] <= 1 and len(pictures["videos"]) == len(pictures["readings"]) == 3
    with pytest.raises(UserError, match="use --protocol=streams"):
        protocols.evaluate(loaded, "reconstruction", count=3, seed=0)


@pytest.mark.slow
def test_the_command_trains(run_command, tmp_path):
    settings = {"steps": 2, "eval_every": 2, "checkpoint_every": 2, "data.batch_size": 2, "data.eval_batch_size": 2}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    done = run_command("train", "--config=streams:size=debug", f"--workdir={tmp_path}/run", *flags)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_batches_are_known_without_the_data():
    """What plans of machines that are not there are made of."""
    config = streams.get_config("size=debug")
    task = tasks.build(config)
    known, read = abstract_batch(config, task), abstract_batch(config, task, build_source(config, "train"))
    assert known == read and known["turn_frame"].shape == (16, 8) and known["said_7_ids"].shape == (16, 8)
