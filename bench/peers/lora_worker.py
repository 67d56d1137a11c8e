"""Fine-tuning by plain peft: LoRA on every MLP output projection, AdamW, all facts a step, the loss on the target."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from turns import Turns


def main() -> None:
    turns = Turns()
    job = turns.job
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    config = LoraConfig(r=16, lora_alpha=32, target_modules=["down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    adapted.train()
    turns.wait()
    rows = []
    for fact in job["facts"]:
        prompt = fact["prompt"].replace("{}", fact["subject"])
        asked, whole = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {fact['target_new']}")["input_ids"]
        rows.append((whole, [-100] * len(asked) + whole[len(asked) :]))
    width = max(len(whole) for whole, _ in rows)
    ids = torch.tensor([whole + [0] * (width - len(whole)) for whole, _ in rows])
    mask = torch.tensor([[1] * len(whole) + [0] * (width - len(whole)) for whole, _ in rows])
    labels = torch.tensor([one + [-100] * (width - len(one)) for _, one in rows])
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
    steps = 0
    for _ in range(job["epochs"]):
        loss = adapted(input_ids=ids, attention_mask=mask, labels=labels).loss
        if float(loss) < job["loss_threshold"]:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    merged = adapted.merge_and_unload()
    turns.done(kind="edit", steps=steps)
    names = [name for name, _ in merged.named_parameters() if name.endswith("mlp.down_proj.weight")]
    save_file({name: merged.get_parameter(name).detach().contiguous() for name in names}, job["out"])


if __name__ == "__main__":
    main()
