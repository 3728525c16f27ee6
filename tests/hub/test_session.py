"""huggingface_hub's session in processes that are forked while a thread uses it."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llamaswap_py.hub import api

FORK = """
import os, sys, threading
from huggingface_hub import get_session
from llamaswap_py.hub.api import prepare_session

if sys.argv[1] == "prepared":
    prepare_session()
client = get_session()
lock, held, over = threading.Lock(), threading.Event(), threading.Event()
close = client._transport.close

def locked():
    if not lock.acquire(timeout=1):
        os._exit(7)  # in the child: whoever held it is not there
    close()

def hold():
    with lock:
        held.set()
        over.wait()

client._transport.close = locked
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(0)
status = os.waitpid(child, 0)[1]
over.set()
thread.join()
get_session().close()  # the parent's still closes
sys.exit(os.waitstatus_to_exitcode(status))
"""


def forked(how: str) -> int:
    return subprocess.run([sys.executable, "-c", FORK, how], check=False, timeout=60).returncode


def test_a_fork_does_not_wait_for_a_thread_of_its_parent() -> None:
    assert forked("prepared") == 0


def test_it_would_without_being_prepared() -> None:
    """Where this fails, `prepare_session` is of no use any more."""
    assert forked("as it is") == 7


def test_threads_that_begin_at_once_prepare_the_session_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library closes its session where a factory is set: another thread may use it by then."""
    factories: list[object] = []

    def slow(factory: object) -> None:
        time.sleep(0.05)  # the others are there before it is set
        factories.append(factory)

    api._set_factory.cache_clear()
    monkeypatch.setattr("llamaswap_py.hub.huggingface.set_client_factory", slow)
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(api.prepare_session) for _ in range(4)]:
            done.result()
    api._set_factory.cache_clear()
    assert len(factories) == 1
