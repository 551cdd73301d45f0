"""Video Swin (Liu et al., 2021): attention in boxes of time and space that are shifted in every second layer.

The files of the authors' repository and of torchvision are read.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.encoders.loading import Published, Source, linear_names, norm_names
from videogen.encoders.preprocessing import IMAGENET_STATISTICS, Preprocessing
from videogen.encoders.vit import Patches
from videogen.nn import (
    MLP,
    Attention,
    LayerNorm,
    Linear,
    Same,
    merge_boxes,
    parameter,
    partition_boxes,
    truncated_normal,
)
from videogen.nn.attention import PROJECTIONS
from videogen.shapes import Latents

Triple = tuple[int, int, int]
EPSILON = 1e-5
PATCH: Triple = (2, 4, 4)


def relative_places(window: Triple) -> Int[np.ndarray, "queries keys"]:
    """Row of the table of biases for every pair of places of a box."""
    places = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).reshape(-1, 3)
    offset = places[:, None] - places[None] + np.array(window) - 1
    return np.ravel_multi_index(tuple(np.moveaxis(offset, -1, 0)), [2 * n - 1 for n in window])


def regions(sides: Triple, window: Triple, shift: Triple) -> Int[np.ndarray, "boxes places"]:
    """Which part of a shifted grid each place of each box came from: places of different parts are no neighbours."""
    part = np.zeros(sides, np.int32)
    for axis, (side, length, step) in enumerate(zip(sides, window, shift, strict=True)):
        place = np.arange(side)
        own = (place >= side - length).astype(np.int32) + (place >= side - step)
        part = 3 * part + (own if step else 0 * own).reshape([-1 if i == axis else 1 for i in range(3)])
    return np.asarray(partition_boxes(part[None, ..., None], window))[..., 0]


class Layer(nnx.Module):
    """Attention in boxes with a bias for every offset, then an MLP.

    Args:
      window: sides of the boxes; a grid that is no longer along a side has one box there, and no shift.
      shifted: boxes lie half a box further.
    """

    def __init__(self, width: int, heads: int, window: Triple, *, shifted: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.window, self.shifted = tuple(window), shifted
        self.attention_norm = LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.attention = Attention(width, heads, qk_norm=None, bias=PROJECTIONS, dtype=dtype, rngs=rngs)
        offsets = int(np.prod([2 * n - 1 for n in window]))
        self.bias = parameter(rngs, (offsets, heads), (None, "heads"), truncated_normal(0.02))
        self.mlp_norm = LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.mlp = MLP(width, 4 * width, kind="gelu", bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Latents) -> Latents:
        x = x + self._attend(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))

    def _attend(self, x: Latents) -> Latents:
        sides = x.shape[1:4]
        window = tuple(map(min, sides, self.window))
        shift = tuple(w // 2 if self.shifted and n > w else 0 for n, w in zip(sides, self.window, strict=True))
        # A grid that boxes do not tile gets zeros behind; they take part in the attention, as published.
        padded = tuple(-(-n // w) * w for n, w in zip(sides, window, strict=True))
        x = jnp.pad(x, [(0, 0), *((0, p - n) for p, n in zip(padded, sides, strict=True)), (0, 0)])
        x = jnp.roll(x, [-n for n in shift], axis=(1, 2, 3))
        boxes = partition_boxes(x, window)
        places = int(np.prod(window))
        # For boxes smaller than the window the published networks take the first places of the whole one.
        rows = relative_places(self.window)[:places, :places]
        call = {"bias": jnp.moveaxis(self.bias.get_value()[rows], -1, 0)}
        if any(shift):
            region = jnp.tile(jnp.asarray(regions(padded, window, shift)), (len(x), 1))
            call |= {"mask": Same("region"), "tags": {"region": region}}
        x = merge_boxes(self.attention(boxes, **call), window, padded)
        x = jnp.roll(x, shift, axis=(1, 2, 3))
        return x[:, : sides[0], : sides[1], : sides[2]]


class Merging(nnx.Module):
    """Four neighbours in space become one place of twice the width."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * width, epsilon=EPSILON, rngs=rngs)
        self.linear = Linear(4 * width, 2 * width, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Latents) -> Latents:
        x = jnp.pad(x, [(0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2), (0, 0)])
        parts = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.linear(self.norm(jnp.concatenate(parts, axis=-1)))


