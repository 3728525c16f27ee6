"""What may lie where lswap expects a file: names that are not UTF-8, pipes, disks that hang."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.fakes.hanging import HangingDisk
from tests.real.answers import error_of
from tests.real.harness import Lswap, poll
from tests.real.test_api_keys import ADMIN, write_keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
ODD = os.fsdecode(b"caf\xe9")
SHOWN = r"caf\xe9"


def put(lab: Lab, name: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(lab.write_model(name, lab.sentence(name)), place)


# Names that are not UTF-8


async def test_names_that_are_not_utf8_in_a_folder_of_models(lab: Lab) -> None:
    """At the start, while it runs, when it is told to read again: the others are served."""
    models = lab.folder / "models"
    put(lab, "alpha", models / "alpha.gguf")
    put(lab, "odd", models / f"{ODD}.gguf")
    put(lab, "odd", models / f"folder-{ODD}" / "inside.gguf")
    env = lab.environment({"LSWAP_LLAMA_SERVER": lab.engine})
    server = Lswap(
        lab.folder / "none.yaml", env, ("--models-dir", str(models), "--listen", "127.0.0.1:0")
    )
    async with server.running():
        await server.says(f"{SHOWN}.gguf")
        async with server.stream("alpha") as stream:
            put(lab, "odd", models / f"more-{ODD}.gguf")
            put(lab, "beta", models / "beta.gguf")
            await server.until(lambda now: {one.id for one in now.models} == {"alpha", "beta"})
            assert (await stream.rest()).text == lab.sentence("alpha")
        await server.says(f"more-{SHOWN}.gguf")
        done = await lab.cli("reload", "--url", server.url)
        assert done.code == 0
        assert sum("not UTF-8" in line for line in server.log) == 2, "once for each change"
        for path in ("/v1/models", "/models", "/api/tags", "/lswap/v1/state", "/metrics"):
            assert (await server.client.get(path)).status_code == 200
        assert await server.chat("beta") == lab.sentence("beta")
        (models / f"{ODD}.gguf").unlink()
        await server.stop()


async def test_commands_get_over_names_that_are_not_utf8(lab: Lab) -> None:
    models = lab.folder / "models"
    put(lab, "alpha", models / "alpha.gguf")
    put(lab, "odd", models / f"{ODD}.gguf")
    (models / "link.gguf").symlink_to(models / f"{ODD}.gguf")
    config = lab.write_config({}, model_dirs=[str(models)])
    engine = {"LSWAP_LLAMA_SERVER": lab.engine}
    for words in (("check", str(config)), ("check", str(config), "--json")):
        done = await lab.cli(*words)
        assert done.code == 0, done.err
        assert "caf" in done.out
    done = await lab.cli("estimate", str(config), "alpha")
    assert done.code == 0, done.err
    written = lab.folder / "written.yaml"
    done = await lab.cli("init", str(written), "--models-dir", str(models), **engine)
    assert done.code == 0, done.err
    assert f"{SHOWN}.gguf" in done.err
    assert (await lab.cli("check", str(written), **engine)).code == 0
    ollama = lab.folder / "ollama"
    place = ollama / "manifests" / "registry.ollama.ai" / "library"
    (place / "alpha").mkdir(parents=True)
    (place / ODD).mkdir()
    (ollama / "blobs").mkdir()
    for name in ("alpha", ODD):
        (place / name / "latest").write_text('{"schemaVersion": 2, "layers": []}')
    done = await lab.cli("import", "ollama", str(ollama))
    assert done.code == 0, done.err
    assert SHOWN in done.err
    for words in (("check", f"{ODD}.yaml"), ("up", ODD), ("show", ODD), ("load", ODD)):
        done = await lab.cli(*words)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("lswap: ")
        assert f"{SHOWN}" in done.err


async def test_a_file_of_a_folder_and_a_working_folder_with_such_names(lab: Lab) -> None:
    """Both are read; what shows their names shows them escaped."""
    folder = lab.folder / "conf.d"
    folder.mkdir()
    config = lab.config({"alpha": lab.preset("alpha")})
    (folder / f"{ODD}.yaml").write_text(yaml.safe_dump(config))
    server = Lswap(folder / "x", lab.environment(), ("--config-dir", str(folder)))
    async with server.running():
        assert await server.chat("alpha") == lab.sentence("alpha")
        await server.stop()
    inside = lab.folder / ODD
    inside.mkdir()
    (inside / "lswap.yaml").write_text(yaml.safe_dump(config))
    (folder / f"{ODD}.yaml").unlink()
    server = Lswap(inside / "lswap.yaml", lab.environment(), ("lswap.yaml",))
    async with server.running():
        assert await server.chat("alpha") == lab.sentence("alpha")
        assert (await lab.cli("ps", "--json")).code == 0
        await server.stop()


async def test_a_cache_of_downloads_with_such_names(lab: Lab) -> None:
    """Files of a repository that somebody put there by hand."""
    hub = lab.folder / "hub"
    snapshot = hub / "models--some--model-GGUF" / "snapshots" / "1234"
    put(lab, "alpha", snapshot / "model-Q8_0.gguf")
    put(lab, "odd", snapshot / f"{ODD}-Q4_K_M.gguf")
    put(lab, "odd", snapshot.parent / ODD / "model-Q4_0.gguf")
    preset = {"hf": "some/model-GGUF:Q8_0", "memory": {"host": "100MiB"}}
    async with lab.lswap({"alpha": preset}, env={"HF_HUB_CACHE": str(hub)}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
    for words in (("uninstall",), ("uninstall", "--json")):
        assert "Traceback" not in (await lab.cli(*words, HF_HUB_CACHE=str(hub))).err


# Something else in the place of a file


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS = (a_pipe, a_socket, a_device, a_folder, a_loop)


def instead(path: Path, put_it: Callable[[Path], None]) -> None:
    """Put something in the place of a file, in one step."""
    new = path.with_name(f"new-{path.name}")
    put_it(new)
    if path.is_file() and new.is_dir() and not new.is_symlink():
        path.unlink()
    new.rename(path)
    if put_it is a_loop:
        path.unlink()
        path.symlink_to(path.name)


@pytest.mark.parametrize("kind", KINDS)
async def test_something_else_in_the_place_of_every_file(lab: Lab, kind: Any) -> None:
    """Each is refused with its name; what serves goes on, and SIGTERM ends it."""
    keys = write_keys(lab.folder)
    key_file = lab.folder / "keys.yaml"
    models = {"alpha": lab.preset("alpha", size="50MiB")}
    for name in ("model", "shard", "mmproj", "template"):
        own = lab.folder / f"{name}.gguf"
        put(lab, name, own)
        models[name] = {"model": str(own), "memory": {"host": "50MiB"}}
    first = lab.folder / "part-00001-of-00002.gguf"
    put(lab, "shard", first)
    models["shard"]["model"] = str(first)
    instead(lab.folder / "part-00002-of-00002.gguf", kind)
    instead(lab.folder / "model.gguf", kind)
    for name, option in (("mmproj", "mmproj"), ("template", "chat-template-file")):
        instead(lab.folder / f"{name}.bad", kind)
        models[name]["args"] = {option: str(lab.folder / f"{name}.bad")}
    engines = lab.folder / "data" / "lswap" / "engines" / "b1-cpu"
    engines.mkdir(parents=True)
    instead(engines / "manifest.json", kind)
    env = {"XDG_DATA_HOME": str(lab.folder / "data")}
    async with lab.lswap(models, keys=keys, env=env) as lswap:
        lswap.client.headers.update(ADMIN)
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        for name in ("model", "shard", "mmproj", "template"):
            error = error_of(await lswap.post_chat(name), 503)
            assert str(lab.folder) in error["message"]
        facts = await lswap.client.get("/api/tags")
        assert facts.status_code == 200
        # While it runs: the key file, the configuration.
        instead(key_file, kind)
        answer = await lswap.client.post("/lswap/v1/reload")
        assert answer.status_code == 400, answer.text
        assert "keys.yaml" in answer.text
        assert await lswap.chat("alpha") == lab.sentence("alpha"), "the keys are as before"
        config = lab.folder / "lswap.yaml"
        said = config.read_text()
        instead(config, kind)
        assert (await lswap.client.post("/lswap/v1/reload")).status_code == 400
        await lswap.says("the file is not taken over")
        assert await lswap.chat("alpha") == lab.sentence("alpha")
    done = await lab.cli("check", str(config))
    assert done.code == (2 if kind is a_folder else 1)
    assert "Traceback" not in done.err
    assert str(config) in done.out + done.err
    if kind is a_folder:
        config.rmdir()
    else:
        config.unlink()
    config.write_text(said)
    for words in (("up", str(config)), ("key", "list", "--file", str(key_file))):
        done = await lab.cli(*words)
        assert done.code == 2
        assert "keys.yaml" in done.err
    assert (await lab.cli("engine", "list", **env)).code == 0


async def test_a_pipe_in_a_folder_of_files_and_of_models(lab: Lab) -> None:
    folder = lab.folder / "conf.d"
    folder.mkdir()
    (folder / "10.yaml").write_text(yaml.safe_dump(lab.config({"alpha": lab.preset("alpha")})))
    server = Lswap(folder, lab.environment(), ("--config-dir", str(folder)))
    async with server.running():
        os.mkfifo(folder / "20.yaml")
        said = await server.says("the file is not taken over")
        assert "20.yaml: the file cannot be read: this is a pipe, not a regular file" in said
        assert await server.chat("alpha") == lab.sentence("alpha")
        await server.stop()


async def test_a_pipe_in_the_place_of_what_was_learned_and_of_a_log(lab: Lab) -> None:
    """Records that are pipes are as good as absent; a log nobody reads lacks lines."""
    config = {"alpha": lab.preset("alpha")}
    del config["alpha"]["memory"]
    async with lab.lswap(config) as lswap:
        await lswap.chat("alpha")
    records = [one for one in (lab.folder / "lswap").glob("*/*.json") if one.is_file()]
    assert any(one.parent.name == "learned" for one in records)
    for one in records:
        instead(one, a_pipe)
    logs = lab.folder / "logs"
    logs.mkdir()
    os.mkfifo(logs / "alpha.log")
    async with lab.lswap(config, log={"dir": str(logs)}) as lswap:
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        await lswap.until_logged("alpha", "it will lack lines")


# The key file


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o606, 0o602])
async def test_a_key_file_that_others_may_write_is_refused(lab: Lab, mode: int) -> None:
    keys = write_keys(lab.folder)
    file = lab.folder / "keys.yaml"
    file.chmod(mode)
    config = lab.write_config({"alpha": lab.preset("alpha")}, keys=keys)
    done = await lab.cli("up", str(config))
    assert done.code == 2
    assert f"chmod 600 {file}" in done.err
    file.chmod(0o600)
    async with lab.lswap({"alpha": lab.preset("alpha")}, keys=keys) as lswap:
        lswap.client.headers.update(ADMIN)
        file.chmod(mode)
        answer = await lswap.client.post("/lswap/v1/reload")
        assert f"chmod 600 {file}" in error_of(answer, 400)["message"]
        assert await lswap.chat("alpha") == lab.sentence("alpha")


async def test_a_key_file_that_others_may_read_gets_a_warning(lab: Lab) -> None:
    keys = write_keys(lab.folder)
    (lab.folder / "keys.yaml").chmod(0o644)
    async with lab.lswap({"alpha": lab.preset("alpha")}, keys=keys) as lswap:
        said = await lswap.says("others may read this key file")
        assert f"chmod 600 {lab.folder}/keys.yaml" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_key_file_of_another_user_is_refused(lab: Lab) -> None:
    keys = write_keys(lab.folder)
    file = lab.folder / "keys.yaml"
    file.chmod(0o600)
    os.chown(file, 12345, -1)
    done = await lab.cli("up", str(lab.write_config({"alpha": lab.preset("alpha")}, keys=keys)))
    assert done.code == 2
    assert f"chown 0 {file}" in done.err


# A disk that hangs


@pytest.mark.parametrize("what", ["keys.yaml", "lswap.yaml", "far-away"])
async def test_a_disk_that_hangs(lab: Lab, what: str) -> None:
    """The key file, the configuration, a model: others are served, and SIGTERM ends lswap."""
    disk = HangingDisk.build(lab.folder, what)
    keys = write_keys(lab.folder)
    put(lab, "far", lab.folder / "far-away.gguf")
    far = {"model": str(lab.folder / "far-away.gguf"), "memory": {"host": "50MiB"}}
    models = {"alpha": lab.preset("alpha", size="50MiB"), "far": far}
    async with lab.lswap(models, keys=keys, env=disk.env) as lswap:
        lswap.client.headers.update(ADMIN)
        assert await lswap.chat("alpha") == lab.sentence("alpha")
        disk.hang()
        asked = [
            asyncio.create_task(lswap.client.post("/lswap/v1/reload")),
            asyncio.create_task(lswap.client.get("/api/tags")),
        ]

        async def waits_for_the_disk() -> bool:
            return what in "".join(lswap.log) or not any(task.done() for task in asked[:1])

        await poll(waits_for_the_disk)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            began = loop.time()
            assert await lswap.chat("alpha") == lab.sentence("alpha")
            assert (await lswap.client.get("/livez")).status_code == 200
            assert loop.time() - began < 60
        await lswap.stop()
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def test_a_key_file_is_written_for_its_owner_alone(tmp_path: Path) -> None:
    from llamaswap_py.cli.app import app

    file = tmp_path / "keys.yaml"
    app(["key", "new", "ann", "--file", str(file)], standalone_mode=False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


# Sizes, and links


async def test_a_hundred_megabytes_of_yaml(lab: Lab) -> None:
    """Refused by its size, at the start and by one that runs, without reading it all."""
    huge = lab.folder / "huge.yaml"
    with huge.open("wb") as file:
        file.write(b"models:\n")
        for _ in range(100):
            file.write(b"  a: {model: /a.gguf}\n" * (1 << 20 >> 4))
    assert huge.stat().st_size > 100_000_000
    for words in (("check", str(huge)), ("up", str(huge))):
        done = await lab.cli(*words)
        assert done.code in (1, 2)
        assert "larger than 8 MiB" in done.out + done.err
    keys = write_keys(lab.folder)
    async with lab.lswap({"alpha": lab.preset("alpha")}, keys=keys) as lswap:
        lswap.client.headers.update(ADMIN)
        for name in ("lswap.yaml", "keys.yaml"):
            there = lab.folder / name
            said = there.read_bytes()
            shutil.copyfile(huge, there)
            answer = await lswap.client.post("/lswap/v1/reload")
            assert "larger than" in error_of(answer, 400)["message"]
            assert await lswap.chat("alpha") == lab.sentence("alpha")
            there.write_bytes(said)
            assert (await lswap.client.post("/lswap/v1/reload")).status_code == 200


async def test_removing_and_importing_over_links(lab: Lab) -> None:
    """A link to a file stays one; what a model's files link to outside of the cache is not lost."""
    real = lab.folder / "elsewhere" / "real.yaml"
    real.parent.mkdir()
    models = {"beta": lab.preset("beta"), "alpha": {"hf": "some/model-GGUF"}}
    real.write_text(yaml.safe_dump(lab.config(models)))
    link = lab.folder / "link.yaml"
    link.symlink_to(real)
    hub = lab.folder / "hub"
    repo = hub / "models--some--model-GGUF"
    own, blob = lab.folder / "own.gguf", repo / "blobs" / "0123"
    put(lab, "alpha", own)
    put(lab, "alpha", blob)
    snapshot = repo / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (snapshot / "model-Q4_K_M.gguf").symlink_to(own)
    (snapshot / "other-Q8_0.gguf").symlink_to(blob)
    words = ("rm", "alpha", "--config", str(link), "--files", "--yes")
    done = await lab.cli(*words, HF_HUB_CACHE=str(hub))
    assert done.code == 0, done.err
    assert own.exists(), "a file outside of the cache is somebody else's"
    assert not (snapshot / "model-Q4_K_M.gguf").is_symlink()
    assert link.is_symlink()
    assert list(yaml.safe_load(real.read_text())["models"]) == ["beta"]
    line = "llama-server -m /models/gamma.gguf"
    for force in ((), ("--force",)):
        done = await lab.cli("import", "command", line, "-o", str(link), *force)
        assert done.code == (0 if force else 2), done.err
        assert link.is_symlink()
    assert list(yaml.safe_load(real.read_text())["models"]) == ["gamma"]
    nowhere = lab.folder / "nowhere.yaml"
    nowhere.symlink_to(lab.folder / "secret.yaml")
    done = await lab.cli("import", "command", line, "-o", str(nowhere))
    assert done.code == 2
    assert not (lab.folder / "secret.yaml").exists()


