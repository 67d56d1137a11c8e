"""The general abilities: what is asked, how it is scored, and that nothing is measured twice."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core import FACTS, SETTINGS, bits, editable, random_update, same_bits
from test_cli import run
from tiny import save, tiny_model

import tether
from tether.errors import BadSettingsError, TetherError
from tether.evaluation import ABILITIES, measure_abilities
from tether.evaluation.abilities.harness import quiet
from tether.evaluation.abilities.run import AbilityRun, ability_data, ability_tasks, in_words, probe
from tether.evaluation.abilities.tasks import read_yaml, task_file, task_names
from tether.evaluation.abilities.tasks.documents import BUILT_IN, FILES, read
from tether.evaluation.abilities.tasks.scoring import (
    answer_likelihood,
    contains_an_answer,
    likelier_label,
    number_occurs,
    rouge,
    says_the_number,
    solution_likelihood,
    true_or_false,
)
from tether.models import EditableModel, load

pytest.importorskip("lm_eval")
GENERATED = ("paper_reasoning", "paper_nli", "paper_qa", "paper_summarization", "reasoning", "summarization")
LIKELIHOOD = ("reasoning_likelihood", "qa", "nli")
SOURCES = [None, pytest.param("tasks", marks=pytest.mark.data)]

Document = dict[str, Any]


def gold(document: Document) -> str:
    """What a perfect answerer says."""
    if "number" in document:
        return f"The answer is {document['number']}."
    if "entailed" in document:
        return " True" if document["entailed"] else " False"
    return str(document["answers"][-1] if "answers" in document else document["summary"])


def answerer(say: Callable[[Document], str], likely: Callable[[Document, str], float]) -> Any:
    """A model for the harness that answers from the documents themselves."""
    from lm_eval.api.model import LM

    class Answerer(LM):
        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [say(request.doc) for request in requests]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return [(likely(request.doc, request.args[1].strip()), False) for request in requests]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            raise NotImplementedError

    return Answerer()


def right_label(document: Document, choice: str) -> float:
    if "entailed" not in document:
        return 0.0
    return 0.0 if (choice == "Yes") is document["entailed"] else -1.0


def task(name: str, data: str | None = None, limit: int | None = None) -> Any:
    [found] = ability_tasks([name], ability_data(data), limit=limit, trust_task_files=True)
    return found


# --- what is asked ----------------------------------------------------------------------------------------------


def prompt_and_settings(name: str, document: Document) -> tuple[str, Any]:
    loaded = task(name).loaded
    settings = loaded.config.generation_kwargs
    return loaded.doc_to_text(document), settings and settings["max_gen_toks"]


def test_the_papers_prompts_word_by_word() -> None:
    sum_ = {"question": "How many?", "hint": "2+2=<<2+2=4>>4 eggs.", "solution": "2+2=4 eggs.", "number": "4"}
    assert prompt_and_settings("paper_reasoning", sum_) == (
        "Q: How many? A: Let's think step by step. 2+2=<<2+2=4>>4 eggs. Therefore, the answer (arabic numerals) is:", 5
    )  # fmt: skip
    pair = {"premise": "It rains.", "hypothesis": "The street is wet", "entailed": True}
    assert prompt_and_settings("paper_nli", pair) == (
        "It rains. entails the The street is wet. True or False? answer:", 1
    )  # fmt: skip
    asked = {"question": "who?", "answers": ["Ann"], "passage": "Ann did."}
    assert prompt_and_settings("paper_qa", asked) == (
        "Refer to the passage below and answer the following question. Passage: Ann did. Question: who?. Answer:", 20
    )  # fmt: skip
    talk = {"dialogue": "A: Hi\r\nB: Hi", "summary": "They greet."}
    assert prompt_and_settings("paper_summarization", talk) == ("A: Hi\r\nB: Hi\nTL;DR:", 25)
    assert [task_file(name).size for name in GENERATED[:4]] == [358, 299, 261, 149]


def test_the_sound_versions_show_no_hint_and_no_passage() -> None:
    sum_ = {"question": "How many?", "hint": "secret", "solution": "secret", "number": "4"}
    for name in ("reasoning", "reasoning_likelihood"):
        assert "secret" not in prompt_and_settings(name, sum_)[0]
    asked = {"question": "who did it ?", "answers": ["Ann"], "passage": "secret"}
    assert prompt_and_settings("qa", asked)[0] == "Question: who did it?\nAnswer:"
    talk = {"dialogue": "A: Hi\r\nB: Hi", "summary": "They greet."}
    assert prompt_and_settings("summarization", talk)[0].startswith("Conversation:\nA: Hi\nB: Hi\n\nSummary")


# --- how it is scored -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", SOURCES)
@pytest.mark.parametrize("name", [*GENERATED, *LIKELIHOOD])
def test_a_perfect_answerer_scores_100_and_a_silent_one_0(name: str, data: str | None) -> None:
    if data is not None:
        if "TETHER_DATA" not in os.environ:
            pytest.skip("TETHER_DATA names no folder of data sets")
        data = str(Path(os.environ["TETHER_DATA"]) / data)
    asked = task(name, data)
    perfect = asked.measure_with(answerer(gold, right_label))
    silent = asked.measure_with(answerer(lambda _: "", lambda *_: -math.inf))
    assert perfect.value == pytest.approx(100) and silent.value == 0
    assert perfect.n == asked.items == len(perfect.records) and perfect.stderr == pytest.approx(0)
    assert len({record["item"] for record in perfect.records}) == perfect.n


def test_a_perfect_answerer_of_swapped_labels_scores_0() -> None:
    assert (
        task("paper_nli").measure_with(answerer(lambda d: gold({"entailed": not d["entailed"]}), right_label)).value
        == 0
    )
    assert task("nli").measure_with(answerer(gold, lambda d, c: -1 - right_label(d, c))).value == 0


SCORES: list[tuple[Callable[..., dict[str, float]], Document, Any, float]] = [
    (number_occurs, {"number": "3"}, " 3.", 1),
    (number_occurs, {"number": "3"}, " 35", 0),
    (number_occurs, {"number": "70000"}, " $70,000 in", 1),
    (number_occurs, {"number": "-4"}, "it is -4", 1),
    (number_occurs, {"number": "2.5"}, "2.50", 1),
    (says_the_number, {"number": "18"}, "16 - 3 = 13. The answer is $18.", 1),
    (says_the_number, {"number": "18"}, "the answer is: 18.00", 1),
    (says_the_number, {"number": "18"}, "The answer is 9. The answer is 18.", 0),
    (says_the_number, {"number": "18"}, "It is 18.", 0),
    (true_or_false, {"entailed": True}, " true", 1),
    (true_or_false, {"entailed": False}, " False", 1),
    (true_or_false, {"entailed": False}, " True", 0),
    (true_or_false, {"entailed": False}, " Untrue", 0),
    (true_or_false, {"entailed": False}, " No", 0),
    (contains_an_answer, {"answers": ["May 18 , 2018"]}, "It was on May 18, 2018.", 1),
    (contains_an_answer, {"answers": ["the heart", "Herz"]}, " It's your Heart!", 1),
    (contains_an_answer, {"answers": ["art"]}, " heart", 0),
    (contains_an_answer, {"answers": ["new york"]}, " York is new", 0),
    (contains_an_answer, {"answers": ["The The"]}, " by The The", 0),
    (contains_an_answer, {"answers": ["The The"]}, "the the", 1),
    (contains_an_answer, {"answers": ["?"]}, "", 0),
    (rouge, {"summary": "the cat sat"}, "the cat sat", 1),
    (rouge, {"summary": "Yes!"}, "yes", 1),
    (rouge, {"summary": "the cat sat"}, "the dog sat", (2 / 3 + 0 + 2 / 3) / 3),
]  # fmt: skip


@pytest.mark.parametrize(("score", "document", "said", "expected"), SCORES)
def test_scores_of_texts(
    score: Callable[..., dict[str, float]], document: Document, said: str, expected: float
) -> None:
    assert score(document, [said])["score"] == pytest.approx(expected)


def test_scores_of_likelihoods() -> None:
    half = math.log(0.5)
    solved = {"solution": "1+1=2", "number": "2"}
    length = len(" 1+1=2\nThe answer is 2.")
    assert solution_likelihood(solved, [(half * length, False)])["score"] == pytest.approx(0.5)
    asked = {"answers": ["Rome", "the city of Rome"]}
    assert answer_likelihood(asked, [(half * 5, False), (half * 34, False)])["score"] == pytest.approx(0.5)
    assert answer_likelihood({"answers": ["x"]}, [(math.nan, False)])["score"] == 0
    for entailed in (True, False):  # a tie is no answer
        assert likelier_label({"entailed": entailed}, [(-1.0, False), (-1.0, False)])["score"] == 0
        assert likelier_label({"entailed": entailed}, [(math.nan, False), (math.nan, False)])["score"] == 0


# --- data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_the_small_sets(kind: str) -> None:
    documents = read(kind)
    assert len(documents) >= 24
    if kind == "reasoning":
        for document in documents:  # every calculator mark is right, and the last one is the answer
            steps = [part.split(">>")[0] for part in document["hint"].split("<<")[1:]]
            for step in steps:
                left, right = step.split("=")
                assert eval(left, {"__builtins__": {}}) == int(right)
            assert steps[-1].split("=")[1] == document["number"]
            assert "<<" not in document["solution"] and document["number"] in document["solution"]
    if kind == "qa":
        for document in documents:
            assert contains_an_answer(document, [document["passage"]])["score"] == 1, document
    if kind == "nli":
        assert 2 * sum(document["entailed"] for document in documents) == len(documents)


def test_no_question_counts_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = json.dumps({"question": "who?", "answer": ["Ann"], "output": ["Ann did."]}) + "\n"
    other = json.dumps({"question": "why?", "answer": "rain", "output": ["It rained, and Ann said so."]}) + "\n"
    (tmp_path / FILES["qa"]).write_text(line + other + line)
    found = task("paper_qa", str(tmp_path)).measure_with(answerer(lambda _: "Ann and Ann", right_label))
    assert (found.value, found.n) == (50, 2)
    assert caplog.text.count("asks 1 of its questions twice") == 1


def test_the_labels_of_rte_are_the_right_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILES["nli"]).write_text(
        "index\tsentence1\tsentence2\tlabel\n"
        '0\tIt rains.\tIt is "wet".\tentailment\n'
        "1\tIt rains.\tIt is dry.\tnot_entailment\n"
    )
    documents = read("nli", tmp_path)
    assert [(d["hypothesis"], d["entailed"]) for d in documents] == [('It is "wet".', True), ("It is dry.", False)]
    assert [gold(document) for document in documents] == [" True", " False"]
    assert [true_or_false(documents[1], [text])["score"] for text in (" True", " False")] == [0, 1]
    import datasets

    pairs = enumerate(("It is wet.", "It is dry."))
    glue = [{"sentence1": "It rains.", "sentence2": text, "label": label} for label, text in pairs]
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: glue)
    assert [document["entailed"] for document in read("nli", hub=True)] == [True, False]  # GLUE: 0 is entailment


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("reasoning", '{"question": "q", "answer": "no number"}\n', r"record 1 is none of reasoning"),
        ("reasoning", '{"question": ', r"is damaged"),
        ("nli", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", r"label 'maybe' is not entailment"),
        ("qa", '{"question": "q", "answer": [], "output": ["p"]}\n', r"there is no answer"),
        ("qa", "", r"has no record"),
        ("summarization", '[{"dialogue": "A: hi"}]', r"record 1 is none of summarization"),
    ],
)
def test_damaged_data_are_named(tmp_path: Path, kind: str, text: str, message: str) -> None:
    (tmp_path / FILES[kind]).write_text(text)
    with pytest.raises(TetherError, match=message) as error:
        read(kind, tmp_path)
    assert "\n" not in str(error.value)


def test_what_abilities_data_may_be(tmp_path: Path) -> None:
    text = tmp_path / "perplexity.txt"
    text.write_text("Plain text.")
    assert ability_data(text).text == "Plain text." and ability_data(text).folder is None
    assert ability_data(tmp_path).text == "Plain text." and ability_data(tmp_path).folder == tmp_path
    assert ability_data("hub").hub and not ability_data().hub
    assert ability_data(tmp_path, text="Mine").text == "Mine"
    with pytest.raises(TetherError, match=r"nowhere is not there: give a folder"):
        ability_data(tmp_path / "nowhere")
    with pytest.raises(TetherError, match=r"test-NLI.tsv cannot be read .* the nli tasks need it"):
        ability_tasks(["nli"], ability_data(tmp_path))
    with pytest.raises(TetherError, match=r"passages that are not on the hub"):
        ability_tasks(["paper_qa"], ability_data("hub"))


def test_sizes() -> None:
    names, data = ["perplexity", "nli", "nli"], ability_data()
    assert [found.items for found in ability_tasks(names, data)] == [0, 44]
    assert [found.items for found in ability_tasks(names, data, quick=True)] == [0, 40]
    assert [found.items for found in ability_tasks(names, data, quick=True, limit=3)] == [0, 3]
    with pytest.raises(TetherError, match=r"limit 0: a task needs at least 1"):
        ability_tasks(names, data, limit=0)


# --- other tasks of the harness ---------------------------------------------------------------------------------


def yaml_task(folder: Path, metric: str = "acc", aggregation: str = "mean") -> str:
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps({"q": f"1+{i}=", "choices": ["1", "2"], "gold": i}) + "\n" for i in (0, 1)))
    file = folder / "sums.yaml"
    file.write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: '{data}'}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        f"metric_list: [{{metric: {metric}, aggregation: {aggregation}, higher_is_better: true}}]\n"
    )
    return str(file)


def test_a_task_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    found = task(yaml_task(tmp_path))
    measured = found.measure_with(answerer(gold, lambda _, choice: 0.0 if choice == "1" else -1.0))
    assert (found.name, measured.value, measured.n) == ("sums", 50, 2)
    assert [record["target"] for record in measured.records] == ["1", "2"]
    with pytest.raises(TetherError, match=r"'sums' has no score that is a mean over its items \(it has f1\)"):
        task(yaml_task(tmp_path, "f1", "f1"))


def test_a_task_file_is_read_only_where_it_is_trusted(tmp_path: Path) -> None:
    file = yaml_task(tmp_path)
    (tmp_path / "code.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\nf = 1\n")
    Path(file).write_text(Path(file).read_text() + "process_docs: !function code.f\n")
    with pytest.raises(
        BadSettingsError, match=r"sums.yaml' is a task file, which can run any Python .* \(--trust-task"
    ):
        ability_tasks([file], ability_data())
    with pytest.raises(BadSettingsError, match=r"is a task file"):
        tether.evaluate(editable("llama"), FACTS, abilities=[file])
    assert not (tmp_path / "ran").exists()


def test_a_task_file_is_looked_through_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("task: base\ndataset_path: somebody/data\ndoc_to_text: !function no.such\n")
    (tmp_path / "own.yaml").write_text("include: base.yaml\ntask: own\n")
    assert read_yaml(tmp_path / "own.yaml") == {
        "task": "own",
        "dataset_path": "somebody/data",
        "doc_to_text": "no.such",
    }
    with pytest.raises(BadSettingsError, match=r"own.yaml' reads its data from the hub \(somebody/data\)"):
        task(str(tmp_path / "own.yaml"))


def test_versions_are_numbers_not_hashes_of_code() -> None:
    assert {task_file(name).version for name in task_names()} == {"1.1"}


def test_other_threads_are_heard_while_a_task_is_measured(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        thread = threading.Thread(target=lambda: sys.stderr.write("a warning of another thread"))
        thread.start()
        thread.join()
    found = task("nli", limit=2).measure(editable("llama"))
    said = capfd.readouterr().err
    assert found.n == 2 and "a warning of another thread" in said and "it/s" not in said


def test_tasks_of_the_hub_are_not_downloaded_unasked() -> None:
    with pytest.raises(TetherError, match=r"'arc_easy' reads its data from the hub \(allenai/ai2_arc\): add --abil"):
        ability_tasks(["arc_easy"], ability_data())


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    from tether.evaluation.abilities import harness

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(harness, "version", missing)
    with pytest.raises(TetherError, match=r"not installed: pip install 'tether\[abilities\]'"):
        ability_tasks(["perplexity", "nli"], ability_data())
    assert [found.name for found in ability_tasks(["perplexity"], ability_data())] == ["perplexity"]


def test_the_command_starts_without_the_harness() -> None:
    heavy = {"lm_eval", "datasets", "rouge_score"}
    program = f"import sys, tether.cli.evaluate, tether.cli.compare; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- on a model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_ability_of_a_model_which_stays_as_it_was(family: str) -> None:
    model = editable(family)
    before, settings = bits(model), model.hf.generation_config
    pad = model.tokenizer.pad_token
    found = measure_abilities(model, ABILITIES, limit=2)
    assert tuple(found) == ABILITIES
    assert all(found[name].n == 2 and 0 <= found[name].value <= 100 for name in task_names())
    json.dumps([record for result in found.values() for record in result.records], allow_nan=False)
    assert same_bits(model, before)
    assert model.hf.generation_config is settings and model.tokenizer.pad_token == pad


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_fast_paths_equal_the_harness(family: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from tether.evaluation.abilities.harness_model import HarnessModel

    model = editable(family)
    texts = [
        ("The Eiffel Tower is", " in Paris"),
        ("The Eiffel Tower is", " in London, I think"),
        ("Who", " wrote it?"),
    ]
    texts += [("x " * 300, "y")]  # longer than the model
    long = ("It was written in the year", "Big Ben", "Because it is so, the answer is:")
    plain, ours = (
        HFLM(pretrained=model.hf, tokenizer=model.tokenizer, batch_size=2),
        HarnessModel(model, batch_tokens=64),
    )

    def requests(kind: str, arguments: Sequence[Any]) -> list[Instance]:
        return [Instance(kind, {}, a, i, ("t", i, 1)) for i, a in enumerate(arguments)]

    scored = requests("loglikelihood", texts)
    expected, got = plain.loglikelihood(scored, disable_tqdm=True), ours.loglikelihood(scored, disable_tqdm=True)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [ll for ll, _ in got] == pytest.approx([ll for ll, _ in expected], rel=1e-4)

    model.hf.generation_config.repetition_penalty = 9.0  # a checkpoint's own settings play no part
    asked = requests(
        "generate_until", [(text, {"until": ["."], "max_gen_toks": 5 + i % 2}) for i, text in enumerate(long)]
    )
    answers = ours.generate_until(asked)
    assert sorted(index for batch in ours.generation_batches(asked) for index in batch) == [0, 1, 2]
    model.hf.generation_config.repetition_penalty = None
    assert answers == plain.generate_until(asked, disable_tqdm=True)


# --- the cache --------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EditableModel:
    """A model from a folder, and an empty cache."""
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    return load(save(*tiny_model("llama"), tmp_path / "model"))


def measured(caplog: pytest.LogCaptureFixture, run: Callable[[], object]) -> list[str]:
    """The abilities that were measured, not remembered."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "tether.evaluation"):
        run()
    return [name for name in ABILITIES if f"\n{name}: " in "\n" + "\n".join(caplog.messages)]


