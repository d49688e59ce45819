from hypothesis import given, settings, strategies as st

from quire.engine.request import FinishReason
from quire.engine.sampling_params import SamplingParams
from quire.engine.stop import StopChecker, find_stop, held_back

EOS = 2


def test_end_of_sequence_ends_unless_ignored() -> None:
    stops = StopChecker(SamplingParams(), {EOS, 9}, max_len=10)
    assert stops.check(5, 1) is None
    assert stops.check(EOS, 1) == (FinishReason.STOP, None)
    assert stops.check(9, 1) == (FinishReason.STOP, None)
    assert StopChecker(SamplingParams(ignore_eos=True), {EOS}, max_len=10).check(EOS, 1) is None


def test_stop_tokens_tell_which_one_it_was() -> None:
    params = SamplingParams(stop_token_ids=[7, EOS], ignore_eos=True)
    stops = StopChecker(params, {EOS}, max_len=10)
    assert stops.check(7, 1) == (FinishReason.STOP, 7)
    assert stops.check(EOS, 1) == (FinishReason.STOP, EOS)
    both = StopChecker(SamplingParams(stop_token_ids=[EOS]), {EOS}, max_len=10)
    assert both.check(EOS, 1) == (FinishReason.STOP, None)


def test_length_ends_and_a_stop_goes_before_it() -> None:
    stops = StopChecker(SamplingParams(), {EOS}, max_len=3)
    assert stops.check(5, 2) is None
    assert stops.check(5, 3) == (FinishReason.LENGTH, None)
    assert stops.check(EOS, 3) == (FinishReason.STOP, None)


def test_only_the_length_ends_before_min_tokens() -> None:
    params = SamplingParams(min_tokens=2, stop_token_ids=[7])
    stops = StopChecker(params, {EOS}, max_len=13, prompt_len=10)
    assert stops.check(EOS, 11) is None
    assert stops.check(7, 12) is None
    assert stops.check(7, 13) == (FinishReason.STOP, 7)
    short = StopChecker(SamplingParams(min_tokens=5), {EOS}, max_len=13, prompt_len=10)
    assert short.check(EOS, 13) == (FinishReason.LENGTH, None)


def test_the_stop_string_that_is_complete_first_is_found() -> None:
    assert find_stop("one two", ["two", "one"]) == (0, "one")
    assert find_stop("abcd", ["abcd", "bc"]) == (1, "bc")
    assert find_stop("abcd", ["cd", "bcd"]) == (1, "bcd")
    assert find_stop("abc", ["x"]) is None


def test_stop_strings_within_what_was_seen_do_not_count() -> None:
    assert find_stop("ab ab", ["ab"], seen=2) == (3, "ab")
    assert find_stop("ab", ["ab"], seen=1) == (0, "ab")
    assert find_stop("ab", ["ab"], seen=2) is None


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    assert held_back("text </", ["</end>"]) == 2
    assert held_back("text", ["</end>"]) == 0
    assert held_back("aab", ["aabaa"]) == 3
    assert held_back("aaa", ["aab"]) == 2
    assert held_back("xyz", ["z", "yza"]) == 2
    assert held_back("anything", []) == 0


@settings(deadline=None)
@given(text=st.text("ab", max_size=12), stop=st.text("ab", min_size=1, max_size=5))
def test_held_back_is_the_longest_end_that_begins_the_stop_string(text: str, stop: str) -> None:
    beginnings = [stop[:size] for size in range(len(stop))]
    assert held_back(text, [stop]) == max(len(b) for b in beginnings if text.endswith(b))
