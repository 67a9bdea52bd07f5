"""Tables of results: rows by label, grouped as in the paper, columns by sparsity or another setting, compared by seed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from dstee._console import UsageError
from dstee._lookup import did_you_mean
from dstee.experiments.config import Config, grouped_keys, method_group, method_name, setting
from dstee.experiments.results.row import Row
from dstee.experiments.results.text import setting_text
from dstee.experiments.tables.statistics import Comparison, compare_pairs, holm, lower_than, verdict
from dstee.methods.base import Group

__all__ = ["Cell", "Column", "Table", "make_table"]

_MEANS: dict[str, Callable[[Row], float | None]] = {
    "mean_density": lambda row: row.result.mean_density,
    "training_flops": lambda row: row.result.training_flops,
    "inference_flops": lambda row: row.result.inference_flops,
    "exploration": lambda row: row.result.exploration,
    "explored_share": lambda row: _share(row.result.exploration, row.result.exploration_limit),
    "dead_units": lambda row: row.result.dead_units,
}


def _share(explored: float | None, limit: float | None) -> float | None:
    return explored / limit if explored is not None and limit else None


@dataclass(frozen=True)
class Column:
    """One value of each setting that the columns stand for; ``title`` as "98 %"."""

    values: tuple[Any, ...]
    title: str


@dataclass
class Cell:
    """The trainings of one label in one column: ``scores`` by seed, in 0..1, of those that did not diverge.

    ``means`` over the same: mean_density, training_flops, inference_flops (relative to dense), exploration (R),
    explored_share (R / R_max), dead_units; None where it is not known. ``comparison`` with the baseline, over the seeds that
    diverged in neither, and its ``corrected`` p. ``best``: the best sparse one of the column, or after it before the
    first that is significantly lower, where some are.
    """

    rows: Sequence[Row]
    scores: Mapping[int, float]
    diverged: Sequence[int]
    means: Mapping[str, float | None]
    comparison: Comparison | None = None
    corrected: float | None = None
    best: bool = False

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.scores.values()) if self.scores else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def verdict(self) -> str | None:
        return None if self.comparison is None else verdict(self.comparison.mean, self.corrected)


@dataclass
class Table:
    """``groups``: headings with their labels, in order; ``cells`` by label and number of the column, where there is one.

    ``comparisons`` and ``comparisons_with_best``: how many p-values were corrected together, against the baseline, and to
    find the best. ``notes``: what was done to the rows before.
    """

    score: str
    setting_names: tuple[str, ...]
    columns: Sequence[Column]
    groups: Sequence[tuple[Group, Sequence[str]]]
    cells: Mapping[tuple[str, int], Cell]
    baseline: str | None
    comparisons: int = 0
    comparisons_with_best: int = 0
    notes: Sequence[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        return [label for _, labels in self.groups for label in labels]

    @property
    def rows(self) -> list[Row]:
        return [row for cell in self.cells.values() for row in cell.rows]


def make_table(
    rows: Sequence[Row], score: str = "accuracy", columns: Sequence[str] | None = None, baseline: str | None = None,
    notes: Sequence[str] = (),
) -> Table:  # fmt: skip
    """The table of ``rows``.

    Args:
        score: "accuracy" or another score that the results have.
        columns: settings whose values get a column each; None: the data set, where there are several, and the sparsity.
        baseline: a label or a method's key, with which all others are compared.

    Raises:
        UsageError: a name is unknown, one label stands for several trainings of a seed, runs are not paired or saw other data.
    """
    if not rows:
        raise UsageError("there are no rows to make a table of")
    several = len({repr(row.setting("data")) for row in rows}) > 1
    names = tuple(columns) if columns is not None else ("data", "sparsity") if several else ("sparsity",)
    _refuse_unknown_names(rows, score, names)
    if several and "data" not in names:
        found = sorted({str(row.setting("data")) for row in rows})
        raise UsageError(
            f"the runs are of several data sets ({', '.join(found)}): pass --columns data,{','.join(names)} or "
            f"--only data={found[0]}"
        )
    _refuse_mixed_data(rows)
    found_columns = _columns(rows, names)
    members = {
        i: [row for row in rows if _stands_in([row.setting(n) for n in names], column.values)]
        for i, column in enumerate(found_columns)
    }
    labels = _display_labels(members.values(), names)
    cells: dict[tuple[str, int], Cell] = {}
    for i, inside in members.items():
        by_label: dict[str, list[Row]] = {}
        for row in inside:
            by_label.setdefault(labels[id(row)], []).append(row)
        cells |= {(label, i): _cell(label, held, score) for label, held in by_label.items()}
    groups = _groups(cells)
    table = Table(score, names, found_columns, groups, cells, None, notes=list(notes))
    if baseline is not None:
        table.baseline = _find_baseline(table, baseline)
        table.comparisons = _compare(table)
    table.comparisons_with_best = _mark_best(table)
    return table


def _refuse_unknown_names(rows: Sequence[Row], score: str, names: Sequence[str]) -> None:
    known = list(dict.fromkeys(name for row in rows for name in row.setting_names()))
    for name in names:
        if name not in known and name != "sparsity":  # dense alone has none, which needs no column
            raise UsageError(f"--columns: no run has a setting {name!r}{did_you_mean(name, known)}")
    scores = list(dict.fromkeys(["accuracy", *(name for row in rows for name in row.result.scores)]))
    if score not in scores:
        raise UsageError(f"no run has the score {score!r}{did_you_mean(score, scores)}, but {', '.join(scores)}")


def _refuse_mixed_data(rows: Sequence[Row]) -> None:
    """Of one name and the same settings, data may still be others: another file, another version of one's own function."""
    seen: dict[str, Row] = {}
    names = ["data", *(f.name for f in dataclasses.fields(Config) if setting(f).group == "data" and f.name != "data")]
    for row in rows:
        if (digest := row.made_by.get("data_digest")) is None:
            continue
        first = seen.setdefault(repr([row.setting(name) for name in names]), row)
        if first.made_by["data_digest"] != digest:
            raise UsageError(
                f"{first.source} and {row.source} were not trained on the same data, though both name {row.setting('data')} "
                "(their data_digest differs): leave one of them out"
            )


