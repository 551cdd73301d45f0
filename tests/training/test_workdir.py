"""What a stage takes from the run directories that its command names."""

import pytest
from etils import epath

from tests.training_configs import tiny
from videogen.configs import phenaki
from videogen.configuration import save_config
from videogen.training.workdir import data_of_tokenizer

OWN = {"data.source.name": "video_folder", "data.source.path": "my_videos", "data.clip.frames": 9}


def tokenizer_of(tmp_path, **changes) -> epath.Path:
    """A directory with the config of a tokenizer's run."""
    directory = epath.Path(tmp_path) / "tokenizer"
    directory.mkdir(exist_ok=True)
    save_config(directory / "config.json", tiny(**{**OWN, **changes}))
    return directory


def test_the_data_of_the_tokenizer_is_taken_and_said_in_one_line(tmp_path, caplog):
    config = phenaki.get_config("stage=generator")
    config.parts.tokenizer.checkpoint = str(tokenizer_of(tmp_path))
    with caplog.at_level("INFO", logger="absl"):
        data_of_tokenizer(config, tmp_path / "run", ["data.clip.height"])
    assert config.data.source.path == "my_videos" and config.data.clip.frames == 9
    assert config.data.clip.height == 24 and config.data.clip.width == 16
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("data of the tokenizer")]
    assert "source.name=video_folder, source.path=my_videos, clip.frames=9, clip.width=16" in line
    # Started again without the tokenizer's directory, the run knows its data from its own.
    save_config(epath.Path(tmp_path) / "config.json", config)
    again = phenaki.get_config("stage=generator")
    data_of_tokenizer(again, tmp_path, ["data.clip.height"])
    assert again.data.to_dict() == config.data.to_dict()


def test_a_tokenizer_itself_and_a_start_without_one_are_left_alone(tmp_path):
    for config in (tiny(), phenaki.get_config("stage=generator")):
        before = config.to_json_best_effort()
        data_of_tokenizer(config, tmp_path / "run", [])
        assert config.to_json_best_effort() == before


@pytest.mark.slow
def test_the_command_keeps_what_it_says_itself(run_command, tmp_path):
    done = run_command(
        "train",
        "--config=phenaki:stage=generator",
        f"--config.parts.tokenizer.checkpoint={tokenizer_of(tmp_path)}",
        "--config.data.clip.frames=7",
        "--config.data.clip.width=24",
        f"--workdir={tmp_path}/run",
    )
    assert "source.name=video_folder, source.path=my_videos, clip.height=16 (" in done.stderr, done.stderr
    assert done.returncode == 2 and "holds no finished checkpoint" in done.stderr
    assert not (tmp_path / "run").exists()
