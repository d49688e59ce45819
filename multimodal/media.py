"""The bytes of a medium from where a request says: `data:`, `http(s):` or `file:` URLs."""

import base64
import binascii
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .download import download, too_large
from .errors import MediaError
from .policy import MediaPolicy

__all__ = ["MediaError", "MediaPolicy", "fetch"]


def fetch(url: str, policy: MediaPolicy) -> bytes:
    """The bytes behind `url`, as `policy` allows; what kind of medium they are is not looked at.

    Blocks for up to `policy.timeout_s`: call it from a thread. Raises MediaError.
    """
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        return _from_data(url, policy.max_bytes)
    if scheme in ("http", "https"):
        return download(url, policy)
    if scheme == "file":
        return _from_file(url, policy)
    raise MediaError(
        f"The media URL {url[:80]!r} is none that is known; allowed are data: with base64, "
        "http:, https: and, if the server allows a folder, file:."
    )


def _from_data(url: str, max_bytes: int) -> bytes:
    """The payload of `data:[type];base64,…`, measured before it is decoded."""
    comma = url.find(",", 0, 1024)
    if comma < 0 or not url[:comma].lower().endswith(";base64"):
        raise MediaError(
            f"The media URL {url[:80]!r} is no base64 data: URL. Give "
            "'data:image/png;base64,' and the bytes in base64."
        )
    length = len(url) - comma - 1
    if length > 4 * (max_bytes + 2) // 3 and "%" not in url[comma:]:
        raise too_large(f"A data: URL holds {length} characters of base64", max_bytes)
    if length > 4 * (max_bytes + 2):  # three characters for one where all are percent-encoded
        raise too_large(f"A data: URL holds {length} characters of base64", max_bytes)
    text = url[comma + 1 :]
    try:
        data = base64.b64decode(unquote(text) if "%" in text else text, validate=True)
    except ValueError as error:  # binascii.Error is one, and text beyond ASCII gives another
        what = str(error) if isinstance(error, binascii.Error) else "characters beyond ASCII"
        raise MediaError(
            f"The base64 of a data: URL of {length} characters is malformed: {what}. "
            "Encode with the standard alphabet, with padding and without line breaks."
        ) from None
    if len(data) > max_bytes:
        raise too_large(f"A data: URL holds {len(data)} bytes", max_bytes)
    return data


def _from_file(url: str, policy: MediaPolicy) -> bytes:
    """A regular file under an allowed folder, after links are resolved."""
    path = _allowed_path(url, policy)
    try:
        # O_NONBLOCK: a pipe would wait for a writer before it can be refused
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MediaError(f"{url[:200]!r} is no regular file. Name a file with a medium.")
            data = file.read(policy.max_bytes + 1)
    except OSError as error:
        raise MediaError(
            f"{url[:200]!r} cannot be read: {error.strerror}. Check the path."
        ) from None
    if len(data) > policy.max_bytes:
        raise too_large(f"{url[:200]!r} holds more", policy.max_bytes)
    return data


def _allowed_path(url: str, policy: MediaPolicy) -> Path:
    """The resolved path; raises MediaError before anything tells whether the file exists."""
    if not policy.roots:
        raise MediaError(
            f"{url[:200]!r} names a local file, and the server allows none. Send the medium as a "
            "data: URL; a server's operator may set allowed_local_media_path."
        )
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path, errors="strict")).resolve()
        roots = [Path(root).resolve(strict=True) for root in policy.roots]
    except (OSError, RuntimeError, ValueError):  # a loop of links, a missing root, a NUL
        raise _outside(url) from None
    if parts.netloc not in ("", "localhost") or not any(map(path.is_relative_to, roots)):
        raise _outside(url)
    return path


def _outside(url: str) -> MediaError:
    return MediaError(
        f"{url[:200]!r} is refused: it is not under an allowed folder, after links are resolved. "
        "Allowed are absolute file:/// URLs below the server's allowed_local_media_path."
    )
