"""Calls that are JSON objects with a name and arguments: what several formats share."""

import json
from dataclasses import dataclass
from typing import Any

from .base import StepToolParser
from .json_scanner import JsonScanner
from .reader import Steps

ARGUMENTS = ("arguments", "parameters")


@dataclass
class _Draft:
    """A call of which not everything is known yet."""

    name: str = ""
    arguments: str = ""
    """Complete arguments that wait for the name."""
    started: bool = False


class JsonToolParser(StepToolParser):
    """Reads calls such as `{"name": "f", "arguments": {...}}`; members may come in any order.

    A call begins when both its name and the beginning of its arguments are known. The steps leave
    undecided what they read and found to be no call.
    """

    def _call(self, *, need_arguments: bool = False) -> Steps[bool]:
        """Reads an object that is a call; tells if it began one.

        `need_arguments` refuses an object that has none.
        """
        draft = _Draft()
        complete = (yield from self._reader.take("{")) and (yield from self._members(draft))
        if complete and draft.name and not draft.started and not need_arguments:
            draft.arguments = "{}"
            self._start_held(draft)
        if draft.started and complete:
            self._reader.claim()
        elif draft.started:
            self._settle()
        return draft.started

    def _members(self, draft: _Draft) -> Steps[bool]:
        """Reads the members of an object and its end; tells if it came to that."""
        while (yield from self._member(draft)):
            yield from self._reader.space()
            if not (yield from self._reader.take(",")):
                return (yield from self._reader.take("}"))
        return False

    def _member(self, draft: _Draft) -> Steps[bool]:
        key = yield from self._key()
        if key is None:
            return False
        if key in ARGUMENTS and draft.name and not draft.started:
            if (yield from self._reader.peek()) == "{":
                draft.started = True
                self._start(draft.name)
                return (yield from self._arguments())
        value = yield from self._reader.value()
        return value is not None and self._note(draft, key, value)

    def _note(self, draft: _Draft, key: str, value: str) -> bool:
        """Puts a member into the draft; tells if a call may have such a member."""
        if draft.started:
            return True
        if key == "name":
            draft.name = _name(value)
        elif key in ARGUMENTS:
            draft.arguments = _object(value)
        if draft.name and draft.arguments:
            self._start_held(draft)
        return bool(draft.name if key == "name" else key not in ARGUMENTS or draft.arguments)

    def _start_held(self, draft: _Draft) -> None:
        draft.started = True
        self._start(draft.name)
        self._give_arguments(draft.arguments)

    def _key(self) -> Steps[str | None]:
        """Reads a key, its colon and the space around them."""
        yield from self._reader.space()
        if (yield from self._reader.peek()) != '"':
            return None
        key = yield from self._reader.value()
        yield from self._reader.space()
        if key is None or not (yield from self._reader.take(":")):
            return None
        yield from self._reader.space()
        return json.loads(key)

    def _arguments(self) -> Steps[bool]:
        """Gives out a JSON object as it comes; tells if it is complete."""
        scanner = JsonScanner()
        while True:
            self._give_arguments(self._reader.scan(scanner))
            if scanner.done or scanner.broken or self._reader.ended:
                return scanner.done
            yield

    def _call_list(self, *, need_arguments: bool = False) -> Steps[bool]:
        """Reads a JSON list of calls; tells if it began one."""
        if not (yield from self._reader.take("[")):
            return False
        calls, more = 0, True
        while more and (yield from self._item(need_arguments)):
            calls += 1
            yield from self._reader.space()
            more = yield from self._reader.take(",")
        if calls and not more and (yield from self._reader.take("]")):
            self._reader.claim()
        elif calls:
            self._settle()
        return calls > 0

    def _item(self, need_arguments: bool) -> Steps[bool]:
        yield from self._reader.space()
        return (yield from self._call(need_arguments=need_arguments))


def _name(value: str) -> str:
    """The function's name in a JSON text, or nothing."""
    name: Any = json.loads(value) if value.startswith('"') else ""
    return name if name.isprintable() else ""


def _object(value: str) -> str:
    """The JSON object in `value`, which some models put into a string; nothing if it has none."""
    if value.startswith('"'):
        text: str = json.loads(value).strip()
        scanner = JsonScanner()
        value, end = scanner.read(text, 0)
        if not scanner.done or end < len(text):
            return ""
    if value == "null":
        return "{}"
    return value if value.startswith("{") else ""
