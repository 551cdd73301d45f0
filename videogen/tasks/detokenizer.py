"""Training a de-tokenizer: a new decoder for the codes of a frozen tokenizer."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import nnx

from videogen import detokenizers, tokenizers
from videogen.errors import UserError
from videogen.tasks.base import Batch, Keep, Modules, Picture, compute_now, dtype_of
from videogen.tasks.tokenizer import FIDELITY, TokenizerTask, reconstruct

DETERMINISTIC = "deterministic"
"""What is said of the frozen tokenizer's own decoder: prefix of its metrics, name of its clips."""


class DetokenizerTask(TokenizerTask):
    """Group: ``detokenizer`` (and the other networks of ``TokenizerTask``, whose losses it has). Frozen: ``tokenizer``.

    ``config.model`` is the de-tokenizer's config. It and the frozen tokenizer together are a tokenizer with the codes
    of the frozen one (``assembled``), which is what is measured; the frozen one's own decoder is measured beside it.
    """

    group = "detokenizer"
    parts = {"tokenizer": "tokenizer"}

    def __init__(self, config: Any):
        self.config = config
        # Only its arithmetic is used here; the weights are a frozen module.
        self.tokenizer = nnx.eval_shape(lambda: self.structure_of_part("tokenizer"))
        if not self.tokenizer.on_grid:
            raise UserError("the codes of this tokenizer have no place in the picture; no de-tokenizer fits them")
        super().__init__(config)
        # The codebook is the frozen tokenizer's and stays as it is.
        del self.updates[self.group]

    def _networks(self, rngs: nnx.Rngs) -> tuple[nnx.Module, nnx.Module]:
        common = dict(dtype=dtype_of(self.config), remat=self.config.parallel.remat, rngs=rngs)
        model = detokenizers.build(self.config.model, inputs=self.tokenizer.quantizer.width, **common)
        return model, tokenizers.Detokenized(self.tokenizer, model)

    @property
    def assembled_model(self) -> dict[str, Any]:
        return {
            "name": "detokenized",
            "tokenizer": self.config.parts.tokenizer.model.to_dict(),
            "detokenizer": self.config.model.to_dict(),
        }

    def assembled(self, modules: Modules) -> nnx.Module:
        return tokenizers.Detokenized(modules["tokenizer"], modules["detokenizer"])

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """The metrics of a tokenizer, and those of the frozen one's own decoder on the same clips."""
        batches = list(batches)
        own = TokenizerTask.score(modules["tokenizer"], batches, keep=keep, label=DETERMINISTIC)
        values = super().evaluate(modules, batches, seed, keep)
        return values | {f"{DETERMINISTIC}_{name}": own[name] for name in FIDELITY if name in own}

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """Originals beside what the frozen tokenizer's own decoder and the de-tokenizer make of the same codes."""
        video = np.asarray(batch["video"])[:4]
        clips = [video, reconstruct(modules["tokenizer"], video), reconstruct(self.assembled(modules), video)]
        labels = ("original", "frozen decoder", "de-tokenizer")
        return [Picture("reconstructions", list(zip(*clips, strict=True)), [""] * len(video), labels)]
