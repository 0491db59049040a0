"""The `compact` command, its commands in the order of work."""

from collections.abc import Callable

from compact_distill.cli import results, work
from compact_distill.cli.app import app

__all__ = ["app"]

_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": work.demo,
    "init": work.init,
    "validate": work.validate,
    "generate": work.generate,
    "verify": work.verify,
    "teachers": work.teachers,
    "score": work.score,
    "train": work.train,
    "run": work.run,
    "diagnose": work.diagnose,
    "study": work.study,
    "eval": results.evaluate,
    "drift": results.drift,
    "compare": results.compare,
    "export": results.export,
    "report": results.report,
    "try": results.try_out,
    "doctor": work.doctor,
    "env": work.env,
}

for name, command in _COMMANDS.items():
    app.command(name)(command)
