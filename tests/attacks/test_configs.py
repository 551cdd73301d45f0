"""Configs with one wrong value each: refused in one line with nothing written, or a run that can be traced."""

import importlib
import logging
import random

import jax
import pytest
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from videogen.errors import UserError
from videogen.planning.programs import complete_for_planning
from videogen.training import start

SYSTEMS = ("phenaki", "magvit", "magvit2", "omnitokenizer", "nbp", "cdt", "videodit", "larp", "tokenbridge")
SYSTEMS += ("one_d_piece", "karl", "flextok", "tokenflow", "instella", "hitvideo", "one_vae", "divot", "dicode")
SYSTEMS += ("tokensgen", "language", "understanding", "signvip", "retrieval", "streams")
SYSTEMS += ("violet", "evilm", "all_in_one", "vidla", "recognition")
SYSTEMS += ("hot", "selective_s4", "videolisa", "trajvit")
VALUES = (
    *(0, -1, 1, 2, 3, 7, 2**20, 2**40, -2.5, 0.0, 0.5, 1.5, 1e30, float("nan"), float("inf"), None, True, False),
    *("", "abc", "none", (), (1,), (0, 0), (2, 2), (-1, 3), (1, 2, 3, 4), ("a",), {"a": 1}, {}),
)


def keys(section: dict, prefix: str = ""):
    for key, value in section.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def mutate(rng: random.Random) -> tuple[dict, str]:
    """The debug config of some stage with one value replaced, or left out; and what was done, in words."""
    system = importlib.import_module(f"videogen.configs.{rng.choice(SYSTEMS)}")
    stage = rng.choice(system.STAGES)
    config = system.get_config(f"stage={stage},size=debug").to_dict()
    path = rng.choice(list(keys(config)))
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    if rng.random() < 0.1:
        del section[key]
        return config, f"{system.__name__} {stage}: no {path}"
    section[key] = rng.choice(VALUES)
    return config, f"{system.__name__} {stage}: {path} = {section[key]!r}"


@pytest.fixture
def alone(monkeypatch):
    """What a start reads from other runs is there in shape only."""
    monkeypatch.setattr(start, "complete_config", lambda config, *_: complete_for_planning(config))
    monkeypatch.setattr(start, "new_frozen", lambda task, _: nnx.eval_shape(lambda: task.frozen(None)))
    monkeypatch.setattr(start, "starting_weights", lambda *_: None)
    # pytest keeps what is logged until the test ends, with every stack and all that it refers to: 16 GB.
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def attack(tmp_path, seed: int, count: int) -> dict[str, int]:
    rng, outcomes = random.Random(seed), {"refused": 0, "sound": 0}
    raw = []
    for _ in range(count):
        config, words = mutate(rng)
        try:
            start.prepare(ConfigDict(config), epath.Path(tmp_path / "run"))
            outcomes["sound"] += 1
        except UserError as error:
            assert "\n" not in str(error), words
            outcomes["refused"] += 1
        except Exception as error:  # the point of the test is that there is none
            raw.append(f"{words}: {type(error).__name__}: {error}")
        assert not list(tmp_path.iterdir()), words
        jax.clear_caches()
    assert not raw, "\n".join(raw)
    return outcomes


@pytest.mark.slow
def test_some_mutations(tmp_path, alone):
    assert attack(tmp_path, seed=1, count=20)["refused"] > 5


@pytest.mark.slow
def test_a_config_without_a_mutation_is_sound(tmp_path, alone):
    config = importlib.import_module("videogen.configs.nbp").get_config("size=debug")
    start.prepare(config, epath.Path(tmp_path / "run"))


@pytest.mark.attack
def test_a_thousand_mutations(tmp_path, alone):
    outcomes = attack(tmp_path, seed=2, count=1000)
    assert outcomes["refused"] > 500
