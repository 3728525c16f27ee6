"""Makes requests of the bytes of a client, in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from llamaswap_py.proxy.exchange import Client, Exchange
from llamaswap_py.proxy.messages import WireError
from llamaswap_py.proxy.parsers import RequestParser
from llamaswap_py.proxy.pending import Pending
from llamaswap_py.units import KIB

if TYPE_CHECKING:
    from llamaswap_py.proxy.head_cache import KnownRequest, KnownRequests
    from llamaswap_py.proxy.messages import RequestHead, WireLimits

#: Requests are parsed in steps of this size, so that few of them wait at a time.
_STEP: Final = 4 * KIB
#: Bytes of pipelined requests that may wait unparsed before the client must.
_HELD_LIMIT: Final = 64 * KIB
#: Larger than any piece: take all of it.
_ALL: Final = 1 << 60


class Owner(Client, Protocol):
    """The connection of the client. Incoming calls it when something has arrived."""

    def request_begins(self) -> None:
        """The head of a request is complete."""

    def body_came(self) -> None:
        """A piece of a body has arrived."""

    def body_ended(self) -> None:
        """The body that was being received is complete."""

    def broke_off(self) -> None:
        """The client broke the protocol: nothing that it sends from now on is read."""


class Incoming:
    """Parses the bytes of a client, and holds back those that arrive too early.

    Bytes that follow a complete request are held until `current` and all of `queue` are answered.
    The connection has to call `parse_held` then.
    """

    def __init__(self, owner: Owner, limits: WireLimits, heads: KnownRequests) -> None:
        """Make exchanges on `owner`. A head that is in `heads` is not parsed again."""
        self._owner = owner
        self._heads = heads
        self._time = asyncio.get_running_loop().time
        self.parser = RequestParser(self, limits)
        #: the request that is being answered
        self.current: Exchange | None = None
        #: the request whose body is not complete
        self.receiving: Exchange | None = None
        #: requests that wait for their turn; the last item may be the error that ends them
        self.queue: deque[Exchange | WireError] = deque()
        self.held = Pending()
        #: no further request is taken
        self.last = False
        #: the current request came whole, and nothing since: then `is_empty` need not be asked
        self.calm = False
        #: the last request asks for another protocol; the bytes after it belong to that
        self.upgrading = False
        #: the client broke the protocol
        self.broken = False
        #: the client has half-closed: it sends nothing more
        self.ended = False
        self.last_input = self.body_began = 0.0
        #: pieces of a body that the parser found in this step
        self._pieces: list[bytes] = []
        #: the bytes in which the next head begins
        self._begins = b""
        #: the last head that was known
        self._last_known: KnownRequest | None = None
        #: bytes that are left of a body whose head was not parsed
        self._left = 0

    @property
    def idle(self) -> bool:
        """Whether no request is here, not even a part of one that was held back."""
        return self.current is None and not self.queue and not self.held.size

    @property
    def is_empty(self) -> bool:
        """Whether nothing is here besides the current request, and more may come after it."""
        return not (
            self.last
            or self.queue
            or self.held.size
            or self.ended
            or self.receiving is not None
            or self.parser.in_head
        )

    @property
    def full(self) -> bool:
        """Whether so much is held that the client has to wait."""
        return self.held.size > _HELD_LIMIT

    # --- what has come ------------------------------------------------------------------------

    def take_known(self, data: bytes) -> Exchange | None:
        """Return a request whose head has come before, without parsing it; None: parse it.

        To be asked only between two requests, with nothing held.
        """
        owner, last = self._owner, self._last_known
        found = None if last is None else last.read(data)
        if found is None:
            read = self._heads.read(owner.peer, data)
            if read is None:
                return None
            head, start, self._last_known = read
        else:
            head, start = found
        self.body_began = self.last_input = self._time()
        end = start + (head.content_length or 0)
        size = len(data)
        if size >= end:
            if size > end:
                self.held.add(data[end:])
            if not head.keep_alive:
                self.last = True
            self.calm = size == end and not self.last
            return Exchange(owner, head, data[start:end])
        self.receiving = exchange = Exchange(owner, head)
        self._left = end - size
        if size > start:
            exchange.intake.add(data[start:])
        return exchange

    def take(self, data: bytes, *, known: bool = True) -> None:
        """Take what came; `known` is False where `take_known` has been asked."""
        self.calm = False
        if self.held.size or not self._is_free():
            if self.upgrading or not self.last:
                self.held.add(data)
                if self.held.size > _HELD_LIMIT:
                    self._owner.pause_input()
            return
        self.last_input = self._time()
        if self._left:
            self._take_rest(data)
            if self.held.size:
                self.parse_held()  # what follows the body came along with its end
            return
        if self.receiving is None and not self.parser.in_head:
            if known and (exchange := self.take_known(data)) is not None:
                self._owner.request_begins()
                self.queue.append(exchange)
                return
            self._begins = data
        if self.receiving is not None or len(data) <= _STEP:
            self._feed(data)
        else:
            self.held.add(data)
            self.parse_held(data)

    def end(self) -> None:
        """The client sends nothing more."""
        self.ended, self.calm = True, False
        self._miss_body()

    def take_no_more(self) -> None:
        """Take no further request."""
        self.last, self.calm = True, False

    def parse_held(self, begins: bytes = b"") -> None:
        """Parse what was held, until a request has to be answered first; `begins`: all of it."""
        while self.held.size and self._is_free():
            step = self.held.take(_STEP if self.receiving is None else _ALL)
            if self.receiving is None and not self.parser.in_head:
                self._begins, begins = begins or step, b""
            if not self._feed(step):
                break
        if self.held.size > _HELD_LIMIT:
            self._owner.pause_input()
        if self.ended:
            self._miss_body()

    def break_off(self, error: WireError) -> None:
        """The client's bytes make no sense from here on: answer what came before, then this."""
        if self.last and self.receiving is None:
            return
        self.take_no_more()
        self.broken = True
        self.held.clear()
        if self.receiving is not None:
            receiving, self.receiving = self.receiving, None
            receiving.intake.fail(error)
        else:
            self.queue.append(error)
        self._owner.broke_off()

    def close(self) -> None:
        """Let go of every request and of the owner: the collector, which comes by seldom, has none
        of them to find."""
        for item in (self.current, self.receiving, *self.queue):
            if isinstance(item, Exchange):
                item.release()
        self.current = self.receiving = None
        self.queue.clear()
        self.held.clear()
        self.parser.close()
        self.__dict__.pop("_owner", None)

    # --- steps --------------------------------------------------------------------------------

    def _is_free(self) -> bool:
        """Tell whether what comes next is parsed now; what was held comes before it."""
        if self.receiving is not None:
            return True
        return not self.last and self.current is None and not self.queue

    def _feed(self, data: bytes) -> bool:
        """Parse a step; False: there is nothing to parse after it."""
        if self._left:
            self._take_rest(data)
            return True
        try:
            rest = self.parser.feed(data)
        except WireError as error:
            self._pieces.clear()
            self.break_off(error)
            return False
        if self._pieces:
            self._hand_on()
        if rest is None:
            return True
        self.last = self.upgrading = True
        self.held.put_back(rest)
        return False

    def _take_rest(self, data: bytes) -> None:
        """Take what comes of a body that is counted, and hold what follows it."""
        left = self._left - len(data)
        if self.receiving is not None:
            self.receiving.intake.add(data if left >= 0 else data[:left])
        self._left = left if left > 0 else 0
        if left > 0:
            self._owner.body_came()
            return
        self.on_request_complete()
        if left < 0:
            self.held.put_back(data[left:])

    def _hand_on(self) -> None:
        """Give the body what this step had of it, in one: its chunks may be of a byte each."""
        pieces, self._pieces = self._pieces, []
        if self.receiving is not None:
            self.receiving.intake.add(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            self._owner.body_came()

    def _miss_body(self) -> None:
        if self.receiving is not None:
            self.break_off(WireError(400, "the request body ended early"))

    # --- for the parser -----------------------------------------------------------------------

    def on_request(self, head: RequestHead) -> None:
        begins, self._begins = self._begins, b""
        self._heads.note(self._owner.peer, begins, head)
        self.body_began = self.last_input
        self._owner.request_begins()
        self.receiving = exchange = Exchange(self._owner, head)
        self.queue.append(exchange)

    def on_piece(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_request_complete(self) -> None:
        if self._pieces:
            self._hand_on()
        if self.receiving is not None:
            receiving, self.receiving = self.receiving, None
            self.last = self.last or not receiving.head.keep_alive
            receiving.intake.finish()
            self._owner.body_ended()
