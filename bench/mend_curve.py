"""The training curve of a MEND editor as a figure.

python bench/mend_curve.py mend.safetensors mend-curve.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from tether.editors.mend.file import TrainedRecord, read_tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("editor", type=Path)
    parser.add_argument("figure", type=Path)
    args = parser.parse_args()
    record = TrainedRecord.model_validate(read_tensors(args.editor)[1])
    steps = [look.step for look in record.curve]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(steps, [look.loss for look in record.curve], color="black", label="validation loss")
    left.plot(steps, [look.edit for look in record.curve], label="$L_e$")
    left.plot(steps, [look.loc for look in record.curve], label="$L_{loc}$")
    left.axvline(record.step, color="grey", linestyle=":", label="kept")
    left.set(yscale="log", xlabel="edits trained on")
    right.plot(steps, [100 * look.accuracy for look in record.curve], label="said after the edit")
    right.plot(steps, [100 * look.kept for look in record.curve], label="kept on unrelated inputs")
    right.set(ylim=(0, 102), xlabel="edits trained on", ylabel="% of tokens")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    plt.rcParams["svg.hashsalt"] = "tether"
    figure.savefig(args.figure, metadata={"Date": None})


if __name__ == "__main__":
    main()
