"""The page pool against its rules one by one, and against a plain model of them."""

from collections.abc import Callable

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire.engine.page_pool import PagePool, page_hash
from quire.errors import MemoryBudgetError, OptionError


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


def allocate(pool: PagePool, count: int) -> list[int]:
    pages = pool.allocate(count)
    assert pages is not None
    return pages


def cached_pages(pool: PagePool, count: int) -> list[int]:
    """Pages that nobody holds, with the hashes 0 to count - 1."""
    pages = allocate(pool, count)
    for number, page in enumerate(pages):
        pool.register(page, digest(number))
    pool.free(pages)
    return pages


def test_hands_out_every_page_but_the_null_page():
    pool = PagePool(6, 4)
    assert sorted(allocate(pool, 5)) == [1, 2, 3, 4, 5]
    assert pool.num_free == 0
    assert pool.usage == 1.0


def test_allocates_all_or_nothing():
    pool = PagePool(6, 4)
    held = allocate(pool, 3)
    assert pool.allocate(3) is None
    assert pool.num_free == 2
    assert pool.allocate(0) == []
    pool.free(held)
    assert pool.usage == 0.0
    pool.check_integrity([])


def test_page_is_free_only_after_its_last_reference():
    pool = PagePool(4, 4)
    pages = allocate(pool, 2)
    pool.acquire(pages)
    pool.free(pages)
    assert pool.num_free == 1
    pool.check_integrity([pages])
    pool.free(pages)
    assert pool.num_free == 3


def test_matches_the_longest_known_prefix():
    pool = PagePool(8, 4)
    pages = cached_pages(pool, 3)
    chain = [digest(n) for n in (0, 1, 9, 2)]
    assert pool.match(chain) == pages[:2]
    assert pool.match([digest(9)]) == []
    assert pool.match([]) == []


def test_match_asks_for_no_hash_beyond_the_first_miss():
    pool = PagePool(8, 4)
    cached_pages(pool, 1)
    hashes = iter([digest(0), digest(7), digest(8)])
    pool.match(hashes)
    assert list(hashes) == [digest(8)]


def test_free_pages_go_before_cached_ones():
    pool = PagePool(6, 4)
    pages = cached_pages(pool, 2)
    assert not set(allocate(pool, 3)) & set(pages)
    assert pool.match([digest(0), digest(1)]) == pages


def test_evicts_the_tail_of_a_chain_before_its_head():
    pool = PagePool(4, 4)
    pages = cached_pages(pool, 3)
    assert allocate(pool, 1) == [pages[2]]
    assert pool.match([digest(n) for n in range(3)]) == pages[:2]
    pool.check_integrity()


def test_evicts_the_least_recently_used():
    pool = PagePool(4, 4)
    pages = cached_pages(pool, 3)
    pool.acquire([pages[2]])
    pool.free([pages[2]])
    assert allocate(pool, 2) == [pages[0], pages[1]]
    assert pool.match([digest(2)]) == [pages[2]]


def test_never_evicts_a_page_in_use():
    pool = PagePool(4, 4)
    pages = cached_pages(pool, 3)
    pool.acquire(pages[:1])
    assert pool.num_free == 2
    assert pool.allocate(3) is None
    assert pages[0] not in allocate(pool, 2)
    assert pool.match([digest(0)]) == pages[:1]


def test_a_known_hash_keeps_its_page():
    pool = PagePool(4, 4)
    first, second = allocate(pool, 2)
    pool.register(first, digest(0))
    pool.register(second, digest(0))
    assert pool.match([digest(0)]) == [first]
    pool.free([first, second])
    pool.check_integrity([])
    assert pool.match([digest(0)]) == [first]


def test_forgotten_pages_are_not_cached():
    pool = PagePool(4, 4)
    pages = allocate(pool, 2)
    pool.register(pages[0], digest(0))
    pool.acquire(pages)
    pool.free(pages, forget=True)
    assert pool.match([digest(0)]) == [pages[0]]
    pool.free(pages, forget=True)
    assert pool.match([digest(0)]) == []
    pool.check_integrity([])


def test_reset_forgets_hashes_and_keeps_pages_in_use():
    pool = PagePool(6, 4)
    pages = cached_pages(pool, 3)
    pool.acquire(pages[:1])
    root = pool.root
    assert not pool.reset_prefix_cache()
    assert pool.match([digest(0)]) == []
    assert pool.root != root
    pool.check_integrity([pages[:1]])
    pool.free(pages[:1])
    assert pool.num_free == 5
    assert pool.reset_prefix_cache()


def test_the_pages_of_an_owner_are_forgotten():
    pool = PagePool(8, 4)
    pages = allocate(pool, 5)
    for number, (page, owner) in enumerate(zip(pages, ("a", "a", "b", ""), strict=False)):
        pool.register(page, digest(number), owner)
    pool.free(pages[1:])
    pool.forget("a")
    pool.forget("unknown")
    assert [pool.match([digest(number)]) for number in range(4)] == [[], [], [pages[2]], [pages[3]]]
    pool.check_integrity([pages[:1]])
    pool.free(pages[:1])
    assert pool.num_free == 7
    assert len(pool._cached) == 2
    allocate(pool, 7)
    pool.check_integrity()
    assert not pool._owned


