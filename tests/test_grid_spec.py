"""What a grid file may say, what it comes to, and what is said of one that is wrong or lacks something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import answer, run
from core import FACTS

from tether.errors import TetherError
from tether.experiment import GridSpec, grid_names, make_plan, read_spec, run_grid
from tether.experiment.plan import Job
from tether.experiment.spec import DatasetSpec, EditorSpec, EverySpec, ModelSpec, Override, Resources, When


def minimal(**changes: Any) -> dict[str, Any]:
    return {
        "name": "g",
        "models": ["smollm2"],
        "editors": ["rome"],
        "datasets": [{"name": "d", "facts": "facts.jsonl"}],
        "edits": [2],
        **changes,
    }


def spec_of(folder: Path, **changes: Any) -> GridSpec:
    (folder / "facts.jsonl").write_text("".join(f.model_dump_json(exclude_none=True) + "\n" for f in FACTS))
    (folder / "g.yaml").write_text(yaml.safe_dump(minimal(**changes)))
    return read_spec(folder / "g.yaml")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the shipped grids look, empty."""
    monkeypatch.setenv("TETHER_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TETHER_MEND", str(tmp_path / "mend.safetensors"))
    monkeypatch.setenv("TETHER_CORPUS", str(tmp_path / "corpus.txt"))
    return tmp_path / "data"


# --- what is wrong is named ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"datsets": []}, "key datsets is unknown: the keys there are name, title, models"),
        ({"datasets": [{"name": "d", "facts": "f", "lmit": 3}]}, "key datasets.0.lmit is unknown: .* facts, limit"),
        ({"overrides": [{"when": {"modl": "x"}}]}, "key overrides.0.when.modl is unknown: .*model, editor, dataset"),
        ({"resources": {"cpus": 1}}, "key resources.cpus is unknown: .*num_cpus"),
        ({"models": None}, "models = None"),
        ({"editors": ["romee"]}, "editors.0.method: 'romee' is no method: choose one of rome"),
        (
            {"editors": [{"method": "rome", "batch_size": 2}]},
            "batch_size 2 for model smollm2, .*: rome edits one fact at a time",
        ),
        ({"once": ["log1.2"]}, "once.0: 'log1.2' is no restraint: write none"),
        ({"once": ["alphabet:2"]}, "once.0: 'alphabet:2' is no restraint"),
        ({"once": ["log:0.5"]}, "once.0: log:0.5: α must be"),
        ({"every": [{"restrain": "none", "every": 2}]}, "every.0.restrain: none restrains nothing"),
        ({"every": [{"restrain": "log:e", "every": 0}]}, "every.0.every = 0"),
        ({"once": []}, "once and every are both empty for model smollm2, editor rome, dataset d"),
        ({"once": ["log:alpha"]}, "alpha is missing for model smollm2"),
        ({"once": ["log:alpha"], "alpha": 1}, "α must be a finite number above 1"),
        ({"edits": [0]}, "edits: write numbers of edits"),
        ({"edits": [-1, 3]}, "edits: write numbers of edits"),
        ({"datasets": [{"name": "d", "facts": "f", "metrics": ["bleu"]}]}, "datasets.0.metrics.0: bleu is no editing"),
        ({"analyses": ["spectra"]}, "analyses.0 = 'spectra'"),
        ({"editors": ["mend"]}, "editor is missing for .* name its file .*train-mend makes MEND's"),
        ({"editors": [{"method": "rome", "editor": "e"}]}, "editor is given for .* rome needs no trained one"),
        ({"models": ["a", "a"]}, "models: 'a' is given twice"),
        ({"seeds": [1, 1]}, "seeds: 1 is given twice"),
        ({"models": [{"name": "a/b"}]}, "models.0.name: 'a/b' is no name"),
        ({"overrides": [{"when": {"editor": "memit"}}]}, "overrides.0.when.editor 'memit' is none of rome"),
        ({"overrides": [{"when": {}, "leave_out": True}]}, "overrides leave out every cell"),
        ({"title": "for ${HOME}"}, r"title = 'for \$\{HOME\}': \$\{NAME\} may stand in facts, corpus, .* alone"),
        ({"models": ["${HOME}"]}, r"models.0 = '\$\{HOME\}': \$\{NAME\} may stand in"),
        ({"overrides": [{"when": {"editor": "${HOME}"}}]}, r"overrides.0.when.editor = .* may stand in"),
        ({"corpus": "${TETHER_NOT_SET}/x"}, r"corpus names \$\{TETHER_NOT_SET\}, which is not set"),
        ({"corpus": "${TETHER_ONE}/${TETHER_TWO}"}, "set the environment variables TETHER_ONE, TETHER_TWO"),
        ({"datasets": [{"name": "d", "facts": "${TETHER_NOT_SET}"}]}, r"datasets.0.facts names \$\{TETHER_NOT_SET\}"),
    ],
)
def test_a_wrong_grid_is_one_clear_line(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(TetherError, match=told) as caught:
        spec_of(tmp_path, **changes)
    assert str(caught.value).startswith(str(tmp_path / "g.yaml")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\nname: b\n", "key 'name' is given twice"),
        ("name: [", "is no YAML"),
        ("- a", "holds no keys"),
        ("", "holds no keys"),
        ("name: a", "key models is missing"),
    ],
)
def test_a_file_that_is_no_grid(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(TetherError, match=told) as caught:
        read_spec(tmp_path / "g.yaml")
    assert "\n" not in str(caught.value)


def test_no_such_grid(tmp_path: Path) -> None:
    with pytest.raises(TetherError, match="name a YAML file, or one of conceptedit, frontier, paper, smollm2"):
        read_spec(tmp_path / "nothing.yaml")
    done = run(tmp_path, "grid", "nothing")
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_an_unknown_ability_is_refused_before_anything_runs(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, abilities=["perplexity", "no_such_task"])
    with pytest.raises(TetherError, match="abilities: 'no_such_task' is none that can be measured"):
        make_plan(spec)


def test_an_ability_that_is_a_file_is_refused_before_it_runs(tmp_path: Path) -> None:
    """A task file of the harness may run Python of its own."""
    task = tmp_path / "task.yaml"
    task.write_text("task: mine\ndataset_path: json\nprocess_docs: !function evil.run\n")
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef run(docs):\n    return docs\n"
    )
    with pytest.raises(TetherError, match=r"task.yaml' is a task file, which can run any Python"):
        make_plan(spec_of(tmp_path, abilities=[str(task)]))
    assert not (tmp_path / "ran").exists()


