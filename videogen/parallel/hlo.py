"""Reads optimised HLO text: what one device runs, moves and sends in a step.

Works on the files the compiler dumps before it generates code. Everything is counted as often as it runs: loop bodies
times their trip count, and a collective that several fusions of a loop mention once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_BITS = {"pred": 8, "token": 0}
COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO; ``shape`` and ``attributes`` are its text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, and the name of the entry."""

    computations: dict[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """A communication between devices, as often as it runs in a step.

    Attributes:
      kind: HLO opcode.
      payload: bytes of the whole (gathered or reduced) array on one device, once.
      group: its members that include device 0, as places in the flattened mesh; empty where that is all of them.
      times: how often it runs.
      dcn: between slices, over the hosts.
    """

    kind: str
    payload: float
    group: tuple[int, ...]
    times: int
    dcn: bool = False


def parse(text: str) -> Module:
    """Reads a module's text."""
    computations: dict[str, Computation] = {}
    entry, current, pending = "", None, ""
    lines = text.splitlines()
    for line in (*lines[1:], "  %end = "):
        start = _INSTRUCTION.match(line)
        header = None if start else _HEADER.match(line)
        if (start or header) and pending:
            instruction = _instruction(pending)
            current[instruction.name] = instruction
            pending = ""
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif start:
            pending = line
        elif pending and line != "}":
            # Kernels carry text with line breaks.
            pending += line
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    name = _INSTRUCTION.match(line)
    rest = line[name.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end + 1 :]
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
    if opcode in ("constant", "parameter"):
        operands = (rest[:end],)
    return Instruction(name[1], shape, opcode, operands, rest[end + 1 :], line.lstrip().startswith("ROOT "))


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at ``start``."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def byte_size(shape: str, *, tiled: bool = False, memory_only: bool = False) -> float:
    """Bytes of a shape's text.

    Args:
      shape: an array, or a tuple of arrays.
      tiled: as stored, with the padding of the layout's tiles.
      memory_only: leave out what lives in on-chip memory.
    """
    total = 0.0
    for dtype, sizes, layout in _ARRAY.findall(shape):
        if memory_only and "S(" in layout:
            continue
        dimensions = [int(size) for size in sizes.split(",") if size]
        total += _elements(dimensions, layout if tiled else "") * _bits(dtype) / 8
    return total


def sizes_of(shape: str) -> list[int]:
    """Sizes of an array's axes."""
    return [int(size) for size in _ARRAY.search(shape)[2].split(",") if size]


def called_computation(instruction: Instruction) -> str:
    """The computation of a fusion, a call or an asynchronous start; empty where there is none."""
    called = _CALLED.search(instruction.attributes)
    return called[1] if called else ""


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 0


def _elements(dimensions: list[int], layout: str) -> int:
    tile = re.search(r"T\(([\d,]+)\)", layout)
    order = [int(i) for i in re.match(r"[\d,]*", layout)[0].split(",") if i]
    if tile and len(order) == len(dimensions):
        sizes = [int(size) for size in tile[1].split(",")]
        dimensions = list(dimensions)
        for axis, size in zip(order, reversed(sizes), strict=False):
            dimensions[axis] = -(-dimensions[axis] // size) * size
    return math.prod(dimensions)


def executed(module: Module) -> Iterator[tuple[Instruction, Computation, int]]:
    """Every instruction that is scheduled by itself, its computation, and how often it runs; fusions as one."""
    yield from _executed(module, module.entry, 1)


def _executed(module: Module, name: str, times: int) -> Iterator[tuple[Instruction, Computation, int]]:
    computation = module.computations[name]
    for instruction in computation.values():
        yield instruction, computation, times
        if instruction.opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", instruction.attributes)[1]
            yield from _executed(module, body, times * trip_count(module, instruction))
        elif instruction.opcode == "call":
            yield from _executed(module, called_computation(instruction), times)
        elif instruction.opcode == "conditional":
            for branch in _branches(instruction):
                yield from _executed(module, branch, times)


def _branches(instruction: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    if listed:
        return re.findall(r"[\w.\-]+", listed[1].replace("%", ""))
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)


def trip_count(module: Module, loop: Instruction) -> int:
    """How often a loop runs: from 0 to the constant of its condition, in steps of what its body adds; 1 if unknown."""
    known = re.search(r'known_trip_count[^0-9]*"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]
    constants = [
        int(i.operands[0])
        for i in _nested(module, condition)
        if i.opcode == "constant" and re.match(r"[su]32\[\]", i.shape) and i.operands[0].isdigit()
    ]
    return -(-max(constants, default=1) // _increment(module, module.computations[condition], loop))


def _increment(module: Module, condition: Computation, loop: Instruction) -> int:
    """What a loop's body adds to its counter: loops over shards are often unrolled by two."""
    counter = next((i for i in condition.values() if i.opcode == "get-tuple-element"), None)
    body = module.computations[re.search(r"body=%?([\w.\-]+)", loop.attributes)[1]]
    root = next(i for i in body.values() if i.root)
    if counter is None or root.opcode != "tuple":
        return 1
    place = int(re.search(r"index=(\d+)", counter.attributes)[1])
    added = body.get(root.operands[place])
    if added is None or added.opcode != "add":
        return 1
    steps = [body[name].operands[0] for name in added.operands if name in body and body[name].opcode == "constant"]
    return max(int(steps[0]), 1) if steps and steps[0].isdigit() else 1


def _nested(module: Module, name: str) -> Iterator[Instruction]:
    """Instructions of a computation and of the ones its fusions and asynchronous parts call."""
    for instruction in module.computations.get(name, {}).values():
        yield instruction
        if instruction.opcode in ("fusion", "async-start"):
            yield from _nested(module, called_computation(instruction))


def argument_bytes(module: Module) -> dict[str, float]:
    """Bytes of every argument on one device, by the name JAX gave it: ``state['params']['generator']['…']``."""
    sizes = {}
    for instruction in module.computations[module.entry].values():
        if instruction.opcode == "parameter":
            name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', instruction.attributes)
            sizes[name[1].replace("\\'", "'") if name else instruction.name] = byte_size(instruction.shape)
    return sizes


def collectives(module: Module) -> list[Collective]:
    """Every collective of a step."""
    found, seen = [], set()
    for instruction, computation, times in executed(module):
        if instruction.opcode in ("fusion", "async-start"):
            parts = _within(module, called_computation(instruction), instruction.name)
        else:
            parts = [(instruction, computation, False)]
        for part, inside, scattered in parts:
            collective = _collective(part, inside, times, scattered)
            if collective is None:
                continue
            channel = re.search(r"channel_id=(\d+)", part.attributes)
            # Asynchronous fusions repeat a collective in each of their parts.
            key = (id(computation), channel[1]) if channel else (id(computation), part.name)
            if key not in seen:
                seen.add(key)
                found.append(collective)
    return found


def _within(module: Module, name: str, caller: str) -> Iterator[tuple[Instruction, Computation, bool]]:
    """Instructions inside a fusion, and whether the fusion keeps only its device's share of a sum."""
    computation = module.computations.get(name, {})
    scattered = "reduce-scatter" in name or "reduce-scatter" in caller
    for instruction in computation.values():
        yield instruction, computation, scattered
        if instruction.opcode in ("fusion", "async-start"):
            yield from _within(module, called_computation(instruction), name)


def _collective(instruction: Instruction, computation: Computation, times: int, scattered: bool) -> Collective | None:
    sent = sum(byte_size(computation[name].shape) for name in instruction.operands if name in computation)
    if instruction.opcode == "send":
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
        if transfer is None:
            return None
        return Collective(transfer[1].lower().replace("_", "-"), sent, (), times, dcn=True)
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    group = _first_group(instruction.attributes)
    if kind == "all-gather":
        sent *= max(len(group), 1)
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"
    return Collective(kind, sent, group, times)


def _first_group(attributes: str) -> tuple[int, ...]:
    """Members of the first group, from any of the three ways HLO writes groups."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]*)\}", attributes)
    if listed:
        return tuple(int(member) for member in listed[1].split(","))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, source = ([int(n) for n in part.split(",")] for part in iota.groups()[:2])
        order = [int(n) for n in iota[3].split(",")] if iota[3] else range(len(source))
        return tuple(_transposed_iota(source, list(order))[: shape[-1]])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes)
    return _mesh_group(*mesh.groups()) if mesh else ()


def _transposed_iota(source: list[int], order: list[int]) -> list[int]:
    strides = [math.prod(source[i + 1 :]) for i in range(len(source))]
    members = [0]
    for axis in order:
        members = [m + i * strides[axis] for m in members for i in range(source[axis])]
    return members


def _mesh_group(axes: str, devices: str | None, grouped: str) -> tuple[int, ...]:
    """Group of a named mesh: ``'a'=16,'b'=4``, the order of its devices (``[4,16]T(1,0)`` or a list), ``'a'``."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    inside = set(re.findall(r"'(\w+)'", grouped))
    members, stride = [0], math.prod(sizes.values())
    for name, size in sizes.items():
        stride //= size
        if name in inside:
            members = [m + i * stride for m in members for i in range(size)]
    if not devices:
        return tuple(members)
    iota = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", devices)
    if iota:
        source = [int(n) for n in iota[1].split(",")]
        order = [int(n) for n in iota[2].split(",")] if iota[2] else list(range(len(source)))
        ids = _transposed_iota(source, order)
    else:
        ids = [int(n) for n in devices.split(",")]
    return tuple(ids[member] for member in members)
