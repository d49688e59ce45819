"""Compiling ahead of time, with a stand-in for XLA that the test holds back at will."""

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from quire.engine.buckets import Auxiliary, Program, Variant
from quire.engine.programs import Programs
from quire.errors import EngineClosedError

SMALL = Program(True, 1, 1, Variant.GREEDY)
MIXED = Program(False, 64, 8, Variant.GREEDY)
LARGE = Program(False, 256, 8, Variant.SAMPLED)


class Compiler:
    """Lowers anything; what is in `held` compiles only once released."""

    def __init__(self) -> None:
        self.order: list[Any] = []
        self.held: dict[Any, threading.Event] = {}

    def hold(self, key: Any) -> Callable[[], None]:
        self.held[key] = threading.Event()
        return self.held[key].set

    def __call__(self, key: Any) -> Any:
        compiler = self

        class Lowered:
            def compile(self, compiler_options: Any = None) -> Callable[[], Any]:
                compiler.order.append(key)
                if key in compiler.held:
                    compiler.held[key].wait(10)
                if key is Auxiliary.WRITE_BIAS:
                    raise ValueError("no such instruction")
                return lambda: key

        return Lowered()


def test_planned_programs_compile_in_their_order_and_then_it_is_ready() -> None:
    compiler = Compiler()
    programs = Programs(compiler, [MIXED, LARGE, SMALL], ahead=True, workers=1)
    assert programs.wait(10)
    assert programs.ready
    assert compiler.order == [MIXED, LARGE, SMALL]
    assert programs.compiled == 3
    programs.close()


def test_the_rest_waits_for_the_start() -> None:
    compiler = Compiler()
    programs = Programs(compiler, [MIXED, LARGE, SMALL], first=1, ahead=True, workers=1)
    assert programs.exactly(SMALL)() == SMALL  # demanded before the rest may start
    assert compiler.order == [MIXED, SMALL]
    assert not programs.ready
    programs.go_on()
    assert programs.wait(10)
    assert compiler.order == [MIXED, SMALL, LARGE]
    programs.close()


def test_what_is_needed_now_goes_first() -> None:
    compiler = Compiler()
    release = compiler.hold(MIXED)
    programs = Programs(compiler, [MIXED, LARGE, SMALL], ahead=True, workers=1)
    waiting = threading.Thread(target=programs.exactly, args=(SMALL,))
    waiting.start()
    while SMALL in programs._waiting[1:]:  # until the demand has arrived
        pass
    release()
    waiting.join(10)
    programs.wait(10)
    assert compiler.order.index(SMALL) < compiler.order.index(LARGE)
    programs.close()


def test_a_larger_ready_program_stands_in_while_the_right_one_compiles() -> None:
    compiler = Compiler()
    release = compiler.hold(SMALL)
    programs = Programs(compiler, [], ahead=False, workers=1)
    assert programs.get(LARGE)[0] == LARGE
    assert programs.get(MIXED)[0] in (LARGE, MIXED)
    used, run = programs.get(SMALL)
    assert used in (LARGE, MIXED)
    assert run() == used
    release()
    assert programs.wait(10)
    assert programs.get(SMALL)[0] == SMALL
    programs.close()


def test_on_demand_compiles_nothing_before_it_is_asked() -> None:
    compiler = Compiler()
    programs = Programs(compiler, [MIXED, SMALL], ahead=False, workers=2)
    assert programs.ready
    assert compiler.order == []
    programs.close()


def test_a_failed_compilation_is_raised_to_whoever_needs_it() -> None:
    programs = Programs(Compiler(), [], ahead=False, workers=1)
    with pytest.raises(ValueError, match="no such instruction"):
        programs.exactly(Auxiliary.WRITE_BIAS)
    assert programs.get(SMALL)[0] == SMALL
    programs.close()


def test_close_drops_what_waits_and_wakes_who_waits() -> None:
    compiler = Compiler()
    release = compiler.hold(MIXED)
    programs = Programs(compiler, [MIXED, LARGE], ahead=True, workers=1)
    raised: list[BaseException] = []

    def need() -> None:
        try:
            programs.exactly(SMALL)
        except EngineClosedError as error:
            raised.append(error)

    waiting = threading.Thread(target=need)
    waiting.start()
    while SMALL not in programs._waiting:
        pass
    threading.Timer(0.05, release).start()
    programs.close()
    waiting.join(10)
    assert len(raised) == 1
    assert compiler.order == [MIXED]


def test_an_engine_may_be_collected_by_a_thread_that_compiles_for_it() -> None:
    held = Compiler()
    release = held.hold(LARGE)
    closed = threading.Event()

    def lower(key: Any) -> Any:
        if key == MIXED:
            programs.close()
            closed.set()
        return held(key)

    programs = Programs(lower, [LARGE, MIXED, SMALL], first=0, ahead=True, workers=2)
    programs.go_on()
    assert closed.wait(10)
    [closing] = [one for one in threading.enumerate() if one.name == "quire-close"]
    assert not closing.daemon
    release()
    closing.join(10)
    assert not closing.is_alive()
    assert SMALL not in held.order


def test_lowering_leaves_the_switch_interval_as_the_program_wants_it() -> None:
    """In a process of its own: engines of other tests may be lowering here."""
    code = """
import sys
from quire.engine import programs

before = sys.getswitchinterval()
with programs._yielding():
    assert sys.getswitchinterval() < before
assert sys.getswitchinterval() == before
with programs._yielding():
    sys.setswitchinterval(0.002)
assert abs(sys.getswitchinterval() - 0.002) < 1e-5
"""
    subprocess.run([sys.executable, "-c", code], check=True)
