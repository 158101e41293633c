"""Experiments that show what over-fitting is, and what regularization and data augmentation buy."""

import os
import time

began = [time.perf_counter()]  # of this process's first command, before its imports, which take seconds

try:
    os.getcwd()  # noqa: PTH109
except FileNotFoundError:
    raise SystemExit("the working directory was removed: change to a folder that exists (cd)") from None

for _name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
    if not os.environ.get(_name, "0").isdecimal():  # no launcher set it, and Lightning's import would fail
        del os.environ[_name]
