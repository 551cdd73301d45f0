"""TransNetV2 (Souček and Lokoč, 2020): where a video is cut, from frames of 27 × 48 pixels."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from videogen.encoders.convolutions import BatchNorm, Convolve, Map, batch_norm_names, pool
from videogen.encoders.loading import Published, linear_names
from videogen.encoders.preprocessing import in_range
from videogen.errors import UserError
from videogen.nn import Linear, l2_normalize

FILTERS, STAGES, STACKED = 16, 3, 2
DILATIONS = (1, 2, 4, 8)
SIDES = (27, 48)
REACH = 50
"""Frames that a frame is compared with, on each side."""

WINDOW, STEP = 100, 50
"""Frames that are seen at once, and the middle ones of them whose scores are kept."""


class Dilated(nnx.Module):
    """Four factorised convolutions side by side that look 1, 2, 4 and 8 frames away, and a batch norm."""

    def __init__(self, inputs: int, filters: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        common = dict(bias=False, dtype=dtype, rngs=rngs)
        self.space = nnx.List(
            [Convolve(inputs, 2 * filters, (1, 3, 3), padding=(0, 1, 1), **common) for _ in DILATIONS]
        )
        self.time = nnx.List(
            [Convolve(2 * filters, filters, (3, 1, 1), padding=(n, 0, 0), dilation=n, **common) for n in DILATIONS]
        )
        self.norm = BatchNorm(4 * filters, epsilon=1e-3, rngs=rngs)

    def __call__(self, x: Map) -> Map:
        pairs = zip(self.space, self.time, strict=True)
        return self.norm(jnp.concatenate([time(space(x)) for space, time in pairs], axis=-1))


class TransNetV2(Published):
    """Scores of every frame: is the next one of another shot."""

    CONFIGURED = False
    SKIPPED = ("*.num_batches_tracked",)

    def __init__(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        common, stages, inputs = dict(dtype=dtype, rngs=rngs), [], 3
        widths = [4 * FILTERS * 2**i for i in range(STAGES)]
        for width in widths:
            stages.append(
                nnx.List([Dilated(inputs if k == 0 else width, width // 4, **common) for k in range(STACKED)])
            )
            inputs = width
        self.stages = nnx.List(stages)
        self.similarity = Linear(sum(widths), 128, **common)
        self.similar_features = Linear(2 * REACH + 1, 128, **common)
        self.similar_colours = Linear(2 * REACH + 1, 128, **common)
        self.hidden = Linear(256 + widths[-1] * 3 * 6, 1024, **common)
        self.single, self.many = Linear(1024, 1, **common), Linear(1024, 1, **common)
        self.width = 1024

    def names(self):
        table = {}
        for ours, theirs in {
            "similarity": "frame_sim_layer.projection",
            "similar_features": "frame_sim_layer.fc",
            "similar_colours": "color_hist_layer.fc",
            "hidden": "fc1",
            "single": "cls_layer1",
            "many": "cls_layer2",
        }.items():
            table |= linear_names(ours, theirs)
        for s in range(STAGES):
            for k in range(STACKED):
                ours, theirs = f"stages.{s}.{k}", f"SDDCNN.{s}.DDCNN.{k}"
                table |= batch_norm_names(f"{ours}.norm", f"{theirs}.bn")
                for n, dilation in enumerate(DILATIONS):
                    table |= linear_names(f"{ours}.space.{n}", f"{theirs}.Conv3D_{dilation}.layers.0")
                    table |= linear_names(f"{ours}.time.{n}", f"{theirs}.Conv3D_{dilation}.layers.1")
        return table

    def encode(self, frames: UInt8[Array, "batch time 27 48 3"]) -> Float[Array, "batch time 1024"]:
        """Features of every frame, from pixels of 0 to 255; they see as far as the clip goes, at most 50 frames.

        Raises:
          UserError: frames of another size.
        """
        if frames.shape[2:] != (*SIDES, 3):
            raise UserError(f"TransNetV2 takes frames of 27×48 pixels, got {list(frames.shape[2:])}")
        x, means = frames.astype(jnp.float32) / 255, []
        for stage in self.stages:
            first = jax.nn.relu(stage[0](x))
            x = pool(jax.nn.relu(stage[1](first)) + first, (1, 2, 2), kind="mean")
            means.append(x.mean(axis=(2, 3)))
        features = l2_normalize(self.similarity(jnp.concatenate(means, axis=-1)), 1e-24)
        near = [self.similar_colours(_neighbours(colours(frames))), self.similar_features(_neighbours(features))]
        x = jnp.concatenate([*map(jax.nn.relu, near), x.reshape(*x.shape[:2], -1)], axis=-1)
        return jax.nn.relu(self.hidden(x))

    def scores(self, frames: UInt8[Array, "batch time 27 48 3"]) -> tuple[Float[Array, "batch time"], Array]:
        """Logits: is this the last frame of a shot, and is it one of the frames of a transition."""
        x = self.encode(frames)
        return self.single(x)[..., 0], self.many(x)[..., 0]

    def predict(self, video: UInt8[np.ndarray, "time 27 48 3"]) -> Float[np.ndarray, "time 2"]:
        """Both probabilities for every frame of a whole video, seen in windows of 100 frames.

        The first and the last frame are repeated at the ends, as the published program does.
        """
        rest = len(video) % STEP or STEP
        before, after = (WINDOW - STEP) // 2, (WINDOW - STEP) // 2 + STEP - rest
        padded = np.concatenate([video[:1].repeat(before, 0), video, video[-1:].repeat(after, 0)])
        run, parts = jax.jit(self.scores), []
        for start in range(0, len(padded) - WINDOW + 1, STEP):
            logits = run(jnp.asarray(padded[None, start : start + WINDOW]))
            middle = slice(before, before + STEP)
            parts.append(np.stack([np.asarray(jax.nn.sigmoid(x[0, middle])) for x in logits], axis=-1))
        return np.concatenate(parts)[: len(video)]

    def __call__(self, clips: Float[Array, "batch time height width 3"]) -> Float[Array, "batch 1024"]:
        """The mean over time of the features of clips in [-1, 1] (or ``uint8``), a plain summary of a clip."""
        pixels = jnp.round((in_range(clips) + 1) * 127.5)
        small = jax.image.resize(pixels, (*clips.shape[:2], *SIDES, 3), "linear", antialias=True)
        return self.encode(jnp.clip(jnp.round(small), 0, 255).astype(jnp.uint8)).mean(axis=1)


def colours(frames: UInt8[Array, "batch time height width 3"]) -> Float[Array, "batch time 512"]:
    """Histograms of colours, 8 levels of each channel, of unit length."""
    levels = frames.astype(jnp.int32) >> 5
    bins = (levels[..., 0] << 6) + (levels[..., 1] << 3) + levels[..., 2]
    bins = bins.reshape(*frames.shape[:2], -1)
    count = jax.vmap(jax.vmap(lambda places: jnp.zeros(512).at[places].add(1.0)))(bins)
    return l2_normalize(count, 1e-24)


def _neighbours(features: Float[Array, "batch time embed"]) -> Float[Array, "batch time 101"]:
    """Similarity of every frame with those around it; beyond the ends it is 0."""
    exact = jax.lax.Precision.HIGHEST
    similar = jnp.einsum("bte,bse->bts", features, features, precision=exact)
    padded = jnp.pad(similar, [(0, 0), (0, 0), (REACH, REACH)])
    time = features.shape[1]
    places = np.arange(time)[:, None] + np.arange(2 * REACH + 1)
    return padded[:, np.arange(time)[:, None], places]
