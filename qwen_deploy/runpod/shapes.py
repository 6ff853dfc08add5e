"""Whether an answer of RunPod has the shape that `schemas` declares, so that another one ends in a sentence.

Fields that nobody reads are not looked at, and of mappings whose names are RunPod's only that they are mappings: RunPod
may add what it likes. Knows nothing of HTTP.
"""

from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from ..errors import ApiError
from .schemas import JsonObject

Shape = TypeVar("Shape")


def read_shape(value: object, kind: type[Shape], subject: str) -> Shape:
    """The value as `kind`, a TypedDict, without its optional fields that hold null.

    Raises `ApiError` that names the first field which is missing or of another type.
    """
    if found := mismatch(value, kind):
        raise ApiError(f"RunPod answered {subject} in a shape that is not its API's: {found}.", 200)
    optional = cast(Any, kind).__optional_keys__
    fields = cast(JsonObject, value)
    return cast(Shape, {name: held for name, held in fields.items() if held is not None or name not in optional})


def mismatch(value: object, hint: object, path: str = "the answer") -> str | None:
    """What of the value is not as the type says, in words; None where it fits."""
    if is_typeddict(hint):
        return mapping_mismatch(value, cast(type, hint), path)
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        found = [mismatch(value, part, path) for part in get_args(hint)]
        return None if None in found else found[0]
    if origin is list and isinstance(value, list):
        items = enumerate(cast(list[object], value))
        return next(
            (words for at, item in items if (words := mismatch(item, get_args(hint)[0], f"{path}[{at}]"))), None
        )
    if hint is object:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    wanted = cast(type, origin or hint)
    if is_number if issubclass(wanted, int | float) and wanted is not bool else isinstance(value, wanted):
        return None
    return f"{path} is {type(value).__name__}"


def mapping_mismatch(value: object, kind: type, path: str) -> str | None:
    if not isinstance(value, Mapping):
        return f"{path} is {type(value).__name__}"
    fields, optional = cast(JsonObject, value), cast(Any, kind).__optional_keys__
    for name, hint in get_type_hints(kind).items():
        place = name if path == "the answer" else f"{path}.{name}"
        if name in optional and fields.get(name) is None:
            continue
        if name not in fields:
            return f"{place} is missing"
        if words := mismatch(fields[name], hint, place):
            return words
    return None
