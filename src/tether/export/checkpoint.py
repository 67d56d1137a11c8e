"""PRUNE on anybody's edited checkpoint: two folders of safetensors in, a restrained third one out.

report = tether.restrain_checkpoint("llama", "llama-edited", "llama-restrained", restrain="log:1.2")
report.table()
"""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tether.algebra import large_singular_values
from tether.algebra.lowrank import LowRank
from tether.constraints.base import Constraint, Data, Weight, constrained, parse
from tether.constraints.prune import Restraint
from tether.errors import BadSettingsError, WrongModelError
from tether.export import card
from tether.export.folder import CARD, new_folder, write_card_and_manifest
from tether.export.manifest import MANIFEST
from tether.models.checkpoint_files import Stored, same_bytes, stored_tensors
from tether.models.layout import stored_turned
from tether.storage.versions import versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatrixReport:
    """One changed matrix: D = edited − base against m = σ_max(base)."""

    name: str
    shape: tuple[int, int]
    sigma_max: float
    update_norm: float  # ‖D‖_F, which no singular value of D exceeds
    update_sigma_max: float | None  # None where ‖D‖_F ≤ m settles it
    above: int  # singular values of D above m
    update_sigma_max_after: float | None


@dataclass(frozen=True)
class CheckpointReport:
    """What happened to each tensor of the edited checkpoint; tensors equal in both are only counted, and so are the
    `rounded` ones, which differ by the rounding to a smaller dtype alone."""

    restraint: str
    matrices: tuple[MatrixReport, ...]
    copied: dict[str, str]  # name -> why a tensor that differs was copied as it is
    only_in_base: tuple[str, ...]
    equal: int
    rounded: int = 0

    @property
    def restrained(self) -> tuple[str, ...]:
        """The matrices that the restraint changed: all others are the edited checkpoint's, bit for bit."""
        return tuple(x.name for x in self.matrices if x.update_sigma_max_after != x.update_sigma_max)

    def table(self) -> str:
        """The changed matrices as a Markdown table."""
        head = ("matrix", "shape", "m", "largest of the update", "number above m", "largest after")
        return card.table(head, [_row(matrix) for matrix in self.matrices])

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def restrain_checkpoint(
    base: str | Path,
    edited: str | Path,
    out: str | Path,
    restrain: str | Constraint = "log:1.2",
    *,
    device: str | torch.device = "cpu",
) -> CheckpointReport:
    """Write `edited` to the new folder `out`, with every difference to `base` restrained.

    For each floating matrix of one name and shape in both: D = B − A in float32, m = σ_max(A), and where D has singular
    values above m, W̄ = B − Σ_{σ̂>m} (σ̂ − F(σ̂)) û v̂ᵀ (eqs. 4-6), cast to B's dtype; of a restraint that is no function
    of singular values (rank, rect, norm, sphere) W̄ = A + F(D), where F changes D. A head that B alone stores is
    compared with A's embeddings. Everything else is B's byte for byte: tensors that differ from A's by rounding alone,
    and every file beside the tensors, less a `.git`. A symbolic link in B is copied as the file it leads to, which
    must lie in B (or in the `blobs` of a hub cache that B is a snapshot of). B's own README.md and manifest.json are
    kept as README.edited.md and manifest.edited.json. Base and edited may be sharded differently; `out` has the shards
    of `edited`. Memory: a few copies of the largest matrix in float32, on `device`, and for some matrices the float64
    Gram matrix of their smaller side. Neither input is changed, and `out` appears whole or not at all.

    Raises WrongModelError for a folder without safetensors, quantised weights, two checkpoints that share no matrix, a
    matrix that is not finite and a link that leads out of B, BadSettingsError for an `out` that has something in it or
    lies in an input, and a restraint that `checkpoint_restraint` refuses.
    """
    restraint, base, edited, out = checkpoint_restraint(restrain), Path(base), Path(edited), Path(out)
    originals, tensors = stored_tensors(base), stored_tensors(edited)
    configs = [_config(base), _config(edited)]
    for inside, config in zip((base, edited), configs, strict=True):
        if config.get("quantization_config"):
            rule = "is quantised (its config.json says so): dequantise it, or give the checkpoint before it"
            raise WrongModelError(f"{inside} {rule}")
        if inside.resolve() in (out.resolve(), *out.resolve().parents):
            raise BadSettingsError(f"{out} lies in {inside}, which is left as it is: give a destination outside it")
    a, b = (config.get("model_type") for config in configs)
    if a and b and a != b:
        raise WrongModelError(f"{base} is of type {a} and {edited} of type {b}: give a checkpoint and its own base")
    _refuse_links_out(edited)
    originals = _with_tied_head(_renamed(originals, tensors), tensors, configs[0])
    if not any(n in tensors and tensors[n].shape == o.shape and len(o.shape) == 2 for n, o in originals.items()):
        raise WrongModelError(
            f"{edited} and {base} share no matrix of one name and shape: give a checkpoint and its own base"
        )

    with new_folder(out) as folder:
        without_git = shutil.ignore_patterns(".git")
        shutil.copytree(edited, folder, dirs_exist_ok=True, copy_function=shutil.copyfile, ignore=without_git)
        # Of a restraint that tells rows of W₀ from columns, a matrix is seen out×in.
        turned = stored_turned(edited) if "weight" in restraint.needs else ()
        matrices: list[MatrixReport] = []
        copied: dict[str, str] = {}
        rounded = 0
        for name, stored in tensors.items():
            original = originals.get(name)
            if original is not None and same_bytes(original, stored):
                continue
            if original is not None and _same_rounded(original, stored):
                rounded += 1
                continue
            if original is None or (reason := _not_comparable(name, original, stored)):
                copied[name] = "only in the edited checkpoint" if original is None else reason
                continue
            lies = any(one == name or one.endswith(f".{name}") for one in turned)
            report, W = _restrain(name, original, stored, restraint, torch.device(device), turned=lies)
            if W is not None:
                stored.overwrite(folder / stored.file.name, W)
            if report is None:
                copied[name] = "zero in the base, which leaves nothing to measure against"
            elif report.update_norm > 0:
                matrices.append(report)
                numbers = (report.sigma_max, report.update_norm, report.above)
                logger.info("%s: m %.4g, ‖D‖_F %.4g, %d above m", name, *numbers)
        only_in_base = tuple(name for name in originals if name not in tensors)
        equal = len(tensors) - len(matrices) - len(copied) - rounded
        if rounded:
            logger.info("%d tensors differ by rounding to a smaller dtype alone, and are copied as they are", rounded)
        result = CheckpointReport(str(restraint), tuple(matrices), copied, only_in_base, equal, rounded)
        _warn(result, restraint, folder)
        _write_card_and_manifest(folder, base, edited, result)
    return result


