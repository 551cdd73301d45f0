"""What the layouts, lengths and hooks of a video-language model must be, checked when its task is built."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from videogen.errors import UserError
from videogen.language.backbones import build_backbone
from videogen.language.layouts import Part, StreamLayout
from videogen.language.spans import RowShape

VIDEO, ANSWER = "video", "answer"


def layouts_by_clips(layouts: Mapping[str, StreamLayout]) -> dict[int, str]:
    """The layout of samples with so many clips; raises ``UserError`` where there are two."""
    found: dict[int, str] = {}
    for name, layout in layouts.items():
        clips = layout.count(VIDEO)
        if clips in found:
            raise UserError(f"the layouts {found[clips]!r} and {name!r} both show {clips} clips; leave one out")
        found[clips] = name
    return found


def answers_of(layouts: Mapping[str, StreamLayout]) -> int:
    """How many answers all layouts have; raises ``UserError`` where these are different numbers."""
    every = {name: layout.count(ANSWER) for name, layout in layouts.items()}
    if len(set(every.values())) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in every.items())
        raise UserError(f"all layouts need equally many answers, got {counts}")
    return next(iter(every.values()))


def check_lengths(task: Any) -> None:
    """Refuses rows of an ``UnderstandingTask`` that are too short for a sample: nothing of it is ever cut."""
    if (length := task.model.length) is None:
        return
    for view in task.shapes:
        for clips, name in task.layout_of.items():
            slots = int(task.table_of(task.kinds_of(task.shapes[view]), [name]).lengths[0])
            seen = clips * task.shapes[view].tokens
            if slots > length:
                budget = "" if view.budget is None else f", budget {view.budget}"
                raise UserError(
                    f"a sample may take {slots} > {length} slots (model.length): {seen} of {clips} clips "
                    f"({view.frames or task.clip.frames} frames each{budget}) and {slots - seen} of texts and "
                    "markers; lower data.clip.frames or the budget of model.vision, or raise model.length"
                )


def check_hooks(task: Any) -> None:
    """Refuses hooks of the backbone of an ``UnderstandingTask`` that cannot take the clips of its layouts."""
    backbone = nnx.eval_shape(lambda: build_backbone(task.model.backbone, length=1, rngs=nnx.Rngs(0)))
    if not len(backbone.transformer.hooks):
        return
    for layout in task.layouts.values():
        late = [i for i, item in enumerate(layout.items) if isinstance(item, Part) and item.segment == VIDEO]
        if late and late[-1] >= layout.given:
            raise UserError("hooks of the backbone need all clips before the first answer: change the layouts")
    for shape in task.shapes.values():
        each = shape.per_frame if shape.per_frame < shape.tokens else 0
        backbone.seen_by_layers(RowShape(1, shape.tokens, 0, each))
    if backbone.looks_beside and task.model.packed > 1:
        raise UserError("what a hook looks up beside a row is of one sample: set model.packed=1")
    if backbone.looks_beside and any(shape.channels != task.channels for shape in task.shapes.values()):
        raise UserError("a hook looks up the tokens before the reducers: these must leave their channels as they are")
