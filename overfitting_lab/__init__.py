"""Experiments that show what over-fitting is, and what regularization and data augmentation buy."""

import os
import time

began = [time.perf_counter()]  # of this process's first command, before its imports, which take seconds

for _name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
    if not os.environ.get(_name, "0").isdecimal():  # no launcher set it, and Lightning's import would fail
        del os.environ[_name]
