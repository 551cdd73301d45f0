"""Published files and folders where commands and configs take a run directory."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import videogen
from videogen.errors import UserError
from videogen.tokenizers.public import FAMILIES, named, read_tokenizer
from videogen.training.loading import config_at, load_for_command
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
    assert config_at(tmp_path / "export").model.to_dict() == config_at(folder).model.to_dict()
    assert load_for_command(folder, None).hash == loaded.hash


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
