"""Every held-out clip counts once, whatever the batch, and the record says which clips those were."""

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.training_configs import tiny
from videogen import tasks
from videogen.configs import phenaki
from videogen.data import SampleError, inputs
from videogen.data.inputs import build_source, held_out
from videogen.data.shapes_source import ShapesSource
from videogen.data.video_io import write_video
from videogen.errors import UserError
from videogen.evaluation import protocols
from videogen.metrics.judge import fidelity
from videogen.runs.finished import FinishedBatches
from videogen.training.loading import Loaded, load
from videogen.training.loop import train


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("protocols") / "run"
    train(tiny(), workdir)
    return load(workdir)


def measured(loaded, size: int, count: int = 5) -> dict:
    loaded.config.data.eval_batch_size = size
    return protocols.evaluate(loaded, "reconstruction", count, 0)[0]


@pytest.mark.slow
def test_metrics_do_not_depend_on_the_batch(loaded):
    whole, parts = measured(loaded, 5), measured(loaded, 2)
    assert whole["metrics"]["clips"] == parts["metrics"]["clips"] == 5
    for name in ("psnr", "ssim", "gradient_sharpness", "codebook_usage"):
        assert parts["metrics"][name] == pytest.approx(whole["metrics"][name], rel=1e-5), name
    # The mean of the clips, each measured alone.
    alone = [
        loaded.task.evaluate(loaded.modules, [{"video": sample["video"][None]}], 0)["psnr"]
        for sample in held_out(build_source(loaded.config, "eval"), 5).samples
    ]
    assert parts["metrics"]["psnr"] == pytest.approx(np.mean(alone), rel=1e-5)


def test_downstream_compares_classes_of_clips_and_reconstructions(loaded, monkeypatch):
    """With a classifier that sees nothing but brightness, and reconstructions that are darker in every other clip."""
    asked = []

    def classifier(path):
        asked.append(path)
        return lambda pictures: np.stack([pictures.mean((1, 2, 3)) > 0, pictures.mean((1, 2, 3)) == 0], axis=-1), "0123"

    monkeypatch.setattr("videogen.evaluation.downstream.classifier", classifier)
    monkeypatch.setattr(
        protocols, "reconstruct", lambda model, v: v * (np.arange(len(v)) % 2 == 0)[:, None, None, None, None]
    )
    loaded.config.data.eval_batch_size = 4
    record, pictures = protocols.evaluate(loaded, "downstream", 4, 0, weights="file")
    assert record["metrics"] == {"class_agreement": 0.5, "network_hash": "0123", "clips": 4} and asked == ["file"]
    assert set(record["protocol"]["measured"]) == {"class_agreement"} and set(pictures) == {
        "originals",
        "reconstructions",
    }


@pytest.mark.slow
def test_tokbench_judges_a_tokenizer(loaded, monkeypatch):
    """Pictures and videos of 256 pixels, whatever size and number of frames it was trained on."""
    from videogen.evaluation import tokbench_request

    class Reader:
        hash = "0123"

        def __init__(self, path):
            pass

        def __call__(self, crop):
            return "x" * crop.shape[0]

    monkeypatch.setitem(tokbench_request.READERS, "ppocrv6", Reader)
    request = tokbench_request.Request("tokbench.256.ppocrv6", count=1, weights="file")
    record, examples = tokbench_request.measure(request, loaded)
    assert record["protocol"]["step"] == loaded.step and "codec" not in record["protocol"]
    assert 5 < record["metrics"]["psnr"] < 60 and examples
    with pytest.raises(UserError, match="name what to judge"):
        tokbench_request.measure(tokbench_request.Request("tokbench.256.ppocrv6", codec="identity"), loaded)


def test_no_more_clips_than_a_batch_are_coded_at_a_time(loaded, monkeypatch):
    sizes = []
    reconstruct = protocols.reconstruct
    monkeypatch.setattr(protocols, "reconstruct", lambda model, v: sizes.append(len(v)) or reconstruct(model, v))
    measured(loaded, 2)
    assert sizes == [2, 2, 1]


class Broken(ShapesSource):
    """Seven clips, of which the second and the fourth cannot be read."""

    def __len__(self) -> int:
        return 7

    def sample(self, index, rng):
        if index in (1, 3):
            raise SampleError(f"clip {index}", "damaged")
        return super().sample(index, rng)


def test_the_record_says_what_was_asked_for_found_skipped_and_counted(loaded, monkeypatch):
    broken = Broken(clip=inputs.clip_of(loaded.config), seed=1, split="eval")
    monkeypatch.setattr(protocols, "build_source", lambda config, split: broken)
    protocol = measured(loaded, 2, count=40)["protocol"]
    skipped = {"clip 1": "damaged", "clip 3": "damaged"}
    assert protocol["clips"] == {"asked": 40, "found": 7, "counted": 5, "skipped": skipped}
    assert protocol["count"] == 5 and protocol["split"] == "eval" and protocol["source"] == {"name": "shapes"}
    assert "sampler" not in protocol and set(protocol["measured"]) >= {"psnr", "ssim"}
    # In training, too, nothing counts twice.
    batches = held_out(broken, 4).batches(3, None)
    assert [len(batch["video"]) for batch in batches] == [3, 1]
    order = [0, 2, 4, 5]
    expected = np.stack([ShapesSource.__getitem__(broken, index)["video"] for index in order])
    np.testing.assert_array_equal(np.concatenate([batch["video"] for batch in batches]), expected)


