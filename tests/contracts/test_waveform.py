"""A waveform codec: a source of sound, a tokenizer of another field than video, a residual quantizer."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.contracts.driver import BATCH, WIDTH, Skeleton, moved, stage, trained
from videogen import data, losses, quantizers, tasks
from videogen.data import Source
from videogen.nn import FULL, Linear, MicroBatch, named_key
from videogen.shapes import VideoShape
from videogen.tasks.base import Outcome
from videogen.tokens import Layout, Segment, SegmentLayout, Tokens

SAMPLES, HOP = 64, 8


class Tones(Source):
    """Sines whose frequency the index decides; no video."""

    field = "audio"

    @property
    def fields(self):
        return {"audio": ((SAMPLES, 1), np.float32)}

    def __len__(self):
        return 50

    def sample(self, index, rng):
        wave = np.sin(np.arange(SAMPLES) * (0.05 + 0.01 * index) + rng.uniform(0, 6)).astype(np.float32)
        return {"audio": wave[:, None], "caption": ""}

    def caption(self, index):
        return ""


class Codec(nnx.Module):
    """Frames of ``HOP`` samples -> two levels of codes each -> samples."""

    def __init__(self, rngs: nnx.Rngs):
        stage = {"name": "vq", "size": 8, "width": 4, "codebook_update": "gradient", "cosine": False}
        self.quantizer = quantizers.build({"name": "residual", "base": stage, "levels": 2}, rngs=rngs)
        self.inner = Linear(HOP, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.to_code = Linear(WIDTH, self.quantizer.input_width, axes=("embed", None), precision=FULL, rngs=rngs)
        self.outer = Linear(self.quantizer.width, HOP, axes=(None, None), rngs=rngs)

    def layout(self, samples: int) -> Layout:
        return Layout.of(audio=SegmentLayout((("time", samples // HOP),), self.quantizer.vocabulary))

    def encode(self, audio):
        return self.to_code(nnx.swish(self.inner(audio.reshape(len(audio), -1, HOP))))

    def decode(self, latents):
        return self.outer(latents).reshape(len(latents), -1, 1)

    def tokenize(self, audio) -> Tokens:
        values = self.quantizer(self.encode(audio)).indices
        return Tokens.of(audio=Segment(values, self.layout(audio.shape[1])["audio"]))

    def detokenize(self, tokens: Tokens):
        return self.decode(self.quantizer.lookup(tokens["audio"].values))


class CodecTask(Skeleton):
    def __init__(self, config):
        super().__init__(config)
        self.terms = losses.build(config.losses, losses.Setting(VideoShape(1, 1, 1), SAMPLES // HOP, 4, config.steps))
        self.updates = {"model": self.update}

    def network(self, rngs):
        return Codec(rngs)

    def loss(self, modules, batch, key, step, micro=None):
        micro, model = micro or MicroBatch(), modules["model"]
        keys = micro.keys(named_key(key, "quantizer"), len(batch["audio"]))
        quantized = model.quantizer(model.encode(batch["audio"]), key=keys, train=True, mean=micro.mean)
        passes = {losses.RECONSTRUCTION: losses.Pass(model.decode(quantized.latents), batch["audio"])}
        outputs = losses.Outputs(passes, quantizer=quantized.losses)
        loss, metrics = losses.combine(self.terms, modules, outputs, key, step, micro)
        sums = dict(quantized.measured)
        return loss, Outcome(metrics, rows=sums.pop("candidates"), sums=sums)

    def update(self, modules, sums, rows, key, step):
        modules["model"].quantizer.update(sums["update_sums"], rows, key)
        return {"used": (sums["counts"] > 0).mean()}


@pytest.mark.slow
def test_a_waveform_codec(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "codec", CodecTask)
    monkeypatch.setitem(data.SOURCES, "tones", Tones)
    config = stage("codec", losses={"l1": {"name": "l1", "weight": 1.0}})
    config.data.source.name = "tones"
    loaded = trained(config, tmp_path)
    moved(config, loaded)
    audio = np.stack([Tones(clip=data.Clip(4, 8, 8), seed=0, split="eval")[i]["audio"] for i in range(BATCH)])
    tokens = loaded.modules["model"].tokenize(jnp.asarray(audio))
    assert tokens["audio"].values.shape == (BATCH, SAMPLES // HOP, 2)
    np.testing.assert_allclose(tokens.bits(), SAMPLES // HOP * 6.0)
    assert loaded.modules["model"].detokenize(tokens).shape == audio.shape
    # The codes of the first half are the first half of the codes.
    first = loaded.modules["model"].tokenize(jnp.asarray(audio[:, : SAMPLES // 2]))
    np.testing.assert_array_equal(first["audio"].values, tokens["audio"].values[:, : SAMPLES // HOP // 2])
