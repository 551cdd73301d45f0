"""From a source to batches: shuffled, tokenised, decoded in worker processes, the same after any restart.

What a batch holds is a pure function of (seed, global position of its samples). Neither the number of workers
nor of processes enters: in the job as a whole, batch k holds positions k·B … (k+1)·B - 1, and process p of P
holds the p-th of P equal consecutive runs of them.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags, logging
from jaxtyping import Bool, Int32

from videogen.data.source import SampleError, Source
from videogen.errors import UserError

_ARRAYS = ("video", "indices", "audio")


class TextTokenizer(Protocol):
    """What the pipeline needs of a text tokenizer; ``videogen.data.text`` has several."""

    def encode(self, captions: list[str]) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
        """Token ids and which of them are text rather than padding."""


class Readable:
    """Reads samples, putting the next readable one in the place of one that is not."""

    def __init__(self, source: Source, single_frame: bool = False):
        self._source = source
        self._single_frame = single_frame

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The first readable sample at or after ``index``, with ``skipped``: what was passed over and why.

        Raises:
          UserError: no sample of the source can be read.
        """
        skipped = []
        count = len(self._source)
        for step in range(count):
            try:
                sample = self._source.sample((int(index) + step) % count, rng)
            except SampleError as error:
                skipped.append((error.name, error.reason))
                continue
            if self._single_frame:
                if "video" not in sample:
                    raise UserError("a token cache has no single frames; set data.image_batch_size=0")
                frame = int(rng.integers(len(sample["video"])))
                sample["video"] = sample["video"][frame : frame + 1]
            return sample | {"skipped": skipped}
        name, reason = skipped[0]
        raise UserError(f"no sample of the {count} in the data set could be read; the first is {name}: {reason}")


class Collate:
    """Stacks samples into one dict of arrays."""

    def __init__(self, text: TextTokenizer | None, has_label: bool):
        self._text = text
        self._has_label = has_label

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {key: np.stack([s[key] for s in samples]) for key in _ARRAYS if key in samples[0]}
        if self._text is not None:
            batch["text_ids"], batch["text_mask"] = self._text.encode([s["caption"] for s in samples])
        if self._has_label:
            batch["label"] = np.array([s["label"] for s in samples], np.int32)
        batch["skipped"] = [entry for s in samples for entry in s["skipped"]]
        return batch


def _join(pair: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    batch, images = pair
    return batch | {"image": images, "skipped": batch["skipped"] + images.pop("skipped")}


class Pipeline:
    """An endless stream of batches, with one position; iterating again goes on where it stopped.

    A batch is a dict of this process's share:

    * ``video uint8 [batch, time, height, width, 3]`` (the token source: ``indices int32 [batch, *grid]``);
    * with a text tokenizer ``text_ids int32 [batch, length]`` and ``text_mask bool [batch, length]``;
    * where the source has classes ``label int32 [batch]``;
    * where it gives audio ``audio float32 [batch, samples, channels]``;
    * with ``image_batch_size`` also ``image``: a dict of these fields for random frames (time = 1) of other
      samples.

    Args:
      source: what to read.
      batch_size: videos per batch in the whole job.
      seed: decides the order and, with the position, the crops and windows.
      workers: worker processes; 0 reads in background threads of this process.
      text: tokenizer of the captions; ``None`` leaves the text out.
      image_batch_size: images per batch in the whole job.
      process_index: this process among ``process_count``.
      process_count: processes of the job.
      start: videos the whole job has already consumed: where to go on after a restart.
      shuffle: a new order every epoch; False keeps the order of the source.

    Attributes:
      skipped: file -> reason, of all samples passed over so far because they could not be read.

    Raises:
      UserError: an empty source, or batch sizes that the processes cannot share evenly. While iterating:
        no sample can be read.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        text: TextTokenizer | None,
        image_batch_size: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        start: int = 0,
        shuffle: bool = True,
    ):
        if len(source) == 0:
            raise UserError("the data set is empty; check data.source.path")
        if batch_size < 1 or image_batch_size < 0:
            raise UserError(f"batch sizes must be positive, got {batch_size} and {image_batch_size} (images)")
        for size in (batch_size, image_batch_size):
            if size % process_count:
                raise UserError(f"batch size {size} is no multiple of the {process_count} processes")
        self.skipped: dict[str, str] = {}
        self._source = source
        self._batch_size = batch_size
        self._image_batch_size = image_batch_size
        self._seed = seed
        self._workers = workers
        self._text = text
        self._process = process_index, process_count
        self._shuffle = shuffle
        self._open(start)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._iterator is None:
            raise StopIteration
        batch = next(self._iterator)
        self._position += self._batch_size
        for name, reason in batch.pop("skipped"):
            if name not in self.skipped:
                self.skipped[name] = reason
                logging.warning("skipped %s: %s", name, reason)
        return batch

    def get_state(self) -> dict[str, int]:
        """The position as JSON-able data: videos consumed by the whole job, hence valid for any number of
        processes and workers (Grain's own iterator state is neither)."""
        return {"position": self._position}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position; the batches that follow are those that followed ``get_state``."""
        self.close()
        self._open(state["position"])

    def close(self) -> None:
        """Ends the reading and stops the worker processes; ``set_state`` begins anew."""
        if self._iterator is not None:
            self._iterator.close()
        # Grain's iterators complain when the interpreter, rather than their owner, disposes of them.
        self._iterator = None

    def _open(self, position: int) -> None:
        self._position = position
        batches = self._stream(0, position, self._batch_size)
        if self._image_batch_size:
            start = position * self._image_batch_size // self._batch_size
            images = self._stream(1, start, self._image_batch_size)
            length = min(len(batches), len(images))
            both = grain.experimental.ZipMapDataset([batches[:length], images[:length]])
            batches = both.map(_join)
        threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        dataset = batches.to_iter_dataset(threads)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                # Grain reads absl flags when it starts workers; outside an absl program nobody parses them.
                flags.FLAGS.mark_as_parsed()
            options = grain.multiprocessing.MultiprocessingOptions(num_workers=self._workers)
            dataset = dataset.mp_prefetch(options)
        self._iterator = iter(dataset)

    def _stream(self, kind: int, start: int, batch_size: int) -> grain.MapDataset:
        """This process's batches of one kind (0: videos, 1: images), each an element of its own.

        Batches are made before Grain deals the elements out to its workers: otherwise every worker would
        batch its own samples and the order would depend on how many there are.
        """
        index, count = self._process
        seed = int(np.random.SeedSequence([self._seed, kind]).generate_state(1)[0])
        order = grain.MapDataset.range(len(self._source)).seed(seed)
        if self._shuffle:
            order = order.shuffle()
        samples = order.repeat().random_map(Readable(self._source, single_frame=kind == 1))
        collate = Collate(self._text, bool(self._source.classes))
        local = samples[start:].batch(batch_size // count, drop_remainder=True, batch_fn=collate)
        return local[index::count]
