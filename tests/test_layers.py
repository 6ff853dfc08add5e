"""Who may import whom: seven layers, thirteen packages, no circle; sockets and torch only where they are named here.

Reads the imports of every module as text, those inside functions and those for types too.
"""

import ast
import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The lowest layer first. A package may import from its own and from lower layers' packages, never from its neighbours'.
LAYERS = (
    (
        "errors",
        "settings",
        "model_settings",
        "preset_settings",
        "delivery_settings",
        "check_settings",
        "log",
        "stopwatch",
        "whole_file",
    ),
    ("jobs", "network", "memory", "model"),
    ("pictures", "serving", "checkpoints", "speed", "ranks"),
    ("lora", "weights"),
    ("loading",),
    ("drawing",),
    ("prepare", "check_card", "second_rank"),
)
LAYER = {place: number for number, places in enumerate(LAYERS) for place in places}

# A module: one idea. A face, which holds a docstring alone, may be shorter.
FEWEST_LINES, MOST_LINES = 30, 350
GROUND = LAYERS[0]
PARTS_OF_SETTINGS = {"model_settings", "preset_settings", "delivery_settings", "check_settings"}

SOCKETS = {"socket", "http", "requests", "aiohttp", "boto3", "botocore", "urllib3", "httpx", "httpx2", "runpod"}
HUB_CALLS = {"HfApi", "hf_hub_download", "snapshot_download"}
OPENS_SOCKETS = {"network", "checkpoints.remote", "serving.progress"}

TENSORS = {"torch", "diffusers", "transformers", "accelerate", "peft", "torchao", "bitsandbytes"}
TOUCHES_TENSORS = {
    "model", "speed", "lora", "weights", "ranks", "loading", "drawing", "memory.card", "memory.cuda", "prepare",
    "check_card", "second_rank",
}  # fmt: skip


def modules(package: str) -> dict[str, Path]:
    """By name below the package, with dots: its modules but for faces that hold a docstring alone."""
    found = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT / package).with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = file
    return found


def imports(package: str, name: str, file: Path) -> set[str]:
    """Every module that the file imports, with its whole name; `from a import b` counts as a.b."""
    found = set()
    here = [package, *name.split(".")] if file.name != "__init__.py" else [package, *name.split("."), "_"]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = here[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


WORKER = modules("qwen_worker")
IMPORTS = {name: imports("qwen_worker", name, file) for name, file in WORKER.items()}


def inner(imported: str) -> str | None:
    """The module of the worker that an import leads to."""
    parts = imported.split(".")
    if parts[0] != "qwen_worker":
        return None
    names = [".".join(parts[1:count]) for count in range(len(parts), 1, -1)]
    return next((name for name in names if name in WORKER), "")


def is_named(name: str, places: set[str]) -> bool:
    return name in places or name.partition(".")[0] in places


def test_the_playground_imports_nothing_of_the_repository_but_itself():
    """It speaks to an endpoint by HTTP alone, and runs in an environment that has none of the worker's libraries."""
    for name, file in modules("qwen_play").items():
        for imported in imports("qwen_play", name, file):
            first = imported.partition(".")[0]
            assert first == "qwen_play" or not first.startswith(("qwen_", "runpod")), f"{name}: {imported}"
            assert first != "gradio" or name in ("page", "wiring", "serving"), f"{name}: {imported}"


def test_every_package_has_its_layer():
    assert {name.partition(".")[0] for name in WORKER} - {""} == set(LAYER)


def test_the_drawing_of_the_packages_is_these_layers():
    """A name stands between its layer's number and what it is for, which begins after two spaces or more."""
    page = (ROOT / "QWEN_IMPLEMENTATION.md").read_text()
    drawn = sorted((int(number), name) for number, name in re.findall(r"^(\d)  (\w+)  ", page, re.M))
    in_code = {(number, name) for number, names in enumerate(LAYERS, 1) for name in set(names) - PARTS_OF_SETTINGS}
    assert drawn == sorted(in_code)
    assert (
        "`model_settings.py`, `preset_settings.py`, `delivery_settings.py` and `check_settings.py` are parts of" in page
    )


@pytest.mark.parametrize("name", sorted(set(WORKER) - {""}))
def test_a_module_imports_from_its_own_package_and_from_lower_layers(name):
    own = name.partition(".")[0]
    for imported in filter(None, map(inner, IMPORTS[name])):
        place = imported.partition(".")[0]
        assert place == own or LAYER[place] < LAYER[own] or LAYER[own] == 0 == LAYER[place], f"{name}: {imported}"


def test_no_module_imports_itself_by_way_of_others():
    """A round of a depth-first walk that meets a module which is still open is a circle."""
    over: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in over:
            for imported in filter(None, map(inner, IMPORTS[name])):
                walk(imported, (*way, name))
            over.add(name)

    for name in WORKER:
        walk(name, ())


@pytest.mark.parametrize("name", sorted(WORKER))
def test_only_the_named_modules_open_sockets(name):
    if is_named(name, OPENS_SOCKETS):
        return
    for imported in IMPORTS[name]:
        first, _, last = imported.partition(".")
        assert first not in SOCKETS, f"{name}: {imported}"
        assert first != "huggingface_hub" or last.rpartition(".")[2] not in HUB_CALLS, f"{name}: {imported}"


@pytest.mark.parametrize("name", sorted(WORKER))
def test_only_the_named_modules_touch_tensors(name):
    if not is_named(name, TOUCHES_TENSORS):
        assert not {one.partition(".")[0] for one in IMPORTS[name]} & TENSORS


def test_the_packages_know_nothing_of_the_handler():
    for package in ("qwen_worker", "qwen_deploy", "qwen_bake", "qwen_local", "qwen_play"):
        for name, file in modules(package).items():
            firsts = {one.partition(".")[0] for one in imports(package, name, file)}
            assert "runpod_handler" not in firsts, f"{package}.{name}"
            assert package != "qwen_worker" or not firsts & {"qwen_deploy", "qwen_bake", "qwen_local"}, name


def test_the_endpoint_at_home_knows_its_workers_by_their_process_alone():
    """It starts them and talks HTTP with them: it imports neither the worker nor what the worker computes with."""
    for name, file in modules("qwen_local").items():
        firsts = {one.partition(".")[0] for one in imports("qwen_local", name, file)}
        assert not firsts & (TENSORS | {"qwen_worker", "qwen_deploy", "runpod", "PIL", "tests"}), name


PACKAGES = ["qwen_worker", "qwen_deploy", "qwen_bake", "qwen_local", "qwen_play", "qwen_tiny", "benchmarks"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_module_has_the_length_of_one_idea(package):
    for name, file in modules(package).items():
        lines = len(file.read_text().splitlines())
        assert lines <= MOST_LINES, f"{name}: {lines}"
        assert lines >= FEWEST_LINES or file.name == "__init__.py" or name in GROUND, f"{name}: {lines}"


def test_every_module_says_what_it_is_for():
    for package, (name, file) in itertools.chain(
        (("qwen_worker", one) for one in WORKER.items()),
        (("qwen_deploy", one) for one in modules("qwen_deploy").items()),
        (("qwen_play", one) for one in modules("qwen_play").items()),
        (("qwen_local", one) for one in modules("qwen_local").items()),
    ):
        assert ast.get_docstring(ast.parse(file.read_text())), f"{package}.{name}"
