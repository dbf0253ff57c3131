"""What passes and sessions take, learnt from those seen: how many drafts are worth a pass, and whose turn it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cutline.errors import WorkerBusy

WIDE_ROWS = 32  # of a pass that tells what many rows take
FIRST_PROMPT_ROWS = 64  # where nothing is known yet of how long they take
MOST_DRAFTED_ROWS = 128  # of one session in a pass: each has logits of its own
LEAST_RETRY_SECONDS, MOST_RETRY_SECONDS = 0.1, 30.0
_FADING_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How an engine divides its time between those who wait; the seconds that it lets anybody wait, and for what."""

    least_prompt_rows: int = 32  # of a pass, however long they take
    most_prompt_rows: int = 512
    pass_seconds: float = 0.5  # that a pass may take as far as one can tell: until it has ended, who comes waits
    least_slice_seconds: float = 0.01  # of images, between two passes
    slice_seconds: float = 0.25  # likewise at the most
    fair_seconds: float = 2.0  # after so long a prompt's turn comes before any deadline, and another picture's turn
    safe_seconds: float = 1.0  # for which a session that waits for a draft keeps its slot, even if another one wants it
    idle_seconds: float = 60.0  # for which a session that only verifies may wait for a draft
    aged_seconds: float = 2.0  # after so long those of lower priority have a turn beside the others
    behind_share: float = 0.2  # by which a turn of theirs may lengthen the others' pass


PACING = Pacing()


