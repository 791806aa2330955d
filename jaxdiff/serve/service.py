"""A stream that runs in a thread of its own, and is handed requests and told that they are off, from any other thread.

    submit -> waiting -> the stream's slots -> each request's `tell`

Waiting has a bound, a request its deadline. What is off or late while it waits never gets a slot; in a slot it is given
up before the next serve step. `close` lets what was taken be finished.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax

from jaxdiff.serve.queue import Answer, Partial, Refusal, Request

Told = Partial | Answer | Refusal | None  # None: the stream broke, and nothing more will come


class Full(Exception):
    """As many wait as may; `seconds`: after which it may be worth to ask again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; ask again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """No new work is taken."""


@dataclasses.dataclass(eq=False)
class Work:
    """A request on its way.

    Attributes:
        seed: its key is what `jaxdiff generate --seed` gives to a row of its number.
        expires: on `time.monotonic`'s clock.
        tell: called by the stream's thread with what comes of it; quick, and does not raise.
        watched: what there is of it is told after each serve step too.
    """

    request: Request
    seed: int
    expires: float
    tell: Callable[[Told], None]
    watched: bool = False
    cancelled: bool = False
    submitted: float = dataclasses.field(default_factory=time.monotonic)
    entered: float = math.nan

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.expires

    def wanted(self) -> bool:
        return not (self.cancelled or self.late)


class Service:
    """The thread, and what waits for it.

    Attributes:
        slots: of the stream.
        error: what broke the stream; None while it runs.
        ready: the first programs are compiled.
    """

    def __init__(
        self,
        stream: Callable[[Iterable[Request | None]], Iterator[Answer | Refusal]],
        *,
        slots: int,
        most_waiting: int,
        warm_up: Sequence[Request] = (),
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        """`stream`: `decode_stream` but for its requests; `warm_up`: decoded first, so that their programs are
        compiled; `broken`: called in the thread once `error` is set.
        """
        self.slots, self.most_waiting, self.broken = slots, most_waiting, broken
        self.error: BaseException | None = None
        self.ready = threading.Event()
        self._warm_up = warm_up
        self._changed = threading.Condition()
        self._waiting: collections.deque[Work] = collections.deque()
        self._inside: set[Work] = set()
        self._closed = False
        self._mean_seconds = 0.0  # in a slot, of late
        self._items = stream(self._requests())  # refuses now what serves no request
        self._thread = threading.Thread(target=self._run, name="slots", daemon=True)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Requests in slots."""
        return len(self._inside)

    def start(self) -> None:
        self._thread.start()

    def submit(self, works: Sequence[Work]) -> None:
        """Takes all of them, or none. Raises Full or Closed."""
        with self._changed:
            if self._closed:
                raise Closed("the server takes no new requests")
            free = max(self.slots - len(self._inside), 0)
            if len(self._waiting) + len(works) > self.most_waiting + free:
                after = math.ceil(self._mean_seconds * len(self._waiting) / self.slots)
                raise Full(min(max(after, 1), 60))
            self._waiting.extend(works)
            self._changed.notify()

    def cancel(self, works: Iterable[Work]) -> None:
        """Nobody wants these any longer; nothing more is told of them."""
        off = set(works)
        with self._changed:
            for work in off:
                work.cancelled = True
            self._waiting = collections.deque(work for work in self._waiting if work not in off)

    def close(self) -> None:
        """Take no new work, finish what was taken, and wait for that."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _requests(self) -> Iterator[Request | None]:
        """What the stream reads. It waits only while no request is in a slot."""
        for request in self._warm_up:  # one after another: each width has programs of its own
            yield self._entered(Work(dataclasses.replace(request, number=0), 0, math.inf, lambda _: None))
            while self._inside:
                yield None
        self.ready.set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._inside or self._closed)
                work = self._waiting.popleft() if self._waiting else None
                if work is None and self._closed:
                    return
            yield None if work is None else self._entered(work)

    def _entered(self, work: Work) -> Request:
        work.entered = time.monotonic()
        self._inside.add(work)
        key = jax.random.fold_in(jax.random.key(work.seed), work.request.number)
        watch = work.tell if work.watched else None
        return dataclasses.replace(work.request, id=work, key=key, watch=watch, wanted=work.wanted)

    def _run(self) -> None:
        try:
            with jax.enable_x64(False):  # a setting of each thread's own
                for item in self._items:
                    work = item.id if isinstance(item, Refusal) else item.request.id
                    self._inside.discard(work)
                    if isinstance(item, Answer) and self.ready.is_set():  # else it compiled, or was cut short
                        self._mean_seconds += 0.1 * (item.seconds - self._mean_seconds)
                    if not work.cancelled:
                        work.tell(item)
        except BaseException as error:
            self.error = error
            with self._changed:
                self._closed = True
                left = [*self._inside, *self._waiting]
                self._waiting.clear()
            for work in left:
                work.tell(None)
            self.broken()
