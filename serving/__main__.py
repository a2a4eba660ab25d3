"""The command line: `python -m serving score SOURCE --model FILE --output FOLDER`. (The server is `bentoml serve`.)"""

from tailstack.errors import UserError, run_command


def main() -> None:
    """Parse the command line and score."""
    try:
        from jsonargparse import ArgumentParser, set_parsing_settings

        from serving.score import ScoreSettings, score
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} isn't installed, which scoring needs: pip install 'tailstack[score]'") from error

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, prog="python -m serving", description="Score images without HTTP.")
    commands = parser.add_subcommands(required=True, dest="command")
    scoring = ArgumentParser(exit_on_error=False, description=ScoreSettings.__doc__)
    scoring.add_argument("source", help="folder, zip, Parquet or text file of URIs; a path, or s3://…, gs://…")
    scoring.add_argument("--config", action="config", help="YAML file with any of the settings; flags override it")
    scoring.add_class_arguments(ScoreSettings, skip={"source"})
    commands.add_subcommand("score", scoring, help="images -> Parquet of classes, votes and prediction sets")
    values = parser.parse_args()["score"].as_dict()
    values.pop("config")
    done = score(ScoreSettings(**values))
    before = f"; {done.kept} were there already" if done.kept else ""
    print(
        f"{done.images} images in {done.seconds:.1f} s ({done.rate:.1f} images/s), {done.errors} of them with an error"
        f"{before}. The rows are in {values['output']}"
    )


if __name__ == "__main__":
    run_command(main)
