"""Students of a tiny generator and a tiny de-tokenizer: how they begin, what learns, what they are drawn with."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import data, diffusion, tasks
from videogen.configs import cdt, phenaki, videodit
from videogen.data.inputs import build_source, new_text_tokenizer
from videogen.data.text import build_text_tokenizer
from videogen.errors import UserError
from videogen.nn import MicroBatch, named_key
from videogen.planning.programs import abstract_run, complete_for_planning
from videogen.tasks.distillation import check_teacher
from videogen.training.loading import Loaded, export_safetensors, load
from videogen.training.state import new_state, structure_of
from videogen.training.step import make_train_step
from videogen.training.warm_start import starting_weights
from videogen.training.workdir import complete_config
from videogen.weights import hash_weights

FRAMES = 5


def generator_config(stage: str):
    config = videodit.get_config(f"stage={stage},size=debug")
    config.data.clip.update({"frames": FRAMES, "height": 16, "width": 16})
    config.parts.tokenizer.model.update({"width": 16, "heads": 2, "mlp_width": 32, "decoder_layers": (1, 1)})
    config.parts.tokenizer.model.quantizer.width = 4
    config.model.prefix_share = 0.5
    config.model.transformer.update({"width": 16, "layers": 1, "heads": 2, "mlp_width": 32})
    config.text.encoder.update({"width": 16, "heads": 2})
    config.text.tokenizer.update({"name": "bytes", "vocabulary_size": 257, "length": 6})
    if stage == "distill":
        config.sampler.steps, config.distillation.steps = 2, 4
    return config


def detokenizer_config(stage: str):
    config = cdt.get_config(f"stage={stage},size=debug")
    config.losses.perceptual.weight = 0.0
    config.data.clip.update({"frames": 3, "height": 16, "width": 16})
    config.parts.tokenizer.model.update({"width": 4, "multipliers": (1, 2), "norm_groups": 2})
    config.parts.tokenizer.model.update({"spatial_strides": (2,), "temporal_strides": (2,)})
    config.model.update({"widths": (4, 4), "context_width": 2})
    config.model.pyramid.update({"widths": (4,), "spatial_strides": (2,), "temporal_strides": (2,)})
    if stage == "distill":
        config.distillation.steps = 4
    return config


CONFIGS = {"generator": generator_config, "detokenizer": detokenizer_config}


def batch(frames: int, count: int = 4) -> dict[str, np.ndarray]:
    source = data.build({"name": "shapes"}, clip=data.Clip(frames, 16, 16, 8.0), seed=0, split="train")
    ids = np.arange(1, 1 + count * 6, dtype=np.int32).reshape(count, 6)
    video = np.stack([source[i]["video"] for i in range(count)])
    return {"video": video, "text_ids": ids, "text_mask": np.ones((count, 6), bool)}


class Student:
    """A teacher's export, and its student before and after two steps of training."""

    def __init__(self, group: str, folder: Path):
        self.group, self.folder, teacher = group, folder, folder / "teacher"
        self.teacher = self._export_teacher(CONFIGS[group](group), teacher)
        self.config = config = CONFIGS[group]("distill")
        loaded = load(teacher)
        config.parts.teacher.checkpoint, config.parts.tokenizer.hash = str(teacher), loaded.config.parts.tokenizer.hash
        tasks.class_of(config).complete(config, {"teacher": loaded.config})
        self.task = tasks.build(config)
        self.structure, _ = structure_of(self.task, config)
        # As a run loads them, but for the tokenizer, which is that of the teacher here.
        self.frozen = self.task.frozen(lambda _, what: loaded.trained if what == "trained" else loaded.modules[what])
        weights = starting_weights(config, folder / "student", self.task)
        state = jax.jit(lambda: new_state(self.task, self.structure, config))()

        def begin(path: tuple, fresh: jax.Array) -> jax.Array:
            return jnp.asarray(weights[tuple(str(part.key) for part in path)])

        for part in ("params", "variables", "ema"):
            state[part] = jax.tree_util.tree_map_with_path(begin, state[part])
        graphs = {name: nnx.graphdef(module) for name, module in self.frozen.items()}
        arrays = {name: nnx.to_pure_dict(nnx.state(module)) for name, module in self.frozen.items()}
        step = jax.jit(make_train_step(self.task, self.structure, graphs, config))
        self.states, self.metrics = [state], []
        for _ in range(2):
            state, metrics = step(self.states[-1], arrays, batch(config.data.clip.frames))
            self.states.append(state)
            self.metrics.append(metrics)

    def _export_teacher(self, config: Any, out: Path) -> nnx.Module:
        """Writes a run's export whose numbers are random, also where a fresh model has zeros."""
        task = tasks.build(config)
        structure, _ = structure_of(task, config)

        @jax.jit
        def numbers() -> Any:
            state = new_state(task, structure, config)
            leaves, tree = jax.tree.flatten(state["params"])
            keys = jax.random.split(jax.random.key(1), len(leaves))
            leaves = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
            return jax.tree.unflatten(tree, leaves), state["variables"]

        trained = structure.modules(*numbers())
        frozen = task.frozen(None)
        config.parts.tokenizer.hash = hash_weights(nnx.to_pure_dict(nnx.state(frozen["tokenizer"])))
        export_safetensors(Loaded(with_text(config, self.folder), config, task, trained | frozen, 7), out)
        return trained[self.group]

    def modules(self, index: int) -> dict[str, nnx.Module]:
        state = self.states[index]
        return self.structure.modules(state["params"], state["variables"]) | self.frozen


