"""How well signs can be read from videos of signers: from their own tokens, and from sentences."""

from typing import Any

import numpy as np

from videogen import data
from videogen.data.inputs import pixel_source
from videogen.data.signer_source import parse
from videogen.data.with_maps import MAPS
from videogen.errors import UserError
from videogen.inference.sampling import encode_prompts
from videogen.metrics.gestures import signs_read
from videogen.metrics.hands import glove_distance, hand_ssim
from videogen.tasks.signs import redrawer

SHOWN = 12

Pixels = np.ndarray


def signs(evaluation: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the judge of the ``signer`` source reads of held-out clips that are drawn again, with their first frame as
    reference: shares of words, of sentences and of frames with the right shirt.

    A stage that codes maps draws them from the maps of the clip, a generator from its sentence, which training has not
    seen. Beside them stands what the judge reads in the originals; SSIM inside the boxes of the hands; and how far the
    middles of the gloves are from those of the originals.

    Raises:
      UserError: the clips are no signers, or the stage draws none.
    """
    loaded = evaluation.loaded
    source = pixel_source(loaded.config)
    if not data.class_of(source).signed:
        raise UserError(f"signs are read from clips of the source 'signer', not from {source['name']!r}")
    samples, originals = evaluation.clips.samples, evaluation.videos
    captions = [sample["caption"] for sample in samples]
    videos = (_from_texts if loaded.task.draws else _from_maps)(evaluation, captions)
    shirts, words = zip(*map(parse, captions), strict=True)
    hands, known = (np.stack([sample[name] for sample in samples]) for name in ("hands", "hands_mask"))
    metrics = {
        "signs": signs_read(videos, words, shirts),
        "signs_of_originals": signs_read(originals, words, shirts),
        "hand_ssim": hand_ssim(videos, originals, hands, known),
        **glove_distance(videos, originals),
        "clips": len(samples),
    }
    shown = {"originals": originals[:SHOWN], "reconstructions": videos[:SHOWN], "captions": np.array(captions[:SHOWN])}
    return metrics, shown


def _from_maps(evaluation: Any, captions: list[str]) -> Pixels:
    """The clips drawn from the tokens of their own maps."""
    model = evaluation.loaded.tokenizer
    if model.field != MAPS:
        raise UserError(
            "signs are drawn from maps of points: this tokenizer codes pixels; use --protocol=reconstruction"
        )
    maps, draw, drawn = np.stack([sample[MAPS] for sample in evaluation.clips.samples]), redrawer(model), []
    for rows, counted in evaluation.rows(len(maps)):
        given = maps[rows], evaluation.videos[rows, 0]
        found = evaluation.keep(f"redrawn_{rows[0]}", lambda given=given: {"videos": draw(*given)})
        drawn.append(found["videos"][:counted])
    return np.concatenate(drawn)


def _from_texts(evaluation: Any, captions: list[str]) -> Pixels:
    """The clips drawn from their captions."""
    loaded, generator = evaluation.loaded, evaluation.loaded.generator()
    if "reference" not in loaded.task.tokenizer.needs:
        raise UserError("signs are of a generator whose decoder is told a picture of the signer (--config=signvip)")
    story, drawn = encode_prompts(loaded, captions), []
    for rows, counted in evaluation.rows(len(captions)):
        said = {name: part[rows] for name, part in story.items()} | {"reference": evaluation.videos[rows, 0]}

        def draw(said: Any = said, rows: Any = rows) -> dict[str, Pixels]:
            place = {"count": len(rows), "first": int(rows[0])}
            return {"videos": generator.generate(said, generator.window, evaluation.seed, **place)}

        drawn.append(evaluation.keep(f"{evaluation.label}_{rows[0]}", draw)["videos"][:counted])
    return np.concatenate(drawn)
