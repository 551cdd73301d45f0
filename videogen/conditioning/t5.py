"""Frozen T5 text encoder (Raffel et al., 2020), v1.0 (ReLU) and v1.1 (gated GELU), from safetensors files."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from safetensors import SafetensorError, safe_open

from videogen.conditioning.types import EncodedText
from videogen.errors import UserError
from videogen.nn import Embedding, Linear, RMSNorm, Stack, attend


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The settings of a T5 encoder that its ``config.json`` gives.

    Attributes:
      gated: v1.1's gated GELU in place of ReLU.
      buckets: number of relative position buckets, half of them for each direction.
      max_distance: distance in tokens beyond which all positions share the last bucket.
    """

    vocabulary_size: int
    width: int
    head_width: int
    mlp_width: int
    layers: int
    heads: int
    gated: bool
    buckets: int
    max_distance: int
    epsilon: float

    @classmethod
    def read(cls, path: Path) -> "T5Config":
        """Reads a Hugging Face ``config.json``.

        Raises:
          UserError: the file is unreadable, lacks a setting or has an activation T5 does not use.
        """
        try:
            raw = json.loads(path.read_text())
            activation = raw.get("feed_forward_proj", "relu")
            if activation not in ("relu", "gated-gelu"):
                raise UserError(f"{path}: feed_forward_proj {activation!r} is no T5; known: gated-gelu, relu")
            return cls(
                vocabulary_size=int(raw["vocab_size"]),
                width=int(raw["d_model"]),
                head_width=int(raw["d_kv"]),
                mlp_width=int(raw["d_ff"]),
                layers=int(raw["num_layers"]),
                heads=int(raw["num_heads"]),
                gated=activation == "gated-gelu",
                buckets=int(raw.get("relative_attention_num_buckets", 32)),
                max_distance=int(raw.get("relative_attention_max_distance", 128)),
                epsilon=float(raw.get("layer_norm_epsilon", 1e-6)),
            )
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"cannot read {path}: {error}; give the folder of a T5 checkpoint") from error
        except KeyError as error:
            raise UserError(f"{path} lacks the setting {error}; is it the config of a T5 encoder?") from error


