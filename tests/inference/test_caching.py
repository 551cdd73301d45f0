"""A token cache gives a generator the numbers that the tokenizer gives on the fly."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import data, tasks
from videogen.configs import hitvideo, karl, larp, one_d_piece, phenaki, tokenbridge, videodit
from videogen.data.inputs import clip_of
from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.inference.caching import remove_unfinished, write_token_cache
from videogen.runs.finished import FinishedBatches
from videogen.tasks import GeneratorTask
from videogen.tokenizers import Request
from videogen.training.loading import Loaded

NARROW = {"width": 16, "heads": 2, "mlp_width": 16}


def generator_config(system: str):
    config = {"masked": phenaki, "larp": larp, "tokenbridge": tokenbridge, "flow": videodit}[system].get_config(
        "stage=generator,size=debug"
    )
    if system == "larp":
        network = {**NARROW, "layers": 1}
        config.parts.tokenizer.model.update({"queries": 8, "encoder": network, "decoder": dict(network)})
    else:
        config.parts.tokenizer.model.update({**NARROW, "decoder_layers": (1, 1)})
    config.model.transformer.update({**NARROW, "layers": 1})
    config.text.encoder.update({"width": 16, "heads": 2})
    return config


def tokenizer_run(directory, task: GeneratorTask) -> Loaded:
    """The tokenizer of a generator as its own run would be loaded."""
    config = task.config.copy_and_resolve_references()
    config.model, config.task, config.losses = config.parts.tokenizer.model, "tokenizer", {}
    config.parts = {}
    return Loaded(directory, config, tasks.build(config), {"tokenizer": task.structure_of_part("tokenizer")}, step=0)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["masked", "larp", "tokenbridge", "flow"])
def test_the_loss_from_a_cache_is_the_loss_on_the_fly(system, tmp_path):
    config = generator_config(system)
    if system == "tokenbridge":  # whose training draws from the posterior, of which a cache holds the mean
        config.parts.tokenizer.model.quantizer.drawn = False
    task = tasks.build(config)
    run = tokenizer_run(tmp_path, task)
    count = write_token_cache(run, tmp_path / "cache", {"name": "shapes"}, clips=3, batch_size=2)
    clip = clip_of(task.config)
    settings = {"name": "tokens", "path": str(tmp_path / "cache"), "tokenizer_hash": run.hash}
    cache = data.build(settings, clip=clip, seed=0, split="train")
    pixels = data.build({"name": "shapes"}, clip=clip, seed=task.config.seed, split="train")
    assert len(cache) == count == 3
    assert cache.made_from["source"]["name"] == "shapes" and cache.made_from["split"] == "train"
    assert cache.made_from["clip"] == run.config.data.clip.to_dict() and cache.fps == 8.0
    text = {"text_ids": np.arange(72).reshape(3, 24) % 50, "text_mask": np.ones((3, 24), bool)}
    batches = [
        text | {key: np.stack([source[i][key] for i in range(3)])}
        for source, key in ((pixels, "video"), (cache, "tokens/video"))
    ]
    modules = task.init(nnx.Rngs(0)) | run.modules

    @jax.jit
    def loss(batch) -> tuple:
        value, outcome = task.generator_loss(modules, batch, jax.random.key(1), jnp.zeros((), int))
        return value, outcome.metrics

    on_the_fly, cached = map(loss, batches)
    assert np.isfinite(cached[0]) and cached[0] > 0
    jax.tree.map(np.testing.assert_array_equal, on_the_fly, cached)


def test_only_a_tokenizer_writes_a_cache(tmp_path):
    config = generator_config("masked")
    with pytest.raises(UserError, match="holds a generator, not a tokenizer"):
        write_token_cache(Loaded(tmp_path, config, tasks.build(config), {}, 0), tmp_path / "cache", None, 1, 1)


def test_a_cache_of_every_frame_has_the_rate_of_its_files(tmp_path):
    """Where ``clip.fps`` is 0 the cache told no rate, and samples of its generator were written at 8."""
    config = generator_config("masked")
    config.data.clip.fps = 0.0
    clip = clip_of(config)
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "x.mp4", np.zeros((clip.frames, 32, 32, 3), np.uint8), fps=24)
    run = tokenizer_run(tmp_path, tasks.build(config))
    source = {"name": "video_folder", "path": str(tmp_path / "clips")}
    assert write_token_cache(run, tmp_path / "cache", source, clips=None, batch_size=1) == 1
    cache = data.build({"name": "tokens", "path": str(tmp_path / "cache")}, clip=clip, seed=0, split="train")
    assert cache.fps == 24 and cache.made_from["source"] == source


def test_several_windows_are_drawn_from_each_video_and_more_clips_than_there_are_is_said(tmp_path, caplog):
    config = generator_config("masked")
    clip = clip_of(config)
    (tmp_path / "clips").mkdir()
    for i in range(2):
        video = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, (40, 32, 32, 3))
        write_video(tmp_path / "clips" / f"{i}.mp4", video, fps=clip.fps)
    run = tokenizer_run(tmp_path, tasks.build(config))
    source = {"name": "video_folder", "path": str(tmp_path / "clips"), "holdout": 0.0}
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert write_token_cache(run, tmp_path / "cache", source, clips=99, batch_size=4, windows=3) == 6
    assert "99 clips were asked for: the source has 2 samples, of each of which 3 windows are drawn" in caplog.text
    cache = data.build({"name": "tokens", "path": str(tmp_path / "cache")}, clip=clip, seed=0, split="train")
    assert len({cache[i]["tokens/video"].tobytes() for i in range(6)}) > 2
    assert write_token_cache(run, tmp_path / "first", source, clips=None, batch_size=4) == 2
    first = data.build({"name": "tokens", "path": str(tmp_path / "first")}, clip=clip, seed=0, split="train")
    for i in range(2):
        np.testing.assert_array_equal(first[i]["tokens/video"], cache[i]["tokens/video"])


def test_a_killed_command_goes_on_with_the_clip_it_was_at(tmp_path):
    run = tokenizer_run(tmp_path, tasks.build(generator_config("masked")))
    source, arguments = {"name": "shapes"}, {"clips": 5, "batch_size": 2}
    write_token_cache(run, tmp_path / "whole", source, **arguments)

    def write(batches: int) -> None:
        """Writes the cache, and is killed after so many batches of its own."""
        parts, done = FinishedBatches(tmp_path / "cache", {"clips": 5}), []

        def keep(name, compute):
            def counted():
                if len(done) == batches:
                    raise KeyboardInterrupt
                done.append(name)
                return compute()

            return parts(name, counted)

        if parts.found:
            remove_unfinished(tmp_path / "cache")
        assert write_token_cache(run, tmp_path / "cache", source, **arguments, keep=keep) == 5
        assert len(done) == batches
        parts.remove()

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write(1)
    write(1)  # of three batches the last
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == files
    for name in files:
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "cache.parts").exists()


def test_only_what_a_killed_command_left_is_removed(tmp_path):
    for name in ("video.bin", "notes.txt"):
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / name).write_text("x")
    remove_unfinished(tmp_path / "cache")
    assert (tmp_path / "cache" / "notes.txt").exists()
    (tmp_path / "cache" / "notes.txt").unlink()
    remove_unfinished(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_first_tokens_alone_are_kept_where_so_many_are_asked_for(tmp_path):
    config = one_d_piece.get_config("size=debug")
    network = {**NARROW, "layers": 1}
    config.model.update({"queries": 9, "encoder": network, "decoder": dict(network)})
    run = Loaded(tmp_path, config, tasks.build(config), tasks.build(config).init(nnx.Rngs(0)), step=0)
    write_token_cache(run, tmp_path / "all", {"name": "shapes"}, clips=3, batch_size=2)
    write_token_cache(run, tmp_path / "few", {"name": "shapes"}, clips=3, batch_size=2, tokens=4)
    settings = {"name": "tokens", "tokenizer_hash": run.hash}
    whole, few = (
        data.build(settings | {"path": str(tmp_path / name)}, clip=clip_of(config), seed=0, split="train")
        for name in ("all", "few")
    )
    for i in range(3):
        np.testing.assert_array_equal(few[i]["tokens/video"], whole[i]["tokens/video"])
        assert few[i]["tokens/video/kept"].tolist() == [True] * 4 + [False] * 5
    assert "tokens/video/kept" not in whole[0]
    with pytest.raises(UserError, match="has 1 … 9 tokens for a clip, and 10 are asked for"):
        write_token_cache(run, tmp_path / "many", {"name": "shapes"}, clips=3, batch_size=2, tokens=10)
    assert not (tmp_path / "many").exists()
    grid = tokenizer_run(tmp_path, tasks.build(generator_config("masked")))
    with pytest.raises(UserError, match="CViViT decodes whole clips of tokens only: leave out --tokens"):
        write_token_cache(grid, tmp_path / "grid", {"name": "shapes"}, clips=3, batch_size=2, tokens=4)


def test_the_tokens_that_an_error_needs_are_kept(tmp_path):
    config = karl.get_config("size=debug")
    network = {**NARROW, "layers": 1}
    config.model.update({"queries": 9, "longest": 0, "encoder": network, "decoder": dict(network)})
    config.passes.step = 3
    run = Loaded(tmp_path, config, tasks.build(config), tasks.build(config).init(nnx.Rngs(0)), step=0)
    # As if some logits were above the threshold of log 3.
    run.modules["tokenizer"].halting.bias.set_value(jnp.full(1, 1.1))
    for name, asked in {"own": {}, "error": {"max_error": 0.2}, "both": {"max_error": 0.2, "tokens": 4}}.items():
        write_token_cache(run, tmp_path / name, {"name": "shapes"}, clips=3, batch_size=2, **asked)
    settings = {"name": "tokens", "tokenizer_hash": run.hash}
    own, error, both = (
        data.build(settings | {"path": str(tmp_path / name)}, clip=clip_of(config), seed=0, split="train")
        for name in ("own", "error", "both")
    )
    pixels = data.build({"name": "shapes"}, clip=clip_of(config), seed=0, split="train")
    kept = []
    for i in range(3):
        video = tasks.to_video(jnp.asarray(pixels[i]["video"])[None])
        expected = jax.jit(lambda video: run.tokenizer.tokenize(video, Request(0.2)))(video).only
        assert error[i]["tokens/video/kept"].tolist() == expected.kept[0].tolist()
        np.testing.assert_array_equal(error[i]["tokens/video"], expected.values[0])
        assert both[i]["tokens/video/exists"].tolist() == [True] * 4 + [False] * 5
        kept.append(error[i]["tokens/video/kept"])
    assert 0 < np.mean(kept) < 1 and own[0]["tokens/video/kept"].shape == (9,)
    with pytest.raises(UserError, match="asked for must be above 0"):
        write_token_cache(run, tmp_path / "none", {"name": "shapes"}, clips=3, batch_size=2, max_error=0.0)
    assert not (tmp_path / "none").exists()
    ordered = one_d_piece.get_config("size=debug")
    other = Loaded(tmp_path, ordered, tasks.build(ordered), tasks.build(ordered).init(nnx.Rngs(0)), step=0)
    with pytest.raises(UserError, match="OneD does not decide how many tokens an error needs: leave out --max_error"):
        write_token_cache(other, tmp_path / "no", {"name": "shapes"}, clips=3, batch_size=2, max_error=0.1)


def test_the_first_layers_alone_are_kept_where_their_tokens_are_asked_for(tmp_path):
    config = hitvideo.get_config("size=debug")
    config.data.clip.update({"height": 16, "width": 16})
    config.model.update({"width": 8, "multipliers": (1, 2), "spatial_strides": (4,), "temporal_strides": (2,)})
    run = Loaded(tmp_path, config, tasks.build(config), tasks.build(config).init(nnx.Rngs(0)), step=0)
    write_token_cache(run, tmp_path / "few", {"name": "shapes"}, clips=2, batch_size=2, tokens=20)
    settings = {"name": "tokens", "tokenizer_hash": run.hash, "path": str(tmp_path / "few")}
    cache = data.build(settings, clip=clip_of(config), seed=0, split="train")
    pixels = data.build({"name": "shapes"}, clip=clip_of(config), seed=0, split="train")
    for i in range(2):
        video = tasks.to_video(jnp.asarray(pixels[i]["video"])[None])
        for name, segment in jax.jit(run.tokenizer.tokenize)(video).items():
            np.testing.assert_array_equal(cache[i][f"tokens/{name}"], segment.values[0])
        assert "tokens/layer_3/kept" not in cache[i] and cache[i]["tokens/layer_2/kept"].all()
        assert not cache[i]["tokens/layer_1/kept"].any()
    with pytest.raises(UserError, match="first layers of this clip have 8, 20, 68 tokens; ask for one of these, not 9"):
        write_token_cache(run, tmp_path / "some", {"name": "shapes"}, clips=2, batch_size=2, tokens=9)
    assert not (tmp_path / "some").exists()
