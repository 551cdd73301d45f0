"""The frozen text encoder of a generator is one of its parts: found once, hashed, kept by the run."""

import json
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.parameters import with_random_parameters
from tests.training_configs import tiny
from tests.untrained import save_untrained
from videogen import tasks
from videogen.conditioning import T5Encoder
from videogen.configs import nbp, videodit
from videogen.configs.common import t5_part, t5_text
from videogen.configuration import load_config, save_config
from videogen.errors import UserError
from videogen.planning.programs import complete_for_planning
from videogen.training.loading import CONFIG, hash_of, load
from videogen.training.workdir import complete_config, earlier_start

IDS = jnp.array([[3, 1, 4, 0]])
MASK = IDS > 0


def publish(folder):
    """A published T5 of one layer."""
    folder.mkdir()
    config = {"vocab_size": 300, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    random, block = np.random.default_rng(0), "encoder.block.0.layer"
    shapes = {
        "shared.weight": (300, 8),
        **{f"{block}.0.SelfAttention.{name}.weight": (8, 8) for name in "qkvo"},
        f"{block}.0.SelfAttention.relative_attention_bias.weight": (32, 2),
        f"{block}.0.layer_norm.weight": (8,),
        f"{block}.1.DenseReluDense.wi.weight": (12, 8),
        f"{block}.1.DenseReluDense.wo.weight": (8, 12),
        f"{block}.1.layer_norm.weight": (8,),
        "encoder.final_layer_norm.weight": (8,),
    }
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def generator(folder=""):
    config = nbp.get_config("stage=generator,size=debug")
    config.parts.tokenizer.model = tiny().model
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    config.model.update({"block": (1, 1, 4)})
    config.model.transformer = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    config.text, config.parts.text_encoder = t5_text(length=4), t5_part()
    config.text.tokenizer.name = "bytes"
    config.parts.text_encoder.checkpoint = str(folder)
    return config


def completed(config, workdir):
    """The config with its parts; the tokenizer comes from a run that is not there."""
    tokenizer = with_random_parameters(nnx.eval_shape(lambda: tasks.build(tiny()).init(nnx.Rngs(0))["tokenizer"]))
    origin = SimpleNamespace(model_of=lambda what: tiny().model, tokenizer=tokenizer, config=tiny())
    config.parts.tokenizer.checkpoint = "runs/tokenizer"
    complete_config(config, workdir, lambda directory: origin)
    return config


def test_a_run_finds_what_its_text_encoder_is_and_reads_the_files_no_more(tmp_path):
    config = completed(generator(publish(tmp_path / "t5")), tmp_path / "run")
    part = config.parts.text_encoder.copy_and_resolve_references()
    assert part.hash == hash_of(T5Encoder.load(tmp_path / "t5"))
    assert part.model.name == "t5" and part.model.vocabulary_size == 300
    assert config.text.tokenizer.path == str(tmp_path / "t5")
    structure = nnx.eval_shape(lambda: tasks.build(config).frozen(None))["text_encoder"]
    assert isinstance(structure, T5Encoder) and structure.config == T5Encoder.load(tmp_path / "t5").config
    (tmp_path / "run").mkdir()
    save_config(tmp_path / "run" / CONFIG, config)
    shutil.move(tmp_path / "t5", tmp_path / "moved")
    for where in ("", tmp_path / "t5"):
        again = completed(generator(where), tmp_path / "run")
        assert again.parts.text_encoder.hash == part.hash and again.parts.text_encoder.model == part.model
    message = "needs its text_encoder: pass --config.parts.text_encoder.checkpoint=FOLDER"
    with pytest.raises(UserError, match=message):
        completed(generator(), tmp_path / "new")


def test_a_run_of_format_2_goes_on(tmp_path):
    config = videodit.get_config("stage=generator,size=debug")
    config.text, config.parts.text_encoder = t5_text(length=4), t5_part()
    config.text.tokenizer.name = "bytes"
    config.parts.text_encoder.checkpoint = str(publish(tmp_path / "t5"))
    again = config.copy_and_resolve_references()
    completed(config, tmp_path / "run")
    old = json.loads(config.to_json())
    part, old["tokenizer"] = old["parts"]["text_encoder"], old.pop("parts")["tokenizer"]
    architecture = {key: value for key, value in part["model"].items() if key != "name"}
    old["text"]["encoder"] = {"name": "t5", "path": str(tmp_path / "t5"), "width": 8, "architecture": architecture}
    old["model"] |= old["model"].pop("transformer") | old["model"].pop("noise")
    old["model"]["law"] = old["model"].pop("time_distribution")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).write_text(json.dumps(old | {"format": 2}))
    assert load_config(tmp_path / "run" / CONFIG).parts.text_encoder.hash == ""
    completed(again, tmp_path / "run")
    assert again.parts.text_encoder.hash == part["hash"] and earlier_start(again, tmp_path / "run").same


def test_a_text_that_is_switched_off_needs_no_encoder(tmp_path):
    config = generator()
    config.text.encoder.name = "none"
    completed(config, tmp_path)
    assert set(tasks.class_of(config).parts_of(config)) == {"tokenizer"}
    assert complete_for_planning(generator()) and not complete_for_planning(config)
    config.parts.text_encoder.checkpoint = "t5"
    with pytest.raises(UserError, match="config.parts.text_encoder: the frozen parts of a generator are: tokenizer"):
        completed(config, tmp_path)


@pytest.mark.slow
def test_the_run_keeps_its_text_encoder_and_refuses_another(tmp_path):
    config = completed(generator(publish(tmp_path / "t5")), tmp_path / "run")
    config.parts.tokenizer.checkpoint = ""
    save_untrained(config, tmp_path / "run")
    loaded, published = load(tmp_path / "run"), T5Encoder.load(tmp_path / "t5")
    assert loaded.key["parts"]["text_encoder"] == hash_of(published)
    ours, theirs = loaded.modules["text_encoder"](IDS, MASK), published(IDS, MASK)
    np.testing.assert_array_equal(ours.features, theirs.features)
    assert loaded.trained.generator.context.width == 8
    path = tmp_path / "run" / "frozen" / "text_encoder.safetensors"
    save_file({name: x + 1 for name, x in load_file(path).items()}, path)
    with pytest.raises(UserError, match="holds another text_encoder than config.json names"):
        load(tmp_path / "run")
