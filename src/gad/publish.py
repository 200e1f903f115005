"""Upload of an exported student to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from gad.errors import GadError, MissingExtra


def upload(folder: Path, repository: str) -> str:
    """Create the repository where needed and upload the folder; returns its address.

    The token comes from HF_TOKEN or from the login on this machine. Raises GadError where the hub refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    except ImportError as error:
        raise MissingExtra("uploading to the hub", "train") from error
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        lines = str(error).strip().splitlines()
        raise GadError(
            f"{repository} was not uploaded ({lines[0] if lines else type(error).__name__}); {folder} is complete, "
            "set HF_TOKEN to a token that may write and upload it with `hf upload`"
        ) from error
    return f"https://huggingface.co/{repository}"
