"""The fields of the null card that this process has: `native/null_card.h` says what each of them is."""

import ctypes
import math

library = ctypes.CDLL(None)  # preloaded: its names are the process's own
if hasattr(library, "null_card_get"):
    library.null_card_get.restype = ctypes.c_double
    library.null_card_get.argtypes = [ctypes.c_char_p]
    library.null_card_set.argtypes = [ctypes.c_char_p, ctypes.c_double]


def read(name: str) -> int:
    """The field's value. Raises `KeyError` where there is none of that name."""
    value = library.null_card_get(name.encode())
    if math.isnan(value):
        raise KeyError(name)
    return int(value)


def put(**values: float) -> None:
    """Set fields by name. Raises `KeyError` where there is none of a name."""
    for name, value in values.items():
        if library.null_card_set(name.encode(), value):
            raise KeyError(name)


def reset_peaks() -> None:
    """Peaks begin anew at what is taken now."""
    put(used_peak=read("used"), pinned_peak=read("pinned"))
