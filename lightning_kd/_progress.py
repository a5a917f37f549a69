"""How far a stage is: a bar on a terminal, one line in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

__all__ = ["Clock", "Stage", "Tracked", "end_time", "is_terminal", "new_bar", "stage", "track", "unseen"]

T = TypeVar("T")

#: A stage that took less, in seconds, has no line in a log.
_WORTH_A_LINE = 2.0

#: Seconds now; another one in tests.
Clock = Callable[[], float]


def is_terminal() -> bool:
    """Whether this process may draw: on a terminal, and the first of several processes."""
    return Console(stderr=True).is_terminal and getattr(rank_zero_only, "rank", 0) == 0


def end_time(seconds: float) -> str:
    """When something ends that takes so many seconds more, on the clock, and how long that is.

    Example:
        >>> end_time(float("inf"))
        ''
    """
    if not 0 <= seconds < 1e7:
        return ""
    end = datetime.now() + timedelta(seconds=seconds)
    day = "" if end.date() == datetime.now().date() else f"{end:%a} "
    return f"ends {day}{end:%H:%M:%S}, in {duration(seconds)}"


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
        >>> duration(7.34), duration(75), duration(7500)
        ('7 s', '1 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


class _Description(TextColumn):
    """What is done; the one column that is cut where the terminal is narrow."""

    def render(self, task: Task) -> Text:
        """The text before the bar."""
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _RateAndEnd(ProgressColumn):
    """Units a second since the stage began, and when it ends at that rate."""

    def render(self, task: Task) -> Text:
        """The text behind the bar."""
        if task.fields.get("rate_and_end") is not None:
            return Text(task.fields["rate_and_end"])
        elapsed = task.elapsed or 0.0
        if task.completed <= 0 or elapsed <= 0:
            return Text("")
        rate = task.completed / elapsed
        left = float("inf") if task.total is None else (task.total - task.completed) / rate
        return Text(f"{rate_text(rate, task.fields['unit'])}  {end_time(left)}")


def rate_text(rate: float, unit: str) -> str:
    """Units a second.

    Example:
        >>> rate_text(1234.5, "rows"), rate_text(1.234, "batches")
        ('1,234 rows/s', '1.2 batches/s')
    """
    return f"{rate:,.{0 if rate >= 100 else 1}f} {unit}/s"


def new_bar() -> Progress:
    """A bar that leaves nothing behind, on the stream that messages go to, so that what is printed can be piped."""
    whole = Column(no_wrap=True)
    columns = (
        _Description("", table_column=Column()),
        BarColumn(16, table_column=whole),
        MofNCompleteColumn(table_column=whole.copy()),
        _RateAndEnd(table_column=whole.copy()),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4)


def unseen(number: float) -> None:
    """What a stage tells of its units where no bar shows them."""


class Stage:
    """Counts what is done of a stage; made by :func:`stage`."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self.done = 0.0
        self._advance = advance

    def advance(self, number: float = 1) -> None:
        """So many units more are done."""
        self.done += number
        self._advance(number)

    def passing(self, item: T, number: float = 1) -> T:
        """``item``, whose units are counted as done."""
        self.advance(number)
        return item


@contextmanager
def stage(name: str, total: float | None, unit: str, shown: bool = True) -> Iterator[Stage]:
    """A stage of a run: on a terminal a bar with rate and end, and, if it took long, one line when it is over.

    Args:
        name: What is done, e.g. ``Tokenizing train``.
        total: How many units there are, if that is known.
        unit: Of the rate, in the plural.
        shown: False to say nothing at all.
    """
    started = time.monotonic()
    if shown and is_terminal():
        with new_bar() as bar:
            task = bar.add_task(name, total=total, unit=unit)
            one = Stage(lambda number: bar.advance(task, number))
            yield one
    else:
        one = Stage(unseen)
        yield one
    seconds = time.monotonic() - started
    if shown and seconds >= _WORTH_A_LINE:
        rank_zero_info(f"{name}: {one.done:,.0f} {unit} in {duration(seconds)}, {rate_text(one.done / seconds, unit)}")


def track(
    items: Iterable[T],
    name: str,
    total: float | None,
    unit: str,
    size: Callable[[T], float] = lambda _: 1,
    shown: bool = True,
) -> Iterator[T]:
    """Pass ``items`` through, as a :func:`stage`.

    Args:
        items: What is worked on.
        name: As of a stage.
        total: As of a stage.
        unit: As of a stage.
        size: How many units an item is.
        shown: As of a stage.
    """
    with stage(name, total, unit, shown) as one:
        for item in items:
            yield item
            one.advance(size(item))


class Tracked(Sequence[T]):
    """A sequence that shows how far its reader is, each time that it is read from the start.

    Args:
        items: The sequence.
        name: As of a stage.
        unit: As of a stage.
        shown: As of a stage.
    """

    def __init__(self, items: Sequence[T], name: str, unit: str, shown: bool = True) -> None:
        self._items = items
        self._about = (name, len(items), unit)
        self._shown = shown

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, at):  # type: ignore[no-untyped-def]  # an item, or a list of them
        return self._items[at]

    def __iter__(self) -> Iterator[T]:
        name, total, unit = self._about
        return track(self._items, name, total, unit, shown=self._shown)
