"""The demo's arms, and the method's settings under other values, over several seeds: `lab.py OUT [--seeds 5]`.

Prints a table and writes it to OUT/lab.json. Run again, it reuses what it finds. About five minutes of one core a seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from compact_distill.config.models import PRESETS
from compact_distill.study.demo import ARMS, DemoRecipe, run_demo

# As examples/study/tune.yaml calls them: three strengths of consistency with softer weights than the defaults'; and the
# published scores and coefficients, read by probes, which were the demo's arm once.
SOFT = {"temperature": 1.0}
SETTINGS = {
    "consistent": {"compatibility": SOFT, "consistency": 0.1},
    "light": {"compatibility": SOFT, "consistency": 0.02},
    "plain": {"compatibility": SOFT, "consistency": 0.0},
    "published": {
        "compatibility": {**PRESETS["paper"]["compatibility"], "estimator": "probe"},
        "consistency": 0.02,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    shares: dict[str, dict[str, list[float]]] = {}
    for seed in range(arguments.seeds):
        result = run_demo(arguments.out / f"seed-{seed}", seed, DemoRecipe(arms={**ARMS, **SETTINGS}))
        for arm, found in result.study["arms"].items():
            for task, share in found["tasks"].items():
                shares.setdefault(arm, {}).setdefault(task, []).append(share["value"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "lab.json").write_text(json.dumps(shares, indent=1) + "\n")
    for arm, tasks in shares.items():
        print(arm)
        for task, values in tasks.items():
            each = " ".join(f"{100 * value:3.0f}" for value in values)
            print(f"    {task:16} {100 * statistics.mean(values):5.1f} %   seeds: {each}")


if __name__ == "__main__":
    main()
