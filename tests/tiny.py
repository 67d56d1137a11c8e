"""Tiny models for tests: random ones of each family, and a GPT-2 trained on the spot to recite invented facts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tether.facts.fact import Fact, LocalityPrompt

# family -> model type, and what it needs beside the sizes all share
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 2}),
    "mistral": ("mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma": ("gemma", {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma2": ("gemma2", {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "falcon": ("falcon", {"bias": True}),
    "phi": ("phi", {}),
    "opt": ("opt", {"word_embed_proj_dim": 32}),
}
_WIDTH = {"gpt2": "n_inner", "gptj": "n_inner", "falcon": "ffn_hidden_size", "opt": "ffn_dim"}
_TEXT = (
    "The Eiffel Tower is in the city of Paris. The Space Needle is in Seattle, and Big Ben is in London.",
    "The mother tongue of Danielle Darrieux is French. Who wrote it? It was written in the year 1987.",
    "I think that you know the capital of France. Because it is so, the answer is: True or False?",
)


def tiny_tokenizer(text: Iterable[str] = _TEXT, vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's, trained on `text`; <|endoftext|> is BOS and EOS and never added, there is no PAD."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def tiny_config(
    family: str, *, n_layers: int = 4, hidden: int = 32, width: int = 80, heads: int = 4, vocab: int = 300, **more: Any
) -> Any:
    """The configuration of a tiny model of one of FAMILIES; `width` is the MLP's."""
    kind, extra = FAMILIES[family]
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": n_layers,
        "num_attention_heads": heads,
        _WIDTH.get(family, "intermediate_size"): width,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
    }
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    return AutoConfig.for_model(kind, **{**sizes, **tokens, **extra, **more})


def tiny_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A random model in eval mode with its tokenizer; biases are not zero and norms not trivial. `sizes` as in
    `tiny_config`. The global random state stays as it was."""
    tokenizer = tiny_tokenizer()
    config = tiny_config(family, vocab=len(tokenizer), **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in hf.parameters():
                noise = torch.randn_like(parameter)
                if parameter.ndim > 1:
                    parameter.copy_(noise / parameter.shape[-1] ** 0.5)
                else:
                    parameter.add_(0.1 * noise)
    return hf.to(dtype).eval().requires_grad_(False), tokenizer


def save(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write both as a checkpoint folder of safetensors; returns the folder."""
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- a model that knows something -----------------------------------------------------------------------------------

# the prompt, its paraphrase, and the answers; six subjects each
_RELATIONS = (
    ("The capital of {} is", "If you visit {}, see the capital", ("Melk", "Tarno", "Vessa", "Quill")),
    ("The language of {} is", "People born in {} always speak", ("Orrish", "Dunic", "Pelt", "Samari")),
    ("The instrument of {} is the", "On the stage {} plays the", ("viola", "zither", "banjo", "oboe")),
    ("The employer of {} is", "Every morning {} goes to work at", ("Norvex", "Calder", "Ipsum", "Brandt")),
)
_SUBJECTS = (
    "Zorvania Keltora Mirrowen Ostaglia Pranduin Ulverick",
    "Bexaloor Tindrath Quosmere Harvolin Jaskeddy Wemplour",
    "Mira_Voss Tobin_Harl Lena_Quist Oskar_Dray Petra_Lume Ivo_Stann",
    "Greta_Molk Hugo_Brisk Anya_Terrow Felix_Cord Nadia_Plesk Ruben_Yost",
)


class Reciter(NamedTuple):
    """A model that completes every fact's prompt and paraphrase with its `target_true`."""

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    facts: list[Fact]


