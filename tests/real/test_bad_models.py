"""Models that cannot work: each says why, and harms nobody else."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.answers import error_of, instance_of, model_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.real.lab import Lab, Preset

pytestmark = pytest.mark.anyio


def missing(lab: Lab) -> Preset:
    return {**lab.preset("bad"), "model": str(lab.folder / "nowhere.gguf")}


def folder(lab: Lab) -> Preset:
    return {**lab.preset("bad"), "model": str(lab.folder)}


def unknown_argument(lab: Lab) -> Preset:
    return lab.preset("bad", args={"ctx-sise": 512})


def never_fits(lab: Lab) -> Preset:
    return lab.preset("bad", size="10GiB")


def unknown_device(lab: Lab) -> Preset:
    return lab.preset("bad", device="CUDA7")


def described_by_nothing(_: Lab) -> Preset:
    return {"metadata": {"note": "an entry without a command"}}


def composed(_: Lab) -> Preset:
    """Return a program that cannot be told where to listen."""
    return {"cmd": ["docker", "compose", "-f", "/srv/vllm/compose.yml", "up"]}


def wrong_value(lab: Lab) -> Preset:
    return lab.preset("bad", ttl="soon")


def truncated(lab: Lab) -> Preset:
    preset = lab.preset("bad")
    path = lab.folder / "cut.gguf"
    with open(preset["model"], "rb") as whole:
        path.write_bytes(whole.read(100_000))
    return {**preset, "model": str(path)}


def foreign(lab: Lab) -> Preset:
    path = lab.folder / "photo.gguf"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(10_000))
    return {**lab.preset("bad"), "model": str(path)}


def damaged(lab: Lab) -> Preset:
    """Write a file that begins like a GGUF and goes on otherwise."""
    path = lab.folder / "photo.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 10_000)
    return {**lab.preset("bad"), "model": str(path)}


def empty(lab: Lab) -> Preset:
    path = lab.folder / "empty.gguf"
    path.touch()
    return {**lab.preset("bad"), "model": str(path)}


def another_architecture(lab: Lab) -> Preset:
    preset = lab.preset("bad")
    path = lab.folder / "other.gguf"
    with open(preset["model"], "rb") as whole:
        path.write_bytes(
            whole.read().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lemma", 1)
        )
    return {**preset, "model": str(path)}


def bad_argument(lab: Lab) -> Preset:
    return lab.preset("bad", extra=["--no-such-flag"])


def bad_value(lab: Lab) -> Preset:
    return lab.preset("bad", extra=["--ctx-size", "plenty"])  # `args` would be checked


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (missing, "nowhere.gguf: there is no such file"),
        (folder, "this is a folder"),
        (unknown_argument, "did you mean ctx-size?"),
        (never_fits, "it can never fit: host: needs 10 GiB"),
        (unknown_device, "there is no device CUDA7 here"),
        (foreign, "photo.gguf: this is not a GGUF file"),
        (empty, "empty.gguf: this is not a GGUF file"),
        (described_by_nothing, "the preset names no file"),
        (composed, "no word has {port} in it"),
        (wrong_value, "bad.ttl"),
    ],
)
async def test_known_at_the_start(lab: Lab, make: Callable[[Lab], Preset], says: str) -> None:
    """Listed as failed from the first moment; nothing is ever spawned or evicted for it."""
    async with lab.lswap({"alpha": lab.preset("alpha"), "bad": make(lab)}) as lswap:
        assert any("bad" in line and "failed" in line and says in line for line in lswap.log)
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        pid = instance_of(await lswap.state(), "alpha").pid
        answer = await lswap.post_chat("bad")
        large = make is never_fits  # the only one that another try cannot help
        error = error_of(answer, 400 if large else 503)
        code, failure = ("model_too_large", "too_large") if large else ("model_failed", "config")
        assert (error["code"], error["failure"], error["state"]) == (code, failure, "failed")
        assert says in error["message"]
        assert "lswap.yaml:" in error["message"]
        assert large or int(answer.headers["retry-after"]) > 0
        state = await lswap.state()
        assert model_of(state, "bad").state == "failed"
        assert instance_of(state, "alpha").pid == pid
        assert (state.loads_total, state.evictions_total) == (1, 0)
        listed = {one["id"]: one for one in (await lswap.client.get("/v1/models")).json()["data"]}
        assert listed["bad"]["status"]["failed"] is True
        assert "failed" not in listed["alpha"]["status"]


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (truncated, "file_corrupt", "cut short"),
        (damaged, "file_corrupt", "photo"),
        (another_architecture, "unknown_architecture", "lemma"),
        (bad_argument, "bad_argument", "--no-such-flag"),
        (bad_value, "bad_argument", "not a number"),
    ],
)
async def test_found_out_by_llama_server(
    lab: Lab, make: Callable[[Lab], Preset], kind: str, says: str
) -> None:
    """The answer carries class, exit code and log lines; then the model rests for a while."""
    bad = make(lab) | {"memory": {"host": "90MiB"}}
    models = {"alpha": lab.preset("alpha", size="90MiB"), "bad": bad}
    async with lab.lswap(models) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        pid = instance_of(await lswap.state(), "alpha").pid
        answers = await asyncio.gather(*(lswap.post_chat("bad") for _ in range(3)))
        for answer in answers:
            error = error_of(answer, 503)
            assert (error["code"], error["failure"]) == ("model_failed", kind)
            assert error["exit_code"] == 1
            assert says in error["message"]
            assert error["log"]
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        state = await lswap.state()
        assert state.loads_total == 2
        assert model_of(state, "bad").state == "failed"
        assert instance_of(state, "alpha").pid == pid
        assert await lswap.chat("alpha") == lab.sentence("alpha")


async def test_nothing_is_evicted_for_a_model_that_rests(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha"), "bad": truncated(lab)}
    async with lab.lswap(models) as lswap:
        error_of(await lswap.post_chat("bad"), 503)
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        before = instance_of(await lswap.state(), "alpha")
        error = error_of(await lswap.post_chat("bad"), 503)
        assert error["failure"] == "file_corrupt"
        state = await lswap.state()
        assert instance_of(state, "alpha").pid == before.pid
        assert state.evictions_total == 0


async def test_the_rest_grows_with_each_failure(lab: Lab) -> None:
    """An operator may try again at once, and a file that was mended works."""
    bad = truncated(lab)
    async with lab.lswap({"bad": bad}) as lswap:
        rests = []
        for _ in range(3):
            error_of(await lswap.client.post("/lswap/v1/models/bad/load"), 503)
            failure = (await lswap.model("bad")).failure
            last = (await lswap.decisions("bad"))[-1]
            assert last.kind == "failed"
            assert failure is not None
            assert failure.retry_at is not None
            rests.append(failure.retry_at - last.at)
        assert rests == pytest.approx([1, 2, 4], abs=0.01)
        shutil.copy(lab.preset("good")["model"], bad["model"])
        loaded = await lswap.client.post("/lswap/v1/models/bad/load")
        assert loaded.status_code == 200
        assert await lswap.chat("bad") == lab.sentence("good")
        assert (await lswap.model("bad")).failure is None


async def test_a_stream_is_refused_like_any_other_request(lab: Lab) -> None:
    async with lab.lswap({"bad": truncated(lab)}) as lswap:
        answer = await lswap.post_chat("bad", stream=True)
        assert error_of(answer, 503)["failure"] == "file_corrupt"
        assert answer.headers["content-type"].startswith("application/json")


async def test_anthropic_clients_get_their_own_shape(lab: Lab) -> None:
    async with lab.lswap({"bad": truncated(lab)}) as lswap:
        body: dict[str, Any] = {"model": "bad", "max_tokens": 5, "messages": []}
        answer = await lswap.client.post("/v1/messages", json=body)
        assert answer.status_code == 503
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "overloaded_error"
