"""What presets measure: numbers from the statistics of both sides, and the networks that features come from."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen import encoders
from videogen.data.text import FileTokenizer
from videogen.encoders.installed import how_to_install, installed_weights
from videogen.encoders.lpips import Lpips
from videogen.errors import UserError
from videogen.evaluation.presets import Preset
from videogen.evaluation.statistics import Reference, Statistics
from videogen.metrics.distributions import KID_SIZE, frechet_distance, inception_score, jedi, kernel_distance
from videogen.metrics.features import clip_score, consistency

Numbers = dict[str, float]
Encode = Callable[..., Any]
LONGEST_TEXT = 77
"""Tokens of CLIP's texts, start and end included."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a preset asks of its sides.

    Attributes:
      real: there is a real side.
      whole: the features themselves are needed, not their moments alone.
      fewest: clips of a side.
      by_clip: it is a value of every clip, or pair of clips, and the mean of these.
      texts: every clip is compared with its text.
    """

    real: bool = True
    whole: bool = True
    fewest: int = 2
    by_clip: bool = False
    texts: bool = False


MEASURES = {
    "frechet": Measure(whole=False),
    "kernel": Measure(fewest=KID_SIZE),
    "jedi": Measure(),
    "inception_score": Measure(real=False),
    "lpips": Measure(fewest=1, by_clip=True),
    "clip_score": Measure(real=False, fewest=1, by_clip=True, texts=True),
    "consistency": Measure(real=False, fewest=1, by_clip=True),
}
"""Name -> what is asked of the sides."""


def check_counts(preset: Preset) -> None:
    """Refuses numbers of clips that a measure cannot be taken of, before anything is computed.

    Raises:
      UserError: names both numbers.
    """
    fewest = max(MEASURES[preset.measure].fewest, preset.parts)
    for count in (preset.generated, preset.real if MEASURES[preset.measure].real else None):
        if count is not None and count < fewest:
            what = {"kernel": "subsets", "inception_score": "parts"}.get(preset.measure, "clips")
            need = f"{what} of {fewest} examples" if preset.measure == "kernel" else f"at least {fewest} {what}"
            raise UserError(f"this protocol takes {need}, and {count} clips are counted; count more")


def numbers(preset: Preset, real: Statistics | Reference | None, generated: Statistics, seed: int) -> Numbers:
    """The numbers of a preset from the statistics of both sides."""
    if preset.measure == "frechet":
        first = real.gaussian if isinstance(real, Reference) else real.moments
        return {"frechet_distance": frechet_distance(first, generated.moments, biased=preset.biased)}
    if preset.measure == "jedi":
        return {"jedi": jedi(real.features, generated.features)}
    if preset.measure == "kernel":
        mean, deviation = kernel_distance(real.features, generated.features, seed=seed)
        return {"kernel_distance": mean, "kernel_distance_deviation": deviation}
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(generated.features)))
    found = {"inception_score": inception_score(probabilities)[0]}
    if preset.parts > 1:
        name = f"inception_score_{preset.parts}parts"
        found[name], found[f"{name}_deviation"] = inception_score(probabilities, parts=preset.parts, seed=seed)
    return found


def over_repeats(each: list[Numbers]) -> Numbers:
    """Means of repeated measurements and, under ``…_over_repeats``, their standard deviations (divided by N)."""
    if len(each) == 1:
        return each[0]
    values = {name: np.array([found[name] for found in each]) for name in each[0]}
    found = {}
    for name, of_repeats in values.items():
        found |= {name: float(of_repeats.mean()), f"{name}_over_repeats": float(of_repeats.std())}
    return found


@dataclasses.dataclass(frozen=True)
class Network:
    """A frozen network ready to be called with clips, pictures or pairs of them.

    Attributes:
      encode: compiled; arrays of a batch -> an array whose rows are those of the batch.
      hash: of the files of weights.
      texts: of CLIP: texts -> their features, and how many were cut.
    """

    encode: Encode
    hash: str
    texts: Callable[[list[str]], tuple[np.ndarray, int]] | None = None


def load_network(name: str, weights: str | Path, mesh: Mesh | None) -> Network:
    """Reads the network of a preset.

    Args:
      name: one in ``NETWORKS``, or in ``encoders.ENCODERS``.
      weights: the published file or folder; several files with commas between.
      mesh: the devices that have its weights.

    Raises:
      UserError: the weights are not those of the network.
    """
    if name in NETWORKS:
        return NETWORKS[name](weights, mesh)
    network = encoders.load(name, weights)
    return Network(compiled(network, mesh), network.hash)


def weights_of(preset: Preset, given: str | None) -> str:
    """The weights that a user names, or those that come with this package or with one that is installed.

    Raises:
      UserError: none do.
    """
    shipped = encoders.SHIPPED / preset.network
    found = given or (shipped if shipped.is_dir() else installed_weights(preset.network))
    if not found:
        todo = how_to_install(preset.network)
        raise UserError(
            f"--weights is missing: {preset.published}, the published file of the preset's network (of several with "
            f"commas between); {todo}"
        )
    return str(found)


def compiled(network: nnx.Module, mesh: Mesh | None) -> Encode:
    """A network as a program whose weights every device has."""
    graph, state = nnx.split(network)
    weights = nnx.to_pure_dict(state)
    if mesh is not None:
        weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
    forward = jax.jit(lambda weights, *inputs: nnx.merge(graph, weights)(*inputs))
    return functools.partial(forward, weights)


def _lpips(trunk: str, weights: str | Path, mesh: Mesh | None) -> Network:
    network = Lpips.load(weights, trunk=trunk)
    return Network(compiled(network, mesh), network.sha256)


def _clip(weights: str | Path, mesh: Mesh | None) -> Network:
    """Pictures and texts of one folder, with its ``tokenizer.json``."""
    pictures, of_texts = (encoders.load(name, weights) for name in ("clip_image", "clip_text"))
    tokenizer, encode_text = FileTokenizer(weights, LONGEST_TEXT), compiled(of_texts, None)

    def texts(said: list[str]) -> tuple[np.ndarray, int]:
        ids, _ = tokenizer.encode(said)
        return np.asarray(encode_text(ids)), sum(map(tokenizer.is_cut, said))

    return Network(compiled(pictures, mesh), pictures.hash, texts)


NETWORKS: Mapping[str, Callable[[str | Path, Mesh | None], Network]] = {
    "lpips_alex": functools.partial(_lpips, "alex"),
    "lpips_vgg": functools.partial(_lpips, "vgg"),
    "clip": _clip,
}
"""Those that are more than one encoder."""


def consistency_of(frames: np.ndarray) -> float:
    """How alike the frames of a clip stay, from the features of each."""
    return float(consistency(frames[None])[0])


def score_of_frames(frames: np.ndarray, text: np.ndarray) -> float:
    """CLIP score of a clip: the mean over the features of its frames."""
    return float(jnp.mean(clip_score(frames, np.broadcast_to(text, frames.shape))))
