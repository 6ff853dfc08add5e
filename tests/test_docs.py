"""The documentation is held to the code: links, settings, fields, error codes, examples, patches."""

import argparse
import ast
import fnmatch
import functools
import json
import re
import shlex
import subprocess

import pytest

from qwen_deploy import options, settings_page, storage_options
from qwen_worker.errors import CODES, BeyondSchema
from qwen_worker.jobs.aliases import ALIASES, GATHERED, READERS
from qwen_worker.jobs.field_types import IMAGE_RULE, Lora
from qwen_worker.jobs.named_sizes import RATIOS, TABLES
from qwen_worker.jobs.openai_images import call_of
from qwen_worker.jobs.other_apis import NOT_HERE
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import Presets
from qwen_worker.jobs.refusals import public_fields, rule_of
from qwen_worker.jobs.request import IMAGE_FIELDS, Drawing, Edit
from qwen_worker.jobs.tasks import TASKS
from qwen_worker.memory import placement
from qwen_worker.network import bucket
from qwen_worker.settings import Settings

from .conftest import ROOT, TINY_WARNING, run
from .memory.test_placement import ADA, BLACKWELL, BOTH, GB, HOPPER, card

FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
JOBS, PATCHES, DEPLOYING = "docs/jobs.md", "docs/patches.md", "docs/deploying.md"
GROUPS = {
    "all": [task for task, model in TASKS.items() if issubclass(model, Drawing)],
    "edits": [task for task, model in TASKS.items() if issubclass(model, Edit)],
}
# In replies: differs from one run to the next. What the pages cut short ends in dots.
VOLATILE = (
    "processing_time", "timings", "worker_version", "created", "predict_time", "delayTime", "executionTime",
)  # fmt: skip
MODELS = {"generate": "tiny-qwen-image/generate", "edit": "tiny-qwen-image/edit"}


def tracked():
    """Every file that git knows or would take, by its path from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in found.stdout.splitlines() if (ROOT / name).is_file()]


def pages():
    """Every Markdown file of the working tree that git does not ignore, by its path from the root."""
    return sorted(name for name in tracked() if name.endswith(".md"))


def read(page):
    return (ROOT / page).read_text()


def prose(page):
    return FENCED.sub("", read(page))


def anchors(page):
    """The anchors that GitHub gives the page's headings."""
    found = []
    for title in HEADING.findall(prose(page)):
        plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        before = sum(re.fullmatch(rf"{anchor}(-\d+)?", one) is not None for one in found)
        found.append(f"{anchor}-{before}" if before else anchor)
    return found


def section(page, title):
    """What stands below a heading, up to the next one of its level or above."""
    level, rest = re.search(rf"^(#+) {title}\n(.*)", read(page), re.MULTILINE | re.DOTALL).groups()
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text, *header):
    """The rows of the table that has these first columns, as lists of cells."""
    start = text.index("| " + " | ".join(header) + " |")
    lines = text[start:].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def default_in(cell):
    """The default that a cell names: a value as code, or a word."""
    return code(cell)[0] if code(cell) else cell


def default_of(field):
    if field.is_required():
        return "required"
    return "none" if field.default in (None, (), "") else json.dumps(field.default)


def tree():
    """The paths of the README's tree, folders with a slash at their end; the prose begins after two spaces."""
    (block,) = (text for _, text in FENCED.findall(read("README.md")) if text.startswith("runpod_handler.py"))
    folder = ""
    for line in block.splitlines():
        indent, names = re.match(r"( *)(.+?)(?:   ?\s*\S.*)?$", line).groups()
        for name in names.split(", "):
            path = folder + name if indent else name
            yield path
            folder = name if not indent and name.endswith("/") else folder


def test_the_tree_of_the_readme_has_every_folder_and_no_other_name():
    names = list(tree())
    for name in names:
        assert list(ROOT.glob(name.rstrip("/"))), name
    files = tracked()
    tops = {name.partition("/")[0] + "/" * ("/" in name) for name in files}
    named = {name.partition("/")[0] + "/" * ("/" in name) for name in names}
    for top in tops - {"README.md"}:
        assert any(fnmatch.fnmatch(top, name) for name in named), top
    packages = {
        "/".join(name.split("/")[:2]) + "/" for name in files if re.fullmatch(r"qwen_\w+/\w+/__init__.py", name)
    }
    assert packages <= set(names)


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{link} in {page}"
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT)), f"{link} in {page}"


def test_the_page_of_settings_is_what_its_command_writes():
    written = settings_page.PAGE.read_text()
    assert written == settings_page.page(), "python -m qwen_deploy.settings_page writes it anew"


