"""``dstee bench``: measures, shows, compares. Importing this costs nothing; torch is imported when a command runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .ranks import options as ranks_options

__all__ = ["add_arguments", "main", "make_parser", "run"]

OPS = ("drop_grow", "masked_sgd", "step", "host", "scaling")
GPUS = ("a100", "h100", "h200")
OURS = ("native", "triton", "reference")
EPILOG = """commands:
  bench [options]              measure; --json keeps the figures, --html draws them
  bench compare A.json B.json  is B slower than A?  exit status 0: same or faster, 1: slower, 2: cannot tell
  bench report A.json          the tables of a result file again (and --html)
  bench model --gpu h100       how long the CUDA kernels should take, from counted instructions and bytes; nothing is measured
  bench ranks                  what training on several processes sends for a mask update, and a model of what that costs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "words", nargs="*", metavar="COMMAND", help="nothing to measure; compare A.json B.json; report A.json; model; ranks"
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--op",
        nargs="+",
        choices=OPS,
        default=["drop_grow", "masked_sgd"],
        metavar="OP",
        help=f"of {', '.join(OPS)} (default: drop_grow masked_sgd)",
    )
    what.add_argument(
        "--shapes",
        nargs="+",
        default=None,
        metavar="NAME",
        help="resnet50, vgg19, vit-b, gpt2, llama-1b, mlp, 100m, or a "
        "number of weights such as 1e6 (default: resnet50); for --op step: vgg19, resnet50, mlp, gnn; "
        "for --op host: resnet20, lenet-300-100",
    )
    what.add_argument(
        "--from-model", metavar="SOURCE", help="your own layers: module:factory, or a .pt or .safetensors state dict"
    )
    what.add_argument(
        "--density", type=float, nargs="+", default=[0.1], metavar="D", help="share of active weights (default: 0.1)"
    )
    what.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16", "float16"),
        help="default: float32; for --op scaling float32 and bfloat16",
    )  # fmt: skip
    what.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    what.add_argument("--swap", type=float, default=0.3, help="share of the active weights that an update swaps (default: 0.3)")
    what.add_argument("--every", type=int, default=100, help="steps between updates, for the cost per step (default: 100)")
    who = parser.add_argument_group("who takes part")
    who.add_argument("--backends", nargs="+", choices=OURS, default=list(OURS), help="of dstee (default: all)")
    who.add_argument(
        "--against", nargs="*", default=None, metavar="NAME", help="other contenders; none with no name (default: all)"
    )
    who.add_argument(
        "--before", nargs="+", default=[], metavar="REV", help="the compiled CPU kernels of other commits (HEAD~1, a tag) as "
        "contenders of drop_grow and masked_sgd; built when first asked for"
    )  # fmt: skip
    who.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="a module that registers contenders of your own"
    )
    who.add_argument("--slow-everywhere", action="store_true", help="run slow contenders at every density, not the first only")
    how = parser.add_argument_group("how")
    how.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    how.add_argument("--repeats", type=int, default=31, help="of each contender (default: 31)")
    how.add_argument(
        "--budget", type=float, default=8.0, help="seconds after which a contender has enough repeats (default: 8)"
    )
    how.add_argument(
        "--limit", type=float, default=300.0, help="seconds of one call after which it counts as hung (default: 300)"
    )
    how.add_argument("--largest", type=float, default=1e8, help="weights at most, for --op scaling and ranks (default: 1e8)")
    out = parser.add_argument_group("output")
    out.add_argument("--json", "--out", type=Path, metavar="FILE", help="all figures, written after every row")
    out.add_argument("--html", type=Path, metavar="FILE", help="a report with plots in one file")
    out.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="go on with an interrupted sweep: rows of the same code and options are kept (implies --json FILE)",
    )
    check = parser.add_argument_group("compare")
    check.add_argument("--margin", type=float, default=0.05, help="difference that matters (default: 0.05)")
    check.add_argument(
        "--all", action="store_true", help="every contender counts for the exit status, not dstee's backends only"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--gpu", nargs="+", choices=GPUS, default=["h100"], help="GPUs to predict for (default: h100)")
    model.add_argument("--measured", type=Path, metavar="FILE", help="figures of that GPU, to stand beside the predicted ones")
    ranks_options.add_arguments(parser)


def make_parser(prog: str = "python -m bench") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="How long a mask update and a masked step take, and how far that is from the machine's limit.",
        allow_abbrev=False,
    )  # fmt: skip
    add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m bench") -> int:
    """Runs the command line and returns the exit status (3: the command line or a file cannot be used)."""
    return run(make_parser(prog).parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Runs what :func:`add_arguments` has parsed and returns the exit status."""
    from dstee._console import UsageError, complain

    try:
        return _dispatch(args)
    except UsageError as error:
        complain("error", error)
    except KeyboardInterrupt:
        complain("stopped", "interrupted; what was measured is kept where --json was given: go on with --resume")
        return 130
    except OSError as error:
        complain("error", f"{error.filename}: {error.strerror}" if error.filename else error)
    return 3


def _dispatch(args: argparse.Namespace) -> int:
    from dstee._console import UsageError

    words = args.words
    if not words:
        return _measure(args)
    if words[0] == "compare" and len(words) == 3:
        from . import compare

        return compare.run(Path(words[1]), Path(words[2]), args.margin, args.all, sys.stdout)
    if words[0] == "report" and len(words) == 2:
        return _report(Path(words[1]), args.html)
    if words == ["model"]:
        return _predict(args)
    if words == ["ranks"]:
        from .ranks import command

        return command.run(args)
    raise UsageError(
        f"{' '.join(words)!r} is no command: expected compare A.json B.json, report A.json, model, ranks, or nothing to measure"
    )


def _report(path: Path, html: Path | None) -> int:
    from dstee._console import UsageError

    from . import report, results_file, scaling_report, table

    document = results_file.read(path)
    if results_file.find(document, op="ranks"):
        from .ranks import report as ranks_report

        if html:
            raise UsageError("--html: what ranks send has no page, its tables are plain text: leave it out")
        _print(ranks_report.text(document))
        return 0
    _print(table.document_text(document), scaling_report.text(document))
    if html:
        report.write(html, document)
    return 0


def _predict(args: argparse.Namespace) -> int:
    from . import predict_report

    measured = predict_report.read_measured(args.measured) if args.measured else None
    _print(predict_report.text(args.gpu, args.shapes or predict_report.CASES, args.density, measured))
    return 0


def _measure(args: argparse.Namespace) -> int:
    from dstee._console import UsageError, complain

    from . import environment, plan, report, results_file, scaling_report, sweep, table
    from .progress import Bar
    from .tasks import threads

    tasks = plan.tasks(args)
    if args.html:
        report.require()
    path = args.resume or args.json
    if args.resume and args.json and args.resume != args.json:
        raise UsageError("--resume FILE writes to that file: leave out --json")
    document = results_file.new(environment.describe(threads(args), args.device), plan.options(args))
    kept = sweep.resume_from(path) if args.resume else []
    load = document["stamp"]["load"]
    if load is not None and load > 0.5:
        complain("warning", f"the machine is busy (load {load:.1f}): another process on a core stalls every parallel loop")
    bar = Bar(len(tasks))

    def show(row: results_file.Row) -> None:
        bar.row_done()
        with bar.aside():
            _print(table.row_text(row))

    with bar:
        sweep.run(tasks, document, path, limit=args.limit, say=lambda text: complain("note", text), show=show, kept=kept,
                  advance=bar.advance)  # fmt: skip
    words = table.roof_words(document["rows"])
    _print(f"\nof roof: {words}" if words else "", scaling_report.text(document))
    if args.html:
        report.write(args.html, document)
        _print(f"\nreport   {args.html}")
    if path:
        _print(f"figures  {path}")
    bad = [name for row in document["rows"] for name, one in row.get("contenders", {}).items()
           if one.get("ours") and one["status"] not in ("ok", "skipped")]  # fmt: skip
    return 1 if bad or any("error" in row for row in document["rows"]) else 0


def _print(*texts: str) -> None:
    for text in texts:
        if text:
            print(text, flush=True)
