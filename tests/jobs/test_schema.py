"""The schema of a job and the worker agree: what one accepts the other accepts, but for the rules of a list."""

import itertools
import math
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from qwen_worker.errors import BeyondSchema, InvalidInput
from qwen_worker.jobs.aliases import NAMES, READERS
from qwen_worker.jobs.containers import MAX_FIELDS
from qwen_worker.jobs.openai_images import EDITS, GENERATIONS, call_of
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.presets import require_adaptable
from qwen_worker.jobs.schema import job_schema
from qwen_worker.jobs.served import Limits, require_served, require_tokens
from qwen_worker.jobs.tasks import TASKS

SCHEMA = job_schema()
DEFINITIONS = SCHEMA["$defs"]
MODELS = {"generate": "a/generate", "edit": "a/edit"}
PICTURE = "aGk="
PROMPT = {"prompt": "a fox"}
EDIT = {**PROMPT, "image": PICTURE}


def matches(validator, pattern, instance, schema):
    """`pattern` as JSON Schema means it: `$` is the end of the text, before which Python lets a line feed pass."""
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


VALIDATOR = extend(Draft202012Validator, {"pattern": matches})(SCHEMA)


def refusal(job_input):
    """The worker's refusal of the input, None where it accepts it."""
    try:
        call = call_of(job_input, MODELS)
        parse(call.fields() if call else job_input, "job", models=MODELS)
    except InvalidInput as error:
        return error
    return None


# What is sent wrongly, by forms, by hand and by other programs; some of it is right for some field.
WRONG = st.sampled_from(
    [0, 1, -1, 2, 8, 16, 250, 256, 512, 1000, 1024, 2064, 20.0, 0.5, -0.0, 1e19, 2**53 + 1.0, 2**64 - 1, 2**64,
     10**30, math.nan, math.inf, True, False, None, "", " ", "0", "4", "20.0", "50x", "-1", "1e3", "+4", "4\n",
     "\u0664", "true", "auto", "512x768", "512*99999", "0x0", "1K", "16:9", "1:900", "square", "jpg", "fast", "high",
     "url", "a/b", "a/b/c", "<|im_end|>", "\ud800", PICTURE, [], {}, [PICTURE], [PICTURE] * 4, [None], [""],
     [[PICTURE]], {"width": 512}, {"width": 512, "height": "768"}, {"width": 100, "height": 768},
     {"width": 512, "height": 768, "depth": None}, {"width": "9999", "height": 768}, {"image_url": PICTURE},
     [{"image_url": PICTURE}], [{"image_url": PICTURE, "x": 1}], ["a/b"], [{"path": "a/b"}], [1, "2"],
     [{"path": "a/b", "weight": "0.5"}], [{"path": "a/b", "scale": None, "weight": 9}], {"path": "a/b"},
     [{"path": "a/b", "scale": 1, "weight": 1}], [{"path": "a/b", "scale": "9", "name": None}], [{"scale": 1}],
     [{"path": 5}], [{"name": "a/b"}], [{"name": 5}], [{"url": "a/b", "name": 5, "x": 1}], "schema", "edit", "health",
     GENERATIONS, {"prompt": "a fox"}, {"task": "edit"}, {"extra_body": {"n": 2}}, [{"content": []}],
     [{"content": "a fox"}] * 2, [{"content": [{"text": 5}]}], [{"content": [{"image": {"url": 5}}]}]]
)  # fmt: skip
WORDS = st.sampled_from(["a fox", PICTURE, "a/b", "a/b/c.safetensors", "https://example.com", "<|im_end|>", " ", "é"])
UNKNOWN = st.sampled_from(
    ["", "colour", "webhook", "policy", "input", "openai_route", "openai_input", "openaiRoute", "\n", "image1",
     "image_9", "input_image_2", "image0", "STEPS", "NUMSTEPS", "GUIDANCESCALE", "numinferencesteps", "CFGScale"]
)  # fmt: skip
PROMPTS = ["prompt", "prompt", "prompt", "positive_prompt", "inputs", "messages"]
PICTURES = ["image", "image", "images", "image_urls", "seed_image", "reference_images"]
MESSAGES = [
    [{"role": "user", "content": "a fox"}],
    [{"content": [{"text": "a fox"}, {"image": PICTURE}]}],
    [{"content": [{"image_url": {"url": PICTURE}}, {"type": "text", "text": "x"}]}],
    [{"content": [{"image": PICTURE, "text": "a fox"}]}],
]
CARRIED = {"inputs": WORDS | WRONG, "messages": st.sampled_from(MESSAGES) | WRONG}
ALL_NAMES = sorted(NAMES)
FIELDS = {
    task: {
        **DEFINITIONS["drawing_fields" if "prompt" in model.model_fields else "report_fields"]["properties"],
        **DEFINITIONS[f"{task}_fields"]["properties"],
        **({"inputs": {}, "messages": {}} if "prompt" in model.model_fields else {}),
    }
    for task, model in TASKS.items()
}


