"""Small streams for tests: segments, layouts, tokens, and a slow builder to compare with."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from videogen.language import Floats, Ids, Marker, StreamModel, Vocabulary, compile_layouts, read_layouts

TEXT, FRAMES, PER_FRAME, CHANNELS = 4, 2, 3, 2
TOKENS = FRAMES * PER_FRAME
VOCABULARY = Vocabulary.of(text=9, codes=(5, 4), markers=("begin", "begin_video", "end_video", "end"))
KINDS = {
    "text": Ids("text", TEXT, text=True),
    "video": Floats(FRAMES, PER_FRAME, CHANNELS),
    "codes": Ids("codes", 2, 2),
}
BEGIN, BEGIN_VIDEO, END_VIDEO, END = 18, 19, 20, 21

LAYOUTS = {
    # Divot: the clip by queries. DiCoDe: vector after vector, right behind the text.
    "draw": {
        "sequence": (
            {"marker": "begin"},
            {"input": "text"},
            {"marker": "begin_video"},
            {"output": "video", "queries": True},
        )
    },
    "next": {"sequence": ({"marker": "begin"}, {"input": "text"}, {"output": "video"})},
    "caption": {
        "sequence": (
            {"marker": "begin"},
            {"marker": "begin_video"},
            {"input": "video"},
            {"output": "text"},
            {"marker": "end"},
        )
    },
    "story": {
        "sequence": (
            {"marker": "begin"},
            {"input": "text"},
            {"marker": "begin_video"},
            {"output": "video", "queries": True},
            {"marker": "end_video"},
            {"output": "text", "clip": 1},
            {"marker": "begin_video"},
            {"output": "video", "queries": True, "clip": 1},
        )
    },
    "codes": {
        "sequence": (
            {"marker": "begin"},
            {"input": "text"},
            {"input": "video"},
            {"output": "codes"},
            {"marker": "end"},
        ),
        "prefix": True,
    },
}


def layouts(*names: str):
    return list(read_layouts({name: LAYOUTS[name] for name in names}, KINDS).values())


def table(*names: str):
    return compile_layouts(layouts(*names), KINDS, VOCABULARY)


def tokens(samples: int, clips: int = 1, seed: int = 0):
    """Ids, which exist, and floats of samples."""
    rng = np.random.default_rng(seed)
    ids = {"text": rng.integers(0, 9, (samples, clips * TEXT)), "codes": rng.integers(0, 4, (samples, clips * 4))}
    lengths = rng.integers(0, TEXT + 1, (samples, clips))
    exists = {"text": (np.arange(TEXT) < lengths[..., None]).reshape(samples, -1)}
    floats = rng.normal(size=(samples, clips * TOKENS, CHANNELS)).astype(np.float32)
    return jax.tree.map(jnp.asarray, (ids, exists, floats))


def slowly(name: str, ids, exists, row: int) -> list[tuple]:
    """The slots of one sample, written out: ``(what, id or token, learned, query, block)``."""
    layout, slots = layouts(name)[0], []
    for number, item in enumerate(layout.items):
        block = 1 if layout.prefix and number < layout.given else 0
        if isinstance(item, Marker):
            before = layout.items[number - 1] if number else None
            ends = number > 0 and not isinstance(before, Marker) and before.segment == "text" and before.output
            slots.append(("word", VOCABULARY.word(item.word), ends, False, block))
        elif item.segment == "text":
            here = range(item.clip * TEXT, (item.clip + 1) * TEXT)
            slots += [
                ("word", int(ids["text"][row, i]), item.output, False, block) for i in here if exists["text"][row, i]
            ]
        elif item.segment == "codes":
            starts = [9, 9, 14, 14]
            slots += [("word", int(ids["codes"][row, i]) + starts[i], item.output, False, block) for i in range(4)]
        else:
            here = range(item.clip * TOKENS, (item.clip + 1) * TOKENS)
            if item.queries:
                slots += [("video", i, False, True, 2 + number) for i in here]
            if not item.queries or layout.seen_later(number):
                slots += [("video", i, item.output and not item.queries, False, block) for i in here]
    return slots


def small(length: int, *, decoder: bool = False, components: int = 2, seed: int = 0) -> StreamModel:
    """A narrow model with random weights."""
    transformer = dict(width=16, layers=1, heads=2, mlp_width=16, rotary=True)
    backbone = {"name": "tower", "transformer": transformer}
    if decoder:
        sizes = dict(width=16, layers=1, heads=2, hidden=16, key_value_heads=1, head_width=8)
        backbone = {"name": "decoder", "model": dict(sizes, vocabulary_size=9), "lora": {"rank": 2, "alpha": 2}}
    model = StreamModel(
        VOCABULARY,
        KINDS,
        backbone=backbone,
        floats={"video": {"name": "gaussian_mixture", "components": components, "guidance": "vectors", "layers": 2}},
        length=length,
        queries=("video",),
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return nnx.merge(graph, jax.tree.unflatten(tree, noisy))
