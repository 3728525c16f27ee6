"""What fits together, and what gives way."""

from __future__ import annotations

from llamaswap_py.estimate.estimator import evicted_for, fits, largest_sets

NEEDS = {"a": {"host": 4}, "b": {"host": 5}, "c": {"host": 7}, "d": {"gpu": 3, "host": 1}}
ROOM = {"host": 10, "gpu": 3}


def test_every_device_counts() -> None:
    assert fits(["a", "b", "d"], NEEDS, ROOM)
    assert not fits(["a", "c"], NEEDS, ROOM)
    assert not fits(["d", "d"], NEEDS, ROOM)
    assert not fits(["d"], NEEDS, {"host": 10})
    assert fits(["x"], {"x": {"gone": 0}}, {})


def test_the_largest_sets() -> None:
    assert largest_sets(NEEDS, ROOM) == [("a", "b", "d"), ("c", "d")]
    assert largest_sets({"x": {"host": 11}}, ROOM) == []


def test_what_gives_way() -> None:
    assert evicted_for("c", ["a", "b"], NEEDS, ROOM) == ("a", "b")
    assert evicted_for("a", ["b", "d"], NEEDS, ROOM) == ()
    assert evicted_for("b", ["c", "d"], NEEDS, ROOM) == ("c",)
    assert evicted_for("x", ["a"], {**NEEDS, "x": {"host": 11}}, ROOM) is None


def test_the_smaller_one_gives_way() -> None:
    needs = {"big": {"host": 6}, "small": {"host": 4}, "new": {"host": 4}}
    assert evicted_for("new", ["big", "small"], needs, ROOM) == ("small",)


def test_many_presets_are_grown_in_order() -> None:
    needs = {f"m{number:02}": {"host": 3} for number in range(20)}
    sets = largest_sets(needs, ROOM)
    assert ("m00", "m01", "m02") in sets
    assert all(len(one) == 3 for one in sets)
    assert len(evicted_for("m19", list(needs)[:16], needs, ROOM) or ()) == 14
