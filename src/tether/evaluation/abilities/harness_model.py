"""An EditableModel as lm-evaluation-harness sees it. Imports lm-eval, so nothing imports this before it is needed."""

import copy
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from tether.evaluation.scores import BATCH_TOKENS, score_ids
from tether.facts.tokens import Continuation
from tether.models.editable import EditableModel
from tether.models.sampling import end_tokens, plain_generation


class HarnessModel(HFLM):
    """The harness's Hugging Face model around one that is loaded already, with two things made faster.

    Likelihoods come from `score_ids`: texts that begin alike share a row, logits are made where they are read. Answers
    are generated in batches of like length with `batch_tokens` tokens, padding and new tokens included, always by the
    likeliest token: the checkpoint's own generation settings play no part. Neither model nor tokenizer is changed.
    """

    def __init__(self, model: EditableModel, *, batch_tokens: int = BATCH_TOKENS) -> None:
        tokenizer = copy.deepcopy(model.tokenizer)  # the harness chooses a padding token for it
        super().__init__(
            pretrained=model.hf, tokenizer=tokenizer, batch_size=1, backend="causal", max_length=model.limit
        )
        self._editable, self._batch_tokens = model, batch_tokens

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """The harness's own, without its bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        """(log-likelihood, whether greedy decoding says it) of every (texts, prompt ids, continuation ids). What is too
        long for the model loses tokens on the left."""
        texts = []
        for _, prompt, continuation in requests:
            ids = (prompt + continuation)[-(self.max_length + 1) :]
            texts.append(Continuation(tuple(ids), max(1, len(ids) - len(continuation))))
        scores = score_ids(self._editable, texts, batch_tokens=self._batch_tokens)
        return [(found.log_likelihood, all(found.argmax_correct)) for found in scores]

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """The harness's own generation, batch after batch."""
        answers: dict[int, str] = {}
        settings = {"do_sample": False, "eos_token_id": end_tokens(self._editable)}
        with plain_generation(self._editable, **settings), torch.inference_mode():
            for batch in self.generation_batches(requests):
                self.batch_size_per_gpu = len(batch)
                texts = super().generate_until([requests[index] for index in batch], disable_tqdm=True)
                answers.update(zip(batch, texts, strict=True))
        return [answers[index] for index in range(len(requests))]

    def generation_batches(self, requests: Any) -> list[list[int]]:
        """Indices of requests that are generated together: one set of stop strings and lengths, like length."""
        sized = sorted(
            (repr(request.args[1]), -len(self.tok_encode(request.args[0])), index)
            for index, request in enumerate(requests)
        )
        batches: list[list[int]] = []
        group, room = None, 0
        for settings, negative, index in sized:
            width = self.new_tokens(requests[index]) - negative
            if settings != group or room < 1:  # the first of a batch is the longest
                batches.append([])
                group, room = settings, max(1, self._batch_tokens // width)
            batches[-1].append(index)
            room -= 1
        return batches

    def new_tokens(self, request: Any) -> int:
        """How many tokens a request may generate."""
        settings = request.args[1]
        return int(settings.get("max_gen_toks", settings.get("max_new_tokens", self.max_gen_toks)))
