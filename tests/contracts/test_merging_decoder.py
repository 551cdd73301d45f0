"""A decoder language model over the tokens of a clip: a merge between two layers, and cached decoding behind it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.contracts.driver import WIDTH, Skeleton, moved, stage, trained
from videogen import heads, tasks
from videogen.nn import Causal, Hook, LearnedPositions, Linear, MicroBatch, Stream, build_transformer, patchify
from videogen.tasks.base import Outcome, to_video

CLIP, TEXT = 8, 10
"""Tokens of a clip, half of which are left behind the merge; bytes of a caption."""


class Halve(Hook):
    """The mean of neighbouring tokens of the clip, which count twice from there on; text stays as it is."""

    place = "after"

    def __call__(self, x, call, aux):
        if not call["notes"]["clip"]:
            return x, call
        clip, text = x[:, :CLIP], x[:, CLIP:]
        merged = clip.reshape(len(x), CLIP // 2, 2, WIDTH).mean(2)
        bias = jnp.concatenate([jnp.full((len(x), CLIP // 2), np.log(2)), jnp.zeros(text.shape[:2])], axis=1)
        return jnp.concatenate([merged, text], axis=1), {**call, "key_bias": bias}


class Watcher(nnx.Module):
    """The clip as a prefix, then the bytes of the caption."""

    def __init__(self, rngs: nnx.Rngs):
        self.patches = Linear(4 * 4 * 2 * 3, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.head = heads.build({"name": "categorical"}, vocabulary=(257,), width=WIDTH, hidden=False,
                                remat="none", dtype=jnp.float32, rngs=rngs)  # fmt: skip
        self.places = LearnedPositions(CLIP + TEXT, WIDTH, rngs=rngs)
        section = {"width": WIDTH, "layers": 2, "heads": 2, "mlp_width": 32}
        self.tower = build_transformer(section, hooks={0: Halve()}, rngs=rngs)

    def see(self, video: jax.Array) -> jax.Array:
        return self.patches(patchify(video, (2, 4, 4))).reshape(len(video), CLIP, WIDTH) + self.places(CLIP)

    def read(self, ids: jax.Array, first: int = 0) -> jax.Array:
        return self.head.embed(ids[..., None]) + self.places(CLIP + TEXT)[CLIP + first : CLIP + first + ids.shape[1]]

    def features(self, video: jax.Array, ids: jax.Array) -> jax.Array:
        """Of the last token of the clip and of every byte: each predicts the next one."""
        x = self.tower(jnp.concatenate([self.see(video), self.read(ids)], axis=1), mask=Causal(), notes={"clip": True})
        return x[:, CLIP // 2 - 1 :]

    def answer(self, video: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        """The likeliest bytes and their features, one after another; the clip is read once, into the caches."""
        batch = len(video)
        stream = Stream(self.tower.begin(batch, CLIP + TEXT, tags=()))
        x = self.tower(self.see(video), mask=Causal(), stream=stream, notes={"clip": True})
        features, ids = [x[:, -1:]], []
        for place in range(length):
            ids.append(self.head.logits(features[-1])[0].argmax(-1))
            stream = Stream(stream.cache)
            x = self.read(ids[-1], place)
            features.append(self.tower(x, mask=Causal(), stream=stream, notes={"clip": False}))
        return jnp.concatenate(ids, axis=1), jnp.concatenate(features[:-1], axis=1)


class WatcherTask(Skeleton):
    def network(self, rngs):
        return Watcher(rngs)

    def loss(self, modules, batch, key, step, micro=None):
        micro, model = micro or MicroBatch(), modules["model"]
        ids, mask = batch["text_ids"], batch["text_mask"]
        x = model.features(to_video(batch["video"]), ids)[:, :-1]
        total, count, measured = model.head.loss(x, ids[..., None], mask, None)
        loss = total / micro.mean(count)
        return loss, Outcome({"loss": loss, "accuracy": measured["accuracy"][0] / micro.mean(measured["accuracy"][1])})


@pytest.mark.slow
def test_a_decoder_with_a_merge_between_its_layers(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "watcher", WatcherTask)
    config = stage("watcher")
    config.text = {
        "encoder": {"name": "transformer"},
        "tokenizer": {"name": "bytes", "path": "", "length": TEXT, "vocabulary_size": 257},
    }
    loaded = trained(config, tmp_path)
    model = loaded.modules["model"]
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 4, 8, 8, 3)), jnp.float32)
    # Cached decoding is the full forward, though the two layers hold different numbers of tokens.
    ids, features = model.answer(video, 4)
    whole = model.features(video, ids)[:, :4]
    np.testing.assert_allclose(features, whole, atol=1e-4 * float(jnp.abs(whole).max()))
    np.testing.assert_array_equal(model.head.logits(whole)[0].argmax(-1), ids)
    moved(config, loaded)
