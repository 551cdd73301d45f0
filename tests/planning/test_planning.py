"""What a plan is made of before anything is compiled: batches, completed configs, candidates."""

import jax
import pytest

from videogen.configs import phenaki
from videogen.data.inputs import build_pipeline, build_source, new_text_tokenizer
from videogen.errors import UserError
from videogen.parallel import make_mesh
from videogen.parallel.topology import parse_topology
from videogen.planning.programs import abstract_batch, abstract_run, check_batch, complete_for_planning
from videogen.planning.search import (
    COMPILED,
    Survey,
    abstract_mesh,
    choose,
    estimated,
    held_bytes,
    possible_meshes,
)
from videogen.training.state import FROZEN_LAYOUTS, frozen_shardings, parameter_count


def test_abstract_batch_is_what_the_pipeline_gives(tmp_path):
    config = phenaki.get_config("stage=generator,size=debug")
    config.data.image_batch_size = 4
    complete_for_planning(config)
    source = build_source(config, "train")
    pipeline = build_pipeline(config, source, new_text_tokenizer(config, source), 0, make_mesh({"data": -1}))
    try:
        batch = next(pipeline)
    finally:
        pipeline.close()
    # Labels come with the source; a generator without classes does not read them.
    del batch["label"], batch["image"]["label"]
    real = jax.tree.map(lambda x: (x.shape, str(x.dtype)), batch)
    planned = jax.tree.map(lambda x: (x.shape, str(x.dtype)), abstract_batch(config, abstract_run(config).task))
    assert planned == real


def test_an_unnamed_text_encoder_is_the_published_one_of_its_width():
    config = phenaki.get_config("stage=generator,size=paper")
    (assumed,) = complete_for_planning(config)
    assert "4096" in assumed
    frozen = abstract_run(config).frozen["text_encoder"]
    # Raffel et al. (2020): the encoder of T5 v1.1 XXL has 4.76 billion parameters.
    assert parameter_count(jax.tree.leaves(frozen)) == pytest.approx(4.762e9, rel=1e-3)
    config = phenaki.get_config("stage=generator,size=paper")
    config.parts.text_encoder.model.width = 1000
    with pytest.raises(UserError, match="no T5 v1.1 encoder has width 1000"):
        complete_for_planning(config)


def test_batches_that_cannot_be_shared_are_refused():
    config = phenaki.get_config("stage=tokenizer,size=debug")
    mesh = {"replica": 2, "data": 2, "fsdp": 2, "tensor": 1, "context": 1}
    check_batch(config, mesh)
    with pytest.raises(UserError, match="use a multiple of 16"):
        check_batch(config, mesh | {"data": 4})


def test_search_lays_out_all_devices_and_prefers_what_fits():
    config = phenaki.get_config("stage=tokenizer,size=debug")
    topology = parse_topology("v6e:4x4", slices=2)
    meshes = list(possible_meshes(config, topology))
    assert meshes and all(mesh["replica"] == 2 for mesh in meshes)
    for mesh in meshes:
        assert mesh["replica"] * mesh["data"] * mesh["fsdp"] * mesh["tensor"] * mesh["context"] == 32
        assert mesh["replica"] * mesh["data"] * mesh["fsdp"] <= config.data.batch_size
    chosen = choose(config, topology)
    assert 1 <= len(chosen) <= COMPILED
    assert len({(tuple(c.mesh.items()), c.remat) for c in chosen}) == len(chosen)


def test_whole_frozen_weights_take_memory_and_are_not_gathered():
    config = phenaki.get_config("stage=generator,size=paper")
    complete_for_planning(config)
    topology, mesh = parse_topology("v6e:8x8"), {"replica": 1, "data": 1, "fsdp": 64, "tensor": 1, "context": 1}
    run, surveys = abstract_run(config), {"none": Survey(1e12, 2e9, 1e8, True), "full": Survey(1e12, 2e9, 1e8, True)}
    sharded, whole = (
        estimated(held_bytes(run, topology, mesh, layout), topology, mesh, "none", layout, surveys)
        for layout in FROZEN_LAYOUTS
    )
    # T5-XXL's 4.76 billion weights, in bfloat16, and the tokenizer's.
    assert 9e9 < whole.memory - sharded.memory < 10e9
    assert whole.seconds < sharded.seconds
    abstract = abstract_mesh(topology, mesh)
    placed = jax.tree.leaves(frozen_shardings(run.frozen, abstract, "whole"))
    assert placed and all(sharding.is_fully_replicated for sharding in placed)
    with pytest.raises(UserError, match="unknown parallel.frozen 'hole'; did you mean 'whole'"):
        frozen_shardings(run.frozen, abstract, "hole")


def test_recomputed_layers_wait_for_each_other_again():
    config = phenaki.get_config("stage=tokenizer,size=debug")
    run, topology = abstract_run(config), parse_topology("v5p:2x2x1")
    surveys = {"none": Survey(1e15, 2e9, 1e8, False), "full": Survey(1e15 * (1 + 1e-9), 2e9, 1e8, False)}
    mesh = {"replica": 1, "data": 4, "fsdp": 1, "tensor": 1, "context": 1}

    def longer(mesh: dict[str, int]) -> float:
        held = held_bytes(run, topology, mesh, "sharded")
        full, none = (estimated(held, topology, mesh, remat, "sharded", surveys).seconds for remat in ("full", "none"))
        return full - none

    assert longer(mesh | {"data": 2, "tensor": 2}) > longer(mesh) + 1e-3
