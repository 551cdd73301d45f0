"""What a run, an export or a published file is, without loading its weights."""

from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx

from videogen import tasks
from videogen.errors import UserError
from videogen.inference.files import read_clip_size
from videogen.shapes import VideoShape
from videogen.tokenizers import Tokenizer
from videogen.training.loading import config_at
from videogen.training.memory import size_text
from videogen.training.published import find, is_published


def inspect(path: epath.PathLike, clip: str | None = None, *, memory: bool = False) -> dict[str, str]:
    """What is at a path, in words: label -> what is said.

    Args:
      path: a run, an export, or a published file or folder.
      clip: ``FRAMESxHEIGHTxWIDTH`` of a clip for a tokenizer; ``None``: that of its config.
      memory: compile encoding and decoding of such a clip for this machine, and say what they need.

    Raises:
      UserError: nothing that is known is there, or a tokenizer cannot take such clips.
    """
    config = config_at(path)
    task = tasks.build(config)
    modules = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    trained = [modules[name] for name in task.exported]
    found = {"path": str(path), "what": f"{config.task}, model {config.model.name!r}"}
    if is_published(path):
        family = find(path).family
        found["what"] = f"{config.task} {family.name}, as published"
        found["licence"] = f"{family.licence} (as its makers say; no file here proves it)"
    count = sum(x.size for module in trained for x in jax.tree.leaves(nnx.state(module, nnx.Param)))
    found["parameters"] = f"{count:,} ({size_text(4 * count)} in float32)"
    frozen = nnx.eval_shape(lambda: task.frozen(None))
    if frozen:
        found["frozen"] = ", ".join(frozen)
    model = task.assembled(modules | frozen)
    if model is None:
        return found
    own = config.data.clip
    shape = VideoShape(own.frames, own.height, own.width) if clip is None else read_clip_size(clip)
    return found | of_tokenizer(model, shape) | (needs(model, shape) if memory else {})


def of_tokenizer(model: Tokenizer, shape: VideoShape) -> dict[str, str]:
    """What a tokenizer makes of clips of this shape, and its rules."""
    layout = model.layout(shape)
    pixels = 3 * shape.frames * shape.height * shape.width
    size = f"{shape.frames}×{shape.height}×{shape.width}"
    lines, values = [], 0
    for name, segment in layout.segments:
        sides = " × ".join(f"{length} {side}" for side, length in segment.sides)
        kind = f"floats of {segment.channels} channels"
        if segment.vocabulary:
            kind = "codes of " + " and ".join(f"{n:,}" for n in segment.vocabulary)
        lines.append(f"{name}: {sides}, {kind}")
        values += segment.tokens * segment.width
    first = "yes" if model.prefix_equal else "no: encode pictures in the way that the model was trained with"
    return {
        f"clip {size}": "; ".join(lines),
        "compression": f"{pixels / values:.1f} values of pixels to one of tokens",
        "first frame": f"the tokens of a clip begin with those of its first frames alone: {first}",
        "streams": "yes, in chunks" if model.streams else "no: clips are coded as a whole",
    }


def needs(model: Tokenizer, shape: VideoShape) -> dict[str, str]:
    """Memory of encoding and decoding one clip of this shape beside the weights, as compiled for this machine."""
    graph, state = nnx.split(model)
    video = jax.ShapeDtypeStruct((1, shape.frames, shape.height, shape.width, 3), jnp.float32)

    def encode(state: Any, video: Any) -> Any:
        return nnx.merge(graph, state).tokenize(video)

    def decode(state: Any, tokens: Any) -> Any:
        return nnx.merge(graph, state).detokenize(tokens)

    tokens = jax.eval_shape(encode, state, video)
    found = {}
    for name, function, given in (("encoding", encode, video), ("decoding", decode, tokens)):
        if (report := jax.jit(function).lower(state, given).compile().memory_analysis()) is None:
            raise UserError("this machine does not say what a program needs; leave out --memory")
        found[name] = f"{size_text(report.temp_size_in_bytes)} besides the weights, float32, on {jax.default_backend()}"
    return found
