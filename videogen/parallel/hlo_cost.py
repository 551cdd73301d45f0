"""What a compiled step costs one device: matrix products, and bytes through its memory, instruction by instruction."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from videogen.parallel.hlo import Computation, Instruction, Module, byte_size, called_computation, executed, sizes_of

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "iota", "opt-barrier", "send", "recv"),
}
"""Instructions that move nothing through memory themselves."""

_GEMM = re.compile(r'custom_call_target="__cublas\$')
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Work:
    """One scheduled instruction, once.

    Attributes:
      name: its name in the module.
      times: how often it runs in a step.
      flops: floating-point operations of its matrix products and convolutions.
      filled: the same as if every product filled the matrix unit's tiles.
      moved: bytes read from and written to the device's memory.
      kernel: name of the custom kernel it calls, whose operations the module does not tell; else empty.
      source: the operation of the traced step it comes from, if any, and its (first) result.
      place: the computation it is scheduled in; a loop's body is another than what is around the loop.
      starts: it moves its bytes beside the instructions that follow, until one awaits it.
      awaits: name of the instruction that started what it waits for; else empty.
    """

    name: str
    times: int
    flops: float
    filled: float
    moved: float
    kernel: str = ""
    source: str = ""
    place: int = 0
    starts: bool = False
    awaits: str = ""


def work(module: Module, tile: int = 1) -> Iterator[Work]:
    """The work of every scheduled instruction that does any.

    Args:
      module: the optimised module of one device.
      tile: rows and columns of the matrix unit.
    """
    for instruction, computation, times in executed(module):
        if instruction.opcode in _FREE or instruction.opcode.endswith("-update"):
            continue
        place = id(computation)
        if instruction.opcode.endswith("-done"):
            yield Work(instruction.name, times, 0.0, 0.0, 0.0, place=place, awaits=_started(instruction, computation))
            continue
        kernel = ""
        if instruction.opcode == "custom-call":
            kernel = _kernel(instruction)
            if not (kernel or _GEMM.search(instruction.attributes) or "tpu_custom_call" in instruction.attributes):
                continue
        flops, filled = _products(module, instruction, computation, tile)
        moved = _moved(module, instruction, computation)
        starts, source = instruction.opcode.endswith("-start"), _source(instruction)
        yield Work(instruction.name, times, flops, filled, moved, kernel, source, place, starts)


def _started(done: Instruction, computation: Computation) -> str:
    """The name of the start that a done, or an update before it, belongs to."""
    name = done.operands[0]
    return _started(computation[name], computation) if computation[name].opcode.endswith("-update") else name


def _kernel(instruction: Instruction) -> str:
    """Name of the Pallas kernel of a custom call, or of cuDNN's; empty for kernels of the compiler's own."""
    name = re.search(r'op_name="[^"]*/([^"/]+)/pallas_call', instruction.attributes)
    name = name or re.search(r'custom_call_target="(cudnn_attention_\w+)"', instruction.attributes)
    return name[1] if name else ""


def _source(instruction: Instruction) -> str:
    """Operation and first result, such as ``backward dot_general bf16[512,128]``; JAX names whole loops before it."""
    name = re.search(r'op_name="([^"]*)"', instruction.attributes)
    path = name[1].split("/") if name else []
    backward = any(part.startswith("transpose(") for part in path)
    words = ["backward"] * backward + path[-1:] + [re.sub(r"\{.*", "", instruction.shape.strip("("))]
    return " ".join(words)


def _products(module: Module, instruction: Instruction, computation: Computation, tile: int) -> tuple[float, float]:
    """FLOPs of an instruction or of everything inside its fusion, and the FLOPs of whole tiles."""
    if instruction.opcode in ("fusion", "async-start"):
        inside = module.computations[called_computation(instruction)]
        pairs = [_products(module, part, inside, tile) for part in inside.values()]
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)
    if instruction.opcode == "convolution":
        return _convolution(instruction, computation, tile)
    if instruction.opcode == "dot" or _GEMM.search(instruction.attributes):
        return _dot(instruction, computation, tile)
    if instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.attributes and not _kernel(instruction):
        return _attention(instruction, computation, tile)
    return 0.0, 0.0


def _filled(batch: float, rows: float, columns: float, depth: float, tile: int) -> float:
    """FLOPs a matrix unit spends on ``batch`` products [rows, depth] × [depth, columns].

    Depth and one of the other two are held in the unit and round up to its side; the third streams through.
    """

    def up(size: float) -> float:
        return math.ceil(size / tile) * tile

    return 2 * batch * up(depth) * min(up(rows) * columns, rows * up(columns))


def _dot(instruction: Instruction, computation: Computation, tile: int) -> tuple[float, float]:
    left = sizes_of(computation[instruction.operands[0]].shape)
    right = sizes_of(computation[instruction.operands[1]].shape)

    def axes(name: str) -> list[int]:
        # Products are dots, or calls of a library with the same numbers in JSON.
        found = re.search(name + r'(?:_dims=\{([\d,]*)\}|_dimensions":\[([^\]]*)\])', instruction.attributes)
        return [int(i) for i in re.findall(r"\d+", found[1] or found[2] or "")] if found else []

    depth = math.prod(left[i] for i in axes("lhs_contracting"))
    batch = math.prod(left[i] for i in axes("lhs_batch"))
    rows, columns = (math.prod(side) / depth / batch for side in (left, right))
    return 2 * batch * rows * columns * depth, _filled(batch, rows, columns, depth, tile)


def _convolution(instruction: Instruction, computation: Computation, tile: int) -> tuple[float, float]:
    left, right = (sizes_of(computation[name].shape) for name in instruction.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    out = sizes_of(instruction.shape)
    groups = re.search(r"batch_group_count=(\d+)", instruction.attributes)
    batch = left[labels[0].index("b")] / (int(groups[1]) if groups else 1)
    depth, columns = right[labels[1].index("i")], out[labels[2].index("f")]
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    window = dict(part.split("=") for part in window[1].split()) if window else {}
    places, pairs = 1.0, 1.0
    for axis in range(len(labels[0]) - 2):
        label = str(axis)
        sizes = [side[names.index(label)] for side, names in zip((left, right, out), labels, strict=True)]
        places *= sizes[2]
        pairs *= valid_positions(*sizes, window, axis)
    # The kernel's places belong to the depth of the product (they are all of it in a weight gradient).
    filled = _filled(1, batch * places, columns, depth * pairs / places, tile)
    return 2 * batch * depth * columns * pairs, filled


def valid_positions(size: int, kernel: int, out: int, window: dict[str, str], axis: int) -> float:
    """Pairs (output place, kernel place) along one axis that meet an input value rather than padding or a hole."""

    def setting(name: str, default: str) -> str:
        return window[name].split("x")[axis] if name in window else default

    stride, low = int(setting("stride", "1")), int(setting("pad", "0_0").split("_")[0])
    holes, dilation = int(setting("lhs_dilate", "1")), int(setting("rhs_dilate", "1"))
    first = np.arange(out, dtype=np.int64) * stride - low
    if dilation == 1:
        # The kernel covers a run of places, of which the multiples of ``holes`` hold values.
        last = np.minimum(first + kernel - 1, (size - 1) * holes)
        return float(np.maximum(last // holes - -(-np.maximum(first, 0) // holes) + 1, 0).sum())
    if holes == 1:
        begin = np.maximum(-(first // dilation), 0)
        end = np.minimum((size - 1 - first) // dilation, kernel - 1)
        return float(np.maximum(end - begin + 1, 0).sum())
    return float(min(kernel, size) * out)


def _attention(instruction: Instruction, computation: Computation, tile: int) -> tuple[float, float]:
    """The compiler's own attention kernel on query, key and value, each [batch, length, width]."""
    sides = [sizes_of(computation[name].shape) for name in instruction.operands[:3] if name in computation]
    if len(sides) < 3 or any(len(side) != 3 for side in sides):
        return 0.0, 0.0
    (batch, queries, width), (_, keys, _) = sides[:2]
    filled = _filled(batch, queries, keys, width, tile) + _filled(batch, queries, width, keys, tile)
    return 4 * batch * queries * keys * width, filled


