"""What the Hugging Face hub's client could not do, in a user's words: what is wrong, and what to do about it."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from peftbench.errors import UserError

LONGEST = 200  # characters that are quoted of a name, or of what a server says
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class HubError(UserError):
    """The hub refuses a repository, or does not deliver it.

    Attributes:
        reason: what is wrong, as a clause.
        fix: what to do, as a sentence.
    """

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}. {fix}")
        self.reason, self.fix = reason, fix


class NoSuchRevision(HubError):
    """The repository is there, and the revision is not."""


def explain(error: BaseException, name: str, kind: str, revision: str | None = None, file: str = "") -> HubError:
    """Return the HubError for an error of the hub's client.

    Args:
        error: what the client raised.
        name: the repository.
        kind: "model" or "dataset".
        revision: the commit, branch or tag that was asked for.
        file: the file that was asked for; empty for a question about the repository.
    """
    from huggingface_hub import errors

    chain = tuple(_chain(error))
    name = name[:LONGEST]
    if any(isinstance(e, errors.OfflineModeIsEnabled) for e in chain):
        return HubError(
            f"HF_HUB_OFFLINE is set, and the hub's local cache {_cache()} lacks {file or 'it'}",
            "Unset HF_HUB_OFFLINE once, so that it is downloaded, or set HF_HOME to the folder whose cache has it",
        )
    if any(isinstance(e, errors.HFValidationError) for e in chain):
        return HubError(f"{name!r} cannot be a name on the hub", "Write it as OWNER/NAME, as its page on the hub does")
    answered = [e for e in chain if getattr(e, "response", None) is not None]
    if answered:
        return _refusal(answered[0], name, kind, revision, file)
    return _failure(chain, file)


def _refusal(error: BaseException, name: str, kind: str, revision: str | None, file: str) -> HubError:
    """Return the error for an answer of the hub that is not what was asked for."""
    from huggingface_hub import errors

    status = _status(error)
    page = f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if isinstance(error, errors.GatedRepoError):
        who = "the account of your token is not among those who may read it" if _token() else "no token was given"
        return HubError(
            f"the {kind} is gated: its owner asks for consent to a licence, and {who}",
            f"Accept the licence at {page}, and set HF_TOKEN to a token of that account",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NoSuchRevision(
            f"the {kind} has no revision {str(revision)[:LONGEST]!r}",
            _known_revisions(name, kind) or f"Its branches and tags are at {page}",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return HubError(
            f"the {kind} has no file {file!r} at revision {revision or 'main'}", f"Its files are at {page}/tree/main"
        )
    if isinstance(error, errors.RepositoryNotFoundError) and (status == 404 or _token()):
        return HubError(
            f"there is no such {kind} at {endpoint()}" + (", or your token may not read it" if _token() else ""),
            f"Check the name. Were it there, {page} would show it"
            + ("; a private one needs a token of an account that may read it, in HF_TOKEN" if _token() else ""),
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"the {kind} is private, or does not exist: the hub tells neither without a token",
            "Set HF_TOKEN to a token that may read it, or check the name",
        )
    return _by_status(error, status, kind, page)


def _by_status(error: BaseException, status: int, kind: str, page: str) -> HubError:
    said = _said(error)
    if status == 401:
        return HubError(f"the hub does not accept your token{said}", "Set HF_TOKEN to a valid one, or unset it")
    if status == 403:
        return HubError(
            f"your token may not read the {kind}{said}",
            f"Give the token read access to it at {endpoint()}/settings/tokens; its page is {page}",
        )
    if status == 429:
        wait = _seconds_to_wait(error)
        more = "" if _token() else ", or set HF_TOKEN, which allows more requests"
        return HubError(
            f"the hub answers no more requests for now (429, too many requests){said}",
            f"Wait {f'{wait} seconds' if wait else 'some minutes'} and run the same command again{more}",
        )
    if status >= 500:
        return HubError(
            f"the hub at {endpoint()} has a fault of its own (status {status}){said}",
            "Run the same command again later; it goes on with what has been downloaded",
        )
    return HubError(f"the hub refuses the {kind} (status {status}){said}", f"Its page, {page}, may say why")


def _failure(chain: tuple[BaseException, ...], file: str) -> HubError:
    """Return the error for a hub that gave no answer, or broke off."""
    from huggingface_hub import constants

    def named(*parts: str) -> bool:
        return any(part in type(e).__name__ for e in chain for part in parts)

    disk = next((e for e in chain if isinstance(e, OSError) and e.errno in _DISK), None)
    if disk is not None:
        return HubError(
            f"the hub's local cache {_cache()} cannot be written: {disk.strerror}",
            "Free some space there, or set HF_HOME to another folder",
        )
    if any(isinstance(e, socket.gaierror) for e in chain):
        return HubError(
            f"the name {urlsplit(endpoint()).hostname} has no address: the network's name service does not know it",
            "Check the connection, and HF_ENDPOINT if it is set",
        )
    if named("Timeout"):
        if file:
            variable, seconds, what = "HF_HUB_DOWNLOAD_TIMEOUT", constants.HF_HUB_DOWNLOAD_TIMEOUT, f"{file} stalled"
            reason = f"the download of {what}: nothing came for {seconds} s, several times"
        else:
            variable, seconds = "HF_HUB_ETAG_TIMEOUT", constants.HF_HUB_ETAG_TIMEOUT
            reason = f"no answer from {endpoint()} within {seconds} s"
        return HubError(reason, f"Run the same command again, or allow longer pauses: {variable}={6 * seconds}")
    if any(isinstance(e, ConnectionRefusedError) for e in chain) or named("ConnectError", "ProxyError"):
        return HubError(
            f"nothing answers at {endpoint()} ({_first_line(chain[-1])})",
            "Check the connection, the proxy, and HF_ENDPOINT if it is set",
        )
    if named("ProtocolError", "ReadError", "ConnectionResetError") or "Consistency check failed" in str(chain[0]):
        what = f"the download of {file}" if file else f"the answer of {endpoint()}"
        return HubError(f"{what} was cut off", "Run the same command again; files that are whole are kept")
    return HubError(
        f"what answers at {endpoint()} does not answer as a hub does ({_first_line(chain[0])})",
        "Check HF_ENDPOINT and the proxy",
    )


def endpoint() -> str:
    """Return the hub's address, as HF_ENDPOINT sets it, without a password that stands in it."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int:
    return int(_response(error).status_code)


