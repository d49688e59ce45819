"""PEFT's rules for names and patterns."""

import pytest

from quire.lora.targets import Targets, pattern_value

Q1 = "model.layers.1.self_attn.q_proj"
Q = frozenset({"q_proj"})


@pytest.mark.parametrize(
    ("targets", "included"),
    [
        (Targets(Q), True),
        (Targets(frozenset({"self_attn.q_proj"})), True),
        (Targets(frozenset({Q1})), True),
        (Targets(frozenset({"proj"})), False),
        (Targets(frozenset()), False),
        (Targets(None), True),
        (Targets(r".*\.1\..*q_proj"), True),
        (Targets(r"q_proj"), False),
        (Targets("All-Linear"), True),
        (Targets(Q, exclude=Q), False),
        (Targets("all-linear", exclude=r".*\.1\..*"), False),
        (Targets(Q, layers=(0,)), False),
        (Targets(Q, layers=(0, 1)), True),
        (Targets(Q, layers=(1,), layers_patterns=("layers",)), True),
        (Targets(Q, layers=(1,), layers_patterns=("blocks", "h")), False),
        (Targets(frozenset({Q1}), layers=(0,)), True),
    ],
)
def test_include(targets: Targets, included: bool) -> None:
    assert targets.include(Q1, is_linear=True) == included


def test_all_linear_leaves_embedding_and_head_out() -> None:
    assert not Targets("all-linear").include("lm_head", is_linear=False)


def test_first_number_is_the_layer() -> None:
    targets = Targets(frozenset({"w"}), layers=(2,))
    assert targets.include("model.layers.2.experts.5.w", is_linear=True)
    assert not targets.include("model.layers.5.experts.2.w", is_linear=True)
    assert not targets.include("model.w", is_linear=True)


def test_unmatched_entries() -> None:
    modules = {Q1: True, "lm_head": False}
    assert Targets(frozenset({"q_proj", "lm_head", "w1"})).unmatched(modules) == ["w1"]
    assert Targets(Q, layers=(7,)).unmatched(modules) == ["q_proj"]
    assert Targets(r"w\d").unmatched(modules) == [r"w\d"]
    assert Targets(None).unmatched(modules) == []
    assert Targets("all-linear").unmatched(modules) == []


@pytest.mark.parametrize(
    ("patterns", "value"),
    [
        ({}, 0),
        ({"q_proj": 1}, 1),
        ({"proj": 1}, 0),
        ({"self_attn": 1}, 0),
        ({"k_proj|q_proj": 1}, 1),
        ({r".*_proj": 1, "q_proj": 2}, 1),
        ({r"layers\.1\..*": 1}, 1),
        ({r"^model.layers.1.self_attn.q_proj": 1}, 1),
        ({r"^layers.1.self_attn.q_proj": 1}, 0),
        ({"model.layers.1": 1}, 0),
    ],
)
def test_pattern_value(patterns: dict[str, int], value: int) -> None:
    assert pattern_value(patterns, Q1, 0) == value
