"""The body behind an `http(s):` URL, from public hosts only, within a size and a time.

A host name is resolved once for each hop; all its addresses must be public, and the connection
goes to one of those very addresses, so a name that resolves otherwise a moment later is no way in.
Proxies of the environment are not used: they would resolve the name again.
"""

import dataclasses
import http.client
import io
import socket
import ssl
import time
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from .addresses import Address, is_public, resolve
from .errors import MediaError
from .policy import MediaPolicy

REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 1 << 16
_PORTS = {"http": 80, "https": 443}


def download(url: str, policy: MediaPolicy, tls: ssl.SSLContext | None = None) -> bytes:
    """The body that `url` leads to, redirects followed; `tls` replaces the system's trust.

    Raises MediaError for a refused, unreachable, slow, too large or failing source.
    """
    deadline = Deadline(time.monotonic() + policy.timeout_s, policy.timeout_s)
    for _ in range(policy.max_redirects + 1):
        target = Target.parse(url, policy)
        found = _ask(target, policy, deadline, tls)
        if isinstance(found, bytes):
            return found
        url = _joined(url, found)
    raise MediaError(
        f"Media are fetched through at most {policy.max_redirects} redirects, and {url[:200]!r} "
        "would be one more. Give the URL that the redirects end at."
    )


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise _malformed(location, "a redirect leads to it, and it cannot be read") from None


@dataclasses.dataclass(frozen=True)
class Deadline:
    """The moment, on the monotonic clock, when a whole download must be over."""

    at: float
    timeout_s: float

    def left(self) -> float:
        """Seconds above 0; raises TimeoutError where none are left."""
        if (seconds := self.at - time.monotonic()) <= 0:
            raise TimeoutError
        return seconds


@dataclasses.dataclass(frozen=True)
class Target:
    """One hop's URL, checked: `host` is ASCII and lower case, `path` holds the query."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str, policy: MediaPolicy) -> "Target":
        """Raises MediaError for what is no plain http(s) URL, or a domain that is not allowed."""
        parts, host, port = _split(url)
        if policy.allowed_media_domains and host.rstrip(".") not in policy.allowed_media_domains:
            raise MediaError(
                f"Media from {host!r} are not allowed; allowed are "
                f"{', '.join(policy.allowed_media_domains)}. The server's "
                "allowed_media_domains says so; or send the medium as a data: URL."
            )
        query = f"?{parts.query}" if parts.query else ""
        path = quote((parts.path or "/") + query, safe="/%:@!$&'()*+,;=~?")
        return cls(parts.scheme, host, port, path)


def _split(url: str) -> tuple[SplitResult, str, int]:
    """The parts of an http(s) URL with its host in ASCII and its port; raises MediaError."""
    if any(character <= " " or character in "\\\x7f" for character in url):
        raise _malformed(url, "it holds spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError:  # UnicodeError is one
        raise _malformed(url, "its host or port cannot be read") from None
    if parts.scheme not in _PORTS:
        raise _malformed(url, f"its scheme is {parts.scheme[:20]!r}, not http or https")
    if "@" in parts.netloc:
        raise _malformed(url, "it holds a user name")
    if not host or port == 0:
        raise _malformed(url, "it has no host, or port 0")
    return parts, host, port or _PORTS[parts.scheme]


def _malformed(url: str, why: str) -> MediaError:
    return MediaError(
        f"The media URL {url[:200]!r} is refused: {why}. "
        "Give http(s)://host[:port]/path, percent-encoded."
    )


def _ask(
    target: Target, policy: MediaPolicy, deadline: Deadline, tls: ssl.SSLContext | None
) -> bytes | str:
    """The body at `target`, or where it redirects to. Raises MediaError."""
    try:
        addresses = _checked(target, policy, deadline)
        sock = _connect(target, addresses, deadline, tls)
        with sock:
            return _exchange(target, _DeadlineSocket(sock, deadline), policy)
    except TimeoutError:
        raise MediaError(
            f"{target.host!r} did not send the medium within {deadline.timeout_s} seconds. "
            "Send it as a data: URL, or raise the server's QUIRE_IMAGE_FETCH_TIMEOUT."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise MediaError(
            f"The medium cannot be fetched from {target.host!r} ({type(error).__name__}). "
            "Check the URL, or send the medium as a data: URL."
        ) from None


def _checked(target: Target, policy: MediaPolicy, deadline: Deadline) -> list[Address]:
    """The addresses to connect to. One refusal for all causes: it tells nothing of a network."""
    addresses = resolve(target.host, target.port, deadline.left())
    allowed = policy.allow_private_addresses or all(map(is_public, addresses))
    if not addresses or not allowed:
        raise MediaError(
            f"The host {target.host!r} has no public address, and media are fetched from public "
            "hosts only. Send the medium as a data: URL; a server's operator may set "
            "allow_private_media_addresses."
        )
    return addresses


def _connect(
    target: Target, addresses: list[Address], deadline: Deadline, tls: ssl.SSLContext | None
) -> socket.socket:
    """A socket to the first address that answers; raises OSError where none does."""
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            sock = socket.create_connection((str(address), target.port), deadline.left())
        except OSError as error:
            failure = error
            continue
        if target.scheme == "http":
            return sock
        try:
            sock.settimeout(deadline.left())
            context = tls or ssl.create_default_context()
            return context.wrap_socket(sock, server_hostname=target.host)
        except BaseException:
            sock.close()
            raise
    raise failure


def _exchange(target: Target, sock: "_DeadlineSocket", policy: MediaPolicy) -> bytes | str:
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    connection = kinds[target.scheme](target.host, target.port)
    connection.sock = sock  # connected already, to an address that was checked
    headers = {"User-Agent": "quire", "Accept": "*/*", "Accept-Encoding": "identity"}
    connection.request("GET", target.path, headers=headers)
    response = connection.getresponse()
    location = response.getheader("Location")
    if response.status in REDIRECTS and location:
        return location
    if response.status != 200:
        raise MediaError(
            f"{target.host!r} answers with status {response.status}, not 200. "
            "Check that the URL can be read without a login."
        )
    return _body(target, response, policy.max_bytes)


def _body(target: Target, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """All of the body, or MediaError as soon as it is known to be too large or cut short."""
    coding = response.getheader("Content-Encoding", "identity").lower()
    if coding != "identity":
        raise MediaError(
            f"{target.host!r} sends the medium encoded as {coding[:20]!r}, unasked. "
            "Send the medium as a data: URL."
        )
    if (response.length or 0) > max_bytes:
        raise too_large(f"{target.host!r} sends {response.length} bytes", max_bytes)
    body = bytearray()
    while part := response.read(min(CHUNK, max_bytes + 1 - len(body))):
        body += part
        if len(body) > max_bytes:
            raise too_large(f"{target.host!r} sends more", max_bytes)
    if response.length:
        raise MediaError(
            f"{target.host!r} ended {response.length} bytes before the medium's end. Try again."
        )
    return bytes(body)


def too_large(what: str, max_bytes: int) -> MediaError:
    """The refusal of a medium; `what` says how large it is."""
    return MediaError(
        f"{what}, and a medium may have at most {max_bytes} bytes. "
        "Send a smaller one, or raise the server's max_bytes for media."
    )


class _DeadlineSocket:
    """As much of a socket as http.client uses; each read gets only the time that is left.

    A plain timeout starts anew at every read, so a server that sends a byte now and then could
    hold a download for ever.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """`mode` is always "rb" here."""
        return io.BufferedReader(_DeadlineReader(self._sock, self._deadline))

    def close(self) -> None:
        """Nothing: whoever connected closes, after the body is read."""


class _DeadlineReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)
