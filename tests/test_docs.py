"""The reference names every module, and the pages name nothing that is not there."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from videogen import generators, heads, losses
from videogen.evaluation.presets import PRESETS
from videogen.nn import MicroBatch
from videogen.shapes import VideoShape

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted((REPOSITORY / "docs").rglob("*.md"))


def modules() -> set[str]:
    rooms = [p for p in (REPOSITORY / "videogen").iterdir() if (p / "__init__.py").exists()]
    files = [f for room in rooms for f in room.glob("*.py")]
    return {".".join(f.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for f in files}


def test_every_module_has_a_place_in_the_reference():
    text = "\n".join(page.read_text() for page in PAGES)
    assert modules() - set(re.findall(r"^::: (\S+)$", text, re.MULTILINE)) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_commands_that_a_page_names_exist(page):
    text = re.sub(r"(videogen/tokenizers)/mine\.py|test_mine\.py", "", page.read_text())
    named = re.findall(r"\b(?:configs|tests|videogen|launch|docs|benchmarks)/[\w/]*\w(?:\.\w+)?", text)
    commands = [f"videogen/{name}.py" for name in re.findall(r"python -m videogen\.(\w+)", text)]
    assert [path for path in named + commands if not (REPOSITORY / path).exists()] == []


def test_every_page_is_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text()
    assert [p.name for p in PAGES if str(p.relative_to(REPOSITORY / "docs")) not in navigation] == []


def test_the_first_page_names_every_system_and_every_guide():
    text = (REPOSITORY / "docs" / "index.md").read_text()
    names = {"cdt": "CDT", "larp": "LARP", "magvit": "MAGVIT", "magvit2": "MAGVIT-v2", "nbp": "NBP"}
    names |= {"phenaki": "Phenaki", "omnitokenizer": "OmniTokenizer", "tokenbridge": "TokenBridge"}
    names |= {
        "videodit": "video diffusion transformer",
        "one_d_piece": "One-D-Piece",
        "karl": "KARL",
        "flextok": "FlexTok",
        "tokenflow": "TokenFlow",
        "instella": "Instella-T2I",
        "hitvideo": "HiTVideo",
        "one_vae": "OneVAE",
        "divot": "Divot",
        "dicode": "DiCoDe",
        "language": "language models over streams",
        "understanding": "video-language models",
        "tokensgen": "TokensGen",
        "signvip": "SignViP",
        "retrieval": "text-video retrieval",
        "violet": "VIOLET",
        "evilm": "E-ViLM",
        "all_in_one": "All-in-one",
        "vidla": "VidLA",
        "recognition": "recognition of clips",
        "streams": "models that watch streams",
        "hot": "HoT",
        "trajvit": "TrajViT",
        "videolisa": "VideoLISA",
        "selective_s4": "Selective S4",
    }
    configs = {path.stem for path in (REPOSITORY / "videogen" / "configs").glob("[!_]*.py")}
    configs -= {"common", "data_sets", "generators", "networks", "recipes", "stand_ins", "video_text"}
    assert configs == set(names) and [name for name in names.values() if name not in text] == []
    guides = {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in guides if f"({name})" not in text} == set()


def test_the_plan_of_the_diffusion_guide_is_the_one_that_was_made():
    rows = json.loads((REPOSITORY / "docs" / "results" / "plans.json").read_text())["rows"]
    row = next(row for row in rows if "model=14B" in row["command"])
    expected = f"take {row['gib_per_chip']:.1f} GiB per chip at {row['mfu']:.1%} MFU".replace("%", " %")
    assert expected in (REPOSITORY / "docs" / "diffusion.md").read_text()


def test_the_loss_term_of_the_guide_works(monkeypatch):
    page = (REPOSITORY / "docs" / "add_a_loss_term.md").read_text()
    section, example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setattr(losses, "TERMS", dict(losses.TERMS))
    exec(example, {})
    setting = losses.Setting(VideoShape(1, 16, 16), tokens=1, code_width=1, steps=10)
    terms = losses.build({"l1": {"name": "charbonnier", "weight": 2.0, "epsilon": 0.5}}, setting)
    outputs = losses.Outputs({losses.RECONSTRUCTION: losses.Pass(jnp.full((1, 2), 1.2), jnp.zeros((1, 2)))})
    total, metrics = losses.combine(terms, {}, outputs, jax.random.key(0), jnp.zeros((), int), MicroBatch())
    assert float(metrics["l1"]) == pytest.approx(1.3, rel=1e-6) and float(total) == pytest.approx(2.6, rel=1e-6)
    config = ConfigDict()
    exec(section, {"config": config})
    assert list(losses.build(config.losses, setting)) == ["entropy", "l2", "perceptual"]


def test_the_head_of_the_guide_works(monkeypatch):
    page = (REPOSITORY / "docs" / "add_a_head.md").read_text()
    section, example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setattr(heads, "HEADS", dict(heads.HEADS))
    monkeypatch.setattr(generators, "HEADS_OF", dict(generators.HEADS_OF))
    exec(example, {})
    assert all("laplace" in generators.HEADS_OF[name] for name in ("masked", "next_block"))
    head = heads.build({"name": "laplace"}, channels=1, width=2, rngs=nnx.Rngs(0))
    head.numbers_of.kernel[...], head.numbers_of.bias[...] = jnp.eye(2), jnp.zeros(2)
    features = jnp.broadcast_to(jnp.array([3.0, jnp.log(0.5)]), (1, 4000, 2))
    # Two scales from the mean: 2 + log(2 · 0.5).
    total, count, _ = head.loss(features, jnp.full((1, 4000, 1), 4.0), jnp.ones((1, 4000), bool), None)
    assert float(total / count) == pytest.approx(2.0, rel=1e-6)
    drawn, log_density = head.draw(features, None, jax.random.split(jax.random.key(0), 1), heads.HeadSampler())
    total, _, _ = head.loss(features, drawn, jnp.ones((1, 4000), bool), None)
    assert float(-log_density.sum()) == pytest.approx(float(total), rel=1e-5)
    assert float(jnp.median(drawn)) == pytest.approx(3.0, abs=0.03)
    assert float(jnp.abs(drawn - 3).mean()) == pytest.approx(0.5, rel=0.05)
    guided, _ = head.draw(
        features, 0.5 * features, jax.random.split(jax.random.key(0), 1), heads.HeadSampler(guidance_scale=3.0)
    )
    np.testing.assert_allclose(guided - drawn, 2 * (3.0 - 1.5), rtol=1e-5)
    config = ConfigDict({"model": {}})
    exec(section, {"config": config})
    assert heads.build(config.model.head, channels=1, width=2, rngs=nnx.Rngs(0)).components == 8


def test_the_guide_of_evaluation_names_every_preset_and_no_other():
    text = (REPOSITORY / "docs" / "evaluation.md").read_text()
    table = text[text.index("## The presets") : text.index("```bash")]
    assert set(re.findall(r"`([a-z_]+\.\w+)`", table)) - {"presets.py"} == set(PRESETS)
    families = {f"{name.partition('.')[0]}." for name in PRESETS}
    asked = text[text.index("## Which number to report") : text.index("## The presets")]
    assert {family for family in families if f"`{family}" not in asked} == {"frechet."}