def _moved(module: Module, instruction: Instruction, computation: Computation) -> float:
    if instruction.opcode in ("fusion", "async-start"):
        name = called_computation(instruction)
        inside = module.computations[name]
        root = next(part for part in inside.values() if part.root)
        parameters = [part.name for part in inside.values() if part.opcode == "parameter"]
        return sum(_read(module, name, p) for p in parameters) + _written(module, name, root.name)
    if instruction.opcode.endswith("-start"):
        # The shape names both ends of the copy.
        return _memory(instruction.shape)
    if instruction.opcode in _SLICES:
        return 2 * _memory(instruction.shape)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _memory(computation[instruction.operands[1]].shape)
    read = sum(_memory(computation[name].shape) for name in set(instruction.operands) if name in computation)
    return read + _memory(instruction.shape)


def _memory(shape: str) -> float:
    return byte_size(shape, tiled=True, memory_only=True)


def _read(module: Module, name: str, value: str) -> float:
    """Bytes of ``value`` that the computation ``name`` reads: where it only takes slices, theirs."""
    computation = module.computations[name]
    whole, total = _memory(computation[value].shape), 0.0
    if not whole:
        return 0.0
    for user in computation.values():
        if value not in user.operands:
            continue
        place = user.operands.index(value)
        if user.opcode in _SLICES and place == 0:
            total += byte_size(user.shape, tiled=True)
        elif user.opcode == "bitcast":
            total += _read(module, name, user.name)
        elif user.opcode == "fusion":
            inner = called_computation(user)
            total += _read(module, inner, _parameter(module.computations[inner], place))
        elif not (user.opcode == "dynamic-update-slice" and place == 0):
            return whole
    return min(total, whole)


def _parameter(computation: Computation, place: int) -> str:
    return next(p.name for p in computation.values() if p.opcode == "parameter" and p.operands[0] == str(place))


def _written(module: Module, name: str, value: str) -> float:
    """Bytes that the computation ``name`` writes as ``value``: of an array updated in place only the update."""
    computation = module.computations[name]
    instruction = computation[value]
    if not _memory(instruction.shape):
        return 0.0
    if instruction.opcode == "dynamic-update-slice":
        return byte_size(computation[instruction.operands[1]].shape, tiled=True)
    if instruction.opcode == "tuple":
        return sum(_written(module, name, part) for part in instruction.operands)
    if instruction.opcode == "bitcast":
        return _written(module, name, instruction.operands[0])
    if instruction.opcode == "fusion":
        inner = called_computation(instruction)
        root = next(part for part in module.computations[inner].values() if part.root)
        return _written(module, inner, root.name)
    return _memory(instruction.shape)
