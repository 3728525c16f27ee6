"""How layers are divided among devices."""

from __future__ import annotations

from llamaswap_py.estimate.splits import divide_layers


def test_equal_devices_take_equal_parts() -> None:
    assert divide_layers([1] * 30, [0, 0], [20, 20]) == (15, 15)
    assert divide_layers([1] * 30, [0, 0, 0], [20, 20, 20]) == (10, 10, 10)


def test_a_larger_device_takes_more() -> None:
    assert divide_layers([1] * 33, [0, 0], [24, 12]) == (22, 11)


def test_what_a_device_holds_beside_layers_counts() -> None:
    assert divide_layers([1] * 30, [10, 0], [20, 20]) == (10, 20)


def test_a_large_last_layer_makes_room_for_itself() -> None:
    assert divide_layers([1] * 10 + [8], [0, 0], [12, 12]) == (9, 2)


def test_a_device_without_room_takes_none() -> None:
    assert divide_layers([1] * 10, [0, 0], [0, 20]) == (0, 10)
    assert divide_layers([1] * 10, [2, 0], [1, 20]) == (0, 10)
    assert divide_layers([1] * 10, [0, 0], [0, 0]) == (10, 0)


def test_what_does_not_fit_is_divided_all_the_same() -> None:
    assert divide_layers([1] * 100, [0, 0], [24, 12]) == (67, 33)
