"""Whether the time of a refusal tells something of the keys: `python -m bench.key_timing`.

Wrong keys that share none, half and all but one of the characters of a right one are refused in
turn, with one key and with a thousand. The figures are in docs/security.md.
"""

from __future__ import annotations

import gc
import random
import statistics
import time

from llamaswap_py.api.auth import Access
from llamaswap_py.config.api_keys import PREFIX, ApiKey, KeyRing, hash_secret
from llamaswap_py.errors import ApiError
from llamaswap_py.proxy.messages import RequestHead

ROUNDS = 40_000


def head(secret: str) -> RequestHead:
    """Return the head of a request with a key."""
    pairs = [(b"authorization", f"Bearer {secret}".encode())]
    return RequestHead("GET", "/v1/models", "/v1/models", "", "1.1", pairs, keep_alive=True)


def refuse(access: Access, asked: RequestHead) -> int:
    """Return the nanoseconds of a refusal."""
    begun = time.perf_counter_ns()
    try:
        access.check(asked, admin=False)
    except ApiError:
        return time.perf_counter_ns() - begun
    raise AssertionError("a wrong key was taken")


def main() -> None:
    """Print the median and the middle half of refusals, by what is shared and how many keys."""
    chance = random.Random(1)
    right = PREFIX + "".join(chance.choices("abcdefghijklmnop", k=43))
    for count in (1, 1000):
        others = [ApiKey(name=f"k{n}", hash=hash_secret(b"%d" % n)) for n in range(count - 1)]
        access = Access(KeyRing([*others, ApiKey(name="right", hash=hash_secret(right.encode()))]))
        access.check(head(right), admin=False)  # it is remembered from now on
        asked = {
            shared: head(right[:shared] + "".join("z" for _ in right[shared:]))
            for shared in (0, len(right) // 2, len(right) - 1)
        }
        taken: dict[int, list[int]] = {shared: [] for shared in asked}
        gc.disable()
        for _ in range(ROUNDS):
            shared = chance.choice([*asked])
            taken[shared].append(refuse(access, asked[shared]))
        gc.enable()
        for shared, times in taken.items():
            low, middle, high = (one / 1000 for one in statistics.quantiles(times, n=4))
            print(f"{count:5} keys, {shared:2} shared: {middle:.2f} µs ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    main()
