"""Which adapter lies in which of the device's slots, and who may have the next. Plain Python.

Where more adapters are asked for than there are slots, they take turns. An adapter that has been in
use for TENURE steps while others wait gets no new sequences; once those it has are done, its slot
goes to the first in line. Without the tenure two adapters that ask in turn would share a slot with
one sequence at a time; without its end the second would wait for as long as the first is asked for.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from ..errors import OptionError

if TYPE_CHECKING:
    from .adapter_arrays import LoadedAdapter

TENURE = 256
"""Steps for which an adapter in use takes new sequences though others wait for its slot."""


class AdapterSlots:
    """Slots are *empty*, *idle* (an adapter that no sequence uses) or *in use*.

    Adapters go by their digest: equal ones share a slot, whatever they are called.
    """

    def __init__(self, count: int, tenure: int = TENURE) -> None:
        """Without slots (`count` 0) no adapter has room. Raises OptionError for a negative one."""
        if count < 0:
            raise OptionError(f"{count} slots for adapters are not possible. Give 0 or more.")
        self.count = count
        self._tenure = tenure
        self._step = 0
        self._digests = [""] * count
        self._users = [0] * count
        self._slots: dict[str, int] = {}  # by digest
        self._empty = list(range(count - 1, -1, -1))
        self._idle: dict[int, None] = {}  # least recently used first
        self._in_use: dict[int, int] = {}  # slot to the step since which, the earliest first
        self._unwanted: set[int] = set()  # in use, to be emptied then
        self._promised: set[int] = set()  # in use, for those who found no room in this step
        self._loads: list[tuple[int, LoadedAdapter]] = []

    def start_step(self) -> None:
        """Counts a step, and drops the promises of the one before: who still waits asks again."""
        self._step += 1
        self._promised.clear()

    def has_room(self, digest: str) -> bool:
        """Whether a new sequence can have this adapter; ask in the order in which they wait.

        Who asks for one that lies in no slot and finds them all in use is promised a slot: the one
        that has been in use for longest of those not promised yet. The next steps choose the same,
        since nothing but its last user's end changes that, so its users do become fewer.
        """
        slot = self._slots.get(digest)
        if slot is not None:
            return slot not in self._promised or self._step - self._in_use[slot] < self._tenure
        if self._empty or self._idle:
            return True
        promised = len(self._promised)  # these are the first of `_in_use`
        self._promised.update(islice(self._in_use, promised, promised + 1))
        return False

    def acquire(self, adapter: "LoadedAdapter") -> int:
        """A slot for one sequence more; `has_room` must have said that there is one.

        Where the adapter lies in none, it takes an empty one, or the idle one used least recently.
        """
        slot = self._slots.get(adapter.digest)
        if slot is None:
            slot = self._replace(adapter)
        if not self._users[slot]:
            self._idle.pop(slot, None)
            self._in_use[slot] = self._step
        self._users[slot] += 1
        return slot

    def release(self, slot: int) -> None:
        """Ends one use of a slot. Its adapter stays there until another one needs the slot."""
        if not self._users[slot]:
            raise AssertionError(f"adapter slot {slot} was released more often than acquired")
        self._users[slot] -= 1
        if self._users[slot]:
            return
        del self._in_use[slot]
        if slot in self._unwanted:
            self._clear(slot)
        else:
            self._idle[slot] = None

    def forget(self, digest: str) -> None:
        """Empties the slot of an adapter, once no sequence uses it."""
        slot = self._slots.get(digest)
        if slot in self._idle:
            del self._idle[slot]
            self._clear(slot)
        elif slot is not None:
            self._unwanted.add(slot)

    def take_loads(self) -> "list[tuple[int, LoadedAdapter]]":
        """The slots that got another adapter since the last call, which still has to be written."""
        loads, self._loads = self._loads, []
        return loads

    def check_integrity(self, uses: Iterable[tuple[int, str]]) -> None:
        """Raises AssertionError unless `uses`, (slot, digest) of each sequence that runs, add up
        and every slot is in one state."""
        used = Counter(uses)
        users = {(s, self._digests[s]): n for s, n in enumerate(self._users) if n}
        _check(used == users, "uses of adapter slots do not add up", (used, users))
        states = sorted([*self._empty, *self._idle, *self._in_use])
        _check(states == list(range(self.count)), "adapter slots in no state or two", states)
        _check(self._in_use.keys() == {s for s, _ in users}, "slots in use", self._in_use)
        _check(self._unwanted <= self._in_use.keys(), "unwanted slots", self._unwanted)
        begun = list(self._in_use.values())
        _check(begun == sorted(begun), "slots in use out of order", begun)
        digests = {digest: slot for slot, digest in enumerate(self._digests) if digest}
        _check(digests == self._slots, "digests in one table only", (digests, self._slots))
        _check(len(digests) == self.count - len(self._empty), "empty slots", self._empty)

    def _replace(self, adapter: "LoadedAdapter") -> int:
        slot = self._empty.pop() if self._empty else next(iter(self._idle))
        self._slots.pop(self._digests[slot], None)
        self._digests[slot] = adapter.digest
        self._slots[adapter.digest] = slot
        self._loads.append((slot, adapter))
        return slot

    def _clear(self, slot: int) -> None:
        del self._slots[self._digests[slot]]
        self._digests[slot] = ""
        self._unwanted.discard(slot)
        self._empty.append(slot)


def _check(condition: bool, what: str, found: object) -> None:
    if not condition:
        raise AssertionError(f"{what}: {found}")
