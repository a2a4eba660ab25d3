"""The command line: `python -m training prepare|fit`."""

from jsonargparse import ArgumentParser, Namespace

from tailstack.errors import run_command
from training.settings import FitSettings, PrepareSettings


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m training", description="Prepare data and train an ensemble on it.")
    prepare = ArgumentParser(description=PrepareSettings.__doc__)
    prepare.add_argument(
        "source",
        help="image folder (train/ and test/ with a folder a class, or class folders alone), a zip of one, `digits`, "
        "or `torchvision:NAME`",
    )
    prepare.add_class_arguments(PrepareSettings, skip={"source", "imbalance"})
    prepare.add_argument(
        "--imbalance",
        type=float,
        nargs="+",
        default=[],
        help="ratios of smallest to largest class; each makes a variant",
    )
    fit = ArgumentParser(description=FitSettings.__doc__)
    fit.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")
    fit.add_class_arguments(FitSettings)
    commands = parser.add_subcommands(required=True, dest="command")
    commands.add_subcommand("prepare", prepare, help="image folder, zip or known data set -> datastore")
    commands.add_subcommand("fit", fit, help="datastore -> trained run")
    return parser


def main() -> None:
    """Parse the command line and run the command."""
    arguments = _parser().parse_args()
    settings: Namespace = arguments[arguments.command]
    # Torch takes seconds to import: a mistake in the flags is answered before.
    if arguments.command == "prepare":
        from training.prepare import prepare  # noqa: PLC0415

        prepare(PrepareSettings(**settings.as_dict()))
    else:
        from training.fit import fit  # noqa: PLC0415

        values = settings.as_dict()
        values.pop("config", None)
        fit(FitSettings(**values))


if __name__ == "__main__":
    run_command(main)
