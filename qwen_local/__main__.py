"""`python -m qwen_local`: the endpoint at home, until Ctrl-C or SIGTERM. `make serve` starts it."""

import argparse
import asyncio
import errno
import sys

from .options import read_options


def main() -> None:
    options = read_options(sys.argv[1:])
    try:
        from .server import listen, serve
    except ModuleNotFoundError as missing:
        sys.exit(
            f"The package {missing.name} is not installed for {sys.executable}. Use `make serve`, which installs "
            "what is needed in .venv."
        )
    try:
        listener = listen(options.host, options.port)
    except OSError as error:
        sys.exit(why_not(options, error))
    with listener:
        asyncio.run(serve(options, listener))


def why_not(options: argparse.Namespace, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = options.port + 1 if options.port < 65535 else 8000
        return (
            f"Port {options.port} is taken by another program. Choose another one with --port {other} "
            f"(make serve ARGS='--port {other}'), or a free one with --port 0."
        )
    if error.errno == errno.EACCES:
        return f"Port {options.port} may not be used by this user. Choose one above 1023 with --port."
    return f"--host {options.host} is no address of this machine that can be listened at ({error.strerror or error})."


if __name__ == "__main__":
    main()
