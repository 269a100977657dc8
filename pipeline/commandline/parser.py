"""The command line's words: what each command takes, and which function does it.

Imports the standard library alone, and a command's module only when it runs: without one, `tunewright` is a server
whose start a client waits for.
"""

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

HOSTS = ("claude-code", "claude-desktop", "cursor", "vscode", "codex", "generic")
JOB = "id or unique prefix of a job"
AddParser = Callable[..., argparse.ArgumentParser]


def parse() -> argparse.Namespace:
    """The arguments of this process; `command` is None where it is plain `tunewright`. Exits on a mistake.

    `--home`, `--inline` and `--allow-dir` may stand before a command or after it.
    """
    parser = argparse.ArgumentParser(
        prog="tunewright",
        description="An MCP server that fine-tunes language models. Without a command it serves stdio.",
    )
    parser.add_argument("--home", help="data home (default: $TUNEWRIGHT_HOME or ~/.tunewright)")
    parser.add_argument(
        "--inline", action="store_true", help="run jobs in this process (debugging, no child processes)"
    )
    allow = "a folder whose files may be read; may come several times"
    parser.add_argument("--allow-dir", action="append", default=[], metavar="DIR", help=allow)
    parser.add_argument("--version", action="version", version=version("tunewright"))
    # Suppressed, or it would put None over a --home that stands before the command.
    home = argparse.ArgumentParser(add_help=False)
    home.add_argument("--home", default=argparse.SUPPRESS, help="data home, as above")
    add = parser.add_subparsers(dest="command", metavar="COMMAND").add_parser
    _connecting(add, home)
    _jobs(add, home)
    _work(add, home)
    arguments = parser.parse_args()
    # A list after the command would take the place of the one before it.
    arguments.allow_dir += getattr(arguments, "more_dirs", [])
    return arguments


def _connecting(add: AddParser, home: argparse.ArgumentParser) -> None:
    serve = add("serve", parents=[home], help="serve stdio, or with --http streamable HTTP")
    serve.add_argument("--inline", action="store_true", default=argparse.SUPPRESS, help="as above")
    # Any number: a bundle's host puts the folders that its user chose in place of one word.
    serve.add_argument("--allow-dir", nargs="*", action="extend", default=[], dest="more_dirs", metavar="DIR")
    serve.add_argument("--http", action="store_true", help="streamable HTTP, with a token that is printed once")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8765, help="default: %(default)s; 0 takes any that is free")
    serve.add_argument("--allow-host", action="append", default=[], metavar="HOST", help="Host header to accept")
    serve.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="Origin header to accept")
    serve.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    serve.add_argument("--insecure", action="store_true", help="let the token cross a network without TLS")
    install = add("install", parents=[home], help="connect a host: write its entry for this server")
    install.add_argument("host", choices=HOSTS, help="generic: print the usual JSON")
    install.add_argument("--scope", choices=("user", "project"), default="user", help="default: %(default)s")
    install.add_argument(
        "--allow-dir", action="append", default=[], dest="more_dirs", metavar="DIR",
        help="a folder whose files the server may read there; may come several times",
    )  # fmt: skip
    install.add_argument("--dry-run", action="store_true", help="show what would be written")
    install.add_argument("--force", action="store_true", help="replace another entry of this name")
    doctor = add("doctor", parents=[home], help="check everything, and say how to mend it")
    doctor.add_argument("--deep", action="store_true", help="also start torch and Unsloth (a minute)")
    doctor.add_argument("--json", action="store_true", help="as JSON")


def _jobs(add: AddParser, home: argparse.ArgumentParser) -> None:
    status = add("status", parents=[home], help="the jobs, or one of them")
    status.add_argument("job", nargs="?", help=JOB)
    status.add_argument("--watch", action="store_true", help="until it ends, or Ctrl-C")
    logs = add("logs", parents=[home], help="a job's log")
    logs.add_argument("job", help=JOB)
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the job has ended")
    logs.add_argument("--tail", type=_count, metavar="N", help="only the last N lines")
    cancel = add("cancel", parents=[home], help="stop a job at its next safe point")
    cancel.add_argument("job", help=JOB)
    cancel.add_argument("--discard", action="store_true", help="delete its checkpoints too")
    resume = add("resume", parents=[home], help="go on with an interrupted, failed or cancelled job")
    resume.add_argument("job", help=JOB)
    repeat = add("rerun", parents=[home], help="repeat a fine-tune: same data, arguments and seed, as a new job")
    repeat.add_argument("job", help="id or unique prefix of a fine-tuning job")


def _work(add: AddParser, home: argparse.ArgumentParser) -> None:
    sweep = add("gc", parents=[home], help="delete what nothing can use any more")
    sweep.add_argument("--dry-run", action="store_true", help="only show it")
    sweep.add_argument(
        "--older-than", type=_count, metavar="DAYS",
        help="also what could still be used but was not for so long: checkpoints of failed and cancelled jobs, caches",
    )  # fmt: skip
    demo = add("demo", parents=[home], help="fine-tune, chat, merge and convert on this terminal")
    demo.add_argument("--model", default="toy", help="Hub id or local folder (default: the built-in toy)")
    demo.add_argument("--data", help="a dataset file of your own (default: the one that comes with the demo)")
    add("toolchain", parents=[home], help="fetch llama.cpp's converter and build its quantizer, once")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Does the command, any but `serve` and `demo`; returns the exit status."""
    from tunewright.pipeline.commandline import console

    return console.run(lambda: _do(arguments))


def _do(given: argparse.Namespace) -> int:
    match given.command:
        case "install":
            from tunewright.pipeline.commandline.install import install

            return install(
                given.host, scope=given.scope, home=given.home, allowed=given.allow_dir, force=given.force,
                dry_run=given.dry_run,
            )  # fmt: skip
        case "doctor":
            from tunewright.pipeline.commandline.doctor import doctor

            return doctor(given.home, deep=given.deep, as_json=given.json)
        case "gc":
            from tunewright.pipeline.commandline.gc import collect

            return collect(given.home, dry_run=given.dry_run, older_than_days=given.older_than)
        case "rerun":
            from tunewright.pipeline import rerun

            return rerun.main(given.home, given.job)
        case "toolchain":
            from tunewright.pipeline.exporting import toolchain

            return toolchain.main()
        case _:
            return _do_with_job(given)


def _do_with_job(given: argparse.Namespace) -> int:
    from tunewright.pipeline.commandline import jobs

    match given.command:
        case "status":
            return jobs.status(given.home, given.job, watch=given.watch)
        case "logs":
            return jobs.logs(given.home, given.job, follow=given.follow, tail=given.tail)
        case "cancel":
            return jobs.cancel(given.home, given.job, discard=given.discard)
        case _:
            return jobs.resume(given.home, given.job)
