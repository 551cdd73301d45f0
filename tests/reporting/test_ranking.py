"""Rankings of results: ranks, correlations of known orders, and refusals."""

import json

import pytest

from videogen.errors import UserError
from videogen.reporting.ranking import as_markdown, ranking, write_ranking


def result(psnr, lpips, t_ned, **protocol):
    return {
        "protocol": {"name": "tokbench.256.ppocrv6", "setting": 256, **protocol},
        "seed": 0,
        "metrics": {"psnr": psnr, "lpips": lpips, "text": {"pictures": {"t_ned": t_ned, "t_acc": None}}},
    }


RESULTS = {"a": result(30.0, 0.1, 0.5, codec="a"), "b": result(25.0, 0.2, 0.9, codec="b"), "c": result(20.0, 0.3, 0.7)}


def test_ranks_and_correlations():
    found = ranking(RESULTS)
    assert [row["ranks"] for row in found["rows"]] == [
        {"PSNR": 1, "LPIPS": 1, "T-NED": 3},
        {"PSNR": 2, "LPIPS": 2, "T-NED": 1},
        {"PSNR": 3, "LPIPS": 3, "T-NED": 2},
    ]
    correlations = found["rank_correlations"]
    assert correlations["PSNR"]["LPIPS"] == pytest.approx(1)  # less LPIPS is better
    assert correlations["PSNR"]["T-NED"] == pytest.approx(-0.5)
    assert "| a | 30 (1) | 0.1 (1) | 0.5 (3) |" in as_markdown(found)


def test_two_results_have_no_correlation():
    found = ranking({name: RESULTS[name] for name in ("a", "b")})
    assert set(found["rank_correlations"]["PSNR"].values()) == {None} and "| PSNR | – | – | – |" in as_markdown(found)


@pytest.mark.parametrize("suffix", [".json", ".md", ".html"])
def test_files(tmp_path, suffix):
    paths = []
    for name, record in RESULTS.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(record))
    text = write_ranking(paths, tmp_path / f"out{suffix}")
    written = (tmp_path / f"out{suffix}").read_text()
    assert "Spearman" in text and ("rank_correlations" if suffix == ".json" else "Spearman") in written
    with pytest.raises(UserError, match="must end in"):
        write_ranking(paths, tmp_path / "out.txt")
    with pytest.raises(UserError, match="at least two"):
        write_ranking(paths[:1], tmp_path / "out.md")


def test_what_was_measured_otherwise_is_not_ranked():
    with pytest.raises(UserError, match="protocol.setting is 256 in the first and 512"):
        ranking(RESULTS | {"d": result(1.0, 1.0, 1.0, setting=512)})
    with pytest.raises(UserError, match="tokbench protocols"):
        ranking({name: {**record, "metrics": {"psnr": 1.0}} for name, record in RESULTS.items()})
