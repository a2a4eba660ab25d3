"""How long images wait for a server: the queue M/D/c.

Images come at random, independently of each other (a Poisson process), and each takes the same time on one of `c`
cores. That holds for a server behind a Kubernetes Service, whose replicas get a random share each: a random share of a
Poisson process is one again, so each replica is a queue of its own, and nothing is gained by having many.

The mean wait is that of M/M/c (Erlang, 1917) times Cosmetatos' factor for constant service (Cosmetatos, "Approximate
explicit formulae for the average queueing time in the processes (M/D/r) and (D/M/r)", INFOR 13, 1975). Waits that are
not zero are taken to be exponential, as their tail is (Tijms, "A First Course in Stochastic Models", 2003, chapter 9),
which makes the delay of 99% up to a fifth too long at small loads.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Replica:
    """One server."""

    rate: float
    """Images a second at most."""
    servers: int
    """Images that it works on side by side."""
    latency: float
    """Seconds that an image takes when none is before it."""

    @property
    def service(self) -> float:
        """Seconds that one image keeps one of the servers."""
        return self.servers / self.rate

    def wait(self, load: float) -> float:
        """Return the mean wait in seconds at `load` images a second.

        Raises:
            ValueError: at so much the queue grows without end, or there is no load.
        """
        use, servers = self._use(load), self.servers
        exponential = self._chance(load) * self.service / (servers * (1 - use))
        correction = (1 - use) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * servers * use)
        return 0.5 * (1 + correction) * exponential

    def quantile(self, load: float, share: float) -> float:
        """Return the seconds from its coming to its answer within which a `share` of the images is answered."""
        chance = self._chance(load)
        if chance <= 1 - share:
            return self.latency
        return self.latency + math.log(chance / (1 - share)) * self.wait(load) / chance

    def images_inside(self, load: float) -> float:
        """Return the mean number of images that wait or are worked on (Little's law)."""
        return load * (self.wait(load) + self.latency)

    def _use(self, load: float) -> float:
        use = load / self.rate
        if not 0 < use < 1:
            raise ValueError(f"a load of {load} images/s, of at most {self.rate}")
        return use

    def _chance(self, load: float) -> float:
        """Return the share of images that wait at all in M/M/c: Erlang's C, by the recurrence of his B."""
        use, blocked = self._use(load), 1.0
        offered = load * self.service
        for servers in range(1, self.servers + 1):
            blocked = offered * blocked / (servers + offered * blocked)
        return blocked / (1 - use * (1 - blocked))


def simulate(replica: Replica, load: float, images: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the wait in seconds of each of so many images: first come, first served, on whichever core is free.

    Service takes the same time always, so cores get free in the order in which they were taken: image `i` follows
    image `i - servers`.
    """
    gaps = np.random.default_rng(seed).exponential(1 / load, images)
    arrivals = np.cumsum(gaps)
    waits = np.empty(images)
    for core in range(replica.servers):
        coming = arrivals[core :: replica.servers]
        served = np.arange(len(coming)) * replica.service
        waits[core :: replica.servers] = np.maximum.accumulate(coming - served) + served - coming
    return waits