@dataclass(frozen=True, slots=True)
class PassCost:
    """Seconds of a pass as `fixed + row * rows`, fitted to passes seen; older ones fade.

    The sums are those of a weighted least-squares line; nothing is assumed before the first passes but that a row
    costs a tenth of a pass. What many rows take is not read off that line, most of whose passes have few: the `wide`
    sums are those of passes as large as pieces of prompts, of which the last counts most.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_rows: float = 0.0
    rows_seconds: float = 0.0
    wide_rows: float = 0.0
    wide_seconds: float = 0.0

    def after(self, rows: int, seconds: float, *, memory: float = 0.98) -> PassCost:
        """The cost once a pass of `rows` rows took `seconds`."""
        fading, wide = (0.5, 1) if rows >= WIDE_ROWS else (1.0, 0)
        return PassCost(
            self.weight * memory + 1,
            self.rows * memory + rows,
            self.seconds * memory + seconds,
            self.rows_rows * memory + rows * rows,
            self.rows_seconds * memory + rows * seconds,
            self.wide_rows * fading + wide * rows,
            self.wide_seconds * fading + wide * seconds,
        )

    def rows_within(self, seconds: float) -> int:
        """How many rows a pass of so many `seconds` has room for."""
        if self.wide_rows == 0.0:
            return FIRST_PROMPT_ROWS
        return int(min(seconds * self.wide_rows / max(self.wide_seconds, 1e-6), 1e6))

    def usual(self, rows: int) -> float | None:
        """Seconds that a pass of so many `rows` does not usually exceed, None where none was seen."""
        if self.weight == 0.0:
            return None
        each = self.wide_seconds / self.wide_rows if self.wide_rows else self.seconds / self.rows
        return self.seconds / self.weight + rows * each

    @property
    def row_share(self) -> float:
        """What one more row costs, as a share of a pass's fixed cost; 0.001 at least, 1 at most."""
        spread = self.weight * self.rows_rows - self.rows**2
        # Passes of about one size hold no line: what is left of the difference is rounding.
        if self.weight < 4 or spread < 1e-6 * self.weight * self.rows_rows:
            return 0.1
        row = max(0.0, (self.weight * self.rows_seconds - self.rows * self.seconds) / spread)
        fixed = (self.seconds - row * self.rows) / self.weight
        return min(max(0.001, row / fixed), 1.0) if fixed > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How often a drafted token proved right; begins at 4 of 5, as if five had been seen."""

    accepted: float = 4.0
    tried: float = 5.0

    def after(self, accepted: int, tried: int) -> Acceptance:
        """The estimate once `accepted` of `tried` more were right."""
        return Acceptance(self.accepted + accepted, self.tried + tried)

    @property
    def rate(self) -> float:
        """The chance that the next drafted token is right."""
        return self.accepted / self.tried


@dataclass(frozen=True, slots=True)
class DecayingMean:
    """A smoothed figure of what was seen lately; `at` a later time it has faded."""

    seen: float = 0.0
    when: float = 0.0

    def after(self, seen: float, now: float) -> DecayingMean:
        """Once `seen` was seen `now`: a quarter of the way there."""
        before = self.at(now)
        return DecayingMean(before + (seen - before) / 4, now)

    def at(self, now: float) -> float:
        """What is left of it `now`, where nothing was seen since."""
        return self.seen * math.exp(min(0.0, self.when - now) / _FADING_SECONDS)


def turn(waits_since: float, deadline: float | None, pacing: Pacing) -> float:
    """The time by which a prompt wants its next piece: the earliest goes first.

    That is its deadline, or the `fair_seconds` after it began to wait, whichever comes first. So near deadlines come
    before those who only wait, but of two who waited longer than that, it is the turn of the one who waited longest:
    nobody waits for ever, however many deadlines come.
    """
    fair = waits_since + pacing.fair_seconds
    return fair if deadline is None else min(fair, deadline)


def retry_seconds(lasting: float, slots: int, refused: int) -> float:
    """When to try again for a place among `slots`, where sessions last so many seconds.

    One of them ends every `lasting / slots` seconds; who was `refused` before, since one ended, comes again before.
    """
    return min(max(LEAST_RETRY_SECONDS, lasting * (refused + 1) / slots), MOST_RETRY_SECONDS)


def prompt_rows(beside: int, cost: PassCost, pacing: Pacing) -> int:
    """How many rows of prompts a pass may take beside those of sessions that are answered.

    So many that the pass at most takes twice as long, but no more than twice what passes had until now: further than
    that a line is not believed. In any case no more than leave a worker attentive: what `pass_seconds` have room for.
    """
    room: float = cost.rows_within(pacing.pass_seconds) - beside
    if beside:
        seen = cost.rows / cost.weight if cost.weight else 0.0
        room = min(room, 1 / cost.row_share + beside, 2 * seen)
    return min(max(pacing.least_prompt_rows, int(room)), pacing.most_prompt_rows)


def rows_behind(cost: PassCost, pacing: Pacing) -> int:
    """How many rows of lower priority a pass may take beside those that go first: 1 at the least."""
    return max(1, int(pacing.behind_share / cost.row_share))


def drafted_rows(sessions: int, cost: PassCost, pacing: Pacing) -> int:
    """How many drafted rows each of so many sessions may have in a pass: 1 at the least, so that all go on."""
    return max(1, min(MOST_DRAFTED_ROWS, cost.rows_within(pacing.pass_seconds) // max(1, sessions) - 1))


def rows_worth_verifying(available: int, rate: float, row_share: float) -> int:
    """The number of drafted tokens, 0 to `available`, that gives the most tokens a second.

    A pass with k drafts costs `1 + row_share * (k + 1)` and gives `1 + rate + ... + rate**k` tokens; the ratio
    rises to one peak and falls, so the first k that does not gain is the end.
    """
    tokens, best = 1.0, 1.0 / (1 + row_share)
    for count in range(1, available + 1):
        tokens += rate**count
        pace = tokens / (1 + row_share * (count + 1))
        if pace <= best:
            return count - 1
        best = pace
    return available


class Turnover:
    """Of sessions that share `slots`. Times are monotonic."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._waits = DecayingMean()  # seconds from `open` to the first work
        self._lasting = DecayingMean()  # seconds of a session
        self._refused = 0  # sessions, since a slot was freed

    def waited(self, now: float) -> float:
        """How long sessions lately waited for their first work."""
        return self._waits.at(now)

    def begun(self, waited: float, now: float) -> None:
        """A session that `waited` so many seconds is run for the first time."""
        self._waits = self._waits.after(waited, now)

    def ended(self, lasted: float, now: float) -> None:
        """A session that `lasted` so many seconds has freed its slot."""
        self._lasting = self._lasting.after(lasted, now)
        self._refused = 0

    def refusal(self) -> WorkerBusy:
        """What one more session is told, for which there is no slot."""
        seconds = retry_seconds(self._lasting.seen, self._slots, self._refused)
        self._refused += 1
        return WorkerBusy(
            f"all {self._slots} sessions of this worker are taken; try again in {seconds:.1f} seconds",
            retry_seconds=seconds,
        )
