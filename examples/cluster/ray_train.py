"""A whole run on a Ray cluster: teachers are asked, then Ray Train starts the ranks that train together.

    python examples/cluster/ray_train.py run.yaml --workers 2

Teachers whose configuration has `ray:` run as actors in the same cluster, before training needs the machines. The
run's folder must lie on storage that all machines see, and where the configuration holds relative paths, so must the
folder that this is started in. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from compact_distill import load_config, run


def work(settings: dict[str, Any]) -> None:
    """One rank: Ray has set RANK, WORLD_SIZE and the meeting point, as torchrun does."""
    if Path(settings["folder"]).is_dir():  # Ray starts workers in folders of their own: relative paths lead nowhere
        os.chdir(settings["folder"])
    run(load_config(settings["config"], settings["overrides"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="ranks that train together")
    parser.add_argument("--gpu", action="store_true", help="one GPU a rank")
    parser.add_argument(
        "--retries", type=int, default=0, help="start all ranks again so often, from the last checkpoint"
    )
    arguments = parser.parse_args()
    config = arguments.config.resolve()
    output = Path(load_config(config).output).resolve()
    ray.init(ignore_reinit_error=True)
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": str(config), "overrides": {"output": str(output)}, "folder": str(Path.cwd())},
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        run_config=RunConfig(
            name="compact",
            storage_path=str(output.parent / "ray"),
            failure_config=FailureConfig(max_failures=arguments.retries),
        ),
    )
    result = trainer.fit()
    if result.error is not None:
        raise SystemExit(f"a rank failed: {result.error}")
    print(f"done: {output / 'report.html'}")


if __name__ == "__main__":
    main()
