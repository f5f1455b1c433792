"""All methods and controls on the same questions with as many chains each, and one report of them.

usage: methods.py [--questions 100] [--chains 8] [--ablation FOLDER] [--lora FOLDER] [--out runs/methods]

The default models and their trained thinkers on the arithmetic task; chains of methods with several paths come from as many
paths, those of the others from one. --ablation: a softcot++ checkpoint trained with `--contrastive none`. --lora: an adapter
of `scale-train --method lora`. The same command again continues. JSON lines on stdout, one a method; then `scale-report`
puts its files into OUT/report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_SEVERAL = ("softcot++", "softcot-p", "softcot-dropout", "softcot-gumbel")
_FOLDERS = ("thinker", "adapter")
_CASES: dict[str, dict[str, Any]] = {
    "CoT": {"method": "cot"},
    "CoT, 4 shots": {"method": "cot", "shots": 4},
    "CoT-Unk": {"method": "cot-unk"},
    "Assist-CoT": {"method": "assist-cot"},
    "SoftCoT": {"method": "softcot"},
    "SoftCoT-P": {"method": "softcot-p"},
    "SoftCoT-Dropout": {"method": "softcot-dropout"},
    "SoftCoT-Gumbel": {"method": "softcot-gumbel"},
    "SoftCoT++": {"method": "softcot++"},
    **{
        f"SoftCoT++ [{name}]": {"method": "softcot++", "control": name}
        for name in ("zero", "mean", "shuffled", "unk", "none")
    },
}


def main() -> None:
    arguments = parse()
    cases = dict(_CASES)
    if arguments.ablation:
        cases["SoftCoT++, no contrast"] = {"method": "softcot++", "thinker": str(arguments.ablation)}
    if arguments.lora:
        cases["LoRA"] = {"method": "lora", "adapter": str(arguments.lora)}
    named = []
    for name, settings in cases.items():
        folder = arguments.out / "-".join(str(value) for key, value in settings.items() if key not in _FOLDERS)
        folder = folder.with_name(f"{folder.name}-ablation") if "thinker" in settings else folder
        summary = run(settings, folder, arguments)
        kept = ("accuracy", "accuracy_low", "accuracy_high", "pass_at_1", "coverage", "mean_tokens", "seconds")
        print(json.dumps({"case": name, **{key: summary[key] for key in kept}}), flush=True)
        named.append(f"{name}={folder}")
    options = ["--baseline", "CoT", "--voters", "all", "--out", str(arguments.out / "report")]
    subprocess.run([sys.executable, "-m", "analysis", *named, *options], check=True)


def run(settings: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A process for each, so that their peak memory is their own."""
    several = settings["method"] in _SEVERAL
    shape = {"latent-paths" if several else "samples": arguments.chains, **({"samples": 1} if several else {})}
    options = {**settings, **shape, "limit": arguments.questions, "out": folder}
    command = [sys.executable, "-c", "from scaling.cli import main; main()", "--json"]
    command += [text for key, value in options.items() for text in (f"--{key}", str(value))]
    summary: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return summary


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--ablation", type=Path)
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
