"""Training a generator of continuous latents on top of a frozen tokenizer."""

from typing import Any

from jaxtyping import Array

from videogen.errors import UserError
from videogen.shapes import Latents, Video
from videogen.tasks.base import Batch, Modules
from videogen.tasks.generator import GeneratorTask
from videogen.tokens import Segment, Tokens


class LatentGeneratorTask(GeneratorTask):
    """As ``GeneratorTask``, but latents of a tokenizer with continuous ones stand in the place of codes.

    The generator measures the scale of the latents.
    """

    label_as_vector = True

    def __init__(self, config: Any):
        super().__init__(config)
        self.updates = {"generator": self._update_statistics}

    def _check_latents(self) -> None:
        if self.tokenizer.vocabulary:
            raise UserError(
                "a flow generator models continuous latents, and this tokenizer makes codes; take one with a Gaussian "
                "bottleneck (config.parts.tokenizer.model.quantizer.name = gaussian)"
            )
        if not self.tokenizer.on_grid:
            raise UserError(
                f"the latents of a {self.config.parts.tokenizer.model.name!r} tokenizer have no place in the picture, "
                "which a flow generator needs; take another"
            )

    def check_sampler(self, sampler: Any) -> None:
        super().check_sampler(sampler)
        if sampler.extension == "queue" and not self.tokenizer.streams:
            raise UserError("a queue of frames needs a tokenizer that decodes in chunks; use extension=window")

    def _modelled(self) -> dict[str, Any]:
        return {"channels": self.tokenizer.quantizer.width}

    def codes(self, modules: Modules, batch: Batch) -> Latents:
        """Latents of a batch: from a token cache, or by the frozen tokenizer."""
        return self.tokens(modules, batch).only.values

    def _measured(self, modules: Modules, codes: Latents) -> dict[str, Array]:
        return modules["generator"].generator.statistics.sums(codes)

    def _update_statistics(
        self, modules: Modules, sums: dict[str, Array], rows: dict[str, Any], key: Array, step: Array
    ) -> dict[str, Array]:
        """Moves the latents' statistics by all videos and images of the step; a student has those of its teacher."""
        if sums:
            modules["generator"].generator.statistics.update(sums)
        return {}

    def detokenize(self, modules: Modules, codes: Latents) -> Video:
        tokenizer = modules["tokenizer"]
        layout = tokenizer.layout_of(codes.shape[1:-1])
        return tokenizer.detokenize(Tokens.of(**{layout.names[0]: Segment(codes, layout.only)}))
