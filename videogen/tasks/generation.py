"""From prompts to pixels: sampling a window, and videos of any length by sliding it (Phenaki section 2.3)."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from videogen import generators
from videogen.conditioning import TASKS, task_index
from videogen.errors import UserError
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.shapes import Extension
from videogen.tasks.base import Keep, Modules, compute_now, to_pixels, to_video
from videogen.tasks.queued import QueuedFrames
from videogen.tasks.sizes import Size, layout_at
from videogen.tokens import Layout, Tokens

Pixels = UInt8[np.ndarray, "batch time height width 3"]


class VideoGenerator:
    """A trained generator with its frozen tokenizer and text encoder, ready to draw videos.

    It computes on the mesh that the modules lie on: the devices along its data axes share the videos.

    Args:
      task: the ``GeneratorTask`` the modules belong to.
      modules: its modules, trained and frozen.
      sampler: overrides of the config's sampler, e.g. ``{"steps": 24, "guidance_scale": 1.0}``.
      size: height and width in pixels of the videos; ``None``: those of training.

    ``measured`` is what the sampler has measured of every window of the last videos (``Generator.sample_and_measure``).
    """

    def __init__(self, task: Any, modules: Modules, sampler: Mapping[str, Any] | None = None, size: Size | None = None):
        self.task, self.config = task, task.config
        self.sampler = generators.build_sampler({**self.config.sampler.to_dict(), **(sampler or {})})
        task.check_sampler(self.sampler)
        self.sampler.prepare(task.generator)
        self.measured: list[dict[str, np.ndarray]] = []
        self.size = (self.config.data.clip.height, self.config.data.clip.width) if size is None else tuple(size)
        self.layout, self.grid = task.drawn_by(self.sampler), task.grid
        if (other := layout_at(task, self.size)) != task.drawn:
            self.layout, self.grid = other, other.only.grid
        self.compression, self.window = task.tokenizer.compression, task.config.data.clip.frames
        self.given_frames = task.given_frames
        self._graphs, self._states = {}, {}
        for name, module in modules.items():
            self._graphs[name], self._states[name] = nnx.split(module)
        self.mesh = mesh_of(self._states)

    @functools.cached_property
    def _draw(self) -> Any:
        """Compiled ``(states, text, keys, prefix) -> (measured, tokens)`` of one window."""

        @functools.partial(jax.jit, static_argnames="layout")
        def draw(states: Any, batch: Any, keys: Array, prefix: Tokens | None, layout: Layout) -> tuple[Any, Tokens]:
            modules = {name: nnx.merge(graph, states[name]) for name, graph in self._graphs.items()}
            conditioning = self.task.conditioning(modules, batch)
            shown = self.task.shown(modules)
            arguments = (layout, conditioning, keys, self.sampler, prefix)
            tokens, measured = modules["generator"].generator.sample_and_measure(*arguments, **shown)
            return dict(measured), tokens

        return draw

    @functools.cached_property
    def _decode(self) -> Any:
        """Compiled ``(states, tokens, text) -> video`` of one window; a program of its own, so that what was drawn is
        there when it fails."""

        @jax.jit
        def decode(states: Any, tokens: Tokens, batch: Any) -> Array:
            modules = {name: nnx.merge(graph, states[name]) for name, graph in self._graphs.items()}
            return self.task.detokenize(modules, tokens, batch)

        return decode

    def _drawn(self, keep: Keep, name: str, *arguments: Any) -> tuple[dict[str, Array], Tokens]:
        """What ``_draw`` gives, kept under a name."""
        if keep is compute_now:
            return self._draw(*arguments)
        *shared, layout = arguments
        structure = jax.eval_shape(functools.partial(self._draw, layout=layout), *shared)
        leaves, tree = jax.tree.flatten(structure)

        def compute() -> dict[str, np.ndarray]:
            return {str(i): on_host(leaf) for i, leaf in enumerate(jax.tree.leaves(self._draw(*arguments)))}

        arrays = keep(name, compute)
        measured, tokens = jax.tree.unflatten(tree, [arrays[str(i)] for i in range(len(leaves))])
        return measured, spread(tokens, self.mesh)

    def _pixels(self, tokens: Tokens, said: Mapping[str, Array]) -> Pixels:
        """The video of drawn tokens.

        Raises:
          UserError: there is not enough memory to decode it.
        """
        try:
            return to_pixels(self._decode(self._states, tokens, said))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            height, width = (max(side // 2, 1) for side in self.size)
            raise UserError(
                "there is not enough memory to decode what was drawn; it is kept: give the same command again with "
                f"tiles that fit, such as --tile={height}x{width}"
            ) from error

    @functools.cached_property
    def _complete(self) -> Any:
        """Compiled ``(states, text, keys, pixels, tasks) -> (video, filled video)`` of one window."""

        @jax.jit
        def complete(states: Any, batch: Any, keys: Array, pixels: Array, task: Array) -> tuple[Array, Array]:
            modules = {name: nnx.merge(graph, states[name]) for name, graph in self._graphs.items()}
            conditioning = self.task.conditioning_of_tasks(self.task.conditioning(modules, batch), task)
            given, filled = self.task.given(modules, to_video(pixels), task)
            codes = modules["generator"].generator.sample(self.layout, conditioning, keys, self.sampler, given=given)
            return self.task.detokenize(modules, codes), filled

        return complete

    def tokenize(self, pixels: Pixels) -> Tokens:
        """The tokens of clips as training has them, beginning with their first frame."""
        return self._tokenize(self._states["tokenizer"], pixels)

    @functools.cached_property
    def _tokenize(self) -> Any:
        graph = self._graphs["tokenizer"]
        return jax.jit(
            lambda state, pixels: self.task.tokens({"tokenizer": nnx.merge(graph, state)}, {"video": pixels})
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
        """Draws videos of ``frames`` frames.

        Args:
          story: conditioning arrays of one batch (``text_ids``, ``text_mask``, ``label``, and what a decoder is told:
            ``Tokenizer.needs``), or a sequence of such batches, one per window in time order; the last one holds for
            the windows that are left. Parts that a batch leaves out are not said.
          frames: length of the videos; anything beyond the training window slides it, or goes through a queue of
            frames where the sampler's ``extension`` says so.
          seed: decides every draw; a video depends on its place among all, not on its neighbours.
          count: videos, where nothing else tells how many.
          first: the place of the first of them among all that are drawn by this seed, batch after batch.
          overlap: frames re-encoded at every slide, one of ``prefix_lengths``; by default about half the window.
          first_frames: pixels the videos start with (image animation: one frame), of one of those lengths. Where every
            clip begins with given frames they must be there.
          progress: passes the windows through, and may show how many are drawn (``tqdm``).
          keep: the tokens of every window pass through it before they are decoded.

        Raises:
          UserError: an overlap or number of first frames the tokenizer or the generator cannot take.
        """
        story = [story] if isinstance(story, Mapping) else list(story)
        self.measured = []
        if self.grid.time == 1 and (frames > self.window or len(story) > 1 or first_frames is not None):
            raise UserError(
                f"the tokenizer codes {self.window} frames as a whole, so its videos have at most as many, no given "
                "first frames and no story"
            )
        extension = self._extension(overlap)
        batch = self._batch_size(story[0], count, first_frames)
        story = [self.task.unprompted(batch) | dict(said) for said in story]
        with inside(self.mesh):
            story = [spread(padded(said, self.mesh), self.mesh) for said in story]
            keys = self._keys(batch, seed, first)
            if frames > self.window and self.sampler.queued:
                return self._through_queue(story, frames, keys, first_frames)[:batch]
            video = np.zeros((batch, 0, *self._frame_shape()), np.uint8) if first_frames is None else first_frames
            video = padded(video, self.mesh)
            kept = functools.partial(self._drawn, keep), f"tokens_{first}"
            return self._through_windows(story, frames, keys, video, extension, progress, *kept)[:batch]

    def _through_windows(
        self,
        story: list[Any],
        frames: int,
        keys: Array,
        video: Pixels,
        extension: Extension | None,
        progress: Callable[[Sequence[int]], Iterable[int]],
        draw: Callable[..., tuple[dict[str, Array], Tokens]],
        name: str,
    ) -> Pixels:
        """Goes on with given first frames, window after window; ``draw`` is ``_drawn``, ``name`` that of the batch."""
        given = video.shape[1]
        self.check_given(given)
        if frames <= given:
            raise UserError(
                f"{given} frames are given, so a video of {frames} frames of {self._side_by_side} has none to draw; "
                f"the nearest is {given + 1} frames"
            )
        segments = extension.segments(frames) if extension else 1
        if segments > 1:
            self.check_given(extension.overlap)
        shortest = self._shortest(frames)
        for segment in progress(range(segments)):
            kept = given if segment == 0 else extension.overlap
            shown = spread(video[:, -kept:], self.mesh)
            prefix = self.tokenize(shown) if kept else None
            layout = self.layout if self.grid.time == 1 else self.layout.with_time(min(self.grid.time, shortest))
            said = story[min(segment, len(story) - 1)]
            segment_keys = jax.vmap(lambda key, s=segment: jax.random.fold_in(key, s))(keys)
            measured, tokens = draw(f"{name}_{segment}", self._states, said, segment_keys, prefix, layout)
            self.measured.append(jax.tree.map(np.asarray, measured))
            # The whole window is decoded, only its new frames are appended (Phenaki sheet, section 11).
            video = np.concatenate([video, self._pixels(tokens, said)[:, kept:]], axis=1)
        return video[:, :frames]

    def window_starts(self, frames: int, overlap: int | None = None) -> list[int]:
        """The frames that later windows of a video of so many begin with; through a queue, multiples of a window."""
        if frames <= self.window:
            return []
        if self.sampler.extension == "queue":
            return [*range(self.window, frames, self.window)]
        extension = self._extension(overlap)
        return [extension.frames(number) for number in range(1, extension.segments(frames))]

    def solver_times(self) -> list[float]:
        """The times that all frames of a clip go through; empty where nothing is denoised."""
        return self.sampler.times_of(self.task.generator)

    def _shortest(self, frames: int) -> int:
        """The fewest latent frames, whole blocks of them, that hold so many frames."""
        unit = self.task.generator.prefixes(self.grid.time).step
        return unit * -(-(self.compression.latent_of_frame(frames - 1) + 1) // unit)

    @staticmethod
    def _batch_size(said: Mapping[str, Array], count: int | None, first_frames: Pixels | None) -> int:
        """How many videos: as many as captions, labels and first frames there are, else ``count``."""
        sizes = {len(part) for part in (*said.values(), *([] if first_frames is None else [first_frames]))}
        sizes |= set() if count is None else {count}
        if len(sizes) != 1:
            raise UserError(
                f"captions, labels, first frames and count must be of equally many videos, got {sorted(sizes)}"
                if sizes
                else "nothing tells how many videos to draw: give count"
            )
        return sizes.pop()

    def windows(self, frames: int, overlap: int) -> int:
        """Windows of a video of so many frames that keep ``overlap`` of them at every slide."""
        return 1 if frames <= self.window else Extension(self.window, overlap).segments(frames)

    def prefix_lengths(self) -> list[int]:
        """The numbers of frames that a window may begin with, beside none: those of whole latents and blocks."""
        return [self.compression.frames(n) for n in self.task.generator.prefixes(self.grid.time) if n]

    def check_given(self, given: int) -> None:
        """Refuses a number of given frames that a window cannot begin with.

        Raises:
          UserError: names the numbers that it can.
        """
        if not given and self.given_frames:
            raise UserError(
                f"this generator continues videos: every clip begins with {self.given_frames} given frames; give them "
                "with --video=FILE (first_frames)"
            )
        lengths = self.prefix_lengths()
        if given and not lengths:
            raise UserError(
                "this generator has never seen given frames: it takes no image, video or story, and draws at most "
                f"{self.window} frames; train with model.prefix_share above 0 or model.times=frame"
            )
        if given and given not in lengths:
            listed = " or ".join(filter(None, [", ".join(map(str, lengths[:-1])), str(lengths[-1])]))
            nearest = min(lengths, key=lambda length: abs(length - given))
            raise UserError(
                f"{given} frames cannot be given at the start of a window of {self.window} frames of "
                f"{self._side_by_side}; give {listed}, of which {nearest} is the nearest"
            )

    def _through_queue(self, story: list[Any], frames: int, keys: Array, first_frames: Pixels | None) -> Pixels:
        if len(story) > 1 or first_frames is not None:
            given = 0 if first_frames is None else first_frames.shape[1]
            raise UserError(
                f"{frames} frames of {self._side_by_side} cannot go through a queue from {given} given ones or by a "
                "story, since it begins with noise: the nearest are as many by extension=window, or from 0 given ones"
            )
        latent_frames = self.compression.latent_of_frame(frames - 1) + 1
        return self._queue.draw(self._states, story[0], keys, latent_frames)[:, :frames]

    @functools.cached_property
    def _queue(self) -> QueuedFrames:
        return QueuedFrames(self.task, self._graphs, self.sampler, self.layout)

    def complete(
        self,
        tasks: Sequence[str],
        videos: Pixels,
        seed: int,
        story: Mapping[str, Array] | None = None,
        *,
        first: int = 0,
        paste: bool = True,
    ) -> tuple[Pixels, Pixels]:
        """Completes one window from the pixels that a task gives (MAGVIT).

        Args:
          tasks: a name in ``conditioning.TASKS`` for each video, among those of the config's ``tasks``.
          videos: ``window`` frames each; pixels that are not given do not matter.
          seed: decides every draw.
          story: conditioning arrays of the batch; by default nothing is said.
          first: as for ``generate``.
          paste: given pixels stay as they are; else they, too, are what the tokenizer makes of the drawn codes.

        Returns:
          The completed videos, and what was shown: the given pixels, the others filled by the task's rule.

        Raises:
          UserError: the generator was not trained on a task, or the videos are not of its window.
        """
        for name in dict.fromkeys(tasks):
            self.check_task(name)
        if videos.shape[1:] != (self.window, *self._frame_shape()):
            raise UserError(f"tasks take {(self.window, *self._frame_shape())} videos, got {videos.shape[1:]}")
        story = self.task.unprompted(len(videos)) | dict(story or {})
        ids = np.array([task_index(name) for name in tasks], np.int32)
        with inside(self.mesh):
            said, pixels, index = spread(padded((story, videos, ids), self.mesh), self.mesh)
            keys = self._keys(len(videos), seed, first)
            drawn, filled = self._complete(self._states, said, keys, pixels, index)
            drawn, filled = (to_pixels(clips)[: len(videos)] for clips in (drawn, filled))
        if paste:
            given = np.stack([TASKS[name].region(*videos.shape[1:4]) for name in tasks])
            drawn = np.where(given[..., None], videos, drawn)
        return drawn, filled

    def check_task(self, name: str) -> None:
        """Refuses a task that there is not, or that the generator was not trained on."""
        index, shares = task_index(name), self.task.tasks
        if shares is None or not shares[index]:
            raise UserError(f"this generator was not trained on {name}; give it a weight in config.tasks")

    def _keys(self, batch: int, seed: int, first: int) -> Array:
        """The key of each video, of its place among all; rows that fill the batch up have the last one's."""
        places = spread(padded(np.arange(first, first + batch, dtype=np.int32), self.mesh), self.mesh)
        return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(places)

    def _extension(self, overlap: int | None) -> Extension | None:
        """How the window slides; ``None`` for a window of one latent frame, which has none to keep and cannot."""
        if self.grid.time == 1:
            return None
        extension = Extension(self.window, self.default_overlap() if overlap is None else overlap)
        self.compression.latent_frames(extension.overlap)
        return extension

    def default_overlap(self) -> int:
        """About half the window, of the lengths it may begin with."""
        half = self.compression.frames(max(1, (self.grid.time + 1) // 2))
        return min(self.prefix_lengths() or [half], key=lambda frames: (abs(frames - half), -frames))

    def _frame_shape(self) -> tuple[int, int, int]:
        return *self.size, 3

    @property
    def _side_by_side(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"