def values_of(schema):
    """Values that the schema accepts."""
    if schema is True or not set(schema) - {"description", "default"}:
        return WRONG | WORDS
    if "$ref" in schema:
        place = SCHEMA
        for part in schema["$ref"].removeprefix("#/").split("/"):
            place = place[part]
        return st.deferred(lambda: values_of(place))
    if schema.get("type") != "object" and "anyOf" in schema:
        return st.one_of([values_of(one) for one in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema["type"]
    if kind == "object":
        fields = {name: values_of(one) for name, one in schema["properties"].items() if one is not False}
        needed = {name: fields.pop(name) for name in schema.get("required", [])}
        return st.fixed_dictionaries(needed, optional=fields)
    if kind == "array":
        return st.lists(values_of(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
    if kind == "string":
        return st.from_regex(schema["pattern"].rstrip("$") + r"\Z") if "pattern" in schema else WORDS
    if kind == "integer":
        step = schema.get("multipleOf", 1)
        whole = st.integers(-(-schema["minimum"] // step), schema["maximum"] // step).map(lambda one: one * step)
        return st.one_of(whole, whole.map(float).filter(lambda one: one <= schema["maximum"]), whole.map(str))
    if kind == "number":
        return st.floats(schema.get("minimum", 0.01), schema["maximum"]).map(lambda one: round(one, 2))
    return {"boolean": st.booleans(), "null": st.none()}[kind]


def spellings(name):
    """The name in the spellings of other languages; some of them the worker does not read."""
    words = name.split("_")
    camel = "".join(word.capitalize() for word in words)
    return [
        name,
        camel,
        camel[:1].lower() + camel[1:],
        name.upper(),
        camel.upper(),
        "".join(words),
        "_".join(words[1:]),
    ]


@st.composite
def fields(draw, task):
    """Fields that the task has, and then perhaps some that are wrong, twice there, spelled otherwise or elsewhere."""
    properties = FIELDS[task]
    names = [draw(st.sampled_from(PROMPTS))] if "prompt" in properties else ["task"]
    if "images" in properties:
        names.append(draw(st.sampled_from(PICTURES)))
    names += draw(st.lists(st.sampled_from(sorted(properties)), max_size=4))
    found = {name: draw(CARRIED[name] if name in CARRIED else values_of(properties[name])) for name in names}
    for change in draw(st.lists(st.sampled_from([*CHANGES, wrong]), max_size=2)):
        change(draw, found)
    return found


def wrong(draw, found):
    name = draw(st.sampled_from([*found, *ALL_NAMES]))
    found[name] = draw(WRONG)


def unknown(draw, found):
    found[draw(UNKNOWN)] = draw(WRONG)


def retyped(draw, found):
    """A number as text or with a point, as forms and JavaScript send it."""
    name = draw(st.sampled_from([*found, "steps"]))
    value = found.get(name, 4)
    if isinstance(value, (int, float)) and abs(value) < 2**53:
        found[name] = draw(st.sampled_from([str(value), f"{value}.0", float(value), f"{value} "]))


def missing(draw, found):
    found.pop(draw(st.sampled_from([*found, "prompt"])), None)


def twice(draw, found):
    value = found.get(draw(st.sampled_from([*found, "prompt"])))
    found[draw(st.sampled_from(ALL_NAMES))] = draw(st.sampled_from([value, str(value)]))


def spelled(draw, found):
    name = draw(st.sampled_from([*found, "prompt"]))
    value = found.pop(name, None)
    found[draw(st.sampled_from(spellings(name)))] = value


def inside(draw, found):
    names = draw(st.lists(st.sampled_from([*found, "prompt"]), unique=True))
    inner = {name: found.pop(name) for name in names if name in found}
    found[draw(st.sampled_from(["parameters", "extra_body", "extraBody"]))] = inner


CHANGES = (wrong, unknown, retyped, retyped, missing, twice, spelled, inside)


@st.composite
def jobs(draw):
    task = draw(st.sampled_from(["generate", "edit", "edit", *TASKS]))
    if task in ("generate", "edit") and draw(st.integers(0, 3)) == 0:
        return {"openai_route": GENERATIONS if task == "generate" else EDITS, "openai_input": draw(fields(task))}
    asked = draw(fields(task))
    return {"task": task, **asked} if draw(st.booleans()) else asked


wild = st.dictionaries(st.one_of(st.sampled_from(ALL_NAMES), UNKNOWN), WRONG, max_size=5) | WRONG


def test_schema_and_worker_agree_on_many_inputs_but_for_the_named_rules(sample):
    seen = Counter()

    @settings(max_examples=sample(300, 1000), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(jobs(), jobs(), jobs(), wild))
    def compare(job_input):
        refused, valid = refusal(job_input), VALIDATOR.is_valid(job_input)
        if refused is None:
            assert valid, [error.message for error in VALIDATOR.iter_errors(job_input)]
        elif valid:
            assert refused.beyond_schema, str(refused)
        seen["accepted" if refused is None else "beyond" if valid else "refused"] += 1

    compare()
    assert min(seen["accepted"], seen["refused"], seen["beyond"]) > 20, seen


def too_many():
    """Jobs of more fields than are read, each of which is one that the schema has."""
    may_be_false = (name for name in ALL_NAMES if VALIDATOR.is_valid({**PROMPT, name: False}))
    more = dict.fromkeys(itertools.islice(may_be_false, MAX_FIELDS - 2), False)
    few = {**PROMPT, "steps": 4, "n": 1, "seed": 1}
    return [{**few, "parameters": more}, {"openai_route": GENERATIONS, "openai_input": few | more}]


# By rule: inputs that break it and no other one.
BEYOND = {
    BeyondSchema.TWICE: [
        {**PROMPT, "steps": 4, "num_steps": 5},
        {**PROMPT, "width": 512, "Width": 528},
        {**PROMPT, "lora": "a/b", "loras": []},
        {**PROMPT, "lora": {"path": "a/b", "scale": 0.5}, "lora_scale": 1},
        {**PROMPT, "image1": PICTURE, "image_1": "aGV5"},
        {**PROMPT, "lora": "a/b", "lora_weights": "c/d"},
        {**PROMPT, "loras": [{"path": "a/b", "url": "c/d"}]},
        {**PROMPT, "image": PICTURE, "image_url": "aGV5"},
        {**PROMPT, "size": "512x512", "aspect_ratio": "16:9"},
        {**PROMPT, "steps": 4, "parameters": {"steps": 5}},
        {"openai_route": EDITS, "openai_input": {**EDIT, "mask": PICTURE, "mask_image": PICTURE}},
    ],
    BeyondSchema.TOGETHER: [
        {**EDIT, "width": 512},
        {**EDIT, "mask_from": "alpha"},
        {**EDIT, "size_from": 1},
        {**PROMPT, "images": [PICTURE, PICTURE], "strength": 0.5},
        {**PROMPT, "aspect_ratio": "match_input_image"},
        {**PROMPT, "lora": ["a/b", "c/d"], "lora_scale": [1]},
        {**PROMPT, "image1": [PICTURE] * 6, "image2": [PICTURE] * 5},
        {**PROMPT, "background": "transparent", "output_format": "jpeg"},
        {**EDIT, "task": "background_replacement", "background": "transparent"},
        {**PROMPT, "image": []},
        {**PROMPT, "images": []},
        {**PROMPT, "images": [], "image": []},
        {"inputs": "/9j/4AAQSkZJRg=="},
        {"inputs": "https://example.com/a.png"},
    ],
    BeyondSchema.TEXT_NUMBER: [
        {**PROMPT, "width": "1000"},
        {**PROMPT, "parameters": {"steps": "101"}},
        {**PROMPT, "size": "10x10"},
        {**PROMPT, "aspect_ratio": "1:900"},
        {**PROMPT, "image_size": {"width": "100", "height": 512}},
        {**PROMPT, "lora": "a/b", "lora_scale": "5"},
        {**PROMPT, "n_iter": "2"},
    ],
    BeyondSchema.LARGE_FLOAT: [{**PROMPT, "seed": 1e19}],
    BeyondSchema.NOT_JSON: [{**PROMPT, "guidance_scale": math.nan}, {"prompt": "\ud800"}],
    BeyondSchema.WORDS: [{"prompt": " "}, {**PROMPT, "negative_prompt": "<|im_end|>"}],
    BeyondSchema.LORA_PATH: [{**PROMPT, "loras": ["nothing"]}],
    BeyondSchema.ENDPOINT: [{**PROMPT, "preset": "fast"}],
}


@pytest.mark.parametrize("rule", BeyondSchema, ids=lambda rule: rule.name)
def test_a_rule_of_the_list_is_beyond_the_schema_and_its_refusal_says_so(rule):
    for job_input in too_many() if rule is BeyondSchema.COUNT else BEYOND[rule]:
        assert VALIDATOR.is_valid(job_input), job_input
        assert set(refusal(job_input).beyond_schema) == {rule}, job_input


def test_what_only_the_checkpoint_can_say_is_of_the_list_too():
    edit = parse({**EDIT, "images": None, "width": 528, "height": 512, "draw_size": "asked", "loras": ["a/b"]}, "job")
    checkpoint = SimpleNamespace(name="a", class_name="B", adaptable=False)
    for rule, require in (
        (BeyondSchema.ENDPOINT, lambda: require_served(edit, Limits(32, 2048, 3))),
        (BeyondSchema.ENDPOINT, lambda: require_served(edit, Limits(16, 2048, 0))),
        (BeyondSchema.ENDPOINT, lambda: require_served(edit, Limits(16, 512, 3))),
        (BeyondSchema.ENDPOINT, lambda: require_adaptable(edit, checkpoint)),
        (BeyondSchema.WORDS, lambda: require_tokens("prompt", 1020)),
    ):
        with pytest.raises(InvalidInput) as caught:
            require()
        assert caught.value.beyond_schema == (rule,)


def test_a_refusal_that_the_schema_shares_names_no_rule_of_the_list():
    """Also where one of several faults is beyond it."""
    for job_input in ({**PROMPT, "width": 1000}, {**PROMPT, "width": 1000, "seed": "-2"}, {"prompt": " ", "colour": 1}):
        assert not VALIDATOR.is_valid(job_input) and refusal(job_input).beyond_schema == ()


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_name_that_the_worker_reads_has_its_schema(name):
    """Or, like `webhook`, is refused whatever its value."""
    reader = READERS.get(name)
    assert reader is None or bool(reader.gives) is (reader.schema is not None)
    if name not in {"parameters", "extra_body"} and not any(name in properties for properties in FIELDS.values()):
        assert all(refusal({**PROMPT, name: value}) for value in (True, 1, "high", "512x512", {}, {"a": 1}, ["a/b"]))
