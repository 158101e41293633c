"""python scripts/export.py lightning_logs/overfit/version_0.

Writes a run's best checkpoint into export/ in its folder, for use elsewhere: model.pth (state_dict and settings),
model.pt2 (torch.export) and model.onnx. Each takes uint8 images and has resizing and normalization inside, is float32,
and gets its name only when it was loaded again and agrees with the checkpoint on 1,000 test images. Flags of fit.py
override the run's configuration, as --data.root FOLDER where the data moved.
"""

import argparse
from pathlib import Path

from overfitting_lab.cli import ExperimentCLI, reported_errors
from overfitting_lab.export import FORMATS, export
from overfitting_lab.runs.run import Run, readable_checkpoint


def main() -> None:
    """Exports, and prints a line a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, help="which to write; default: all that can be here")
    arguments, overrides = parser.parse_known_args()
    with reported_errors():
        run = Run(arguments.run)
        checkpoint = readable_checkpoint(run.checkpoint("best"))
        cli = ExperimentCLI(["--config", str(run.config), *overrides], description=__doc__, keep=False)
        for line in export(run, checkpoint, cli.datamodule, arguments.formats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