def _columns(rows: Sequence[Row], names: Sequence[str]) -> list[Column]:
    each = {repr(values): values for row in rows if (values := tuple(row.setting(name) for name in names))}
    whole = [values for values in each.values() if None not in values]
    # What stands in no other column, as dense where nothing sparse was trained, has one of its own.
    found = whole + [v for v in each.values() if None in v and not any(_stands_in(v, other) for other in whole)]
    found.sort(key=lambda values: [_order(value) for value in values])
    return [Column(values, ", ".join(setting_text(n, v) for n, v in zip(names, values, strict=True) if v is not None))
            for values in found]  # fmt: skip


def _order(value: Any) -> tuple[int, Any]:
    """Numbers by size, then all else by its text."""
    return (0, value) if isinstance(value, (int, float)) else (1, str(value))


def _stands_in(values: Sequence[Any], column: Sequence[Any]) -> bool:
    """What has no such setting, as dense has no sparsity, stands in all columns."""
    return all(value is None or value == wanted for value, wanted in zip(values, column, strict=True))


def _display_labels(columns: Iterable[Sequence[Row]], names: Sequence[str]) -> dict[int, str]:
    """By row's id: its label, and the settings in which rows of this label differ within a column."""
    varied: dict[tuple[str, str], dict[str, None]] = {}
    rows: list[Row] = []
    for inside in columns:
        rows += inside
        by_label: dict[tuple[str, str], list[Row]] = {}
        for row in inside:
            by_label.setdefault((row.label, row.method), []).append(row)
        for key, held in by_label.items():
            for name in dict.fromkeys(name for row in held for name in row.setting_names()):
                if name not in names and len({repr(row.setting(name)) for row in held}) > 1:
                    varied.setdefault(key, {})[name] = None
    found = {}
    methods = {label: {row.method for row in rows if row.label == label} for label in {row.label for row in rows}}
    for row in rows:
        differing = [
            setting_text(n, row.setting(n)) for n in varied.get((row.label, row.method), ()) if row.setting(n) is not None
        ]
        if len(methods[row.label]) > 1:
            differing.insert(0, method_name(row.method))
        found[id(row)] = f"{row.label} ({', '.join(differing)})" if differing else row.label
    return found


def _cell(label: str, rows: Sequence[Row], score: str) -> Cell:
    scores: dict[int, float] = {}
    diverged = []
    for row in sorted(rows, key=lambda row: row.seed):
        if row.seed in scores or row.seed in diverged:
            raise UsageError(f"{label}: {rows[0].source} and {row.source} both have seed {row.seed}, of the same settings")
        value = row.result.score(score)
        if row.result.diverged_at is not None:
            diverged.append(row.seed)
        elif value is None:
            raise UsageError(
                f"{row.name} in {row.source} has no score {score!r}: leave these runs out, or choose another --score"
            )
        else:
            scores[row.seed] = value
    whole = [row for row in rows if row.seed in scores]
    means = {}
    for name, read in _MEANS.items():
        values = [value for row in whole if (value := read(row)) is not None]
        means[name] = statistics.fmean(values) if values and len(values) == len(whole) else None
    return Cell(rows, scores, diverged, means)


