"""Traces: what is written is read back, and every mistake names its line and the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from llamaswap_py.errors import ConfigError
from llamaswap_py.simulator.cases import library
from llamaswap_py.simulator.run_records import TraceRequest
from llamaswap_py.simulator.trace_file import _NUMBERS, _SWITCHES, parse_trace

GOOD = '{"client": "c1", "model": "alpha", "at": 12.5, "service": 1.0}'


def format_trace(asks: Iterable[TraceRequest]) -> str:
    """Return JSON lines for these requests, as `parse_trace` reads them."""
    lines = []
    for ask in asks:
        fields: dict[str, object] = {"client": ask.client, "model": ask.model}
        for key in ("at", "think", "service", "gives_up_after", "parent"):
            if (value := getattr(ask, key)) is not None:
                fields[key] = value
        if ask.name:
            fields["id"] = ask.name
        for key in _NUMBERS:
            if value := getattr(ask, key):
                fields[key] = value
        fields |= {key: False for key in _SWITCHES if not getattr(ask, key)}
        lines.append(json.dumps(fields) + "\n")
    return "".join(lines)


def read(*lines: str) -> str:
    """Return the message that a trace is refused with."""
    with pytest.raises(ConfigError) as found:
        parse_trace("\n".join(lines), ("alpha", "beta"), name="t.jsonl")
    return str(found.value)


@pytest.mark.parametrize("case", library(), ids=lambda case: case.name)
def test_every_case_of_the_library_can_be_written_and_read(case: object) -> None:
    from llamaswap_py.simulator.run_records import Case

    assert isinstance(case, Case)
    names = [one.name for one in case.models]
    assert parse_trace(format_trace(case.asks), names) == case.asks


def test_empty_lines_are_skipped_and_defaults_hold() -> None:
    (ask,) = parse_trace(f"\n{GOOD}\n\n", ["alpha"])
    assert (ask.at, ask.think, ask.slot, ask.gives_up_after) == (12.5, None, True, None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "t.jsonl:2: this is not JSON"),
        ("[1]", "t.jsonl:2: this is not a JSON object"),
        (GOOD.replace("service", "servise"), "did you mean 'service'?"),
        (GOOD.replace("alpha", "alpah"), "unknown model 'alpah' - did you mean 'alpha'?"),
        (GOOD.replace('"at": 12.5, ', ""), 'needs either "at" or "think"'),
        (GOOD.replace('"at": 12.5', '"at": 1, "think": 1'), 'needs either "at" or "think"'),
        (GOOD.replace("12.5", "-1"), "'at' must be seconds, 0 or more"),
        (GOOD.replace("12.5", "NaN"), "'at' must be seconds, 0 or more"),
        (GOOD.replace("12.5", "true"), "'at' must be seconds, 0 or more"),
        (GOOD.replace('"c1"', "7"), "'client' must be a text"),
        (GOOD.replace("}", ', "slot": 1}'), "'slot' must be true or false"),
        (GOOD.replace("}", ', "parent": "x"}'), '"parent" has "think"'),
        (GOOD.replace('"at": 12.5', '"think": 1, "parent": "x"'), "no earlier line has the id"),
        ('{"model": "alpha", "at": 1, "service": 1}', "t.jsonl:2: 'client' is missing"),
    ],
)
def test_a_mistake_names_its_line(line: str, words: str) -> None:
    message = read(GOOD, line)
    assert "t.jsonl:2" in message
    assert words in message


def test_an_id_stands_on_one_line_only() -> None:
    named = GOOD.replace("}", ', "id": "x"}')
    assert "t.jsonl:2: two lines have the id 'x'" in read(named, named)


def test_a_trace_without_requests_is_refused() -> None:
    assert "the trace has no requests" in read("", "  ")
