"""Few-step distillation of a trained generator of latents or de-tokenizer (see ``diffusion.distillation``).

A stage with a part ``teacher`` trains a student: the networks of its task, which begin with the teacher's weights
(``training.warm_start``) and draw with the stage's own few steps what the teacher draws with many, guidance included.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import detokenizers, diffusion, generators
from videogen.configuration import differences
from videogen.errors import UserError
from videogen.metrics.collapse import collapse_ratios, collapsed
from videogen.nn import MicroBatch, named_key
from videogen.shapes import Latents, TokenGrid
from videogen.tasks.base import Batch, Keep, Modules, Outcome, compute_now, to_video
from videogen.tasks.detokenizer import DetokenizerTask
from videogen.tasks.generation import VideoGenerator
from videogen.tasks.generator import GeneratorTask
from videogen.tasks.showing import draw_like
from videogen.tasks.tokenizer import reconstruct

SHARED = ("task", "model", "parts", "text", "classes")
"""Sections of a config in which a student is like its teacher, but for the keys of ``OWN``."""

OWN = (
    *("model.steps", "model.solver", "model.prefix_share"),
    *("parts.tokenizer.checkpoint", "parts.teacher", "parts.text_encoder.checkpoint", "text.tokenizer.path"),
)


def check_teacher(config: Any, teacher: Any) -> None:
    """Refuses a teacher of another model, or on another tokenizer, than the student's.

    Args:
      config: the student's stage config, complete but for the teacher.
      teacher: that of the teacher.
    """
    # Runs of older formats have no hash of their text encoder.
    unknown = [f"parts.{name}.hash" for name, part in teacher.parts.items() if not part.hash]
    changed = [key for key in differences(teacher, config, ignore=[*OWN, *unknown]) if key.partition(".")[0] in SHARED]
    if changed:
        raise UserError(f"a student has the model of its teacher, and config.{changed[0]} differs; give both the same")


class _Student:
    """What the students of both tasks share: the frozen module ``teacher``, and the one loss."""

    parts = {"tokenizer": "tokenizer", "teacher": "trained"}
    training_only: Sequence[str] = ("teacher",)

    @classmethod
    def complete(cls, config: Any, origins: Mapping[str, Any]) -> None:
        super().complete(config, origins)
        if "teacher" in origins:
            check_teacher(config, origins["teacher"])

    def concerns(self, values: Mapping[str, float]) -> list[str]:
        return collapsed(values)

    def structure_of_part(self, name: str) -> nnx.Module:
        return self.init(nnx.Rngs(0))[self.exported[0]] if name == "teacher" else super().structure_of_part(name)

    def _read_steps(self, intervals: int) -> None:
        """The teacher's solver and its steps in each of the student's ``intervals``."""
        if (metric := self.config.checkpoint.keep_best.metric) == "loss":
            raise UserError(
                f"the {metric} of a student does not tell whether it has collapsed: set checkpoint.keep_best.metric to "
                "collapse with mode=min, or leave it empty"
            )
        settings = self.config.distillation
        self.solver = diffusion.build("solver", settings.solver)
        self.substeps = diffusion.substeps_of(self.solver, settings.steps, intervals)

    def distillation_loss(
        self,
        modules: Modules,
        batch: Batch,
        key: jax.Array,
        step: Array,
        micro: MicroBatch | None = None,
        *,
        train: bool = True,
    ) -> tuple[Float[Array, ""], Outcome]:
        """The loss of ``diffusion.distillation``."""
        loss = self._distil(modules, batch, key, train, micro or MicroBatch())
        return loss, Outcome({"loss": loss})


class DistilledGeneratorTask(_Student, GeneratorTask):
    """As ``GeneratorTask``, but a generator of latents learns few steps without guidance from a frozen teacher.

    ``config.sampler`` is what the student is trained for and drawn with: its steps, grid and shift, without guidance.
    ``config.parts.teacher`` is the trained generator, ``config.distillation = {steps, solver, guidance_scale,
    guidance}`` how it draws; its ``steps``, over a whole clip, are a multiple of the student's.
    """

    def __init__(self, config: Any):
        if not generators.class_of(config.model).denoises:
            raise UserError(f"a {config.model.name!r} generator has no steps to save: it cannot learn from a teacher")
        super().__init__(config)
        if not self.generator.process.solved:
            raise UserError("bits are drawn and follow no path for a student to learn: distil generators of latents")
        self.sampler = generators.build_sampler(config.sampler)
        diffusion.check_student(self.sampler.build_solver())
        if self.sampler.guidance_scale != 1 or self.sampler.lag:
            raise UserError(
                "a student learns the guidance of its teacher, for all frames of a clip together: set "
                "sampler.guidance_scale=1 and sampler.lag=0"
            )
        if self.sampler.build_shortcut() is not None:
            raise UserError(
                "a student learns all its attention and all its calls: leave sampler.attention and sampler.cache out "
                "of its training, and give them when you draw"
            )
        settings = {key: config.distillation[key] for key in ("steps", "solver", "guidance_scale", "guidance")}
        self.teacher_sampler = generators.build_sampler({"name": "flow", **settings})
        self._read_steps(self.sampler.steps)

    def generator_loss(
        self,
        modules: Modules,
        batch: Batch,
        key: jax.Array,
        step: Array,
        micro: MicroBatch | None = None,
        *,
        train: bool = True,
    ) -> tuple[Float[Array, ""], Outcome]:
        return self.distillation_loss(modules, batch, key, step, micro, train=train)

    def _distil(
        self, modules: Modules, part: Batch, key: jax.Array, train: bool, micro: MicroBatch
    ) -> Float[Array, ""]:
        constant = {**modules, "generator": without_gradient(modules["generator"])}
        taught = {**modules, "generator": modules["teacher"]}
        latents = jax.lax.stop_gradient(self.tokens(modules, part)).only.values
        model = modules["generator"].generator
        grid, start = self.start_of(model, latents, named_key(key, "begin"), train, micro)

        def denoiser(modules: Modules, sampler: generators.FlowSampler) -> Any:
            return modules["generator"].generator.denoiser(self.conditioning(modules, part), sampler)

        states = diffusion.rollout(denoiser(constant, self.sampler), model.process, grid, start)
        return diffusion.distillation_loss(
            denoiser(modules, self.sampler),
            denoiser(taught, self.teacher_sampler),
            model.process,
            self.solver,
            grid,
            states,
            named_key(key, "loss"),
            substeps=self.substeps,
            micro=micro,
        )

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """The loss, and motion, saturation and distance between seeds against the teacher (``metrics.collapse``).

        Student and teacher draw clips of the texts and labels of the first batch, each by two seeds, from the same
        noise.
        """
        batches = list(batches)
        values = super().evaluate(modules, batches, seed, keep)
        found = keep("collapse", functools.partial(self._against_teacher, modules, batches[0], seed))
        return values | {name: float(value) for name, value in found.items()}

    def _against_teacher(self, modules: Modules, batch: Batch, seed: int) -> dict[str, float]:
        settings = self.config.distillation.to_dict()
        drawing = {
            "student": VideoGenerator(self, modules),
            "teacher": VideoGenerator(self, {**modules, "generator": modules["teacher"]}, settings),
        }
        videos = {}
        for who, generator in drawing.items():
            seeds = (draw_like(self, modules, generator, batch, seed + more)[1] for more in range(2))
            videos[who] = tuple(jnp.asarray(video, jnp.float32) / 255 for video in seeds)
        return collapse_ratios(videos["student"], videos["teacher"])

    def start_of(
        self, model: generators.FlowTransformer, latents: Latents, key: jax.Array, train: bool, micro: MicroBatch
    ) -> tuple[diffusion.distillation.Grid, Latents]:
        """The times of every example and what its sampling begins with: noise, after the frames that are given."""
        batch, frames = latents.shape[:2]
        shape = TokenGrid(*latents.shape[1:4])
        times = jnp.asarray(self.sampler.times(model.process, model.shift_of(shape), frames))
        start = model.noise(micro.keys(named_key(key, "noise"), batch), 0, shape, times[0])
        grid = jnp.broadcast_to(times[:, None], (len(times), batch))
        if not (train and model.prefix_share > 0 and frames > model.patch[0]):
            return grid, start
        given = model.draw_given(micro.keys(named_key(key, "given"), batch), frames)
        start = jnp.where(diffusion.broadcast_right(given, start), model.statistics.normalise(latents), start)
        return jnp.where(given, 0.0, grid[..., None]), start


class DistilledDetokenizerTask(_Student, DetokenizerTask):
    """As ``DetokenizerTask``, but a diffusion decoder learns few steps from a frozen teacher, and has no other loss.

    ``config.model.steps`` are what the student is trained for and decodes with. ``config.parts.teacher`` is the trained
    de-tokenizer, ``config.distillation = {steps, solver}`` how it decodes.
    """

    def __init__(self, config: Any):
        if not detokenizers.class_of(config.model).diffuses:
            raise UserError(f"a {config.model.name!r} decoder has no steps to save; distil a 'diffusion' decoder")
        super().__init__(config)
        for label, term in self.terms.items():
            if term.group or term.frozen(structure_only=True) is not None:
                raise UserError(f"a student has one loss, of its teacher's steps: set losses.{label}.weight to 0")
        diffusion.check_student(diffusion.build("solver", config.model.solver))
        self._read_steps(config.model.steps)

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """The metrics of a de-tokenizer, and motion and saturation of what is decoded from the codes of the first batch
        against what the teacher decodes (``metrics.collapse``). Decoding is from noise of one key: there are no seeds.
        """
        batches = list(batches)
        values = super().evaluate(modules, batches, seed, keep)

        def against_teacher() -> dict[str, float]:
            video, steps = np.asarray(batches[0]["video"]), self.config.distillation.steps
            taught = self.assembled({**modules, self.group: modules["teacher"]})
            clips = reconstruct(self.assembled(modules), video), reconstruct(taught, video, steps=steps)
            student, teacher = (jnp.asarray(clip, jnp.float32) / 255 for clip in clips)
            return collapse_ratios([student], [teacher])

        return values | {name: float(value) for name, value in keep("collapse", against_teacher).items()}

    def tokenizer_loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        return self.distillation_loss(modules, batch, key, step, micro)

    def _distil(
        self, modules: Modules, part: Batch, key: jax.Array, train: bool, micro: MicroBatch
    ) -> Float[Array, ""]:
        student, teacher = modules[self.group], modules["teacher"]
        whole = self.assembled(modules)
        latents = whole.causal(whole.bottleneck(whole.encode(to_video(part["video"])))[0])
        times = jnp.asarray(student.times(student.steps))
        grid = jnp.broadcast_to(times[:, None], (len(times), len(latents)))
        # Decoding starts from noise of one key; learning from any leaves nothing to the numbers of that one.
        keys = micro.keys(named_key(key, "noise"), len(latents))
        start, denoise = without_gradient(student).begin(latents, keys)
        states = diffusion.rollout(denoise, teacher.process, grid, start)
        return diffusion.distillation_loss(
            student.begin(latents, keys)[1],
            teacher.begin(latents, keys)[1],
            teacher.process,
            self.solver,
            grid,
            states,
            named_key(key, "loss"),
            substeps=self.substeps,
            micro=micro,
        )


def without_gradient(module: nnx.Module) -> nnx.Module:
    """The module with parameters that carry no gradient."""
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, state))
