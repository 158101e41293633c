"""The flag that was meant by a wrong one: a misspelled name, another group, or the name in another program."""

import difflib
from collections.abc import Iterable, Sequence

DASHES = "-\N{EN DASH}\N{EM DASH}"  # text editors turn two hyphens into one dash
ALIKE = 0.85  # ratio of equal characters from which a name counts as misspelled
# Names in older releases of Lightning and in other programs, by what to type here.
OTHER_NAMES = {
    "--trainer.max_epochs": "epoch epochs num_epochs n_epochs nb_epochs train_epochs",
    "--trainer.max_steps": "steps num_steps max_iter max_iters iterations num_iterations",
    "--trainer.accelerator gpu --trainer.devices 1": "gpus gpu num_gpus n_gpus nb_gpus gpu_ids auto_select_gpus",
    "--trainer.accelerator": "device cuda use_cuda no_cuda cpu",
    "--trainer.devices": "num_processes n_devices world_size",
    "--trainer.num_nodes": "nodes",
    "--trainer.strategy ddp": "distributed_backend distributed ddp dist",
    "--trainer.precision": "fp16 bf16 amp use_amp half amp_level amp_backend mixed_precision",
    "--trainer.gradient_clip_val": "clip clip_grad grad_clip gradient_clip max_grad_norm clip_grad_norm",
    "--trainer.accumulate_grad_batches": "accumulate grad_accum gradient_accumulation_steps accumulation_steps",
    "--trainer.limit_train_batches": "train_percent_check",
    "--trainer.limit_val_batches": "val_percent_check",
    "--trainer.limit_test_batches": "test_percent_check",
    "--trainer.log_every_n_steps": "row_log_interval log_interval log_every log_freq print_freq",
    "--trainer.enable_progress_bar": "progress_bar_refresh_rate progress progress_bar",
    "--trainer.enable_model_summary": "weights_summary summary model_summary",
    "--trainer.enable_checkpointing": "checkpoint_callback checkpointing",
    "--trainer.use_distributed_sampler": "replace_sampler_ddp",
    "--trainer.default_root_dir": "default_save_path weights_save_path output output_dir out_dir save_dir log_dir",
    "--trainer.logger WandbLogger": "wandb use_wandb",
    "--data.batch_size": "b bs batch train_batch_size",
    "--data.root": "data_dir data_path data_root dataset_path datadir",
    "--data.source": "dataset",
    "--data.image_size": "img_size input_size resolution resize",
    "--data.augment": "augmentation augmentations transform transforms",
    "--data.val_size": "val_split validation_split num_val",
    "--data.label_noise": "noise noise_rate",
    "--model": "arch net network architecture",
    "--model.dropout": "drop drop_rate dropout_rate",
    "--model.batch_norm": "bn",
    "--model.label_smoothing": "smoothing",
    "--model.optimizer": "optim opt",
    "--model.optimizer.lr": "lr learning_rate base_lr initial_lr lr_rate",
    "--model.optimizer.weight_decay": "weight_decay wd l2",
    "--model.optimizer.momentum": "momentum",
    "--model.lr_scheduler": "scheduler schedule",
    "--config": "cfg conf config_file",
    "--config early_stopping": "early_stopping early_stop early_stop_callback patience",
    "--config averaging/ema": "ema ema_decay",
    "--config averaging/swa": "swa stochastic_weight_avg",
    "--seed_everything": "seed random_seed manual_seed",
    "--experiment": "name run_name exp_name experiment_name",
    "--resume RUN": "resume_from_checkpoint resume_from",
    "--ckpt_path": "ckpt checkpoint load load_from checkpoint_path",
}
NOT_NEEDED = {
    "the images are in memory, and no worker loads them: leave it out": "num_workers workers n_workers",
    "a loss that is NaN or infinite always ends the run: leave it out": "terminate_on_nan",
    "the doctor watches the gradients: leave it out": "track_grad_norm",
    "search with scripts/tune.py": "auto_lr_find auto_scale_batch_size",
    "the data decides it: leave it out": "num_classes n_classes",
    "test with scripts/test.py RUN": "evaluate eval test_only",
}


def _spelled(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {_spelled(name): remedy for remedy, names in table.items() for name in names.split()}


FLAGS, NOTES = _by_name(OTHER_NAMES), _by_name(NOT_NEEDED)


def meant(flag: str, options: Sequence[str], *, known_elsewhere: bool = True) -> str:
    """Return a sentence about the flag that was meant, from the names of all ``options``; empty if it is not clear.

    ``known_elsewhere`` also asks for names in other programs.
    """
    *groups, name = flag.strip(DASHES).partition("=")[0].replace(".init_args", "").split(".")
    group, spelled = ".".join(groups), _spelled(name)
    own = [option for option in options if option.rpartition(".")[0] == group]
    if near := nearest(name, own):
        return f"did you mean {near}?"
    if known_elsewhere and (note := NOTES.get(spelled)):
        return note
    if known_elsewhere and (other := FLAGS.get(spelled)):
        return f"did you mean {other}?"
    same = [option for option in options if _spelled(option.rpartition(".")[2]) == spelled]
    near = same[0] if len(same) == 1 else None if same else nearest(name, options)
    return f"did you mean {near}?" if near else ""


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option whose last part is spelled most like ``name``, if it is the only one."""
    names = {option: _spelled(option.rpartition(".")[2]) for option in options}
    found = difflib.get_close_matches(_spelled(name), set(names.values()), n=1, cutoff=ALIKE)
    alike = [option for option, spelled in names.items() if [spelled] == found]
    return alike[0] if len(alike) == 1 else None
