"""Training a video tokenizer: reconstruction, quantizer, perceptual and adversarial losses."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Float

from videogen import encoders, losses, tokenizers
from videogen.building import look_up
from videogen.data import read_buckets
from videogen.errors import UserError
from videogen.metrics import gradient_sharpness, psnr, ssim, to_unit
from videogen.metrics.fidelity import SSIM_WINDOW
from videogen.nn import MicroBatch, named_key
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.quantizers import UsageWatch, codebook_health, evaluated_health
from videogen.shapes import Latents, Video, VideoShape
from videogen.tasks.base import (
    PUBLISHED,
    Batch,
    Keep,
    Modules,
    Outcome,
    Picture,
    Task,
    compute_now,
    dtype_of,
    to_pixels,
    to_video,
)
from videogen.tokenizers import Compared, Encoded
from videogen.tokens import Tokens

FIDELITY = {"psnr": psnr, "ssim": ssim, "gradient_sharpness": gradient_sharpness}
"""What reconstructions are measured by, clip by clip."""

SMALLEST = {"ssim": SSIM_WINDOW, "gradient_sharpness": 2}
"""Metric -> the fewest rows and columns it can be taken of; where clips have fewer it is left out."""


def measurable(height: int, width: int) -> list[str]:
    """Names in ``FIDELITY`` of what can be measured of clips of this size."""
    return [name for name in FIDELITY if min(height, width) >= SMALLEST.get(name, 1)]


class Reconstruction(NamedTuple):
    """What becomes of encoded clips.

    Attributes:
      compared: what is compared with the clips.
      latents: quantised ones.
      tokens: theirs.
      losses: of the quantizer.
      measured: ``Quantized.measured``.
    """

    compared: Compared
    latents: Latents
    tokens: Tokens
    losses: dict[str, Float[Array, ""]]
    measured: dict[str, Any]

    @property
    def prediction(self) -> Video:
        """What stands beside the clips."""
        return self.compared.video


class TokenizerTask(Task):
    """Group: ``tokenizer``, and those that terms of its losses bring (a discriminator, a prior).

    ``config.losses = {term: {name, weight, …}}`` are terms of ``losses.TERMS``; a weight of 0 leaves a term and its
    network out.

    Training compares with the video what ``Tokenizer.denoise`` gives: of a diffusion decoder what it sees in a noisy
    video (``l2`` is the diffusion loss), of others what they decode.
    """

    group = "tokenizer"
    """The parameter group that learns to reconstruct."""

    def __init__(self, config: Any):
        self.config, self.watch = config, UsageWatch()
        clip = config.data.clip
        if left_out := set(FIDELITY) - set(measurable(clip.height, clip.width)):
            size = f"{clip.height}x{clip.width}"
            logging.info("clips of %s pixels are too small for %s: left out", size, ", ".join(sorted(left_out)))
        self.terms = self._terms(nnx.eval_shape(lambda: self._networks(nnx.Rngs(0))[1]))
        self.losses, self.active = {self.group: self.tokenizer_loss}, {}
        self.updates = {self.group: self._update_quantizer}
        for term in self.terms.values():
            if term.group:
                self.losses[term.group] = functools.partial(self._group_loss, term)
                self.updates[term.group] = functools.partial(self._update_group, term)
                self.active[term.group] = term.moves
        # The other networks serve training only.
        self.exported = (self.group,)
        self.training_only = (*type(self).training_only, *self.terms, *self.teachers)

    def _terms(self, model: nnx.Module) -> dict[str, losses.Term]:
        """The terms of the losses of a tokenizer, of which only the structure is there."""
        clip, parallel = self.config.data.clip, self.config.parallel
        shape = VideoShape(clip.frames, clip.height, clip.width)
        self.tokens = model.layout(shape).tokens
        self.bucket_tokens = [model.layout(bucket.shape).tokens for bucket in read_buckets(self.config.data)]
        built_for = dict(remat=parallel.remat, dtype=dtype_of(self.config))
        teachers = {name: nnx.eval_shape(lambda n=name: self.structure_of_part(n)) for name in self.teachers}
        about = dict(features=model.features, parts=teachers, compression=model.feature_compression)
        setting = losses.Setting(shape, self.tokens, model.quantizer.width, self.config.steps, **about, **built_for)
        return losses.build(self.config.losses, setting)

    @classmethod
    def parts_of(cls, config: Any) -> Mapping[str, str]:
        return {**super().parts_of(config), **dict.fromkeys(losses.parts_of(config.losses), PUBLISHED)}

    @property
    def teachers(self) -> list[str]:
        """The parts that terms of the losses read."""
        return losses.parts_of(self.config.losses)

    def structure_of_part(self, name: str) -> nnx.Module:
        if name not in self.teachers:
            return super().structure_of_part(name)
        model = self.config.parts[name].model
        look_up(encoders.SEEN, model, f"encoder (parts.{name}.model)")
        if set(model) == {"name"}:
            raise UserError(f"config.parts.{name}.checkpoint must be the folder that {model.name!r} is published in")
        return encoders.described(model, dtype=dtype_of(self.config))

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        modules = {self.group: self._networks(rngs)[0]}
        return modules | {term.group: term.module(rngs) for term in self.terms.values() if term.group}

    def _networks(self, rngs: nnx.Rngs) -> tuple[nnx.Module, nnx.Module]:
        """What learns to reconstruct, and the tokenizer it is part of."""
        model = tokenizers.build(
            self.config.model, dtype=dtype_of(self.config), remat=self.config.parallel.remat, rngs=rngs
        )
        return model, model

    def assembled(self, modules: Modules) -> nnx.Module:
        """What is trained, evaluated and shown."""
        return modules["tokenizer"]

    def frozen(self, load: Any) -> dict[str, nnx.Module]:
        found = {label: term.frozen(structure_only=load is None) for label, term in self.terms.items()}
        return super().frozen(load) | {label: module for label, module in found.items() if module is not None}

    def forward(
        self, modules: Modules, batch: Batch, key: jax.Array, micro: MicroBatch
    ) -> tuple[losses.Outputs, dict[str, Callable[[Video], Any]]]:
        """What the terms of the losses read of clips; and of each pass that a term asks it of, what maps a gradient of
        the reconstruction to one of the decoder's last layer."""
        model, video = self.assembled(modules), to_video(batch["video"])
        encoded, name = self.encoded(model, batch, video, key, micro), losses.RECONSTRUCTION
        made, pull = self.reconstruction(model, encoded, video, key, micro, name)
        passes = {name: losses.Pass(made.prediction, video)}
        passes |= {name: losses.Pass(*pair) for name, pair in made.compared.passes.items()}
        return self.outputs(modules, video, passes, encoded, made), {name: pull}

    def encoded(self, model: nnx.Module, batch: Batch, video: Video, key: jax.Array, micro: MicroBatch) -> Encoded:
        """What the model makes of the clips of a batch in training; the key decides what is drawn."""
        return model.encode(video)

    def reconstruction(
        self, model: nnx.Module, encoded: Encoded, video: Video, key: jax.Array, micro: MicroBatch, name: str
    ) -> tuple[Reconstruction, Callable[[Video], Any] | None]:
        """What becomes of encoded clips in a pass; and what maps its gradients, where a term asks for that."""
        keys = micro.keys(named_key(key, "quantizer"), len(video))
        latents, tokens, of_quantizer, measured = model.bottleneck(encoded, key=keys, train=True, mean=micro.mean)
        seen = model.seen(tokens)

        def compare(model: nnx.Module) -> Compared:
            return model.compare(encoded, latents, video, named_key(key, "decoder"), micro, **seen)

        if any(term.adaptive and term.reads == name for term in self.terms.values()):
            compared, pull = _to_last_layer(model, compare)
        else:
            compared, pull = compare(model), None
        measured = {**measured, "compared": dict(compared.sums)}
        return Reconstruction(compared, latents, tokens, of_quantizer, measured), pull

    def outputs(
        self,
        modules: Modules,
        video: Video,
        passes: dict[str, losses.Pass],
        encoded: Encoded,
        made: Reconstruction,
    ) -> losses.Outputs:
        """What the terms read, where passes, latents and tokens are these."""
        codebook = self.assembled(modules).quantizer.code_vectors()
        features = {"encoded": encoded.values, "vectors": made.latents, **encoded.extra, **made.compared.features}
        for label, term in self.terms.items():
            given = term.features(modules, video)
            if taken := sorted(given.keys() & features.keys()):
                raise UserError(f"losses.{label}: {taken[0]!r} is the name of a feature already; give the term another")
            features |= given
        found = {"quantizer": made.losses, "measured": made.measured}
        return losses.Outputs(passes, made.latents, made.tokens.flat, codebook, features, **found)

    def tokenizer_loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the terms and of the quantizer's losses."""
        micro = micro or MicroBatch()
        outputs, pulls = self.forward(modules, batch, key, micro)
        total, metrics = losses.combine(self.terms, modules, outputs, key, step, micro, pulls)
        more, sums, rows = self.found(outputs)
        for_groups = {"outputs": outputs.detached()} if len(self.losses) > 1 else {}
        return total, Outcome({**metrics, **more}, for_groups, sums, rows)

    def found(self, outputs: losses.Outputs) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Further metrics, and the sums and rows that ``_update_quantizer`` needs."""
        sums = dict(outputs.measured)
        return sums.pop("figures"), sums, sums.pop("candidates")

    def _update_quantizer(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Float[Array, ""]]:
        """Moves what the quantizer measures, by all videos and images of the step; its health."""
        model = modules[self.group]
        model.update(sums, rows, named_key(key, "update"))
        return codebook_health(sums["counts"], model.quantizer.counted)

    def _group_loss(
        self, term: losses.Term, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch
    ) -> tuple[Float[Array, ""], Outcome]:
        """What the group of a term minimises."""
        loss, metrics, sums = term.group_value(modules, batch["outputs"], key, step, micro)
        return loss, Outcome(metrics, sums=sums)

    def _update_group(
        self, term: losses.Term, modules: Modules, sums: dict[str, Any], rows: Any, key: jax.Array, step: Array
    ) -> dict[str, Float[Array, ""]]:
        """Moves what the group of a term measures."""
        term.update(modules[term.group], sums, step)
        return {}

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """PSNR, SSIM, sharpness and codebook health over all batches, and the nominal bits per pixel of discrete codes.

        A codebook that is hardly used, or half as much as in the best evaluation since the process began, is named in
        the log, with the remedy. Other uses of the same weights (``Tokenizer.variants``) have values of their own.
        """
        model, batches = self.assembled(modules), list(batches)
        values = self.score(model, batches, self.watch, keep)
        for name, variant in model.variants.items():
            found = self.score(variant, batches, keep=keep, label=name)
            values |= {f"{name}_{metric}": value for metric, value in found.items()}
        return values

    @staticmethod
    def score(
        model: nnx.Module,
        batches: Iterable[Batch],
        watch: UsageWatch | None = None,
        keep: Keep = compute_now,
        label: str = "scores",
        **decoding: Any,
    ) -> dict[str, float]:
        """``evaluate`` of a tokenizer of any origin, on the mesh that it lies on; ``decoding`` are settings of its
        ``decode``, ``label`` names what is kept of it."""
        check_pixels(model)
        graph, state = nnx.split(model)
        mesh = mesh_of(state)
        score = jax.jit(lambda state, video: _score(nnx.merge(graph, state), video, decoding))

        def measure(video: Any) -> dict[str, np.ndarray]:
            # Not filled up: the codes of every clip are counted.
            with inside(mesh):
                of_clips, counts = score(state, spread(video, mesh))
            return {name: on_host(array) for name, array in (of_clips | {"counts": counts}).items()}

        scores, counts = [], 0
        for i, batch in enumerate(batches):
            scores.append(dict(keep(f"{label}_{i}", functools.partial(measure, batch["video"]))))
            counts = counts + scores[-1].pop("counts")
        shape = VideoShape(*batch["video"].shape[1:4])
        if warning := (watch or UsageWatch()).warning(model.quantizer, counts):
            logging.warning("%s", warning)
        values = {name: float(np.mean(np.concatenate([s[name] for s in scores]))) for name in scores[0]}
        if model.vocabulary:
            values.setdefault("bits_per_pixel", model.layout(shape).bits / shape.pixels)
        return values | evaluated_health(counts, model.quantizer.counted)

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """Originals beside reconstructions."""
        video = np.asarray(batch["video"])[:4]
        rebuilt = reconstruct(self.assembled(modules), video)
        return [Picture("reconstructions", list(zip(video, rebuilt, strict=True)), [""] * len(video))]


def _to_last_layer(
    model: nnx.Module, compare: Callable[[nnx.Module], Compared]
) -> tuple[Compared, Callable[[Video], Any]]:
    """What the model gives, and pixel gradient -> gradient of the decoder's last layer; a constant."""
    path = model.last_layer
    graph, last, rest = nnx.split(model, lambda at, _: tuple(at[: len(path)]) == path, ...)

    def of_last(last: nnx.State) -> tuple[Video, Compared]:
        compared = compare(nnx.merge(graph, last, rest))
        return compared.video, compared

    video, pull, compared = jax.vjp(of_last, last, has_aux=True)
    return compared._replace(video=video), lambda gradient: jax.lax.stop_gradient(pull(gradient))


