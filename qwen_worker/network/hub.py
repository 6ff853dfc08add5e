"""The Hugging Face hub's files: where the hub is, what a repository holds, which of it is read, failures in words.

Imports nothing of the package but its errors: the image's download step runs on these two modules alone.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import LoadError

# The files that the pipelines read: not the READMEs, sample pictures or other formats of the weights.
READ_FILES = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors", "*/*.jinja"]


@contextmanager
def explained(name: str) -> Iterator[None]:
    """The hub's errors in words for a caller, kept apart by whether they pass."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise LoadError(f"{name} is gated on the hub: HF_TOKEN is missing or lacks access") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError):
        raise LoadError(f"{name} does not exist on the hub, or HF_TOKEN lacks access") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise LoadError(f"{name} is not on this worker and the hub cannot be reached", passing=True) from None
    except errors.HFValidationError:
        raise LoadError(f"{name} is no name that the hub could have") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        passing = status == 429 or status >= 500 or status == 0
        raise LoadError(f"{name} could not be fetched: the hub answered {status}", passing=passing) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise LoadError(f"{name} could not be fetched: the disk is full") from None
        raise LoadError(f"{name} could not be fetched: {type(error).__name__}", passing=True) from None
    # The hub's transfer library reports a broken connection as a RuntimeError.
    except (httpx2.HTTPError, RuntimeError) as error:
        kind = type(error).__name__
        why = "the hub cannot be reached" if isinstance(error, httpx2.ConnectError) else kind
        raise LoadError(f"{name} could not be fetched: {why}", passing=True) from None


def endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def listing(hub_id: str, revision: str) -> tuple[str, dict[str, int]]:
    """The commit of a revision (the main branch where it is empty), and the sizes of its files in bytes, by name."""
    from huggingface_hub import HfApi

    with explained(hub_id):
        facts = HfApi(endpoint=endpoint()).model_info(hub_id, revision=revision or None, files_metadata=True)
    return facts.sha, {file.rfilename: file.size or 0 for file in facts.siblings or []}


def download_file(hub_id: str, name: str, commit: str, cache: Path) -> Path:
    """One file of a repository at a commit, in a cache of the hub's library: fetched unless it is there."""
    from huggingface_hub import hf_hub_download

    with explained(hub_id):
        return Path(hf_hub_download(hub_id, name, revision=commit, cache_dir=cache, endpoint=endpoint()))
