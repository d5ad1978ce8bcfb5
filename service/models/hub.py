"""Fetches a model from the Hugging Face hub: its client's cache, offline switch and token are honoured."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

from service.errors import FatalModelError
from service.models.weights import WEIGHTS, WEIGHTS_INDEX

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
HUB_ID = re.compile(rf"(?P<id>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9._/-]{{1,200}}))?")

# Never code, never pickles, never other variants of the weights.
WANTED_FILES = [
    "model_index.json",
    "labels.json",
    "README.md",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    f"unet/{WEIGHTS}",
    f"unet/{WEIGHTS_INDEX}",
    f"unet/{WEIGHTS.removesuffix('.safetensors')}-*-of-*.safetensors",
]


def fetch(hub_id: str, revision: str | None) -> Path:
    """The folder in the hub client's cache that holds the model, downloaded when it is not there yet.

    Raises FatalModelError when the hub, the model or the revision cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.getLogger("huggingface_hub").handlers.clear()  # its lines come by ours, once
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=WANTED_FILES))
    except GatedRepoError:
        reason = "asks for an access request on the hub, and a token of it in HF_TOKEN"
    except RepositoryNotFoundError:
        reason = "does not exist on the hub, or is private (its token goes into HF_TOKEN)"
    except RevisionNotFoundError:
        reason = f"has no revision {revision!r} on the hub"
    except LocalEntryNotFoundError:
        reason = "is not in the hub's local cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)"
    except HfHubHTTPError as error:
        reason = f"cannot be fetched, the hub answered {getattr(error.response, 'status_code', 'nothing')}"
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"cannot be fetched ({type(error).__name__}: {' '.join(str(error).split())})"
    raise FatalModelError(f"{hub_id}: {reason}.")
