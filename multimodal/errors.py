"""What goes wrong with media, on the tree of `quire.errors`."""

from ..errors import QuireError


class MediaError(QuireError, ValueError):
    """A picture, video or sound cannot be fetched, is refused, is too large or cannot be decoded.

    The text may be shown to whoever sent the request: it never tells whether a host that is not
    public exists or answers, nor whether a file outside the allowed folders exists.
    """
