"""The keyword arguments that the configurations of TRL's trainers share: transformers' TrainingArguments. Heavy."""

from typing import Any

from tunewright.pipeline.backend import on_gpu

from tunewright.pipeline.training import checkpoints
from tunewright.pipeline.training.run import Run

# Of all steps; transformers reads values below 1 as shares.
SAVE_SHARE = EVAL_SHARE = 0.1
REWARD = "eval_reward"


def _best_metric(run: Run) -> str:
    return REWARD if run.method == "grpo" else "eval_loss"


def common(run: Run, *, with_eval: bool) -> dict[str, Any]:
    """For SFTConfig, DPOConfig, KTOConfig, ORPOConfig and GRPOConfig. With eval rows the best checkpoint is kept."""
    arguments = run.arguments
    save_steps, eval_steps = arguments["save_steps"] or SAVE_SHARE, arguments["eval_steps"] or EVAL_SHARE
    return {
        "output_dir": str(checkpoints.folder(run.context.folder)),
        "per_device_train_batch_size": arguments["batch_size"],
        "per_device_eval_batch_size": arguments["batch_size"],
        "gradient_accumulation_steps": arguments["gradient_accumulation"],
        # Which form is chosen where the model is loaded; without this the trainer would switch it on or off again.
        "gradient_checkpointing": arguments["gradient_checkpointing"] != "none",
        "num_train_epochs": arguments["epochs"],
        "max_steps": arguments["max_steps"] or -1,
        "learning_rate": arguments["learning_rate"],
        "weight_decay": arguments["weight_decay"],
        "max_grad_norm": arguments["max_grad_norm"],
        "lr_scheduler_type": arguments["lr_scheduler"],
        # Its usual end of 1e-7 is more than the small rates of full fine-tuning and RL begin with.
        "lr_scheduler_kwargs": {"lr_end": 0.0} if arguments["lr_scheduler"] == "polynomial" else None,
        "warmup_steps": arguments["warmup_ratio"],
        "optim": arguments["optimizer"],
        "neftune_noise_alpha": arguments["neftune_alpha"],
        "bf16": on_gpu() and arguments["precision"] == "bf16",
        "fp16": on_gpu() and arguments["precision"] == "fp16",
        "save_strategy": "steps",
        "save_steps": save_steps,
        "save_total_limit": 2,
        # Early stopping counts its evaluations across a resume too.
        "restore_callback_states_from_checkpoint": True,
        "eval_strategy": "steps" if with_eval else "no",
        "eval_steps": eval_steps,
        "metric_for_best_model": _best_metric(run) if with_eval else None,
        "greater_is_better": _best_metric(run) == REWARD if with_eval else None,
        "logging_steps": arguments["logging_steps"],
        "logging_first_step": True,
        "seed": arguments["seed"],
        "data_seed": arguments["seed"],
        # A forked loader would hold the device's lock after its parent was killed.
        "dataloader_num_workers": 0,
        "report_to": arguments["report_to"] or "none",
        "run_name": run.context.job_id,
        "disable_tqdm": True,
    }
