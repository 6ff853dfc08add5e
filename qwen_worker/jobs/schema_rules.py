"""What the JSON schema of a job says of several fields together, wherever they stand and in any spelling. Pure.

A field may stand in the input itself, in its `parameters` or in its `extra_body`, and its name may be in camel case.
Knows nothing of what a field alone may be.
"""

from collections.abc import Collection, Sequence

from .aliases import ALIASES, READERS, TRUE_GUIDANCE
from .containers import LORA_PARTS, MAIN_PICTURES, NUMBERED, OBJECTS, PICTURE_PART, SCALE, TEXT_PART, messages_schema
from .field_types import IMAGE_SCHEMA, TEXT_SCHEMA
from .request import IMAGE_FIELDS
from .values import NULL, JsonSchema

MESSAGES: JsonSchema = {"anyOf": [messages_schema(TEXT_PART, PICTURE_PART), NULL]}
MESSAGES_OF_TEXT: JsonSchema = {"anyOf": [messages_schema(TEXT_PART), NULL]}
NUMBERED_PICTURES = f"^(?:{NUMBERED.pattern})$"
PICTURE_LIST: JsonSchema = {"type": "array", "items": IMAGE_SCHEMA}
PICTURES: JsonSchema = {"anyOf": [IMAGE_SCHEMA, PICTURE_LIST, NULL]}
EMPTY: JsonSchema = {"enum": [None, []]}
NO_LORA: JsonSchema = {"enum": [None, "", []]}  # as forms send it
SCALES: JsonSchema = {"anyOf": [SCALE, {"type": "array", "items": SCALE}]}


class Rules:
    """The rules of inputs whose fields have these names.

    `definitions`: by name, what the rules refer to; a definition's name stands for the braces in `place`.
    """

    def __init__(self, names: Collection[str], place: str):
        self.names, self.place = names, place
        self.definitions: dict[str, JsonSchema] = {}

    def everywhere(self, rule: str, values: dict[str, JsonSchema]) -> JsonSchema:
        """The schema of inputs in which fields, by the patterns of their names, have these values everywhere."""
        whole: JsonSchema = {"$ref": self.place.format(rule)}
        self.definitions[rule] = {"patternProperties": {**values, spelled(*OBJECTS): whole}}
        return whole

    def no(self, rule: str, *names: str) -> JsonSchema:
        """The schema of inputs that have none of the fields."""
        return self.everywhere(f"no_{rule}", {spelled(*names): NULL})

    def some(self, rule: str, *names: str) -> JsonSchema:
        """The schema of inputs that have one of the fields."""
        return {"not": self.no(rule, *names)}

    def of_prompts(self) -> list[JsonSchema]:
        """A prompt is required. `inputs` is one, or a picture where there is another."""
        prompt = {spelled("inputs"): {"anyOf": [TEXT_SCHEMA, NULL]}}
        if "images" in self.names:
            picture = self.everywhere("inputs_of_pictures", {spelled("inputs"): PICTURES})
        else:
            picture = self.no("inputs", "inputs")
        any_name = self.some("prompt_by_any_name", *names_of("prompt", self.names), "inputs", "messages")
        is_picture = self.some("prompt", "prompt")
        return [any_name, {"if": is_picture, "then": picture, "else": self.everywhere("inputs_of_text", prompt)}]

    def of_pictures(self) -> list[JsonSchema]:
        """A picture is required where pictures are taken, and else there is none in `messages` either."""
        no_message = self.everywhere("messages_of_text", {spelled("messages"): MESSAGES_OF_TEXT})
        if "images" not in self.names:
            return [no_message]
        inputs = {"allOf": [self.some("prompt", "prompt"), self.some("inputs", "inputs")]}
        references = spelled("reference_images")
        no_references = self.everywhere("no_references", {references: EMPTY})
        listed = self.everywhere("references_in_a_list", {references: {"anyOf": [PICTURE_LIST, NULL]}})
        names = spelled(*(name for name in names_of("images", self.names) if name != "reference_images"))
        no_picture = self.everywhere("no_picture", {names: NULL, NUMBERED_PICTURES: NULL})
        no_main = self.everywhere("no_main_picture", {spelled(*MAIN_PICTURES): EMPTY, NUMBERED_PICTURES: EMPTY})
        return [
            {"anyOf": [{"not": no_picture}, {"not": no_references}, {"not": no_message}, inputs]},
            # Beside another picture, one that is referred to needs no list.
            {"if": no_main, "then": {"anyOf": [listed, inputs]}},
        ]

    def of_guidance(self, guidance: JsonSchema) -> list[JsonSchema]:
        """Beside a true guidance another one has no effect, whatever it is. `guidance`: the schema of one that has."""
        beside = [name for name in names_of("guidance_scale", self.names) if name not in TRUE_GUIDANCE]
        counts = self.everywhere("guidance_that_counts", {spelled(*beside): guidance})
        return [{"if": self.some("true_guidance", *TRUE_GUIDANCE), "else": counts}]

    def of_loras(self) -> list[JsonSchema]:
        """Without its LoRA a scale has no effect, whatever it is."""
        rules: list[JsonSchema] = []
        for names, scale in LORA_PARTS:
            no_lora = self.everywhere(f"no_{names[0]}", {spelled(*names): NO_LORA})
            rules.append({"if": no_lora, "else": self.everywhere(f"{scale}_that_counts", {spelled(scale): SCALES})})
        return rules


def names_of(field: str, names: Collection[str]) -> list[str]:
    """Those of the names that give a field of ours."""
    public = IMAGE_FIELDS if field == "images" else (field,)
    read = {name for name, reader in READERS.items() if set(reader.gives) & set(public)}
    return [name for name in names if name in public or ALIASES.get(name) in public or name in read]


def spelled(*names: str) -> str:
    """The pattern of the names in all the spellings that `aliases.read_names` reads."""
    return f"^(?:{'|'.join(spellings(name.split('_')) for name in names)})$"


def spellings(words: Sequence[str], after: str = "") -> str:
    """The pattern of a name of these words. `after`: the end of the word before, `small` or `CAPITALS`.

    A word is in small letters, in capitals, or begins with one. Where no underscore stands before it, it begins with a
    capital; after capitals a small letter follows that one, since the words would else run together.
    """
    if not words:
        return ""
    word, *others = words
    begun = [word.capitalize()] if len(word) > 1 and word[0].isalpha() else []
    capitals = [word.upper()] if word.upper() != word else []
    in_small = [word, *begun, *(capitals if word[-1].isdigit() else [])]
    capitals = [] if word[-1].isdigit() else capitals
    joined = begun + (in_small[2:] if after == "small" else [])
    first = [f"_(?:{'|'.join(in_small)})", *joined] if after else in_small
    second = [{"": "", "small": "_?", "CAPITALS": "_"}[after] + one for one in capitals]
    rest, rest_after_capitals = spellings(others, "small"), spellings(others, "CAPITALS")
    if rest == rest_after_capitals or not second:
        return f"(?:{'|'.join([*first, *second])}){rest}"
    return f"(?:(?:{'|'.join(first)}){rest}|{second[0]}{rest_after_capitals})"
