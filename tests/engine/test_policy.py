"""The order in which waiting sequences are considered."""

from __future__ import annotations

import pytest

from sgjax.engine.policy import order_waiting
from sgjax.engine.sequence import Sequence
from sgjax.types import Request


def make(rid: str, arrival_s: float, priority: int = 0) -> Sequence:
    request = Request(rid=rid, input_ids=(1, 2, 3), priority=priority)
    return Sequence(request, 0, seed=0, stop_ids=frozenset(), context_length=512, arrival_s=arrival_s)


def order(waiting, policy, most=10, now_s=10.0, aging_s=5.0, lengths=None):
    ordered = order_waiting(
        waiting,
        policy,
        most=most,
        now_s=now_s,
        aging_s=aging_s,
        match_len=lambda seq: (lengths or {}).get(seq.request.rid, 0),
    )
    return [seq.request.rid for seq in ordered]


WAITING = [make("a", 8.0), make("b", 8.5, priority=1), make("c", 9.0, priority=2), make("d", 9.5, priority=2)]


def test_fcfs_keeps_arrival_order():
    assert order(WAITING, "fcfs", lengths={"d": 9}) == ["a", "b", "c", "d"]


def test_lpm_takes_the_longest_prefix_first():
    assert order(WAITING, "lpm", lengths={"c": 64, "b": 16}) == ["c", "b", "a", "d"]


def test_priority_then_arrival():
    assert order(WAITING, "priority") == ["c", "d", "b", "a"]


def test_whoever_waited_too_long_goes_first():
    assert order(WAITING, "lpm", now_s=13.2, lengths={"c": 64, "d": 32}) == ["a", "c", "d", "b"]
    assert order(WAITING, "priority", now_s=13.7) == ["a", "b", "c", "d"]


def test_a_preempted_sequence_goes_first():
    preempted = make("p", 9.9)
    preempted.receipt.preemptions = 1
    assert order([preempted, *WAITING], "lpm", lengths={"c": 64})[0] == "p"


@pytest.mark.parametrize("policy", ["fcfs", "lpm", "priority"])
def test_only_the_first_are_put_in_order(policy):
    assert order(WAITING, policy, most=2, now_s=14.2) == ["a", "b"]

    def look_up(seq: Sequence) -> int:
        raise AssertionError("nobody asks for a rank when the oldest fill the list")

    order_waiting(WAITING, policy, most=2, now_s=14.2, aging_s=5.0, match_len=look_up)