@pytest.mark.parametrize("page", pages())
def test_every_setting_that_a_page_names_is_one(page):
    named = set(re.findall(r"\b(?:QWEN|BUCKET)_[A-Z0-9_]*[A-Z0-9]\b(?!\.md)", read(page)))
    assert named <= set(Settings.model_fields)


def test_the_table_of_fields_has_every_field_with_its_limits_and_default():
    documented = {}
    for names, tasks, limits, default, _ in rows(read(JOBS), "field", "tasks", "limits", "default", "notes"):
        for name in code(names):
            for task in GROUPS.get(tasks) or code(tasks):
                assert (task, name) not in documented
                documented[task, name] = limits, default_in(default)
    models = {}
    for task in GROUPS["all"]:
        for name in public_fields(TASKS[task]):
            field = "images" if name in IMAGE_FIELDS else name
            rule = IMAGE_RULE if name in ("image", "image_url") else rule_of(TASKS[task], (field,))
            # An edit has either `images` or one of its two other names, and each row names the other way.
            other_way = {"image": "images", "image_url": "images", "images": "image"}
            required = TASKS[task].model_fields[field].is_required()
            default = (required and other_way.get(name)) or default_of(TASKS[task].model_fields[field])
            models[task, name] = rule, default
    assert documented == models


@pytest.mark.parametrize(("title", "model"), [("LoRAs", Lora), ("Delivery", bucket.S3Config)])
def test_the_tables_of_smaller_objects_have_every_field(title, model):
    documented = {
        name: (limits, default_in(default))
        for names, limits, default in rows(section(JOBS, title), "field", "limits", "default")
        for name in code(names)
    }
    fields = model.model_fields.items()
    assert documented == {name: (field.description, default_of(field)) for name, field in fields}


def test_the_table_of_other_names_has_every_alias():
    documented = {
        alias: code(name)[0] for names, name in rows(read(JOBS), "also called", "means") for alias in code(names)
    }
    assert documented == ALIASES


def test_the_table_of_named_sizes_is_the_worker_s():
    header = "ratio", "1K: Qwen-Image's own sizes", "2K: Qwen-Image-2.1's own sizes"
    found = [
        [*ratio.split(" ")[0].split(":"), *sizes] for ratio, *sizes in rows(section(JOBS, "Sizes by name"), *header)
    ]
    assert [int(width) / int(height) for width, height, *_ in found] == list(RATIOS)
    for column, table in enumerate(TABLES, 2):
        assert [line[column] for line in found] == ["{}x{}".format(*size) for size in TABLES[table]]


def test_every_field_of_other_apis_that_is_read_is_named():
    named = {span for title in ("Sizes by name", "Other clients' names") for span in code(section(JOBS, title))}
    not_here = {"layers", "workflow_inputs"}
    slips = {"input", "callback_url", "webhook_url", "webhookV2"}
    assert {*READERS, *GATHERED, *NOT_HERE} - not_here - slips <= named


def test_the_table_of_tasks_has_every_task():
    assert [code(task)[0] for task, _ in rows(read(JOBS), "`task`", "what it does")] == list(TASKS)


def test_the_list_of_what_the_schema_cannot_say_has_every_rule():
    assert re.findall(r"^- (.*)$", section(JOBS, "The schema"), re.MULTILINE) == list(BeyondSchema)


def test_the_table_of_errors_has_every_code():
    assert [code(name)[0] for name, *_ in rows(section(JOBS, "Errors"), "code", "what it means")] == list(CODES)


def command_lines(page):
    """The arguments of each call of the deploy helper in the page's shell blocks; dots stand for more of them."""
    shell = "\n".join(text for kind, text in FENCED.findall(read(page)) if kind == "bash").replace("\\\n", " ")
    lines = re.findall(r"^ *(?:\.venv/bin/)?python deploy_qwen\.py ?(.*)$", shell, re.MULTILINE)
    return [[word for word in shlex.split(line, comments=True) if word != "..."] for line in lines]


@pytest.mark.parametrize("page", ["README.md", DEPLOYING])
def test_every_call_of_the_deploy_helper_is_understood(page):
    calls = command_lines(page)
    assert calls
    for name, *arguments in calls:
        known = name in options.COMMANDS
        parser = options.command_parser(name) if known else options.parser("")
        parser.parse_args(arguments if known else [name, *arguments])  # else it ends the process


def test_the_page_of_deploying_is_short_before_its_details_and_needs_one_interpreter():
    page = read(DEPLOYING)
    assert page.partition("\n## More\n")[0].count("\n") < 200
    calls = re.findall(r"^ *(\S*python) deploy_qwen", page, re.MULTILINE)
    assert calls and set(calls) == {".venv/bin/python"} and "pip install" not in page


def test_the_page_of_deploying_says_what_callers_get_if_a_model_cannot_be_loaded():
    text = section(DEPLOYING, "If a model cannot be loaded")
    assert "stand-in" in text and "QWEN_FALLBACK=forbid" in text


