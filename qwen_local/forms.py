"""The form of OpenAI's /images/edits as the JSON object that the worker understands: files become data URIs.

Lists and objects are spelled in the names, as `image[]`, `parameters[seed]` and `loras[][path]`. Knows nothing of what
the fields mean, but for the two that are the caller's own words.
"""

import base64
import re
from collections.abc import AsyncGenerator
from typing import Any, cast

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .request import BadRequest, as_object, short_json

MOST_FILES, MOST_FIELDS = 20, 200
MOST_FIELD_BYTES = 20_000_000  # of a picture that is sent as text; the body as a whole has its own limit
NAME = re.compile(r"(?P<first>[^\[\]]+)(?P<list>\[\])?(?:\[(?P<key>[^\[\]]+)\])?")
WORDS = ("prompt", "negative_prompt")  # taken as they are: "true" in them is a word
TRUTHS = {"true": True, "false": False}  # the worker reads numbers from text, but not these


async def read_form(body: bytes, content_type: str) -> dict[str, Any]:
    """The arguments of a call. Raises `BadRequest` with what is wrong in the form."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        Headers({"content-type": content_type}),
        stream(),
        max_files=MOST_FILES,
        max_fields=MOST_FIELDS,
        max_part_size=MOST_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise BadRequest(f"The form cannot be read: {getattr(error, 'message', 'its boundary is missing')}") from None
    try:
        arguments: dict[str, Any] = {}
        for name, value in form.multi_items():
            put(arguments, name, await data_uri(value) if isinstance(value, UploadFile) else text_value(name, value))
        return arguments
    finally:
        await form.close()


async def data_uri(file: UploadFile) -> str:
    """The worker tells a picture's format from its bytes; the type here is only how the URI must look."""
    kind = (file.content_type or "").partition(";")[0].strip()
    kind = kind if re.fullmatch(r"image/[\w.+-]+", kind) else "image/png"
    return f"data:{kind};base64,{base64.b64encode(await file.read()).decode()}"


def text_value(name: str, text: str) -> Any:
    return text if name in WORDS else TRUTHS.get(text, text)


def put(arguments: dict[str, Any], name: str, value: Any) -> None:
    """Add one field of the form. Raises `BadRequest` for a name that contradicts an earlier one."""
    found = NAME.fullmatch(name)
    if found is None:
        rule = "names are spelled as image, image[] or loras[][path]"
        raise BadRequest(f"{short_json(name)} is no name of a field; {rule}")
    first, is_list, key = found["first"], found["list"], found["key"]
    wrong = BadRequest(f"{short_json(name)} does not fit the fields of the form that stand before it")
    is_new = first not in arguments
    before: Any = arguments.setdefault(first, [] if is_list else {} if key else value)
    if is_list:
        if not isinstance(before, list):
            raise wrong
        put_in_list(cast("list[Any]", before), key, value)
    elif key:
        fields = as_object(before)
        if fields is None:
            raise wrong
        fields[key] = value
    elif not is_new:
        if isinstance(before, dict):
            raise wrong
        arguments[first] = [*cast("list[Any]", before), value] if isinstance(before, list) else [before, value]


def put_in_list(items: list[Any], key: str | None, value: Any) -> None:
    """At the end, or into the last object; a key that this one has already begins the next object."""
    if key is None:
        items.append(value)
        return
    last = as_object(items[-1]) if items else None
    if last is None or key in last:
        last = {}
        items.append(last)
    last[key] = value
