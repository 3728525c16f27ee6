"""Downloads, in the process that runs them, from a server that speaks the hub's protocol."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.hub.cache import PART, find_cached, remove_cached
from llamaswap_py.hub.fetch import Order, Step, WantedFile
from llamaswap_py.hub.refs import HubRef
from llamaswap_py.supervisor.hub_models import heads_asked, with_files
from tests.fakes.fake_hub import COMMIT, FakeHub, serve_hub, sha256

REPO = "someone/Tiny-GGUF"
MODEL = b"GGUF" + random.Random(1).randbytes(700_000)
SECOND = b"GGUF" + random.Random(2).randbytes(300_000)
FILES = {
    "tiny-Q4_K_M-00001-of-00002.gguf": MODEL,
    "tiny-Q4_K_M-00002-of-00002.gguf": SECOND,
    "mmproj-F16.gguf": b"GGUF" + b"m" * 1000,
}
ORDER = Order(
    REPO, COMMIT, tuple(WantedFile(name, len(data), sha256(data)) for name, data in FILES.items())
)
REF = HubRef(REPO, "Q4_K_M")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve_hub(FakeHub({REPO: FILES})) as served:
        yield served


class Downloader:
    """Runs the worker process with a cache of its own."""

    def __init__(self, hub: FakeHub, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(folder),
            "HF_TOKEN": "",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        }

    def start(self, order: Order = ORDER) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "llamaswap_py.hub.fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order))
        process.stdin.close()
        return process

    def run(self, order: Order = ORDER) -> list[Step]:
        with self.start(order) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            lines = process.stdout.read().splitlines()
            said = process.stderr.read().decode()
        assert "Traceback" not in said, said
        return [msgspec.json.decode(line, type=Step) for line in lines]


@pytest.fixture
def downloader(hub: FakeHub, tmp_path: Path) -> Downloader:
    return Downloader(hub, tmp_path / "hub")


def test_all_shards_and_the_projector_arrive_where_other_tools_find_them(
    downloader: Downloader,
) -> None:
    steps = downloader.run()
    assert steps[-1].state == "done", steps[-1]
    assert [Path(path).read_bytes() for path in steps[-1].paths] == list(FILES.values())
    found = find_cached(REF, downloader.folder)
    assert found is not None
    assert found.files == steps[-1].paths[:2]
    assert found.projector == steps[-1].paths[2]
    total = sum(map(len, FILES.values()))
    assert all(step.total == total for step in steps)
    done = [step.done for step in steps if step.state == "downloading"]
    assert done == sorted(done)
    # The library that everybody uses agrees that it is all there.
    code = (
        "from huggingface_hub import hf_hub_download as get;"
        f"print(get({REPO!r}, 'mmproj-F16.gguf', local_files_only=True))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], env=downloader.env, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == found.projector


def test_what_is_there_is_not_fetched_again(downloader: Downloader, hub: FakeHub) -> None:
    downloader.run()
    hub.ranges.clear()
    hub.status = 500
    assert downloader.run()[-1].state == "done"
    assert hub.ranges == []


def test_a_connection_that_breaks_is_taken_up_again(downloader: Downloader, hub: FakeHub) -> None:
    hub.cut_after = 400_000
    steps = downloader.run()
    assert steps[-1].state == "done", steps[-1]
    first = next(iter(FILES))
    ranges = [given for name, given in hub.ranges if name == first]
    assert ranges[0] == ""
    assert 0 < int(ranges[1].removeprefix("bytes=").removesuffix("-")) <= 400_000


def test_a_killed_download_goes_on_where_it_stopped(downloader: Downloader, hub: FakeHub) -> None:
    hub.stall = threading.Event()
    process = downloader.start()
    assert process.stdout is not None
    blobs = downloader.folder / "models--someone--Tiny-GGUF" / "blobs"
    part = blobs / f"{sha256(MODEL)}{PART}"
    with process:
        for line in process.stdout:
            if msgspec.json.decode(line, type=Step).done > 0:
                break
        until = time.monotonic() + 20  # it says so just before it writes
        while part.stat().st_size == 0 and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
    assert find_cached(REF, downloader.folder) is None
    begun = part.stat().st_size
    assert begun > 0
    hub.stall.set()
    hub.stall = None
    hub.ranges.clear()
    steps = downloader.run()
    assert steps[-1].state == "done", steps[-1]
    assert hub.ranges[0] == (next(iter(FILES)), f"bytes={begun}-")
    assert Path(steps[-1].paths[0]).read_bytes() == MODEL


def test_damaged_bytes_are_found_and_deleted(downloader: Downloader, hub: FakeHub) -> None:
    hub.corrupt = True
    last = downloader.run()[-1]
    assert last.state == "failed"
    assert "arrived damaged" in last.error
    assert find_cached(REF, downloader.folder) is None
    hub.corrupt = False
    assert downloader.run()[-1].state == "done"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"token": "secret"}, "no repository"),
        ({"status": 500}, "HTTP 500"),
        ({"repos": {}}, "does not have this file"),
    ],
)
def test_a_refusal_is_explained(
    downloader: Downloader, hub: FakeHub, change: dict[str, object], says: str
) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    last = downloader.run()[-1]
    assert last.state == "failed"
    assert says in last.error, last
    assert last.remedy


def test_the_right_token_opens_a_private_repository(downloader: Downloader, hub: FakeHub) -> None:
    hub.token = "secret"
    downloader.env["HF_TOKEN"] = "secret"
    assert downloader.run()[-1].state == "done"


def test_a_hub_that_is_not_there_is_said(downloader: Downloader) -> None:
    downloader.env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    last = downloader.run()[-1]
    assert last.state == "failed"
    assert "cannot be reached" in last.error


def test_a_disk_without_room_is_found_before_anything_is_fetched(
    downloader: Downloader, hub: FakeHub
) -> None:
    huge = Order(REPO, COMMIT, (WantedFile("tiny-Q4_K_M-00001-of-00002.gguf", 1 << 60, "x"),))
    last = downloader.run(huge)[-1]
    assert last.state == "failed"
    assert "the download needs" in last.error
    assert "HF_HUB_CACHE" in last.remedy
    assert hub.ranges == []


def test_removing_a_model_frees_its_bytes(downloader: Downloader) -> None:
    downloader.run()
    assert remove_cached(REF, downloader.folder) == sum(map(len, FILES.values()))
    assert find_cached(REF, downloader.folder) is None
    assert remove_cached(REF, downloader.folder) == 0


HEADED = {
    "Big-Q4_0.gguf": b"GGUF" + b"4" * 900,
    "Big-Q8_0.gguf": b"GGUF" + b"8" * 900,
    "MTP/mtp-Big-Q4_0.gguf": b"GGUF" + b"m" * 90,
    "MTP/mtp-Big-Q8_0.gguf": b"GGUF" + b"n" * 90,
    "mmproj-F16.gguf": b"GGUF" + b"p" * 90,
}


@pytest.fixture
def headed(tmp_path: Path) -> Iterator[Downloader]:
    with serve_hub(FakeHub({REPO: HEADED})) as served:
        yield Downloader(served, tmp_path / "hub")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.gguf"))


def test_a_reference_means_the_same_file_whatever_is_here(headed: Downloader) -> None:
    q4, plain = HubRef(REPO, "Q4_0"), HubRef(REPO)
    assert headed.run(Order(REPO, tag="Q4_0"))[-1].state == "done"
    assert _names(headed.folder) == ["Big-Q4_0.gguf", "mmproj-F16.gguf"]
    assert find_cached(q4, headed.folder) is not None
    assert find_cached(plain, headed.folder) is None, "without a tag it is Q8_0, which is not here"
    headed.run(Order(REPO))
    found = find_cached(plain, headed.folder)
    assert found is not None
    assert Path(found.model).name == "Big-Q8_0.gguf"


def test_a_draft_head_comes_when_it_is_asked_for(headed: Downloader) -> None:
    headed.run(Order(REPO, tag="Q4_0"))
    found = find_cached(HubRef(REPO, "Q4_0"), headed.folder)
    assert found is not None
    assert (found.heads, found.others) == ({}, ("draft-mtp",))
    headed.run(Order(REPO, tag="Q4_0", heads=("draft-mtp", "draft-eagle3")))
    found = find_cached(HubRef(REPO, "Q4_0"), headed.folder)
    assert found is not None
    assert Path(found.heads["draft-mtp"]).name == "mtp-Big-Q4_0.gguf"
    assert found.others == ()


def test_a_preset_gets_the_head_that_its_spec_type_asks_for(
    headed: Downloader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(headed.folder))
    text = (
        f"models: {{big: {{hf: '{REPO}:Q4_0', args: {{spec-type: 'draft-mtp,ngram-mod'}}, "
        "variants: [{name: plain, args: {spec-type: none}}, {name: fast}]}}"
    )
    preset = load_config(text, path=None, base_dir="/", env={}, home="/").models["big"]
    assert heads_asked(preset) == ("draft-mtp",)
    assert with_files(preset)[1], "nothing is here"
    headed.run(Order(REPO, tag="Q4_0"))
    plain, fast = variant_presets(preset)
    assert not with_files(plain)[1]
    assert with_files(fast)[1], "its head is missing"
    headed.run(Order(REPO, tag="Q4_0", heads=heads_asked(preset)))
    ready, missing = with_files(fast)
    assert not missing
    assert Path(str(ready.args["model-draft"])).name == "mtp-Big-Q4_0.gguf"
    assert "model-draft" not in with_files(plain)[0].args


def test_what_others_use_stays_and_nothing_else_does(headed: Downloader) -> None:
    one, two = HubRef(REPO, "Q4_0"), HubRef(REPO, "Q8_0")
    headed.run(Order(REPO, tag="Q4_0", heads=("draft-mtp",)))
    headed.run(Order(REPO, tag="Q8_0"))
    found = find_cached(one, headed.folder)
    assert found is not None
    head = os.path.realpath(found.heads["draft-mtp"])
    remove_cached(one, headed.folder, used={head})
    assert "mtp-Big-Q4_0.gguf" in _names(headed.folder)
    assert "mmproj-F16.gguf" in _names(headed.folder), "the other model's, too"
    part = next(headed.folder.rglob("blobs")) / f"begun{PART}"
    part.write_bytes(b"1")
    remove_cached(two, headed.folder, alone=True)
    assert list(headed.folder.rglob("*")) == [], "nothing is left of the repository"


def test_what_is_being_fetched_is_left_alone(headed: Downloader) -> None:
    headed.run(Order(REPO, tag="Q4_0"))
    part = next(headed.folder.rglob("blobs")) / f"begun{PART}"
    with part.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        remove_cached(HubRef(REPO, "Q4_0"), headed.folder, alone=True)
        assert part.exists()
    assert _names(headed.folder) == []


def test_a_full_disk_in_the_middle_keeps_what_is_there(
    downloader: Downloader, hub: FakeHub
) -> None:
    code = (
        "import resource, signal, sys;"
        "from llamaswap_py.hub.fetch import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=msgspec.json.encode(ORDER),
        env=downloader.env,
        capture_output=True,
        check=False,
    )
    last = msgspec.json.decode(done.stdout.splitlines()[-1], type=Step)
    assert last.state == "failed"
    assert "could not be written" in last.error, last
    hub.ranges.clear()
    assert downloader.run()[-1].state == "done"
    assert hub.ranges[0][1].startswith("bytes=")
