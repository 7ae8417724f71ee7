"""Models in the local cache of the Hugging Face Hub: looked up, never downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from ptgm_fast.errors import MissingExtraError, UserError

# Prefix of a Hub model's name where a file or a network could be given.
HUB = "hf-hub:"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def snapshot(repository: str, *, what: str) -> Path:
    """The folder of ORG/NAME, or ORG/NAME@REVISION, in the local cache.

    If it is not there, raises UserError, prefixed by `what`, with the command that downloads it.
    """
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(f"{what}: the local cache", "huggingface_hub", "timm") from error
    name, _, revision = repository.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        option = f" --revision {revision}" if revision else ""
        raise UserError(
            f"{what}: {repository!r} is neither here nor in the local Hugging Face cache ({constants.HF_HUB_CACHE}). "
            f"Nothing is downloaded by ptgm-fast; get it with: hf download {name}{option}"
        ) from error


def local(target: Path, *, what: str) -> Path:
    """The path itself if it exists; for ORG/NAME that does not, the folder in the local cache."""
    if target.exists() or not _REPOSITORY.fullmatch(target.as_posix()):
        return target
    return snapshot(target.as_posix(), what=what)


def weights_of(repository: str, *, what: str) -> Path:
    """The weights file of a model in the local cache."""
    folder = snapshot(repository, what=what)
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{what}: {repository!r} in the local cache holds none of {', '.join(WEIGHTS)}; "
        f"get the complete model with: hf download {repository.partition('@')[0]}"
    )
