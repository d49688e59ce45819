"""Where media of a request may come from, and how large they may be."""

import dataclasses

from .errors import MediaError


@dataclasses.dataclass(frozen=True)
class MediaPolicy:
    """The server's word on media; the default takes `data:` and public `http(s):` URLs only.

    Raises MediaError for an option out of range.
    """

    allowed_local_media_path: str | tuple[str, ...] = ""
    """Folders whose files `file:` URLs may name, links resolved; empty: no local file at all."""
    allowed_media_domains: tuple[str, ...] = ()
    """Exact host names that may be asked, redirects included; empty: any public host."""
    allow_private_addresses: bool = False
    """Also asks hosts at loopback, private, link-local, multicast and reserved addresses."""
    timeout_s: float = 5.0
    """Seconds for all of one medium: names, connections, redirects and the body."""
    max_bytes: int = 64 << 20
    """Bytes of one medium as sent, before it is decoded."""
    max_redirects: int = 3

    def __post_init__(self) -> None:
        domains = tuple(domain.lower().rstrip(".") for domain in self.allowed_media_domains)
        object.__setattr__(self, "allowed_media_domains", domains)
        if wrong := [name for name in domains if not name or set(name) & set("/:@*")]:
            raise MediaError(
                f"allowed_media_domains holds {wrong[0]!r}; allowed are plain host names. "
                "Leave out scheme, port, path and wildcards: 'images.example.com'."
            )
        if not self.timeout_s > 0:
            raise MediaError(f"timeout_s is {self.timeout_s}; give seconds above 0.")
        if self.max_bytes < 1:
            raise MediaError(f"max_bytes is {self.max_bytes}; give at least 1 byte.")
        if self.max_redirects < 0:
            raise MediaError(f"max_redirects is {self.max_redirects}; give 0 or more.")

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders of `allowed_local_media_path`, none where it is empty."""
        given = self.allowed_local_media_path
        return tuple(root for root in ((given,) if isinstance(given, str) else given) if root)
