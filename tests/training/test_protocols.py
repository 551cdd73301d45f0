"""Every held-out clip counts once, whatever the batch, and the record says which clips those were."""

import numpy as np
import pytest

from tests.training_configs import tiny
from videogen.data import SampleError
from videogen.data.shapes_source import ShapesSource
from videogen.errors import UserError
from videogen.training import inputs, protocols
from videogen.training.inputs import build_source, held_out
from videogen.training.loading import load
from videogen.training.loop import train


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("protocols") / "run"
    train(tiny(), workdir)
    return load(workdir)


def measured(loaded, size: int, count: int = 5) -> dict:
    loaded.config.data.eval_batch_size = size
    return protocols.evaluate(loaded, "reconstruction", count, 0)[0]


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


def test_a_split_without_a_readable_clip_is_one_line(loaded):
    class Nothing(Broken):
        def sample(self, index, rng):
            raise SampleError(f"clip {index}", "damaged")

    with pytest.raises(UserError, match="no readable clip; the first is clip 0: damaged"):
        held_out(Nothing(clip=inputs.clip_of(loaded.config), seed=1, split="eval"), 3)
