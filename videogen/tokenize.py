"""Writes a token cache: every clip of a source as codes, so that generators train without decoding video.

    python -m videogen.tokenize --checkpoint=runs/tokenizer --out=cache \\
        --source=video_folder --path=my_videos [--clips=1000] [--windows=4]

Train on it with --config.data.source.name=tokens --config.data.source.path=cache. The cache is keyed by the hash of
the tokenizer's weights; a generator of another tokenizer refuses it. A killed command goes on where it stopped:
finished batches stay in OUT.parts/ until the end.

--tokens=K keeps the first K tokens of every clip, of a tokenizer whose tokens are in the order of what they are worth
(--config=one_d_piece). One pass of the encoder does: nothing is decoded.

--max_error=E keeps of every clip the tokens that it needs for an error of E, the mean difference of values in [-1, 1],
of a tokenizer that decides so in one pass (--config=karl); with --tokens=K of the first K. E is rounded up to one of
0.005 … 0.38. It is what is asked for and no promise: videogen.evaluate --protocol=reconstruction says how many clips
miss it.

--format=bits writes each clip as a file of nothing but its bits, OUT/000000.bits: the codes of the tokens that are
kept, and how many or which ones these are. Its size is the rate of the clip. OUT/meta.json holds what all clips share,
and their captions. They are decoded, or the first K tokens of each, with

    python -m videogen.tokenize --checkpoint=runs/tokenizer --decode=OUT --out=VIDEOS [--tokens=K]

--from=GENERATOR, in the place of --checkpoint, writes tokens that a generator has drawn for the captions of the clips,
beside the clips: what a decoder that is told tokens goes on with (--config=divot:stage=sampled), so that it has seen
drawn ones.

--normalise writes latents of mean 0 and variance 1, of a tokenizer without codes. The generator's tokenizer is then the
one with these statistics: --config.parts.tokenizer.checkpoint=cache/tokenizer.
"""

from typing import Any

from absl import flags, logging

from videogen import app

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run or export of the tokenizer, or a published file or folder.")
FROM = flags.DEFINE_string("from", None, "Run directory or export of a generator whose tokens are drawn.")
OUT = flags.DEFINE_string("out", None, "Directory of the cache; must not exist.")
SOURCE = flags.DEFINE_string(
    "source", None, "Name of the data source; by default the one the tokenizer was trained on."
)
PATH = flags.DEFINE_string("path", None, "Path of the data source.")
CLIPS = flags.DEFINE_integer("clips", None, "Clips to write; by default all windows of all samples.", lower_bound=1)
WINDOWS = flags.DEFINE_integer("windows", 1, "Clips drawn from each video, at random places.", lower_bound=1)
CLIP = flags.DEFINE_string("clip", None, "FRAMESxHEIGHTxWIDTH of the clips; by default those of the run.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Clips encoded at a time.", lower_bound=1)
NORMALISE = flags.DEFINE_string(
    "normalise", None, "Normalise latents: channel, frame (by channel and latent frame), or pca:K (K components)."
)
TOKENS = flags.DEFINE_integer("tokens", None, "Tokens to keep of every clip; by default all.", lower_bound=1)
MAX_ERROR = flags.DEFINE_float("max_error", None, "Error to keep enough tokens for.", lower_bound=0.0)
FORMAT = flags.DEFINE_enum(
    "format", "cache", ["cache", "bits"], "Arrays that generators train on, or a file of bits for each clip."
)
DECODE = flags.DEFINE_string("decode", None, "Directory of bits (--format=bits) to write as videos.")
MESH = app.define_mesh()
flags.mark_flags_as_required(["out"])


def main() -> None:
    """Runs the command."""
    from videogen.data.bit_files import BitReader
    from videogen.data.token_files import read_meta
    from videogen.errors import UserError
    from videogen.inference.caching import remove_unfinished, write_token_cache
    from videogen.inference.files import use_clip
    from videogen.inference.unpacking import decode_bits
    from videogen.runs.finished import FinishedBatches
    from videogen.training.loading import load_for_command

    if DECODE.value:
        for flag in (SOURCE, PATH, CLIPS, CLIP, WINDOWS, NORMALISE, MAX_ERROR, FORMAT):
            if flag.present:
                raise UserError(f"--{flag.name} means nothing with --decode: the clips are there")
        loaded = load_for_command(CHECKPOINT.value, MESH.value, BATCH_SIZE.value)
        count = decode_bits(loaded, DECODE.value, OUT.value, tokens=TOKENS.value, batch_size=BATCH_SIZE.value)
        logging.info("wrote %d videos to %s", count, OUT.value)
        return
    if bool(CHECKPOINT.value) == bool(FROM.value):
        raise UserError("give --checkpoint (clips are encoded) or --from (tokens are drawn), one of the two")
    source = {"name": SOURCE.value} if SOURCE.value else None
    if PATH.value:
        source = {**(source or {"name": "video_folder"}), "path": PATH.value}
    loaded = load_for_command(CHECKPOINT.value or FROM.value, MESH.value, BATCH_SIZE.value)
    if FROM.value:
        write_drawn(loaded, source)
        return
    if CLIP.value:
        use_clip(loaded, CLIP.value)
    asked = {"clips": CLIPS.value, "batch_size": BATCH_SIZE.value, "windows": WINDOWS.value}
    asked |= {"tokens": TOKENS.value, "max_error": MAX_ERROR.value, "form": FORMAT.value}
    finished = FinishedBatches(OUT.value, {"command": "tokenize", "source": source, **asked, **loaded.key})
    if finished.found:
        remove_unfinished(OUT.value)
    count = write_token_cache(loaded, OUT.value, source, **asked, keep=finished, normalise=NORMALISE.value)
    finished.remove()
    if FORMAT.value == "bits":
        sizes = [size for _, size, _ in BitReader(OUT.value).clips]
        logging.info("wrote %d clips to %s, of %.1f bytes in the mean", count, OUT.value, sum(sizes) / count)
        return
    made_by = read_meta(OUT.value)["tokenizer_hash"]
    logging.info("wrote %d clips to %s, tokenizer %s", count, OUT.value, made_by[:12])


def write_drawn(loaded: Any, source: dict[str, Any] | None) -> None:
    """Writes a cache of drawn tokens beside their clips."""
    from videogen.errors import UserError
    from videogen.inference.caching import remove_unfinished
    from videogen.inference.sampled import write_sampled_cache
    from videogen.runs.finished import FinishedBatches

    for flag in (CLIP, WINDOWS, NORMALISE, TOKENS, MAX_ERROR, FORMAT):
        if flag.present:
            raise UserError(f"--{flag.name} means nothing with --from: tokens are drawn for whole clips")
    asked = {"clips": CLIPS.value, "batch_size": BATCH_SIZE.value}
    finished = FinishedBatches(OUT.value, {"command": "tokenize", "source": source, **asked, **loaded.key})
    if finished.found:
        remove_unfinished(OUT.value)
    count = write_sampled_cache(loaded, OUT.value, source, **asked, keep=finished)
    finished.remove()
    logging.info("wrote %d clips to %s", count, OUT.value)


if __name__ == "__main__":
    app.run(main)