@pytest.fixture(scope="module", params=["generator", pytest.param("detokenizer", marks=pytest.mark.slow)])
def student(request, tmp_path_factory):
    return Student(request.param, tmp_path_factory.mktemp(request.param))


def with_text(config: Any, folder: Path) -> Path:
    """A directory with a text tokenizer, where the stage has text."""
    if "text" in config and not (folder / "text_tokenizer").exists():
        build_text_tokenizer(config.text.tokenizer).save(folder / "text_tokenizer")
    return folder


def same(a: nnx.Module, b: nnx.Module) -> bool:
    pairs = zip(*(jax.tree.leaves(nnx.to_pure_dict(nnx.state(module))) for module in (a, b)), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.slow
def test_a_student_begins_as_its_teacher(student):
    before = student.modules(0)
    assert same(before[student.group], student.teacher) and same(before["teacher"], student.teacher)


@pytest.mark.slow
def test_only_the_student_learns(student):
    assert list(student.task.losses) == [student.group] == list(student.states[0]["params"])
    assert student.task.exported == (student.group,)
    assert all(m["finite"] == 1 and m["loss"] > 0 and m["gradient_norm"] > 0 for m in student.metrics)
    after = student.modules(2)
    assert not same(after[student.group], student.teacher) and same(after["teacher"], student.teacher)


@pytest.mark.slow
def test_an_export_has_no_teacher_and_draws_with_the_few_steps(student):
    out, modules = student.folder / "export", student.modules(2)
    directory = with_text(student.config, student.folder)
    export_safetensors(Loaded(directory, student.config, student.task, modules, 2), out)
    assert [path.name for path in (out / "frozen").iterdir()] == ["tokenizer.safetensors"]
    loaded = load(out)
    assert "teacher" not in loaded.modules and same(loaded.modules[student.group], modules[student.group])
    if student.group == "generator":
        generator = loaded.generator()
        assert (generator.sampler.steps, generator.sampler.guidance_scale) == (2, 1.0)
        story = {key: value for key, value in batch(FRAMES, 2).items() if key != "video"}
        assert generator.generate(story, FRAMES, 0).shape == (2, FRAMES, 16, 16, 3)
    else:
        assert loaded.tokenizer.detokenizer.steps == 2


@pytest.mark.slow
@pytest.mark.parametrize("student", ["generator"], indirect=True)
def test_a_student_learns_at_the_times_and_from_the_noise_it_is_drawn_with(student, monkeypatch):
    """A sample of the student is the end of the path that its states begin."""
    model = student.modules(2)["generator"].generator
    conditioning = student.task.conditioning(student.modules(2), jax.tree.map(jnp.asarray, batch(FRAMES, 2)))
    sampler, key = student.task.sampler, jax.random.key(3)
    latents = jnp.zeros((2, *student.task.grid.shape, model.channels))

    @jax.jit
    def both() -> tuple[jax.Array, jax.Array]:
        grid, start = student.task.start_of(model, latents, key, False, MicroBatch())
        end = diffusion.integrate(model.denoiser(conditioning, sampler), model.process, diffusion.Euler(), grid, start)
        keys = MicroBatch().keys(named_key(key, "noise"), 2)
        return model.statistics.restore(end), model.sample(student.task.layout, conditioning, keys, sampler).only.values

    end, drawn = both()
    # Two programs of a network with random numbers: rounding grows from step to step.
    np.testing.assert_allclose(end, drawn, atol=1e-3 * np.abs(drawn).max())


@pytest.mark.slow
@pytest.mark.parametrize("student", ["generator"], indirect=True)
def test_given_frames_are_those_of_the_clip_at_time_0(student):
    model = student.modules(0)["generator"].generator
    latents = jax.random.normal(jax.random.key(0), (32, *student.task.grid.shape, model.channels))
    grid, start = student.task.start_of(model, latents, jax.random.key(3), True, MicroBatch())
    given = np.asarray(grid[0] == 0)
    assert grid.shape == (3, 32, 3) and 0.2 < given.any(axis=1).mean() < 0.8 and not given.all(axis=1).any()
    np.testing.assert_array_equal(np.asarray(start)[given], np.asarray(model.statistics.normalise(latents))[given])
    assert (np.asarray(grid)[:, ~given] == np.float32([1.0, 0.5, 0.0])[:, None]).all()


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("generator", {"sampler.guidance_scale": 2.0}, "sampler.guidance_scale=1"),
        ("generator", {"sampler.solver.name": "heun"}, "euler or ddim"),
        ("generator", {"distillation.steps": 5}, "multiple of the student's 2"),
        ("detokenizer", {"losses.perceptual.weight": 0.1}, "one loss"),
        ("detokenizer", {"losses.adversarial.weight": 0.1}, "one loss"),
        ("detokenizer", {"distillation.steps": 3}, "multiple of the student's 2"),
        ("detokenizer", {"model.name": "regression"}, "no steps to save"),
    ],
)
def test_settings_that_cannot_work_are_named(group, changes, message):
    config = CONFIGS[group]("distill")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        tasks.build(config)


