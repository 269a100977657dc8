"""What a person writes with Unsloth alone: `python bare_unsloth.py SETTINGS` (JSON). Prints `RESULT {…}`.

The settings of a job (its arguments), `model` and `rows` (a train.parquet of conversations). No reports, no
checkpoints, no checks: nothing but Unsloth, so that what a job costs beside it can be seen.
"""
# Unsloth comes before transformers, trl and peft.
# isort: skip_file

import json
import statistics
import sys
import time

from unsloth import FastLanguageModel

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

settings = json.loads(sys.argv[1])
STEPS, WARM_UP = 14, 4
CHECKPOINTING = {"none": False, "plain": True, "unsloth": "unsloth"}

model, tokenizer = FastLanguageModel.from_pretrained(
    settings["model"], max_seq_length=settings["max_seq_length"], load_in_4bit=settings["load_in_4bit"]
)
model = FastLanguageModel.get_peft_model(
    model,
    r=settings["lora_rank"],
    lora_alpha=settings["lora_alpha"],
    target_modules=settings["target_modules"],
    use_gradient_checkpointing=CHECKPOINTING[settings["gradient_checkpointing"]],
    random_state=settings["seed"],
)
messages = pq.read_table(settings["rows"])["messages"].to_pylist()
turns = [[{"role": turn["role"], "content": turn["content"]} for turn in row] for row in messages]
texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in turns]
mean_tokens = statistics.mean(min(len(ids), settings["max_seq_length"]) for ids in tokenizer(texts[:400])["input_ids"])


class Clock(TrainerCallback):
    def __init__(self):
        self.ends, self.losses = [], []

    def on_step_end(self, args, state, control, **_):
        self.ends.append(time.time())

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


clock = Clock()
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=Dataset.from_dict({"text": texts}),
    callbacks=[clock],
    args=SFTConfig(
        output_dir="out",
        dataset_text_field="text",
        packing=settings["packing"],
        max_length=settings["max_seq_length"],
        per_device_train_batch_size=settings["batch_size"],
        gradient_accumulation_steps=settings["gradient_accumulation"],
        max_steps=STEPS,
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        lr_scheduler_type=settings["lr_scheduler"],
        warmup_steps=settings["warmup_ratio"],
        optim=settings["optimizer"],
        bf16=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=settings["seed"],
    ),
)
torch.cuda.reset_peak_memory_stats()
trainer.train()
step_s = statistics.median(b - a for a, b in zip(clock.ends[WARM_UP:], clock.ends[WARM_UP + 1 :], strict=False))
rows = settings["batch_size"] * settings["gradient_accumulation"]
tokens = rows * (settings["max_seq_length"] * 0.995 if settings["packing"] else mean_tokens)
print(
    "RESULT "
    + json.dumps(
        {
            "step_s": round(step_s, 3),
            "tokens_per_s": round(tokens / step_s),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "loss": [clock.losses[0], clock.losses[-1]],
        }
    )
)