# --- what is missing is named by a plan and refused by a run ---------------------------------------------------------


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"v_lr": 0.1, "learning_rate": 1}')
    (tmp_path / "tasks").mkdir()
    changes: dict[str, Any] = {
        "models": [{"name": "m", "load": "./model"}],
        "editors": [{"method": "mend", "editor": "e.safetensors"}, {"method": "rome", "settings": "settings.json"}],
        "datasets": [{"name": "d", "facts": "facts.jsonl", "skip": 3}, {"name": "none", "facts": "none.jsonl"}],
        "edits": [5], "corpus": "text.txt", "abilities": ["perplexity", "nli"], "abilities_data": "tasks",
    }  # fmt: skip
    plan = make_plan(spec_of(tmp_path, **changes))
    told = "\n".join(plan.missing)
    for what in (
        "models m: ", "editor: ", "e.safetensors (No such file", "settings.json has learning_rate, which rome does not",
        "facts.jsonl gives 3 facts, 5 edits are wanted", "none.jsonl (No such file", "corpus: ", "test-NLI.tsv",
    ):  # fmt: skip
        assert what in told
    assert len(plan.missing) == len(set(plan.missing)) == 7
    with pytest.raises(TetherError, match=r"and 6 more, see --plan") as caught:
        run_grid(tmp_path / "g.yaml", tmp_path / "out")
    assert plan.missing[0] in str(caught.value) and not (tmp_path / "out").exists()
    shown = answer(tmp_path, "grid", "g.yaml", "--plan")
    assert shown["missing"] == list(plan.missing) and len(shown["runs"]) == 4


# --- what a grid comes to --------------------------------------------------------------------------------------------


def test_ledgers_are_counted(tmp_path: Path) -> None:
    """One ledger a cell and seed for what is applied once; one for every schedule."""
    spec = spec_of(
        tmp_path, editors=["rome", "memit"], seeds=[0, 1], once=["none", "log:1.2", "log:e"], edits=[0, 2, 4],
        every=[{"restrain": "log:1.2", "every": 2}, {"restrain": "log:1.2", "every": 3}],
        overrides=[{"when": {"editor": "memit"}, "every": [], "edits": [3]}],
    )  # fmt: skip
    jobs = make_plan(spec).jobs
    assert len(jobs) == len({job.run.id for job in jobs}) == 2 * (1 + 2) + 2 * 1
    assert [(j.run.seed, j.run.method, j.run.every) for j in jobs] == [
        (seed, method, every) for seed in (0, 1) for method, every in
        (("rome", None), ("rome", 2), ("rome", 3), ("memit", None))
    ]  # fmt: skip
    assert [job.rows for job in jobs[:4]] == [1 + 2 * 3, 3, 3, 3]
    assert jobs[3].at == (3,) and jobs[0].restraints == ("none", "log:1.2", "log:e") and jobs[1].restraints == ()


