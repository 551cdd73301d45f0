"""Runs of the task over streams: trained, resumed, loaded, asked for clips, stories and captions; a published model."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import videogen
from tests.tasks.test_language import tiny
from tests.untrained import save_untrained
from videogen.configs import language
from videogen.data.video_io import write_video
from videogen.encoders import Decoder
from videogen.errors import UserError
from videogen.evaluation.protocols import evaluate
from videogen.inference.captioning import caption_video, write_texts
from videogen.inference.sampling import draw_videos
from videogen.reporting.run_page import write_run_report
from videogen.training.loading import export_safetensors
from videogen.training.loop import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    config = language.get_config("stage=tokenizer,size=debug")
    config.model = tiny().parts.tokenizer.model
    config.data.clip.update({"frames": 2, "height": 8, "width": 8})
    return save_untrained(config, tmp_path_factory.mktemp("runs") / "tokenizer")


def stage(tokenizer, clips: int = 2, **changes):
    config = tiny(clips=clips, **changes)
    config.parts.tokenizer.checkpoint = str(tokenizer)
    config.steps = config.eval_every = 4
    config.checkpoint_every, config.log_every = 2, 1
    return config


def arrays(run):
    return jax.tree.leaves(nnx.state(run.modules["language"]))


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory):
    """A run of four steps, and one that stopped after two."""
    folder = tmp_path_factory.mktemp("language")
    run = train(stage(tokenizer), folder / "straight")
    assert [picture.name for picture in run.pictures] == ["samples", "captions"]
    captions = [sample["caption"] for sample in run.start.evaluated.samples]
    write_run_report(folder / "straight", run.config, run.pictures, captions)
    half = stage(tokenizer)
    half.steps = 2
    train(half, folder / "resumed")
    train(stage(tokenizer), folder / "resumed")
    return folder


def test_a_resumed_run_is_the_same_to_the_bit_and_so_is_its_export(runs):
    straight, resumed = (videogen.load(runs / name) for name in ("straight", "resumed"))
    for a, b in zip(arrays(straight), arrays(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    export_safetensors(straight, runs / "export")
    for a, b in zip(arrays(straight), arrays(videogen.load(runs / "export")), strict=True):
        np.testing.assert_array_equal(a, b)
    page = (runs / "straight" / "report.html").read_text()
    assert "Captions" in page and "Samples" in page


def test_clips_stories_and_captions_come_out_of_one_run(runs, tmp_path):
    loaded = videogen.load(runs / "straight")
    prompts = ["a circle", "b"]
    videos = draw_videos(loaded, prompts, seed=3)
    assert videos.shape == (2, 2, 8, 8, 3)
    np.testing.assert_array_equal(draw_videos(loaded, prompts[:1], seed=3)[0], videos[0])
    assert draw_videos(loaded, prompts, seed=3, story=True).shape == (1, 4, 8, 8, 3)
    # One prompt of a story of two clips: the model writes the second text.
    assert draw_videos(loaded, prompts[:1], seed=3, story=True, frames=4).shape == (1, 4, 8, 8, 3)
    write_video(tmp_path / "clip.mp4", np.repeat(np.repeat(videos[0], 4, 1), 4, 2), 8.0)
    texts = caption_video(loaded, str(tmp_path / "clip.mp4"), seed=0, count=2)
    assert len(texts) == 2
    record = json.loads(write_texts(tmp_path / "said", texts, loaded, "clip.mp4", 0).read_text())
    assert record["captions"] == texts and record["step"] == 4
    with pytest.raises(UserError, match="takes no given frames"):
        draw_videos(loaded, prompts, seed=3, video=str(tmp_path / "clip.mp4"))


def test_protocols_measure_clips_and_captions(runs):
    loaded = videogen.load(runs / "straight")
    metrics = evaluate(loaded, "captions", 3, 0)[0]["metrics"]["captions"]
    assert set(metrics) == {"right", "grammar", "colour", "form", "size", "direction", "speed", "background"}
    assert all(0 <= value <= 1 for value in metrics.values())


def test_a_published_model_is_the_start_and_only_updates_move(tokenizer, tmp_path):
    settings = dict(vocabulary_size=257, width=16, layers=1, heads=2, hidden=16, key_value_heads=1, head_width=8)
    model = Decoder(**settings, rngs=nnx.Rngs(5))
    published = tmp_path / "published"
    published.mkdir()
    sizes = {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    sizes |= {"intermediate_size": 16, "num_key_value_heads": 1, "model_type": "llama", "rms_norm_eps": 1e-6}
    (published / "config.json").write_text(json.dumps(sizes))
    save_file(hugging_face(model), published / "model.safetensors")
    config = stage(tokenizer, clips=1)
    with config.unlocked():
        config.parts.language_model = {
            "checkpoint": str(published),
            "model": {"name": "decoder", **settings},
            "hash": "",
        }
        config.model.backbone = {"name": "decoder", "model": settings, "lora": {"rank": 2, "alpha": 2}}
    config.text.tokenizer.path = "none"
    config.start_from.paths = (("language.backbone.decoder", ":language_model"),)
    paper = language.get_config("stage=language,size=paper,model=mistral")
    config.optimizer.language.freeze = paper.optimizer.language.freeze
    config.ema.decay = 0.0
    train(config, tmp_path / "run")
    after = dict(nnx.to_flat_state(nnx.state(videogen.load(tmp_path / "run").modules["language"].backbone.decoder)))
    before = dict(nnx.to_flat_state(nnx.state(model)))
    for path, value in after.items():
        if "lora" in path:
            continue
        same = np.array_equal(value.get_value(), before[path].get_value())
        assert same == ("norm" not in "".join(map(str, path))), path
    ups = [value.get_value() for path, value in after.items() if path[-1] == "up" and "lora" in path]
    assert ups and all(np.any(up) for up in ups)


def hugging_face(model: Decoder) -> dict[str, np.ndarray]:
    """The tensors of a model under their published names."""
    layers, named = model.transformer.stack.layers, {}
    q, k, v = np.split(np.asarray(layers.attention.query_key_value.kernel.get_value())[0], [16, 24], axis=-1)
    kernels = {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": layers.attention.out.kernel.get_value()[0]}
    named |= {
        f"model.layers.0.self_attn.{name}.weight": np.ascontiguousarray(np.asarray(x).T) for name, x in kernels.items()
    }
    for name in ("up", "gate", "down"):
        kernel = getattr(layers.mlp, name).kernel.get_value()[0]
        named[f"model.layers.0.mlp.{name}_proj.weight"] = np.ascontiguousarray(np.asarray(kernel).T)
    norms = {"input_layernorm": layers.attention_norm, "post_attention_layernorm": layers.mlp_norm}
    named |= {f"model.layers.0.{name}.weight": np.asarray(norm.scale.get_value()[0]) for name, norm in norms.items()}
    named["model.norm.weight"] = np.asarray(model.transformer.norm.scale.get_value())
    named["model.embed_tokens.weight"] = np.asarray(model.embedding.table.get_value())
    named["lm_head.weight"] = np.ascontiguousarray(np.asarray(model.head.kernel.get_value()).T)
    return named
