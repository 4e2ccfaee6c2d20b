"""Download of saved models from the Hugging Face Hub and upload to it, with messages for what can go wrong."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vqvae2.errors import UserError, reason_of
from vqvae2.generation.card import exported_files
from vqvae2.generation.description import CONFIG, read_config

DENIED = (401, 403)
LOCAL = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # of this machine's disk
IN_NEW_REPOSITORY = {".gitattributes", "README.md"}
SIGN_IN = "sign in with `hf auth login`, or pass a valid token"


def download(repository: str, files: list[str], revision: str | None, **options: Any) -> Path:
    """Download files of a repository to the cache, and return the folder that contains them.

    Args:
        repository: USER/NAME.
        files: names of the files.
        revision: branch, tag or commit; None: the default branch.
        **options: token, cache_dir and local_files_only of `huggingface_hub.snapshot_download`.

    Raises:
        UserError: the files cannot be downloaded.
    """
    with _told(repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files, **options))


def is_repository(name: str) -> bool:
    """Whether a name has the form USER/NAME."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def create_repository(repository: str, private: bool, token: str | None) -> str:
    """Create a repository unless it exists, and return its address.

    Raises:
        UserError: the name is not valid, the repository cannot be created, or `private` is true and it exists and is
            public.
    """
    if not is_repository(repository):
        raise UserError(f"{repository}: not a valid name of a repository: use USER/NAME")
    api = HfApi(token=token)
    with _told(repository, None):
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        is_private = not private or api.model_info(repository).private
    if not is_private:
        raise UserError(f"{repository}: the repository exists and is public: make it private in its settings first")
    return address


def upload(folder: Path, repository: str, token: str | None) -> None:
    """Upload the files of a folder to a repository; files of an earlier export that it lacks are deleted there.

    Raises:
        UserError: the repository has other files than an earlier export, or the files cannot be uploaded.
    """
    former = _former_export(repository, token)
    with _told(repository, None):
        HfApi(token=token).upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload a VQ-VAE-2 model",
            delete_patterns=sorted(former),
        )


def _former_export(repository: str, token: str | None) -> set[str]:
    """Names of the files of an earlier export in a repository, besides config.json and README.md.

    Raises:
        UserError: the repository has other files than an earlier export, or cannot be read.
    """
    with _told(repository, None):
        files = set(HfApi(token=token).list_repo_files(repository))
    if files <= IN_NEW_REPOSITORY:
        return set()
    if CONFIG in files:
        folder = download(repository, [CONFIG], None, token=token)
        with suppress(UserError):
            return exported_files(read_config(folder / CONFIG))
    raise UserError(f"{repository}: not empty, and not an earlier export: use a new or empty repository")


@contextmanager
def _told(repository: str, revision: str | None) -> Iterator[None]:
    """Convert errors of huggingface_hub to a UserError."""
    try:
        yield
    # Not only OSError: depending on the version, connections fail with exceptions of requests, httpx or hf_xet.
    except Exception as error:
        _raise_user_error(error, repository, revision)


def _raise_user_error(error: Exception, repository: str, revision: str | None) -> NoReturn:
    answers = (getattr(x, "response", None) for x in (error, error.__cause__))  # the cause, if the cache was tried too
    status = next((x.status_code for x in answers if x is not None), None)
    if isinstance(error, HFValidationError):
        message = "not a valid name of a repository: use USER/NAME"
    elif isinstance(error, RevisionNotFoundError):
        message = f"revision {revision!r} not found: use a branch, a tag or a commit of this repository"
    elif isinstance(error, GatedRepoError):
        message = f"access is restricted: accept the conditions on the repository's page, and {SIGN_IN}"
    elif isinstance(error, RepositoryNotFoundError):
        message = f"repository not found, nor a folder of this name: check the name; if it is private, {SIGN_IN}"
    elif isinstance(error, LocalTokenNotFoundError) or status in DENIED:
        message = f"access denied, because the token is missing, not valid or lacks the permission: {SIGN_IN}"
    elif isinstance(error, LocalEntryNotFoundError):
        message = "not in the cache, and the Hub cannot be reached: check the network, HF_HUB_OFFLINE and "
        message += "local_files_only, or give a folder"
    elif isinstance(error, OSError) and error.errno in LOCAL:
        message = f"{error.filename or 'a file'} cannot be written ({error.strerror}): free disk space, grant write "
        message += "permission, or set HF_HOME to another folder"
    elif isinstance(error, ValueError):
        message = f"not accepted ({reason_of(error)}): correct this and run the command again"
    elif isinstance(error, HfHubHTTPError):
        message = f"the Hub refused ({reason_of(error)}): try again later"
    else:
        message = f"the connection to the Hub failed ({reason_of(error)}): check the network"
    raise UserError(f"{repository}: {message}") from error