def test_an_id_says_what_a_ledger_depends_on(tmp_path: Path) -> None:
    def ids(**changes: Any) -> set[str]:
        return {job.run.id for job in make_plan(spec_of(tmp_path, **changes)).jobs}

    base = ids()
    (name,) = base
    assert name.startswith("smollm2-rome-d-seed0-")
    # What is measured of it is not among it.
    assert base == ids(once=["log:1.2"], abilities=[], analyses=["spectrum"], quick=True, edits=[0, 1, 2], title="t")
    others = (
        {"edits": [3]}, {"seeds": [1]}, {"editors": ["r-rome"]}, {"corpus": "g.yaml"}, {"models": [{"name": "smollm2",
        "dtype": "float32"}]}, {"datasets": [{"name": "d", "facts": "facts.jsonl", "skip": 1}]},
        {"editors": [{"method": "rome", "layers": [3]}]},
    )  # fmt: skip
    for changes in others:
        assert not base & ids(**changes), changes
    (tmp_path / "other").mkdir()
    assert base == {job.run.id for job in make_plan(spec_of(tmp_path / "other")).jobs}
    # Without a corpus the moments are of text sampled from the model, and the id knows.
    assert base == ids(corpus="self")
    (job,) = make_plan(spec_of(tmp_path)).jobs
    assert job.plan.corpus == "self"
    with (tmp_path / "facts.jsonl").open("a") as handle:
        handle.write("\n")
    assert base != {job.run.id for job in make_plan(read_spec(tmp_path / "g.yaml")).jobs}


def test_a_job_travels_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = make_plan(spec_of(tmp_path, corpus="self")).jobs
    (tmp_path / "elsewhere/smollm2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")  # where a folder has the model's name
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert job.model.load == "smollm2" and len(job.facts()) == 2


def test_paths_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path / "somewhere"))
    (tmp_path / "model").mkdir()
    spec = spec_of(tmp_path, models=["model", "org/name"][:1], corpus="${PLACE}/a.txt", abilities_data="hub")
    assert spec.models[0].load == str(tmp_path / "model") and spec.corpus == str(tmp_path / "somewhere/a.txt")
    assert spec.abilities_data == "hub" and spec.datasets[0].facts == str(tmp_path / "facts.jsonl")
    home = spec_of(tmp_path, models=[{"name": "x", "load": "${PLACE}/m"}], abilities_data="${PLACE}")
    assert home.models[0].load == str(tmp_path / "somewhere/m") and home.abilities_data == str(tmp_path / "somewhere")
    hub = spec_of(tmp_path, models=[{"name": "x", "load": "org/name"}])
    assert hub.models[0].load == "org/name"


def test_a_method_without_randomness_runs_with_one_seed(tmp_path: Path) -> None:
    editors = [{"method": "mend", "editor": "e.safetensors"}, "rome"]
    plan = make_plan(spec_of(tmp_path, editors=editors, seeds=[3, 4]))
    assert [(j.run.method, j.run.seed) for j in plan.jobs] == [("mend", 3), ("rome", 3), ("rome", 4)]
    assert len(plan.notes) == 1 and "mend on d does not depend on the seed" in plan.notes[0]
    shuffled = [{"name": "d", "facts": "facts.jsonl", "shuffle": True}]
    plan = make_plan(spec_of(tmp_path, editors=editors, seeds=[3, 4], datasets=shuffled))
    assert len(plan.jobs) == 4 and not plan.notes
    assert plan.jobs[0].facts() == plan.jobs[1].facts() != plan.jobs[2].facts()


# --- grids that come with tether --------------------------------------------------------------------------------------


def test_which_come_with_tether() -> None:
    assert grid_names() == ("conceptedit", "frontier", "paper", "smollm2")


def test_the_papers_grid(data: Path) -> None:
    """Table 4: α by model, editor and data set; no file and no model is needed to say so."""
    plan = make_plan(read_spec("paper"))
    alpha = {
        (job.run.model, job.run.method, job.run.dataset): job.restraints[1]
        for job in plan.jobs
        if job.run.every is None
    }
    e, cells = "log:e", ("gpt2-xl", "llama-2-7b", "llama-3-8b")
    counterfact = [[alpha[model, method, "counterfact"] for method in ("rome", "memit", "mend")] for model in cells]
    assert counterfact == [["log:1.2"] * 3, ["log:1.2", e, "log:1.2"], ["log:1.5", e, "log:1.2"]]
    assert [alpha["llama-2-7b", method, "zsre"] for method in ("rome", "memit", "mend")] == ["log:1.2", e, e]
    assert len(alpha) == 18 and all(job.restraints[::2] == ("none", "linear:2") for job in plan.jobs if job.restraints)
    multiple = [job.run for job in plan.jobs if job.run.every is not None]
    assert {(run.method, run.every) for run in multiple} == {("rome", 50)} and len(multiple) == 6
    assert {"paper_reasoning", "paper_nli", "paper_qa", "paper_summarization"} <= set(
        plan.jobs[0].measurement.abilities
    )
    assert any("counterfact.json (No such file" in what for what in plan.missing)


