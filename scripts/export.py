"""python scripts/export.py lightning_logs/overfit/version_0.

Export a run's best checkpoint into export/ in its folder, for use elsewhere: model.pth (state_dict and settings),
model.pt2 (torch.export) and model.onnx. Each takes uint8 images, contains resizing and normalization, computes in
float32, and gets its name after it agreed with the checkpoint on 1,000 test images. If these have moved, give
--data.root FOLDER, and --data.source if its kind is another one.
"""

try:
    from overfitting_lab.cli import ExperimentCLI, reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from overfitting_lab.cli.script_parser import ScriptParser
from overfitting_lab.export import FORMATS, export
from overfitting_lab.runs import Run
from overfitting_lab.runs.files import user_path
from overfitting_lab.runs.recipe import setting_name

SETTINGS = ("data.root", "data.source")  # of fit.py, which say where the test images are


def main() -> None:
    """Export the run, and print one line per file."""
    parser = ScriptParser(__doc__)
    parser.add_argument("run", type=user_path, help="the run's folder")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, help="formats to write; default: all supported here")
    parser.add_argument(
        "--temperature", action="store_true", help="calibrate: divide the logits by the run's temperature"
    )
    arguments, overrides = parser.parse_known_args()
    for flag in overrides:
        if flag.startswith("-") and setting_name(flag) not in SETTINGS:
            parser.error(
                f"{flag} would change nothing in the files: leave it out; only --{' and --'.join(SETTINGS)} count here"
            )
    with reported_errors():
        run = Run(arguments.run)
        checkpoint = run.best_checkpoint
        own = ["--config", str(run.files.config), *overrides]
        cli = ExperimentCLI(own, keep=False, trains=False)
        for line in export(run, checkpoint, cli.datamodule, arguments.formats, calibrated=arguments.temperature):
            print(line, flush=True)


if __name__ == "__main__":
    main()
