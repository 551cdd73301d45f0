"""Tensors of files that ``torch.save`` or ``torch.jit.save`` wrote, read without torch and without executing anything.

Three layouts: the zip archive (``data.pkl`` and one entry for each storage), TorchScript's (the same with objects in
place of dictionaries; its ``code/`` is never read), and the older one that is no zip (pickled values one after another,
then the storages). Tensors are views of the memory-mapped file: nothing is copied until it is used.
"""

import dataclasses
import math
import mmap
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from videogen.encoders.pickles import MAX_ENTRIES, Interpreter, Name, Record
from videogen.errors import UserError, shown

DTYPES = {
    "Double": np.dtype(np.float64),
    "Float": np.dtype(np.float32),
    "Half": np.dtype(np.float16),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Long": np.dtype(np.int64),
    "Int": np.dtype(np.int32),
    "Short": np.dtype(np.int16),
    "Char": np.dtype(np.int8),
    "Byte": np.dtype(np.uint8),
    "Bool": np.dtype(np.bool_),
    "ComplexFloat": np.dtype(np.complex64),
    "ComplexDouble": np.dtype(np.complex128),
}
"""Name of a storage type of torch, without ``Storage``, -> its values."""

NAMED_DTYPES = {
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.uint16": np.dtype(np.uint16),
    "torch.uint32": np.dtype(np.uint32),
    "torch.uint64": np.dtype(np.uint64),
}
"""Types without a storage type of their own: their storages are untyped, and the tensor names the type."""

MAGIC = 0x1950A86A20F9469CFC6C
"""The first value of the files that are no zip."""

MAX_DEPTH = 64

MAX_DIRECTORY, MAX_END = 2**25, 2**16 + 22
"""Bytes of the list of entries of a zip archive, and of what may stand behind it."""

_INERT = {
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "pathlib.PosixPath",
    "torch.device",
}
"""Classes of settings that training programs store beside the weights; they are kept as records of their fields."""

