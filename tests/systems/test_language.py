"""Every size of the language stages of DiCoDe and Divot."""

import functools

import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import language
from videogen.training.state import parameter_count, structure_of


@functools.cache
def built(argument: str):
    task = tasks.build(language.get_config(argument))
    return task, nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))["language"]


def count(module: nnx.Module) -> int:
    return parameter_count(nnx.state(module, nnx.Param))


# GPT-2 small and large (124.4M and 774.0M with 1024 positions), without and with the table of words.
@pytest.mark.parametrize(
    ("model", "layers", "words"), [("100M", 85.06e6, 50_257 * 768), ("0.8B", 708.4e6, 50_257 * 1280)]
)
def test_towers_are_gpt2(model, layers, words):
    task, module = built(f"stage=language,size=paper,model={model}")
    positions = module.backbone.positions.table.get_value().size
    assert count(module.backbone) - positions == pytest.approx(layers, rel=1e-3)
    assert count(module.words.head.inputs) == pytest.approx(words, rel=1e-3)
    assert task.table(task.layout).slots <= 512


# Llama 3.2 1B and 3B, Mistral 7B, Vicuna 7B as published; of the latter two the updates beside.
@pytest.mark.parametrize(
    ("model", "parameters"),
    [("1B", 1_235_814_400), ("3B", 3_212_749_824), ("mistral", 7_241_732_096), ("vicuna", 6_738_415_616)],
)
def test_published_models_have_their_numbers_of_parameters(model, parameters):
    task, module = built(f"stage=language,size=paper,model={model}")
    updates = sum(count(part) for path, part in nnx.iter_modules(module.backbone) if path and path[-1] == "lora")
    assert count(module.backbone) - updates == parameters
    assert bool(updates) == (model in language.QUERIES)
    assert module.backbone.known == task.vocabulary.ranges[0].size


@pytest.mark.parametrize("model", language.QUERIES)
def test_of_a_published_model_only_updates_norms_and_what_is_ours_is_trained(model):
    """Divot, section 6; and the shapes of section 2.3."""
    task, module = built(f"stage=language,size=paper,model={model}")
    structure, abstract = structure_of(task, task.config)
    frozen = structure.freeze["language"]
    flat = {".".join(map(str, path)): v for path, v in nnx.to_flat_state(nnx.state(abstract["language"], nnx.Param))}
    trained = {name for name in flat if not any(name == p or name.startswith(f"{p}.") for p in frozen)}
    of_model = {name for name in trained if name.startswith("backbone.")}
    assert of_model and all(".lora." in name or "norm" in name for name in of_model)
    assert {name for name in flat if "norm" in name} <= trained
    assert all(not name.startswith("backbone.") for name in trained - of_model)
    part = module.floats["video"]
    assert part.queries.get_value().shape == (64, 4096)
    assert part.head.parameters_of.kernel.get_value().shape == (8208, 8208)
    assert part.head.inputs.linear.kernel.get_value().shape == (256, 4096)
    assert part.head.inputs.second.kernel.get_value().shape == (4096, 4096)
    sampler = task.config.sampler
    assert (sampler.temperature, sampler.top_p, sampler.variance_scale) == (0.7, 0.5, 0.1)


@pytest.mark.parametrize("size", ["debug", "small"])
@pytest.mark.parametrize(("model", "queries"), [("100M", False), ("mistral", True)])
def test_smaller_sizes_build(size, model, queries):
    task, module = built(f"stage=language,size={size},model={model},clips=2")
    assert count(module) > 5e5 and (module.floats["video"].queries is not None) == queries
    assert list(task.layouts) == ["caption", "draw", "story"] and task.clips == 2
    np.testing.assert_allclose(task.shares.at(0), [1 / 3] * 3, rtol=1e-6)


@pytest.mark.parametrize("name", language.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in language.SWEEPS[name]:
        config = language.get_config("size=debug,stage=language")
        config.update_from_flattened_dict(change)
        task = tasks.build(config)
        nnx.eval_shape(lambda task=task: task.init(nnx.Rngs(0)))
