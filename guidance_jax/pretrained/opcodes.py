"""An interpreter for pickles of tensors that calls nothing the pickle names.

Python's own unpickler calls, imports and allocates whatever a file asks for. This one accepts only a few names and calls none
of them. It makes no more objects than a file of that size can need.
"""

import pickle
import pickletools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
DICTIONARY = "collections.OrderedDict"
OTHER = "torch._utils._rebuild_tensor_v3"
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
BESIDE = {
    *("torch.Size", "torch.device", "collections.Counter", "builtins.set", "__builtin__.set"),
    *("builtins.complex", "__builtin__.complex", "__builtin__.frozenset", "builtins.frozenset"),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "_codecs.encode"),
    *(
        f"torch.{name}"
        for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    ),
}
"""Names that occur beside the tensors of checkpoints. They are skipped, and their objects are never made."""
FREE, EACH = 4096, 4
"""The limit on the objects of a pickle: FREE, plus one per EACH bytes of the file."""


class Global(NamedTuple):
    """A name in the pickle.

    Args:
      name: The module and the name, joined by a dot.
    """

    name: str


class Storage(NamedTuple):
    """Numbers of one dtype in a file.

    Args:
      key: The name of the file.
      dtype: The dtype of the numbers.
      size: The number of values.
    """

    key: str
    dtype: np.dtype
    size: int


class Strided(NamedTuple):
    """A tensor as a view of a storage.

    Args:
      storage: The storage with the numbers.
      offset: The index of the first number.
      shape: The shape.
      strides: The stride of each axis, in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Beside(NamedTuple):
    """An object that is not a tensor and is not made.

    Args:
      name: The name of its class or function.
    """

    name: str


MARK = object()
"""The marker on the stack where a group of values begins."""


def followed(pickled: bytes, size: int) -> Any:
    """The content of a pickle, made of dictionaries, lists, tuples, `Strided`, scalars, strings and `Beside`.

    Args:
      pickled: The instructions.
      size: The size of the whole file, in bytes.

    Raises:
      pickle.UnpicklingError: If it asks for any other name, or is not a pickle.
      ValueError: If an instruction is damaged.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    made, most = 0, FREE + size // EACH
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name == "STOP":
            return _last(stack)
        if name in MAKING:
            made += 1
            if made > most:
                raise pickle.UnpicklingError(f"it holds more than {most} objects, too many for its size")
        if name in SCALARS:
            stack.append(SCALARS[name] if argument is None else argument)
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            stack.append(MARK)
        elif name in KEEPING:
            memo[len(memo) if argument is None else argument] = _last(stack)
        elif name in FETCHING:
            if argument not in memo:
                raise pickle.UnpicklingError(f"it refers to its object {argument}, which does not exist")
            stack.append(memo[argument])
        elif name in WITH_MARK:
            WITH_MARK[name](stack, _since_mark(stack))
        elif name in TAKING:
            count, make = TAKING[name]
            values = stack[-count:]
            if len(values) < count or MARK in values:
                raise pickle.UnpicklingError(f"its instruction {name} lacks its operands")
            del stack[-count:]
            make(stack, *values)
        elif name == "GLOBAL":
            stack.append(_named(*str(argument).split(" ", 1)))
        elif name not in ("PROTO", "FRAME"):
            raise pickle.UnpicklingError(f"it asks for the instruction {name}")
    raise pickle.UnpicklingError("it has no end")


def _last(stack: list[Any]) -> Any:
    if not stack or stack[-1] is MARK:
        raise pickle.UnpicklingError("it is damaged: an instruction lacks its operands")
    return stack[-1]


def _since_mark(stack: list[Any]) -> list[Any]:
    for i in range(len(stack) - 1, -1, -1):
        if stack[i] is MARK:
            values = stack[i + 1 :]
            del stack[i:]
            return values
    raise pickle.UnpicklingError("it is damaged: an instruction lacks its mark")


def _named(module: str, name: str) -> Global:
    whole = f"{module}.{name}"
    if whole in (DICTIONARY, TENSOR, PARAMETER) or whole in BESIDE or (module == "torch" and name in DTYPES):
        return Global(whole)
    hint = ", for float8 or another unsupported dtype: save it in float16 or float32" if whole == OTHER else ""
    raise pickle.UnpicklingError(f"it asks for {whole:.200}{hint}")


def _by_stack(stack: list[Any], module: Any, name: Any) -> None:
    stack.append(_named(_text(module), _text(name)))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise pickle.UnpicklingError(f"it has a {type(value).__name__} as a name")
    return value


