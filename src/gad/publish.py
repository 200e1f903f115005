"""Where an exported student goes: a folder of its own, and the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gad.errors import ConfigError, GadError, MissingExtra

TOKEN = "HF_TOKEN"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def may_export(folder: Path) -> None:
    """Raises ConfigError where there is something already: a model is never mixed with older files."""
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} exists: give a folder that does not, or remove it")


def may_upload(repository: str) -> None:
    """Checked before anything is computed. Raises ConfigError without a name or a token, MissingExtra without a client.

    The token comes from the environment alone; it is never written down or shown.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"--push {repository}: a repository is written OWNER/NAME")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingExtra("uploading to the hub", "train") from error
    if not os.environ.get(TOKEN):
        raise ConfigError(
            f"--push {repository} needs a token that may write: set the environment variable {TOKEN}; "
            "https://huggingface.co/settings/tokens makes one"
        )


def upload(folder: Path, repository: str) -> str:
    """Create the repository where needed and upload the folder; returns its address.

    Raises GadError where the hub cannot be reached or refuses; the folder stays.
    """
    may_upload(repository)
    from huggingface_hub import HfApi

    api = HfApi(token=os.environ[TOKEN])
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # the errors of its HTTP client have no base that is the same in all versions
        lines = str(error).replace(os.environ[TOKEN], "***").strip().splitlines()
        raise GadError(
            f"{repository} was not uploaded ({lines[0] if lines else type(error).__name__}); {folder} is complete: "
            f"see to {TOKEN} and the network, then `hf upload {repository} {folder}`"
        ) from error
    return f"{api.endpoint}/{repository}"
