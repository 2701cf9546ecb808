"""The presence map against a plain dictionary, and its bound."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from s3backer.layouts.presence import PAGE_BLOCKS, PresenceMap

# Blocks around the borders of pages.
near = st.one_of(
    st.integers(0, 40),
    st.integers(PAGE_BLOCKS - 20, PAGE_BLOCKS + 20),
    st.integers(3 * PAGE_BLOCKS - 3, 3 * PAGE_BLOCKS + 3),
)
ranges = st.tuples(near, near).map(sorted).map(tuple)
steps = st.one_of(
    st.tuples(st.just("set"), near, st.sampled_from([True, False, None])),
    st.tuples(st.just("learn"), ranges, st.sets(near), st.sets(near)),
)


@given(st.lists(steps, max_size=12), st.lists(ranges, max_size=5))
def test_against_a_dictionary(plan: list[tuple[Any, ...]], questions: list[tuple[int, int]]) -> None:
    presence, plain = PresenceMap(1 << 20), dict[int, bool]()
    for step in plan:
        if step[0] == "set":
            _, block, value = step
            presence.set(block, value)
            plain.pop(block, None)
            if value is not None:
                plain[block] = value
        else:
            _, (start, stop), listed, skipped = step
            present = sorted(b for b in listed if start <= b < stop)
            presence.learn(start, stop, present, skipped)
            for block in range(start, stop):
                if block not in plain and block not in skipped:
                    plain[block] = block in listed
    interesting = [
        *range(60),
        *range(PAGE_BLOCKS - 25, PAGE_BLOCKS + 25),
        *range(3 * PAGE_BLOCKS - 5, 3 * PAGE_BLOCKS + 5),
    ]
    assert [presence.get(b) for b in interesting] == [plain.get(b) for b in interesting]
    assert presence.count_present() == sum(plain.values())
    for start, stop in questions:
        expected = next((b for b in range(start, stop) if plain.get(b) is not False), stop)
        assert presence.next_possibly_present(start, stop) == expected


def test_a_large_empty_volume_costs_nothing_and_the_budget_holds() -> None:
    presence = PresenceMap(3 * 9000)
    presence.learn(0, 2**32 - 1, [], set())
    assert presence.get(2**32 - 3) is False
    assert presence.next_possibly_present(0, 2**32 - PAGE_BLOCKS) == 2**32 - PAGE_BLOCKS
    for page in range(10):
        presence.set(page * PAGE_BLOCKS + 7, True)
    assert presence.forgotten_pages == 10 + 1 - 3  # the last, partial page of the listing was detailed as well
    known = [presence.get(page * PAGE_BLOCKS + 7) for page in range(10)]
    assert known == [None] * 7 + [True] * 3
    assert presence.get(8) is None, "a forgotten page is unknown, not absent"
