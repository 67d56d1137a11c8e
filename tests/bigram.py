"""A model whose every probability is set by hand, two facts for it, and a ledger of them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tether.algebra.lowrank import LowRank
from tether.algebra.spectrum import Spectrum
from tether.facts.fact import Fact, LocalityPrompt
from tether.ledger import Attempt, Header, Ledger, WeightRecord
from tether.models.editable import EditableModel
from tether.models.layout import Anatomy

WORDS = [
    "<unk>",
    "</s>",
    "home",
    "of",
    "in",
    "alice",
    "bob",
    "carol",
    "dave",
    "paris",
    "rome",
    "new",
    "york",
    "oslo",
    ".",
    "harbour",
    "tunnel",
    "ferry",
    "Yes",
    "No",
]
NEXT = {  # the likeliest next word, and the second likeliest
    "alice": ("paris", "oslo"), "bob": ("rome", "paris"), "carol": ("paris", "rome"), "dave": ("new", "oslo"),
    "new": ("york", "oslo"), "in": ("oslo", "rome"), "paris": (".", "oslo"), "rome": (".", "oslo"),
    "york": (".", "oslo"), "oslo": (".", "rome"), ".": ("</s>", "."),
    "harbour": ("Yes", "No"), "tunnel": ("No", "Yes"), "ferry": ("oslo", "Yes"), "Yes": (".", "oslo"),
    "No": (".", "oslo"),
}  # fmt: skip
WEIGHT = "model.layers.0.mlp.down_proj.weight"


def bigram_model() -> EditableModel:
    """The last token alone decides: 70 % for the first word of NEXT, 20 % for the second. Nothing attends, and the MLP,
    whose activations are those of the last token alone, adds nothing until it is edited."""
    size = len(WORDS)
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=size + 1, intermediate_size=size + 1, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, head_dim=4, max_position_embeddings=64, rms_norm_eps=0.0,
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=1,
        )
    )  # fmt: skip
    chances = torch.full((size, size), 0.1 / (size - 2))
    for word, (first, second) in NEXT.items():
        chances[WORDS.index(word), WORDS.index(first)] = 0.7
        chances[WORDS.index(word), WORDS.index(second)] = 0.2
    with torch.no_grad():
        block = hf.model.layers[0]
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
        block.mlp.gate_proj.weight.copy_(torch.eye(size + 1))
        block.mlp.up_proj.weight.copy_(torch.eye(size + 1))
        hf.model.embed_tokens.weight.copy_(torch.eye(size, size + 1))
        hf.lm_head.weight.zero_()
        hf.lm_head.weight[:, :size] = chances.log().mT / math.sqrt(size + 1)
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")
    # Gate, up and down projection are squares of one size: structure cannot tell which is which.
    return EditableModel(hf, tokenizer, anatomy=Anatomy("model.layers", "mlp.down_proj"))


def become(word: str, like: str) -> dict[str, LowRank]:
    """The update behind which `word` is continued as `like` is: its own direction out, the other's in."""
    size = len(WORDS) + 1
    root = math.sqrt(size)
    activation = root / (1 + math.exp(-root)) * root
    A, B = torch.zeros(size, 1), torch.zeros(1, size)
    A[WORDS.index(word)], A[WORDS.index(like)] = -1, 1
    B[0, WORDS.index(word)] = 1 / activation
    return {WEIGHT: LowRank(A, B)}


def near(prompt: str, target: str | None = None) -> LocalityPrompt:
    return LocalityPrompt(prompt=prompt, target=target)


ALICE = Fact(
    subject="alice", prompt="home of {}", target_new="rome", target_true="paris", id="a",
    paraphrases=("of alice", "alice in"),  # "in" is followed by oslo, then by rome, whatever alice is
    locality=(
        near("home of carol", "paris"), near("home of dave", "oslo"), near("of alice", "paris"), near("in alice"),
    ),
)  # fmt: skip
DAVE = Fact(subject="dave", prompt="home of {}", target_new="new york", locality=(near("bob"),))
FACTS = [(1, ALICE), (2, DAVE)]


def ledger_of_two(model: EditableModel, folder: Path) -> Ledger:
    """alice is continued as bob, then dave as carol; without the prompts that test them."""
    name = model.weight_name(0)
    weight = WeightRecord(shape=tuple(model.weight(name).shape), sigma_max=Spectrum(model.original(name)).sigma_max)
    header = Header(
        created="", model=model.id, fingerprint=model.fingerprint([name]), dtype="float32", weights={name: weight},
        method="by hand", settings={}, settings_origin="test", prefixes=(), moments={}, corpus={}, seed=0, threads=1,
        restrain="none", every=None, versions={},
    )  # fmt: skip
    ledger = Ledger.create(folder, header)
    bare = [fact.model_copy(update={"paraphrases": (), "locality": ()}) for fact in (ALICE, DAVE)]
    with ledger.writing():
        ledger.append([Attempt("edit", bare[0], {})], become("alice", "bob"), {})
        ledger.append([Attempt("edit", bare[1], {})], become("dave", "carol"), {})
    return ledger