@pytest.mark.parametrize("name", ["prompt_fidelity", "composition", "geneval.shapes", "tasks"])
def test_protocols_of_generators_refuse_a_tokenizer(loaded, name):
    with pytest.raises(UserError, match=f"holds a tokenizer, and {name} is for a generator"):
        protocols.evaluate(loaded, name, 2, 0)


@pytest.mark.parametrize("name", ["reconstruction", "denoising_steps", "rate_distortion", "downstream"])
def test_protocols_of_tokenizers_refuse_a_generator(tmp_path, name):
    config = phenaki.get_config("stage=generator,size=debug")
    generator = Loaded(tmp_path, config, tasks.build(config), {}, step=0)
    with pytest.raises(UserError, match=f"holds a generator, and {name} is for a tokenizer"):
        protocols.evaluate(generator, name, 2, 0)


def test_what_the_judge_reads_in_the_originals_stands_beside(loaded):
    found = measured(loaded, 5)["metrics"]
    assert set(found["judge_on_originals"]) == set(found["judge_on_reconstructions"])
    originals = held_out(build_source(loaded.config, "eval"), 5).samples
    expected = fidelity(np.stack([s["video"] for s in originals]), [s["caption"] for s in originals])
    assert found["judge_on_originals"] == expected


def test_a_split_without_a_readable_clip_is_one_line(loaded):
    class Nothing(Broken):
        def sample(self, index, rng):
            raise SampleError(f"clip {index}", "damaged")

    with pytest.raises(UserError, match="no readable clip; the first is clip 0: damaged"):
        held_out(Nothing(clip=inputs.clip_of(loaded.config), seed=1, split="eval"), 3)


@pytest.mark.slow
def test_another_test_set_and_size_are_evaluated_whole_and_the_record_says_so(loaded, tmp_path):
    for i in range(3):
        video = np.random.default_rng(i).integers(0, 255, (9, 32, 48, 3), np.uint8)
        write_video(tmp_path / f"{i}.mp4", video, 8.0, scale=1)
    loaded = dataclasses.replace(loaded, config=loaded.config.copy_and_resolve_references())
    own = protocols.evaluate(loaded, "reconstruction", 2, 0)[0]["protocol"]
    assert own["held_out"] is True
    assert protocols.use_test_set(loaded, None, str(tmp_path), "7x32x48")
    record, pictures = protocols.evaluate(loaded, "reconstruction", 10, 0, other=True)
    protocol = record["protocol"]
    assert protocol["source"] == {"name": "video_folder", "path": str(tmp_path), "holdout": 0.0}
    assert protocol["clips"] == {"asked": 10, "found": 3, "counted": 3, "skipped": {}} and protocol["count"] == 3
    assert (protocol["clip"]["frames"], protocol["clip"]["height"], protocol["clip"]["width"]) == (7, 32, 48)
    assert pictures["originals"].shape == (3, 7, 32, 48, 3) and "held_out" not in protocol


@pytest.mark.parametrize(
    ("clip", "message"),
    [("7x32", "--clip=7x32 must be FRAMESxHEIGHTxWIDTH"), ("6x32x32", r"1 \+ 2·k frames"), ("7x30x32", "height 30")],
)
def test_sizes_that_cannot_be_are_one_line(loaded, clip, message):
    with pytest.raises(UserError, match=message):
        protocols.use_test_set(loaded, None, None, clip)


def test_a_generator_has_clips_of_one_size(tmp_path):
    config = tiny(task="generator")
    with pytest.raises(UserError, match="--clip is for tokenizers"):
        protocols.use_test_set(Loaded(tmp_path, config, tasks.class_of(config), {}, 0), None, None, "7x32x32")


def test_untracked_files_do_not_mark_the_commit():
    """A folder of videos inside the checkout made every record say that the code was changed."""
    root = Path(protocols.__file__).parents[2]
    folder = root / "untracked_by_a_test"
    before = protocols.commit()
    folder.write_text("")
    try:
        assert protocols.commit() == before
    finally:
        folder.unlink()
    changed = subprocess.run(["git", "-C", root, "diff", "--quiet", "HEAD"]).returncode
    assert before.endswith("+") == bool(changed)


def test_a_killed_evaluation_goes_on_where_it_stopped(loaded, tmp_path):
    loaded.config.data.eval_batch_size = 2
    whole, pictures = protocols.evaluate(loaded, "reconstruction", 5, 0)
    computed, asked = [], {"protocol": "reconstruction", "count": 5, "seed": 0, **loaded.key}

    def evaluate(batches: int) -> tuple:
        """Evaluates, and is killed after so many batches of its own."""
        parts = FinishedBatches(tmp_path / "x.json", asked)

        def keep(name, compute):
            def counted():
                if len(computed) == batches:
                    raise KeyboardInterrupt
                computed.append(name)
                return compute()

            return parts(name, counted)

        found = protocols.evaluate(loaded, "reconstruction", 5, 0, keep=keep)
        parts.remove()
        return found

    for batches in (1, 3, 5):  # of six: the metrics of three batches, and their reconstructions
        with pytest.raises(KeyboardInterrupt):
            evaluate(batches)
    record, again = evaluate(6)
    assert record["metrics"] == whole["metrics"] and len(set(computed)) == 6
    for name, clips in pictures.items():
        np.testing.assert_array_equal(again[name], clips)
    assert not (tmp_path / "x.json.parts").exists()


def test_the_key_of_an_evaluation_is_of_weights_and_settings(loaded):
    key, other = loaded.key, dataclasses.replace(loaded, config=loaded.config.copy_and_resolve_references())
    assert other.key == key
    other.config.data.eval_batch_size += 1
    assert other.key != key and other.key["weights"] == key["weights"]