def relative_buckets(length: int, *, buckets: int, max_distance: int) -> Int[np.ndarray, "queries keys"]:
    """Bucket of every key seen from every query: exact when near, logarithmic when far."""
    position = np.arange(length)
    offset = position[None, :] - position[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # float32, as in the published models: at powers of two the logarithm decides by its last bit.
    scaled = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(max_distance / exact)
    )
    far = np.minimum(exact + (scaled * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)


class T5Block(nnx.Module):
    """Pre-norm self-attention without score scaling, then the feed-forward layer; no biases anywhere."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.heads = config.heads
        inner = config.heads * config.head_width
        common = {"bias": False, "dtype": dtype, "rngs": rngs}
        self.attention_norm = RMSNorm(config.width, epsilon=config.epsilon, rngs=rngs)
        self.query = Linear(config.width, inner, axes=("embed", "heads"), **common)
        self.key = Linear(config.width, inner, axes=("embed", "heads"), **common)
        self.value = Linear(config.width, inner, axes=("embed", "heads"), **common)
        self.out = Linear(inner, config.width, axes=("heads", "embed"), **common)
        self.mlp_norm = RMSNorm(config.width, epsilon=config.epsilon, rngs=rngs)
        wide = {"axes": ("embed", "mlp"), **common}
        self.up = Linear(config.width, config.mlp_width, **wide)
        self.gate = Linear(config.width, config.mlp_width, **wide) if config.gated else None
        self.down = Linear(config.mlp_width, config.width, axes=("mlp", "embed"), **common)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        *,
        key_mask: Bool[Array, "batch length"],
        bias: Float[Array, "heads queries keys"],
        key: jax.Array | None = None,
    ) -> Float[Array, "batch length width"]:
        """One layer; ``key`` belongs to the call of ``nn.Stack`` and is unused: the encoder is frozen."""
        y = self.attention_norm(x)
        q, k, v = (projection.heads(y, (self.heads,))[0] for projection in (self.query, self.key, self.value))
        y = attend(q, k, v, key_mask=key_mask, bias=bias)
        x = x + self.out(y.reshape(x.shape[0], x.shape[1], -1))
        y = self.mlp_norm(x)
        if self.gate is not None:
            return x + self.down(jax.nn.gelu(self.gate(y)) * self.up(y))
        return x + self.down(jax.nn.relu(self.up(y)))


class T5Encoder(nnx.Module):
    """The encoder half of T5; its output carries no gradient, so keep it out of the trained parameter groups.

    Attributes:
      width: width of the features.
      hash: sha256 of the configuration and weight files; empty for random weights.
    """

    def __init__(self, config: T5Config, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config, self.width, self.hash = config, config.width, ""
        self.embedding = Embedding(config.vocabulary_size, config.width, dtype=dtype, rngs=rngs)
        self.position_bias = Embedding(config.buckets, config.heads, axes=(None, "heads"), rngs=rngs)
        self.stack = Stack(lambda rngs: T5Block(config, dtype=dtype, rngs=rngs), config.layers, rngs=rngs)
        self.norm = RMSNorm(config.width, epsilon=config.epsilon, rngs=rngs)
        for _, module in nnx.iter_modules(self):
            # Nothing trains them, so weights are kept as the products take them: half of the memory in bfloat16.
            weight = getattr(module, "kernel", getattr(module, "table", None))
            if weight is not None:
                weight.set_value(weight.get_value().astype(module.dtype))

    def __call__(self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]) -> EncodedText:
        """Encodes padded texts of any length; features at padded places are zero."""
        buckets = relative_buckets(ids.shape[1], buckets=self.config.buckets, max_distance=self.config.max_distance)
        bias = jnp.moveaxis(self.position_bias(buckets), -1, 0)
        x = self.norm(self.stack(self.embedding(jnp.where(mask, ids, 0)), key_mask=mask, bias=bias))
        return EncodedText(jax.lax.stop_gradient(jnp.where(mask[..., None], x, 0)), mask)

    @classmethod
    def structure(cls, directory: str | Path, *, dtype: jnp.dtype = jnp.float32) -> "T5Encoder":
        """The encoder ``config.json`` describes, with random parameters; trace it to have only shapes."""
        return cls(T5Config.read(Path(directory) / "config.json"), dtype=dtype, rngs=nnx.Rngs(0))

    @classmethod
    def load(
        cls, directory: str | Path, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs | None = None
    ) -> "T5Encoder":
        """Loads a Hugging Face checkpoint: ``config.json`` and ``model.safetensors`` (or its sharded index).

        Decoder tensors are left unread.

        Args:
          directory: the folder of the checkpoint.
          dtype: dtype of the matrix products, their weights and the features; all else is float32.
          rngs: unused; every text encoder of the table is built with it.

        Raises:
          UserError: a file is unreadable, or a tensor is missing or has another shape than the config says.
        """
        directory = Path(directory)
        encoder = nnx.eval_shape(lambda: cls.structure(directory, dtype=dtype))
        tensors = _Tensors(directory)
        graph, state = nnx.split(encoder)
        values = nnx.to_pure_dict(state)
        _fill(values, _names(encoder.config, tensors.files), tensors)
        nnx.replace_by_pure_dict(state, values)
        encoder = nnx.merge(graph, state)
        encoder.hash = tensors.hash()
        return encoder


def _names(config: T5Config, known: Any) -> dict[tuple[str, ...], list[str]]:
    """Our parameter -> the checkpoint's tensors, one for each layer."""
    wide = {"gate": "wi_0", "up": "wi_1"} if config.gated else {"up": "wi"}
    layer = {
        **{(ours, "kernel"): f"layer.0.SelfAttention.{ours[0]}" for ours in ("query", "key", "value", "out")},
        **{(ours, "kernel"): f"layer.1.DenseReluDense.{theirs}" for ours, theirs in wide.items()},
        ("down", "kernel"): "layer.1.DenseReluDense.wo",
        ("attention_norm", "scale"): "layer.0.layer_norm",
        ("mlp_norm", "scale"): "layer.1.layer_norm",
    }
    shared = "shared.weight" if "shared.weight" in known else "encoder.embed_tokens.weight"
    names = {
        ("embedding", "table"): [shared],
        ("position_bias", "table"): ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
        ("norm", "scale"): ["encoder.final_layer_norm.weight"],
    }
    for ours, theirs in layer.items():
        names["stack", "layers", *ours] = [f"encoder.block.{i}.{theirs}.weight" for i in range(config.layers)]
    return names


def _fill(values: dict, names: dict[tuple[str, ...], list[str]], tensors: "_Tensors") -> None:
    """Replaces the abstract leaves of ``values`` by tensors; PyTorch's kernels are [outputs, inputs]."""
    missing = sorted(name for group in names.values() for name in group if name not in tensors.files)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        names = ", ".join(missing[:3])
        raise UserError(f"{tensors.directory} lacks the tensors {names}{more}; is it a T5 encoder?")
    for path, group in names.items():
        node = values
        for part in path[:-1]:
            node = node[part]
        stacked = path[0] == "stack"
        shape = node[path[-1]].shape[1:] if stacked else node[path[-1]].shape
        transpose = path[-1] == "kernel"
        expected = shape[::-1] if transpose else shape
        arrays = [tensors.read(name, expected) for name in group]
        arrays = [array.T if transpose else array for array in arrays]
        node[path[-1]] = jnp.asarray(np.stack(arrays) if stacked else arrays[0], node[path[-1]].dtype)


class _Tensors:
    """The tensors of a checkpoint folder: which file holds each, read one at a time."""

    def __init__(self, directory: Path):
        self.directory = directory
        single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
        if single.exists():
            self.files = dict.fromkeys(self._open(single, lambda file: list(file.keys())), single)
            self.sources = [single]
        elif index.exists():
            self.files = self._read_index(index)
            self.sources = [index, *sorted(set(self.files.values()))]
        else:
            raise UserError(f"{directory} has no {single.name} (nor its index); convert the weights to safetensors")

    def _read_index(self, index: Path) -> dict[str, Path]:
        try:
            weight_map = {str(k): str(v) for k, v in json.loads(index.read_text())["weight_map"].items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"cannot read {index}: {error!r}; download the checkpoint again") from error
        for name in set(weight_map.values()):
            if Path(name).name != name or not (self.directory / name).is_file():
                raise UserError(f"{index} names the file {name!r}, which is not in {self.directory}")
        return {tensor: self.directory / name for tensor, name in weight_map.items()}

    def _open(self, path: Path, use: Callable[[Any], Any]) -> Any:
        try:
            with safe_open(path, framework="numpy") as file:
                return use(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {path}: {error}; download the checkpoint again") from error

    def read(self, name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        array = self._open(self.files[name], lambda file: file.get_tensor(name))
        if array.shape != tuple(shape):
            raise UserError(f"{self.files[name]}: {name} has shape {list(array.shape)}, the config says {list(shape)}")
        return array.astype(np.float32)

    def hash(self) -> str:
        digest = hashlib.sha256((self.directory / "config.json").read_bytes())
        for path in self.sources:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
