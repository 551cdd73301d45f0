"""The whole system at a few steps: train both stages, tokenize, sample, evaluate, export, load."""

import json

import numpy as np
import pytest

import videogen
from videogen.data.video_io import read_video

TINY = [
    "--config.data.clip.frames=5",
    "--config.data.clip.height=16",
    "--config.data.clip.width=16",
    "--config.data.eval_batch_size=4",
    "--config.steps=2",
    "--config.log_every=1",
]
SMALL_TOKENIZER = [
    "--config.model.width=32",
    "--config.model.heads=2",
    "--config.model.mlp_width=64",
    "--config.model.quantizer.size=32",
]
SMALL_GENERATOR = [
    "--config.model.transformer.width=32",
    "--config.model.transformer.heads=2",
    "--config.model.transformer.layers=1",
    "--config.model.transformer.mlp_width=64",
    "--config.text.encoder.width=32",
    "--config.sampler.steps=2",
]
PROMPT = "a large red circle moves left quickly on a dark plain background"


@pytest.fixture(scope="module")
def system(run_command, tmp_path_factory):
    root = tmp_path_factory.mktemp("system")

    def run(module, *arguments):
        done = run_command(module, *map(str, arguments))
        assert done.returncode == 0, done.stderr
        return done

    config = "--config=phenaki:size=debug,stage="
    run("train", config + "tokenizer", f"--workdir={root}/tokenizer", *TINY, *SMALL_TOKENIZER)
    checkpoint = f"--config.parts.tokenizer.checkpoint={root}/tokenizer"
    run("train", config + "generator", f"--workdir={root}/generator", checkpoint, *TINY, *SMALL_GENERATOR)
    return root, run, [config + "generator", checkpoint, *TINY, *SMALL_GENERATOR]


@pytest.mark.slow
def test_samples_are_the_same_from_run_and_export(system):
    root, run, _ = system
    run("export", f"--checkpoint={root}/generator", f"--out={root}/export")
    # The run directory needs nothing else: not the tokenizer's, not the one it was exported from.
    for source in ("generator", "export"):
        run("sample", f"--checkpoint={root}/{source}", f"--prompt={PROMPT}", f"--out={root}/s_{source}", "--frames=9")
    first, second = (read_video(root / f"s_{source}" / "sample_0.mp4")[0] for source in ("generator", "export"))
    assert len(first) == 9
    np.testing.assert_array_equal(first, second)
    assert json.loads((root / "s_export" / "prompts.json").read_text())["videos"] == {"sample_0.mp4": PROMPT}


@pytest.mark.slow
def test_stories_and_animation(system):
    root, run, _ = system
    story = ["--story", f"--prompt={PROMPT}", f"--prompt={PROMPT.replace('left', 'up')}"]
    run("sample", f"--checkpoint={root}/generator", *story, f"--out={root}/story")
    assert len(read_video(root / "story" / "sample_0.mp4")[0]) == 5 + 2
    image = f"--image={root}/story/sample_0.mp4"
    run("sample", f"--checkpoint={root}/generator", f"--prompt={PROMPT}", image, f"--out={root}/animated")
    assert len(read_video(root / "animated" / "sample_0.mp4")[0]) == 5


@pytest.mark.slow
def test_generator_trains_on_a_token_cache_of_its_tokenizer_only(system, run_command):
    root, run, generator = system
    run("tokenize", f"--checkpoint={root}/tokenizer", f"--out={root}/cache", "--clips=20")
    cache = ["--config.data.source.name=tokens", f"--config.data.source.path={root}/cache"]
    run("train", *generator, *cache, f"--workdir={root}/cached")
    run("train", generator[0].replace("generator", "tokenizer"), *TINY, *SMALL_TOKENIZER, "--config.seed=5",
        f"--workdir={root}/other")  # fmt: skip
    other = [a.replace(f"{root}/tokenizer", f"{root}/other") for a in generator]
    refused = run_command("train", *other, *cache, f"--workdir={root}/refused")
    assert refused.returncode == 2 and "was made by tokenizer" in refused.stderr, refused.stderr
    assert not (root / "refused").exists()


@pytest.mark.slow
def test_cached_codes_are_those_of_the_tokenizer(system):
    root, run, _ = system
    loaded = videogen.load(root / "tokenizer")
    from videogen import data
    from videogen.tasks import to_video

    clip = data.Clip(5, 16, 16, 8.0)
    run("tokenize", f"--checkpoint={root}/tokenizer", f"--out={root}/cache2", "--clips=3")
    source = {"name": "tokens", "path": str(root / "cache2"), "tokenizer_hash": loaded.hash}
    cached = data.build(source, clip=clip, seed=0, split="train")
    pixels = data.build({"name": "shapes"}, clip=clip, seed=0, split="train")
    for i in range(3):
        codes = loaded.modules["tokenizer"].tokenize(to_video(pixels[i]["video"][None]))
        np.testing.assert_array_equal(cached[i]["tokens/video"], codes.only.values[0])
        assert cached[i]["caption"] == pixels[i]["caption"]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "protocol"), [("tokenizer", "reconstruction"), ("generator", "prompt_fidelity")])
def test_every_number_comes_with_its_protocol(system, stage, protocol):
    root, run, _ = system
    out = root / f"{stage}.json"
    steps = ["--steps=3"] if stage == "generator" else []
    run("evaluate", f"--checkpoint={root}/{stage}", f"--protocol={protocol}", "--count=8", f"--out={out}", *steps)
    record = json.loads(out.read_text())
    assert not steps or record["protocol"]["sampler"]["steps"] == 3
    assert record["protocol"]["name"] == protocol and record["protocol"]["count"] == 8
    assert {"seed", "commit", "hardware", "metrics"} <= record.keys()
    key = "judge_on_reconstructions" if stage == "tokenizer" else "prompt_fidelity"
    assert all(0 <= share <= 1 for share in record["metrics"][key].values())


@pytest.mark.slow
def test_a_tokenizer_has_no_sampling_steps(system, run_command):
    root, _, _ = system
    out = root / "refused.json"
    arguments = [f"--checkpoint={root}/tokenizer", "--protocol=reconstruction", "--steps=3", f"--out={out}"]
    done = run_command("evaluate", *arguments)
    assert done.returncode == 2 and "--steps is for generators, and this is a tokenizer" in done.stderr
    assert not out.exists()
