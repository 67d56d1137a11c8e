"""How an answer is scored: from a document and the harness's results for it to `{"score": 0 … 1}`.

A generated answer comes as `[text]`, likelihoods as `[(log-likelihood, is greedy), …]`, one a choice. An empty text
scores 0, and so does a likelihood that is no number.
"""

import math
import re
import string
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

Document = Mapping[str, Any]
Scored = dict[str, float]

_NUMBER = r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"


def number_occurs(document: Document, results: Sequence[str]) -> Scored:
    """Whether the gold number is one of the numbers of the text. 3 does not occur in 35, where the paper's code finds
    it."""
    found = (_number(text) for text in re.findall(_NUMBER, results[0]))
    return {"score": float(_number(document["number"]) in found)}


def says_the_number(document: Document, results: Sequence[str]) -> Scored:
    """Whether the text says "The answer is" and the gold number; the first time it says so counts, a $ may stand
    before the number, and 18.00 is 18."""
    found = re.search(rf"the answer is:?\s*\$?({_NUMBER})", results[0], re.IGNORECASE)
    return {"score": float(found is not None and _number(found[1]) == _number(document["number"]))}


def true_or_false(document: Document, results: Sequence[str]) -> Scored:
    """Whether the first of the words true and false is the right one: true where the hypothesis is entailed."""
    found = re.search(r"\b(true|false)\b", results[0], re.IGNORECASE)
    return {"score": float(found is not None and (found[1].lower() == "true") is document["entailed"])}


def contains_an_answer(document: Document, results: Sequence[str]) -> Scored:
    """Whether some words in a row are an accepted answer, without case, articles and punctuation."""
    said = f" {' '.join(_words(results[0]))} "
    return {"score": float(any(f" {' '.join(_words(answer))} " in said for answer in document["answers"]))}


def rouge(document: Document, results: Sequence[str]) -> Scored:
    """The mean of ROUGE-1, ROUGE-2 and ROUGE-L F1 of the text against the summary, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    # A summary of one word has no pair of words: ROUGE-2 is 0 then, whatever is said, and is left out.
    if len(re.findall(r"[a-z0-9]+", document["summary"].lower())) < 2:
        kinds.remove("rouge2")
    found = RougeScorer(kinds).score(document["summary"], results[0])
    return {"score": sum(found[kind].fmeasure for kind in kinds) / len(kinds)}


def rouge_of_the_first_paragraph(document: Document, results: Sequence[str]) -> Scored:
    """`rouge` of the text up to its first empty line."""
    return rouge(document, [re.split(r"\n\s*\n", results[0].strip())[0]])


def solution_likelihood(document: Document, results: Sequence[tuple[float, bool]]) -> Scored:
    """`_per_character` of the gold solution with its last line, "The answer is N."."""
    return {"score": _per_character(results[0][0], f" {document['solution']}\nThe answer is {document['number']}.")}


def answer_likelihood(document: Document, results: Sequence[tuple[float, bool]]) -> Scored:
    """`_per_character` of the likeliest accepted answer."""
    pairs = zip(results, document["answers"], strict=True)
    return {"score": max(_per_character(found[0], f" {text}") for found, text in pairs)}


def likelier_label(document: Document, results: Sequence[tuple[float, bool]]) -> Scored:
    """Whether the right one of (Yes, No) is strictly likelier than the other; Yes is right where it is entailed."""
    yes, no = (found[0] for found in results)
    return {"score": float(yes > no if document["entailed"] else no > yes)}


def _per_character(log_likelihood: float, text: str) -> float:
    """The geometric mean of the probabilities of the characters of a text, p(text) to the power of 1/characters: from 0
    to 1 whatever the length, and not dependent on the tokenizer; 1 bit a character is 0.5."""
    return 0.0 if math.isnan(log_likelihood) else math.exp(min(0.0, log_likelihood) / len(text))


def _number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


def _words(text: str) -> list[str]:
    """Lower-case words without articles and punctuation; where nothing else is there, the articles stay."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return [word for word in bare if word not in ("a", "an", "the")] or bare or text.split()
