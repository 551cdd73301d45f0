"""Training a tokenizer that decides how many tokens a clip needs: act, measure, learn to act so when asked for that."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen import building, losses
from videogen.errors import UserError
from videogen.nn import MicroBatch, named_key
from videogen.parallel import inside, mesh_of, on_host, spread
from videogen.ranges import Count, Natural, Share
from videogen.shapes import Video
from videogen.tasks.base import Batch, Keep, Modules, compute_now, to_video
from videogen.tasks.tokenizer import Reconstruction, TokenizerTask
from videogen.tokenizers.lengths import ASKED, HALTING
from videogen.tokenizers.requests import Request, bin_of, easier, harder

ESTIMATE, COMPLETE = "estimate", "complete"
"""The passes: a drawn number of tokens and the error it reaches; all tokens, asked for that error."""

HALTS = {name: f"{name}_halting" for name in (ESTIMATE, COMPLETE)}
"""Pass -> the pass that has its logits that a token is not needed, and which of them are not."""

MEASURED = (0.03, 0.05, 0.09)
"""The errors that an evaluation asks for (KARL, section 8)."""

TOLERANCE = 1.1
"""A clip misses an error that it exceeds by more than a tenth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passes:
    """The section ``passes``: how the two passes of a step are drawn (KARL, section 4).

    Attributes:
      step: the first pass has a multiple of this many tokens, all equally likely.
      easier_at: with so many tokens the second pass may be asked for a larger error than the first one reached.
      replaced: how likely a clip is asked for another error, where that is possible.
    """

    step: Count = 16
    easier_at: Natural = 32
    replaced: Share = 0.45


