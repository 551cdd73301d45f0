"""From joints in the picture to joints in space: a pose transformer, as an hourglass over time (MixSTE; Zhang et al.,
CVPR 2022, with HoT; Li et al., CVPR 2024)."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import building
from videogen.errors import UserError
from videogen.nn import Block, Linear, Stack, TransformerSection, normal, parameter, read_transformer
from videogen.ranges import Count, Natural, OneOf
from videogen.reducers.base import Reducer, Report
from videogen.reducers.clusters import DensityPeaks
from videogen.reducers.hourglass import Hourglass
from videogen.reducers.memory import Recovery
from videogen.reducers.selection import NONE
from videogen.reducers.tokens import TokenSet, first_originals, take

UNMERGE, QUERIES = "unmerge", "queries"

Poses = Float[Array, "batch frames joints width"]


class SpaceThenTime(nnx.Module):
    """A block over the joints of a frame, then one over the frames of a joint."""

    def __init__(self, layers: TransformerSection, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        def block() -> Block:
            attention = {"heads": layers.heads, "qk_norm": "head" if layers.qk_norm else None, **layers.attention}
            own = dict(attention=attention, mlp={"hidden": layers.mlp_width, **layers.mlp}, norm=layers.norm)
            return Block(layers.width, **own, depth=2 * layers.layers, dtype=dtype, rngs=rngs)

        self.space, self.time = block(), block()

    def __call__(self, x: Poses, *, exists: Bool[Array, "batch frames"] | None = None, key: Any = None) -> Poses:
        """The same poses, in which joints and frames have seen each other; ``exists``: frames that are seen."""
        batch, frames, joints, width = x.shape
        x = self.space(x.reshape(-1, joints, width)).reshape(x.shape)
        seen = None if exists is None else jnp.repeat(exists, joints, axis=0)
        x = self.time(jnp.swapaxes(x, 1, 2).reshape(-1, frames, width), key_mask=seen)
        return jnp.swapaxes(x.reshape(batch, joints, frames, width), 1, 2)


class FrameTokens(nnx.Module):
    """The layers as an hourglass calls them: a token is a frame, the channels of its joints one behind another.

    Args:
      layers: a stack of ``SpaceThenTime``.
      joints: of a frame.
    """

    def __init__(self, layers: Stack, joints: int):
        self.layers, self.joints, self.depth = layers, joints, layers.depth

    def __call__(
        self,
        x: Float[Array, "batch frames channels"],
        *,
        key_mask: Bool[Array, "batch frames"] | None = None,
        layers: slice = slice(None),
        **unused: Any,
    ) -> Float[Array, "batch frames channels"]:
        """Applies some layers; the hourglass gives nothing else that a pose has, such as rotary angles."""
        y = self.layers(x.reshape(*x.shape[:2], self.joints, -1), layers=layers, exists=key_mask)
        return y.reshape(x.shape)


class PosePeaks(DensityPeaks):
    """Frames chosen as ``DensityPeaks`` chooses tokens, by the means over their joints.

    Args:
      joints: of a frame.
      budget: frames that stay.
      neighbours: k of the density.
    """

    def __init__(self, joints: int, budget: int, neighbours: int = 2):
        super().__init__(budget, neighbours=neighbours)
        self.joints = joints

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        pooled = tokens.x.reshape(*tokens.shape, self.joints, -1).mean(2)
        chosen, said = super().reduce(dataclasses.replace(tokens, x=pooled), aux)
        return take(tokens, first_originals(chosen), chosen.mask), said


class JointRecovery(Recovery):
    """Learned queries of the frames read what was kept, joint by joint; all joints share them."""

    def restore(self, reduced: TokenSet) -> Float[Array, "batch frames channels"]:
        batch, kept, channels = reduced.x.shape
        width = self.queries.shape[1]
        joints = channels // width
        apart = jnp.swapaxes(reduced.x.reshape(batch, kept, joints, width), 1, 2).reshape(-1, kept, width)
        mask = None if reduced.mask is None else jnp.repeat(reduced.mask, joints, axis=0)
        found = super().restore(TokenSet(apart, mask))
        found = jnp.swapaxes(found.reshape(batch, joints, -1, width), 1, 2)
        return found.reshape(batch, -1, channels)


class PoseLifter(nnx.Module):
    """Where joints are in space, from where they are in the pictures of a clip.

    Learned positions of joints and of frames are added to a linear layer's tokens; layers attend over the joints of a
    frame, then over the frames of a joint. With an hourglass its middle layers see a part of the frames. MixSTE's
    stochastic depth is left out.

    Args:
      joints: of a pose.
      transformer: ``{width, layers, heads, mlp_width, …}``; a layer is two blocks.
      hourglass: ``{start, stop, kept, neighbours, recover}`` (``LiftingHourglass``); none: all layers see all frames.
      frames: of a clip.
    """

    def __init__(
        self,
        joints: Count,
        transformer: Mapping[str, Any],
        hourglass: Mapping[str, Any] | None = None,
        *,
        frames: int,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layers = read_transformer(transformer)
        inner = layers.heads * layers.head_width
        self.sizes = LifterSizes(joints, layers.width, layers.layers, inner, layers.mlp_width)
        self.middle = None if hourglass is None else read_hourglass(hourglass)
        if layers.rotary or layers.dropout or layers.position_generator:
            raise UserError("a pose transformer has learned positions and no dropout: leave out rotary and dropout")
        width = layers.width
        self.embed = Linear(2, width, axes=(None, "embed"), bias=True, dtype=dtype, rngs=rngs)
        self.joint_places = parameter(rngs, (joints, width), (None, "embed"), normal(0.02))
        self.frame_places = parameter(rngs, (frames, 1, width), (None, None, "embed"), normal(0.02))
        stack = Stack(lambda r: SpaceThenTime(layers, dtype=dtype, rngs=r), layers.layers, remat=remat, rngs=rngs)
        tokens, heads = FrameTokens(stack, joints), layers.heads
        self.tower = tokens if self.middle is None else self._hourglass(tokens, frames, heads, dtype, rngs)
        self.norm = layers.last_norm(rngs=rngs)
        self.head = Linear(width, 3, axes=("embed", None), bias=True, rngs=rngs)

    def _hourglass(self, tokens: FrameTokens, frames: int, heads: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> Hourglass:
        middle, width = self.middle, self.sizes.width
        if middle.kept > frames:
            raise UserError(f"the middle cannot keep {middle.kept} of {frames} frames; lower model.hourglass.kept")
        queries = middle.recover == QUERIES
        recovery = JointRecovery(width, frames, heads, dtype=dtype, rngs=rngs) if queries else None
        reducer: Reducer = PosePeaks(self.sizes.joints, middle.kept, middle.neighbours)
        places = dict(positions=middle.kept, width=width) if queries else {}
        return Hourglass(
            tokens, middle.start, middle.stop, reducer, recover=middle.recover, recovery=recovery, rngs=rngs, **places
        )

    def __call__(self, points: Float[Array, "batch frames joints 2"]) -> Float[Array, "batch frames joints 3"]:
        """The joints in space; what counts is where they are from each other."""
        x = self.embed(points) + self.joint_places.get_value() + self.frame_places.get_value()
        flat = x.reshape(*x.shape[:2], -1)
        y = self.tower(flat)
        y = y[0] if self.middle is not None else y
        return self.head(self.norm(y.reshape(x.shape)).astype(jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiftingHourglass:
    """The section ``model.hourglass``.

    Attributes:
      start, stop: the layers ``start … stop - 1`` see the frames that are kept.
      kept: how many, chosen as density peaks of the means over the joints.
      neighbours: k of the density; a frame itself is one.
      recover: ``queries`` (HoT: learned queries read what was kept) or ``unmerge`` (frames that were not kept stay as
        they were before the middle).
    """

    start: Natural
    stop: Count
    kept: Count
    neighbours: Count = 2
    recover: Annotated[str, OneOf(UNMERGE, QUERIES)] = QUERIES


def read_hourglass(section: Mapping[str, Any]) -> LiftingHourglass:
    """Reads ``{start, stop, kept, …}``; raises ``UserError`` for what is missing, unknown or out of range."""
    return building.build({"hourglass": LiftingHourglass}, {"name": "hourglass", **section}, "section")


@dataclasses.dataclass(frozen=True)
class LifterSizes:
    """What the cost of a lifter follows from.

    Attributes:
      joints: of a pose.
      width: channels of a token.
      layers: each has two blocks.
      inner: channels of all heads together.
      mlp_width: channels inside an MLP.
    """

    joints: int
    width: int
    layers: int
    inner: int
    mlp_width: int

    def layer(self, frames: int) -> int:
        """Multiply-adds of a layer that sees so many frames."""
        blocks = 2 * (4 * self.width * self.inner + 2 * self.width * self.mlp_width)
        pairs = frames * self.joints**2 + self.joints * frames**2
        return frames * self.joints * blocks + 2 * self.inner * pairs


def lifting_flops(sizes: LifterSizes, frames: int, middle: LiftingHourglass | None = None) -> int:
    """Floating-point operations, two for each multiply-add, of a clip of so many frames.

    Matrices and attention of all layers, the distances of the density peaks, and the queries that bring all frames
    back; norms, softmax and activations are left out.
    """
    ends = frames * sizes.joints * sizes.width * (2 + 3)
    if middle is None:
        return 2 * (ends + sizes.layers * sizes.layer(frames))
    inside, kept = middle.stop - middle.start, middle.kept
    total = ends + (sizes.layers - inside) * sizes.layer(frames) + inside * sizes.layer(kept)
    total += frames**2 * sizes.width
    if middle.recover == QUERIES:
        total += sizes.joints * sizes.inner * (2 * sizes.width * (frames + kept) + 2 * frames * kept)
    return 2 * total
