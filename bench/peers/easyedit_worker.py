"""EasyEdit's turns: `apply_rome_to_model` and `apply_memit_to_model` of the user's copy, with the job's settings.

Only the modules of the two methods are imported, so that the environment needs what they need and not what all methods
of the package do. Given to them: the prompts' prefixes, in the place of text sampled anew, and the windows of the job's
text, in the place of a download of Wikipedia. Nothing else of the package is changed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from turns import Turns


def main() -> None:
    turns = Turns()
    job, folder = turns.job, Path(turns.job["folder"])
    torch.set_num_threads(job["threads"])
    package = ModuleType("easyeditor")  # in the place of its __init__, which imports every method
    package.__path__ = [str(Path(job["easyedit"]) / "easyeditor")]
    for name in ("models", "util"):
        inner = ModuleType(f"easyeditor.{name}")
        inner.__path__ = [f"{package.__path__[0]}/{name}"]
        sys.modules[inner.__name__] = inner
    sys.modules["easyeditor"] = package
    from easyeditor.models.memit import MEMITHyperParams, apply_memit_to_model, memit_main
    from easyeditor.models.rome import ROMEHyperParams, apply_rome_to_model, layer_stats, rome_main

    windows = [{"text": text} for text in job["windows"]]
    layer_stats.load_dataset = lambda *_: {"train": windows}
    escaped = [prefix.replace("{", "{" * 4).replace("}", "}" * 4) for prefix in job["prefixes"]]  # it formats twice
    rome_main.CONTEXT_TEMPLATES_CACHE = ["{}", *(f"{prefix}. {{}}" for prefix in escaped)]
    memit_main.CONTEXT_TEMPLATES_CACHE = [["{}"], [f"{prefix}. {{}}" for prefix in escaped]]

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token_id, tokenizer.padding_side = tokenizer.eos_token_id, "right"
    head = "model.embed_tokens" if model.config.tie_word_embeddings else "lm_head"  # a tied head is no parameter
    settings: dict[str, Any] = {
        **job["shared"], "fact_token": "subject_last", "v_loss_layer": model.config.num_hidden_layers - 1,
        "mom2_adjustment": True, "mom2_dataset": "wikitext", "mom2_n_samples": len(windows), "mom2_dtype": "float32",
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj", "layer_module_tmp": "model.layers.{}",
        "mlp_module_tmp": "model.layers.{}.mlp", "attn_module_tmp": "model.layers.{}.self_attn",
        "ln_f_module": "model.norm", "lm_head_module": head, "device": "cpu", "model_name": job["model"],
        "stats_dir": str(folder / "stats"),
    }  # fmt: skip
    requests = [
        {"case_id": number, "prompt": one["prompt"], "subject": one["subject"], "target_new": one["target_new"]}
        for number, one in enumerate(job["facts"])
    ]
    if job["what"] == "memit":
        hparams = MEMITHyperParams(**settings, alg_name="MEMIT", layer_selection="all")
    else:
        settings.pop("mom2_update_weight", None)
        hparams = ROMEHyperParams(**settings, alg_name="ROME", context_template_length_params=[])
    turns.wait()
    if job["what"] == "moments":
        count = 0
        for layer in job["layers"]:
            name = hparams.rewrite_module_tmp.format(layer)
            found = layer_stats.layer_stats(
                model, tokenizer, name, hparams.stats_dir, hparams.mom2_dataset, ["mom2"],
                sample_size=hparams.mom2_n_samples, precision=hparams.mom2_dtype, hparams=hparams,
            )  # fmt: skip
            count = int(found.mom2.count)
        turns.done(tokens=count)
        return
    changed: dict[str, torch.Tensor] = {}
    if job["what"] == "memit":
        _, changed = apply_memit_to_model(model, tokenizer, requests, hparams, return_orig_weights=True)
        turns.done(kind="edit")
    else:
        for request in requests:
            _, before = apply_rome_to_model(model, tokenizer, [request], hparams, return_orig_weights=True)
            changed = {**before, **changed}
            turns.done(kind="edit")
    save_file({name: model.get_parameter(name).detach().contiguous() for name in changed}, job["out"])


if __name__ == "__main__":
    main()
