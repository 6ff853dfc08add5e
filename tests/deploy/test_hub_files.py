"""The Hub's files are by its rules, as current as what they repeat, and offer every setting with its limits."""

import json

import pytest
from jsonschema import Draft202012Validator
from PIL import Image, ImageChops

from benchmarks import costs
from qwen_deploy import cards, hub_files, hub_icon, hub_words
from qwen_deploy.configuration import DEFAULT_ENV
from qwen_deploy.environment import cuda_floor, worker_settings
from qwen_worker.settings import Settings

from ..conftest import ROOT, run

TEXT = {"type": "string", "minLength": 1}
WHOLE = {"type": "integer", "minimum": 1}
POOL = "(AMPERE_(16|24|48|80)|ADA_(24|32_PRO|48_PRO|80_PRO)|HOPPER_141|BLACKWELL_(96|180))"
CUDA = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string", "pattern": r"^\d\d\.\d$"}}


def closed(needed, /, **properties):
    return {"type": "object", "required": needed.split(), "properties": properties, "additionalProperties": False}


INPUT = closed(
    "name type", name=TEXT, description=TEXT, default={}, required={"type": "boolean"}, advanced={"type": "boolean"},
    type={"enum": ["string", "number", "boolean", "huggingface"]}, min={"type": "number"}, max={"type": "number"},
    trueValue=TEXT, falseValue=TEXT,
    options={"type": "array", "minItems": 1, "items": closed("label value", label=TEXT, value={})},
)  # fmt: skip
FIXED = closed("key value", key=TEXT, value={"type": "string"})
# The Hub's rules, from its publishing guide.
HUB = closed(
    "title description type category config", title=TEXT, description=TEXT, type={"const": "serverless"}, iconUrl=TEXT,
    category={"enum": ["audio", "embedding", "language", "video", "image"]},
    config=closed(
        "runsOn containerDiskInGb gpuCount gpuIds", runsOn={"const": "GPU"}, endpointType={"const": "LB"},
        containerDiskInGb=WHOLE, gpuCount=WHOLE, allowedCudaVersions=CUDA,
        gpuIds={"type": "string", "pattern": rf"^{POOL}(,{POOL})*(,-[^,]+)*$"},
        env={"type": "array", "items": {"oneOf": [FIXED, closed("key input", key=TEXT, input=INPUT)]}},
        presets={"type": "array", "items": closed("name defaults", name=TEXT, defaults={"type": "object"})},
    ),
)  # fmt: skip
TESTS = closed(
    "tests config",
    tests={"type": "array", "minItems": 1,
           "items": closed("name input", name=TEXT, input={"type": "object"}, timeout=WHOLE)},
    config=closed("gpuTypeId", gpuTypeId={"type": "string", "pattern": "^NVIDIA "}, gpuCount=WHOLE,
                  env={"type": "array", "items": FIXED}, allowedCudaVersions=CUDA),
)  # fmt: skip


@pytest.fixture(scope="module")
def hub():
    return json.loads((ROOT / ".runpod/hub.json").read_text())


def inputs(hub):
    return {entry["key"]: entry["input"] for entry in hub["config"]["env"] if "input" in entry}


@pytest.mark.parametrize(("name", "rules"), [("hub.json", HUB), ("tests.json", TESTS)])
def test_the_files_are_by_the_hub_s_rules(name, rules):
    Draft202012Validator.check_schema(rules)
    errors = Draft202012Validator(rules).iter_errors(json.loads((ROOT / ".runpod" / name).read_text()))
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_the_files_are_what_they_repeat():
    for name, text in hub_files.files().items():
        assert (ROOT / name).read_text() == text, f"make hub-files writes {name} anew"


def test_what_the_hub_asks_for_is_there():
    assert all((ROOT / name).is_file() for name in (".runpod/handler.py", ".runpod/Dockerfile", "README.md"))


def test_every_setting_is_offered_or_left_out_with_a_reason(hub):
    offered = set(inputs(hub)) - {"HF_TOKEN"}
    left_out = set(hub_files.LEFT_OUT)
    assert offered | left_out == set(Settings.model_fields) and not offered & left_out
    assert all(hub_files.LEFT_OUT.values())


def test_the_defaults_and_limits_of_the_form_are_the_worker_s(hub):
    form = inputs(hub)
    defaults = {key: str(one["default"]) for key, one in form.items() if "default" in one}
    assert worker_settings(defaults) == worker_settings({})
    without = {key for key, field in Settings.model_fields.items() if key in form and field.default is None}
    assert set(form) - set(defaults) == without | {"HF_TOKEN"}
    few_step = {"QWEN_IMAGE_FAST_LORA": "ORG/NAME/8steps.safetensors"}  # that preset fast is made of
    for key, one in form.items():
        for end in {"min", "max"} & set(one):
            worker_settings({key: str(one[end])})
        for option in one.get("options", []):
            worker_settings({key: option["value"]} | few_step)


@pytest.mark.parametrize(("key", "most"), [("QWEN_CONCURRENCY", 4), ("BUCKET_URL_SECONDS", 604_800)])
def test_a_limit_of_the_worker_is_the_form_s(hub, key, most):
    assert inputs(hub)[key]["max"] == most and inputs(hub)[key]["min"] == 1


def test_a_secret_has_no_default(hub):
    for key in ("BUCKET_SECRET_ACCESS_KEY", "BUCKET_ACCESS_KEY_ID", "HF_TOKEN"):
        assert "default" not in inputs(hub)[key]


def test_an_endpoint_holds_all_variables(hub):
    assert len(hub["config"]["env"]) <= 50  # the platform's limit
    assert {one["key"]: one["value"] for one in hub["config"]["env"] if "value" in one} == DEFAULT_ENV


