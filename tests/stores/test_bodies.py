"""Bodies in pieces are what they are when joined."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from s3backer.stores.bodies import Unsent, cut, pieces, same, size_of

BODIES = st.lists(st.binary(max_size=9), max_size=9)


@given(BODIES)
def test_pieces_are_the_body(body):
    found = pieces(body)
    assert b"".join(found) == b"".join(body)
    assert all(len(piece) for piece in found)
    assert size_of(body) == size_of(found) == len(b"".join(body))
    assert pieces(found) == found


@given(st.sampled_from([bytes, bytearray, memoryview]), st.binary(max_size=9))
def test_one_buffer_is_a_body(kind, body):
    assert b"".join(pieces(kind(body))) == body
    assert size_of(kind(body)) == len(body)


def test_what_is_no_row_of_bytes():
    with pytest.raises((TypeError, BufferError)):
        pieces(memoryview(b"abcd")[::2])
    with pytest.raises(TypeError):
        pieces("text")  # type: ignore[arg-type]


@given(BODIES, st.binary(max_size=12))
def test_a_body_is_compared_as_a_whole(body, other):
    whole = b"".join(body)
    assert same(whole, pieces(body))
    assert same(other, pieces(body)) == (other == whole)
    assert not same(whole + b"x", pieces(body))
    assert not whole or not same(whole[:-1], pieces(body))


@given(BODIES, st.integers(1, 20))
def test_cuts_are_the_body_and_of_one_size(body, size):
    cuts = cut(pieces(body), size)
    assert b"".join(map(b"".join, cuts)) == b"".join(body)
    assert all(size_of(one) == size for one in cuts[:-1])
    assert all(0 < size_of(one) <= size for one in cuts)


@given(BODIES, st.data())
def test_what_is_sent_is_taken_off_the_front(body, data):
    whole = b"".join(body)
    unsent = Unsent(pieces(body))
    sent = b""
    while unsent:
        assert b"".join(unsent.next_ones()) == whole[len(sent) :]
        assert unsent.first(2) == unsent.next_ones()[0][:2]
        count = data.draw(st.integers(1, len(whole) - len(sent)))
        sent += whole[len(sent) : len(sent) + count]
        unsent.take(count)
    assert sent == whole


def test_one_system_call_takes_so_many():
    assert len(Unsent(pieces([b"x"] * 5000)).next_ones()) == 1024
