"""Who takes nothing is given up, who is slow is not; on a clock of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from llamaswap_py.proxy.backpressure import Outflow

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Clock:
    """The part of an event loop that sets timers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Clock.Timer] = []

    def time(self) -> float:
        return self.now

    class Timer:
        def __init__(self, when: float, call: Callable[[], None]) -> None:
            self.when, self.call, self.off = when, call, False

        def cancel(self) -> None:
            self.off = True

    def call_later(self, delay: float, call: Callable[..., None], *args: object) -> Timer:
        self.timers.append(self.Timer(self.now + delay, lambda: call(*args)))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for timer in [one for one in self.timers if one.when <= self.now]:
            self.timers.remove(timer)
            if not timer.off:
                timer.call()


class Transport:
    left = 100_000

    def get_write_buffer_size(self) -> int:
        return self.left


def made() -> tuple[Outflow, Clock, Transport, list[float]]:
    clock, given_up = Clock(), list[float]()
    loop = cast("asyncio.AbstractEventLoop", clock)
    return Outflow(loop, 300.0, lambda: given_up.append(clock.now)), clock, Transport(), given_up


def pause(outflow: Outflow, transport: Transport) -> None:
    outflow.pause(cast("asyncio.WriteTransport", transport))


def test_a_client_that_takes_nothing() -> None:
    outflow, clock, transport, given_up = made()
    pause(outflow, transport)
    clock.advance(299)
    assert not given_up
    clock.advance(1)
    assert given_up == [300]


def test_a_client_that_takes_a_byte_now_and_then() -> None:
    outflow, clock, transport, given_up = made()
    pause(outflow, transport)
    for _ in range(1000):
        transport.left -= 1
        clock.advance(300)
    assert not given_up
    clock.advance(300)
    assert given_up


def test_a_pause_that_ended_is_forgotten() -> None:
    outflow, clock, transport, given_up = made()
    for _ in range(3):
        pause(outflow, transport)
        assert not outflow.writable
        clock.advance(200)
        outflow.resume()
        assert outflow.writable
    pause(outflow, transport)
    outflow.close()
    clock.advance(1000)
    assert not given_up