class AdaptiveTokenizerTask(TokenizerTask):
    """The groups and losses of ``TokenizerTask`` for a tokenizer with ``adapts``, in two passes of the same weights.

    ``estimate`` draws a number T of tokens, one for the whole batch, and asks for errors near nothing; no token that
    exists is hidden from the decoder. ``complete`` has all tokens and is asked for the error that each clip had: the
    first T are needed for it and the others are not, which is what the logits learn (the terms ``halting``), and the
    decoder sees what they say. With all tokens in the first pass, some clips are asked for a smaller error instead, and
    with ``easier_at`` for a larger one. No gradient passes the errors.

    The requested errors of the first pass drift (``requests.RequestedErrors``); they are a variable of the tokenizer.
    """

    def __init__(self, config: Any):
        building.check_value("config.passes", Mapping, config.passes)
        self.passes = building.build({"passes": Passes}, {"name": "passes", **config.passes}, "section")
        super().__init__(config)

    def _terms(self, model: nnx.Module) -> dict[str, losses.Term]:
        if not model.adapts:
            raise UserError(
                "this tokenizer does not say which tokens are needed; train it with --config.task=tokenizer"
            )
        if self.passes.step > model.longest:
            raise UserError(f"config.passes.step must be at most the {model.longest} tokens there are")
        return super()._terms(model)

    def forward(
        self, modules: Modules, batch: Batch, key: jax.Array, micro: MicroBatch
    ) -> tuple[losses.Outputs, dict[str, Callable[[Video], Any]]]:
        model, video = self.assembled(modules), to_video(batch["video"])
        keys = {name: named_key(key, name) for name in (ESTIMATE, COMPLETE)}
        # One number for all clips: discriminators are picked by it.
        budget = self.budget(named_key(key, "budget"), model.longest)
        wanted = model.requested.draw(micro.keys(named_key(key, "requests"), len(video)))
        encoded = model.read(video, wanted, budget, model.longest)
        as_it_is = encoded._replace(extra={**encoded.extra, ASKED: encoded.exists})
        first, first_pull = self.reconstruction(model, as_it_is, video, keys[ESTIMATE], micro, ESTIMATE)
        errors = jax.lax.stop_gradient(clip_errors(first.prediction, video))
        wanted = self.second_request(bin_of(errors), budget, model.codes, micro, named_key(key, "replaced"))
        encoded_again = model.read(video, wanted)
        second, second_pull = self.reconstruction(model, encoded_again, video, keys[COMPLETE], micro, COMPLETE)
        logits, again = encoded.extra[HALTING], encoded_again.extra[HALTING]
        not_needed = jnp.broadcast_to(jnp.arange(model.codes) >= budget, again.shape)
        passes = {
            ESTIMATE: losses.Pass(first.prediction, video, tokens=budget),
            COMPLETE: losses.Pass(second.prediction, video, tokens=jnp.asarray(model.codes)),
            HALTS[ESTIMATE]: losses.Pass(logits, jnp.zeros_like(logits), exists=encoded.exists),
            HALTS[COMPLETE]: losses.Pass(again, not_needed.astype(again.dtype)),
        }
        both = second._replace(
            losses={name: loss + first.losses[name] for name, loss in second.losses.items()},
            measured=together(first.measured, second.measured, len(video)),
        )
        outputs = self.outputs(modules, video, passes, encoded_again, both)
        outputs.features.update(errors=errors, kept=kept_counts(second, model.codes))
        return outputs, {ESTIMATE: first_pull, COMPLETE: second_pull}

    def budget(self, key: jax.Array, longest: int) -> Int[Array, ""]:
        """Draws the number of tokens of the first pass."""
        return self.passes.step * jax.random.randint(key, (), 1, longest // self.passes.step + 1)

    def second_request(
        self, reached: Int[Array, "batch"], budget: Int[Array, ""], codes: int, micro: MicroBatch, key: jax.Array
    ) -> Int[Array, "batch"]:
        """What the second pass is asked for, where the first one reached these bins with so many tokens."""
        keys = {name: micro.keys(named_key(key, name), len(reached)) for name in ("whether", "harder", "easier")}
        other = jnp.where(budget == self.passes.easier_at, easier(reached, keys["easier"]), reached)
        other = jnp.where(budget >= codes, harder(reached, keys["harder"]), other)
        replaced = jax.vmap(lambda key: jax.random.bernoulli(key, self.passes.replaced))(keys["whether"])
        return jnp.where(replaced, other, reached)

    def found(self, outputs: losses.Outputs) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        metrics, sums, candidates = super().found(outputs)
        errors, kept = outputs.features["errors"], outputs.features["kept"]
        metrics |= {"estimated_error": errors.mean(), "kept": kept.mean()}
        metrics["budget"] = outputs.passes[ESTIMATE].tokens.astype(jnp.float32)
        return metrics, sums, {"candidates": candidates, "errors": errors}

    def _update_quantizer(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Float[Array, ""]]:
        self.assembled(modules).requested.update(rows["errors"].min())
        return super()._update_quantizer(modules, sums, rows["candidates"], key, step)

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """The metrics of a tokenizer at its own error; and for each of ``MEASURED``: ``kept_at_E``, tokens of a clip,
        ``error_at_E``, and ``missed_at_E``, the share of clips whose error is larger by more than a tenth."""
        batches = list(batches)
        values = super().evaluate(modules, batches, seed, keep)
        graph, state = nnx.split(self.assembled(modules))
        mesh = mesh_of(state)

        @functools.partial(jax.jit, static_argnums=2)
        def measure(state: Any, pixels: Array, error: float) -> dict[str, Array]:
            model, video = nnx.merge(graph, state), to_video(pixels)
            tokens = model.tokenize(video, Request(error))
            kept = tokens.only.seen
            count = jnp.full(len(video), model.codes) if kept is None else kept.sum(-1)
            return {"error": clip_errors(model.detokenize(tokens), video), "kept": count}

        def of_batch(pixels: Any, error: float) -> dict[str, np.ndarray]:
            with inside(mesh):
                return {name: on_host(x) for name, x in measure(state, spread(pixels, mesh), error).items()}

        for error in MEASURED:
            found = [
                keep(f"asked_{error}_{i}", functools.partial(of_batch, batch["video"], error))
                for i, batch in enumerate(batches)
            ]
            reached = np.concatenate([one["error"] for one in found])
            values |= {
                f"kept_at_{error}": float(np.concatenate([one["kept"] for one in found]).mean()),
                f"error_at_{error}": float(reached.mean()),
                f"missed_at_{error}": float((reached > TOLERANCE * error).mean()),
            }
        return values


def clip_errors(prediction: Video, video: Video) -> Float[Array, "batch"]:
    """Mean absolute error of every clip, of values in [-1, 1]."""
    return jnp.mean(jnp.abs(prediction - video), axis=tuple(range(1, video.ndim)))


def kept_counts(made: Reconstruction, codes: int) -> Float[Array, "batch"]:
    """How many tokens of every clip the decoder sees."""
    seen = made.tokens.only.seen
    return jnp.full(len(made.prediction), float(codes)) if seen is None else seen.sum(-1).astype(jnp.float32)


def together(first: dict[str, Any], second: dict[str, Any], batch: int) -> dict[str, Any]:
    """What the quantizer measured in two passes; candidates of one example stand together, as ``MicroBatch.join`` asks
    for."""
    sums = [{name: x for name, x in one.items() if name not in ("candidates", "figures")} for one in (first, second)]

    def joined(a: Array, b: Array) -> Array:
        rows = jnp.concatenate([x.reshape(batch, -1, *x.shape[1:]) for x in (a, b)], axis=1)
        return rows.reshape(-1, *a.shape[1:])

    candidates = jax.tree.map(joined, first["candidates"], second["candidates"])
    figures = {name: (first["figures"][name] + second["figures"][name]) / 2 for name in first["figures"]}
    return {**jax.tree.map(jnp.add, *sums), "candidates": candidates, "figures": figures}