class VideoSwin(Published):
    """``clips -> [batch, width]`` means of the last map; ``logits`` of Kinetics-400 and the like.

    Args:
      width: channels of the first stage; every stage has twice those of the one before.
      depths, heads: layers and heads of each stage.
      window: sides of the boxes, in places of the grid.
      patch: frames, rows and columns of a patch; published files have (2, 4, 4), VIOLET (1, 4, 4).
      classes: of the classifier; 0 leaves it out.
    """

    CONFIGURED = False
    PREFIXES = ("", "backbone.")
    SKIPPED = ("*.relative_position_index",)

    def __init__(
        self,
        *,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: Triple = (8, 7, 7),
        patch: Triple = PATCH,
        classes: int = 400,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.patches = Patches(patch, width, **common)
        self.patch_norm = LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        stages, mergings = [], []
        for number, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if number:
                mergings.append(Merging(width, **common))
                width *= 2
            layers = [Layer(width, count, window, shifted=k % 2 == 1, **common) for k in range(depth)]
            stages.append(nnx.List(layers))
        self.stages, self.mergings, self.width = nnx.List(stages), nnx.List(mergings), width
        self.norm = LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.classifier = Linear(width, classes, **common) if classes else None
        self.preprocessing = Preprocessing(256, 224, "linear", **IMAGENET_STATISTICS)

    @classmethod
    def sizes(cls, weights: Mapping[str, np.ndarray]):
        """The sizes that the shapes in the file show; boxes are 7 × 7 places in space, as in all published files."""
        for prefix, pattern in (
            ("", "features.{s2}.{k}"),
            ("", "layers.{s}.blocks.{k}"),
            ("backbone.", "layers.{s}.blocks.{k}"),
        ):

            def table(s: int, k: int, start: str = prefix + pattern) -> str:
                return start.format(s=s, s2=2 * s, k=k) + ".attn.relative_position_bias_table"

            if table(0, 0) not in weights:
                continue
            stages = next(s for s in range(100) if table(s, 0) not in weights)
            depths = [next(k for k in range(1000) if table(s, k) not in weights) for s in range(stages)]
            offsets = len(weights[table(0, 0)]) // 13**2
            heads = [weights[n].shape[0] for n in ("head.bias", "cls_head.fc_cls.bias") if n in weights]
            return dict(
                width=len(weights[f"{prefix}patch_embed.proj.bias"]),
                depths=depths,
                heads=[weights[table(s, 0)].shape[1] for s in range(stages)],
                window=((offsets + 1) // 2, 7, 7),
                classes=heads[0] if heads else 0,
            )
        return {}

    def names(self):
        table = Patches.names("patches", "patch_embed.proj") | norm_names("patch_norm", "patch_embed.norm")
        table |= norm_names("norm", "norm") | linear_names("classifier", "/head|/cls_head.fc_cls")
        for s, layers in enumerate(self.stages):
            if s:
                merge = f"features.{2 * s - 1}|layers.{s - 1}.downsample"
                parts = {
                    part: "|".join(f"{name}.{part}" for name in merge.split("|")) for part in ("norm", "reduction")
                }
                table |= norm_names(f"mergings.{s - 1}.norm", parts["norm"])
                table |= linear_names(f"mergings.{s - 1}.linear", parts["reduction"])
            for k in range(len(layers)):
                table |= _layer_names(f"stages.{s}.{k}", f"features.{2 * s}.{k}", f"layers.{s}.blocks.{k}")
        return table

    def maps(self, pixels: Float[Array, "batch time height width 3"]) -> Latents:
        """The normalised last map of preprocessed clips; what patches do not tile gets zeros behind."""
        edges = [(0, 0), *((0, -n % p) for n, p in zip(pixels.shape[1:4], self.patches.size, strict=True)), (0, 0)]
        x = self.patch_norm(self.patches(jnp.pad(pixels, edges)))
        for s, layers in enumerate(self.stages):
            x = self.mergings[s - 1](x) if s else x
            for layer in layers:
                x = layer(x)
        return self.norm(x)

    def encode(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch embed"]:
        """The mean of the last map of preprocessed clips."""
        return self.maps(pixels).mean(axis=(1, 2, 3))

    def logits(self, pixels: Float[Array, "batch time height width 3"]) -> Float[Array, "batch classes"]:
        """Scores of the classes of preprocessed clips."""
        return self.classifier(self.encode(pixels))

    def __call__(self, clips: Float[Array, "batch time height width 3"]) -> Float[Array, "batch embed"]:
        """The mean of the last map of clips in [-1, 1]."""
        return self.encode(self.preprocessing(clips))


def _layer_names(ours: str, *theirs: str) -> dict[str, str | Source]:
    """The part of a table of one layer, from both of its published names."""

    def either(end: str) -> str:
        return "|".join(f"{name}.{end}" for name in theirs)

    qkv, vector = either("attn.qkv.weight"), either("attn.qkv.bias")
    first, second = ("|".join(f"{t}.mlp.{n}" for t in theirs for n in names) for names in (("0", "fc1"), ("3", "fc2")))
    return {
        f"{ours}.attention.query_key_value.kernel": qkv,
        f"{ours}.attention.query_bias": Source((vector,), part=(0, 1, 3)),
        f"{ours}.attention.key_bias": Source((vector,), part=(1, 2, 3)),
        f"{ours}.attention.value_bias": Source((vector,), part=(2, 3, 3)),
        f"{ours}.bias": either("attn.relative_position_bias_table"),
        **linear_names(f"{ours}.attention.out", either("attn.proj")),
        **norm_names(f"{ours}.attention_norm", either("norm1")),
        **norm_names(f"{ours}.mlp_norm", either("norm2")),
        **linear_names(f"{ours}.mlp.up", first),
        **linear_names(f"{ours}.mlp.down", second),
    }
