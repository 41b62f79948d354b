"""Intervals of a gain that is measured with several training seeds on data that all of them share.

A gain's error has two parts. That of the *seeds* shrinks as seeds are added; its size is the spread between them, so
its interval is Student's t. That of the *data*, which groups were drawn for evaluation or how long the stream was, is
the same for all seeds and stays. Their intervals are squared and added (Zou and Donner, "Construction of confidence
limits about effect measures", Statistics in Medicine 27, 2008), which is exact where either part is nothing.
Between, few degrees of freedom make it too wide (three seeds: 97.6 % instead of 95 %); an exponent of
2 + 8 / (degrees of freedom)^2 instead of 2 brings that back to 94.5 to 96 % from three seeds on.

Who looks after each pair of seeds, and stops when he likes what he sees, would be wrong more often than 5 times in
100. With `looks` the intervals are repeated confidence intervals: with 95 % probability *all* of them hold what they
should, so the one at which somebody stops does (Jennison and Turnbull, "Group Sequential Methods", 2000, chapter 9).
Every look has the same nominal level (Pocock, Biometrika 64, 1977), carried to Student's t by its significance
(section 4.4 there; exactly, Jennison and Turnbull, Biometrika 78, 1991), found by simulating the looks there will be.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.05
"""Chance of an interval, or a set of repeated ones, to miss."""

POWER = 0.8

FEWEST = 3
"""Seeds below which nothing is concluded: with two, Student's t has one degree of freedom."""

MOST_NEEDED = 100_000
"""Seeds beyond which nobody asks how many."""

_PATHS = 200_000

_MANY = 100


