"""Programs that run without this code (``videogen.export --format=stablehlo``)."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.processes import environment
from tests.training_configs import tiny
from videogen.conditioning import Conditioning, EncodedText
from videogen.configs import videodit
from videogen.errors import UserError
from videogen.training.loading import load
from videogen.training.loop import train
from videogen.training.programs import export_stablehlo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("programs") / "run"
    train(tiny(), workdir)
    return load(workdir)


def run(folder, name, tmp_path, **arrays):
    """What the program of a folder gives in a process that cannot import this package."""
    given, found = tmp_path / "given.npz", tmp_path / "found.npz"
    np.savez(given, **arrays)
    process = subprocess.run(
        [sys.executable, "-I", folder / "run.py", name, given, found],
        env=environment() | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    return process, dict(np.load(found)) if process.returncode == 0 else {}


def test_a_tokenizer_encodes_and_decodes_without_this_code(tokenizer, tmp_path):
    export_stablehlo(tokenizer, tmp_path / "programs")
    manifest = json.loads((tmp_path / "programs" / "manifest.json").read_text())
    clip = tokenizer.config.data.clip
    shape = [1, clip.frames, clip.height, clip.width, 3]
    assert manifest["jax"] == jax.__version__ and manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["latent_space"] == "codes" and manifest["checkpoint"] == tokenizer.hash
    assert manifest["programs"]["encode"]["arguments"] == {"video": {"shape": shape, "dtype": "float32"}}
    assert manifest["programs"]["decode"]["results"] == {"video": {"shape": shape, "dtype": "float32"}}
    text = (tmp_path / "programs" / "encode.mlir").read_text()
    assert "module @jit_encode" in text and "stablehlo.dot_general" in text
    assert "videogen" not in (tmp_path / "programs" / "run.py").read_text().replace("``videogen.export", "")
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    tokens = tokenizer.tokenizer.tokenize(jnp.asarray(video))
    process, encoded = run(tmp_path / "programs", "encode", tmp_path, video=video)
    assert process.returncode == 0, process.stderr
    (name,) = tokens.names
    np.testing.assert_array_equal(encoded[name], tokens.only.values)
    _, decoded = run(tmp_path / "programs", "decode", tmp_path, **encoded)
    np.testing.assert_allclose(decoded["video"], tokenizer.tokenizer.detokenize(tokens), atol=1e-5)
    for given, said in (
        ({"video": video[:, 1:]}, f"video of encode must be float32 of shape {shape}, got float32 of shape"),
        ({"video": video.astype(np.float64)}, "got float64 of shape"),
        ({"clip": video}, "encode takes video, got clip"),
    ):
        process, _ = run(tmp_path / "programs", "encode", tmp_path, **given)
        assert process.returncode == 1 and process.stderr.startswith("error: ") and said in process.stderr
        assert process.stderr.count("\n") == 1
    process, _ = run(tmp_path / "programs", "step", tmp_path, video=video)
    assert "no program 'step' here; there are: encode, decode" in process.stderr


def test_a_denoising_step_runs_without_this_code(tokenizer, tmp_path):
    config = videodit.generator("debug", "1.3B")
    config.data.clip = tokenizer.config.data.clip.to_dict()
    config.parts.tokenizer.model = videodit.continuous("debug")
    config.parts.tokenizer.model.update({"width": 16, "heads": 2, "mlp_width": 32})
    config.parts.tokenizer.model.update({"encoder_layers": (1, 1), "decoder_layers": (1, 1)})
    config.model.transformer.update({"width": 16, "layers": 1, "heads": 2, "mlp_width": 32})
    config.text.encoder.update({"width": 16, "heads": 2})
    latents = tiny()
    latents.model = config.parts.tokenizer.model
    latents.losses.perceptual.weight = 0.0
    train(latents, tmp_path / "tokenizer")
    config.parts.tokenizer.checkpoint = str(tmp_path / "tokenizer")
    config.update({"steps": 1, "eval_every": 1, "checkpoint_every": 1})
    config.data.update({"batch_size": 2, "eval_batch_size": 2, "source": latents.data.source.to_dict()})
    config.sampler.steps = 1
    train(config, tmp_path / "generator")
    loaded = load(tmp_path / "generator")
    export_stablehlo(loaded, tmp_path / "programs", ["cpu"])
    manifest = json.loads((tmp_path / "programs" / "manifest.json").read_text())
    arguments = manifest["programs"]["step"]["arguments"]
    assert list(arguments) == ["latents", "time", "text", "text_mask"] and manifest["latent_space"] == "normalised"
    rng = np.random.default_rng(0)
    given = {
        "latents": rng.standard_normal(arguments["latents"]["shape"]).astype(np.float32),
        "time": np.float32([0.5]),
        "text": rng.standard_normal(arguments["text"]["shape"]).astype(np.float32),
        "text_mask": np.ones(arguments["text_mask"]["shape"], bool),
    }
    process, found = run(tmp_path / "programs", "step", tmp_path, **given)
    assert process.returncode == 0, process.stderr
    model = loaded.trained.generator
    told = Conditioning(EncodedText(jnp.asarray(given["text"]), jnp.asarray(given["text_mask"])))
    expected = model.predict(jnp.asarray(given["latents"]), jnp.asarray(given["time"]), model.prepare(told))
    np.testing.assert_allclose(found["prediction"], expected, atol=1e-5)


def test_what_has_no_programs_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="unknown platform 'gpu'; known: cpu, cuda, tpu"):
        export_stablehlo(tokenizer, tmp_path / "programs", ["cpu", "gpu"])
    with pytest.raises(UserError, match="holds a run or an export"):
        export_stablehlo(tokenizer, tokenizer.directory)
    assert not (tmp_path / "programs").exists()
