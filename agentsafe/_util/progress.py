"""One line on the terminal that says how far a long step is; nothing where nobody is watching."""

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from transformers import TrainerCallback

log = logging.getLogger(__name__)


def say(line: str) -> None:
    """Write one line to the log and to whoever watches: what a long step came to."""
    log.info("%s", line)
    print(line, file=sys.stderr)


class Progress:
    """A line with a name, a bar, a count, the time that is left, and the newest numbers.

    Several jobs at once write to one terminal, so that a line stands alone only where it is alone;
    it is redrawn twice a second and erased at the end.
    """

    def __init__(self, name: str, total: int | None = None):
        """Show `name` and a bar of `total` steps, as far as known, once the block is entered."""
        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            console=Console(file=sys.stderr),
            refresh_per_second=2,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(name, total=total, numbers="")

    def __enter__(self) -> "Progress":
        """Start to draw."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Erase the line."""
        self._progress.stop()

    def expect(self, total: int, done: int = 0) -> None:
        """Say how many steps there are, and how many are behind already."""
        self._progress.update(self._task, total=total, completed=done)

    def advance(self, steps: int = 1, **numbers: float) -> None:
        """Go on by `steps`; `numbers` are shown after the bar by their names."""
        shown = " ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        self._progress.update(self._task, advance=steps, numbers=shown)


def trainer_callback(progress: Progress, *names: str) -> "TrainerCallback":
    """What moves a progress line along with one of transformers' trainers.

    Args:
        progress: the line, of as many steps as the trainer makes.
        names: of the logged numbers, those to show.
    """
    from transformers import TrainerCallback

    class Shown(TrainerCallback):
        def __init__(self):
            self.numbers = {}

        def on_log(self, args, state, control, logs=None, **others):
            self.numbers = {name: logs[name] for name in names if name in (logs or {})}

        def on_step_end(self, args, state, control, **others):
            progress.advance(**self.numbers)

    return Shown()