def test_the_image_has_the_variables_that_the_endpoint_has():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    environment = next(line for line in lines if line.startswith("ENV PATH="))
    pairs = dict(pair.split("=", 1) for pair in environment.split()[1:])
    assert DEFAULT_ENV.items() <= pairs.items() and pairs["RUNPOD_DEBUG_LEVEL"] == "INFO"


def fits(pool, env):
    memory = int(pool.split("_")[1])
    one = cards.Pool(pool, (pool,), (pool,), memory, 1.0, "HIGH")
    settings = worker_settings(env)
    return cards.fit(one, settings, sorted(settings.served_roles, reverse=True), 32, cuda_floor(ROOT))


@pytest.mark.parametrize("name", hub_files.PRESETS)
def test_a_preset_fits_the_cards_that_it_names(hub, name):
    pools, precision, env = hub_files.PRESETS[name]
    assert {"name": name, "defaults": env} in hub["config"]["presets"] and set(env) <= set(inputs(hub))
    for pool in pools:
        fit = fits(pool, env)
        assert fit.plan and fit.plan.precision.value == precision, f"{pool}: {fit.layout}"
    assert precision == "bf16" or precision in name.lower()


@pytest.mark.parametrize("name", hub_files.PRESETS)
def test_a_preset_serves_on_the_cards_that_are_chosen_already(hub, name):
    for pool in hub["config"]["gpuIds"].split(","):
        assert fits(pool, hub_files.PRESETS[name].env).plan, pool


def test_a_change_of_the_preset_leaves_nothing_of_the_one_before_at_work(hub):
    kept = {"QWEN_IMAGE_FAST_LORA", "QWEN_EDIT_FAST_LORA"}  # which only preset fast draws with
    names = [set(one["defaults"]) - kept for one in hub["config"]["presets"]]
    assert all(one == names[0] for one in names)


def test_no_preset_names_a_model_that_is_not_there(hub):
    assert "/none" not in json.dumps(hub)


def test_the_first_cards_of_the_hub_draw_the_cheapest_picture_within_thirty_seconds(hub):
    known = {offer.fit.pool.id: offer for offer in costs.offers_of({})}
    offers = [known[pool] for pool in hub["config"]["gpuIds"].split(",")]
    dollars = [offer.dollars("generate") for offer in offers]
    assert dollars == sorted(dollars) and offers[0].seconds["generate"].seconds <= 30


def test_the_hub_s_cards_hold_both_models_exactly(hub):
    for pool in hub["config"]["gpuIds"].split(","):
        assert fits(pool, {}).layout.startswith("bf16"), pool


def test_what_is_shown_has_words_for_people(hub):
    form = inputs(hub)
    shown = {key: one for key, one in form.items() if not one.get("advanced")}
    assert set(shown) == set(hub_words.DESCRIPTIONS)
    for key, one in shown.items():
        assert all(option["label"] != option["value"] for option in one.get("options", [])), key
    for key in ("QWEN_IMAGE_MODEL", "QWEN_EDIT_MODEL"):
        assert shown[key]["type"] == "huggingface"


def test_the_hub_says_what_the_first_start_downloads_and_what_a_model_that_cannot_load_means(hub):
    for text in (hub["description"], inputs(hub)["QWEN_IMAGE_MODEL"]["description"]):
        assert "58 GB" in text and "Model field" in text and "network volume" in text
    fallback = inputs(hub)["QWEN_FALLBACK"]
    assert "stand-in" in fallback["description"] and "forbid" in fallback["description"]
    assert {option["value"] for option in fallback["options"]} == {"allow", "forbid", "force"}


def test_the_icon_is_what_its_module_draws_and_its_address_that_of_the_repository():
    icon = Image.open(hub_icon.ICON)
    assert icon.size == (256, 256) and icon.format == "PNG" and hub_icon.ICON.stat().st_size < 20_000
    differences = ImageChops.difference(icon, hub_icon.draw_icon()).getextrema()
    assert all(most <= 4 for _, most in differences), "python -m qwen_deploy.hub_icon draws it anew"
    written = json.loads(hub_files.files("you/qwen-worker")[".runpod/hub.json"])
    assert written["iconUrl"] == "https://raw.githubusercontent.com/you/qwen-worker/HEAD/.runpod/icon.png"


def test_drivers_older_than_the_image_s_torch_are_not_allowed(hub):
    assert hub["config"]["allowedCudaVersions"][0] == cuda_floor(ROOT)


def test_the_hub_s_tests_are_jobs_of_the_image():
    found = json.loads((ROOT / ".runpod/tests.json").read_text())
    env = {one["key"]: one["value"] for one in found["config"]["env"]}
    assert env["QWEN_FALLBACK"] == "forbid" and worker_settings(env)
    for key in ("QWEN_IMAGE_MODEL", "QWEN_EDIT_MODEL"):
        folder = env[key].removeprefix("/app/")
        assert (ROOT / folder / "model_index.json").is_file()
        assert f"!{folder}" in (ROOT / ".dockerignore").read_text().splitlines()
    assert {"health", "generate", "edit"} <= {test["input"].get("task") for test in found["tests"]}


def test_the_hub_s_image_is_without_weights():
    text = (ROOT / ".runpod/Dockerfile").read_text()
    assert "/bake" not in text and "weights]" not in text and 'CMD ["python", "runpod_handler.py"]' in text


def test_the_tiny_checkpoint_passes_the_hub_s_tests(warm_worker):
    for test in json.loads((ROOT / ".runpod/tests.json").read_text())["tests"]:
        posted = run(warm_worker, test["input"])
        assert "error" not in posted, test["name"]
        if test["name"] != "health":
            assert posted["output"]["metadata"]["backend"] == "qwen-image"
