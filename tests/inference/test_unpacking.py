"""Clips as bits, there and back: the videos are those that the tokenizer makes of the tokens themselves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import data, tasks
from videogen.configs import hitvideo, karl, one_d_piece, phenaki
from videogen.data.bit_files import BitReader
from videogen.data.inputs import clip_of
from videogen.data.video_io import read_video
from videogen.errors import UserError
from videogen.inference import unpacking
from videogen.inference.caching import write_token_cache
from videogen.inference.unpacking import decode_bits
from videogen.tasks import to_pixels, to_video
from videogen.training.loading import Loaded

NETWORK = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
SHAPES = {"name": "shapes"}


def run_of(system, directory, **changes) -> Loaded:
    config = system.get_config("size=debug")
    config.model.update({"queries": 8, "encoder": dict(NETWORK), "decoder": dict(NETWORK), **changes})
    if system is karl:
        config.passes.step = 3
    task = tasks.build(config)
    modules = task.init(nnx.Rngs(0))
    # Fresh decoders write nothing.
    kernel = modules["tokenizer"].pixels.kernel
    kernel.set_value(0.3 * jax.random.normal(jax.random.key(1), kernel.get_value().shape))
    return Loaded(directory, config, task, modules, step=0)


@pytest.fixture(scope="module")
def ordered(tmp_path_factory) -> Loaded:
    return run_of(one_d_piece, tmp_path_factory.mktemp("run"))


@pytest.fixture
def videos(monkeypatch) -> list[np.ndarray]:
    """What is written, before any codec."""
    seen = []
    monkeypatch.setitem(unpacking.WRITERS, ".mp4", lambda path, video, fps, scale: seen.append(video))
    return seen


def write(run: Loaded, out, **asked) -> list[int]:
    """Writes three clips; gives their sizes in bytes."""
    assert write_token_cache(run, out, SHAPES, clips=3, batch_size=2, form="bits", **asked) == 3
    return [len((out / f"{i:06d}.bits").read_bytes()) for i in range(3)]


def decoded(run: Loaded, request: int | None = None) -> np.ndarray:
    """The reconstructions of the three clips, which no bits have been written of."""
    source = data.build(SHAPES, clip=clip_of(run.config), seed=run.config.seed, split="train")
    clips = to_video(jnp.stack([source[i]["video"] for i in range(3)]))
    return to_pixels(jax.jit(lambda video: run.tokenizer.detokenize(run.tokenizer.tokenize(video, request)))(clips))


def test_a_file_of_every_clip_has_its_bits_alone(ordered, tmp_path):
    # 8 tokens of 9 bits.
    assert write(ordered, tmp_path / "bits") == [9] * 3
    files = sorted(path.name for path in (tmp_path / "bits").iterdir())
    assert files == ["000000.bits", "000001.bits", "000002.bits", "meta.json"]
    meta = json.loads((tmp_path / "bits" / "meta.json").read_text())
    assert meta["count"] == 3 and all(clip["caption"] for clip in meta["clips"])
    assert decode_bits(ordered, tmp_path / "bits", tmp_path / "videos", batch_size=2) == 3
    for i, wanted in enumerate(decoded(ordered)):
        frames, fps = read_video(tmp_path / "videos" / f"{i:06d}.mp4")[:2]
        assert frames.shape == wanted.shape and fps == 8
        # The codec of the mp4 loses something.
        assert np.corrcoef(frames.ravel(), wanted.ravel())[0, 1] > 0.5


def test_the_first_tokens_decode_as_the_first_of_all(ordered, tmp_path, videos):
    # 3 bits say how many of 8, 27 are those of 3 tokens.
    assert write(ordered, tmp_path / "few", tokens=3) == [4] * 3 and write(ordered, tmp_path / "all") == [9] * 3
    decode_bits(ordered, tmp_path / "few", tmp_path / "a")
    decode_bits(ordered, tmp_path / "all", tmp_path / "b", tokens=3)
    decode_bits(ordered, tmp_path / "all", tmp_path / "c", batch_size=2)
    few, first, whole = (np.stack(videos[i : i + 3]) for i in (0, 3, 6))
    np.testing.assert_array_equal(few, first)
    np.testing.assert_allclose(few.astype(int), decoded(ordered, 3), atol=1)
    np.testing.assert_allclose(whole.astype(int), decoded(ordered), atol=1)
    assert np.abs(whole.astype(int) - few).mean() > 1


def test_a_kept_set_is_in_the_bits(tmp_path, videos):
    run = run_of(karl, tmp_path, longest=0, lengths={"name": "halting", "threshold": 0.5, "cut": False})
    sizes = write(run, tmp_path / "bits")
    kept = [mask for _, mask in BitReader(tmp_path / "bits").read(run.tokenizer.layout_of((8,)))]
    assert sizes == [-(-(8 + 9 * mask.sum()) // 8) for mask in kept] and all(0 < mask.sum() < 8 for mask in kept)
    decode_bits(run, tmp_path / "bits", tmp_path / "a")
    np.testing.assert_allclose(np.stack(videos).astype(int), decoded(run), atol=1)


def test_what_cannot_be_decoded_is_one_line(ordered, tmp_path):
    write(ordered, tmp_path / "bits")
    meta, out = tmp_path / "bits" / "meta.json", tmp_path / "videos"

    def refused(words: str, run: Loaded = ordered, **asked) -> None:
        with pytest.raises(UserError, match=words) as error:
            decode_bits(run, tmp_path / "bits", out, **asked)
        assert "\n" not in str(error.value) and not list(out.glob("*"))

    other = run_of(one_d_piece, tmp_path)
    kernel = other.tokenizer.pixels.kernel
    kernel.set_value(kernel.get_value() + 1)
    refused("was made by tokenizer", other)
    refused("a clip has 1 … 8 tokens, and 9 are asked for", tokens=9)
    said, clip = meta.read_text(), tmp_path / "bits" / "000001.bits"
    for change in (
        {"kind": "cache"}, {"kept": "some"}, {"frames": 0}, {"frames": 2**40}, {"frames": "4"}, {"clips": [{}]},
        {"clips": 3}, {"fps": "x"}, {"segments": 1},
    ):  # fmt: skip
        meta.write_text(json.dumps(json.loads(said) | change))
        refused("is no directory of bits")
    meta.write_text("[" * 100_000)
    refused("is no directory of bits")
    meta.write_text(json.dumps(json.loads(said) | {"segments": {}}))
    refused("have other tokens than this tokenizer makes")
    outside = json.loads(said)
    outside["clips"][0]["file"] = "../meta.json"
    meta.write_text(json.dumps(outside))
    refused("names a file outside its directory")
    meta.write_text(said)
    whole = clip.read_bytes()
    clip.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    refused("000001.bits is damaged: its checksum differs", batch_size=4)
    clip.unlink()
    refused("000001.bits does not exist", batch_size=4)


def test_only_whole_first_segments_are_decoded(tmp_path, videos):
    config = hitvideo.get_config("size=debug")
    config.data.clip.update({"height": 16, "width": 16})
    config.model.update({"width": 8, "multipliers": (1, 2), "spatial_strides": (4,), "temporal_strides": (2,)})
    modules = tasks.build(config).init(nnx.Rngs(0))
    kernel = modules["tokenizer"].decoder.output.kernel
    kernel.set_value(0.3 * jax.random.normal(jax.random.key(1), kernel.get_value().shape))
    run = Loaded(tmp_path, config, tasks.build(config), modules, step=0)
    assert write(run, tmp_path / "bits") == [68 * 10 // 8] * 3
    decode_bits(run, tmp_path / "bits", tmp_path / "videos", tokens=20)
    np.testing.assert_allclose(np.stack(videos).astype(int), decoded(run, 20), atol=1)
    for tokens in (7, 19, 67):
        with pytest.raises(UserError, match=f"have 8, 20, 68 tokens; ask for one of these, not {tokens}"):
            decode_bits(run, tmp_path / "bits", tmp_path / "others", tokens=tokens)
    assert len(videos) == 3


def test_a_tokenizer_that_cannot_do_with_fewer_tokens_or_has_no_codes(tmp_path, videos):
    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.model.update({"width": 16, "heads": 2, "mlp_width": 16, "decoder_layers": (1, 1)})
    grid = Loaded(tmp_path, config, tasks.build(config), tasks.build(config).init(nnx.Rngs(0)), step=0)
    assert len(set(write(grid, tmp_path / "grid"))) == 1
    assert decode_bits(grid, tmp_path / "grid", tmp_path / "videos") == 3
    np.testing.assert_allclose(np.stack(videos).astype(int), decoded(grid), atol=1)
    with pytest.raises(UserError, match="decodes whole clips of tokens only: leave out --tokens"):
        decode_bits(grid, tmp_path / "grid", tmp_path / "videos", tokens=2)
    config.model.quantizer = {"name": "gaussian", "width": 4}
    latents = Loaded(tmp_path, config, tasks.build(config), tasks.build(config).init(nnx.Rngs(0)), step=0)
    with pytest.raises(UserError, match="continuous latents have no bits to write"):
        write(latents, tmp_path / "latents")
    assert not (tmp_path / "latents").exists()
