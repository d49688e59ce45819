"""PEFT's rules for which modules an adapter changes, and which pattern a module falls under.

Modules go by the names that PEFT sees: dotted, without `base_model.model.`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

ALL_LINEAR = "all-linear"
"""Stands for every linear layer but the head, in upper or lower case."""


@dataclasses.dataclass(frozen=True)
class Targets:
    """The part of an adapter's config that picks modules."""

    modules: frozenset[str] | str | None
    """Names or their ends, a regular expression for the whole name, or ALL_LINEAR; None is not
    said, so that any module may be one."""
    exclude: frozenset[str] | str = frozenset()
    """Names or their ends, or a regular expression, of modules that are none."""
    layers: tuple[int, ...] = ()
    """Numbers of the layers to which `modules`, if a list, is limited; empty is no limit."""
    layers_patterns: tuple[str, ...] = ()
    """Regular expressions of what stands before the number; empty is any name."""

    def include(self, module: str, *, is_linear: bool) -> bool:
        """Whether the adapter changes `module`; `is_linear` where it is no embedding or head."""
        return not self._excludes(module) and self._names(module, is_linear)

    def unmatched(self, modules: Mapping[str, bool]) -> list[str]:
        """The entries that fit none of `modules`, a name to whether it is linear."""
        if self.modules is None:
            return []
        if isinstance(self.modules, str):
            fits = any(self._names(*module) for module in modules.items())
            return [] if fits else [self.modules]
        fitting = (_ends(module) for module in modules if self._in_layers(module))
        return sorted(self.modules.difference(*fitting))

    def _excludes(self, module: str) -> bool:
        if isinstance(self.exclude, str):
            return bool(self.exclude) and re.fullmatch(self.exclude, module) is not None
        return not self.exclude.isdisjoint(_ends(module))

    def _names(self, module: str, is_linear: bool) -> bool:
        if self.modules is None:
            return True
        if isinstance(self.modules, str):
            if self.modules.lower() == ALL_LINEAR:
                return is_linear
            return re.fullmatch(self.modules, module) is not None
        return not self.modules.isdisjoint(_ends(module)) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        # PEFT asks for the layer of a module only where a part of its name is listed
        if not self.layers or (isinstance(self.modules, frozenset) and module in self.modules):
            return True
        number = _layer_number(module, self.layers_patterns)
        return number is not None and number in self.layers


def pattern_value(patterns: Mapping[str, T], module: str, default: T) -> T:
    """The value of the first pattern that fits the end of `module`'s name, from a dot on."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return patterns.get(module, default)


def _ends(module: str) -> list[str]:
    """The name, and what is left of it from each of its dots on."""
    return [module, *(module[dot.end() :] for dot in re.finditer(r"\.", module))]


def _layer_number(module: str, patterns: tuple[str, ...]) -> int | None:
    """The first number that stands alone in the name, behind one of `patterns` or any name."""
    expressions = [rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\." for pattern in patterns]
    for expression in expressions or [r".*?\.[^.]*\.(?P<number>\d+)\."]:
        if match := re.match(expression, module):
            return int(match["number"])
    return None