def test_every_option_of_the_deploy_helper_that_is_named_is_one():
    parsers = [options.parser(""), *(options.command_parser(name) for name in options.COMMANDS if name != "deploy")]
    for name in storage_options.KINDS:  # actions have parsers of their own
        parsers.append(argparse.ArgumentParser())
        storage_options.add_options(name, parsers[-1])
    offered = {option for one in parsers for option in re.findall(r"--[a-z][a-z-]+", one.format_help())}
    named = {found[0] for span in code(prose(DEPLOYING)) for found in [re.match(r"--[a-z-]+", span)] if found}
    assert named and named <= offered


def examples(page):
    """The JSON blocks of a page, in order."""
    return [json.loads(text) for kind, text in FENCED.findall(read(page)) if kind == "json"]


@pytest.mark.parametrize("page", ["README.md", JOBS])
def test_every_job_of_the_examples_is_one(page):
    lora = "ORG/NAME/FILE-8steps.safetensors"
    settings = Settings(QWEN_IMAGE_FAST_LORA=lora, QWEN_EDIT_FAST_LORA=lora, QWEN_CONTROLNET="ORG/NAME")
    jobs = [one for one in examples(page) if "input" in one]
    assert jobs
    for job in jobs:
        call = call_of(job["input"], MODELS)
        if "num_inference_steps" in job["input"] and job["input"]["num_inference_steps"] > 100:
            continue  # shown for its refusal, which is compared below
        assert parse(call.fields() if call else job["input"], "job", Presets(settings))
        if "s3Config" in job:
            assert bucket.bucket_from_job(job["s3Config"], settings)


def replies():
    """Every job of the examples that a reply follows, with the reply; the README's job is a file."""
    found = [(json.loads(read("test_input.json")), examples("README.md")[0]["output"])]
    blocks = examples(JOBS)
    for job, reply in zip(blocks, blocks[1:], strict=False):
        if "input" in job and not {"input", "stage"} & set(reply):
            found.append((job, reply))
    return found


@pytest.mark.parametrize(("job", "shown"), replies())
def test_a_reply_of_the_examples_is_what_comes_back(warm_worker, job, shown):
    posted = run(warm_worker, job["input"])
    assert_shown(shown, {"error": posted["error"]} if "error" in posted else posted["output"])


def assert_shown(shown, found):
    """A reply as a page shows it: with the same fields, and the same values where these do not differ by themselves."""
    if isinstance(shown, dict):
        if "warnings" not in shown and found.get("warnings") == [TINY_WARNING]:  # pages are about any checkpoint
            found = {name: value for name, value in found.items() if name != "warnings"}
        assert set(shown) == set(found)
        for name in set(shown) - set(VOLATILE):
            assert_shown(shown[name], found[name])
        if "timings" in shown:
            assert set(shown["timings"]) == set(found["timings"])
    elif isinstance(shown, list):
        assert len(shown) == len(found)
        for one, other in zip(shown, found, strict=True):
            assert_shown(one, other)
    elif shown == "...":  # left out whole
        return
    elif isinstance(shown, str) and shown.endswith("..."):
        assert found.startswith(shown.removesuffix("..."))
    else:
        assert shown == found


def sources():
    return [*sorted((ROOT / "qwen_worker").rglob("*.py")), ROOT / "runpod_handler.py"]


