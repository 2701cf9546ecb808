"""Sizes as people write and read them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3backer.errors import UsageError
from s3backer.units import exact_size, format_size, parse_size, told_size

POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
units = st.sampled_from(list(POWERS)).flatmap(
    lambda letter: st.sampled_from([letter, letter.upper(), letter + "iB", letter.upper() + "iB"] if letter else [""])
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("0", 0),
        ("128k", 128 << 10),
        ("128K", 128 << 10),
        ("128KiB", 128 << 10),
        ("8m", 8 << 20),
        ("1g", 1 << 30),
        ("10GiB", 10 << 30),
        (" 10gib ", 10 << 30),
        ("1.5TiB", 3 << 39),
        ("0.5k", 512),
        ("2p", 2 << 50),
        ("1E", 1 << 60),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.integers(0, 10**9), units)
def test_a_suffix_multiplies(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * 1024 ** POWERS[unit[:1].lower()]


@given(st.integers(0, 10**6), st.integers(0, 999999), units)
def test_fractions_are_exact_or_refused(whole: int, fraction: int, unit: str) -> None:
    text = f"{whole}.{fraction:06d}{unit}"
    exact = Fraction(f"{whole}.{fraction:06d}") * 1024 ** POWERS[unit[:1].lower()]
    if exact.denominator == 1:
        assert parse_size(text) == exact
    else:
        with pytest.raises(UsageError, match="whole number of bytes"):
            parse_size(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+1", "1e3", "0x10", "ten", "1 GiB", "1z", "1kk", "1.", ".5g", "1,5g", "1_000", "١", "9" * 30],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert caught.value.exit_code == 2
    assert "10GiB" in caught.value.hint


@pytest.mark.parametrize("text", ["1kB", "10GB", "10gb"])
def test_units_that_mean_two_things_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="1000 or of 1024") as caught:
        parse_size(text)
    assert f"{text[:-1].upper()}iB" in caught.value.hint


@given(st.one_of(st.integers(0, 1 << 62), st.builds(int.__lshift__, st.integers(0, 5000), st.integers(0, 50))))
def test_what_is_shown_is_the_size_or_says_about(size: int) -> None:
    shown = format_size(size)
    if shown.startswith("about "):
        number, unit = shown.removeprefix("about ").split(" ")
        assert abs(float(number) * 1024 ** POWERS[unit[0].lower()] - size) <= 0.06 * 1024 ** POWERS[unit[0].lower()]
    else:
        assert parse_size(shown.replace(" bytes", "").replace(" ", "")) == size


@given(st.one_of(st.integers(0, 1 << 62), st.builds(int.__lshift__, st.integers(0, 5000), st.integers(0, 50))))
def test_an_exact_size_is_what_an_option_takes(size: int) -> None:
    assert parse_size(exact_size(size)) == size


def test_how_exact_sizes_look() -> None:
    sizes = (0, 1000000, 128 << 10, 1500 << 20, 1 << 30, 1 << 60)
    assert [exact_size(size) for size in sizes] == ["0", "1000000", "128KiB", "1500MiB", "1GiB", "1EiB"]
    # In a sentence a number alone says nothing.
    assert [told_size(size) for size in (1, 1000, 4096)] == ["1 bytes", "1000 bytes", "4KiB"]


def test_how_sizes_look() -> None:
    assert format_size(512) == "512 bytes"
    assert format_size(128 << 10) == "128 KiB"
    assert format_size(10 << 30) == "10 GiB"
    assert format_size((1 << 30) + 1) == "about 1.0 GiB"
