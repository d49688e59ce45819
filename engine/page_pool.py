"""KV page numbers: who holds which page, and which full pages can be found again by their hash.

Every page but the null page is in exactly one state: *free* (nothing worth keeping in it), *in use*
(at least one reference) or *cached* (no reference, but its content is known by hash, so that it
stays until `allocate` runs out of free pages and takes the least recently used one).
"""

import struct
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b

from ..errors import MemoryBudgetError, OptionError

NULL_PAGE = 0
"""Where padding writes; never handed out."""

_HASH_BYTES = 16


def page_hash(parent: bytes, tokens: Sequence[int], salt: bytes) -> bytes:
    """Names a full page by its tokens, all pages before it (`parent`, 16 bytes) and `salt`.

    The parent of a sequence's first page is `PagePool.root`. Token ids must fit in 32 bits.
    """
    packed = struct.pack(f"{len(tokens)}i", *tokens)
    return blake2b(parent + salt + packed, digest_size=_HASH_BYTES).digest()


class PagePool:
    """Hands out the pages 1 to `num_pages` - 1. Each operation costs O(1) a page, amortized."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        """`page_size` is in tokens. Raises MemoryBudgetError and OptionError for useless sizes."""
        if num_pages < 2:
            raise MemoryBudgetError(
                f"a KV pool of {num_pages} page(s) holds nothing: page 0 is reserved, so it needs "
                "at least 2. Give the pool more memory or choose a smaller page_size."
            )
        if page_size < 1:
            raise OptionError(f"page_size={page_size} must be at least 1.")
        self.num_pages = num_pages
        self.page_size = page_size
        self.queried_tokens = 0
        """Prompt tokens looked up in the prefix cache since the start; whoever looks up counts."""
        self.hit_tokens = 0
        """Those of them that were found."""
        self._references = [0] * num_pages
        self._hashes: list[bytes | None] = [None] * num_pages
        self._by_hash: dict[bytes, int] = {}
        self._owners: dict[int, str] = {}  # of pages with a hash, where they have one
        self._owned: dict[str, set[int]] = {}
        self._free = list(range(num_pages - 1, NULL_PAGE, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._epoch = 0

    @property
    def root(self) -> bytes:
        """Parent hash of a first page. A reset changes it: chains begun before match no more."""
        return self._epoch.to_bytes(_HASH_BYTES, "little")

    @property
    def num_free(self) -> int:
        """Pages that `allocate` can hand out: free ones and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def usage(self) -> float:
        """Share of the pages in use, 0 to 1."""
        return 1.0 - self.num_free / (self.num_pages - 1)

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with one reference each, or None (and nothing changes) if there are fewer.

        Free pages go first; then cached pages are evicted, and their hashes forgotten.
        """
        free = self._free
        missing = count - len(free)
        if missing > len(self._cached):
            return None
        for _ in range(missing):
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
            free.append(page)
        pages = free[: -count - 1 : -1]
        del free[len(free) - count :]
        for page in pages:
            self._references[page] = 1
        return pages

    def acquire(self, pages: Iterable[int]) -> None:
        """Adds one reference to each page, in use or cached (as `match` found it)."""
        references = self._references
        for page in pages:
            if references[page] == 0:
                del self._cached[page]
            references[page] += 1

    def free(self, pages: Sequence[int], *, forget: bool = False) -> None:
        """Drops one reference of each page; those that nobody holds then become cached or free.

        From the last to the first, so that the tail of a chain is evicted before its head. With
        `forget` a page is not cached, its hash is dropped with the last reference.
        """
        references, hashes = self._references, self._hashes
        for page in reversed(pages):
            left = references[page] - 1
            if left < 0:
                raise AssertionError(f"page {page} was freed more often than it was referenced")
            references[page] = left
            if left:
                continue
            if hashes[page] is not None:
                if not forget:
                    self._cached[page] = None
                    continue
                self._forget(page)
            self._free.append(page)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Pages of the longest known prefix of a hash chain; takes no hash beyond the first miss.

        No reference is added: the result is valid until the next `allocate`, so `acquire` it.
        """
        pages = []
        for digest in hashes:
            page = self._by_hash.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def knows(self, digest: bytes) -> bool:
        """Whether a page has this hash."""
        return digest in self._by_hash

    def register(self, page: int, digest: bytes, owner: str = "") -> None:
        """Makes a full page in use findable. A hash that already has a page keeps that page.

        `owner` is what `forget` knows it by; empty is nobody.
        """
        if digest not in self._by_hash and self._hashes[page] is None:
            self._by_hash[digest] = page
            self._hashes[page] = digest
            if owner:
                self._owners[page] = owner
                self._owned.setdefault(owner, set()).add(page)

    def forget(self, owner: str) -> None:
        """Makes the pages that were registered for `owner` unfindable, and frees those cached.

        Pages in use stay with their holders.
        """
        for page in sorted(self._owned.get(owner, ())):
            self._forget(page)
            if page in self._cached:
                del self._cached[page]
                self._free.append(page)

    def reset_prefix_cache(self) -> bool:
        """Forgets every hash. True where no page is in use, so nothing computed before is left.

        Pages in use stay with their holders, and what those register later cannot be matched by
        chains that begin at the new `root`.
        """
        for page in self._by_hash.values():
            self._hashes[page] = None
        self._by_hash.clear()
        self._owners.clear()
        self._owned.clear()
        self._free.extend(self._cached)
        self._cached.clear()
        self._epoch += 1
        return len(self._free) == self.num_pages - 1

    def check_integrity(self, holders: Iterable[Sequence[int]] | None = None) -> None:
        """Raises AssertionError unless every page is in one state and the hash tables agree.

        `holders`, where given, are the page lists of all who hold references; they must account for
        every reference. Scans the whole pool.
        """
        in_use = [page for page, count in enumerate(self._references) if count]
        self._check_states(in_use)
        self._check_hashes()
        if holders is not None:
            held = Counter(page for pages in holders for page in pages)
            wrong = [
                (page, count, held[page])
                for page, count in enumerate(self._references)
                if count != held[page]
            ]
            _check_empty("pages (page, references, holders) whose holders do not add up", wrong)

    def _forget(self, page: int) -> None:
        digest = self._hashes[page]
        if digest is not None:
            del self._by_hash[digest]
            self._hashes[page] = None
            self._disown(page)

    def _disown(self, page: int) -> None:
        owner = self._owners.pop(page, "")
        if owner:
            pages = self._owned[owner]
            pages.remove(page)
            if not pages:
                del self._owned[owner]

    def _check_states(self, in_use: list[int]) -> None:
        negative = [page for page in in_use if self._references[page] < 0]
        _check_empty("pages with negative reference counts", negative)
        states = Counter([NULL_PAGE, *self._free, *self._cached, *in_use])
        wrong = [page for page in range(self.num_pages) if states[page] != 1]
        _check_empty("pages in no state or in several", wrong)
        _check_empty("pages that do not exist", set(states) - set(range(self.num_pages)))

    def _check_hashes(self) -> None:
        hashed = {(digest, page) for page, digest in enumerate(self._hashes) if digest is not None}
        _check_empty("hashes known in one table only", hashed ^ set(self._by_hash.items()))
        lost = [page for page in self._cached if self._hashes[page] is None]
        _check_empty("cached pages without a hash", lost)
        kept = [page for page in self._free if self._hashes[page] is not None]
        _check_empty("free pages with a hash", kept)
        owned = {(page, owner) for owner, pages in self._owned.items() for page in pages}
        _check_empty("pages owned in one table only", owned ^ set(self._owners.items()))
        nameless = [page for page in self._owners if self._hashes[page] is None]
        _check_empty("pages owned without a hash", nameless)


def _check_empty(what: str, found: Collection[object]) -> None:
    if found:
        raise AssertionError(f"{what}: {found}")
