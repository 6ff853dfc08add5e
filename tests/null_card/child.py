"""A process with a null card: it imports what takes long once, then forks one for each call and answers its status.

Started by `card.Processes`, an order a line on its standard input. Imports torch: no test process does by it.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from functools import reduce
from pathlib import Path
from typing import Any

from . import fields
from .card import Card

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main() -> None:
    end_with_parent()
    import_libraries()
    for line in sys.stdin:
        order = json.loads(line)
        process = os.fork()
        if not process:
            obey(order)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def end_with_parent() -> None:
    """Have this process end when the one that started it does, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def import_libraries() -> None:
    """Import, before any fork, the longest of what calls import, as far as that opens no context on the card.

    The models' classes are left to the calls: torchao and bitsandbytes, which come with them, look at the card.
    """
    import diffusers  # noqa: F401
    import torch
    import torch._dynamo
    import torch.distributed.tensor
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    if torch.cuda.is_initialized():
        raise RuntimeError("an import has opened the card's context: no process that is forked from here can have one")


def obey(order: dict[str, Any]) -> None:
    """Call the function that was asked for, and end the process."""
    end_with_parent()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    failed = 1
    try:
        card = Card(**order["card"] | {"capability": tuple(order["card"]["capability"])})
        os.environ["NULL_CARD_NAME"] = card.name
        fields.put(**card.values())
        module, _, name = order["function"].partition(":")
        function = reduce(getattr, name.split("."), importlib.import_module(module))
        Path(order["result"]).write_text(json.dumps(function(card, *order["arguments"])))
        failed = 0
    except BaseException:  # noqa: BLE001  whatever it is, the caller reads of it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(failed)


if __name__ == "__main__":
    main()
