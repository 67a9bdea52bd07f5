"""What a table says, as sheets of short texts and a footer, which the formats write down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dstee._console import one_line
from dstee.experiments.data import DATA_SETS
from dstee.experiments.results.row import Row
from dstee.experiments.results.text import seed_list
from dstee.experiments.tables.table import Cell, Table

__all__ = ["Sheet", "Text", "data_text", "footer", "made_by", "sheets"]


class Text(NamedTuple):
    text: str
    bold: bool = False


class Sheet(NamedTuple):
    """``lines`` are rows of texts, or the heading of a group."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[Text] | str]


def sheets(table: Table) -> list[Sheet]:
    """The score of all columns side by side, where there are several; then each column with all that is known."""
    measured = f"{table.score} %"
    found = []
    if len(table.columns) > 1:
        titles = [column.title for column in table.columns]
        lines = _grouped(table, range(len(titles)), lambda cell: [_accuracy(cell)], 1)
        found.append(Sheet(measured, ["method", *titles], lines))
    header = ["method", measured]
    if table.baseline is not None:
        header += [f"difference to {one_line(table.baseline)}", "p", "verdict"]
    header += ["density", "train FLOPs", "infer FLOPs", "R", "R / R_max", "dead units", "seeds"]
    for i, column in enumerate(table.columns):
        lines = _grouped(table, [i], lambda cell: _details(table, cell), len(header) - 1)
        found.append(Sheet(", ".join(filter(None, [_subject(table, column.values), column.title])), header, lines))
    return found


def _subject(table: Table, values: Sequence[Any]) -> str:
    """The data set, where the columns do not say it."""
    return "" if "data" in table.setting_names else ", ".join(_data_sets(table))


def _data_sets(table: Table) -> list[str]:
    return sorted({_data_of(row) for row in table.rows})


def _data_of(row: Row) -> str:
    return one_line(row.setting("data") or "unknown")


def _grouped(
    table: Table, columns: Sequence[int], cells: Callable[[Cell], list[Text]], width: int
) -> list[Sequence[Text] | str]:
    lines: list[Sequence[Text] | str] = []
    for group, labels in table.groups:
        inside = [label for label in labels if any((label, i) in table.cells for i in columns)]
        if inside and len(table.groups) > 1 and group != "dense":
            lines.append(group)
        for label in inside:
            found = [table.cells.get((label, i)) for i in columns]
            texts = [text for cell in found for text in ([Text("-")] * width if cell is None else cells(cell))]
            lines.append([Text(one_line(label)), *texts])
    return lines


def _details(table: Table, cell: Cell) -> list[Text]:
    compared = [] if table.baseline is None else _comparison(table, cell)
    means = cell.means
    numbers = [
        _number(means["mean_density"], "{:.4f}"), _number(means["training_flops"], "{:.3f}x"),
        _number(means["inference_flops"], "{:.3f}x"), _number(means["exploration"], "{:.3f}"),
        _number(means["explored_share"], "{:.3f}"), _percent(means["dead_units"]), str(len(cell.rows)),
    ]  # fmt: skip
    return [_accuracy(cell), *map(Text, compared + numbers)]


def _accuracy(cell: Cell) -> Text:
    gone = f"{len(cell.diverged)} of {len(cell.rows)} diverged" if cell.diverged else ""
    if cell.mean is None:
        return Text(gone)
    spread = "" if cell.std is None else f" ± {100 * cell.std:.2f}"
    return Text(f"{100 * cell.mean:.2f}{spread}" + (f" ({gone})" if gone else ""), cell.best)


def _comparison(table: Table, cell: Cell) -> list[str]:
    found = cell.comparison
    if found is None:
        is_baseline = any(table.cells.get((table.baseline or "", i)) is cell for i in range(len(table.columns)))
        return ["baseline" if is_baseline else "-", "-", "-"]
    interval = "" if found.interval is None else f" [{', '.join(map(_points, found.interval))}]"
    fewer = f" ({found.pairs} pairs)" if found.pairs < len(cell.rows) else ""
    p = "-" if cell.corrected is None else "<0.001" if cell.corrected < 0.001 else f"{cell.corrected:.3f}"
    return [f"{_points(found.mean)}{interval}{fewer}", p + "†" * found.all_equal, cell.verdict or ""]


