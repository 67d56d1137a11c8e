"""What all edits of a ledger depend on: put together for a new ledger, found again for one that goes on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tether.algebra.spectrum import Spectrum
from tether.constraints.base import Constraint
from tether.editors import editor as editor_of
from tether.editors.mend.file import Trained, open_trained
from tether.editors.moments import Corpus, Moments, cached_moments, moments, moments_key, recent_moments
from tether.editors.settings import HPARAMS, settings_for
from tether.errors import TetherError
from tether.ledger import EditorRecord, Header, WeightRecord, now
from tether.models import EditableModel, find_anatomy
from tether.models.sampling import sample_prefixes
from tether.storage.versions import versions

logger = logging.getLogger(__name__)


def trained_editor(
    model: EditableModel, method: str, editor: str | Path | None, layers: Sequence[int] | None
) -> Trained | None:
    """The trained editor of a new ledger; None for a method without one."""
    editor_of(method)
    needed = "editor" in HPARAMS[method].needs
    if editor is None:
        if needed:
            raise TetherError(f"{method} edits with a trained editor: name its file (`tether train-{method}` makes it)")
        return None
    if not needed:
        raise TetherError(f"editor {editor}: {method} needs no trained editor; leave it away")
    trained = open_trained(editor, model)
    if trained.record.method != method:
        raise TetherError(f"editor {editor} was trained for {trained.record.method}, not {method}: name that method")
    if layers is not None and tuple(layers) != trained.record.settings.layers:
        raise TetherError(
            f"layers {tuple(layers)}: the editor {editor} was trained for {trained.record.settings.layers}; leave them "
            "away"
        )
    return trained


def recorded_editor(model: EditableModel, header: Header, editor: str | Path | None) -> Trained | None:
    """The trained editor a ledger was made with, from where it was or from `editor`."""
    if header.editor is None:
        return trained_editor(model, header.method, editor, None)
    path = Path(header.editor.path if editor is None else editor)
    if not path.is_file():
        raise TetherError(f"editor {path} of this ledger is gone: put it back or name a copy, further edits need it")
    trained = open_trained(path, model)
    if trained.sha256 != header.editor.sha256:
        raise TetherError(
            f"editor {path} is not the one this ledger was made with (sha256 {trained.sha256[:12]}, the ledger's "
            f"{header.editor.sha256[:12]}); name that one or make a new ledger"
        )
    return trained


def new_header(
    model: EditableModel, method: str, restraint: Constraint, every: int | None, seed: int,
    corpus: str | Path | None, settings: Path | dict[str, Any] | None, layers: Sequence[int] | None,
    trained: Trained | None,
) -> Header:  # fmt: skip
    """Everything the edits of a new ledger depend on; collects the moments, if the method needs them and they are not
    cached."""
    if model.edited:
        raise TetherError(
            "the model carries edits already: a new ledger starts from the unedited model (load it again)"
        )
    if trained is None:
        hparams, origin = settings_for(method, model, given=settings, layers=None if layers is None else tuple(layers))
    else:
        hparams, origin = trained.settings(settings), f"the trained editor {trained.path.name}"
    names = editor_of(method).weights(model, hparams)
    collected: dict[int, Moments] = {}
    keys: dict[int, str] = {}
    identity: dict[str, Any] = {}
    if "moments" in hparams.needs:
        text = _corpus(model, hparams.layers, corpus, seed)
        collected = moments(model, hparams.layers, text, progress=_log_moments)
        keys = {layer: moments_key(model, layer, text) for layer in collected}
        path = None if text.path is None else str(text.path.resolve())
        identity = {"path": path, **text.identity(), "seed": text.seed}
    elif corpus is not None:
        raise TetherError(f"corpus {corpus}: {method} needs no moments; leave it away")
    for layer, one in collected.items():
        if one.tokens < len(one.C):
            raise TetherError(
                f"corpus {text.name!r} has {one.tokens} tokens, fewer than the {len(one.C)} numbers of a key: give "
                "more text (tens of times as many tokens), or 'self'"
            )
        logger.info("layer %d: %d tokens, convergence %s", layer, one.tokens, one.convergence[-1:] or "not measured")
    weights = {name: _weight_record(model, name) for name in names}
    return Header(
        created=now(), model=model.id, fingerprint=model.fingerprint(names),
        dtype=str(model.dtype).removeprefix("torch."),
        weights=weights, method=method, settings=hparams.model_dump(mode="json"), settings_origin=origin,
        prefixes=tuple(sample_prefixes(model, hparams.prefixes, seed)) if "prefixes" in hparams.needs else (),
        moments={layer: {"key": keys[layer], "sha256": _digest(one), "tokens": one.tokens}
                 for layer, one in collected.items()},
        corpus=identity, seed=seed, threads=torch.get_num_threads(), restrain=str(restraint), every=every,
        editor=None if trained is None else EditorRecord(path=str(trained.path.resolve()), sha256=trained.sha256),
        anatomy=_anatomy(model), versions=versions(),
    )  # fmt: skip


def _weight_record(model: EditableModel, name: str) -> WeightRecord:
    p, q = model.weight(name).shape
    unedited = Spectrum(model.original(name)).unedited
    return WeightRecord(shape=(p, q), sigma_max=unedited.sigma_max, kappa=unedited.kappa)


def _anatomy(model: EditableModel) -> dict[str, str] | None:
    """What `load` has to be told of the model's layout; None where structure tells the same."""
    with suppress(TetherError):
        if find_anatomy(model.hf) == model.anatomy:
            return None
    return asdict(model.anatomy)


def _corpus(model: EditableModel, layers: Sequence[int], corpus: str | Path | None, seed: int) -> Corpus:
    """The text of a new ledger's moments."""
    if corpus is not None:
        return Corpus.parse(corpus, seed=seed)
    text = recent_moments(model, layers) or Corpus.parse("self", seed=seed)
    logger.info("moments from %s", f"cached {text.name}" if text.path else "text sampled from the model (self)")
    return text


def _log_moments(tokens: int, total: int | None) -> None:
    logger.info("moments: %d tokens%s", tokens, "" if total is None else f" of {total}")


def _digest(one: Moments) -> str:
    return hashlib.sha256(one.C.numpy().tobytes()).hexdigest()


def recorded_moments(model: EditableModel, header: Header) -> dict[int, Moments]:
    """The moments a ledger was made with (none for a method without): from the cache, or collected again from the
    recorded corpus."""
    if not header.moments:
        return {}
    found = cached_moments({layer: one["key"] for layer, one in header.moments.items()})
    if found is None:
        found = moments(model, list(header.moments), _recorded_corpus(header.corpus))
    for layer, one in found.items():
        if _digest(one) != header.moments[layer]["sha256"]:
            logger.warning(
                "moments of layer %d were collected anew and differ in the last bits: so will new edits", layer
            )
    return found


def _recorded_corpus(recorded: dict[str, Any]) -> Corpus:
    path = None if recorded["path"] is None else Path(recorded["path"])
    if path is not None and not path.is_file():
        raise TetherError(
            f"corpus {path} of this ledger is gone: put it back, its moments are needed for further edits"
        )
    text = Corpus(path, recorded["max_tokens"], recorded["window"], recorded["seed"])
    if text.identity()["sha256"] != recorded["sha256"]:
        raise TetherError(f"corpus {path} has changed since this ledger was made: put the old text back")
    return text