class Gain(NamedTuple):
    """A gain and its 95 % interval; NaN where it is undefined."""

    point: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether the gain differs from 0 for all its interval says; False where that is unknown."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Estimate:
    """A gain, and how sure it is.

    Args:
        point: the gain.
        seeds: `[n]`, that of each training seed on its own.
        below, above: how far a 95 % interval for the data alone reaches; 0 where there is no such chance.
        looks: numbers of seeds at which somebody will look, ascending; none if only once.
    """

    point: float
    seeds: Floats
    below: float = 0.0
    above: float = 0.0
    looks: tuple[int, ...] = ()

    @property
    def deviation(self) -> float:
        """Standard deviation of the seeds' gains; NaN with a single seed."""
        return float(self.seeds.std(ddof=1)) if len(self.seeds) > 1 else math.nan

    @property
    def data(self) -> float:
        """Half of the interval that endless seeds would leave."""
        return (self.below + self.above) / 2

    @property
    def interval(self) -> Gain:
        """The gain and its 95 % interval; with a single seed that of the data alone."""
        low, high = (self._reach(data, LEVEL, len(self.seeds)) for data in (self.below, self.above))
        return Gain(self.point, self.point - low, self.point + high)

    @property
    def p(self) -> float:
        """The level at which the interval ends at 0, two-sided; NaN with fewer seeds than `FEWEST`."""
        if len(self.seeds) < FEWEST or not math.isfinite(self.point):
            return math.nan
        if not self.point:
            return 1.0
        data = self.below if self.point > 0 else self.above
        return _bisect(lambda level: self._reach(data, level, len(self.seeds)) >= abs(self.point), 1e-9, 1.0)

    @property
    def smallest_seen(self) -> float:
        """The effect that would have been told from 0 in `POWER` of such experiments; NaN with a single seed."""
        return self._smallest(len(self.seeds))

    def seeds_to_see(self, effect: float) -> float:
        """Seeds with which an effect would be told from 0 in `POWER` of all cases, if one looks once; infinite if the
        data is too little for that, NaN with a single seed."""
        once = Estimate(self.point, self.seeds, self.below, self.above)
        return self._fewest(lambda n: once._smallest(n) <= effect)

    def seeds_until(self, half_width: float) -> float:
        """Seeds with which half of the interval is as wide; infinite if the data is too little for that."""
        return self._fewest(lambda n: self._reach(self.data, LEVEL, n) <= half_width)

    def _smallest(self, seeds: int) -> float:
        seen = self._reach(self.data, LEVEL, seeds)
        return seen + self._reach(self.data, 2 * (1 - POWER), seeds, looks=False)

    def _reach(self, data: float, level: float, seeds: int, looks: bool = True) -> float:
        """How far an interval that misses with a chance of `level` reaches on one side, with so many seeds."""
        data *= normal(level) / normal(LEVEL)
        if seeds < 2:
            return data
        if len(self.seeds) < 2:
            return math.nan
        nominal = nominal_level(self.looks, level) if looks and self.looks else level
        spread = student_t(seeds - 1, nominal) * self.deviation / seeds**0.5
        exponent = 2.0 if self.looks else 2 + 8 / (seeds - 1) ** 2
        largest = max(data, spread)
        if not largest:
            return 0.0
        return float(
            largest * ((data / largest) ** exponent + (spread / largest) ** exponent) ** (1 / exponent)
        )

    def _fewest(self, enough: Callable[[int], bool]) -> float:
        """Fewest seeds, `FEWEST` at least, that are enough; more are enough, too."""
        if not math.isfinite(self.deviation):
            return math.nan
        low, high = FEWEST, MOST_NEEDED
        if not enough(high):
            return math.inf
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle + 1, high)
        return low


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: rejecting those below a level errs anywhere with at most that chance (Holm 1979).

    A NaN stays one, and isn't counted among the comparisons.
    """
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    adjusted, highest = dict.fromkeys(p, math.nan), 0.0
    for index, (value, name) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - index) * value))
        adjusted[name] = highest
    return adjusted


def nominal_level(looks: tuple[int, ...], level: float) -> float:
    """The level of each look at which all of them together miss with a chance of `level`.

    Args:
        looks: numbers of normally distributed observations at which Student's t is looked at, ascending, from 2 on.
        level: between 0 and 1.
    """
    if len(looks) < 2:
        return level
    return float(_smallest_p(looks)[min(int(level * _PATHS), _PATHS - 1)])


@cache
def _smallest_p(looks: tuple[int, ...]) -> Floats:
    """Of many simulated experiments without an effect, sorted, the smallest p-value that any look finds."""
    random = np.random.default_rng(0)
    smallest = np.ones(_PATHS)
    total, squares, seen = np.zeros(_PATHS), np.zeros(_PATHS), 0
    for number in looks:
        for _ in range(number - seen):
            drawn = random.standard_normal(_PATHS)
            total += drawn
            squares += drawn**2
        seen = number
        t = total / np.sqrt(number * (squares - total**2 / number) / (number - 1))
        smallest = np.minimum(smallest, two_sided(np.abs(t), number - 1))
    return np.sort(smallest)


@cache
def student_t(freedom: int, level: float = LEVEL) -> float:
    """What Student's t with so many degrees of freedom exceeds with a chance of `level`, two-sided.

    Of many degrees of freedom by an expansion around the normal one (Abramowitz and Stegun, 26.7.5).
    """
    if freedom > _MANY:
        z = normal(level)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    angle = _bisect(lambda angle: float(_two_sided_at(angle, freedom)) > level, 0.0, math.pi / 2)
    return math.tan(angle) * freedom**0.5


def two_sided(t: Floats, freedom: int) -> Floats:
    """The chance of Student's t to be farther from 0 than each of `t`, which aren't negative."""
    return _two_sided_at(np.arctan(t / freedom**0.5), freedom)


def _two_sided_at(angle: Any, freedom: int) -> Any:
    """The same of the angles whose tangents are t over the root of the degrees of freedom (26.7.3 and 4)."""
    sine, cosine = np.sin(angle), np.cos(angle)
    odd = freedom % 2
    term = sine * cosine if odd else sine
    inside = np.zeros_like(angle)
    for power in range(odd, freedom - 1, 2):
        inside = inside + term
        term = term * cosine**2 * (power + 1) / (power + 2)
    return 1 - (2 / math.pi * (angle + inside) if odd else inside)


def normal(level: float) -> float:
    """What a standard normal variable exceeds with a chance of `level`, two-sided."""
    return -NormalDist().inv_cdf(level / 2) if level < 1 else 0.0


def _bisect(above: Callable[[float], bool], low: float, high: float) -> float:
    """Where `above`, true at first, becomes false."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return (low + high) / 2