def _response(error: BaseException) -> Any:
    """Return the answer that an error of the client tells of; None if there was none."""
    return getattr(error, "response", None)


def _seconds_to_wait(error: BaseException) -> int | None:
    """Return what the headers Retry-After or RateLimit of an answer say, such as `"api";r=0;t=55`."""
    headers = _response(error).headers
    found = re.search(r"\bt=(\d+)", headers.get("ratelimit", "")) or re.search(r"^\d+$", headers.get("retry-after", ""))
    return int(found[found.lastindex or 0]) if found else None


def _said(error: BaseException) -> str:
    """Return what the server said, to follow a clause."""
    said = _plain(str(getattr(error, "server_message", None) or ""))
    return f": it says {said!r}" if said else ""


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {_plain(str(error))}"


def _plain(text: str) -> str:
    """Return the first line of a text, shortened, and without the user's token."""
    if token := _token():
        text = text.replace(token, "***")
    return re.sub(r"//[^/@\s]+@", "//", (text.strip().splitlines() or [""])[0])[:LONGEST]


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _known_revisions(name: str, kind: str) -> str:
    """Return a sentence with the branches and tags that the hub lists; empty if it lists none."""
    from peftbench.backbones import hub

    names = [n[:60] for n in hub.revisions(name, kind)]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"Valid: {', '.join(names[:12])}{more}, or a commit's full hash" if names else ""
