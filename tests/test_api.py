"""The public interface is what ``tests/api.txt`` says: a change to it is meant, and seen."""

from pathlib import Path

from tests.api import lines


def test_the_public_interface_is_the_one_on_record() -> None:
    recorded = Path(__file__).with_name("api.txt").read_text().splitlines()
    now = lines()
    gone, new = sorted({*recorded} - {*now}), sorted({*now} - {*recorded})
    assert now == recorded, f"gone: {gone}; new: {new}. If it is meant: python -m tests.api > tests/api.txt"
