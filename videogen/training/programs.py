"""Exports as StableHLO: programs that run without this code, their weights, and a manifest that says what they take."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax import export

from videogen.conditioning import Conditioning, EncodedText
from videogen.configuration import check_writable, replace_text
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tasks.generator import TextToCodes
from videogen.tokens import Segment, Tokens
from videogen.training import standalone
from videogen.training.loading import CONFIG, Loaded
from videogen.weights import save_weights

MANIFEST, WEIGHTS, RUNNER = "manifest.json", "weights.safetensors", "run.py"

PLATFORMS = ("cpu", "cuda", "tpu")
"""What programs are lowered for unless a command names fewer."""

MONTHS = 6
"""For so long other versions of jax promise to read a program."""


class Program(NamedTuple):
    """A function of weights and named arrays.

    Attributes:
      function: ``(weights, **arrays) -> arrays by name``.
      arguments: shape and dtype of each array, by name.
    """

    function: Callable[..., dict[str, jax.Array]]
    arguments: Mapping[str, jax.ShapeDtypeStruct]


def export_stablehlo(loaded: Loaded, out: epath.PathLike, platforms: Sequence[str] = PLATFORMS, batch: int = 1) -> None:
    """Writes the programs of a tokenizer (``encode``, ``decode``) or of a generator of latents (``step``).

    Each is ``NAME.jax``, which ``jax.export.deserialize`` reads, and ``NAME.mlir``, the same as text. Weights are
    arguments and lie in ``weights.safetensors``; ``run.py`` calls a program with nothing but jax and safetensors.

    Args:
      loaded: the stage; its config says the size of the clips.
      out: a directory.
      platforms: names of ``jax.export``.
      batch: clips of a call.

    Raises:
      UserError: the stage has no such programs, a platform is not known, or ``out`` holds a run or cannot be written.
    """
    out = epath.Path(out)
    if unknown := set(platforms) - set(PLATFORMS):
        raise UserError(f"unknown platform {sorted(unknown)[0]!r}; known: {', '.join(PLATFORMS)}")
    if (out / CONFIG).exists():
        raise UserError(f"{out} holds a run or an export; choose another --out")
    clip = loaded.config.data.clip
    shape = VideoShape(clip.frames, clip.height, clip.width)
    if (tokenizer := loaded.task.assembled(loaded.modules)) is not None:
        programs, weights = _of_tokenizer(tokenizer, shape, batch)
        space = "codes" if tokenizer.vocabulary else "normalised" if tokenizer.normalised else "raw"
    elif isinstance(loaded.trained, TextToCodes) and loaded.trained.generator.denoises:
        programs, weights = _of_generator(loaded, batch)
        space = "normalised"
    else:
        raise UserError(
            f"{loaded.directory} holds a {loaded.config.task} that has no program to export; StableHLO is written of "
            "tokenizers and of generators that denoise latents"
        )
    check_writable(out, "--out", directory=True)
    manifest: dict[str, Any] = {
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
        "readable": f"by other versions of jax for {MONTHS} months from this date",
        "platforms": list(platforms),
        "latent_space": space,
        "checkpoint": loaded.hash,
        "programs": {},
    }
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights)
    for name, program in programs.items():
        exported = export.export(jax.jit(program.function), platforms=list(platforms))(abstract, **program.arguments)
        (out / f"{name}.jax").write_bytes(exported.serialize())
        replace_text(out / f"{name}.mlir", exported.mlir_module())
        results = jax.eval_shape(program.function, abstract, **program.arguments)
        manifest["programs"][name] = {"arguments": _said(program.arguments), "results": _said(results)}
    save_weights(out / WEIGHTS, weights)
    replace_text(out / RUNNER, Path(standalone.__file__).read_text())
    # Last: a folder with a manifest is whole.
    replace_text(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _said(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in arrays.items()}


def _flat(module: nnx.Module) -> tuple[dict[str, jax.Array], Callable[[Mapping[str, Any]], nnx.Module]]:
    """The arrays of a module by dotted path, and what makes the module of such arrays."""
    graph, state = nnx.split(module)
    flat = {".".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}

    def merged(weights: Mapping[str, Any]) -> nnx.Module:
        filled = [(path, variable.replace(weights[name])) for name, (path, variable) in flat.items()]
        return nnx.merge(graph, nnx.from_flat_state(filled))

    return {name: variable.get_value() for name, (_, variable) in flat.items()}, merged


def _of_tokenizer(tokenizer: Any, shape: VideoShape, batch: int) -> tuple[dict[str, Program], dict[str, jax.Array]]:
    weights, merged = _flat(tokenizer)
    layout = tokenizer.layout(shape)
    video = jax.ShapeDtypeStruct((batch, shape.frames, shape.height, shape.width, 3), jnp.float32)

    def encode(weights: Any, video: Any) -> dict[str, jax.Array]:
        tokens = merged(weights).tokenize(video)
        return {name: tokens[name].values for name in tokens.names}

    abstract = jax.eval_shape(encode, weights, video)

    def decode(weights: Any, **values: Any) -> dict[str, jax.Array]:
        tokens = {name: Segment(values[name], segment) for name, segment in layout.segments}
        return {"video": merged(weights).detokenize(Tokens.of(**tokens))}

    return {"encode": Program(encode, {"video": video}), "decode": Program(decode, abstract)}, weights


def _of_generator(loaded: Loaded, batch: int) -> tuple[dict[str, Program], dict[str, jax.Array]]:
    generator = loaded.trained.generator
    weights, merged = _flat(generator)
    clip, tokenizer = loaded.config.data.clip, loaded.modules["tokenizer"]
    grid = tokenizer.layout(VideoShape(clip.frames, clip.height, clip.width)).only.grid
    arguments = {
        "latents": jax.ShapeDtypeStruct((batch, *grid.shape, generator.channels), jnp.float32),
        "time": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    if generator.context is not None:
        length, width = loaded.config.text.tokenizer.length, generator.context.width
        arguments["text"] = jax.ShapeDtypeStruct((batch, length, width), jnp.float32)
        arguments["text_mask"] = jax.ShapeDtypeStruct((batch, length), jnp.bool_)

    def step(weights: Any, latents: Any, time: Any, text: Any = None, text_mask: Any = None) -> dict[str, jax.Array]:
        model = merged(weights)
        told = Conditioning(None if text is None else EncodedText(text, text_mask))
        return {"prediction": model.predict(latents, time, model.prepare(told))}

    return {"step": Program(step, arguments)}, weights
