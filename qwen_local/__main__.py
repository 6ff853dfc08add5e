"""`python -m qwen_local`: the endpoint at home, until Ctrl-C or SIGTERM. `make serve` starts it."""

import sys


def main() -> None:
    try:
        from .server import run
    except ModuleNotFoundError as missing:
        sys.exit(
            f"The package {missing.name} is not installed for {sys.executable}. Use `make serve`, which installs "
            "what is needed in .venv, or start .venv/bin/python -m qwen_local."
        )
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