_VALUES = {
    "builtins.dict",
    "builtins.float",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "typing.Any",
    "torch.storage.UntypedStorage",
    "torch.UntypedStorage",
    *(f"torch.{name}Storage" for name in DTYPES),
    *NAMED_DTYPES,
    *(f"torch.{name}" for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")),
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """What a tensor says of its storage: the key of its bytes, their type, and how many values there should be."""

    key: str
    dtype: np.dtype | None
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, in values of the storage; ``dtype`` differs from the storage's only where that has none."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: np.dtype


def read_archive(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file by dotted name: keys of dictionaries, attributes of objects and places of lists.

    Args:
      path: a ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.jit`` file.

    Returns:
      Arrays that are read-only views of the mapped file; what is no tensor is left out.

    Raises:
      UserError: the file is damaged, names anything but tensors and plain containers, or asks for bytes that are not
        there.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"cannot read {path}: it is no file; give one that torch.save wrote")
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; give a file that torch.save wrote") from error
    value, storages = _read_zip(path, data) if data[:2] == b"PK" else _read_legacy(path, data)
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in _tensors(path, value):
        if name in arrays:
            raise UserError(f"{path} is refused: two tensors have the name {shown(name)}")
        arrays[name] = _view(f"{path}: {name}", tensor, storages)
    return arrays


class _Storages:
    """Where the bytes of every storage lie in a mapped file."""

    def __init__(self, data: memoryview, places: dict[str, tuple[int, int]], swapped: bool):
        self.data, self.places, self.swapped = data, places, swapped

    def place(self, what: str, storage: Storage) -> tuple[int, int]:
        """First byte and length of a storage, which must be as long as the tensor says."""
        if storage.key not in self.places:
            raise UserError(f"{what} is refused: the file has no storage {shown(storage.key)}")
        start, length = self.places[storage.key]
        if length != storage.count * (storage.dtype or np.dtype(np.uint8)).itemsize:
            raise UserError(f"{what} is refused: its storage has {length} bytes, not {storage.count} of its values")
        return start, length


def _view(what: str, tensor: Tensor, storages: _Storages) -> np.ndarray:
    """The array of a tensor, once everything it says is known to lie within its storage."""
    whole = all(type(n) is int and n >= 0 for n in (tensor.offset, *tensor.size, *tensor.stride))
    if not whole or len(tensor.size) != len(tensor.stride) or len(tensor.size) > 32:
        raise UserError(f"{what} is refused: its offset, size and strides are no whole numbers from 0 on, in pairs")
    (start, length), dtype, count = storages.place(what, tensor.storage), tensor.dtype, math.prod(tensor.size)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    values = length // dtype.itemsize
    if count > values or (count and last >= values) or tensor.offset > values:
        raise UserError(f"{what} is refused: {list(tensor.size)} values do not fit its storage of {values}")
    strides = [step * dtype.itemsize for step in tensor.stride]
    storage = storages.data[start : start + length]
    view = np.ndarray(tensor.size, dtype, storage, tensor.offset * dtype.itemsize, strides)
    return view.byteswap() if storages.swapped else view


def _tensors(path: Path, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its dotted name, in order; containers may be shared but not stand within themselves."""
    seen, pending = 0, [((), value)]
    while pending:
        names, value = pending.pop()
        seen += 1
        if seen > MAX_ENTRIES or len(names) > MAX_DEPTH:
            raise UserError(f"{path} is refused: it has containers within themselves, or more than any checkpoint has")
        if isinstance(value, Tensor):
            yield ".".join(names), value
        elif isinstance(value, Record):
            value = value.fields
        if isinstance(value, dict):
            pending += [((*names, str(key)), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list | tuple):
            pending += [((*names, str(i)), inner) for i, inner in reversed(list(enumerate(value)))]


def _interpreter(path: Path, data: memoryview, where: str = "") -> Interpreter:
    def first(value: Any, *rest: Any) -> Any:
        return value

    def rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        return _tensor(storage, offset, size, stride)

    def rebuild_typed(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any) -> Tensor:
        return _tensor(storage, offset, size, stride, dtype)

    functions = {
        "_codecs.encode": lambda text, how: text,
        "collections.OrderedDict": _ordered,
        "collections.defaultdict": lambda kind=None: {},
        "torch.Size": tuple,
        "torch._utils._rebuild_parameter": first,
        "torch._utils._rebuild_tensor": rebuild,
        "torch._utils._rebuild_tensor_v2": rebuild,
        "torch._utils._rebuild_tensor_v3": rebuild_typed,
        "torch.jit._pickle.restore_type_tag": first,
        **{f"torch.jit._pickle.build_{kind}list": first for kind in ("int", "double", "bool", "tensor")},
    }
    return Interpreter(
        data,
        f"{path}{where}",
        functions=functions,
        names=_VALUES.__contains__,
        classes=lambda name: name in _INERT or name.startswith("__torch__."),
        stored=lambda reference: _storage(path, reference),
    )


def _ordered(items: Any = ()) -> dict[Any, Any]:
    """An ordered dictionary; Python 2 gave it a list of pairs."""
    if any(type(key) not in (str, int) for key, _ in items):
        raise ValueError("a key is neither a text nor a whole number")
    return dict(items)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("no storage, size or stride")
    named = NAMED_DTYPES.get(dtype.path) if isinstance(dtype, Name) else None
    if (storage.dtype or named) is None:
        raise ValueError("no type")
    return Tensor(storage, offset, size, stride, storage.dtype or named)


def _storage(path: Path, reference: Any) -> Storage:
    """``('storage', type, key, device, count)``; older files have one entry more, of views, which is not used."""
    entries = reference if isinstance(reference, tuple) else ()
    if len(entries) not in (5, 6) or entries[0] != "storage" or not isinstance(entries[1], Name):
        raise UserError(f"{path} is refused: it refers to {type(reference).__name__} where a storage is due")
    kind, key, count = entries[1].path, entries[2], entries[4]
    dtype = DTYPES.get(kind.removeprefix("torch.").removesuffix("Storage"))
    if dtype is None and not kind.endswith("UntypedStorage"):
        raise UserError(f"{path} is refused: {shown(kind)} is no type of storage that is known")
    if not isinstance(key, str) or type(count) is not int or count < 0 or (len(entries) == 6 and entries[5]):
        raise UserError(f"{path} is refused: the key or the length of a storage is not as PyTorch writes it")
    return Storage(key, dtype, count)


def _read_zip(path: Path, data: memoryview) -> tuple[Any, _Storages]:
    """The value of ``data.pkl`` and where the entries ``data/…`` lie."""
    end = bytes(data[-MAX_END:]).rfind(b"PK\x05\x06")
    directory = (
        struct.unpack_from("<I", data[-MAX_END:], end + 12)[0] if 0 <= end <= min(len(data), MAX_END) - 16 else 0
    )
    if directory != 2**32 - 1 and directory > MAX_DIRECTORY:
        raise UserError(f"{path} is refused: its list of entries has {directory} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged ({error}); download it again") from error
    places: dict[str, tuple[int, int]] = {}
    for entry in entries:
        parts = entry.filename.split("/")
        if entry.filename.startswith("/") or "\\" in entry.filename or {"", ".", ".."} & set(parts[:-1]):
            raise UserError(f"{path} is refused: its entry {shown(entry.filename)} is a path to elsewhere")
        if "/".join(parts[1:]) in places or parts[0] != entries[0].filename.split("/")[0]:
            raise UserError(f"{path} is refused: it has two entries {shown(entry.filename)}, or two top folders")
        places["/".join(parts[1:])] = _entry_place(path, data, entry)
    if "data.pkl" not in places or len(places) > MAX_ENTRIES:
        raise UserError(f"{path} is a zip archive without data.pkl; give a file that torch.save wrote")

    def content(name: str) -> memoryview:
        start, length = places.get(name, (0, 0))
        if length < 0:
            raise UserError(f"{path} is refused: its entry {name} is compressed or encrypted")
        return data[start : start + length]

    value = _interpreter(path, content("data.pkl")).read()
    storages = {name[5:]: place for name, place in places.items() if name.startswith("data/") and place[1] >= 0}
    return value, _Storages(data, storages, bytes(content("byteorder")) == b"big")


def _entry_place(path: Path, data: memoryview, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and length of an entry, length -1 if it is compressed (TorchScript's code is, and is not read)."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
        return 0, -1
    header = data[entry.header_offset : entry.header_offset + 30]
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise UserError(f"{path} is damaged: its entry {shown(entry.filename)} has no header; download it again")
    name, extra = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name + extra
    if bytes(data[entry.header_offset + 30 : start - extra]) != entry.orig_filename.encode():
        raise UserError(f"{path} is refused: its entry {shown(entry.filename)} has another name in its own header")
    if entry.file_size != entry.compress_size or start + entry.file_size > len(data):
        raise UserError(f"{path} is damaged: its entry {shown(entry.filename)} ends beyond the file; download it again")
    return start, entry.file_size


def _read_legacy(path: Path, data: memoryview) -> tuple[Any, _Storages]:
    """Magic number, version, system, value and keys, pickled one after another; then storages, each with a count."""
    machine = _interpreter(path, data)
    if data[:1] != b"\x80" or machine.read() != MAGIC:
        raise UserError(f"{path} is no file that torch.save wrote")
    machine.read()
    system = machine.read()
    declared: dict[str, Storage] = {}
    known = machine.stored

    def stored(reference: Any) -> Storage:
        storage = known(reference)
        if declared.setdefault(storage.key, storage) != storage:
            raise UserError(f"{path} is refused: the storage {shown(storage.key)} is declared in two ways")
        return storage

    machine.stored = stored
    value, keys, at = machine.read(), machine.read(), machine.at
    swapped = isinstance(system, dict) and system.get("little_endian") is False
    places: dict[str, tuple[int, int]] = {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in declared or key in places or at + 8 > len(data):
            raise UserError(f"{path} is damaged: the list of its storages is not that of its tensors")
        (count,) = struct.unpack(">q" if swapped else "<q", data[at : at + 8])
        length = count * (declared[key].dtype or np.dtype(np.uint8)).itemsize
        if count < 0 or at + 8 + length > len(data):
            raise UserError(f"{path} is damaged: the storage {shown(key)} ends beyond the file; download it again")
        places[key], at = (at + 8, length), at + 8 + length
    return value, _Storages(data, places, swapped)
