"""Training a tokenizer of a frozen tokenizer's continuous latents."""

from typing import Any

from flax import nnx

from videogen import tokenizers
from videogen.tasks.base import Modules, dtype_of
from videogen.tasks.tokenizer import TokenizerTask

VAE = "vae"
"""The frozen tokenizer among ``config.parts``."""


class LatentTokenizerTask(TokenizerTask):
    """Groups as of ``TokenizerTask``. Frozen: ``vae``, a tokenizer with continuous latents.

    ``config.model`` is a tokenizer for clips of one fixed shape; its ``clip`` is in pixels, its ``patch`` in latents.
    """

    parts = {VAE: "tokenizer"}

    def __init__(self, config: Any):
        self.config = config
        # Only its arithmetic is used here; the weights are a frozen module.
        self.vae = nnx.eval_shape(lambda: self.structure_of_part(VAE))
        super().__init__(config)

    def _networks(self, rngs: nnx.Rngs) -> tuple[nnx.Module, nnx.Module]:
        common = dict(dtype=dtype_of(self.config), remat=self.config.parallel.remat, rngs=rngs)
        model = tokenizers.build(tokenizers.of_latents(self.config.model, self.vae), **common)
        return model, tokenizers.OverLatents(self.vae, model)

    @property
    def assembled_model(self) -> dict[str, Any]:
        return {
            "name": "over_latents",
            "vae": self.config.parts[VAE].model.to_dict(),
            "tokenizer": self.config.model.to_dict(),
        }

    def assembled(self, modules: Modules) -> nnx.Module:
        return tokenizers.OverLatents(modules[VAE], modules[self.group])
