"""Which examples a process reads: those that its devices hold."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from videogen import data
from videogen.configuration import shown_rate
from videogen.data import inputs
from videogen.data.text import build_text_tokenizer
from videogen.data.tokens import TokenWriter
from videogen.errors import UserError
from videogen.tokens import Layout, SegmentLayout


@pytest.fixture
def held(monkeypatch):
    """Makes devices of this process (0) and of others hold slices of a batch."""

    def hold(*slices: tuple[int, int, int]) -> None:
        devices = {Device(process): (slice(start, stop),) for process, start, stop in slices}
        sharding = SimpleNamespace(devices_indices_map=lambda shape: devices)
        monkeypatch.setattr(inputs, "batch_sharding", lambda mesh, size: sharding)

    return hold


class Device:
    """Equal to itself only, as devices are."""

    def __init__(self, process_index: int):
        self.process_index = process_index


def test_a_process_alone_reads_the_batch(held):
    held((0, 0, 4), (0, 4, 8))
    assert inputs.share(8, mesh=None) == (0, 1)


def test_processes_with_examples_of_their_own_read_those(held):
    held((1, 0, 2), (1, 2, 4), (0, 4, 6), (0, 6, 8))
    assert inputs.share(8, mesh=None) == (1, 2)


def test_processes_that_hold_the_same_examples_read_the_same(held):
    held((0, 0, 4), (1, 0, 4), (2, 4, 8), (3, 4, 8))
    assert inputs.share(8, mesh=None) == (0, 2)
    held((0, 0, 8), (1, 0, 8))
    assert inputs.share(8, mesh=None) == (0, 1)


@pytest.mark.parametrize("slices", [((0, 0, 4), (1, 2, 6), (2, 6, 8)), ((0, 0, 2), (1, 2, 8))])
def test_unequal_shares_are_refused(held, slices):
    held(*slices)
    with pytest.raises(UserError, match="overlapping parts of a batch of 8"):
        inputs.share(8, mesh=None)


def text_config(**settings):
    tokenizer = {"name": "bytes", "path": "", "vocabulary_size": 257, "length": 8} | settings
    return ConfigDict({"parts": {}, "text": {"encoder": {"name": "transformer"}, "tokenizer": tokenizer}})


class Captioned(data.Source):
    """Five samples of which some have captions."""

    def __init__(self, captioned, uncaptioned=False):
        super().__init__(clip=data.Clip(1, 8, 8), seed=0, split="train")
        self.captioned, self.uncaptioned = captioned, uncaptioned

    def __len__(self):
        return 5

    def caption(self, index):
        if index == 3:
            raise data.SampleError("three", "damaged record")
        return "a" if index < (self.captioned or 0) else ""


@pytest.mark.parametrize("captioned", [None, 1, 5])
def test_text_is_learned_where_there_is_some(captioned):
    assert inputs.new_text_tokenizer(text_config(), Captioned(captioned)).largest_id == 256
    bpe = text_config(name="bpe", vocabulary_size=300)
    assert inputs.new_text_tokenizer(bpe, Captioned(captioned)).largest_id < 300


def test_text_without_a_caption_is_refused_unless_asked_for():
    """A folder whose captions matched no file trained on empty captions without a word."""
    with pytest.raises(UserError, match=r"no sample has a caption.*source.uncaptioned=True"):
        inputs.new_text_tokenizer(text_config(), Captioned(0))
    assert inputs.new_text_tokenizer(text_config(), Captioned(0, uncaptioned=True)) is not None
    without = text_config()
    without.text.encoder.name = "none"
    assert inputs.new_text_tokenizer(without, Captioned(0)) is None


def test_ids_beyond_the_table_of_the_encoder_are_refused():
    """They read the last row, and trained."""
    with pytest.raises(UserError, match="ids up to 256, the text encoder knows 256;.* set .* to 257 or more"):
        inputs.new_text_tokenizer(text_config(vocabulary_size=256), Captioned(1))
    config = text_config(vocabulary_size=300)
    config.parts.text_encoder = {"model": {"name": "t5", "vocabulary_size": 200}}
    with pytest.raises(UserError, match="the text encoder knows 200"):
        inputs.new_text_tokenizer(config, Captioned(1))


def run_config(name="tokens", fps=8.0, frame_rate=24.0, made_from=None):
    clip = {"frames": 9, "height": 8, "width": 8, "fps": fps}
    found = {"frame_rate": frame_rate, "made_from": made_from or {}}
    return ConfigDict({"seed": 0, "parts": {}, "data": {"source": {"name": name, "path": "x"}, "clip": clip, **found}})


def test_rates_are_those_of_the_clips_that_were_learned():
    """Samples of a cache of 24 frames a second were written at 8, as were all of ``clip.fps=0``."""
    assert shown_rate(run_config()) == 24
    assert shown_rate(run_config("video_folder", fps=0.0, frame_rate=30.0)) == 30
    assert shown_rate(run_config("video_folder", fps=12.0, frame_rate=None)) == 12
    assert shown_rate(run_config("video_folder", fps=0.0, frame_rate=None)) == 8
    assert inputs.sample_clip(run_config()) == data.Clip(9, 8, 8, 24.0)
    assert inputs.sample_clip(run_config("video_folder", fps=0.0, frame_rate=30.0)).fps is None
    assert inputs.sample_clip(run_config("video_folder", fps=12.0, frame_rate=30.0)).fps == 12


def test_a_run_keeps_what_its_source_says(tmp_path):
    source = {"name": "shapes", "turn": 0.5}
    layout = Layout.of(video=SegmentLayout((("time", 1), ("height", 2), ("width", 2)), (9,)))
    meta = {"tokenizer_hash": "a", "frames": 9, "height": 8, "width": 8, "fps": 24.0}
    with TokenWriter(tmp_path / "cache", layout, meta | {"made_from": {"source": source, "split": "train"}}) as writer:
        writer.write({"video": np.zeros((1, 2, 2, 1), np.int32)}, "x")
    config = run_config(frame_rate=None)
    config.data.source.path = str(tmp_path / "cache")
    inputs.keep_findings(config, inputs.build_source(config, "train"))
    assert config.data.frame_rate == 24 and inputs.pixel_source(config) == source


def test_what_a_cache_was_made_from_is_never_guessed():
    """Prompts of shapes were scored on a generator of real clips."""
    made_from = {"source": {"name": "video_folder", "path": "clips"}}
    assert inputs.pixel_source(run_config(made_from=made_from))["name"] == "video_folder"
    assert inputs.pixel_source(run_config("shapes"))["name"] == "shapes"
    with pytest.raises(UserError, match="does not say what it was made from"):
        inputs.pixel_source(run_config())


def test_batches_of_held_out_clips_are_arrays_also_where_captions_are_cut():
    """The cut captions went along as words, which no compiled evaluation takes."""
    text = build_text_tokenizer({"name": "bytes", "length": 4})
    samples = [{"video": np.zeros((2, 4, 4, 3), np.uint8), "caption": "a long caption", "fps": 8.0}] * 3
    batches = inputs.HeldOut(samples, 3, {}).batches(2, text)
    assert [set(batch) for batch in batches] == [{"video", "text_ids", "text_mask"}] * 2
    assert [len(batch["video"]) for batch in batches] == [2, 1]


@pytest.mark.parametrize("system", ["hot", "selective_s4", "videolisa"])
def test_plans_without_data_know_what_samples_have(system):
    config = importlib.import_module(f"videogen.configs.{system}").get_config("size=debug")
    found = inputs.abstract_batch(config, None)
    assert found == inputs.abstract_batch(config, None, inputs.build_source(config, "train"))
    with config.unlocked():
        config.data.source.update({"segments": "stand_in", "things": 3})
    if "video" in found:
        size = found["video"].shape[:4]
        with_maps = inputs.abstract_batch(config, None)
        assert with_maps["segments"].shape == size and with_maps["links"].shape == (size[0], 3, size[1])
