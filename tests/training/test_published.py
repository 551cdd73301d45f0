"""Published files and folders where commands and configs take a run directory."""

import json
import os

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import videogen
from videogen import tasks
from videogen.conditioning import EncodedText
from videogen.configs import videodit
from videogen.encoders.lora_files import Lora
from videogen.errors import UserError
from videogen.inference.sampling import at_rate
from videogen.tokenizers.public import FAMILIES, named, read_tokenizer
from videogen.training.loading import config_at, load, load_for_command
from videogen.training.published import is_published


def test_what_is_published_and_what_is_a_run(tmp_path):
    run, folder, pipeline = tmp_path / "run", tmp_path / "folder", tmp_path / "pipeline"
    for path in (run, folder, pipeline / "vae"):
        path.mkdir(parents=True)
    (run / "config.json").write_text('{"task": "tokenizer", "_class_name": "AutoencoderKLWan"}')
    for path in (folder, pipeline / "vae"):
        (path / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    file = tmp_path / "Wan2.1_VAE.pth"
    file.write_bytes(b"")
    assert [is_published(path) for path in (run, folder, pipeline, file)] == [False, True, True, True]
    assert not is_published(tmp_path / "nothing") and not is_published("gs://bucket/run")
    (folder / "config.json").write_text("[" * 100_000)
    assert not is_published(folder)
    # A pipe would be waited for without end.
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.json")
    assert not is_published(tmp_path / "pipe")
    # The name of a family in front decides, also where nothing is there.
    assert is_published("wan:anything") and not is_published("other:anything")


def test_the_name_of_a_family_in_front_of_a_path():
    families, path = named("wan:/a/b:c")
    assert [family.name for family in families] == ["wan"] and str(path) == "/a/b:c"
    families, path = named("/a/wan:b")
    assert families == () and str(path) == "/a/wan:b"


def test_every_family_has_a_name_a_licence_and_classes_of_its_own():
    assert all(family.name and family.licence for family in FAMILIES)
    classes = [name for family in FAMILIES for name in family.classes]
    assert len(set(classes)) == len(classes)


def test_a_file_of_no_family_is_one_line(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, path)
    for given in (path, f"wan:{path}"):
        with pytest.raises(UserError, match="weights.safetensors is no tokenizer that is known by its tensors"):
            videogen.load(given)
    with pytest.raises(UserError, match=r"/none is no file, and no folder with"):
        videogen.load(f"wan:{tmp_path}/none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small VAE of Wan with random weights, as diffusers writes it."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "wan"
    settings = {"base_dim": 4, "z_dim": 3, "latents_mean": [0.1, -0.2, 0.3], "latents_std": [2.0, 1.0, 0.5]}
    diffusers.AutoencoderKLWan(**settings).save_pretrained(path)
    return path


@pytest.mark.slow
def test_a_published_folder_loads_as_a_run_does(folder, tmp_path):
    loaded, read = videogen.load(folder), read_tokenizer(folder)
    assert (loaded.step, loaded.config.task, list(loaded.modules)) == (0, "tokenizer", ["tokenizer"])
    clip = loaded.config.data.clip
    assert (clip.frames, clip.height, clip.width, clip.fps) == (17, 256, 256, 0.0)
    assert loaded.model_of("tokenizer").to_dict()["normaliser"] == {"name": "mean"}
    for own, other in zip(jax.tree.leaves(nnx.state(loaded.tokenizer)), jax.tree.leaves(nnx.state(read)), strict=True):
        np.testing.assert_array_equal(own, other)
    np.testing.assert_allclose(loaded.tokenizer.normaliser.mean.get_value()[0], [0.1, -0.2, 0.3])
    # On a mesh, converted, and exported in our own format it is the same tokenizer.
    assert videogen.load(f"wan:{folder}", mesh={"data": -1}).hash == loaded.hash
    converted = videogen.load(folder, dtype="bfloat16")
    assert converted.hash == loaded.hash
    assert converted.tokenizer.tokenizer.prior.kernel.get_value().dtype == jax.numpy.bfloat16
    from videogen.training.loading import export_safetensors

    export_safetensors(loaded, tmp_path / "export")
    assert videogen.load(tmp_path / "export").hash == loaded.hash
    # As text: JSON has lists alone, and a config tuples as well.
    assert config_at(tmp_path / "export").model.to_json(sort_keys=True) == config_at(folder).model.to_json(
        sort_keys=True
    )
    assert load_for_command(folder, None).hash == loaded.hash
    with pytest.raises(UserError, match="has no positions in seconds.* leave --fps out"):
        at_rate(loaded, 30.0)


@pytest.mark.slow
def test_a_generator_trains_on_a_cache_of_a_published_tokenizer(folder, tmp_path, run_command):
    clip = [f"--config.data.clip.{name}={value}" for name, value in (("frames", 5), ("height", 32), ("width", 32))]
    cache, run = tmp_path / "cache", tmp_path / "run"
    made = run_command(
        "tokenize",
        *(f"--checkpoint={folder}", f"--out={cache}", "--source=shapes", "--clips=8", "--batch_size=4"),
        "--clip=5x32x32",
    )
    assert made.returncode == 0, made.stderr
    assert "wrote 8 clips" in made.stderr
    refused = run_command("tokenize", f"--checkpoint={folder}", f"--out={tmp_path / 'none'}", "--clip=4x32x32")
    assert refused.returncode == 2 and "1 + 4·k frames, got 4" in refused.stderr
    trained = run_command(
        "train",
        *("--config=videodit:stage=generator,size=debug", f"--workdir={run}", *clip),
        *(f"--config.parts.tokenizer.checkpoint={folder}", "--config.data.source.name=tokens"),
        *(f"--config.data.source.path={cache}", "--config.steps=1", "--config.eval_every=1"),
        *("--config.data.batch_size=4", "--config.data.eval_batch_size=4", "--config.model.transformer.layers=1"),
    )
    assert trained.returncode == 0, trained.stderr
    # The run holds the tokenizer, with the statistics of its publication.
    loaded = videogen.load(run)
    assert json.loads((run / "config.json").read_text())["parts"]["tokenizer"]["checkpoint"] == str(folder)
    np.testing.assert_allclose(loaded.modules["tokenizer"].normaliser.deviation.get_value()[0], [2.0, 1.0, 0.5])


@pytest.mark.slow
def test_inspect_says_what_a_folder_is(folder, run_command):
    said = run_command("inspect", str(folder), "--clip=9x32x48", "--memory")
    assert said.returncode == 0, said.stderr
    lines = dict(line.split(":", 1) for line in said.stdout.splitlines())
    lines = {name: value.strip() for name, value in lines.items()}
    assert lines["what"] == "tokenizer wan, as published"
    assert lines["parameters"].startswith("225,403 (0.9 MiB")
    assert lines["clip 9×32×48"] == "video: 3 time × 4 height × 6 width, floats of 3 channels"
    assert lines["compression"] == "192.0 values of pixels to one of tokens"
    assert lines["first frame"].endswith("alone: yes") and lines["licence"].startswith("Apache-2.0 ")
    assert float(lines["encoding"].split()[0]) > 9 * 32 * 48 * 4 * 4 / 2**20
    assert run_command("inspect", str(folder.parent)).stderr.startswith("error: ")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a small pipeline of Wan with random weights, as diffusers and transformers write it."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pipeline")
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [2.0, 1.0, 0.5, 1.0]}
    diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, **statistics).save_pretrained(path / "vae")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 12}
    diffusers.WanTransformer3DModel(**sizes, ffn_dim=48, num_layers=2).save_pretrained(path / "transformer")
    sizes = {"vocab_size": 8, "d_model": 12, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.UMT5Config(**sizes, feed_forward_proj="gated-gelu")
    encoder = transformers.UMT5EncoderModel(config).eval()
    encoder.save_pretrained(path / "text_encoder")
    write_beside(path, {"flow_shift": 3.0})
    return path, encoder


def write_beside(path, scheduler):
    """A text tokenizer of few words and the scheduler's config, for the folder of a pipeline."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ("<pad>", "</s>", "<unk>", "a", "red", "cat", "dog", "&")
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    ending = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.post_processor = ending
    (path / "tokenizer").mkdir()
    tokenizer.save(str(path / "tokenizer" / "tokenizer.json"))
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


@pytest.mark.slow
def test_a_published_pipeline_loads_as_a_generator(pipeline):
    import torch

    path, encoder = pipeline
    loaded = videogen.load(path)
    assert (loaded.step, loaded.config.task) == (0, "generator")
    assert sorted(loaded.modules) == ["generator", "text_encoder", "tokenizer"]
    assert loaded.config.sampler.shift == 3.0 and loaded.config.sampler.solver.name == "unipc"
    # Prompts are cleaned as by the original code, and encoded with zeros behind them.
    ids, mask = loaded.text.encode(["a  cat &amp;amp; dog\n", "a cat & dog", ""])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert ids.shape == (3, 512) and mask.sum(1).tolist() == [5, 5, 1] and ids[2, 0] == 1
    features = loaded.modules["text_encoder"](jax.numpy.asarray(ids), jax.numpy.asarray(mask)).features
    with torch.no_grad():
        given = torch.from_numpy(np.asarray(ids[:1])).long(), torch.from_numpy(np.asarray(mask[:1])).long()
        expected = encoder(*given).last_hidden_state[0, :5].numpy()
    np.testing.assert_allclose(features[0, :5], expected, atol=1e-4)
    assert not np.asarray(features[0, 5:]).any()
    # Where nothing is told, the generator sees the empty text.
    null = loaded.modules["generator"].generator.context.null_text.get_value()
    np.testing.assert_allclose(null, features[2], atol=1e-6)
    assert np.abs(null[0]).max() > 0 and not np.asarray(null[1:]).any()
    on_mesh = videogen.load(path, mesh={"data": -1})
    assert on_mesh.hash == loaded.hash
    np.testing.assert_allclose(on_mesh.modules["generator"].generator.context.null_text.get_value(), null, atol=1e-6)


PARTS = {"tokenizer": "vae", "text_encoder": "text_encoder"}


@pytest.mark.slow
def test_a_published_pipeline_draws_and_is_tuned(pipeline, tmp_path, run_command):
    path, _ = pipeline
    drawn = run_command(
        "sample",
        *(f"--checkpoint={path}", "--prompt=a red cat", f"--out={tmp_path / 'samples'}", "--steps=2"),
        *("--frames=5", "--size=16x32"),
    )
    assert drawn.returncode == 0, drawn.stderr
    record = json.loads((tmp_path / "samples" / "prompts.json").read_text())
    assert record["checkpoint"] == str(path)
    # From .999 on by the shift 3 of the folder: 3u / (1 + 2u) of u = .999, .4995, 0.
    assert record["times"] == pytest.approx([0.999666, 0.749625, 0.0], abs=1e-6)
    assert (tmp_path / "samples" / "sample_0.mp4").is_file()
    small = {"transformer.width": 32, "transformer.layers": 2, "transformer.heads": 2, "transformer.mlp_width": 48}
    run = tmp_path / "run"
    tuned = run_command(
        "train",
        *("--config=videodit:stage=generator,size=paper,model=1.3B", f"--workdir={run}"),
        *(f"--config.model.{name}={value}" for name, value in small.items()),
        *(f"--config.parts.{part}.checkpoint={path / folder}" for part, folder in PARTS.items()),
        *(f"--config.start_from.run={path}", f"--config.text.tokenizer.path={path / 'tokenizer'}"),
        *("--config.data.source.name=shapes", "--config.data.clip.frames=5", "--config.data.clip.height=16"),
        *("--config.data.clip.width=16", "--config.data.batch_size=2", "--config.data.eval_batch_size=2"),
        *("--config.data.workers=0", "--config.steps=1", "--config.eval_every=1", "--config.parallel.dtype=float32"),
        *("--config.parallel.mesh.context=1", "--config.sampler.steps=2", "--config.optimizer.generator.warmup=0"),
        "--config.optimizer.generator.learning_rate=0.0",
    )
    assert tuned.returncode == 0, tuned.stderr
    # Nothing moved at a rate of 0: the run holds the published weights.
    found = nnx.to_pure_dict(nnx.state(videogen.load(run).modules["generator"]))
    expected = nnx.to_pure_dict(nnx.state(videogen.load(path).modules["generator"]))
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)


LTX_SCHEDULER = {"base_image_seq_len": 1024, "base_shift": 0.95, "max_image_seq_len": 4096, "max_shift": 2.05}
LTX_SCHEDULER |= {"shift": 1.0, "shift_terminal": 0.1, "use_dynamic_shifting": True}


@pytest.fixture(scope="module")
def ltx_pipeline(tmp_path_factory):
    """The folder of a small pipeline of LTX-Video with random weights."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ltx")
    # The published strides, 8 × 32 × 32, in thin layers.
    sizes = {"block_out_channels": (4, 4, 4, 8), "layers_per_block": (1,) * 5, "latent_channels": 3}
    sizes |= {"decoder_block_out_channels": (4, 4, 4, 8), "decoder_layers_per_block": (1,) * 5}
    vae = diffusers.AutoencoderKLLTXVideo(**sizes)
    vae.latents_mean.copy_(torch.randn(3))
    vae.save_pretrained(path / "vae")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "cross_attention_dim": 32}
    sizes |= {"in_channels": 3, "out_channels": 3, "caption_channels": 12}
    diffusers.LTXVideoTransformer3DModel(**sizes).save_pretrained(path / "transformer")
    sizes = {"vocab_size": 8, "d_model": 12, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(**sizes, feed_forward_proj="gated-gelu")
    transformers.T5EncoderModel(config).save_pretrained(path / "text_encoder")
    write_beside(path, LTX_SCHEDULER)
    (path / "model_index.json").write_text('{"_class_name": "LTXPipeline"}')
    return path


@pytest.mark.slow
def test_a_published_pipeline_of_ltx_loads_draws_and_is_tuned(ltx_pipeline, tmp_path, run_command):
    path = ltx_pipeline
    loaded = videogen.load(path)
    assert sorted(loaded.modules) == ["generator", "text_encoder", "tokenizer"]
    sampler, clip = loaded.config.sampler, loaded.config.data.clip
    assert (sampler.shift, sampler.solver.name, sampler.grid.last, sampler.guidance_scale) == (None, "euler", 0.1, 3.0)
    assert (clip.frames, clip.height, clip.width, clip.fps) == (161, 512, 704, 25.0)
    generator = loaded.modules["generator"].generator
    assert not generator.clock.first_alone and generator.shift == "exponent"
    # Prompts are as they are; where nothing is told, the generator sees the end of the empty text.
    ids, mask = loaded.text.encode(["", "a  cat &amp; dog"])
    assert ids.shape == (2, 256) and mask.sum(1).tolist() == [1, 5]
    features = loaded.modules["text_encoder"](jax.numpy.asarray(ids), jax.numpy.asarray(mask)).features
    np.testing.assert_allclose(generator.context.null_text.get_value(), features[0, 0], atol=1e-6)
    drawn = run_command(
        "sample",
        *(f"--checkpoint={path}", "--prompt=a red cat", f"--out={tmp_path / 'samples'}", "--steps=2"),
        *("--frames=9", "--size=64x96", "--fps=30"),
    )
    assert drawn.returncode == 0, drawn.stderr
    record = json.loads((tmp_path / "samples" / "prompts.json").read_text())
    assert record["fps"] == 30.0 and record["sampler"]["grid"]["last"] == 0.1
    # The same transformer is the config of videodit; a rate of 0 leaves the published weights.
    small = {"transformer.width": 32, "transformer.layers": 2, "transformer.heads": 2, "transformer.mlp_width": 128}
    run = tmp_path / "run"
    command = (
        *("--config=videodit:stage=generator,size=paper,model=2B", f"--workdir={run}"),
        *(f"--config.model.{name}={value}" for name, value in small.items()),
        *(f"--config.parts.{part}.checkpoint={path / folder}" for part, folder in PARTS.items()),
        *(f"--config.start_from.run={path}", f"--config.text.tokenizer.path={path / 'tokenizer'}"),
        *("--config.data.source.name=shapes", "--config.data.clip.frames=9", "--config.data.clip.height=32"),
        *("--config.data.clip.width=32", "--config.data.batch_size=2", "--config.data.eval_batch_size=2"),
        *("--config.data.workers=0", "--config.steps=1", "--config.eval_every=1", "--config.parallel.dtype=float32"),
        *("--config.parallel.mesh.context=1", "--config.sampler.steps=2", "--config.optimizer.generator.warmup=0"),
        "--config.optimizer.generator.learning_rate=0.0",
    )
    tuned = run_command("train", *command)
    assert tuned.returncode == 0, tuned.stderr
    found = nnx.to_pure_dict(nnx.state(videogen.load(run).modules["generator"]))
    expected = nnx.to_pure_dict(nnx.state(loaded.modules["generator"]))
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_positions_in_seconds_need_a_rate_and_the_cells_of_the_tokenizer():
    config = videodit.get_config("stage=generator,size=paper,model=2B")
    config.data.clip.fps = 0.0
    task, text = tasks.build(config), EncodedText(np.zeros((2, 1, 8), np.float32), np.ones((2, 1), bool))
    with pytest.raises(UserError, match="nothing says the frame rate of the clips"):
        task.conditioning({}, {"text": text})
    # A token cache says it, whatever the clips of the config; videos are sampled at the rate of the config.
    config.data.frame_rate = 30.0
    config.data.source = {"name": "tokens", "path": ""}
    np.testing.assert_array_equal(tasks.build(config).conditioning({}, {"text": text}).rate, [30.0, 30.0])
    config.data.source = {"name": "shapes"}
    config.data.clip.fps = 24.0
    np.testing.assert_array_equal(tasks.build(config).conditioning({}, {"text": text}).rate, [24.0, 24.0])
    config.model.transformer.rotary.cell = (4, 32, 32)
    with pytest.raises(UserError, match=r"cell is \(4, 32, 32\), and tokens of this generator are of \(8, 32, 32\)"):
        tasks.build(config)


@pytest.mark.slow
def test_published_updates_move_the_transformer(pipeline, tmp_path, run_command):
    path, _ = pipeline
    lora = tmp_path / "lora.safetensors"
    save_file({"diffusion_model.blocks.1.self_attn.q.diff_b": np.ones(32, np.float32)}, lora)
    loaded = videogen.load(path)
    tuned = load(path, loras=[Lora(lora, 0.5)])
    own, other = (x.modules["generator"].generator.stack.layers.attention for x in (loaded, tuned))
    change = np.asarray(other.query_bias.get_value() - own.query_bias.get_value())
    np.testing.assert_allclose(change[1], 0.5, atol=1e-6)
    np.testing.assert_array_equal(change[0], 0.0)
    assert tuned.hash != loaded.hash
    with pytest.raises(UserError, match="updates .LoRA. are for published folders"):
        exported = tmp_path / "export"
        said = run_command("export", f"--checkpoint={path}", f"--lora={lora}=0.5", f"--out={exported}")
        assert said.returncode == 0 and "used 1 of 1 tensors" in said.stderr, said.stderr
        assert videogen.load(exported).hash == tuned.hash
        load(exported, loras=[Lora(lora)])
    with pytest.raises(UserError, match="no folder with a transformer"):
        load(path / "vae", loras=[Lora(lora)])


def test_folders_of_other_pipelines_are_one_line(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    with pytest.raises(UserError, match="is of a FluxTransformer2DModel; generators that can be read are Wan"):
        videogen.load(tmp_path)
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    (tmp_path / "transformer_2").mkdir()
    with pytest.raises(UserError, match="two experts"):
        videogen.load(tmp_path)


FULL_SIZE = """
import math
import jax
from flax import nnx
from videogen import tasks
from videogen.configs import videodit
from videogen.parallel import make_mesh
from videogen.planning.programs import complete_for_planning
from videogen.training.placement import Placement
from videogen.training.state import split

config = videodit.get_config("stage=generator,size=paper,model=14B")
complete_for_planning(config)
task = tasks.build(config)
modules = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
_, params, variables = split(modules)
tree = {"params": params, "variables": variables}
placed = jax.tree.leaves(Placement(make_mesh({"fsdp": 8}), "bfloat16").of_weights(modules, tree))
whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in placed)
one = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in placed)
print(whole, one)
"""


@pytest.mark.slow
def test_each_of_eight_devices_holds_an_eighth_of_the_largest_published_generator(run_python):
    made = run_python(FULL_SIZE)
    assert made.returncode == 0, made.stderr
    whole, one = map(int, made.stdout.split())
    # 14.3 billion parameters of two bytes; tables that do not divide are on every device.
    assert whole == pytest.approx(2 * 14.29e9, rel=0.01)
    assert 1 <= 8 * one / whole < 1.01