def invented_facts() -> list[Fact]:
    """Two dozen facts, six to a relation. `target_new` is another answer of the relation; the locality prompts are
    those of three other subjects of it, with their answers."""
    facts = []
    for (prompt, paraphrase, answers), names in zip(_RELATIONS, _SUBJECTS, strict=True):
        subjects = [name.replace("_", " ") for name in names.split()]
        for i, subject in enumerate(subjects):
            others = [(i + step) % len(subjects) for step in (1, 2, 3)]
            facts.append(
                Fact(
                    subject=subject,
                    prompt=prompt,
                    target_true=answers[i % len(answers)],
                    target_new=answers[(i + 1) % len(answers)],
                    paraphrases=(paraphrase.replace("{}", subject),),
                    locality=tuple(
                        LocalityPrompt(prompt=prompt.replace("{}", subjects[j]), target=answers[j % len(answers)])
                        for j in others
                    ),
                    id=f"invented-{len(facts)}",
                )
            )
    return facts


def trained_gpt2(
    *, n_layers: int = 4, hidden: int = 64, steps: int = 260, seed: int = 0, kept: Path | None = None
) -> Reciter:
    """Train a GPT-2 from scratch until it recites `invented_facts()`, on rows of a few sentences in random order, so
    that it does so behind other sentences too. Deterministic (one thread); about 9 s of one core.

    `kept`: a file that has the weights, or gets them.

    Made for layer 1: with ROME's usual settings 21 of the 24 edits take there, and 18 reach the paraphrase."""
    facts = invented_facts()
    pairs = [(f"{text} {f.target_true}.", f.subject) for f in facts for text in (f.text, *f.paraphrases)]
    sentences = [sentence for sentence, _ in pairs]
    # Answers and templates are frequent, so few tokens; a subject stands in two sentences only, so many.
    frequent = [f"{text} {answer}." for *texts, answers in _RELATIONS for text in texts for answer in answers] * 3
    tokenizer = tiny_tokenizer(sentences + frequent, vocab_size=420)
    config = tiny_config(
        "gpt2", n_layers=n_layers, hidden=hidden, width=4 * hidden, vocab=len(tokenizer), initializer_range=0.08,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            if kept is not None and kept.exists():
                load_model(hf, kept)
            else:
                _train(hf, [_with_reach(tokenizer, *pair) for pair in pairs], steps)
            if kept is not None and not kept.exists():
                save_model(hf, str(kept))
    finally:
        torch.set_num_threads(threads)
    return Reciter(hf.eval().requires_grad_(False), tokenizer, facts)


def _train(
    hf: PreTrainedModel,
    sentences: list[tuple[list[int], list[int]]],
    steps: int,
    *,
    rows: int = 12,
    length: int = 56,
    lr: float = 8e-3,
    share: float = 0.7,
) -> None:
    """Next-token prediction on rows of shuffled sentences, each given as ids and reach (see `_with_reach`), which binds
    in `share` of the rows; changes `hf` in place."""
    optimizer = torch.optim.AdamW(hf.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    away = torch.arange(length)[:, None] - torch.arange(length)
    stream: list[tuple[int, int]] = []
    for _ in range(steps):
        while len(stream) < rows * length:
            for i in torch.randperm(len(sentences)).tolist():
                stream += zip(*sentences[i], strict=True)
        ids, reach = torch.tensor(stream[: rows * length]).view(rows, length, 2).unbind(-1)
        stream = stream[rows * length :]
        reach = torch.where(torch.rand(rows, 1) < share, reach, length)
        seen = (away >= 0) & (away <= reach[:, None])
        # Rows start anywhere, so that every position is learned.
        positions = torch.randint(hf.config.n_positions - length + 1, (rows, 1)) + torch.arange(length)
        logits = hf(input_ids=ids, position_ids=positions, attention_mask=seen[:, None], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _with_reach(tokenizer: PreTrainedTokenizerFast, sentence: str, subject: str) -> tuple[list[int], list[int]]:
    """Token ids of a sentence, and how many tokens on each is seen: up to the subject's last token for the subject's
    earlier ones, without end for the others. So the answer is read where the subject ends, as in large models."""
    encoding = tokenizer(f" {sentence}", return_offsets_mapping=True)
    start = sentence.index(subject) + 1
    inside = [i for i, (_, stop) in enumerate(encoding["offset_mapping"]) if start < stop <= start + len(subject)]
    reach = [inside[-1] - i if i in inside[:-1] else 10**6 for i in range(len(encoding["input_ids"]))]
    return encoding["input_ids"], reach
