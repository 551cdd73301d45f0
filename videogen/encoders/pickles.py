"""An interpreter of pickled data that executes nothing: it knows values and containers, and names become inert.

Pickled data is a program for a stack machine whose instructions may name any function and call it. This one has the
instructions that PyTorch writes, no import and no call: a name must stand in a table of our own, or it is refused.
"""

import dataclasses
import struct
from collections.abc import Callable, Mapping
from typing import Any

from videogen.errors import UserError, shown

MAX_OPERATIONS = 4_000_000
MAX_ENTRIES = 200_000
"""The most entries of all containers together; the largest public checkpoints have tens of thousands."""

MAX_DIGITS = 16
"""Bytes of the longest whole number; PyTorch's magic number has 10."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that the data names; nothing of that name is ever looked up."""

    path: str


@dataclasses.dataclass(eq=False)
class Record:
    """An object of a class that is not known here: the name of the class, and the fields that were stored.

    Attributes:
      kind: name of the class, such as ``__torch__.torch.nn.modules.conv.Conv2d``.
      fields: attribute -> value.
    """

    kind: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Mark:
    pass


_MARK = _Mark()


class Interpreter:
    """Reads one pickled value after the other.

    Args:
      data: the bytes.
      where: what they are called in messages.
      functions: name -> what stands for a call of it, a function of the arguments.
      names: names that may stand in the data as values and cannot be called.
      classes: whether objects of a class may be made, as ``Record``.
      stored: what a reference to data outside means: a function of the reference.

    Raises:
      UserError: the data is damaged, has an instruction or a name that is not known, or is larger than any checkpoint.
    """

    def __init__(
        self,
        data: bytes | memoryview,
        where: str,
        *,
        functions: Mapping[str, Callable[..., Any]],
        names: Callable[[str], bool],
        classes: Callable[[str], bool],
        stored: Callable[[Any], Any],
    ):
        self.data, self.where, self.at = memoryview(data), where, 0
        self.functions, self.names, self.classes, self.stored = functions, names, classes, stored
        self.operations = self.entries = 0

    def refuse(self, why: str) -> UserError:
        """The error to raise: it names the file and says why it is refused."""
        return UserError(f"{self.where} is refused, nothing in it was executed: {why}")

    def read(self) -> Any:
        """The next value; ``at`` is then the place behind it."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        while True:
            code = self._byte()
            if code == _STOP:
                return self._pop()
            self.operations += 1
            if self.operations > MAX_OPERATIONS:
                raise self.refuse(f"it has more than {MAX_OPERATIONS} instructions")
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise self.refuse(f"instruction {code:#04x} is none that checkpoints have")
            operation(self)

    def _take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise self.refuse(f"it ends where {count} more bytes are announced")
        self.at += count
        return self.data[self.at - count : self.at]

    def _byte(self) -> int:
        return self._take(1)[0]

    def _number(self, form: str) -> int | float:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, count: int) -> str:
        try:
            return str(self._take(count), "utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse("a text is no UTF-8") from error

    def _line(self) -> str:
        for end in range(self.at, min(self.at + 1000, len(self.data))):
            if self.data[end] == ord("\n"):
                text = self._text(end - self.at)
                self.at += 1
                return text
        raise self.refuse("a name has no end")

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.refuse("an instruction lacks its operand")
        return self.stack.pop()

    def _marked(self) -> list[Any]:
        """What stands above the last mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise self.refuse("an instruction lacks its mark")

    def _top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise self.refuse(f"an instruction needs a {kind.__name__}")
        return self.stack[-1]

    def _count(self, entries: int) -> None:
        self.entries += entries
        if self.entries > MAX_ENTRIES:
            raise self.refuse(f"its containers have more than {MAX_ENTRIES} entries")

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._count(count)
        self._push(tuple(reversed(values)))

    def _append(self, values: list[Any]) -> None:
        self._count(len(values))
        self._top(list).extend(values)

    def _set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise self.refuse("a key has no value")
        target = self._top(dict)
        self._count(len(values) // 2)
        for key, value in zip(values[::2], values[1::2], strict=True):
            # A key that is a tuple would be hashed as a tree, which can be exponentially larger than the data.
            if type(key) not in (str, int):
                raise self.refuse(f"a key is a {type(key).__name__}; keys are texts or whole numbers")
            if key in target:
                raise self.refuse(f"the key {shown(key)} stands twice")
            target[key] = value

    def _remember(self, place: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.refuse("an instruction lacks its operand")
        self.memo[place] = self.stack[-1]

    def _recall(self, place: int) -> None:
        if place not in self.memo:
            raise self.refuse("it refers to a value that it has not stored")
        self._push(self.memo[place])

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.refuse("a name is no text")
        path = f"{module}.{name}"
        if path not in self.functions and not self.names(path) and not self.classes(path):
            raise self.refuse(f"it names {shown(path)}, which is not among what weights are made of")
        self._push(Name(path))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise self.refuse("it calls what is no function")
        if function.path in self.functions:
            try:
                self._push(self.functions[function.path](*arguments))
            except (TypeError, ValueError, OverflowError) as error:
                raise self.refuse(f"the arguments of {function.path} are not as PyTorch writes them") from error
        elif self.classes(function.path):
            self._push(Record(function.path))
        else:
            raise self.refuse(f"it calls {shown(function.path)}")

    def _new(self, count: int) -> None:
        """An object of a class: its arguments are left out, and its fields follow."""
        kind = [self._pop() for _ in range(count)][-1]
        if not isinstance(kind, Name) or not self.classes(kind.path):
            raise self.refuse(f"it makes an object of {shown(kind)}")
        self._push(Record(kind.path))

    def _build(self) -> None:
        """The state of an object; dictionaries and lists keep none (``state_dict`` has a ``_metadata``)."""
        state = self._pop()
        target = self._top(object)
        if isinstance(target, Record):
            if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
                if not isinstance(state[0] or {}, dict):
                    raise self.refuse(f"the state of an object is a {type(state[0]).__name__}")
                state = {**(state[0] or {}), **state[1]}
            target.fields.update(state if isinstance(state, dict) else {"state": state})
        elif not isinstance(target, dict | list):
            raise self.refuse(f"it sets the state of a {type(target).__name__}")

    def _long(self) -> None:
        count = self._byte()
        if count > MAX_DIGITS:
            raise self.refuse(f"a whole number has {count} bytes")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    def _persistent(self) -> None:
        self._push(self.stored(self._pop()))

    def _stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)


def _keep(value: Callable[[Interpreter], Any]) -> Callable[[Interpreter], None]:
    return lambda machine: machine._push(value(machine))


_STOP = ord(".")
# Numbers are those of the protocols 2 to 4.
_OPERATIONS: dict[int, Callable[[Interpreter], Any]] = {
    0x80: lambda m: m._byte(),  # protocol
    0x95: lambda m: m._take(8),  # length of a frame
    ord("("): _keep(lambda m: _MARK),
    ord("0"): lambda m: m._pop(),
    ord("1"): lambda m: m._marked(),
    ord("N"): _keep(lambda m: None),
    0x88: _keep(lambda m: True),
    0x89: _keep(lambda m: False),
    ord("J"): _keep(lambda m: m._number("<i")),
    ord("K"): _keep(lambda m: m._byte()),
    ord("M"): _keep(lambda m: m._number("<H")),
    0x8A: lambda m: m._long(),
    ord("G"): _keep(lambda m: m._number(">d")),
    ord("X"): _keep(lambda m: m._text(m._number("<I"))),
    0x8C: _keep(lambda m: m._text(m._byte())),
    0x8D: _keep(lambda m: m._text(m._number("<Q"))),
    ord("U"): _keep(lambda m: m._text(m._byte())),
    ord("T"): _keep(lambda m: m._text(m._number("<I"))),
    ord("B"): _keep(lambda m: bytes(m._take(m._number("<I")))),
    ord("C"): _keep(lambda m: bytes(m._take(m._byte()))),
    ord("]"): _keep(lambda m: []),
    ord("}"): _keep(lambda m: {}),
    ord(")"): _keep(lambda m: ()),
    0x8F: _keep(lambda m: []),  # a set, kept as a list: its members are not hashed
    0x90: lambda m: m._append(m._marked()),
    ord("a"): lambda m: m._append([m._pop()]),
    ord("e"): lambda m: m._append(m._marked()),
    ord("l"): _keep(lambda m: m._marked()),
    ord("t"): _keep(lambda m: tuple(m._marked())),
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("s"): lambda m: m._set_items([m._pop(), m._pop()][::-1]),
    ord("u"): lambda m: m._set_items(m._marked()),
    ord("q"): lambda m: m._remember(m._byte()),
    ord("r"): lambda m: m._remember(m._number("<I")),
    0x94: lambda m: m._remember(len(m.memo)),
    ord("h"): lambda m: m._recall(m._byte()),
    ord("j"): lambda m: m._recall(m._number("<I")),
    ord("c"): lambda m: m._name(m._line(), m._line()),
    0x93: lambda m: m._stack_name(),
    ord("R"): lambda m: m._call(),
    0x81: lambda m: m._new(2),
    0x92: lambda m: m._new(3),
    ord("b"): lambda m: m._build(),
    ord("Q"): lambda m: m._persistent(),
}