def test_freeing_twice_is_an_error():
    pool = PagePool(4, 4)
    pages = allocate(pool, 1)
    pool.free(pages)
    with pytest.raises(AssertionError, match="page 1 was freed more often"):
        pool.free(pages)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda pool: pool._free.append(1), r"in no state or in several: \[1\]"),
        (lambda pool: pool._free.pop(), "in no state or in several"),
        (lambda pool: pool._free.append(99), "do not exist"),
        (lambda pool: pool._references.__setitem__(1, -1), "negative reference counts"),
        (lambda pool: pool._references.__setitem__(1, 2), r"do not add up: \[\(1, 2, 1\)\]"),
        (lambda pool: pool._by_hash.clear(), "known in one table only"),
        (lambda pool: pool._owned.clear(), "owned in one table only"),
        (lambda pool: pool._hashes.__setitem__(1, pool._by_hash.clear()), "owned without a hash"),
    ],
)
def test_check_integrity_sees_damage(damage: Callable[[PagePool], object], message: str):
    pool = PagePool(4, 4)
    held = allocate(pool, 1)
    pool.register(held[0], digest(0), "owner")
    pool.check_integrity([held])
    damage(pool)
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity([held])


def test_refuses_useless_sizes():
    with pytest.raises(MemoryBudgetError, match="1 page.* at least 2"):
        PagePool(1, 4)
    with pytest.raises(OptionError, match="page_size=0 must be at least 1"):
        PagePool(4, 0)


def test_page_hash_depends_on_everything_it_names():
    parent, other = digest(1), digest(2)
    names = {
        page_hash(parent, [1, 2], b""),
        page_hash(other, [1, 2], b""),
        page_hash(parent, [2, 1], b""),
        page_hash(parent, [1, 2], b"salt"),
        page_hash(parent, [1, 2 + 2**24], b""),
    }
    assert len(names) == 5
    assert page_hash(parent, (1, 2), b"") == page_hash(parent, [1, 2], b"")
    assert {len(name) for name in names} == {16}


class PoolMachine(RuleBasedStateMachine):
    """Random holders against a model: what each holds, and what is cached in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(9, 4)
        self.holders: list[list[int]] = []
        self.named: dict[int, bytes] = {}
        self.cached: list[int] = []
        self.owners: dict[int, str] = {}  # also of pages that have lost their name since

    def unused(self) -> set[int]:
        return set(range(1, 9)) - {page for pages in self.holders for page in pages}

    @rule(count=st.integers(0, 9))
    def allocate(self, count: int) -> None:
        blank = self.unused() - set(self.cached)
        pages = self.pool.allocate(count)
        if count > len(self.unused()):
            assert pages is None
            return
        assert pages is not None
        assert len(pages) == count
        evicted = self.cached[: max(0, count - len(blank))]
        assert set(evicted) <= set(pages) <= blank | set(evicted)
        self.cached = self.cached[len(evicted) :]
        for page in evicted:
            del self.named[page]
        self.holders.append(pages)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), forget=st.booleans())
    def free(self, data: st.DataObject, forget: bool) -> None:
        pages = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.free(pages, forget=forget)
        for page in reversed(pages):
            if page in self.unused() and page in self.named:
                if forget:
                    del self.named[page]
                else:
                    self.cached.append(page)

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), number=st.integers(0, 5), owner=st.sampled_from(("", "a", "b")))
    def register(self, data: st.DataObject, number: int, owner: str) -> None:
        page = data.draw(st.sampled_from([page for pages in self.holders for page in pages]))
        if page not in self.named:
            self.pool.register(page, digest(number), owner)
            if digest(number) not in self.named.values():
                self.named[page] = digest(number)
                self.owners[page] = owner

    @rule(owner=st.sampled_from(("a", "b")))
    def forget(self, owner: str) -> None:
        self.pool.forget(owner)
        for page in [page for page in self.named if self.owners[page] == owner]:
            del self.named[page]
        self.cached = [page for page in self.cached if page in self.named]

    @rule(numbers=st.lists(st.integers(0, 5), unique=True))
    def match_and_acquire(self, numbers: list[int]) -> None:
        pages = self.pool.match([digest(number) for number in numbers])
        known = {name: page for page, name in self.named.items()}
        expected = [known.get(digest(number), 0) for number in numbers]
        assert pages == expected[: [*expected, 0].index(0)]
        self.pool.acquire(pages)
        self.cached = [page for page in self.cached if page not in pages]
        self.holders.append(pages)

    @rule()
    def reset(self) -> None:
        assert self.pool.reset_prefix_cache() == (len(self.unused()) == 8)
        self.named.clear()
        self.cached.clear()

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity(self.holders)
        assert self.pool.num_free == len(self.unused())
        assert self.pool.usage == pytest.approx(1 - len(self.unused()) / 8)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
