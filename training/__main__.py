"""The command line: `python -m training prepare|fit|distill|compare|sweep|report`."""

from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from types import GenericAlias
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, set_parsing_settings

from tailstack.errors import UserError, run_command
from training.settings import LITE_TRIO, CompareSettings, FitSettings, PrepareSettings, SweepSettings

_OF_A_CELL = {"datastore", "output", "technique", "teacher", "seed", "budget"}
"""Settings of `fit` that `compare` chooses, and the budget: what is compared has to be trained alike."""
_NOT_SWEPT = {
    *("datastore", "output", "architectures", "technique", "teacher", "tau", "class_weights", "budget"),
    *("cluster", "cpus_per_learner", "devices", "num_nodes", "strategy"),  # a sweep's trials are what is parallel
}

_OF_THE_TEACHER = {
    *("datastore", "output", "architectures", "technique", "teacher", "budget"),
    *("threshold", "bag_split", "val_fraction", "seed"),  # its bags and its split
}
"""Settings of `fit` that `distill` takes from the run, or from flags of its own."""


def _prepare_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, description=PrepareSettings.__doc__)
    parser.add_argument(
        "source",
        help="image folder (train/, test/ and perhaps val/ with a folder a class, or class folders alone), a zip of "
        "one, `digits`, `torchvision:NAME`, or a datastore to make variants of",
    )
    parser.add_class_arguments(PrepareSettings, skip={"source", "imbalance"})
    parser.add_argument(
        "--imbalance",
        type=float,
        nargs="+",
        default=[],
        help="ratios of smallest to largest class; each makes a variant",
    )
    return parser


def _fit_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, description=FitSettings.__doc__)
    _add_config(parser)
    parser.add_class_arguments(FitSettings)
    return parser


def _distill_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        description="Train one learner by the answers of a run's whole ensemble; the same command again goes on.",
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--architecture", type=str | None, help="a timm model; else that of the smallest learner")
    parser.add_argument("--output", type=Path | None, help="folder of the student's run; else RUN-student, or -taught")
    parser.add_argument(
        "--keep_others",
        type=bool,
        default=False,
        help="whether RUN's other learners stay beside the student, which takes the place of its own of that network",
    )
    for name, hint in get_type_hints(FitSettings).items():
        if name not in _OF_THE_TEACHER:
            parser.add_argument(f"--{name}", type=hint | None, help="as of fit; else as RUN has it")
    return parser


def _compare_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, description=CompareSettings.__doc__)
    _add_config(parser)
    parser.add_argument("--datastores", type=Path, nargs="+", required=True, help="folders of datastores")
    parser.add_argument("--techniques", type=str, nargs="+", default=["all"], help="names of techniques, or `all`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each trains all anew")
    parser.add_class_arguments(CompareSettings, skip={"datastores", "techniques", "seeds"})
    parser.add_class_arguments(FitSettings, skip=_OF_A_CELL)
    return parser


def _sweep_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, description=SweepSettings.__doc__)
    _add_config(parser)
    parser.add_class_arguments(SweepSettings)
    parser.add_argument("--datastore", type=Path, required=True, help="folder with train.json and test.json")
    parser.add_argument("--architectures", type=list[str], default=LITE_TRIO[:1], help="timm models, each tried alone")
    parser.add_argument("--technique", type=str | list[str], default="baseline", help="as of fit; a list is swept")
    hints: dict[str, Any] = get_type_hints(FitSettings)
    for name, default in [(item.name, item.default) for item in fields(FitSettings)]:
        if name in _NOT_SWEPT:
            continue
        one = hints[name]
        either = one | GenericAlias(list, (one,))
        parser.add_argument(f"--{name}", type=either, default=default, help="as of fit; a list is swept")
    parser.add_argument("--tau", type=hints["tau"], default=None, help="as of fit")
    parser.add_argument("--class_weights", type=hints["class_weights"], default={}, help="as of fit")
    return parser


def _report_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False, description="Write the report of a comparison: a page, tables as CSV, and figures."
    )
    parser.add_argument("folder", type=Path, help="the --output of `compare`")
    return parser


def _add_config(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")


# Torch takes seconds to import: a mistake in the flags is answered before.


def _prepare(values: dict[str, Any], _given: Collection[str]) -> None:
    from training.prepare import prepare

    prepare(PrepareSettings(**values))


def _fit(values: dict[str, Any], given: Collection[str]) -> None:
    from training.fit import fit

    fit(FitSettings(**values), given=given)


def _distill(values: dict[str, Any], _given: Collection[str]) -> None:
    from training.distill import distill

    run, architecture, output, keep = (values.pop(name) for name in ("run", "architecture", "output", "keep_others"))
    changes = {name: value for name, value in values.items() if value is not None}
    distill(run, architecture, output, changes, keep_others=keep)


def _compare(values: dict[str, Any], _given: Collection[str]) -> None:
    from training.compare import compare

    own = {item.name: values.pop(item.name) for item in fields(CompareSettings)}
    settings = CompareSettings(**own)
    compare(settings, FitSettings(datastore=settings.datastores[0], output=settings.output, **values))


def _sweep(values: dict[str, Any], _given: Collection[str]) -> None:
    try:
        from training.sweep import sweep
    except ModuleNotFoundError as error:
        raise UserError("Ray isn't installed: pip install 'tailstack[cluster]'") from error
    settings = SweepSettings(**{item.name: values.pop(item.name) for item in fields(SweepSettings)})
    lists = {name: value for name, value in values.items() if isinstance(value, list) and name != "tau"}
    for name, value in lists.items():
        if not value:
            raise UserError(f"--{name} is an empty list")
    first = {name: value[0] for name, value in lists.items()} | {"architectures": lists["architectures"][:1]}
    base = FitSettings(output=settings.output, **(values | first))
    sweep(settings, base, {name: value for name, value in lists.items() if len(value) > 1})


def _report(values: dict[str, Any], _given: Collection[str]) -> None:
    from training.report import report

    print(report(values["folder"]))


_COMMANDS: dict[str, tuple[Callable[[], ArgumentParser], Callable[[dict[str, Any], Collection[str]], None], str]] = {
    "prepare": (_prepare_parser, _prepare, "image folder, zip or known data set -> datastore"),
    "fit": (_fit_parser, _fit, "datastore -> trained run"),
    "distill": (_distill_parser, _distill, "run -> one learner, taught by the run's ensemble"),
    "compare": (_compare_parser, _compare, "techniques x datastores x seeds -> a table, with a report"),
    "sweep": (_sweep_parser, _sweep, "settings given as lists -> the best combination, on Ray Tune"),
    "report": (_report_parser, _report, "the results of a comparison -> tables and figures"),
}


def main() -> None:
    """Parse the command line and run the command."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False, prog="python -m training", description="Prepare data and train an ensemble on it."
    )
    commands = parser.add_subcommands(required=True, dest="command")
    for name, (make_parser, _, summary) in _COMMANDS.items():
        commands.add_subcommand(name, make_parser(), help=summary)
    arguments = parser.parse_args()
    values = arguments[arguments.command].as_dict()
    values.pop("config", None)
    # Once more without the defaults: what is left is what the user chose.
    given = set(parser.parse_args(defaults=False)[arguments.command].as_dict())
    _COMMANDS[arguments.command][1](values, given)


if __name__ == "__main__":
    run_command(main)
