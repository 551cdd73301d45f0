"""``tokenize --normalise``: a cache of normalised latents, the tokenizer beside it, and a generator on both."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import videogen
from tests.inference.test_caching import generator_config, tokenizer_run
from videogen import data, tasks
from videogen.configs import videodit
from videogen.data.inputs import clip_of
from videogen.errors import UserError
from videogen.generators import NormalisedLatents
from videogen.inference.caching import remove_unfinished, write_token_cache
from videogen.runs.finished import FinishedBatches
from videogen.training.loading import Loaded

SETTINGS = {"source": {"name": "shapes"}, "clips": 5, "batch_size": 2}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A raw cache and one by channel, from the same run."""
    folder = tmp_path_factory.mktemp("normalising")
    config = generator_config("flow")
    task = tasks.build(config)
    stage = videodit.get_config("stage=tokenizer,size=debug")
    stage.model, stage.losses, stage.data.clip = config.parts.tokenizer.model, {}, config.data.clip
    run = Loaded(folder, stage, tasks.build(stage), {"tokenizer": task.structure_of_part("tokenizer")}, step=0)
    write_token_cache(run, folder / "raw", **SETTINGS)
    with Log() as log:
        write_token_cache(run, folder / "channel", **SETTINGS, normalise="channel")
    return folder, config, run, log.lines


class Log(logging.Handler):
    """The lines that are logged inside a ``with`` block."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def __enter__(self):
        logger = logging.getLogger("absl")
        self.before = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("absl").removeHandler(self)
        logging.getLogger("absl").setLevel(self.before)


def read(folder, config, **settings):
    source = {"name": "tokens", "path": str(folder), **settings}
    return data.build(source, clip=clip_of(config), seed=0, split="train")


def values(source) -> np.ndarray:
    return np.stack([source[i]["tokens/video"] for i in range(len(source))])


def test_the_cache_holds_normalised_latents_and_says_so(written):
    folder, config, run, lines = written
    raw, cache = read(folder / "raw", config), read(folder / "channel", config)
    assert (raw.meta["space"], cache.meta["space"]) == ("raw", "normalised")
    assert cache.layout == raw.layout and cache[3]["caption"] == raw[3]["caption"]
    x, y = values(raw).astype(np.float64), values(cache)
    mean, deviation = x.mean((0, 1, 2, 3)), x.std((0, 1, 2, 3))
    np.testing.assert_allclose(y, (x - mean) / deviation, rtol=1e-4, atol=1e-4)
    found = f"normalised latents: {len(mean)} channels have means from {mean.min():.3g} to {mean.max():.3g}"
    assert [line.startswith(found) for line in lines if "normalised" in line] == [True]


def test_the_tokenizer_beside_the_cache_gives_the_same_tokens_and_the_raw_latents_back(written):
    folder, config, run, _ = written
    loaded = videogen.load(folder / "channel" / "tokenizer")
    cache = read(folder / "channel", config, tokenizer_hash=loaded.hash)
    assert loaded.tokenizer.normalised and loaded.hash != run.hash
    first = data.build({"name": "shapes"}, clip=clip_of(config), seed=run.config.seed, split="train")[0]["video"]
    tokens = loaded.tokenizer.tokenize(jnp.asarray(first[None] / np.float32(127.5) - 1))
    np.testing.assert_allclose(tokens.only.values[0], cache[0]["tokens/video"], rtol=1e-3, atol=1e-3)
    raw = read(folder / "raw", config)[0]["tokens/video"]
    np.testing.assert_allclose(loaded.tokenizer.lookup(tokens)[0], raw, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="the generator has .*of its normalised latents is .*channel/tokenizer"):
        read(folder / "channel", config, tokenizer_hash=run.hash)


@pytest.mark.slow
def test_a_generator_of_normalised_latents_does_not_normalise_again(written):
    folder, config, run, _ = written
    loaded = videogen.load(folder / "channel" / "tokenizer")
    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        config.parts.tokenizer.model = loaded.model_of("tokenizer").to_dict()
    task = tasks.build(config)
    modules = task.init(nnx.Rngs(0)) | {"tokenizer": loaded.tokenizer}
    generator = modules["generator"].generator
    assert isinstance(generator.statistics, NormalisedLatents)
    cache = read(folder / "channel", config, tokenizer_hash=loaded.hash)
    batch = {"tokens/video": values(cache)[:2]}
    tokens = task.tokens(modules, batch)
    np.testing.assert_array_equal(tokens.only.values, batch["tokens/video"])
    np.testing.assert_array_equal(generator.statistics.normalise(tokens.only.values), batch["tokens/video"])
    assert generator.statistics.sums(tokens.only.values) == {}
    # A raw tokenizer's generator measures its own, as ever.
    plain = tasks.build(generator_config("flow")).init(nnx.Rngs(0))["generator"].generator
    assert not isinstance(plain.statistics, NormalisedLatents)


@pytest.mark.parametrize("text", ["frame", "pca:2"])
def test_other_kinds_are_fitted_after_a_kill_from_the_batches_that_are_there(written, text, tmp_path):
    folder, config, run, _ = written
    parts = FinishedBatches(tmp_path / "cache", {"clips": 5})

    def killed(name, compute):
        if name == "clips_4":
            raise KeyboardInterrupt
        return parts(name, compute)

    with pytest.raises(KeyboardInterrupt):
        write_token_cache(run, tmp_path / "cache", **SETTINGS, normalise=text, keep=killed)
    (tmp_path / "cache" / "tokenizer").mkdir(parents=True)
    (tmp_path / "cache" / "video.bin").write_bytes(b"")
    remove_unfinished(tmp_path / "cache")
    parts = FinishedBatches(tmp_path / "cache", {"clips": 5})
    assert write_token_cache(run, tmp_path / "cache", **SETTINGS, normalise=text, keep=parts) == 5
    with Log() as log:
        parts.remove()
    assert log.lines == ["2 batches were finished by an earlier start"]
    cache, x = read(tmp_path / "cache", config), values(read(folder / "raw", config)).astype(np.float64)
    y = values(cache).astype(np.float64)
    if text == "frame":
        np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-4)
        np.testing.assert_allclose(y.std((0, 2, 3)), 1, rtol=1e-3)
    else:
        assert cache.layout.only.channels == 2
        np.testing.assert_allclose(np.cov(y.reshape(-1, 2).T, bias=True), np.eye(2), atol=1e-3)
    config = json.loads((tmp_path / "cache" / "tokenizer" / "config.json").read_text())
    expected = {"frame": {"name": "mean", "frames": x.shape[1]}, "pca:2": {"name": "pca", "components": 2}}[text]
    assert config["model"]["normaliser"] == expected


def test_what_cannot_be_normalised_is_refused_before_anything_is_encoded(written, tmp_path):
    folder, _, run, _ = written
    codes = tokenizer_run(tmp_path, tasks.build(generator_config("masked")))
    for message, loaded, out, text in (
        ("channel exists already", run, folder / "channel", "channel"),
        ("must be channel, frame or pca:K", run, tmp_path / "cache", "by channel"),
        ("have no 999 principal components", run, tmp_path / "cache", "pca:999"),
        ("this tokenizer gives codes", codes, tmp_path / "cache", "channel"),
    ):
        with pytest.raises(UserError, match=message):
            write_token_cache(loaded, out, **SETTINGS, normalise=text, keep=None)
    assert not (tmp_path / "cache").exists()
