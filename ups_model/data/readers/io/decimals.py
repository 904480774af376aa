"""Decimal numbers of text, many at once.

A number such as -0.05670996 is an integer of at most 15 digits divided by a power of ten of at most 10^14. Both are
exact in float64, so their quotient is the float64 nearest to the number, which is what `float` gives, bit for bit.
Eight digits at a time are added up within a 64-bit word, so that the cost is a few dozen array operations for all.

Shape suffix: M numbers.
"""

from __future__ import annotations

import numpy as np

_PLACES = 14
_TEN = np.array([10**power for power in range(_PLACES + 1)], dtype=np.uint64)
_TEN_FLOAT = _TEN.astype(np.float64)
_SIGN = np.array([1.0, -1.0])
_MARGIN = 16
"""Digits are read in words that begin up to this far before a number's end."""


def parse_decimals(codes: np.ndarray, start_M: np.ndarray, end_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the form -?D.D{1,14}, D a digit.

    Args:
        codes: uint8, contiguous, the text.
        start_M, end_M: int64, where in the text each number begins, and the place after its last character, which
            must be in the text too.

    Returns:
        float64 [M], equal to `float` of each text, and bool [M], whether it has that form. Of others, and of those
        that end within the first 16 bytes of the text, the value is NaN and means nothing.
    """
    negative_M = codes.take(start_M) == ord("-")
    unit_M = start_M + negative_M
    digit_M = codes.take(unit_M, mode="clip") - np.uint8(ord("0"))  # wraps: what is below "0" becomes large
    places_M = end_M - unit_M - 2
    plain_M = codes.take(unit_M + 1, mode="clip") == ord(".")
    plain_M &= (digit_M <= 9) & (places_M >= 1) & (places_M <= _PLACES) & (end_M >= _MARGIN)
    if not plain_M.all():
        values_M = np.full(len(plain_M), np.nan)
        if (some := np.flatnonzero(plain_M)).size:
            values_M[some], plain_M[some] = parse_decimals(codes, start_M[some], end_M[some])
        return values_M, plain_M

    words = np.ndarray((len(codes) - 7,), dtype="<u8", buffer=codes, strides=(1,))  # the word from each byte on
    mantissa_M, plain_M = _digits(words[end_M - 8], np.minimum(places_M, 8))
    if (long := np.flatnonzero(places_M > 8)).size:
        high, is_plain = _digits(words[end_M[long] - 16], places_M[long] - 8)
        mantissa_M[long] += high * _TEN[8]
        plain_M[long] &= is_plain
    mantissa_M += digit_M * _TEN.take(places_M)
    values_M = mantissa_M.astype(np.float64)
    values_M /= _TEN_FLOAT.take(places_M)
    values_M *= _SIGN.take(negative_M)
    if not plain_M.all():
        values_M[~plain_M] = np.nan
    return values_M, plain_M


def _digits(word_M: np.ndarray, count_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integer that the last `count` (1..8) characters of each word spell, and whether all of them are digits."""
    unused_M = (64 - 8 * count_M).astype(np.uint64)
    word_M = word_M ^ np.uint64(0x3030303030303030)  # of a digit, its value is left
    word_M >>= unused_M  # the first character is the lowest byte
    word_M <<= unused_M
    # A byte is 0..9 if its upper half is empty, before and after adding 6.
    beyond_M = word_M + np.uint64(0x0606060606060606)
    beyond_M |= word_M
    beyond_M &= np.uint64(0xF0F0F0F0F0F0F0F0)
    # Neighbours are joined: 8 numbers of one digit, 4 of two, 2 of four, 1 of eight.
    for bits, ten, mask in ((8, 10, 0x00FF00FF00FF00FF), (16, 100, 0x0000FFFF0000FFFF), (32, 10_000, 0xFFFFFFFF)):
        right_M = word_M >> np.uint64(bits)
        word_M *= np.uint64(ten)
        word_M += right_M
        word_M &= np.uint64(mask)
    return word_M, beyond_M == 0
