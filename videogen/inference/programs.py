"""A loaded video-language model as prompt programs ask it (``language.asking``)."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from videogen.data.text import ByteTokenizer, FileTokenizer
from videogen.errors import UserError
from videogen.language.asking import Answer, Seen
from videogen.language.vision_encoders import in_seconds
from videogen.tasks.answering import Answerer

YES = "yes"


class Asked:
    """Answers prompts about a video or a part of it; of a prompt with options the likeliest one.

    A video is ``{video: uint8 [frames, height, width, 3], times: seconds [frames]}``, as many frames as a clip of
    training has. Of a part of it only the tokens of its frames are seen; a single frame is the nearest place in time of
    the encoder.

    Args:
      answerer: of the model.
      text: its text tokenizer.
      options: the possible answers of a prompt, where it is known to have any.
      most: of them.
      evenly: all places in time count the same where a program has found no weights of them.
    """

    def __init__(
        self,
        answerer: Answerer,
        text: ByteTokenizer | FileTokenizer,
        options: Callable[[str], Sequence[str]] = lambda prompt: (),
        most: int = 8,
        evenly: bool = False,
    ):
        self.answerer, self.text, self.options, self.most, self.evenly = answerer, text, options, most, evenly
        self.centres = answerer.centres

    def times(self, video: dict[str, np.ndarray]) -> Float[np.ndarray, "places"]:
        """The seconds of the places in time that are asked about as frames."""
        return np.asarray(in_seconds(np.asarray(video["times"], np.float32)[None], self.centres))[0]

    def __call__(self, seen: Seen, prompt: str, longest: int) -> Answer:
        """The answer; how long it may be is for the model's own text tokenizer to say.

        Raises:
          UserError: the prompt has more tokens than the model reads, or more options than ``most``.
        """
        if self.text.is_cut(prompt):
            raise UserError(
                f"a prompt has more than {self.text.length} tokens (text.tokenizer.length): {prompt[:60]!r}"
            )
        batch, choices = self._batch(seen, prompt), tuple(self.options(prompt))
        if len(choices) > self.most:
            raise UserError(f"a prompt has {len(choices)} options, and at most {self.most} are compared")
        if choices:
            ids, mask = self.text.encode([*choices, *[""] * (self.most - len(choices))])
            mask &= (np.arange(self.most) < len(choices))[:, None]
            batch |= {"options_ids": ids[None], "options_mask": mask[None]}
        start = time.perf_counter()
        said = self.answerer.run(batch)
        seconds = time.perf_counter() - start
        if not choices:
            there = said["exists"][0]
            return Answer(self.text.decode(said["ids"][0][there]), int(there.sum()), seconds)
        shares = np.exp(said["scores"][0] - said["scores"][0].max())
        best = int(shares.argmax())
        yes = float(shares[choices.index(YES)] / shares.sum()) if YES in choices else None
        return Answer(choices[best], int(batch["options_mask"][0, best].sum()), seconds, yes)

    def _batch(self, seen: Seen, prompt: str) -> dict[str, Any]:
        """A batch of one."""
        times = np.asarray(seen.video["times"], np.float32)
        there = (times >= seen.start) & (times <= seen.stop)
        if seen.start == seen.stop:
            places = self.times(seen.video)
            nearest = np.abs(times[:, None] - places).argmin(1)
            there = nearest == np.abs(places - seen.start).argmin()
        ids, mask = self.text.encode([prompt])
        batch = {"video": seen.video["video"][None], "times": times[None], "frame_mask": there[None]}
        batch |= {"question_ids": ids, "question_mask": mask}
        if seen.weights or self.evenly:
            batch["weights"] = np.array([seen.weights or [1.0] * len(self.centres)], np.float32)
        return batch
