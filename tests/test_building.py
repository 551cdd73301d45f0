"""Building parts from config sections: what is passed on, and what mistakes are named."""

import pytest
from flax import nnx

from videogen.building import build
from videogen.errors import UserError, near_matches


class Part:
    def __init__(self, size: int, *, rate: float = 0.5, rngs=None):
        self.size, self.rate, self.rngs = size, rate, rngs


class Module(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.width = width


def function(size: int, rngs=None):
    return size, rngs


TABLE = {"part": Part, "module": Module, "function": function}


def make(**config):
    return build(TABLE, config, "thing", rngs="streams")


def test_settings_and_shared_arguments_arrive():
    part = make(name="part", size=3)
    assert (part.size, part.rate, part.rngs) == (3, 0.5, "streams")
    assert make(name="part", size=3, rate=0.1).rate == 0.1
    assert make(name="module", width=7).width == 7
    assert make(name="function", size=4) == (4, "streams")


def test_the_config_is_left_alone():
    config = {"name": "part", "size": 3}
    build(TABLE, config, "thing")
    assert config == {"name": "part", "size": 3}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "the thing config has no 'name'; known: function, module, part"),
        ({"name": "prt"}, r"unknown thing 'prt'; did you mean 'part'\?"),
        ({"name": "zzz"}, "unknown thing 'zzz'; known: function, module, part"),
        ({"name": "part", "size": 1, "rat": 2}, r"thing 'part' has no setting 'rat'; did you mean 'rate'\?"),
        (
            {"name": "module", "width": 1, "widht": 2},
            "thing 'module' has no setting 'widht'; did you mean 'width'",
        ),
        ({"name": "part"}, "thing 'part' needs the setting 'size'"),
        ({"name": "module"}, "thing 'module' needs the setting 'width'"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(UserError, match=f"^{message}"):
        make(**config)


def test_near_matches():
    assert near_matches("rat", ["rate", "size"]) == "; did you mean 'rate'?"
    assert near_matches("q", ["b", "a"]) == "; known: a, b"
    assert near_matches("q", []) == "; known: (none)"