def _groups(cells: Mapping[tuple[str, int], Cell]) -> list[tuple[Group, list[str]]]:
    methods = {label: cell.rows[0].method for (label, _), cell in cells.items()}
    order = list(grouped_keys())
    labels = sorted(methods, key=lambda label: order.index(methods[label]))
    found = [(group, [label for label in labels if method_group(methods[label]) == group]) for group in get_args(Group)]
    return [(group, held) for group, held in found if held]


def _find_baseline(table: Table, wanted: str) -> str:
    """The label that is, or whose rows have the label or method, ``wanted``."""
    names: dict[str, list[str]] = {}
    for (label, _), cell in table.cells.items():
        for name in (cell.rows[0].method, cell.rows[0].label, label):
            if label not in names.setdefault(name, []):
                names[name].append(label)
    if wanted not in names:
        raise UsageError(
            f"the baseline {wanted!r} is not in the runs{did_you_mean(wanted, names)}, which have {', '.join(table.labels)}"
        )
    for label in (wanted, method_name(wanted)):
        if label in names[wanted]:
            return label
    if len(names[wanted]) > 1:
        raise UsageError(f"the baseline {wanted!r} may be any of {'; '.join(names[wanted])}: pass one of these")
    return names[wanted][0]


def _compare(table: Table) -> int:
    """Every cell with the baseline's of its column; returns how many p-values were corrected together."""
    assert table.baseline is not None
    family: dict[tuple[object, ...], list[Cell]] = {}
    for (label, i), cell in table.cells.items():
        base = table.cells.get((table.baseline, i))
        if base is None:
            raise UsageError(f"the baseline {table.baseline} has no runs at {table.columns[i].title}, where others have")
        if label != table.baseline:
            cell.comparison = _paired(cell, base, (label, table.baseline), table.columns[i].title)
            if cell.comparison is not None and cell.comparison.p is not None:
                family.setdefault((_identity(cell), _identity(base)), []).append(cell)  # dense stands in all columns, once
    firsts = [cells[0].comparison for cells in family.values()]
    for cells, corrected in zip(family.values(), holm([c.p for c in firsts if c is not None and c.p is not None]), strict=True):
        for cell in cells:
            cell.corrected = corrected
    return len(family)


def _identity(cell: Cell) -> tuple[int, ...]:
    return tuple(map(id, cell.rows))


def _paired(cell: Cell, base: Cell, names: tuple[str, str], column: str) -> Comparison | None:
    """Over the seeds that diverged in neither, which the table says; None where there are none."""
    out = {*cell.diverged, *base.diverged}
    mine = {seed: value for seed, value in cell.scores.items() if seed not in out}
    theirs = {seed: value for seed, value in base.scores.items() if seed not in out}
    if not mine and not theirs:
        return None
    at = f" at {column}" if column else ""
    return compare_pairs(mine, theirs, (names[0] + at, names[1] + at))


def _mark_best(table: Table) -> int:
    """Marks the highest mean of each column, and from there down what is not significantly lower than it, to the first that is;
    returns how many tests that took.

    Dense training, with which the sparse ones are not in a contest, has no part in it. Nothing is marked in a column that
    cannot be tested (one seed, or seeds that are not the same), nor where the mark would be on all and so say nothing.
    """
    sparse = {label for group, labels in table.groups if group != "dense" for label in labels}
    tests: list[tuple[Cell, Comparison, float]] = []
    testable = []
    for i in range(len(table.columns)):
        inside = [cell for key, cell in table.cells.items() if key[1] == i and key[0] in sparse and cell.scores]
        seeds = {frozenset({*cell.scores, *cell.diverged}) for cell in inside}
        if len(inside) < 2 or len(seeds) > 1 or min(len(cell.scores) for cell in inside) < 2:
            continue
        best = max(inside, key=lambda cell: cell.mean or 0.0)
        found = [(cell, _paired(cell, best, ("", ""), "")) for cell in inside if cell is not best]
        if all(comparison is not None and comparison.p is not None for _, comparison in found):
            testable.append(inside)
            tests += [(cell, c, c.p) for cell, c in found if c is not None and c.p is not None]
    lower = {
        id(cell)
        for (cell, comparison, _), corrected in zip(tests, holm([p for *_, p in tests]), strict=True)
        if lower_than(comparison, corrected)
    }
    for inside in testable:
        for cell in sorted(inside, key=lambda cell: cell.mean or 0.0, reverse=True):
            if id(cell) in lower:  # what is below it is not marked for its spread alone
                break
            cell.best = True
    for i in range(len(table.columns)):
        inside = [cell for key, cell in table.cells.items() if key[1] == i and key[0] in sparse]
        if all(cell.best for cell in inside):
            for cell in inside:
                cell.best = False
    return len(tests)