async def test_a_disk_of_logs_that_hangs(lab: Lab) -> None:
    """Lines are lost, and nothing else: models load and unload as often as they like."""
    disk = HangingDisk.build(lab.folder, "slow-logs")
    models = {"alpha": lab.preset("alpha")}
    log = {"dir": str(lab.folder / "slow-logs")}
    async with lab.lswap(models, env=disk.env, log=log) as lswap:
        disk.hang()
        for _ in range(6):
            assert await lswap.chat("alpha") == lab.sentence("alpha")
            await lswap.client.post("/lswap/v1/models/alpha/unload?force=true")
            await lswap.until_state("alpha", "unloaded")


@pytest.mark.parametrize(
    "what", ["learned", "traffic", "captures", "estimates", "instances", "kept"]
)
async def test_a_disk_that_hangs_for_what_is_written(lab: Lab, what: str) -> None:
    """Records, what was learned, captures, conversations: lswap serves, and SIGTERM ends it."""
    disk = HangingDisk.build(lab.folder, f"/{what}")
    memory = {"keep_kv": {"dir": str(lab.folder / "kept")}}
    models = {name: lab.preset(name, size="110MiB", keep_kv=True) for name in ("alpha", "beta")}
    async with lab.lswap(models, env=disk.env, capture="on", memory=memory) as lswap:
        for name in models:
            assert await lswap.chat(name) == lab.sentence(name)
        disk.hang()
        for _ in range(3):
            async with asyncio.timeout(60):
                for name in models:  # each loads anew, and evicts the other
                    assert await lswap.chat(name) == lab.sentence(name)
                assert (await lswap.client.get("/livez")).status_code == 200
        async with asyncio.timeout(60):
            await lswap.stop()
    disk.go_on()
