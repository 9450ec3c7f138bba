"""Progress on the terminal.

Downloads and conversions: a bar, or a plain line, per stage. A load run: one bar of its requests.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as RichBars
from rich.text import Text

from deepseek.weights.progress import Unit


class TerminalProgress:
    """A `deepseek.weights.progress.Progress` on standard error; use it in a `with` statement.

    On a terminal each stage is a bar that stays when it is done; elsewhere (a log, a container)
    it is one line, so that nothing but stages is written.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars: RichBars | None = None
        self._current: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            if error is None:
                self._finish_stage(self._bars)
            self._bars.stop()

    def stage(self, name: str, *, total: int | None = None, unit: Unit = "steps") -> None:
        if not self._console.is_terminal:
            size = ""
            if total is not None and unit == "bytes":
                size = f" ({total / 2**20:,.0f} MiB)"
            # Not through the console: rich would wrap the line at 80 columns.
            self._console.file.write(f"{name}{size}\n")
            self._console.file.flush()
            return
        if self._bars is None:
            self._bars = RichBars(
                SpinnerColumn(finished_text="[green]✓"),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                _AmountColumn(),
                TimeElapsedColumn(),
                console=self._console,
            )
            # Started at the first stage: work that finds everything in place shows nothing.
            self._bars.start()
        self._finish_stage(self._bars)
        self._current = self._bars.add_task(name, total=total, unit=unit)

    def advance(self, amount: int = 1) -> None:
        if self._bars is not None and self._current is not None:
            self._bars.advance(self._current, amount)

    def _finish_stage(self, bars: RichBars) -> None:
        if self._current is None:
            return
        task = next(task for task in bars.tasks if task.id == self._current)
        total = task.total if task.total is not None else 1
        bars.update(self._current, total=total, completed=total)
        self._current = None


@contextmanager
def counting_bar(description: str, *, total: int) -> Iterator[Callable[[], None]]:
    """Show on standard error how many of `total` are done; yields what counts one more."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with RichBars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=total)
        yield lambda: bars.advance(task)


class _AmountColumn(ProgressColumn):
    """Bytes of a download, else steps; nothing where the total is unknown."""

    _bytes = DownloadColumn(binary_units=True)
    _steps = MofNCompleteColumn()

    def render(self, task: Task) -> Text:
        if task.fields["unit"] == "bytes":
            return self._bytes.render(task)
        return self._steps.render(task) if (task.total or 0) > 1 else Text()
