"""Ask the hub what a repository holds, and put its refusals into words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llamaswap_py.hub.refs import HubError, HubFile, HubRef
from llamaswap_py.hub.session import prepare_session


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    files: tuple[HubFile, ...]


def list_repo(ref: HubRef) -> Listing:
    """Return what a repository holds; HF_ENDPOINT and HF_TOKEN are honoured. Raises HubError."""
    from huggingface_hub import HfApi

    prepare_session()
    with hub_errors(ref):
        info = HfApi().model_info(ref.repo, files_metadata=True, timeout=30)
    files = [
        HubFile(
            one.rfilename,
            int(one.size or 0),
            str(one.lfs.sha256) if one.lfs is not None else "",
        )
        for one in info.siblings or ()
        if ".." not in one.rfilename.split("/") and not one.rfilename.startswith("/")
    ]
    return Listing(str(info.sha or "main"), tuple(files))


@contextmanager
def hub_errors(ref: HubRef) -> Iterator[None]:
    """Turn what huggingface_hub raises into HubError with a remedy."""
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{ref.repo} is gated: its authors must let you in",
            remedy=f"ask at {_page(ref)}, then set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no repository {ref.repo}, or it is private",
            remedy="check the name; for a private one set HF_TOKEN",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 404:
            message = f"{ref.repo} has no such file (any more)"
            raise HubError(message, remedy="list it anew: lswap pull") from error
        if status in (401, 403):
            message = f"the hub refused access to {ref.repo} (HTTP {status})"
            raise HubError(message, remedy="set HF_TOKEN to a valid token") from error
        raise HubError(f"the hub failed for {ref.repo} (HTTP {status})", remedy="try again") from (
            error
        )
    except (httpx.RequestError, errors.OfflineModeIsEnabled) as error:
        said = str(error) or type(error).__name__
        raise HubError(
            f"the hub cannot be reached: {said}",
            remedy="check the network and HF_ENDPOINT; downloads go on where they stopped",
        ) from error


def _page(ref: HubRef) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{ref.repo}"
