"""An exported folder on the Hugging Face hub. Nothing else in tether sends a model anywhere.

tether.push("adapter", "my-team/llama-facts", private=True)
"""

import json
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from tether.errors import BadSettingsError, TetherError, first_line
from tether.export.manifest import read_manifest
from tether.models.load import without_place

_OF_THE_HUB = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)  # the HTTP client's own, and OSError
_REFUSED: tuple[type[Exception], ...] = (*_OF_THE_HUB, ValueError, RuntimeError)


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a folder that an export wrote to the model repository `repo` (`name/of-it`), which is made where it does
    not exist yet; returns the address of the commit.

    `private` is for a new repository: one that exists stays as visible as it is. The address of the hub and the token
    are huggingface_hub's own (`HF_ENDPOINT`, `HF_TOKEN` or `hf auth login`). The folder is not changed. Raises
    BadSettingsError for a name that cannot be one, TetherError for a folder without manifest.json, an adapter that
    names its base by a place on this machine, and what the hub refuses.
    """
    folder = Path(folder)
    check_repo(repo)
    read_manifest(folder)
    _check_base_name(folder)
    try:
        HfApi().create_repo(repo, private=private or None, exist_ok=True)
        return HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Edited with tether").commit_url
    except _REFUSED as error:
        raise TetherError(
            f"{folder} is whole, but did not go to {repo} ({first_line(error)}): check the name, the network and the "
            f"access token, then `hf upload {repo} {folder}`"
        ) from error


def check_repo(repo: str) -> None:
    """Raise BadSettingsError for what cannot be a repository's name."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise BadSettingsError(f"{repo!r} is no name of a repository: write it as my-team/my-model") from None


def _check_base_name(folder: Path) -> None:
    config = folder / "adapter_config.json"
    base = json.loads(config.read_text("utf-8")).get("base_model_name_or_path") if config.is_file() else None
    if base is not None and without_place(base) != base:
        raise TetherError(
            f"{config} names its base model by a place on this machine, {base}: export it again with --base-name and "
            "the base's name on the hub"
        )
