"""The table of reducers: order, comparison with random tokens, and what it refuses."""

import matplotlib.image
import numpy as np
import pytest

from videogen.reporting.reducer_table import compared, draw_accuracy, write_table


def row(recipe, budget, chosen, **more):
    return {"recipe": recipe, "budget": budget, "tokens": float(budget), "chosen": chosen, "error": 0.02, **more}


ROWS = [
    row("all", 288, 0.9, see=0.0123),
    row("uniform", 72, 0.7),
    row("random", 72, 0.6),
    row("random", 32, 0.5),
    row("pooling", 32, 0.45),
    row("tome", 72, 0.82),
    row("no_video", 0, 0.24),
    row("oracle", 0, 0.93),
]


def test_rows_are_compared_with_random_tokens_at_their_budget():
    found = compared(ROWS)
    assert [(r["recipe"], r["budget"]) for r in found[:4]] == [
        ("all", 288),
        ("tome", 72),
        ("uniform", 72),
        ("random", 72),
    ]
    against = {(r["recipe"], r["budget"]): r.get("against_random") for r in found}
    assert against["tome", 72] == pytest.approx(0.22) and against["pooling", 32] == pytest.approx(-0.05)
    assert against["all", 288] is None and against["random", 32] == 0


@pytest.mark.parametrize("missing", ["all", "uniform", "random", "pooling", "no_video", "oracle"])
def test_no_table_is_written_without_what_it_is_judged_by(missing, tmp_path):
    with pytest.raises(ValueError, match=missing):
        write_table([r for r in ROWS if r["recipe"] != missing], tmp_path / "table.md")
    assert not (tmp_path / "table.md").exists()


def test_the_table_and_the_picture(tmp_path):
    write_table(ROWS, tmp_path / "table.md")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].startswith("| recipe | budget | tokens that enter | right | ± | against random tokens | see, ms |")
    assert lines[2] == "| `all` | 288 | 288 | 90.0% | 2.0% |  | 12.3 |"
    assert lines[3] == "| `tome` | 72 | 72 | 82.0% | 2.0% | +22.0% |  |"
    assert len(lines) == 2 + len(ROWS)
    draw_accuracy(ROWS, tmp_path / "accuracy.png")
    picture = matplotlib.image.imread(tmp_path / "accuracy.png")
    assert picture.shape[1] > 800 and len(np.unique(picture)) > 10
