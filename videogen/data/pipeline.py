"""From a source to batches: shuffled, tokenised, decoded in worker processes, the same after any restart.

What a batch holds is a pure function of (seed, global position of its samples). Neither the number of workers
nor of processes enters: in the job as a whole, batch k holds positions k·B … (k+1)·B - 1, and each process reads one
of equal consecutive runs of them. With buckets of several clip sizes all of them share the one order of samples: the
bucket of batch k is a pure function of (seed, k), and so is the position where it begins, which follows from the batch
sizes before it.
"""

import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags, logging
from jaxtyping import Bool, Int32

from videogen.data.buckets import BucketSchedule
from videogen.data.source import SampleError, Source
from videogen.errors import UserError

REPORTS = ("skipped", "cut")
"""Fields of a batch that the pipeline keeps to itself."""
_DIED = "Worker process was terminated unexpectedly"  # Grain's words
_STEADY = 1000
"""Batches after which a data worker may die once more."""


class TextTokenizer(Protocol):
    """What the pipeline needs of a text tokenizer; ``videogen.data.text`` has several."""

    def encode(self, captions: list[str]) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
        """Token ids and which of them are text rather than padding."""

    def is_cut(self, caption: str) -> bool:
        """Whether a caption has more tokens than are kept."""


class Readable:
    """Reads samples, putting another one, drawn from all, in the place of one that cannot be read.

    Were it the next one, neighbours of broken files would be seen more often than others.
    """

    def __init__(self, source: Source, single_frame: bool = False, text: TextTokenizer | None = None):
        self._source, self._text = source, text
        self._single_frame = single_frame

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Sample ``index`` or the one drawn for it, with ``skipped``: what was passed over and why.

        Raises:
          UserError: no sample of the source can be read.
        """
        skipped = []
        count = len(self._source)
        for candidate in candidates(int(index), count, rng):
            try:
                sample = self._source.sample(candidate, rng)
                check_texts(sample, self._source, candidate, self._text)
                if "answer" in self._source.texts and not all(answer.strip() for answer in texts_in(sample["answer"])):
                    raise SampleError(self._source.name_of(candidate), "it has no answer to learn from")
            except SampleError as error:
                skipped.append((error.name, error.reason))
                continue
            if self._single_frame:
                if "video" not in sample:
                    raise UserError("a token cache has no single frames; set data.image_batch_size=0")
                frame = int(rng.integers(len(sample["video"])))
                for name in {"video", "times"} & sample.keys():
                    sample[name] = sample[name][frame : frame + 1]
            return sample | {"skipped": skipped}
        name, reason = skipped[0]
        raise UserError(f"no sample of the {count} in the data set could be read; the first is {name}: {reason}")


def candidates(index: int, count: int, rng: np.random.Generator) -> Iterator[int]:
    """``index``, and then every other number below ``count`` once, in an order drawn from ``rng``."""
    yield index
    first, stride = int(rng.integers(count)), int(rng.integers(1, count + 1))
    while math.gcd(stride, count) > 1:
        stride = int(rng.integers(1, count + 1))
    for number in range(count):
        if (other := (first + number * stride) % count) != index:
            yield other


def check_texts(
    sample: dict[str, Any], source: Source, index: int, text: TextTokenizer | None, options: bool = False
) -> None:
    """Refuses a sample whose question or answers have more tokens than are kept: they are never cut.

    Args:
      sample: sample ``index`` of the source.
      source: knows which texts it has.
      index: for its name.
      text: tokenizer of the texts; without one nothing is refused.
      options: whether its possible answers are encoded, too.

    Raises:
      SampleError: names the sample and the text.
    """
    said = [(name, words) for name in source.texts[1:] for words in texts_in(sample[name])]
    if options:
        said += [(f"option {i + 1}", option) for i, option in enumerate(sample.get("options", ()))]
    for name, words in said:
        if text is not None and text.is_cut(words):
            reason = f"its {name} has more tokens than text.tokenizer.length: {words[:60]!r}"
            raise SampleError(source.name_of(index), reason)


def texts_in(text: str | Sequence[str]) -> tuple[str, ...]:
    """The texts of a name of a sample: a tuple where it has several questions."""
    return (text,) if isinstance(text, str) else tuple(text)


class Collate:
    """Stacks samples into one dict of arrays: all that are arrays in a sample, and texts and labels.

    Tuples of texts become ``[batch, texts, length]``; samples have equally many.

    Args:
      text: tokenizer of the texts; ``None`` leaves them out.
      has_label: whether samples have labels.
      texts: which texts they have (``Source.texts``).
      options: room for so many possible answers of each sample, which must not have more; 0 leaves them out.
    """

    def __init__(
        self, text: TextTokenizer | None, has_label: bool, texts: Sequence[str] = ("caption",), options: int = 0
    ):
        self._text, self._texts, self._options = text, tuple(texts), options
        self._has_label = has_label

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        arrays = [key for key, value in samples[0].items() if isinstance(value, np.ndarray)]
        batch = {key: np.stack([s[key] for s in samples]) for key in arrays}
        if self._text is not None:
            captions = [s["caption"] for s in samples]
            batch["text_ids"], batch["text_mask"] = self._text.encode(captions)
            full = batch["text_mask"].all(axis=1)
            batch["cut"] = [c for c, whole in zip(captions, full, strict=True) if whole and self._text.is_cut(c)]
            for name in self._texts[1:]:
                ids, mask = self._encoded([texts_in(sample[name]) for sample in samples])
                if isinstance(samples[0][name], str):
                    ids, mask = ids[:, 0], mask[:, 0]
                batch[f"{name}_ids"], batch[f"{name}_mask"] = ids, mask
            if self._options:
                batch |= self._of_options(samples)
        if self._has_label:
            batch["label"] = np.array([s["label"] for s in samples], np.int32)
        batch["skipped"] = [entry for s in samples for entry in s["skipped"]]
        return batch

    def _encoded(self, rows: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of equally many texts of each sample, ``[batch, texts, length]``, and which are no padding."""
        ids, mask = self._text.encode([words for row in rows for words in row])
        return ids.reshape(len(rows), len(rows[0]), -1), mask.reshape(len(rows), len(rows[0]), -1)

    def _of_options(self, samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """``options_ids`` and ``options_mask`` ``[batch, options, length]``, and ``answer_index``: -1 without any."""
        rows = [(*s["options"], *[""] * (self._options - len(s["options"]))) for s in samples]
        ids, mask = self._encoded(rows)
        there = np.array([[i < len(s["options"]) for i in range(self._options)] for s in samples])[..., None]
        places = [s["options"].index(s["answer"]) if s["answer"] in s["options"] else -1 for s in samples]
        return {
            "options_ids": ids * there,
            "options_mask": mask & there,
            "answer_index": np.array(places, np.int32),
        }


class ReadBatch:
    """Step -> this process's share of its batch, so that Grain deals whole batches out to its workers.

    Were they to batch the samples they are dealt, the order would depend on how many there are.

    Args:
      schedule: the bucket and position of every step.
      videos: the samples by position, one data set per bucket.
      batch_sizes: one per bucket, of the whole job, as all sizes here.
      images: the samples that give images, one data set per bucket.
      image_batch_size: images per batch; 0 gives none.
      share: size of a batch -> which share of it this process reads, and how many shares there are.
      collate: joins samples.
    """

    def __init__(
        self,
        schedule: BucketSchedule,
        videos: Sequence[grain.MapDataset],
        batch_sizes: Sequence[int],
        images: Sequence[grain.MapDataset],
        image_batch_size: int,
        share: Callable[[int], tuple[int, int]],
        collate: Collate,
    ):
        self._schedule = schedule
        self._videos, self._batch_sizes = videos, batch_sizes
        self._images, self._image_batch_size = images, image_batch_size
        self._shares = {size: share(size) for size in (*batch_sizes, image_batch_size) if size}
        self._collate = collate

    def _read(self, samples: grain.MapDataset, start: int, size: int) -> dict[str, Any]:
        index, count = self._shares[size]
        first, own = start + index * (size // count), size // count
        return self._collate([samples[i] for i in range(first, first + own)])

    def __call__(self, step: int) -> dict[str, Any]:
        bucket = self._schedule.bucket(step)
        batch = self._read(self._videos[bucket], self._schedule.position(step), self._batch_sizes[bucket])
        if self._image_batch_size:
            images = self._read(self._images[bucket], step * self._image_batch_size, self._image_batch_size)
            batch |= {"image": images} | {key: batch[key] + images.pop(key) for key in REPORTS if key in batch}
        return batch


class Pipeline:
    """An endless stream of batches, with one position; iterating again goes on where it stopped.

    A batch is a dict of this process's share:

    * ``video uint8 [batch, time, height, width, 3]`` (the token source: ``tokens/SEGMENT [batch, *sides, …]``);
    * with a text tokenizer ``text_ids int32 [batch, length]`` and ``text_mask bool [batch, length]`` of the captions,
      and of what other texts the source has the same as ``NAME_ids`` and ``NAME_mask`` (``question_ids``, …);
    * where the source has classes ``label int32 [batch]``;
    * what else is an array in its samples, such as ``audio float32 [batch, samples, channels]``;
    * with ``image_batch_size`` also ``image``: a dict of these fields for random frames (time = 1) of other
      samples.

    Args:
      source: what to read; with buckets one for each, of the same samples at another clip size.
      batch_size: videos per batch in the whole job; with buckets one for each.
      shares: of the steps, relative to each other; one for each bucket.
      phases: other shares from named steps on (``BucketSchedule``).
      seed: decides the order and, with the position, the crops and windows.
      workers: worker processes; 0 reads in background threads of this process.
      text: tokenizer of the captions; ``None`` leaves the text out.
      image_batch_size: images per batch in the whole job.
      image_source: of the images, one for each bucket; ``None``: they are frames of the videos.
      share: size of a batch -> which share of it this process reads, and how many shares there are.
      start: videos the whole job has already consumed: where to go on after a restart.
      shuffle: a new order every epoch; False keeps the order of the source.

    Attributes:
      skipped: file -> reason, of all samples passed over so far because they could not be read.
      cut: number of captions so far, of samples read by this process, that had too many tokens.

    Raises:
      UserError: an empty source, batch sizes that the processes cannot share evenly, or a start where no batch begins.
        While iterating: no sample can be read, or a worker process died twice.
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        *,
        batch_size: int | Sequence[int],
        seed: int,
        workers: int,
        text: TextTokenizer | None,
        shares: Sequence[float] = (1,),
        phases: Sequence[tuple[int, Sequence[float]]] = (),
        image_batch_size: int = 0,
        image_source: Source | Sequence[Source] | None = None,
        share: Callable[[int], tuple[int, int]] = lambda size: (0, 1),
        start: int = 0,
        shuffle: bool = True,
    ):
        sources = [source] if isinstance(source, Source) else list(source)
        batch_sizes = [batch_size] if isinstance(batch_size, int) else list(batch_size)
        if len(sources[0]) == 0:
            raise UserError("the data set is empty; check data.source.path")
        given = [] if image_source is None else image_source
        pictures = [given] if isinstance(given, Source) else list(given) or sources
        if image_batch_size and len(pictures[0]) == 0:
            raise UserError("the data set of images is empty; check data.image_source.path")
        if bool(pictures[0].classes) != bool(sources[0].classes) or len(pictures[0].classes) > len(sources[0].classes):
            raise UserError("images and videos have other classes; leave data.image_source out, or give both the same")
        if image_batch_size and pictures[0].texts != sources[0].texts:
            raise UserError("images and videos have other texts; leave data.image_source out, or give both the same")
        if len({len(source) for source in sources}) > 1:
            raise UserError("the data set has another number of samples for each bucket, so they share no order")
        if min(batch_sizes) < 1 or image_batch_size < 0:
            raise UserError(f"batch sizes must be positive, got {batch_size} and {image_batch_size} (images)")
        for size in (*batch_sizes, image_batch_size):
            if size and size % share(size)[1]:
                raise UserError(f"batch size {size} is no multiple of the {share(size)[1]} shares that processes read")
        self.skipped: dict[str, str] = {}
        self.cut = 0
        # Streams of videos and images have the seeds 0 and 1 beside this one.
        self._schedule = BucketSchedule(batch_sizes, shares, _seed_of(seed, 2), phases)
        self._read = ReadBatch(
            self._schedule,
            [_samples(source, _seed_of(seed, 0), shuffle, text) for source in sources],
            batch_sizes,
            [_samples(source, _seed_of(seed, 1), shuffle, text, True) for source in pictures],
            image_batch_size,
            share,
            Collate(text, bool(sources[0].classes), sources[0].texts),
        )
        self._workers = workers
        self._died: int | None = None
        self._open(start)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._iterator is None:
            raise StopIteration
        batch = self._next()
        self._step += 1
        cut = batch.pop("cut", [])
        if cut and not self.cut:
            logging.warning("captions with more tokens than text.tokenizer.length are cut, first: %.200s", cut[0])
        self.cut += len(cut)
        for name, reason in batch.pop("skipped"):
            if name not in self.skipped:
                self.skipped[name] = reason
                logging.warning("skipped %s: %s", name, reason)
        return batch

    def _next(self) -> dict[str, Any]:
        """The next batch, from new worker processes where one has died."""
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if _DIED not in str(error):
                raise
            why = str(error).removeprefix(f"{_DIED} ").split(".")[0]
        if self._died is not None and self._step - self._died < _STEADY:
            raise UserError(f"a data worker died again, {why}; where memory is short, use fewer (data.workers)")
        logging.warning("a data worker died, %s; all are started again", why)
        self._died = self._step
        self.close()
        self._open(self._schedule.position(self._step))
        return self._next()

    @property
    def bucket(self) -> int:
        """The number of the bucket that the last batch was of."""
        return self._schedule.bucket(self._step - 1)

    def get_state(self) -> dict[str, int]:
        """The position as JSON-able data: videos consumed by the whole job, where another pipeline may ``start``, with
        any number of processes and workers (Grain's own iterator state is neither)."""
        return {"position": self._schedule.position(self._step)}

    def close(self) -> None:
        """Ends the reading and stops the worker processes; no batch follows."""
        if self._iterator is not None:
            self._iterator.close()
        # Grain's iterators complain when the interpreter, rather than their owner, disposes of them.
        self._iterator = None

    def _open(self, position: int) -> None:
        self._step = self._schedule.step(position)
        batches = grain.MapDataset.range(self._step, sys.maxsize).map(self._read)
        threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        dataset = batches.to_iter_dataset(threads)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                # Grain reads absl flags when it starts workers; outside an absl program nobody parses them.
                flags.FLAGS.mark_as_parsed()
            options = grain.multiprocessing.MultiprocessingOptions(num_workers=self._workers)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_end_with_parent)
        self._iterator = iter(dataset)


def _end_with_parent(index: int, count: int) -> None:
    """Ends this worker process when its parent is gone, also where that was killed and could say nothing."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _seed_of(seed: int, kind: int) -> int:
    return int(np.random.SeedSequence([seed, kind]).generate_state(1)[0])


def _samples(
    source: Source, seed: int, shuffle: bool, text: TextTokenizer | None, single_frame: bool = False
) -> grain.MapDataset:
    """The samples of a source by global position, epoch after epoch."""
    order = grain.MapDataset.range(len(source)).seed(seed)
    if shuffle:
        order = order.shuffle()
    return order.repeat().random_map(Readable(source, single_frame, text))
