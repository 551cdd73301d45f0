"""TokBench as a command asks for it: which set, what is judged, and by which files of weights."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np

from videogen import encoders
from videogen.encoders.face_api import FaceApi
from videogen.encoders.installed import how_to_install, installed_weights
from videogen.errors import UserError
from videogen.evaluation import codecs
from videogen.evaluation.origin import commit, hardware, of_model
from videogen.evaluation.rendered import RenderedSet
from videogen.evaluation.tokbench_folder import PublishedFolder
from videogen.evaluation.tokbench_run import READERS, Recognisers, run, setting_of
from videogen.tasks.base import Keep, compute_now
from videogen.training.loading import Loaded

PICTURES, PICTURES_TO_A_VIDEO = 64, 8
"""Pictures of a rendered set, and how many of them there are for each video."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
      protocol: ``tokbench.SIDE.READER``.
      codec: ``jpeg:10`` and the like; empty for a tokenizer.
      published: the published folder; ``None``: words are rendered.
      backgrounds: folder of videos that words are rendered on; ``None``: moving shapes alone.
      count: pictures of the rendered set.
      seed: of the rendered set.
      weights: file of the reader; ``None``: that of its installed package.
      faces: folder of the unpacked face-api package; ``None``: faces are not judged.
      lpips: files of AlexNet and its heads, with a comma between; ``None``: not measured.
    """

    protocol: str
    codec: str = ""
    published: str | os.PathLike | None = None
    backgrounds: str | None = None
    count: int | None = None
    seed: int = 0
    weights: str | None = None
    faces: str | None = None
    lpips: str | None = None

    def samples(self) -> RenderedSet | PublishedFolder:
        """The set."""
        if self.published is not None:
            if self.backgrounds or self.count:
                raise UserError("--path and --count are for rendered words, and --real names a published folder")
            return PublishedFolder(self.published)
        setting, pictures = setting_of(self.protocol)[0], self.count or PICTURES
        videos = -(-pictures // PICTURES_TO_A_VIDEO)
        return RenderedSet(setting, pictures, videos, seed=self.seed, folder=self.backgrounds)

    def recognisers(self) -> Recognisers:
        """What judges.

        Raises:
          UserError: weights are missing or cannot be read.
        """
        name = setting_of(self.protocol)[1]
        path = self.weights or installed_weights(name)
        if path is None:
            raise UserError(f"--weights is missing: the file of {name}; or {how_to_install(name)}")
        reader = READERS[name](path)
        hashes, face, lpips = {name: reader.hash}, None, None
        if self.faces:
            network = FaceApi.load(self.faces)
            face, hashes[network.name] = network.embedder(), network.hash
        if self.lpips:
            distance = encoders.Lpips.load(self.lpips, trunk="alex")
            lpips, hashes["lpips_alex"] = jax.jit(distance.__call__), distance.sha256
        return Recognisers(reader, face, lpips, hashes)


def measure(
    request: Request, loaded: Loaded | None = None, keep: Keep = compute_now
) -> tuple[dict[str, Any], list[tuple[np.ndarray, str, str, str]]]:
    """The record of a tokenizer, or of a codec, and words before and after (``tokbench_run.run``).

    Args:
      request: what is measured.
      loaded: a tokenizer; ``None``: the request's codec.
      keep: what is computed of a sample passes through it.

    Raises:
      UserError: neither or both are named, or a file is missing.
    """
    if (loaded is None) == (not request.codec):
        raise UserError(
            "name what to judge: --checkpoint=TOKENIZER or --codec=jpeg:10, h264:40, downsample:4, identity"
        )
    if loaded is None:
        codec, judged = codecs.build(request.codec), {"codec": request.codec}
    else:
        codec = codecs.of_tokenizer(loaded.tokenizer, loaded.config.data.clip.frames)
        judged = of_model(loaded)
    samples, by = request.samples(), request.recognisers()
    # Nobody has read the rendered words; the published labels were cleaned.
    how, metrics, examples = run(request.protocol, samples, codec, by, cleaned=request.published is None, keep=keep)
    record = {"protocol": {**how, **judged}, "seed": request.seed, "commit": commit(), "hardware": hardware()}
    return {**record, "metrics": metrics}, examples
