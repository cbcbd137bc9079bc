"""Instruction tuning with LoRA on the packaged LLM: our loop beside trl's SFTTrainer with peft, on the same batches.

Both read the same packed rows with the same mask, 2 of 512 tokens in a step, learn the same matrices from the same
start, and must give the same losses. Memory is what the tensors of a run take at most, beside the frozen weights.
"""

import tempfile
from typing import Any

import numpy as np
import torch

from benchmarks.timing import in_turn
from lmsurvey_code.adaptation import IGNORED, example, in_passes, own_example_mask, pack, splits, tune
from lmsurvey_code.llm import GGUF_FILE, LLM, SMOLLM2, open_llm
from lmsurvey_code.memory import LiveBytes
from lmsurvey_code.parameter_efficient import adapted, add_lora
from lmsurvey_code.training import TrainConfig, bfloat16_is_fast, set_seed

N_STEPS, RATE = 4, 4e-3
CONFIG = TrainConfig(N_STEPS, 2, 1, RATE, warmup=0, decay=0.0)


def ours(model: LLM) -> list[float]:
    """Losses of our loop."""
    set_seed(0)
    return tune(adapted(model, add_lora), splits()["train"], CONFIG).losses


def rows_of(model: LLM) -> list[dict[str, torch.Tensor]]:
    """The rows of all steps as transformers wants them: it moves `labels` by one token, so rows are longer by one."""
    items = splits()["train"]
    x, y = pack([example(model, item.question, item.output) for item in items], 512, model.start_token)
    draw, rows = in_passes(x, y), []
    for step in range(N_STEPS):
        stacked, found = draw(torch.arange(len(x) + 1), CONFIG, step)  # (B, 2, T), (1, N)
        tokens, counted = stacked.unbind(1)
        targets = torch.full_like(tokens, IGNORED)
        targets[counted.bool()] = found[0]
        for row, labels in zip(tokens.tolist(), targets.tolist(), strict=True):
            rows.append({"input_ids": [*row, model.start_token], "labels": [IGNORED, *labels]})
    return rows


def theirs(hf: torch.nn.Module, tokenizer: Any, rows: list[dict], start_token: int) -> list[float]:
    """Losses of SFTTrainer."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        found = {name: torch.tensor([row[name] for row in batch]) for name in ("input_ids", "labels")}
        return found | {"attention_mask": own_example_mask(found["input_ids"], start_token)}

    class InOrder(SFTTrainer):
        """Reads the rows in the order of the steps."""

        def _get_train_sampler(self, *args: object) -> torch.utils.data.Sampler:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    set_seed(0)
    net = get_peft_model(hf, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, RATE, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            max_steps=N_STEPS,
            per_device_train_batch_size=2,
            max_grad_norm=1.0,
            bf16=bfloat16_is_fast("cpu"),
            use_cpu=True,
            disable_tqdm=True,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        )
        trainer = InOrder(
            net,
            arguments,
            data_collator=collate,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        )
        trainer.train()
    net.unload()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def rows() -> list[dict[str, Any]]:
    """Tokens per second, and bytes."""
    import peft
    import trl
    from transformers import AutoModelForCausalLM

    model, found, peaks = open_llm("smollm2-135m", quiet=True), {}, {}
    read = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_FILE, dtype=torch.float32)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config  # what is read from a GGUF file does not train, though it is in float32
    hf = type(read)(read.config)
    hf.load_state_dict(read.state_dict())
    del read
    tokenizer, batches = model.tokenizer.hf, rows_of(model)
    tokenizer.pad_token = tokenizer.eos_token
    calls = {"ours": lambda: ours(model), "theirs": lambda: theirs(hf, tokenizer, batches, model.start_token)}
    for who, call in calls.items():  # the first run of each: for memory, and to see that they agree
        with LiveBytes() as live:
            found[who] = call()
        peaks[who] = live.peak
    np.testing.assert_allclose(found["ours"], found["theirs"], atol=0.05)
    seconds = in_turn(*calls.values())
    name, peer = "instruction tuning with LoRA", f"SFTTrainer of trl {trl.__version__}, peft {peft.__version__}"
    own, other = (N_STEPS * CONFIG.batch_size * 512 / s for s in seconds)
    return [
        {"name": f"{name}, 2 rows of 512 tokens", "unit": "tokens/s", "ours": own, "peer": other, "peer_name": peer},
        {
            "name": f"{name}, memory beside the frozen weights",
            "unit": "MB",
            "ours": peaks["ours"] / 1e6,
            "peer": peaks["theirs"] / 1e6,
            "peer_name": peer,
        },
    ]
