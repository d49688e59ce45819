"""Finds and names the pages of sequences by their content, so that sequences share prefixes."""

from collections.abc import Iterator

from .media import within
from .page_pool import PagePool, page_hash
from .request import Request, Sequence


class PrefixCache:
    """The hash chains of sequences, over the pages of a `PagePool`.

    A page enters the pool's tables as soon as the step that fills it is scheduled and its tokens
    are known: a step writes the K and V of all its tokens before it reads any, so even sequences
    admitted to the same step can share it.
    """

    def __init__(self, pool: PagePool, enabled: bool) -> None:
        """Not `enabled`: only the n sequences of one request share, and only while they run."""
        self.enabled = enabled
        self._pool = pool

    def find(self, sequence: Sequence) -> list[int]:
        """Pages that hold the beginning of a sequence which waits; it still has to acquire them.

        At least one token stays to be computed. A request whose prompt must be computed (for its
        log-probabilities) finds nothing before it has output; the others of
        its n sequences do, since computing the prompt once is enough.
        """
        chain = self.chain(sequence)
        return [] if _must_compute_prompt(sequence) else self._pool.match(chain)

    def chain(self, sequence: Sequence) -> Iterator[bytes]:
        """Hashes of the pages that could hold the beginning of a sequence which waits, computed as
        they are asked for; none where it shares no pages."""
        if sequence.hashes[:1] != [self._pool.root]:
            sequence.hashes = [self._pool.root]
        shares = self._shares(sequence)
        full = (len(sequence.tokens) - 1) // self._pool.page_size
        return self._chain(sequence, 0, full if shares else 0)

    def register(self, sequence: Sequence) -> None:
        """Makes the pages of a running sequence findable that are scheduled and known in full."""
        full = min(sequence.computed, len(sequence.tokens)) // self._pool.page_size
        first = sequence.registered
        if full > first and self._shares(sequence):
            hashes = self._chain(sequence, first, full)
            owner = sequence.request.adapter_digest
            for page, digest in zip(sequence.pages[first:full], hashes, strict=True):
                self._pool.register(page, digest, owner)
            sequence.registered = full

    def release(self, pages: list[int]) -> None:
        """Drops a reference of each page; where the cache is off nobody finds them again."""
        self._pool.free(pages, forget=not self.enabled)

    def _shares(self, sequence: Sequence) -> bool:
        return self.enabled or len(sequence.request.sequences) > 1

    def _salt(self, request: Request) -> bytes:
        """What its pages differ in from pages of the same tokens: its adapter and its salt."""
        owner = request.adapter_digest.encode()
        # behind its length, so that no salt can pass for a digest
        return bytes([len(owner)]) + owner + (request.salt if self.enabled else request.id.encode())

    def _chain(self, sequence: Sequence, first: int, end: int) -> Iterator[bytes]:
        """Hashes of its full pages `first` to `end` - 1, computed as they are asked for, once."""
        hashes, tokens, request = sequence.hashes, sequence.tokens, sequence.request
        page_size = self._pool.page_size
        salt = self._salt(request)
        for page in range(first, end):
            if page + 1 == len(hashes):
                start, stop = page * page_size, (page + 1) * page_size
                shown = _shown(request, start, stop)
                hashes.append(page_hash(hashes[page], tokens[start:stop], shown + salt))
            yield hashes[page + 1]


def _shown(request: Request, start: int, stop: int) -> bytes:
    """What media tokens from `start` to `stop` - 1 stand for, behind its length."""
    media = [one.digest for _, one in within(request.media, start, stop)]
    return len(media).to_bytes(2) + b"".join(media)


def _must_compute_prompt(sequence: Sequence) -> bool:
    if sequence.index or sequence.output_len:
        return False
    return sequence.request.params.prompt_logprobs is not None
