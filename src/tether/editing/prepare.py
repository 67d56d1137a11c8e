"""What all edits of a ledger depend on: put together for a new ledger, found again for one that goes on."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from tether.algebra.spectrum import Spectrum
from tether.editing.plan import EditPlan, Schedule
from tether.editors import EDITORS, Method, Trained
from tether.editors.corpus import Corpus
from tether.editors.moments import Moments, cached_moments, moments, moments_keys, placed, sized
from tether.editors.settings import Hparams, settings_for
from tether.engine import LOCAL, Engine
from tether.errors import BadLedgerError, BadSettingsError, TetherError, WrongModelError, pydantic_line
from tether.ledger import IMPORT, EditorRecord, Header, MomentsRecord, WeightRecord, now
from tether.models import EditableModel, find_anatomy
from tether.models.sampling import sample_prefixes
from tether.storage.versions import versions

logger = logging.getLogger(__name__)


def trained_editor(model: EditableModel, method: Method, plan: EditPlan) -> Trained | None:
    """The trained editor of a new ledger; None for a method without one."""
    editor, name = plan.editor, method.name
    if method.open_trained is None:
        if editor is not None:
            raise BadSettingsError(f"editor {editor}: {name} needs no trained editor; name none")
        return None
    if editor is None:
        raise BadSettingsError(f"{name} edits with a trained editor: name its file (tether train-mend makes MEND's)")
    trained = method.open_trained(editor, model)
    made_for = trained.settings(None).layers
    if plan.layers is not None and plan.layers != made_for:
        raise BadSettingsError(f"layers {plan.layers}: the editor {editor} was trained for {made_for}; name none")
    return trained


def recorded_editor(model: EditableModel, header: Header, editor: Path | None) -> Trained | None:
    """The trained editor a ledger was made with, from where it was or from `editor`."""
    path = editor if header.editor is None else editor or Path(header.editor.path)
    if header.editor is not None and path is not None and not path.is_file():
        raise TetherError(f"editor {path} of this ledger is gone: put it back or name a copy, further edits need it")
    trained = trained_editor(model, EDITORS[header.method], EditPlan(editor=path))
    if trained is not None and header.editor is not None and trained.sha256 != header.editor.sha256:
        raise TetherError(
            f"editor {path} is not the one this ledger was made with (sha256 {trained.sha256[:12]}, the ledger's "
            f"{header.editor.sha256[:12]}); name that one or make a new ledger"
        )
    return trained


def new_header(
    model: EditableModel, method: Method, plan: EditPlan, schedule: Schedule, trained: Trained | None, *,
    text: Corpus | None = None, engine: Engine = LOCAL,
) -> Header:  # fmt: skip
    """Everything the edits of a new ledger depend on; collects the moments, if the method needs them and they are not
    cached, of `text` (None: the plan's corpus)."""
    if model.edited:
        raise WrongModelError(
            "the model carries edits already: a new ledger starts from the unedited model (load it again)"
        )
    seed = plan.seed or 0
    if plan.method is None:
        logger.info("method %s (default)", method.name)
    if trained is None:
        hparams, origin = settings_for(method, model, given=plan.settings, layers=plan.layers)
    else:
        hparams, origin = trained.settings(plan.settings), f"the trained editor {trained.path.name}"
    collected: dict[int, MomentsRecord] = {}
    corpus: dict[str, Any] = {}
    if "moments" in hparams.needs:
        text = sized(model, hparams.layers, text or Corpus.parse(plan.corpus, seed=seed))
        collected = _collected(model, hparams.layers, text, engine)
        corpus = {"path": text.path and str(text.path.resolve()), **text.identity(), "seed": text.seed}
    elif plan.corpus is not None:
        raise BadSettingsError(f"corpus {plan.corpus}: {method.name} needs no moments; name none")
    weights = {}
    for name in method.editor().weights(model, hparams):
        (p, q), unedited = model.weight(name).shape, Spectrum(model.original(name)).unedited
        weights[name] = WeightRecord(shape=(p, q), sigma_max=unedited.sigma_max, kappa=unedited.kappa)
    return Header(
        created=now(), model=model.id, fingerprint=model.fingerprint(list(weights)),
        dtype=str(model.dtype).removeprefix("torch."), weights=weights,
        method=method.name, settings=hparams.model_dump(mode="json"), settings_origin=origin,
        prefixes=tuple(sample_prefixes(model, hparams.prefixes, seed)) if "prefixes" in hparams.needs else (),
        moments=collected, corpus=corpus, seed=seed, threads=torch.get_num_threads(),
        restrain=str(schedule.restraint or "none"), every=schedule.every,
        editor=None if trained is None else EditorRecord(path=str(trained.path.resolve()), sha256=trained.sha256),
        anatomy=told_anatomy(model), joint="rule", checkpoint=model.fingerprint(), versions=versions(),
    )  # fmt: skip


def _collected(model: EditableModel, layers: Sequence[int], text: Corpus, engine: Engine) -> dict[int, MomentsRecord]:
    """What a header says of the moments of every layer."""
    logger.info("moments from %s", text.path or f"{text.max_tokens} tokens sampled from the model (self)")
    found, keys = moments(model, layers, text, progress=_log_moments, engine=engine), moments_keys(model, layers, text)
    records = {}
    for layer, one in found.items():
        if one.tokens < len(one.C):
            raise BadSettingsError(
                f"corpus {text.name!r} has {one.tokens} tokens, fewer than the {len(one.C)} numbers of a key: give "
                "more text (tens of times as many tokens), or 'self'"
            )
        logger.info("layer %d: %d tokens, convergence %s", layer, one.tokens, one.convergence[-1:] or "not measured")
        records[layer] = MomentsRecord(key=keys[layer], sha256=one.sha256(), tokens=one.tokens)
    return records


def told_anatomy(model: EditableModel) -> dict[str, str] | None:
    """What `load` has to be told of the model's layout; None where structure tells the same."""
    with suppress(TetherError):
        if find_anatomy(model.hf) == model.anatomy:
            return None
    return asdict(model.anatomy)


def _log_moments(tokens: int, total: int | None) -> None:
    logger.info("moments: %d tokens%s", tokens, "" if total is None else f" of {total}")


def recorded_moments(model: EditableModel, header: Header) -> dict[int, Moments]:
    """The moments a ledger was made with (none for a method without): from the cache, or collected again from the
    recorded corpus."""
    if not header.moments:
        return {}
    cached = cached_moments({layer: one.key for layer, one in header.moments.items()})
    found = placed(model, cached or moments(model, list(header.moments), _recorded_corpus(header.corpus)))
    for layer, one in found.items():
        if one.sha256() != header.moments[layer].sha256:
            logger.warning(
                "moments of layer %d were collected anew and differ in the last bits: so will new edits", layer
            )
    return found


def recorded_settings(header: Header) -> Hparams:
    """The settings a ledger was made with. Raises BadLedgerError where the method does not know them, and
    BadSettingsError for a ledger of imported updates, which were solved for no facts."""
    if header.method == IMPORT:
        raise BadSettingsError(
            "this ledger holds an imported checkpoint, whose updates were made for no facts: name a ledger of edits"
        )
    try:
        found = EDITORS[header.method].settings.model_validate(header.settings)
        earlier = header.joint is None and "same_subject" in type(found).model_fields.keys() - header.settings.keys()
        return found.model_copy(update={"same_subject": "apart"}) if earlier else found
    except ValidationError as error:
        raise BadLedgerError(
            f"ledger.json: settings of {header.method}: {pydantic_line(error)}; restore it from a copy"
        ) from None


def _recorded_corpus(recorded: dict[str, Any]) -> Corpus:
    missing = {"path", "max_tokens", "window", "seed", "sha256"} - recorded.keys()
    if missing:
        raise BadLedgerError(f"ledger.json: corpus has no {min(missing)}; restore it from a copy")
    path = None if recorded["path"] is None else Path(recorded["path"])
    if path is not None and not path.is_file():
        raise BadLedgerError(
            f"corpus {path} of this ledger is gone: put it back, its moments are needed for further edits"
        )
    text = Corpus(path, recorded["max_tokens"], recorded["window"], recorded["seed"])
    if text.identity()["sha256"] != recorded["sha256"]:
        if path is not None:
            raise BadLedgerError(f"corpus {path} has changed since this ledger was made: put the old text back")
        logger.warning(
            "the moments of this ledger are not in the cache, and this version samples other text from the model than "
            "the one that made it: new edits use that text"
        )
    return text