def test_nothing_is_measured_twice(kept: EditableModel, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    names = ("perplexity", "nli", "paper_nli")
    data = ability_data()

    def run(limit: int = 3, names: Sequence[str] = names, text: str | None = None) -> Any:
        return measure_abilities(kept, names, ability_data(text=text), limit=limit)

    first = measure_abilities(kept, names, data, limit=3)
    assert measured(caplog, run) == []
    assert measure_abilities(kept, names, data, limit=3) == first
    assert measured(caplog, lambda: run(limit=4)) == ["nli", "paper_nli"]
    assert measured(caplog, lambda: run(text="Another text.")) == ["perplexity"]
    weight = kept.weight_name(1)
    update = random_update(*kept.weight(weight).shape, rank=1, seed=0)
    with kept.provisional({weight: update}):
        assert measured(caplog, run) == list(names)
        assert measured(caplog, run) == []
    assert measured(caplog, run) == []
    again = load(tmp_path / "model")
    with again.provisional({weight: update}):  # as from another ledger
        assert measured(caplog, lambda: measure_abilities(again, names, data, limit=3)) == []
    half = load(tmp_path / "model", dtype="bfloat16")
    assert measured(caplog, lambda: measure_abilities(half, ["nli"], data, limit=3)) == ["nli"]


def test_an_interrupted_run_goes_on_with_the_next_task(
    kept: EditableModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ability_tasks(["nli", "qa", "paper_nli"], ability_data(), limit=2)

    def interrupted(_: EditableModel) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tasks[2], "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            AbilityRun(kept, tasks).measure()
    assert measured(caplog, AbilityRun(kept, tasks).measure) == ["paper_nli"]


def test_a_damaged_cache_is_told_and_measured_anew(
    kept: EditableModel, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    first = measure_abilities(kept, ["perplexity"], ability_data(text="Big Ben is in London."))
    [file] = (tmp_path / "cache" / "abilities").glob("*.json")
    file.write_text(file.read_text()[:-9])
    again = measure_abilities(kept, ["perplexity"], ability_data(text="Big Ben is in London."))
    assert "is damaged: measured anew" in caplog.text and again == first


def test_an_update_is_hashed_once(kept: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Sha256:
        def __init__(self, data: bytes = b"") -> None:
            self.real = sha256(data)

        def update(self, data: Any) -> None:
            read.append(len(bytes(data)))
            self.real.update(data)

        def hexdigest(self) -> str:
            return self.real.hexdigest()

    weight = kept.weight_name(1)
    p, q = kept.weight(weight).shape
    one, other = (random_update(p, q, 1, seed) for seed in (1, 2))
    size = 4 * p * q
    tasks = ability_tasks(["nli", "perplexity"], ability_data(), limit=2)
    run = AbilityRun(kept, tasks)
    monkeypatch.setattr("tether.evaluation.abilities.cache.hashlib", SimpleNamespace(sha256=Sha256))
    with kept.provisional({weight: one}):
        first = run.measure()
        assert run.measure() == first
        assert read.count(size) == 1
    with kept.provisional({weight: other}):
        assert run.measure() != first
        assert read.count(size) == 2
    with kept.provisional({weight: one}):
        assert run.measure() == first


def test_a_model_made_in_memory_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path))
    measure_abilities(editable("llama"), ["perplexity"])
    assert not list(tmp_path.iterdir())


# --- how long -----------------------------------------------------------------------------------------------------


def test_how_long_it_takes_is_told_first(kept: EditableModel, caplog: pytest.LogCaptureFixture) -> None:
    run = AbilityRun(kept, ability_tasks(["nli", "paper_nli"], ability_data(), limit=4))
    with caplog.at_level(logging.INFO, "tether.evaluation"):
        run.measure(rows_left=3)
    first, second, third, *rest = caplog.messages
    assert first.startswith("general abilities of a row: nli (4 items, about ")
    assert "for 3 rows" in second and third.endswith("up to 25.0 points")
    assert [line.split(":")[0] for line in rest] == ["nli", "paper_nli"]


def test_the_work_is_counted() -> None:
    model = editable("llama")
    few, many = (task("paper_qa", limit=limit).work(model) for limit in (2, 4))
    assert many.read > few.read > 0 and few.rows == 2 * 20 and many.rows == 4 * 20 and few.steps <= few.rows
    assert task("qa", limit=2).work(model).steps == 0
    speed = probe(model)
    assert 0 < speed.seconds(few) < speed.seconds(many)
    assert [in_words(seconds) for seconds in (0.2, 80, 600, 7200)] == [
        "about 1 s",
        "about 80 s",
        "about 10 min",
        "about 2.0 h",
    ]


# --- the command --------------------------------------------------------------------------------------------------


def test_the_whole_way_by_the_command(tmp_path: Path) -> None:
    save(*tiny_model("llama"), tmp_path / "model")
    (tmp_path / "facts.jsonl").write_text("\n".join(fact.model_dump_json(exclude_none=True) for fact in FACTS))
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "corpus.txt").write_text("The Eiffel Tower is in the city of Paris, and you know that. " * 200)
    edited = run(
        tmp_path, "edit", "facts.jsonl", "--model", "model", "--method", "r-rome", "--out", "ledger", "--limit", "2",
        "--corpus", "corpus.txt", "--settings", "settings.json",
    )  # fmt: skip
    assert edited.returncode == 0, edited.stderr
    words = ("evaluate", "ledger", "--at", "0,2", "--restrain", "none,log:e", "--metrics", "compare", "--out", "r.json")
    asked = ("--abilities", "perplexity,nli,paper_nli", "--limit", "3")
    done = run(tmp_path, *words, *asked, "--json")
    assert done.returncode == 0, done.stderr
    assert "general abilities of a row: " in done.stderr
    document = json.loads(done.stdout)
    assert [row["abilities"]["nli"]["n"] for row in document["rows"]] == [3, 3, 3]
    assert set(document["rows"][0]["abilities"]) == {"perplexity", "nli", "paper_nli"}
    assert document["settings"]["abilities"]["nli"]["items"] == 3
    again = run(tmp_path, *words[:-1], "s.json", *asked)
    assert "general abilities of a row" not in again.stderr  # everything is in the cache
    assert "| edits | restraint | perplexity (n " in again.stdout
    verdicts = json.loads(run(tmp_path, "compare", "r.json", "--json").stdout)["comparisons"]
    assert [(v["ability"], v["row"]) for v in verdicts] == [
        (ability, [2, "log:e"]) for ability in ("perplexity", "nli", "paper_nli")
    ]
    missing = run(tmp_path, *words[:-1], "t.json", "--abilities", "nli", "--abilities-data", "nowhere")
    assert missing.returncode == 1 and missing.stderr.startswith("tether: nowhere is not there")
    assert missing.stderr.count("\n") == 1
    assert run(tmp_path, *words, *asked[:2], "--limit", "0").returncode == 2


def test_the_small_sets_are_in_the_package() -> None:
    assert all((BUILT_IN / file).is_file() for file in FILES.values())
