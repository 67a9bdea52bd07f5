"""Options of ``dstee bench`` and of its commands. Importing this costs nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .ranks import options as ranks_options

__all__ = ["GPUS", "add_arguments", "misplaced"]

OPS = ("drop_grow", "masked_sgd", "step", "host", "scaling")
GPUS = ("a100", "h100", "h200")
OURS = ("native", "triton", "reference")

# Those of measuring that commands have, too: one form everywhere, and given before the command they reach it.
_SHARED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "shapes": (("--shapes",), {
        "nargs": "+", "default": None, "metavar": "NAME",
        "help": "resnet50, vgg19, vit-b, gpt2, llama-1b, mlp, 100m, or a number of weights such as 1e6 (default: resnet50); "
        "for --op step: vgg19, resnet50, mlp, gnn; for --op host: resnet20, lenet-300-100",
    }),
    "density": (("--density",), {
        "type": float, "nargs": "+", "default": [0.1], "metavar": "D", "help": "share of active weights (default: 0.1)",
    }),
    "dtype": (("--dtype",), {
        "nargs": "+", "choices": ("float32", "bfloat16", "float16"),
        "help": "default: float32; for --op scaling float32 and bfloat16",
    }),
    "every": (("--every",), {
        "type": int, "default": 100, "metavar": "N", "help": "steps between updates, for the cost per step (default: 100)",
    }),
    "threads": (("--threads",), {"type": int, "default": None, "metavar": "N", "help": "default: torch's own choice"}),
    "limit": (("--limit",), {
        "type": float, "default": 300.0, "metavar": "S",
        "help": "seconds of one call after which it counts as hung (default: 300)",
    }),
    "largest": (("--largest",), {
        "type": float, "default": 1e8, "metavar": "N", "help": "weights at most, for --op scaling and ranks (default: 1e8)",
    }),
    "json": (("--json", "--out"), {"type": Path, "metavar": "FILE", "help": "all figures, written after every row"}),
    "html": (("--html",), {"type": Path, "metavar": "FILE", "help": "a report with pictures in one file"}),
}  # fmt: skip
_Adder = argparse.ArgumentParser | argparse._ArgumentGroup


def _share(parser: _Adder, *names: str, texts: Mapping[str, str] | None = None, **changed: Any) -> None:
    """Adds shared options; ``texts``: help that says something else than that of measuring."""
    for name in names:
        flags, settings = _SHARED[name]
        text = (texts or {}).get(name, settings["help"])
        parser.add_argument(*flags, **{**settings, **changed, "help": text})


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--op", nargs="+", choices=OPS, default=["drop_grow", "masked_sgd"], metavar="OP",
        help=f"of {', '.join(OPS)} (default: drop_grow masked_sgd)",
    )  # fmt: skip
    _share(what, "shapes")
    what.add_argument(
        "--from-model", metavar="SOURCE", help="your own layers: module:function that makes the model, found in the working "
        "directory, too, or a .pt or .safetensors state dict",
    )  # fmt: skip
    _share(what, "density", "dtype")
    what.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    what.add_argument(
        "--swap", type=float, default=0.3, metavar="D", help="share of the active weights that an update swaps (default: 0.3)"
    )
    _share(what, "every")
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
    _share(how, "threads")
    how.add_argument("--repeats", type=int, default=31, metavar="N", help="of each contender (default: 31)")
    how.add_argument(
        "--budget", type=float, default=8.0, metavar="S",
        help="seconds after which a contender has enough repeats (default: 8)",
    )  # fmt: skip
    _share(how, "limit", "largest")
    out = parser.add_argument_group("output")
    _share(out, "json", "html")
    out.add_argument(
        "--resume", type=Path, metavar="FILE",
        help="go on with an interrupted sweep: rows of the same code and options are kept (implies --json FILE)",
    )  # fmt: skip


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A.json", help="before")
    parser.add_argument("b", type=Path, metavar="B.json", help="after")
    parser.add_argument("--margin", type=float, default=0.05, metavar="D", help="difference that matters (default: 0.05)")
    parser.add_argument(
        "--all", action="store_true", help="every contender decides and has a line of its own, not dstee's backends only"
    )
    parser.epilog = "exit status: 0 same or faster, 1 slower, 2 the files cannot be compared, 3 cannot tell"


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="A.json")
    _share(parser, *_OWN["report"], default=argparse.SUPPRESS)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", nargs="+", choices=GPUS, default=["h100"], help="GPUs to predict for (default: h100)")
    texts = {"shapes": "as of bench (default: resnet50 100m llama-1b)"}
    _share(parser, *_OWN["model"], texts=texts, default=argparse.SUPPRESS)
    parser.add_argument("--measured", type=Path, metavar="FILE", help="figures of that GPU, to stand beside the predicted ones")


def _add_ranks(parser: argparse.ArgumentParser) -> None:
    texts = {
        "shapes": "as of bench (default: resnet50 llama-1b)", "dtype": "default: float32",
        "largest": "weights at most; larger lists have their dimensions divided (default: 1e8)",
    }  # fmt: skip
    _share(parser, *_OWN["ranks"], texts=texts, default=argparse.SUPPRESS)
    ranks_options.add_arguments(parser)


# Which of the shared options a command has.
_OWN: dict[str, tuple[str, ...]] = {
    "compare": (),
    "report": ("html",),
    "model": ("shapes", "density"),
    "ranks": ("shapes", "dtype", "density", "every", "threads", "limit", "largest", "json"),
}
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "compare": ("is B slower than A? judged by dstee's own backends", _add_compare),
    "report": ("the tables of a result file again (and --html)", _add_report),
    "model": ("how long the CUDA kernels should take, from counted instructions and bytes; nothing is measured", _add_model),
    "ranks": ("what training on several processes sends for a mask update, and a model of what that costs", _add_ranks),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of measuring, and the commands, of the parser's own class. ``args.action`` is the command, None to measure."""
    _add_measuring(parser)
    commands = parser.add_subparsers(
        dest="action", metavar="COMMAND", title="commands", description="without one, bench measures; COMMAND --help has more"
    )
    for name, (text, add) in _COMMANDS.items():
        add(commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}."))


def misplaced(args: argparse.Namespace) -> str | None:
    """An option of measuring that was given to a command, which has no use for it; or None."""
    plain = argparse.ArgumentParser()
    _add_measuring(plain)
    for name, default in vars(plain.parse_args([])).items():
        if name not in _OWN[args.action] and getattr(args, name) != default:
            return f"--{name.replace('_', '-')}"
    return None
