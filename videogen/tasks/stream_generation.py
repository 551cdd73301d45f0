"""Clips from texts, texts of clips and stories of both, drawn by a language model over streams."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from videogen import language
from videogen.errors import UserError
from videogen.language import Decoding, Filled, Part, StreamLayout
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.tasks.base import Batch, Keep, Modules, Picture, compute_now, to_pixels, to_video
from videogen.tokens import Segment, Tokens

TEXT = "text"
SHOWN = 4
"""Clips of a picture."""

Pixels = UInt8[np.ndarray, "batch time height width 3"]


class StreamGenerator:
    """A trained language model with its frozen tokenizer, ready to draw clips and stories, and to caption clips.

    It computes on the mesh that the modules lie on: the devices along its data axes share the rows.

    Args:
      task: the ``LanguageTask`` the modules belong to.
      modules: its modules, trained and frozen.
      sampler: overrides of the config's sampler, e.g. ``{"variance_scale": 0.5}``.
    """

    given_frames = 0

    def __init__(self, task: Any, modules: Modules, sampler: Mapping[str, Any] | None = None):
        self.task, self.config = task, task.config
        self.sampler = language.build_sampler({**self.config.sampler.to_dict(), **(sampler or {})})
        self.layout, self.window = task.layout, self.config.data.clip.frames
        self._graphs, self._states = {}, {}
        for name, module in modules.items():
            self._graphs[name], self._states[name] = nnx.split(module)
        self.mesh = mesh_of(self._states)

    def default_overlap(self) -> int:
        """Frames that the clips of a story share: none."""
        return 0

    def windows(self, frames: int, overlap: int) -> int:
        """Clips of a video of so many frames."""
        return -(-frames // self.window)

    def window_starts(self, frames: int, overlap: int | None = None) -> list[int]:
        """The frames that later clips of a story begin with: none, since a cut is meant there."""
        return []

    def solver_times(self) -> list[float]:
        """The times of a solver: none."""
        return []

    def prefix_lengths(self) -> list[int]:
        """The numbers of frames that a clip may begin with: none."""
        return []

    def check_given(self, given: int) -> None:
        """Refuses given frames, with a ``UserError``."""
        if given:
            raise UserError(
                "this model draws clips from texts: it takes no given frames; --caption says what a clip shows"
            )

    def generate(
        self,
        story: Mapping[str, Array] | Sequence[Mapping[str, Array]],
        frames: int,
        seed: int,
        *,
        count: int | None = None,
        first: int = 0,
        overlap: int | None = None,
        first_frames: Pixels | None = None,
        progress: Callable[[Sequence[int]], Iterable[int]] = iter,
        keep: Keep = compute_now,
    ) -> Pixels:
        """Draws videos of ``frames`` frames: a clip, or the clips of a story one after another.

        Args:
          story: ``text_ids`` and ``text_mask`` of the clips' texts: of one batch, or of the first clips of a story in
            order. The model writes the texts of the clips that are left, where its layouts say so.
          frames: length of the videos.
          seed: decides every draw; a video depends on its place among all, not on its neighbours.
          count: videos, where nothing else tells how many.
          first: the place of the first of them among all that are drawn by this seed, batch after batch.
          overlap: 0 or nothing.
          first_frames: nothing.
          progress: passes the one pass through.
          keep: nothing passes through it: a clip is decoded in the program that draws it.

        Raises:
          UserError: more clips than stories have in training, or what this model does not take.
        """
        self.check_given(0 if first_frames is None else first_frames.shape[1])
        if overlap:
            raise UserError("the clips of a story share no frames: leave --overlap out")
        story = [story] if isinstance(story, Mapping) else list(story)
        clips = self.windows(frames, 0)
        layout = self._layout(clips, texts=len(story))
        size = len(story[0]["text_ids"]) if "text_ids" in story[0] else count
        if size is None or (count is not None and count != size):
            raise UserError(f"give as many captions as videos, got {size} and count={count}")
        said = [{**self.unprompted(size), **own} for own in story[:clips]]
        for _ in progress(range(1)):
            with inside(self.mesh):
                given = spread(padded(said, self.mesh), self.mesh)
                drawn = self._draw(self._states, given, self._keys(size, seed, first), layout)
                videos = [to_pixels(video)[:size] for video in drawn]
        return np.concatenate(videos, axis=1)[:, :frames]

    def unprompted(self, count: int) -> dict[str, np.ndarray]:
        """Empty texts."""
        shape = (count, self.config.text.tokenizer.length)
        return {"text_ids": np.zeros(shape, np.int32), "text_mask": np.zeros(shape, bool)}

    def _layout(self, clips: int, texts: int) -> StreamLayout:
        """A layout that draws so many clips, of which the first texts are given.

        Raises:
          UserError: none draws so many.
        """
        segment = self.layout.names[0]
        drawn = {
            name: sum(isinstance(item, Part) and item.output and item.segment == segment for item in layout.items)
            for name, layout in self.task.layouts.items()
        }
        fitting = [(count, name) for name, count in drawn.items() if count >= clips]
        if not fitting:
            most = max(drawn.values())
            raise UserError(
                f"this model draws at most {most} clips of {self.window} frames, one after another; ask for "
                f"{most * self.window} frames or fewer"
            )
        layout = self.task.layouts[min(fitting)[1]]
        last = max(i for i, item in enumerate(layout.items) if isinstance(item, Part) and item.clip < clips)
        items = tuple(
            dataclasses.replace(item, output=False)
            if isinstance(item, Part) and item.segment == TEXT and item.clip < texts
            else item
            for item in layout.items[: last + 1]
        )
        return dataclasses.replace(layout, items=items)

    @functools.cached_property
    def _draw(self) -> Any:
        """Compiled ``(states, texts, keys, layout) -> clips``."""

        @functools.partial(jax.jit, static_argnames="layout")
        def draw(states: Any, said: Any, keys: Array, layout: StreamLayout) -> list[Array]:
            modules = {name: nnx.merge(graph, states[name]) for name, graph in self._graphs.items()}
            given = {(TEXT, clip): Filled(own["text_ids"], own["text_mask"]) for clip, own in enumerate(said)}
            drawn = Decoding(modules["language"], layout, keys, self.sampler).sample(given)
            clips = sorted({clip for name, clip in drawn if name != TEXT})
            return [modules["tokenizer"].detokenize(self._tokens(modules, drawn, clip)) for clip in clips]

        return draw

    def _tokens(self, modules: Modules, drawn: Mapping[tuple[str, int], Filled], clip: int) -> Tokens:
        """The tokens of a drawn clip as its tokenizer has them."""
        segments = {}
        for name, segment in self.layout.segments:
            values, kind = drawn[name, clip].values, self.task.kinds[name]
            if segment.vocabulary:
                values = kind.restored(values)
            else:
                values = modules["language"].floats[name].statistics.restore(values)
            segments[name] = Segment(values.reshape(-1, *segment.shape, segment.width), segment)
        return Tokens.of(**segments)

    def captions(self, videos: Pixels, seed: int, *, first: int = 0) -> list[str]:
        """What the model says of clips.

        Args:
          videos: clips of the window of training.
          seed: decides every draw.
          first: the place of the first of them among all that are captioned by this seed.

        Raises:
          UserError: the model writes no texts of clips, or the clips have another shape.
        """
        found = self.task.layout_for(TEXT)
        if found is None:
            raise UserError("this model writes no texts: none of its layouts has the text as an output")
        shape = (self.window, self.config.data.clip.height, self.config.data.clip.width, 3)
        if videos.shape[1:] != shape:
            raise UserError(f"clips must be {list(shape)}, got {list(videos.shape[1:])}")
        with inside(self.mesh):
            pixels = spread(padded(videos, self.mesh), self.mesh)
            ids, exists = self._caption(self._states, pixels, self._keys(len(videos), seed, first), found[1])
            ids, exists = on_host(ids)[: len(videos)], on_host(exists)[: len(videos)]
        return [self.task.texts.decode(row[there]) for row, there in zip(ids, exists, strict=True)]

    @functools.cached_property
    def _caption(self) -> Any:
        """Compiled ``(states, pixels, keys, layout) -> (ids, exists)``."""

        @functools.partial(jax.jit, static_argnames="layout")
        def caption(states: Any, pixels: Array, keys: Array, layout: StreamLayout) -> tuple[Array, Array]:
            modules = {name: nnx.merge(graph, states[name]) for name, graph in self._graphs.items()}
            tokens, given = modules["tokenizer"].tokenize(to_video(pixels)), {}
            for name, segment in tokens.items():
                kind, values = self.task.kinds[name], segment.values
                if segment.layout.vocabulary:
                    values = kind.flat(values)
                else:
                    values = modules["language"].floats[name].statistics.normalise(kind.flat(segment))
                given[name, 0] = Filled(values)
            plain = dataclasses.replace(self.sampler, guidance_scale=1.0)
            drawn = Decoding(modules["language"], layout, keys, plain).sample(given)[TEXT, 0]
            return drawn.values, drawn.exists

        return caption

    def _keys(self, batch: int, seed: int, first: int) -> Array:
        """The key of each row, of its place among all; rows that fill the batch up have the last one's."""
        places = spread(padded(np.arange(first, first + batch, dtype=np.int32), self.mesh), self.mesh)
        return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.asarray(places))


def drawn_beside(task: Any, modules: Modules, batch: Batch, seed: int) -> Picture:
    """One clip for each of the first captions, beside the clip where there is one."""
    said = {name: np.asarray(batch[name][:SHOWN]) for name in ("text_ids", "text_mask")}
    drawn = StreamGenerator(task, modules).generate(said, task.config.data.clip.frames, seed)
    columns = [np.asarray(batch["video"])[:SHOWN]] if "video" in batch else []
    labels = ("original", "sample")[1 - len(columns) :]
    return Picture("samples", list(zip(*columns, drawn, strict=True)), [""] * len(drawn), labels)


def captioned(task: Any, modules: Modules, batch: Batch, seed: int) -> Picture:
    """The first clips with what the model says of them."""
    videos = np.asarray(batch["video"])[:SHOWN]
    said = [text or "(nothing)" for text in StreamGenerator(task, modules).captions(videos, seed)]
    return Picture("captions", [(video,) for video in videos], said, ("what the model says",))
