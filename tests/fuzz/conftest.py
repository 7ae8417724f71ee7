"""How many tries: a few in every run of the tests; `pytest tests/fuzz --tries 2000` for a night."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tries", type=int, default=40, help="tries of the fuzzing tests, in all")
    parser.addoption("--first-try", type=int, default=0, help="the first try's number, its seed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each kind of trouble has its part of the tries; a try's random numbers are those of its number."""
    if "part" in metafunc.fixturenames:
        tries, first = (metafunc.config.getoption(name) for name in ("tries", "first_try"))
        share = metafunc.function.share
        chunk = max(1, min(25, round(tries * share)))
        starts = range(first, first + max(1, round(tries * share)), chunk)
        metafunc.parametrize("part", [range(s, s + chunk) for s in starts], ids=lambda p: f"{p[0]}")