def _points(difference: float) -> str:
    """In percentage points, with its sign; what is 0 as shown has none."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def footer(table: Table) -> list[str]:
    """What a reader must know of the numbers, a sentence or two each."""
    seeds = {frozenset(row.seed for row in cell.rows) for cell in table.cells.values()}
    counts = sorted({len(held) for held in seeds})
    every = frozenset().union(*seeds)
    count = _count(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    what = ("Accuracy on the test set" if table.score == "accuracy" else table.score) + f" in %{_epoch(table)}"
    spread = "nothing is known of the spread over" if counts[-1] == 1 else "mean ± sample standard deviation of"
    lines = [f"{what}: {spread} {'seeds' if counts[-1] == 1 and len(every) > 1 else count} ({seed_list(every)})."]
    if table.baseline is not None:
        lines.append(_of_comparisons(table))
    if table.comparisons_with_best:
        test = f"(paired t test, Holm's correction for {_count(table.comparisons_with_best, 'comparison')}, p >= 0.05)"
        if any(cell.best for cell in table.cells.values()):
            lines.append(
                "Bold: of the sparse trainings of a column the best mean, and those after it down to the first that is "
                f"significantly lower {test}; none where that is all of them."
            )
        else:
            lines.append(f"None is bold: no sparse training is significantly lower than the best of its column {test}.")
    if gone := _diverged(table):
        lines.append(f"Diverged (the loss was not finite any more), and in no mean: {gone}.")
    lines.append(
        "Density: mean while training. FLOPs: relative to dense training and inference. R: share of the weights that were ever "
        "active, R_max: the most that the swaps allow. Dead units: share of output units without an active weight."
    )
    lines += _unlike_epochs(table)
    lines += [f"{note}." for note in map(one_line, table.notes)]
    lines.append(f"Data: {', '.join(map(data_text, _data_sets(table)))}. Made with {made_by(table)}.")
    return lines


def _epoch(table: Table) -> str:
    """Where it is not the last one: it was chosen, though not by the test set."""
    chosen = {_data_of(row) for row in table.rows if f"last_{table.score}" in row.result.scores}
    where = "at the epoch of the best validation score"
    if not chosen:
        return ""
    return f" {where}" if chosen == {*_data_sets(table)} else f" (of {', '.join(sorted(chosen))} {where})"


def _unlike_epochs(table: Table) -> list[str]:
    """Relative costs compare with one another where all train as long."""
    found: dict[str, dict[int, dict[str, None]]] = {}
    for (label, _), cell in table.cells.items():
        for row in cell.rows:
            if type(epochs := row.setting("epochs")) is int:
                found.setdefault(_data_of(row), {}).setdefault(epochs, {})[one_line(label)] = None
    texts = []
    for name, by_epochs in found.items():
        if len(by_epochs) > 1 and "epochs" not in table.setting_names:
            each = "; ".join(f"{epochs} of {', '.join(labels)}" for epochs, labels in sorted(by_epochs.items()))
            where = f" on {name}" if len(found) > 1 else ""
            texts.append(f"Train FLOPs are relative to dense training of as many epochs, which differ{where}: {each}.")
    return texts


def data_text(name: str) -> str:
    """The name of a data set, with what its source says that results must say of it."""
    note = DATA_SETS[name].note if name in DATA_SETS else ""
    return f"{name} ({note})" if note else name


def _of_comparisons(table: Table) -> str:
    equal = any(cell.comparison is not None and cell.comparison.all_equal for cell in table.cells.values())
    mark = (
        " †: the differences of all seeds are equal, so there is no spread to go by: p of the test by signs." if equal else ""
    )
    count = _count(table.comparisons, "comparison")
    return (
        f"Differences to {one_line(table.baseline)} in percentage points, paired by seed, with 95 % intervals of Student's t "
        f"(each by itself); p of the paired t test after Holm's correction for {count}. p >= 0.05: no significant "
        f"difference.{mark}"
    )


def _diverged(table: Table) -> str:
    found: Mapping[str, None] = dict.fromkeys(
        f"{one_line(label)}{' at ' * bool(table.columns[i].title)}{table.columns[i].title}, "
        f"{len(cell.diverged)} of {len(cell.rows)} (seed {seed_list(cell.diverged)})"
        for (label, i), cell in table.cells.items()
        if cell.diverged
    )
    return "; ".join(found)


def made_by(table: Table) -> str:
    """The versions of dstee and torch that trained."""
    versions = sorted({tuple(f"{key} {row.made_by.get(key, 'unknown')}" for key in ("dstee", "torch")) for row in table.rows})
    return "; ".join(one_line(", ".join(version)) for version in versions)