def checkpoint_restraint(text: str | Constraint) -> Constraint:
    """`parse`, for the difference of two checkpoints. Raises BadSettingsError for a restraint that needs moments."""
    found = parse(text)
    if "moments" in found.needs:
        what = f"{found} needs the moments of the keys, which two checkpoints do not have"
        raise BadSettingsError(f"{what}: name another restraint, or edit into a ledger, which has them")
    return found


def _restrain(
    name: str, original: Stored, stored: Stored, restraint: Constraint, device: torch.device, *, turned: bool
) -> tuple[MatrixReport | None, Tensor | None]:
    """The report of one matrix (None for a zero base), and the restrained one in float32 where it differs from B."""
    A = original.read().to(device, torch.float32)
    B = stored.read().to(device)
    D = B.float().sub_(A) if B.dtype != torch.float32 else B - A
    norm = float(D.norm(dtype=torch.float64))
    if not (A.isfinite().all() and D.isfinite().all()):
        raise WrongModelError(
            f"{name} is not finite in base or edited: a restraint needs finite weights; look at that edit"
        )
    m = large_singular_values.largest(A)
    shape = (D.shape[0], D.shape[1])
    if m == 0:
        return None, None
    if not isinstance(restraint, Restraint):
        seen, W = (D.mT, A.mT) if turned else (D, A)
        first = restraint.init(Weight((seen.shape[0], seen.shape[1]), m, W.cpu), Data())
        held = constrained(LowRank.of_dense(seen), restraint, first).to_dense()
        held = held.mT if turned else held
        number = len(large_singular_values.above(D, m)[1]) if norm > m else 0
        top, same = large_singular_values.largest(D), torch.equal(held, D)
        left = top if same else large_singular_values.largest(held)
        return MatrixReport(name, shape, m, norm, top, number, left), None if same else A + held
    del A
    if norm <= m:
        return MatrixReport(name, shape, m, norm, None, 0, None), None
    u, s, vh, top = large_singular_values.above(D, m)
    del D
    if not len(s):
        return MatrixReport(name, shape, m, norm, top, 0, top), None
    after = restraint(s, m)
    report = MatrixReport(name, shape, m, norm, top, len(s), float(after[0]))
    if torch.equal(after, s):
        return report, None
    excess = ((s - after)[:, None] * vh).float()
    return report, B.float().addmm_(u.float(), excess, alpha=-1)


def _not_comparable(name: str, original: Stored, stored: Stored) -> str:
    """Why a tensor that differs is copied as it is; empty for a matrix to restrain."""
    if original.shape != stored.shape:
        return f"shape {list(stored.shape)}, in the base {list(original.shape)}"
    if len(stored.shape) != 2:
        return f"changed, but no matrix: {len(stored.shape)} dimensions"
    if not (original.is_floating and stored.is_floating):
        raise WrongModelError(
            f"{name} is a changed matrix of type {stored.dtype} (base: {original.dtype}): quantised weights cannot be "
            "restrained; dequantise both checkpoints first"
        )
    return ""


