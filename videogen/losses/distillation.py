"""Distillation of features: what a network makes of a clip becomes like what a frozen encoder makes of it."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.errors import UserError, near_matches
from videogen.losses.terms import RECONSTRUCTION, Metrics, Modules, Outputs, Scalar, Setting, Term
from videogen.nn import FULL, Linear, MicroBatch, l2_normalize
from videogen.ranges import Count, Natural, Weight
from videogen.shapes import Compression, Video

Grid = Float[Array, "batch time height width channel"]


def cosine(ours: Grid, theirs: Grid) -> Scalar:
    """1 - the cosine of the vectors of a place, mean over places: 0 where they are parallel, 1 where orthogonal."""
    return jnp.mean(1 - jnp.sum(l2_normalize(ours) * l2_normalize(theirs), axis=-1))


def squared(ours: Grid, theirs: Grid) -> Scalar:
    """Mean squared difference."""
    return jnp.mean(jnp.square(ours - theirs))


OBJECTIVES: dict[str, Callable[[Grid, Grid], Scalar]] = {"cosine": cosine, "l2": squared}


class Projection(nnx.Module):
    """An MLP with SiLU between its layers, float32, from the features of a network to those of its teacher.

    Args:
      inputs, outputs: channels of both.
      hidden: channels of the layers between; none leaves one linear layer.
    """

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int] = (), *, rngs: nnx.Rngs):
        widths = (inputs, *hidden, outputs)
        common = dict(axes=("embed", None), precision=FULL, rngs=rngs)
        self.layers = nnx.List([Linear(*sizes, **common) for sizes in itertools.pairwise(widths)])

    def __call__(self, x: Grid) -> Grid:
        x = self.layers[0](x.astype(jnp.float32))
        for layer in self.layers[1:]:
            x = layer(jax.nn.silu(x))
        return x


class Distillation(Term):
    """How unlike a feature is what a frozen encoder makes of the same clip (REPA; Yu et al., 2025, section 3.2).

    A projection leads from one to the other. It is a parameter group of its own, ``distillation``, with the same loss;
    without it (``projected``) the feature itself is compared, which has the teacher's channels then (TokenFlow).
    The encoder's vectors are brought to the places of the feature: in time by the mean over the frames of a latent,
    in height and width by linear interpolation, antialiased where there are fewer places.

    Args:
      teacher: the encoder's name in ``config.parts``, where ``checkpoint`` is the folder of its published files and
        ``model.name`` a name in ``encoders.SEEN``.
      feature: of ``Outputs.features`` what learns: ``encoded``, before the quantizer, ``vectors``, behind it, or what
        else the tokenizer names.
      objective: ``cosine`` (1 - cosine) or ``l2``, mean over places.
      hidden: channels of the hidden layers of the projection, (2048, 2048) in REPA; none leaves it linear.
      side: of the square that the encoder sees frames resized to, in pixels; 0: that of its preprocessing.
      reading: what of the encoder is compared: ``last``, its last layer; of CLIP also ``projected``, of SigLIP also
        ``penultimate``.
      projected: whether there is a projection.
    """

    reads = ""

    def __init__(
        self,
        weight: Weight | Mapping[str, Any],
        teacher: str,
        setting: Setting,
        *,
        feature: str = "encoded",
        objective: str = "cosine",
        hidden: Sequence[Count] = (),
        side: Natural = 0,
        reading: str = "last",
        projected: bool = True,
    ):
        super().__init__(weight, setting)
        if self.weight != 0 and teacher not in setting.parts:
            raise UserError(f"there is no part {teacher!r} to learn from{near_matches(teacher, setting.parts)}")
        if feature not in setting.features:
            raise UserError(f"there is no feature {feature!r} to distil into{near_matches(feature, setting.features)}")
        if objective not in OBJECTIVES:
            raise UserError(f"unknown objective {objective!r} of distillation{near_matches(objective, OBJECTIVES)}")
        self.teacher, self.feature, self.objective = teacher, feature, OBJECTIVES[objective]
        self.hidden, self.side, self.reading = tuple(hidden), side, reading
        self.group = "distillation" if projected else ""
        if self.weight != 0:
            wanted, width = setting.parts[teacher].grid_width(reading), setting.features[feature]
            if not projected and width != wanted:
                raise UserError(f"{feature!r} has {width} channels, the teacher {wanted}: without a projection as many")

    @classmethod
    def parts(cls, section: Mapping[str, Any]) -> tuple[str, ...]:
        return (section["teacher"],) if "teacher" in section else ()

    def module(self, rngs: nnx.Rngs) -> Projection:
        width = self.setting.parts[self.teacher].grid_width(self.reading)
        return Projection(self.setting.features[self.feature], width, self.hidden, rngs=rngs)

    def features(self, modules: Modules, video: Video) -> dict[str, Grid]:
        """The encoder's vectors of each patch, once for the network and for the projection."""
        grid = modules[self.teacher].grid(video, self.side, self.reading)
        return {self.label: jax.lax.stop_gradient(grid.astype(jnp.float32))}

    def value(self, modules, outputs, key, step, micro):
        ours, theirs = outputs.features[self.feature], outputs.features[self.label]
        frames = outputs.passes[RECONSTRUCTION].target.shape[1]
        if ours.ndim != 5:
            raise UserError(f"losses.{self.label}: places of {self.feature!r} have no height and width to compare at")
        theirs = at_places(theirs, ours.shape[1:4], frames, self.setting.compression)
        return self.objective(modules[self.group](ours) if self.group else ours.astype(jnp.float32), theirs), {}

    def group_value(
        self, modules: Modules, outputs: Outputs, key: jax.Array, step: Int[Array, ""], micro: MicroBatch
    ) -> tuple[Scalar, Metrics, dict[str, Array]]:
        return self.value(modules, outputs, key, step, micro)[0], {}, {}


def at_places(grid: Grid, places: Sequence[int], frames: int, compression: Compression) -> Grid:
    """A grid of vectors of a clip at the places of another grid.

    Args:
      grid: of the clip; in time its vectors stand for equally many frames each.
      places: time, height and width of the other one, whose vectors are latents.
      frames: of the clip.
      compression: frames of a latent.
    """
    height, width = places[1:]
    if grid.shape[2:4] != (height, width):
        grid = jax.image.resize(grid, (*grid.shape[:2], height, width, grid.shape[-1]), "linear", antialias=True)
    weights = np.zeros((places[0], grid.shape[1]), np.float32)
    for latent in range(places[0]):
        shown = compression.frames_of_latent(latent)
        for frame in shown:
            weights[latent, frame * grid.shape[1] // frames] += 1 / len(shown)
    return jnp.einsum("lt,bthwc->blhwc", weights, grid, precision=FULL)
