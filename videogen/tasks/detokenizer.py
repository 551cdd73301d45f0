"""Training a de-tokenizer: a new decoder for the codes of a frozen tokenizer."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from flax import nnx

from videogen import detokenizers, tokenizers
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tasks.base import Batch, Modules, Picture, dtype_of
from videogen.tasks.tokenizer import FIDELITY, TokenizerTask, reconstruct

DETERMINISTIC = "deterministic"
"""What is said of the frozen tokenizer's own decoder: prefix of its metrics, name of its clips."""


class DetokenizerTask(TokenizerTask):
    """Group: ``detokenizer`` (and the other networks of ``TokenizerTask``, whose losses it has). Frozen: ``tokenizer``.

    ``config.model`` is the de-tokenizer's config, ``config.tokenizer`` the frozen tokenizer: ``{checkpoint, model,
    hash}``, as for generators. Both together are a tokenizer with the codes of the frozen one (``assembled``), which
    is what is measured; the frozen tokenizer's own decoder is measured beside it.
    """

    group = "detokenizer"

    def __init__(self, config: Any):
        self.config = config
        # Only its arithmetic is used here; the weights are a frozen module.
        self.tokenizer = nnx.eval_shape(self._build_tokenizer)
        clip = config.data.clip
        shape = VideoShape(clip.frames, clip.height, clip.width)
        if self.tokenizer.grid(shape).shape != shape.grid(self.tokenizer.compression).shape:
            raise UserError("the codes of this tokenizer have no place in the picture; no de-tokenizer fits them")
        super().__init__(config)
        # The codebook is the frozen tokenizer's and stays as it is.
        del self.updates[self.group]

    def _build_tokenizer(self) -> nnx.Module:
        model = self.config.tokenizer.model
        return tokenizers.build(model, dtype=dtype_of(self.config), remat="none", rngs=nnx.Rngs(0))

    def _networks(self, rngs: nnx.Rngs) -> tuple[nnx.Module, nnx.Module]:
        common = dict(dtype=dtype_of(self.config), remat=self.config.parallel.remat, rngs=rngs)
        width = tokenizers.vector_width(self.tokenizer)
        model = detokenizers.build(self.config.model, inputs=width, **common)
        return model, tokenizers.Detokenized(self.tokenizer, model)

    def frozen(self, load: Any) -> dict[str, nnx.Module]:
        tokenizer = self._build_tokenizer() if load is None else load(self.config.tokenizer.checkpoint)
        return {"tokenizer": tokenizer, **super().frozen(load)}

    @staticmethod
    def complete(config: Any, tokenizer_model: Any, tokenizer_hash: str) -> None:
        """Writes into a config what the frozen tokenizer is, so that the run directory needs nothing else."""
        config.tokenizer.model, config.tokenizer.hash = tokenizer_model, tokenizer_hash

    @property
    def assembled_model(self) -> dict[str, Any]:
        """The config that builds what ``assembled`` gives."""
        return {
            "name": "detokenized",
            "tokenizer": self.config.tokenizer.model.to_dict(),
            "detokenizer": self.config.model.to_dict(),
        }

    def assembled(self, modules: Modules) -> nnx.Module:
        return tokenizers.Detokenized(modules["tokenizer"], modules["detokenizer"])

    def evaluate(self, modules: Modules, batches: Iterable[Batch], seed: int) -> dict[str, float]:
        """The metrics of a tokenizer, and those of the frozen one's own decoder on the same clips."""
        batches = list(batches)
        own = TokenizerTask.score(modules["tokenizer"], batches)
        values = super().evaluate(modules, batches, seed)
        return values | {f"{DETERMINISTIC}_{name}": own[name] for name in FIDELITY if name in own}

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """Originals beside what the frozen tokenizer's own decoder and the de-tokenizer make of the same codes."""
        video = np.asarray(batch["video"])[:4]
        clips = [video, reconstruct(modules["tokenizer"], video), reconstruct(self.assembled(modules), video)]
        labels = ("original", "frozen decoder", "de-tokenizer")
        return [Picture("reconstructions", list(zip(*clips, strict=True)), [""] * len(video), labels)]
