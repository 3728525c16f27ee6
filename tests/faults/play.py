"""Let faults happen, one or several at once, while clients ask; then check the list."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.faults.attackers import CROWD, write_keys
from tests.faults.checks import check_all
from tests.faults.crowd import Crowd
from tests.faults.faults import SIZE, Fault, Scene
from tests.real.answers import model_of

if TYPE_CHECKING:
    from tests.faults.conftest import FakeClock
    from tests.real.lab import Lab


async def play(lab: Lab, *faults: Fault, clock: FakeClock | None = None) -> None:
    """Inject all of `faults` at once, each with a victim of its own, and check everything after.

    There are four models, of which three fit, and four clients that ask for any of them.
    """
    victims = dict(zip(("victim", "other"), faults, strict=False))
    models = {name: fault.victim(lab, name) for name, fault in victims.items()}
    endless = {"long", *(name for name in models if "endless" in models[name]["model"])}
    models["long"] = lab.endless("long", size=SIZE)
    for name in ("alpha", "beta")[: 4 - len(models)]:
        models[name] = lab.preset(name, size=SIZE)
    keys: dict[str, Any] = {}
    for fault in faults:
        keys |= fault.keys
    keyed = any(fault.keyed for fault in faults)
    if keyed:
        keys["keys"] = write_keys(lab.folder)
    sentences = {name: lab.sentence(name) for name in models}
    few = max(fault.descriptors for fault in faults)
    env = clock.env if clock else None
    async with lab.lswap(models, env=env, wrapper=_limited(few), **keys) as lswap:
        if keyed:
            lswap.client.headers["authorization"] = f"Bearer {CROWD}"
        crowd = Crowd(lswap, sentences, frozenset(endless))
        async with asyncio.timeout(120), crowd.asking():
            await crowd.until_answered(4)
            async with asyncio.TaskGroup() as tasks:
                for name, fault in victims.items():
                    scene = Scene(lab, lswap, crowd, lab.folder, name, clock)
                    tasks.create_task(_inject(fault, scene))
            await crowd.until_answered(2)
        hit = _hit(victims, models)
        instead = "".join(f"|{fault.instead}" for fault in faults if fault.instead)
        says = [
            (one + instead).replace("$", name)
            for name, fault in victims.items()
            for one in fault.says
        ]
        await check_all(lswap, crowd, hit=hit, says=says)
        assert model_of(await lswap.state(), "alpha").failure is None or "alpha" in hit


async def _inject(fault: Fault, scene: Scene) -> None:
    await fault.inject(scene)


def _limited(descriptors: int) -> tuple[str, ...]:
    """Return the command that lets the one behind it open only so many files."""
    return ("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh") if descriptors else ()


def _hit(victims: dict[str, Fault], models: dict[str, Any]) -> set[str]:
    """Return the models that may notice."""
    hit = set()
    for name, fault in victims.items():
        for one in fault.hits:
            hit |= set(models) if one == "*" else {one.replace("$", name)}
    return hit
