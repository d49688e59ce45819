"""Llama 3.2 and 4, and others: a Python list of function calls."""

import re
from collections.abc import Iterator
from typing import Any

from .base import StepToolParser
from .events import Call
from .literals import dump, python_literal
from .python_scanner import PythonScanner, split
from .reader import Steps

START, END = "<|python_start|>", "<|python_end|>"
_WORD = re.compile(r"[\w.-]")
_CALL = re.compile(r"\s*([^\W\d][\w.-]*)\s*\((.*)\)\s*", re.DOTALL)
_ARGUMENT = re.compile(r"\s*([^\W\d]\w*)\s*=(.*)", re.DOTALL)
_DEEPEST = 100


class PythonicParser(StepToolParser):
    """Reads `[f(a=1, b="x"), g()]`, anywhere in the text.

    Values are literals; nothing is ever run. A call with anything else, or with arguments that
    have no names, makes the whole list content.
    """

    def _run(self) -> Steps[None]:
        while (yield from self._content_until("[")):
            if not (yield from self._list()):
                self._spill()

    def _list(self) -> Steps[bool]:
        """Reads a list of calls; tells if it was one."""
        code = yield from self._bracketed()
        calls = _calls(code) if code else []
        for call in calls:
            self._start(call.name)
            self._give_arguments(call.arguments)
        return bool(calls)

    def _bracketed(self) -> Steps[str]:
        """What is between a bracket and the one that closes it; empty if it begins like no call."""
        if not (yield from self._reader.take("[")):
            return ""
        begin = len(self._reader.undecided)
        if not (yield from self._begins_call()):
            return ""
        scanner = PythonScanner()
        for char in self._reader.undecided[begin - 1 :]:
            scanner.step(char)
        while scanner.depth and (char := (yield from self._reader.step())):
            scanner.step(char)
            if scanner.depth > _DEEPEST:
                return ""
        return "" if scanner.depth else self._reader.undecided[begin:-1]

    def _begins_call(self) -> Steps[bool]:
        """Reads `f(` and what must follow it, `a=` or `)`; prose seldom goes on so."""
        reader = self._reader
        yield from reader.space()
        if not (yield from reader.run(_WORD)) or not (yield from reader.take("(")):
            return False
        yield from reader.space()
        if (yield from reader.take(")")):
            return True
        named = yield from reader.run(_WORD)
        yield from reader.space()
        return bool(named) and (yield from reader.take("="))


class Llama4PythonicParser(PythonicParser):
    """Reads the same; `<|python_start|>` and `<|python_end|>` may stand around it."""

    def _run(self) -> Steps[None]:
        while marker := (yield from self._content_until(START, "[")):
            if marker == START:
                yield from self._reader.take(START)
                yield from self._reader.space()
            if (yield from self._list()):
                yield from self._swallow(END)
            else:
                self._spill()


def _calls(code: str) -> list[Call]:
    """The calls in the code of a list, or none if it has anything else."""
    try:
        return list(map(_call, _parts(code)))
    except ValueError:
        return []


def _parts(code: str) -> Iterator[str]:
    """What commas part; a comma at the end parts nothing off."""
    *parts, last = split(code, ",")
    yield from parts
    if last.strip():
        yield last


def _call(code: str) -> Call:
    found = _CALL.fullmatch(code)
    if not found:
        raise ValueError(f"{code!r} is no call.")
    arguments: dict[str, Any] = {}
    for part in _parts(found[2]):
        argument = _ARGUMENT.fullmatch(part)
        if not argument or argument[1] in arguments:
            raise ValueError(f"{part!r} is no argument.")
        arguments[argument[1]] = python_literal(argument[2])
    return Call(found[1], dump(arguments))
