"""Stand-ins for public networks as stages: a classifier of clips and a language model of captions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videogen import building
from videogen.encoders import ENCODERS
from videogen.errors import UserError
from videogen.parallel import on_host
from videogen.tasks.base import Batch, Keep, Modules, Outcome, Task, compute_now, dtype_of


class StandInTask(Task):
    """A network of ``encoders``, the parameter group ``model``, trained from nothing.

    ``config.model`` is its section, by its name in ``encoders.ENCODERS``.
    """

    exported = ("model",)

    def __init__(self, config: Any):
        self.config = config
        self.losses = {"model": self.loss}
        self.bucket_tokens = [1] * max(len(config.data.buckets), 1)

    def sizes(self) -> dict[str, int]:
        """The settings of the network that follow from the data."""
        raise NotImplementedError

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        common = dict(dtype=dtype_of(self.config), rngs=rngs)
        return {"model": building.build(ENCODERS, self.config.model, "model", **self.sizes(), **common)}

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return None

    def values(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """Metric -> its value for each example; the mean of ``loss`` is minimised."""
        raise NotImplementedError

    def loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: jax.Array, micro: Any = None
    ) -> tuple[jax.Array, Outcome]:
        """The mean of the loss over the examples, and of all metrics."""
        metrics = {name: jnp.mean(value) for name, value in self.values(modules["model"], batch).items()}
        return metrics["loss"], Outcome(metrics)

    def evaluate(self, modules, batches, seed, keep: Keep = compute_now):
        graph, state = nnx.split(modules["model"])
        compute = jax.jit(lambda state, batch: self.values(nnx.merge(graph, state), batch))
        found: dict[str, list[np.ndarray]] = {}
        for i, batch in enumerate(batches):
            said = {name: batch[name] for name in ("video", "label", "text_ids", "text_mask") if name in batch}
            values = keep(f"batch_{i}", lambda said=said: jax.tree.map(on_host, compute(state, said)))
            for name, value in values.items():
                found.setdefault(name, []).append(np.asarray(value, np.float64))
        return {name: float(np.concatenate(parts).mean()) for name, parts in found.items()}


class ClassifierTask(StandInTask):
    """Cross-entropy of the labels of clips; ``config.classes`` is their number."""

    def sizes(self):
        return {"classes": self.config.classes}

    def values(self, model, batch):
        if "label" not in batch:
            raise UserError("the clips have no labels: a classifier needs a source with classes")
        logits, labels = model.logits(model(batch["video"])), batch["label"]
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
        return {"loss": loss, "accuracy": (logits.argmax(-1) == labels).astype(jnp.float32)}


class CaptionsTask(StandInTask):
    """Likelihood of captions, in nats each, its end included; clips are not looked at."""

    def sizes(self):
        return {"vocabulary_size": self.config.text.tokenizer.vocabulary_size}

    def values(self, model, batch):
        ids, mask = batch["text_ids"], batch["text_mask"]
        return {"loss": -model.log_likelihood(ids, mask), "tokens": mask.sum(1) + 1.0}


def grammar(metrics: dict[str, float], *sources: Any) -> dict[str, float]:
    """Perplexity of a token, and the one of the grammar itself: of a draw among all captions of the sources.

    A model that has learned the grammar, but not which captions were kept from it, is as sure as a draw among those of
    both splits.
    """
    entropy = math.log(sum(len(source.captions()) for source in sources))
    return {
        "perplexity": math.exp(metrics["loss"] / metrics["tokens"]),
        "perplexity_of_the_grammar": math.exp(entropy / metrics["tokens"]),
        "entropy_of_the_grammar": entropy,
    }