def test_teachers_of_another_kind_are_refused():
    student, teacher = generator_config("distill"), generator_config("generator")
    check_teacher(student, teacher)
    teacher.model.transformer.width = 32
    with pytest.raises(UserError, match="config.model.transformer.width differs"):
        check_teacher(student, teacher)
    masked = phenaki.get_config("stage=generator,size=debug")
    masked.parts.teacher = {"checkpoint": "", "model": {}, "hash": ""}
    with pytest.raises(UserError, match="'masked' generator has no steps to save"):
        tasks.build(masked)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["generator"], indirect=True)
def test_a_run_needs_its_teacher_and_takes_its_text(tmp_path, student):
    assert new_text_tokenizer(student.config, build_source(student.config, "train")).length == 6
    config = generator_config("distill")
    (tmp_path / "export").symlink_to(student.folder / "teacher")
    config.parts.tokenizer.checkpoint = ""
    with pytest.raises(UserError, match="pass --config.parts.teacher.checkpoint"):
        complete_config(config, tmp_path)


@pytest.mark.parametrize(("system", "size"), [(videodit, "small"), (videodit, "paper"), (cdt, "small")])
def test_larger_sizes_can_be_planned(system, size):
    config = system.get_config(f"stage=distill,size={size}")
    complete_for_planning(config)
    assert "teacher" in abstract_run(config).frozen


@pytest.mark.slow
@pytest.mark.parametrize("student", ["detokenizer"], indirect=True)
def test_every_evaluation_compares_what_a_decoder_student_decodes_with_its_teacher(student):
    """With the teacher's weights and steps both decode the same."""
    values = student.task.evaluate(student.modules(0), [batch(3, 2)], 0)
    assert {"motion_ratio", "saturation_ratio", "collapse", "psnr"} <= set(values)
    assert "seed_distance_ratio" not in values and np.isfinite(list(values.values())).all()
    alike = student.config.copy_and_resolve_references()
    alike.distillation.steps = alike.model.steps
    values = tasks.build(alike).evaluate(student.modules(0), [batch(3, 2)], 0)
    assert values["motion_ratio"] == values["saturation_ratio"] == 1 and values["collapse"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("student", ["generator"], indirect=True)
def test_every_evaluation_compares_a_student_with_its_teacher(student):
    """A student that is its teacher and draws as it does has all ratios 1; one that draws nothing moves not at all."""
    held_out = [batch(FRAMES, 4)]
    as_teacher = student.config.copy_and_resolve_references()
    with as_teacher.unlocked(), as_teacher.ignore_type():
        as_teacher.distillation.update({"steps": 2, "solver": {"name": "euler"}, "guidance_scale": 1.0})
    task, modules = tasks.build(as_teacher), student.modules(0)
    values = task.evaluate(modules, held_out, 0)
    names = ("motion_ratio", "saturation_ratio", "seed_distance_ratio")
    assert [values[name] for name in names] == pytest.approx([1, 1, 1], abs=0.01)
    assert values["collapse"] < 0.02 and "loss" in values and task.concerns(values) == []
    again = task.evaluate(modules, held_out, 0)
    assert again == values


@pytest.mark.parametrize("group", ["generator", "detokenizer"])
def test_the_best_student_is_not_that_of_the_least_loss(group):
    config = CONFIGS[group]("distill")
    config.checkpoint.keep_best.metric = "loss"
    with pytest.raises(UserError, match="does not tell whether it has collapsed: set .*keep_best.metric to collapse"):
        tasks.build(config)


def test_attention_and_calls_are_saved_by_drawing_and_not_by_training():
    config = generator_config("distill")
    with config.unlocked():
        config.sampler.cache = {"name": "residual"}
    with pytest.raises(UserError, match="leave sampler.attention and sampler.cache out of its training"):
        tasks.build(config)