def test_the_other_grids(data: Path) -> None:
    (concept,) = make_plan(read_spec("conceptedit")).jobs
    assert concept.restraints == ("none", "log:1.2") and concept.at == (0, 20, 50, 100, 200)
    assert concept.dataset.metrics == ("match", "generate", "instance_change")
    jobs = make_plan(read_spec("smollm2")).jobs
    assert [(job.run.method, job.run.restrain, job.run.every, job.run.edits) for job in jobs] == [
        ("rome", "none", None, 200), ("rome", "log:1.2", 10, 200), ("memit", "none", None, 300),
        ("mend", "none", None, 100),
    ]  # fmt: skip
    assert jobs[0].restraints == ("none", "log:1.2", "log:e", "linear:2") and jobs[2].at == (0, 100, 200, 300)
    assert jobs[3].at == (0, 10, 50, 100)
    jobs = make_plan(read_spec("frontier")).jobs
    assert [(job.run.method, job.run.batch_size, job.at) for job in jobs] == [
        ("r-rome", 1, (0, 100, 300)), ("memit", 10, (0, 100, 300))
    ]  # fmt: skip
    assert [one.partition(":")[0] for one in jobs[0].restraints] == [
        "none", "log", "linear", "rect", "norm", "null_space", "sphere", "data_log"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["smollm2", "paper", "conceptedit", "frontier"])
def test_the_plan_of_a_shipped_grid(data: Path, tmp_path: Path, name: str) -> None:
    document = answer(tmp_path, "grid", name, "--plan")
    assert document["grid"] == name and document["missing"]
    assert {run["state"] for run in document["runs"]} == {"new"} and not (tmp_path / f"grid-{name}").exists()
    text = run(tmp_path, "grid", name, "--plan").stdout
    assert all(run["id"] in text for run in document["runs"]) and "missing: " in text
    json.dumps(document)


def test_a_shipped_grid_needs_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TETHER_DATA", raising=False)
    with pytest.raises(TetherError, match=r"\$\{TETHER_DATA\}, which is not set"):
        read_spec("paper")


def test_the_documents_example_and_keys(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/grids.md").read_text()
    (tmp_path / "mine.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    plan = make_plan(read_spec(tmp_path / "mine.yaml"))
    assert len(plan.jobs) == 9 and "= 9 runs" in page
    assert {(job.run.method, job.restraints[1]) for job in plan.jobs if job.restraints} == {
        ("rome", "log:1.2"), ("memit", "log:e")
    }  # fmt: skip
    for kind in (GridSpec, ModelSpec, EditorSpec, DatasetSpec, EverySpec, Override, Resources, When):
        for name in kind.model_fields:
            assert f"`{name}`" in page or f"{name}," in page or f"{name}}}" in page or f"{name}:" in page, name


def test_a_restraint_that_needs_moments_needs_a_method_that_has_them(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"editors": ["r-rome", "ft"], "once": ["none", "norm:1+null_space:0.5"]}
    with pytest.raises(TetherError, match=r"null_space:0\.5 for .* editor ft, .* and ft collects none; leave it out"):
        spec_of(tmp_path, **wanted)
    spec = spec_of(tmp_path, **wanted, overrides=[{"when": {"editor": "ft"}, "once": ["none", "norm:1"]}])
    assert [cell.once[1] for cell in spec.cells()] == ["norm:1+null_space:0.5", "norm:1"]


def test_settings_stand_in_the_grid(tmp_path: Path) -> None:
    """A file of settings, or the settings themselves: both go into the plan, and what differs gives another run."""

    def job(**settings: Any) -> Job:
        (found,) = make_plan(spec_of(tmp_path, editors=[{"method": "rome", "settings": settings}])).jobs
        assert Job.model_validate_json(found.model_dump_json()) == found
        return found

    one, other = job(v_lr=0.1), job(v_lr=0.2)
    assert one.plan.settings == {"v_lr": 0.1} and one.run.id != other.run.id and one.run.id == job(v_lr=0.1).run.id
    wrong = make_plan(spec_of(tmp_path, editors=[{"method": "rome", "settings": {"v_rate": 1}}]))
    assert any("settings of rome have v_rate, which rome does not know" in line for line in wrong.missing)
