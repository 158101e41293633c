"""Messages of Lightning that say nothing to a user of this project, silenced by name."""

import logging
import warnings

# Modules whose every message of level INFO is noise.
MODULES = (
    "lightning.fabric.utilities.distributed",  # which process joins the group
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.accelerators.cuda",  # the GPUs that a process sees
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.trainer.connectors.signal_connector",  # this project reports signals itself
)
# Beginnings of messages that any module may send through these loggers.
SHARED = ("lightning.fabric.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero")
NOISE = (
    "\nDetected KeyboardInterrupt",  # reported as "interrupted"
    "GPU available: ",
    "TPU available: ",
    "You are using a CUDA device",  # advice about precision, which --trainer.precision decides
    "Using 16bit Automatic Mixed Precision",
    "Using bfloat16 Automatic Mixed Precision",
    "\N{ELECTRIC LIGHT BULB} Tip: ",  # advertisements
    "-----",  # the size of a group of processes
    "Found current_model_state in the checkpoint",  # of averaged weights
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "Loading `train_dataloader` to estimate",
    "`Trainer.fit` stopped: ",  # the line "ended" says it
    "Time limit reached.",  # the same
)


def silence_noise() -> None:
    """Silence the messages above. A profiler's report and a callback's verbose messages are still shown."""
    for module in MODULES:
        logging.getLogger(module).setLevel(logging.WARNING)
    for module in SHARED:
        logger = logging.getLogger(module)
        logger.removeFilter(_says_something)
        logger.addFilter(_says_something)
    # A resume without one of the run's callbacks prints the change. A test needs no callback.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    # Their values are those of all processes already.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\('probe_")


def _says_something(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not record.getMessage().startswith(NOISE)
