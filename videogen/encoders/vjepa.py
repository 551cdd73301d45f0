"""V-JEPA (Bardes et al., 2024): a video transformer with fixed positions, read with the pooling of its probe."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.attentive import AttentivePooling
from videogen.encoders.files import Weights
from videogen.encoders.loading import Source, block_names, fill, linear_names, norm_names
from videogen.encoders.preprocessing import IMAGENET_STATISTICS, Preprocessing
from videogen.encoders.vit import Patches, Seen, tower
from videogen.errors import UserError
from videogen.nn import parameter, zeros

HEADS = {192: 3, 384: 6, 768: 12}
"""Width -> heads of the published sizes; the larger ones have 16."""

BEFORE = re.compile(r"^(target_encoder\.|classifier\.)(module\.)?(backbone\.)?")
"""What stands before the names of the encoder that is used, and of the probe, in the published files."""


class Vjepa(Seen):
    """The encoder and the pooling of an attentive probe, from the two published files.

    Args:
      frames, image_size: of the clips it takes.
      tubelet, patch: frames and pixels of a box.
      width, layers, heads, hidden: sizes of the transformer.
    """

    CONFIGURED = False
    SKIPPED = ("encoder.*", "predictor.*", "opt.*", "scaler.*", "linear.*")

    moving = True

    def __init__(
        self,
        *,
        frames: int,
        image_size: int,
        tubelet: int,
        patch: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.frames, self.side, self.width = frames, image_size, width
        self.patches = Patches((tubelet, patch, patch), width, dtype=dtype, rngs=rngs)
        places = (frames // tubelet) * (image_size // patch) ** 2
        self.positions = parameter(rngs, (places, width), (None, "embed"), zeros)
        sizes = dict(width=width, layers=layers, heads=heads, hidden=hidden)
        self.transformer = tower(**sizes, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.pooling = AttentivePooling(width, heads, out=True, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.preprocessing = Preprocessing(image_size, image_size, "linear", **IMAGENET_STATISTICS)

    @classmethod
    def sizes(cls, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Those of an encoder of clips of 16 square frames, by its tensors.

        Raises:
          UserError: it is none.
        """
        if not {"patch_embed.proj.weight", "pos_embed"} <= set(weights):
            raise UserError("these files have no patch_embed.proj.weight and pos_embed; are they those of V-JEPA?")
        width, _, tubelet, patch, _ = weights["patch_embed.proj.weight"].shape
        places, frames = weights["pos_embed"].shape[-2], 16
        return dict(
            frames=frames,
            image_size=patch * round((places * tubelet / frames) ** 0.5),
            tubelet=tubelet,
            patch=patch,
            width=width,
            layers=len([name for name in weights if re.fullmatch(r"blocks\.\d+\.mlp\.fc1\.weight", name)]),
            heads=HEADS.get(width, 16),
            hidden=weights["blocks.0.mlp.fc1.weight"].shape[0],
        )

    def names(self):
        blocks = block_names(
            **dict.fromkeys(("query", "key", "value"), "blocks.{}.attn.qkv"),
            out="blocks.{}.attn.proj",
            attention_norm="blocks.{}.norm1",
            mlp_norm="blocks.{}.norm2",
            up="blocks.{}.mlp.fc1",
            down="blocks.{}.mlp.fc2",
        )
        stack = "transformer.stack.layers.attention"
        blocks[f"{stack}.query_key_value.kernel"] = Source(("blocks.{}.attn.qkv.weight",))
        for i, name in enumerate(("query", "key", "value")):
            blocks[f"{stack}.{name}_bias"] = Source(("blocks.{}.attn.qkv.bias",), part=(i, i + 1, 3))
        layer = "pooler.cross_attention_block"
        probe = AttentivePooling.names("pooling", "pooler.query_tokens", f"{layer}.norm", f"{layer}.mlp")
        probe |= linear_names("pooling.query", f"{layer}.xattn.q") | linear_names("pooling.out", f"{layer}.xattn.proj")
        for i, name in enumerate(("key", "value")):
            for leaf, theirs in (("kernel", "weight"), ("bias", "bias")):
                probe[f"pooling.{name}.{leaf}"] = Source((f"{layer}.xattn.kv.{theirs}",), part=(i, i + 1, 2))
        return {
            **Patches.names("patches", "patch_embed.proj"),
            "positions": "pos_embed",
            **blocks,
            **norm_names("transformer.norm", "norm"),
            **probe,
        }

    @classmethod
    def load(cls, directory: str | Path, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs | None = None) -> Self:
        """Reads the file of the encoder and that of the probe, their paths with a comma between.

        Raises:
          UserError: a file is unreadable, or a tensor is missing, has another shape or is not known.
        """
        files = [Weights(path) for path in str(directory).split(",")]
        tensors = {BEFORE.sub("", name): array for weights in files for name, array in weights.items()}
        sizes = cls.sizes(tensors)
        network = nnx.eval_shape(lambda: cls(**sizes, dtype=dtype, rngs=nnx.Rngs(0)))
        network = fill(network, network.names(), tensors, directory, skipped=cls.SKIPPED)
        network.hash = hashlib.sha256("".join(weights.hash() for weights in files).encode()).hexdigest()
        return network

    def tokens(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch tokens embed"]:
        """All boxes in raster order, after the last norm.

        Args:
          pixels: preprocessed clips of the network's own size.

        Raises:
          UserError: clips of another size.
        """
        if pixels.shape[1:4] != (self.frames, self.side, self.side):
            own = f"{self.frames}×{self.side}×{self.side}"
            raise UserError(f"this V-JEPA takes clips of {own} pixels, got {'×'.join(map(str, pixels.shape[1:4]))}")
        x = self.patches(pixels)
        x = x.reshape(len(x), -1, self.width)
        return self.transformer(x + self.positions.get_value().astype(x.dtype))

    def encode(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch embed"]:
        """What the probe's query finds in preprocessed clips."""
        return self.pooling(self.tokens(pixels))

    def __call__(self, clips: Float[Array, "batch time height width 3"]) -> Float[Array, "batch embed"]:
        """One vector for each clip, pixels in [-1, 1], of the network's number of frames."""
        return self.encode(self.preprocessing(clips))
