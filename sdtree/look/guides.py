"""Names of a tree in a terminal: the guide to each goes on where it wraps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sdtree.look.outline import Branch
from sdtree.text.table import printable, shortened

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement
    from rich.text import Text

LEAST: Final = 12
"""How many characters of a name there is room for at the least, beside its guide."""

LAST: Final = "└─ "
"""The guide to the last of several siblings."""

SOFT: Final = "bright_black"
"""In what style a guide is drawn."""


@dataclass(frozen=True, slots=True)
class Guided:
    """A branch with the guide to it, as rich draws it in a column of any width.

    >>> from rich.console import Console
    >>> branch = Branch("input_layernorm.weight", (0,))
    >>> Console(width=18).print(Guided("│  └─ ", branch))
    │  └─ input_layern
    │     orm.weight
    """

    guide: str
    branch: Branch

    def __rich_measure__(
        self, console: Console, options: ConsoleOptions
    ) -> Measurement:
        from rich.measure import Measurement

        whole = len(self.guide) + self._label().cell_len
        return Measurement(min(whole, len(self.guide) + LEAST), whole)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[Text]:
        from rich.text import Text

        guide, room = self.guide, max(options.max_width - len(self.guide), 1)
        on = f"{guide[:-3]}{'   ' if guide[-3:] == LAST else '│  '}" if guide else ""
        for line in self._label().wrap(console, room, overflow="fold"):
            line.rstrip()
            yield Text.assemble((guide, SOFT), line)
            guide = on

    def _label(self) -> Text:
        """Return the label, and how many alike it stands for."""
        from rich.text import Text

        branch = self.branch
        more = ".**" if branch.is_cut and not branch.is_rest else ""
        times = f" \N{MULTIPLICATION SIGN}{branch.times:,}" if branch.times > 1 else ""
        label = f"{printable(shortened(branch.label))}{more}"
        return Text.assemble(label, (times, SOFT))


def guided(
    branches: tuple[Branch, ...], above: str = "", guide: str | None = None
) -> Iterator[tuple[str, Guided]]:
    """Yield every branch, by its name, with the guide that leads to it.

    >>> whole = Branch("", (0, 1), (Branch("a", (0,)), Branch("b", (1,))))
    >>> [(name, each.guide) for name, each in guided((whole,))]
    [('', ''), ('.a', '├─ '), ('.b', '└─ ')]
    """
    for branch in branches:
        turn, on = (LAST, "   ") if branch is branches[-1] else ("├─ ", "│  ")
        name, here = f"{above}{branch.label}", guide or ""
        yield name, Guided("" if guide is None else f"{here}{turn}", branch)
        yield from guided(branch.below, f"{name}.", "" if guide is None else here + on)
