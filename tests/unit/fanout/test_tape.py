"""The tape: what is due to a reader and when, the budget, and the holes it leaves."""

from __future__ import annotations

import gc
import random

import pytest

from pushservice.fanout.tape import GAP, LOST, UNSUBSCRIBED, Reader, Tape

AMPLE = 1 << 24
#: with segments of 1 KiB
SMALL = 16 * 1024


def record(tape: Tape, *moments: float, payload: bytes = b"1") -> None:
    for at in moments:
        tape.record("A", payload, at)


def noise(size: int, seed: float = 0) -> bytes:
    """Bytes that can't be compressed, nor together with those of another seed."""
    return random.Random(seed).randbytes(size)


def record_noise(tape: Tape, *moments: float) -> None:
    for at in moments:
        tape.record("A", noise(120, at), at)


def moments(reader: Reader, now: float, most: int = 10_000) -> list[float]:
    return [at for at, _, _ in reader.take(now, most)]


def test_a_quote_is_handed_out_as_it_was_recorded_once_it_is_old_enough():
    tape = Tape(AMPLE)
    reader = tape.reader(900)
    tape.record("AAPL", b'{"last":189.50}', 1000.25)
    tape.record("ÄÖ", b"\xff\x00", 1000.25)
    assert reader.take(1900.0, 10) == []
    assert reader.next_at() == 1000.25
    assert reader.take(1900.25, 10) == [
        (1000.25, "AAPL", b'{"last":189.50}'),
        (1000.25, "ÄÖ", b"\xff\x00"),
    ]
    assert reader.next_at() is None
    assert reader.take(9999.0, 10) == []


def test_the_moment_counts_to_its_last_bit():
    tape = Tape(AMPLE)
    reader = tape.reader(900)
    at = 1_763_799_999.1239
    record(tape, at)
    assert reader.take(1_763_800_899.1235, 10) == []
    assert reader.take(1_763_800_899.1238997, 10) == []
    assert moments(reader, at + 900) == [at]


def test_what_came_within_one_millisecond_is_handed_out_one_after_the_other():
    tape = Tape(AMPLE)
    reader = tape.reader(900)
    early, late = 1_763_799_999.1231, 1_763_799_999.1239
    record(tape, early, late)
    assert moments(reader, early + 900) == [early]
    assert reader.next_at() == late
    assert moments(reader, 1_763_800_899.1235) == []
    assert moments(reader, late + 900) == [late]


def test_payloads_are_bytes_whether_or_not_their_segment_is_written_to_yet():
    tape = Tape(SMALL)
    reader = tape.reader(1)
    record(tape, 1.0)
    [(_, _, payload)] = reader.take(2.0, 10)
    assert type(payload) is bytes
    record(tape, *[2.0] * 200)
    assert {type(payload) for _, _, payload in reader.take(3.0, 1000)} == {bytes}


def test_large_payloads_and_empty_ones_are_kept_whole():
    tape = Tape(AMPLE)
    reader = tape.reader(1)
    payloads = [b"", noise(200_000), b"", noise(65_536)]
    for payload in payloads:
        tape.record("A", payload, 1.0)
    assert [payload for _, _, payload in reader.take(2.0, 10)] == payloads


def test_a_reader_reads_what_is_recorded_after_it_was_made():
    tape = Tape(AMPLE)
    record(tape, 1.0)
    reader = tape.reader(1)
    record(tape, 2.0)
    assert moments(reader, 100.0) == [2.0]


def test_readers_of_several_delays_each_have_their_place():
    tape = Tape(SMALL)
    readers = [tape.reader(delay) for delay in (1, 10)]
    for second in range(1000):
        record(tape, float(second))
        for reader in readers:
            expected = [second - reader.delay] if second >= reader.delay else []
            assert moments(reader, float(second)) == expected
    assert tape.dropped_bytes == 0


def test_no_more_is_handed_out_at_once_than_is_asked_for():
    tape = Tape(SMALL)
    reader = tape.reader(1)
    record(tape, *map(float, range(500)))
    taken = []
    while some := moments(reader, 1000.0, 7):
        assert len(some) <= 7
        taken += some
    assert taken == list(map(float, range(500)))


def test_what_came_after_the_clock_was_set_back_stays_in_order_and_is_not_early():
    tape = Tape(AMPLE)
    reader = tape.reader(10)
    record(tape, 100.0, 50.0)
    assert moments(reader, 60.0) == []
    assert moments(reader, 110.0) == [100.0, 50.0]


def test_marks_are_entries_without_a_symbol_in_their_place():
    tape = Tape(AMPLE)
    reader = tape.reader(1)
    record(tape, 1.0)
    tape.mark_lost(2.0)
    tape.mark_gap(3.0)
    tape.mark_unsubscribed("Ä", 4.0)
    assert reader.take(10.0, 10) == [
        (1.0, "A", b"1"),
        (2.0, "", LOST),
        (3.0, "", GAP),
        (4.0, "", UNSUBSCRIBED + "Ä".encode()),
    ]


# -- the budget ------------------------------------------------------------------------------------


def test_what_every_reader_has_read_is_given_up():
    tape = Tape(SMALL)
    slow, fast = tape.reader(10), tape.reader(1)
    record(tape, *[1.0] * 400)
    full = tape.used_bytes
    assert len(moments(fast, 5.0)) == 400
    assert tape.used_bytes == full, "one has yet to read it"
    assert len(moments(slow, 11.0)) == 400
    slow.next_at()
    assert tape.used_bytes < 2048