def check_pixels(model: nnx.Module) -> None:
    """Raises ``UserError`` for a model that encodes something else than pixels: it reconstructs no clips of them."""
    if model.field != "video":
        raise UserError(f"this model draws clips from {model.field}, not from pixels: use --protocol=signs")


def reconstruct(model: nnx.Module, video: np.ndarray, **decoding: Any) -> np.ndarray:
    """uint8 clips -> their uint8 reconstructions, on the mesh that the tokenizer lies on; ``decoding`` are settings of
    its ``decode``."""
    return reconstructor(model, **decoding)(video)


def reconstructor(model: nnx.Module, **decoding: Any) -> Callable[[np.ndarray], np.ndarray]:
    """``reconstruct`` with one tokenizer, compiled once for all batches of a size."""
    check_pixels(model)
    graph, state = nnx.split(model)
    mesh = mesh_of(state)

    @jax.jit
    def run(state: Any, pixels: Array) -> Array:
        model = nnx.merge(graph, state)
        latents, tokens, *_ = model.bottleneck(model.encode(to_video(pixels)))
        sized = model.sized(VideoShape(*pixels.shape[1:4]))
        return model.decode(latents, **model.seen(tokens), **sized, **decoding)

    def rebuild(video: np.ndarray) -> np.ndarray:
        with inside(mesh):
            return to_pixels(run(state, spread(padded(video, mesh), mesh)))[: len(video)]

    return rebuild


def _score(model: nnx.Module, pixels: Array, decoding: dict[str, Any]) -> tuple[dict[str, Array], Array]:
    """Each metric of every clip, and the counts of the codes used."""
    video = to_video(pixels)
    latents, tokens, _, statistics = model.bottleneck(model.encode(video))
    seen, sized = model.seen(tokens), model.sized(VideoShape(*video.shape[1:4]))
    rebuilt, original = to_unit(model.decode(latents, **seen, **sized, **decoding)), to_unit(video)
    scores = {name: FIDELITY[name](rebuilt, original) for name in measurable(*video.shape[2:4])}
    if model.vocabulary and seen:
        bits = tokens.bits() + model.lengths.bits(tokens.only.layout)
        scores["bits_per_pixel"] = bits / VideoShape(*video.shape[1:4]).pixels
    return scores, statistics["counts"]
