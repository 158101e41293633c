"""Measure the time and memory of whole commands.

As a module, it runs a command and prints both. A small process has to do that, because the system reports at least the
parent's memory as a command's memory.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIT = str(ROOT / "scripts" / "fit.py")


def run(arguments: list[str], folder: Path) -> tuple[float, int]:
    """Run Python with arguments in a folder, and return its seconds and the peak of its resident memory in bytes.

    Raises:
        ChildProcessError: if the command fails; the message ends with its output.
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", __name__, sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": paths}
    output = folder / "output.txt"
    with output.open("w", encoding="utf-8") as file:
        runner = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=file, encoding="utf-8"
        )
    if runner.returncode:
        raise ChildProcessError(f"{' '.join(arguments)} failed:\n{output.read_text(encoding='utf-8')[-2000:]}")
    seconds, memory = json.loads(runner.stdout)
    return seconds, memory


def main() -> None:
    """Run the given command with its output on standard error, and print seconds and bytes as JSON."""
    started = time.perf_counter()
    status = subprocess.run(sys.argv[1:], stdout=sys.stderr, check=False).returncode
    seconds = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit]))
    sys.exit(status)


if __name__ == "__main__":
    main()