def test_nothing_is_kept_where_nobody_reads():
    tape = Tape(AMPLE)
    reader = tape.reader(10)
    record(tape, *[1.0] * 100_000)
    assert tape.used_bytes > 1_000_000
    reader.close()
    assert tape.used_bytes <= 65_536 + 200
    record(tape, *[1.0] * 100_000)
    assert tape.used_bytes <= 65_536 + 200


@pytest.mark.parametrize("compressible", [True, False])
@pytest.mark.parametrize("budget", [0, 600, SMALL, 1 << 20])
def test_the_budget_is_kept_to_within_a_segment(budget, compressible):
    tape = Tape(budget)
    reader = tape.reader(900)
    for second in range(10_000):
        payload = b'{"last":189.50}' * 8 if compressible else noise(120, second)
        record(tape, second / 10, payload=payload)
        assert tape.used_bytes <= budget + 200 + len(payload)
        reader.take(second / 10, 1000)
    assert tape.dropped_bytes > 0 or budget == 1 << 20


def test_what_does_not_fit_plain_is_compressed_before_anything_is_dropped():
    tape = Tape(SMALL)
    reader = tape.reader(900)
    payload = b'{"last":189.50,"bid":189.49}'
    record(tape, *[float(at) for at in range(800)], payload=payload)
    assert tape.used_bytes <= SMALL < 800 * len(payload)
    assert tape.dropped_bytes == 0
    taken = reader.take(10_000.0, 10_000)
    assert taken == [(float(at), "A", payload) for at in range(800)]


def test_where_all_fits_nothing_is_compressed():
    tape = Tape(SMALL)
    reader = tape.reader(900)
    record(tape, *[1.0] * 800)
    assert tape.used_bytes > 800 * 16
    assert len(reader.take(10_000.0, 10_000)) == 800


def test_a_hole_is_a_gap_when_it_begins_and_when_it_ends():
    tape = Tape(SMALL)
    reader = tape.reader(10)
    record_noise(tape, *[float(at) for at in range(401)])
    taken = reader.take(10_000.0, 10_000)
    gaps = [at for at, symbol, payload in taken if not symbol and payload == GAP]
    quotes = [at for at, symbol, _ in taken if symbol]
    missing = sorted(set(range(401)) - set(quotes))
    assert len(missing) > 200
    assert missing == list(range(missing[0], 400)), "there is one hole, and it has an end"
    assert (gaps[0], gaps[-1]) == (missing[0], missing[-1])
    assert [at for at, _, _ in taken] == sorted(at for at, _, _ in taken)


def test_where_the_budget_is_too_small_for_long_a_reader_still_gets_its_share():
    tape = Tape(SMALL)
    reader = tape.reader(200)
    taken = []
    for at in range(2000):
        record_noise(tape, float(at))
        taken += reader.take(float(at), 100)
    quotes = sum(bool(symbol) for _, symbol, _ in taken)
    assert 0.3 < quotes / 1800 < 0.6, "of 27 KB, 16 KiB fit"


def test_a_hole_is_told_no_earlier_than_what_was_dropped_would_have_been():
    tape = Tape(SMALL)
    reader = tape.reader(10)
    record_noise(tape, *[float(at) for at in range(400)])
    for now in range(500):
        assert all(at + 10 <= now for at in moments(reader, float(now)))


def test_holes_close_to_each_other_become_one_so_that_few_are_told():
    tape = Tape(SMALL)
    reader = tape.reader(10)
    record_noise(tape, *[at / 1000 for at in range(20_000)])
    taken = reader.take(10_000.0, 100_000)
    assert 19 <= sum(not symbol for _, symbol, _ in taken) <= 25


def test_a_hole_is_not_widened_under_a_reader_that_reads_what_was_there():
    tape = Tape(0)
    reader = tape.reader(10)
    record(tape, 1.0, 1.1, 1.2)
    assert reader.take(100.0, 10) == [(1.0, "A", b"1"), (1.1, "", GAP), (1.2, "", GAP)]


def test_a_fast_reader_does_not_see_the_holes_behind_it():
    tape = Tape(SMALL)
    slow, fast = tape.reader(1000), tape.reader(1)
    seen = []
    for at in range(400):
        record_noise(tape, float(at))
        seen += fast.take(float(at), 100)
    assert [at for at, _, _ in seen] == [float(at) for at in range(399)]
    assert all(symbol for _, symbol, _ in seen)
    assert any(not symbol for _, symbol, _ in slow.take(10_000.0, 10_000))


def test_a_hole_that_was_read_keeps_nothing_of_what_follows():
    tape = Tape(SMALL)
    reader = tape.reader(10)
    record_noise(tape, *map(float, range(400)))
    assert tape.dropped_bytes
    reader.take(10_000.0, 10_000)
    for at in range(400, 2000):
        record_noise(tape, float(at))
        reader.take(10_000.0, 100)
    gc.collect()
    segments = [found for found in gc.get_objects() if type(found).__name__ == "_Segment"]
    assert len(segments) < 20


def test_a_budget_below_nothing_is_refused():
    with pytest.raises(ValueError, match="-1 bytes"):
        Tape(-1)