def private_names(tree):
    """Names with one leading underscore that a module reads off others, imports, or sets in a class of theirs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "os"):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
        elif isinstance(node, ast.ClassDef):
            yield from (one.id for part in node.body if isinstance(part, ast.Assign) for one in part.targets)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            yield getattr(node.args[1], "value", None)


def is_private(name):
    return isinstance(name, str) and re.fullmatch(r"_[A-Za-z]\w*", name) is not None


def test_the_page_of_patches_names_every_private_name_that_is_used():
    used = {name for file in sources() for name in private_names(ast.parse(file.read_text())) if is_private(name)}
    named = set(re.findall(r"\b_[A-Za-z]\w*", read(PATCHES)))
    assert used and used <= named


def test_the_page_of_patches_names_nothing_that_is_gone():
    patches = read(PATCHES).partition("## Facts")[0]
    text = "\n".join(file.read_text() for file in sources())
    named = {part for span in code(patches) for part in re.split(r"[.=()]", span) if is_private(part)}
    assert named and {name for name in named if name not in text} == set()


def test_what_holds_the_patches_runs_on_the_oldest_releases_too():
    """The patches of torch and what stands on it; the other libraries have one release, which is pinned."""
    named = set(re.findall(r"`(test_\w+)`", read(PATCHES).partition("## RunPod")[0]))
    text = re.search(r"OLDEST_TESTS := (.*?)\n\n", read("Makefile"), re.DOTALL)[1].replace("\\", "")
    for place in text.split():
        path, _, only = place.partition("::")
        files = (ROOT / path).rglob("test_*.py") if (ROOT / path).is_dir() else [ROOT / path]
        defined = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
        assert not only or only in defined, place
        named -= {only} if only else defined
    assert named == set()


def test_the_plans_of_the_page_are_the_worker_s():
    """By their figures: weights on the card, peak, pinned RAM; for both models and 128 GB of RAM."""
    table = (
        read("docs/operating.md")
        .partition("For both models these are the plans:")[2]
        .partition("The table is for 128 GB")[0]
    )
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")][2:]
    cards = {16: ADA, 24: ADA, 32: BLACKWELL, 48: ADA, 80: HOPPER, 141: HOPPER}
    assert [int(row[0].split()[0]) for row in rows] == list(cards)
    for row, (gigabytes, capability) in zip(rows, cards.items(), strict=True):
        plan = placement.plan(BOTH, card(gigabytes, capability, ram=128))
        figures = plan.weight_bytes, plan.peak_bytes(1024, 1024, 1), plan.pinned_bytes
        assert [float(cell.split()[0]) for cell in row[3:]] == [round(figure / GB, 1) for figure in figures], plan


def test_the_plans_with_little_ram_are_those_that_the_deploy_helper_counts_with():
    """With the RAM that the helper assumes: another plan for each row, and for no larger card."""
    ram = options.parser("").parse_args([]).ram_gb
    assert all(f" {ram} GB" in read(page) and "`--ram-gb`" in read(page) for page in (DEPLOYING, "docs/operating.md"))
    page = read("docs/operating.md").partition("these cards get another plan")[2].partition("*Resident*")[0]
    table = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")][2:]
    cards = {16: ADA, 24: ADA, 32: BLACKWELL, 48: ADA, 80: HOPPER, 96: BLACKWELL, 141: HOPPER}
    plans, rich = (
        {size: placement.plan(BOTH, card(size, kind, ram=gigabytes)) for size, kind in cards.items()}
        for gigabytes in (ram, 128)
    )
    kinds = {
        size: {(plan.precision, plan.swapped, plan.text_encoder) for plan in (plans[size], rich[size])}
        for size in cards
    }
    differing = [size for size in cards if len(kinds[size]) > 1]
    assert [int(row[0].split()[0]) for row in table] == differing
    for (_, transformers, text_encoder), plan in zip(table, plans.values(), strict=False):
        assert transformers.lower().startswith(plan.precision.value) and plan.text_encoder == text_encoder
        assert plan.swapped == ("take turns" in transformers)


def test_the_table_of_injected_faults_is_what_the_worker_answered():
    section_text = section("docs/operating.md", "When an optimisation fails")
    table = rows(section_text, "the job that meets the fault gets", "the next job gets", "faults")
    met = json.loads(read("benchmarks/results/injected_faults.json"))["faults"]
    kinds = ["a picture", "out_of_memory: ", "internal: ", "a stand-in: "]
    counted = [sum(row["first reply"].startswith(kind) for row in met) for kind in kinds]
    assert [int(count) for *_, count in table] == counted
    assert all(first.strip("`").startswith(kind.strip(": ")) for (first, *_), kind in zip(table, kinds, strict=True))
    named = re.search(r"cannot run either: (.*?)\.", section_text, re.DOTALL)[1]
    assert named.replace("\n", " ").split(", ") == [row["fault"] for row in met if row["stock"] != "runs"]


def test_the_page_of_patches_names_modules_that_are_there():
    modules = set(re.findall(r"^\| `([a-z]+/\w+)` \|", read(PATCHES), re.MULTILINE))
    assert modules and {name for name in modules if not (ROOT / f"qwen_worker/{name}.py").is_file()} == set()


@functools.cache
def names_of_tests():
    """Of all tests, to compare pages with."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "tests").rglob("test_*.py")]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {function.name for function in functions}


@pytest.mark.parametrize("page", pages())
def test_every_test_that_a_page_names_is_there(page):
    assert {span for span in code(prose(page)) if re.fullmatch(r"test_\w+", span)} <= names_of_tests()


def test_the_readme_is_short_and_its_price_is_the_computed_one():
    page = read("README.md")
    assert len(page.splitlines()) <= 200
    job = r"takes ([\d.]+ s) and costs (\$[\d.]+)"
    words = rf"On an H200 a picture .* {job}, and an edit {job}\. These figures are computed"
    picture = re.search(words, " ".join(page.split())).groups()
    (row,) = [line for line in read("docs/cards.md").splitlines() if "_141 | H200 |" in line]
    assert ", ".join(picture[:2]) in row and ", ".join(picture[2:]) in row and row.endswith("| computed |")