def _same_rounded(original: Stored, stored: Stored) -> bool:
    """Whether one of two tensors is the other, rounded to a smaller dtype; whatever they are stored in."""
    if original.shape != stored.shape or not (original.is_floating and stored.is_floating):
        return False
    A, B = original.read().float(), stored.read().float()
    return any(
        torch.equal(exact, other.to(dtype).float())
        for dtype in (torch.bfloat16, torch.float16)
        for exact, other in ((A, B), (B, A))
    )


def _with_tied_head(
    originals: dict[str, Stored], tensors: dict[str, Stored], config: dict[str, object]
) -> dict[str, Stored]:
    """The base's tensors, and where its head is its embeddings and the edited checkpoint stores a head of its own,
    those under the head's name too."""
    text = config.get("text_config")
    told = {**config, **text} if isinstance(text, dict) else config
    words = told.get("vocab_size")
    vocabulary = [stored for stored in originals.values() if len(stored.shape) == 2 and stored.shape[0] == words]
    extra = [name for name in tensors if name not in originals]
    heads = [(name, stored) for name in extra for stored in vocabulary if stored.shape == tensors[name].shape]
    return {**originals, **dict(heads)} if len(heads) == 1 else originals


def _renamed(originals: dict[str, Stored], tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The base's tensors under the edited names. Where no name is common, one side may have the names without their
    first part, as checkpoints of a bare transformer do (`h.0.…` for `transformer.h.0.…`)."""
    if originals.keys() & tensors.keys():
        return originals
    for name in tensors:
        for other in originals:
            if name.endswith("." + other):
                prefix = name.removesuffix(other)
                return {prefix + key: stored for key, stored in originals.items()}
            if other.endswith("." + name):
                prefix = other.removesuffix(name)
                return {key.removeprefix(prefix): stored for key, stored in originals.items()}
    return originals


def _config(folder: Path) -> dict[str, object]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise WrongModelError(f"{file} is no JSON ({error}): fetch it again") from error
    return config if isinstance(config, dict) else {}


def _refuse_links_out(folder: Path) -> None:
    """The copy holds what the folder holds, and no file of elsewhere that somebody linked into it."""
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":  # of the hub's cache, whose files are links into blobs
        inside.append(inside[0].parent.parent / "blobs")
    for file in folder.rglob("*"):
        target = file.resolve()
        if ".git" in file.relative_to(folder).parts or (file.is_dir() and not file.is_symlink()):
            continue
        if not target.is_file() or not any(place in target.parents for place in inside):
            raise WrongModelError(
                f"{file} leads to {target}, which is no file of {folder}: only what lies inside is copied; remove it"
            )


def _warn(report: CheckpointReport, restraint: Constraint, folder: Path) -> None:
    if isinstance(restraint, Restraint):
        capped = [x for x in report.matrices if x.above and (restraint.cap_limit(x.sigma_max) is not None)]
        if capped:
            logger.warning(
                "%s with m below 1/ln α = %.3g in %d matrices (%s first, m = %.3g): capped at σ̂, since the formula "
                "would enlarge values just above m",
                restraint, restraint.cap_limit(capped[0].sigma_max), len(capped), capped[0].name, capped[0].sigma_max,
            )  # fmt: skip
    for file in sorted(folder.rglob("*")) if report.restrained else ():
        nested = file.suffix == ".safetensors" and file.parent != folder
        if nested or file.suffix in {".bin", ".pt", ".pth", ".gguf"}:
            logger.warning("%s is copied as it is: weights in it are not restrained", file.relative_to(folder))


def _write_card_and_manifest(folder: Path, base: Path, edited: Path, report: CheckpointReport) -> None:
    for name in (CARD, MANIFEST):
        if (folder / name).exists():
            kept = Path(name)
            (folder / name).rename(folder / f"{kept.stem}.edited{kept.suffix}")
    names = {"base": base.resolve().name, "edited": edited.resolve().name}
    details = {
        "Changed matrices": f"{names['edited']} against {names['base']}.\n\n{report.table()}",
        "Copied as they are": card.table(("tensor", "why"), list(report.copied.items())) if report.copied else "None.",
    }
    method = "the edited checkpoint's own, with its differences to the base restrained"
    weights = [matrix.name for matrix in report.matrices]
    about = card.Provenance(names["base"], method, {}, report.restraint, [], weights, versions())
    manifest = {
        **about.manifest(), **report.to_dict(), "kind": "restrained checkpoint", "edited": names["edited"],
    }  # fmt: skip
    write_card_and_manifest(folder, card.model_card(about, details=details), manifest)


def _row(matrix: MatrixReport) -> tuple[object, ...]:
    top, after = matrix.update_sigma_max, matrix.update_sigma_max_after
    largest = f"at most {matrix.update_norm:.4g}" if top is None else f"{top:.4g}"
    last = "unchanged" if top is None or after == top else f"{after:.4g}"
    shape = "×".join(map(str, matrix.shape))
    return matrix.name, shape, f"{matrix.sigma_max:.4g}", largest, matrix.above, last
