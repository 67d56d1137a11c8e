"""The edits as an adapter of mlx-lm."""

import json
from pathlib import Path

from safetensors.torch import save_file

from tether.errors import TetherError
from tether.export.adapter import Adapter
from tether.models.editable import EditableModel

BLOCKS = "model.layers"  # where mlx-lm's models of these layouts keep their blocks


def write_mlx(adapter: Adapter, model: EditableModel, folder: Path) -> None:
    """adapters.safetensors and adapter_config.json.

    Factors are in×r (`lora_a`) and r×out (`lora_b`), with one rank and the scale 1. `num_layers` counts from the last
    block, so it reaches from the first edited one on; mlx-lm gives the blocks in between factors of zeros. Raises
    TetherError for a layout whose modules have other names there: mlx-lm leaves out a name that it does not know, and
    says nothing.
    """
    inside = {module: module.removeprefix(f"{BLOCKS}.").partition(".") for module in adapter.factors}
    strange = [m for m, (layer, _, _) in inside.items() if not (m.startswith(f"{BLOCKS}.") and layer.isdecimal())]
    if strange:
        raise TetherError(
            f"{strange[0]}: mlx-lm is known to have the same names for blocks at {BLOCKS} alone, and skips others in "
            "silence; export merged"
        )
    tensors = {}
    for module, factors in adapter.factors.items():
        tensors[f"{module}.lora_a"] = factors.B.mT.contiguous()
        tensors[f"{module}.lora_b"] = factors.A.mT.contiguous()
    config = {
        "fine_tune_type": "lora",
        "num_layers": model.n_layers - min(int(layer) for layer, _, _ in inside.values()),
        "lora_parameters": {
            "rank": adapter.report.rank,
            "scale": 1.0,
            "dropout": 0.0,
            "keys": sorted({path for _, _, path in inside.values()}),
        },
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
