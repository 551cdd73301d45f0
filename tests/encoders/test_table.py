"""Every encoder stands in the table, is built by name, and mistakes are named."""

import pytest

from tests.encoders.test_vision import clip
from videogen import encoders
from videogen.encoders import loading
from videogen.errors import UserError


def test_the_table_names_every_network():
    found, pending = set(), [loading.Published]
    while pending:
        children = [kind for kind in pending.pop().__subclasses__() if kind.__module__.startswith("videogen.encoders")]
        found, pending = found | set(children), pending + children
    bases = {kind for kind in found if kind.__subclasses__() and kind not in encoders.ENCODERS.values()}
    assert found - bases == set(encoders.ENCODERS.values())


def test_built_by_name(tmp_path):
    clip(tmp_path)
    assert isinstance(encoders.load("clip_image", tmp_path), encoders.ClipImage)
    assert isinstance(encoders.build({"name": "clip_text", "directory": str(tmp_path)}), encoders.ClipText)
    with pytest.raises(UserError, match="'clip_image'"):
        encoders.load("clip_images", tmp_path)
    with pytest.raises(UserError, match="'directory'"):
        encoders.build({"name": "clip_text", "directori": str(tmp_path)})
    with pytest.raises(UserError, match="lacks the setting 'vocab_size'; is it the config of a T5.$"):
        encoders.load("t5", tmp_path)
    with pytest.raises(UserError, match="config.json"):
        encoders.load("dinov2", tmp_path / "absent")
    with pytest.raises(UserError, match="lacks the tensors .*is it a published file of I3d"):
        encoders.load("i3d", tmp_path)
