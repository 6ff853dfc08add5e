"""The Hugging Face hub: where it is, what a repository holds, which files are read, and its errors in words.

This module imports nothing of the package but `errors`: the image's download step runs on these two modules alone.
Knows nothing of what the files are for.
"""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from ..errors import LoadError

# Of weights, the names that diffusers and transformers read: variants (model.fp16.safetensors) and averaged or former
# weights may lie beside them. READMEs, sample pictures and other formats of the weights are left out too.
WEIGHT_FILES = [
    f"*/{stem}{number}.safetensors"
    for stem in ("diffusion_pytorch_model", "model")
    for number in ("", "-?????-of-?????")
]
# The files that the pipelines read.
READ_FILES = ["model_index.json", "*/*.json", "*/*.txt", "*/*.jinja", *WEIGHT_FILES]


@contextmanager
def explain_errors(name: str) -> Generator[None]:
    """Raise what the block raises of the hub as a `LoadError` about `name`, transient where a later try may succeed."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise LoadError(f"{name} is gated on the hub: HF_TOKEN is missing or lacks access") from None
    except errors.RevisionNotFoundError:
        raise LoadError(f"{name} is on the hub and has no such revision") from None
    except (errors.RepositoryNotFoundError, errors.RemoteEntryNotFoundError):
        raise LoadError(f"{name} does not exist on the hub, or HF_TOKEN lacks access") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise LoadError(f"{name} is not on this worker and the hub cannot be reached", transient=True) from None
    except errors.HFValidationError:
        raise LoadError(f"{name} is no name that the hub could have") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        transient = status == 429 or status >= 500
        raise LoadError(f"{name} could not be fetched: the hub answered {status}", transient=transient) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # network volumes refuse by quota
            raise LoadError(f"{name} could not be fetched: the disk is full") from None
        raise LoadError(f"{name} could not be fetched: {type(error).__name__}", transient=True) from None
    # The hub's transfer library reports a broken connection as a RuntimeError.
    except (httpx2.HTTPError, RuntimeError) as error:
        why = "the hub cannot be reached" if isinstance(error, httpx2.ConnectError) else type(error).__name__
        raise LoadError(f"{name} could not be fetched: {why}", transient=True) from None


def is_same_repository(hub_id: str, other: str) -> bool:
    """Whether both name one repository: the hub itself takes ids in any case."""
    return hub_id.lower() == other.lower()


def hub_endpoint() -> str | None:
    """The hub's address where it is not the usual one."""
    return os.environ.get("HF_ENDPOINT") or None


def hub_cache_folder() -> Path:
    """The folder in which the hub's client keeps what it has downloaded."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def listing(hub_id: str, revision: str) -> tuple[str, dict[str, int]]:
    """The commit of a revision (the main branch where it is empty), and the sizes of its files in bytes, by name."""
    from huggingface_hub import HfApi

    with explain_errors(hub_id):
        facts = HfApi(endpoint=hub_endpoint()).model_info(hub_id, revision=revision or None, files_metadata=True)
    # None only in lists of many models, which name no commits.
    return cast("str", facts.sha), {file.rfilename: file.size or 0 for file in facts.siblings or []}


def download_file(hub_id: str, name: str, commit: str, cache: Path) -> Path:
    """One file of a repository at a commit, in a cache of the hub's library: fetched unless it is there."""
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]  an option is any dict

    with explain_errors(hub_id):
        return Path(hf_hub_download(hub_id, name, revision=commit, cache_dir=cache, endpoint=hub_endpoint()))


def read_start(hub_id: str, name: str, commit: str, count: int) -> bytes:
    """The first `count` bytes of a file of a repository at a commit, and no more of it. Raises `LoadError`."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (
        build_hf_headers,  # pyright: ignore[reportUnknownVariableType]  an option is any dict
        get_session,
        hf_raise_for_status,
    )

    # If the server compressed the file, its bytes would not be those of the header.
    headers = build_hf_headers() | {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    url, start = hf_hub_url(hub_id, name, revision=commit, endpoint=hub_endpoint()), bytearray()
    with (
        explain_errors(f"{hub_id}/{name}"),
        get_session().stream("GET", url, headers=headers, follow_redirects=True) as response,
    ):
        if response.is_error:  # whose body says why
            response.read()
        hf_raise_for_status(response)
        for piece in response.iter_bytes():  # a server may know no ranges, and send the whole file
            start += piece
            if len(start) >= count:
                break
    return bytes(start[:count])
