"""What a model is worth: accuracy on a test split, latency and throughput, of an exported file or of a server.

python benchmarks/eval.py --model models/ensemble.onnx --datastore data/photos --against torch --output results
python benchmarks/eval.py --url http://localhost:3000 --datastore data/photos --min_top1 0.8 --max_p99_ms 50
"""

from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks.evaluation_contract import EvalSettings, Evaluation
from benchmarks.evaluation_figures import draw_figures
from benchmarks.evaluation_file import PEERS, evaluate_file
from benchmarks.evaluation_http import evaluate_server
from benchmarks.evaluation_report import markdown
from benchmarks.gates import broken_limits
from benchmarks.report import show
from tailstack.errors import UserError
from tailstack.files import make_folder, write_json, write_text

CORRUPTED = 1000
"""Test images that are corrupted where no number is given."""


def run_evaluation(settings: EvalSettings) -> Evaluation:
    """Measure what the settings name.

    Raises:
        UserError: something is missing, damaged, or doesn't fit together.
    """
    settings.check()
    found = evaluate_server(settings) if settings.url else evaluate_file(settings)
    found.report["settings"] = {
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "datastore": str(settings.datastore),
    }
    return found


def main() -> None:
    """Parse the command line, measure, write the report, print it, and hold it against the limits."""
    settings = _settings()
    # A folder that can't be written is found before minutes of measuring.
    output = make_folder(settings.output) if settings.output else None
    found = run_evaluation(settings)
    if output:
        write_json(output / "eval.json", found.report)
        write_text(output / "eval.md", markdown(found.report, draw_figures(found, output)))
    show(markdown(found.report))
    broken = broken_limits(found.report, settings)
    if broken:
        raise UserError("\n".join(broken))


def _settings() -> EvalSettings:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, prog="python benchmarks/eval.py", description=EvalSettings.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")
    parser.add_class_arguments(EvalSettings, skip={"against", "corruptions"})
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        choices=list(PEERS),
        help="torch: the same learners in PyTorch (eager, channels_last); openvino: the same file in OpenVINO; "
        "in turns with the file in ONNX Runtime",
    )
    parser.add_argument(
        "--corruptions",
        nargs="?",
        type=int,
        const=CORRUPTED,
        default=0,
        help=f"accuracy under corruptions like ImageNet-C's, on so many test images (by itself: {CORRUPTED:,})",
    )
    values = parser.parse_args().as_dict()
    values.pop("config")
    return EvalSettings(**values)