def _called(stack: list[Any], function: Any, arguments: Any) -> None:
    """The result of a call in the pickle, made here without the call."""
    if type(function) is not Global or type(arguments) is not tuple:
        raise pickle.UnpicklingError(f"it calls a {type(function).__name__}")
    if function.name == DICTIONARY:
        pairs = arguments[0] if arguments else []
        if (
            len(arguments) > 1
            or type(pairs) is not list
            or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs)
        ):
            raise pickle.UnpicklingError("it has an ordered dictionary that is not made of pairs")
        stack.append({})
        _set(stack, [value for pair in pairs for value in pair])
    elif function.name == TENSOR:
        stack.append(_strided(*arguments[:4]) if len(arguments) > 3 else _refuse("a tensor without its shape"))
    elif function.name == PARAMETER:
        found = arguments[0] if arguments else None
        stack.append(found if type(found) is Strided else _refuse("a parameter that is not a tensor"))
    elif function.name in BESIDE:
        stack.append(Beside(function.name))
    else:
        _refuse(f"a call of {function.name}")


def _refuse(what: str) -> Any:
    raise pickle.UnpicklingError(f"it has {what}")


def _strided(storage: Any, offset: Any, shape: Any, strides: Any) -> Strided:
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        _refuse("a tensor that is not in a storage")
    known = all(type(number) is int and abs(number) < 2**63 for number in (offset, *shape, *strides))
    if len(shape) != len(strides) or len(shape) > 32 or not known:
        _refuse("a tensor whose shape is not at most 32 whole numbers with one stride each")
    return Strided(storage, offset, shape, strides)


def _stored(stack: list[Any], reference: Any) -> None:
    known: list[Any] = list(reference[:5]) if type(reference) is tuple and len(reference) > 4 else [None] * 5
    kind, dtype, key, _, size = known
    if type(kind) is not str or kind != "storage":
        _refuse("a reference that is not a storage")
    name = dtype.name.removeprefix("torch.") if type(dtype) is Global else ""
    if name not in DTYPES or type(key) is not str:
        _refuse("a storage of an unknown kind")
    if type(size) is not int or abs(size) >= 2**63:
        _refuse("a storage of an unknown size")
    stack.append(Storage(key, np.dtype(DTYPES[name]), size))


def _set(stack: list[Any], values: list[Any]) -> None:
    target = _last(stack)
    if type(target) is not dict or len(values) % 2:
        _refuse(f"items for a {type(target).__name__}")
    for name, value in zip(values[::2], values[1::2], strict=True):
        if type(name) not in (str, int, float, bool, type(None)):
            _refuse(f"a dictionary with a {type(name).__name__} as a name")
        if name in target:
            _refuse(f"a dictionary with {name!r:.100} twice")
        target[name] = value


def _add(stack: list[Any], values: Iterable[Any]) -> None:
    target = _last(stack)
    if type(target) is not list:
        _refuse(f"values for a {type(target).__name__}")
    target.extend(values)


def _built(stack: list[Any], _: Any) -> None:
    """Skips the state of an object, such as `_metadata` of a state dict. No object here has a state."""
    if type(target := _last(stack)) not in (dict, Beside):
        _refuse(f"a state of a {type(target).__name__}")


def _paired(stack: list[Any], values: list[Any]) -> None:
    stack.append({})
    _set(stack, values)


INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
STRINGS = (
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
SCALARS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, **dict.fromkeys((*INTEGERS, *STRINGS))}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
KEEPING = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
FETCHING = {"GET", "BINGET", "LONG_BINGET"}
WITH_MARK: dict[str, Callable[[list[Any], list[Any]], None]] = {
    "LIST": lambda stack, values: stack.append(values),
    "TUPLE": lambda stack, values: stack.append(tuple(values)),
    "FROZENSET": lambda stack, values: stack.append(tuple(values)),
    "DICT": _paired,
    "APPENDS": _add,
    "ADDITEMS": _add,
    "SETITEMS": _set,
    "POP_MARK": lambda stack, values: None,
}
TAKING: dict[str, tuple[int, Callable[..., None]]] = {
    "POP": (1, lambda stack, value: None),
    "TUPLE1": (1, lambda stack, *values: stack.append(values)),
    "TUPLE2": (2, lambda stack, *values: stack.append(values)),
    "TUPLE3": (3, lambda stack, *values: stack.append(values)),
    "APPEND": (1, lambda stack, value: _add(stack, (value,))),
    "SETITEM": (2, lambda stack, *values: _set(stack, list(values))),
    "REDUCE": (2, _called),
    "BUILD": (1, _built),
    "BINPERSID": (1, _stored),
    "STACK_GLOBAL": (2, _by_stack),
}
MAKING = KEEPING | (EMPTY.keys() - {"EMPTY_TUPLE"}) | (WITH_MARK.keys() & {"LIST", "TUPLE", "FROZENSET", "DICT"})
MAKING |= {"TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "BINPERSID", "GLOBAL", "STACK_GLOBAL"}
"""The instructions that take memory."""
