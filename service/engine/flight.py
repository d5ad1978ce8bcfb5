"""Steps that were asked for and that are not known to be over, and when to ask for the next one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from torch import Tensor

from service.engine.collecting import Collected
from service.engine.lanes import Place
from service.engine.network import Mark
from service.engine.protocol import FromEngine
from service.engine.request import Pixels
from service.engine.runner import ModelRunner, Row

# What to say of an image, if anything: of its bytes, None if it is not finite, and of when its step ended
Announce = Callable[[bytes | None, float], FromEngine | None]

KEPT = 16  # launches that tell how long one takes
LOOK = 1e-3  # seconds after which it is asked again whether a step is over
SPARE = 1e-3  # seconds that a launch may take longer than those


class Flight:
    """One step of some rows, with the images that leave the device after it."""

    def __init__(self, runner: ModelRunner, rows: Sequence[Row], place: Place, size: int, seconds: float) -> None:
        """`size` is of the forward, padding included, and `seconds` is how long that is thought to take."""
        self.runner, self.rows, self.place, self.size, self.seconds = runner, rows, place, size, seconds
        self._asked = time.monotonic()
        self._leaving: list[tuple[Collected, Sequence[Announce]]] = []
        self._work: Future[float] | None = None
        self._mark: Mark | None = None

    wait: Callable[[], float]
    """Waits until it is over; when that was, of the monotonic clock. Raises what it raised in a lane."""

    def queue(self, work: Callable[[], None]) -> None:
        """Asks the device for it."""
        work()
        self._mark = mark = self.runner.mark()

        def wait() -> float:
            mark.wait()
            return time.monotonic()

        self.wait = wait

    def start(self, work: Callable[[], None], bell: Callable[[], None]) -> None:
        """Has a lane do it, and rings the bell when it has."""
        lanes = self.runner.network.lanes
        assert lanes is not None

        def timed() -> float:
            work()
            return time.monotonic()

        self._work = lanes.start(timed, self.place)
        self._work.add_done_callback(lambda _: bell())
        self.wait = self._work.result

    @property
    def landed(self) -> bool:
        """Whether lanes or the device have done it; waits for nothing."""
        if self._mark is not None:
            return self._mark.passed()
        return self._work is not None and self._work.done()

    @property
    def isolated(self) -> bool:
        """Whether its samples are suspects."""
        return self.rows[0].sample.isolated

    def began(self, ended: float) -> float:
        """When it began; a device that queues steps had ended the one before at `ended`."""
        return max(self._asked, ended) if self._work is None else self._asked

    def collect(self, images: Sequence[Tensor], kinds: Sequence[Pixels], announce: Sequence[Announce]) -> None:
        """Starts to take images `[C, H, W]` in [-1, 1] off the device, each to be announced when it is over."""
        self._leaving.append((self.runner.collect(images, kinds), announce))

    def outcome(self, ended: float) -> Iterator[FromEngine]:
        """What there is to say of its images; it was over at `ended`."""
        for collected, announce in self._leaving:
            for say, pixels in zip(announce, collected.wait(), strict=True):
                if (message := say(pixels, ended)) is not None:
                    yield message


class Lead:
    """How long before a step is over the next one has to be prepared."""

    def __init__(self) -> None:
        self._woken = 0.0
        self._took: deque[float] = deque(maxlen=KEPT)

    def wait(self, end: float, over: Callable[[], bool]) -> None:
        """Until it is time for what follows a step that is thought to be over at `end`, or that is `over` before.

        Who slept on would take the time for the step's own, and think the next one as long.
        """
        until = end - max(self._took, default=0.0) - SPARE
        while (left := until - time.monotonic()) > 0 and not over():
            time.sleep(min(left, LOOK))
        self._woken = time.monotonic()

    def launched(self) -> None:
        """What follows was asked for."""
        if self._woken:
            self._took.append(time.monotonic() - self._woken)
        self.idle()

    def idle(self) -> None:
        """Nothing follows for now, so the time until something does tells nothing."""
        self._woken = 0.0
