"""What a failure means for a unit, given what went wrong before."""

from itertools import product

import pytest

from orchestrator.scheduling.retry import MAX_UNSTARTED, RETRIES, Failure, History, decide

KINDS = ("counted", "certain", "uncertain", "refused", "out_of_memory", "unstarted", "lost")


def ends_after(failure, limit=1000):
    """How many of the same failures in a row a unit survives."""
    history = History()
    for survived in range(limit):
        history, error = decide(failure, history)
        if error:
            return survived
    return limit


@pytest.mark.parametrize(
    ("failure", "survived"),
    [
        (Failure("counted", "it broke", "a"), RETRIES),
        (Failure("certain", "not finite", "a"), 0),
        (Failure("uncertain", "no language model", "a"), 1),
        (Failure("uncertain", "no language model", "a", has_other_node=False), 0),
        (Failure("refused", "torch 2.12", "a", has_other_node=False), 0),
        (Failure("out_of_memory", "CUDA", "a", gpus=1.0), 0),
        (Failure("unstarted", "its process died"), MAX_UNSTARTED + RETRIES),
    ],
)
def test_failures_in_a_row_until_a_unit_has_failed_for_good(failure, survived):
    assert ends_after(failure) == survived


@pytest.mark.parametrize("failure", [Failure("lost", "preempted", "a"), Failure("refused", "torch 2.12", "a")])
def test_what_the_machine_did_is_never_counted(failure):
    assert ends_after(failure) == 1000
    assert decide(failure, History()) == (History(), "")


def test_a_failure_that_was_the_nodes_is_as_if_it_had_never_been():
    history = History(("a", "b", "a"), (0.25,), 2)
    assert history.without("a") == History(("b",), (0.25,), 2)
    assert history.without("a").failed_nodes == {"b"}


def test_deciding_changes_no_history_and_depends_on_nothing_else():
    histories = [History(), History(("a",)), History(("", "a", "b"), (0.5,), MAX_UNSTARTED)]
    for kind, gpus, other, history in product(KINDS, (0.0, 0.5, 1.0), (True, False), histories):
        failure, before = Failure(kind, "it broke", "c", gpus, other), repr(history)
        assert decide(failure, history) == decide(failure, history)
        assert repr(history) == before
