"""What a first command says on a machine whose Python has not the packages: one line, and no traceback.

Imports nothing but the standard library, as it is needed where nothing else is installed. Knows nothing of deployments.
"""

import sys
from typing import NoReturn

LEAST_PYTHON = (3, 11)  # diffusers 0.42 asks for it, and the helper's code has the same floor


def explain_missing(failure: ImportError, script: str, target: str, description: str = "") -> NoReturn:
    """End the process with the command that installs what `failure` says is missing; --help is answered first.

    `script`: the command that was started; `target`: what make installs its packages by; `description`: for the --help
    of `deploy`. Raises `failure` again where a module of this repository itself cannot be imported.
    """
    name = (failure.name or "").partition(".")[0]
    if sys.version_info < LEAST_PYTHON:
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"{script} needs Python 3.11 or later, and this is {found}. `make {target}` looks for a later one.")
    if name.startswith("qwen_") or not isinstance(failure, ModuleNotFoundError):
        raise failure
    if description and {"-h", "--help"} & set(sys.argv[1:]):
        from .options import COMMANDS, read_options

        arguments = sys.argv[1:]
        command = arguments.pop(0) if arguments[0] in COMMANDS else "deploy"
        read_options(command, arguments, description)
    sys.exit(
        f"{script} needs the package {name}, which this Python has not. Run `make {target}`, and then "
        f"`.venv/bin/python {' '.join([script, *sys.argv[1:2]])}`."
    )
