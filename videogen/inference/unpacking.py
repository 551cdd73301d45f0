"""Videos of clips that were written as bits."""

import itertools

import jax
import numpy as np
from etils import epath
from flax import nnx
from tqdm import tqdm

from videogen.configuration import check_writable
from videogen.data.bit_files import BitReader
from videogen.data.bits import Packing
from videogen.errors import UserError
from videogen.inference.pictures import WRITERS
from videogen.parallel import inside, mesh_of, spread
from videogen.parallel import padded as filled
from videogen.shapes import VideoShape
from videogen.tasks import to_pixels
from videogen.tokens import Layout, Segment, Tokens
from videogen.training.loading import Loaded

MOVIE = ".mp4"


def decode_bits(
    loaded: Loaded, directory: epath.PathLike, out: epath.PathLike, *, tokens: int | None = None, batch_size: int = 16
) -> int:
    """Writes a video of every clip in a directory of bits (``data.bit_files``).

    Args:
      loaded: the tokenizer that made them, or a de-tokenizer or generator of it.
      directory: of the bits.
      out: directory of the videos, numbered as the clips are.
      tokens: how many tokens of a clip, or of every latent frame with a row of its own, are decoded, the first ones;
        ``None``: all that are kept.
      batch_size: clips decoded at a time.

    Returns:
      The number of videos.

    Raises:
      UserError: no such directory, bits of another tokenizer or damaged ones, or a number of tokens that this tokenizer
        does not decode.
    """
    model, reader, out = loaded.coder, BitReader(directory), epath.Path(out)
    if (made_by := reader.made_by) != (own := loaded.coder_hash):
        raise UserError(f"{directory} was made by tokenizer {made_by[:12]}, this one is {own[:12]}")
    layout = model.layout(VideoShape(*reader.clip))
    if tokens is not None and not model.drops:
        raise UserError(f"{type(model).__name__} decodes whole clips of tokens only: leave out --tokens")
    if tokens is not None and not 1 <= tokens <= (row := Packing(layout).row):
        raise UserError(f"a clip has 1 … {row} tokens, and {tokens} are asked for")
    if tokens is not None and len(layout.segments) > 1 and tokens not in (sums := model.budgets(layout)):
        known = ", ".join(map(str, sums))
        raise UserError(
            f"the first of {', '.join(layout.names)} have {known} tokens; ask for one of these, not {tokens}"
        )
    check_writable(out, "out", directory=True)
    graph, state = nnx.split(model)
    mesh = mesh_of(state)
    decode = jax.jit(lambda state, said: nnx.merge(graph, state).detokenize(said))
    clips, count = reader.read(layout), 0
    with tqdm(total=len(reader), unit="clip") as bar:
        while batch := list(itertools.islice(clips, batch_size)):
            # Filled up, so that one program serves all.
            rows = batch + [batch[-1]] * (batch_size - len(batch))
            said = _tokens(rows, layout, tokens, model.drops)
            with inside(mesh):
                videos = to_pixels(decode(state, spread(filled(said, mesh), mesh)))
            for video in videos[: len(batch)]:
                WRITERS[MOVIE](out / f"{count:06d}{MOVIE}", video, reader.fps or loaded.config.data.clip.fps or 8.0, 1)
                count += 1
            bar.update(len(batch))
    return count


def _tokens(
    rows: list[tuple[dict[str, np.ndarray], np.ndarray]], layout: Layout, first: int | None, drops: bool
) -> Tokens:
    """A batch of tokens; those that are not kept, or are not among the ``first``, are not seen."""
    kept = np.stack([mask for _, mask in rows])
    if first is not None:
        kept = kept & (np.arange(layout.tokens) % Packing(layout).row < first)
    segments, start = {}, 0
    for name, segment in layout.segments:
        own = kept[:, start : start + segment.tokens].reshape(-1, *segment.shape)
        segments[name] = Segment(np.stack([codes[name] for codes, _ in rows]), segment, kept=own if drops else None)
        start += segment.tokens
    return Tokens.of(**segments)
