"""The one command: `idlewatt` and its subcommands."""

import argparse
import contextlib
import importlib.metadata
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from idlewatt.cli.book_sample import SAMPLE_BOOK
from idlewatt.cli.exit_codes import MEANINGS, ExitCode, exit_code_of
from idlewatt.cli.report_arguments import add_commands, with_joined_percents
from idlewatt.cli.writing_out import silence_stdout, write_text
from idlewatt.stream.errors import IdlewattError

_EXAMPLES: Final = """\
examples:
  idlewatt demo                              a simulated AI factory, on this screen
  idlewatt config > idlewatt.toml            a file with every setting, commented out
  idlewatt config --book > book.toml         prices, tariff, capital, budgets: an example
  idlewatt doctor --config idlewatt.toml     what is missing, and how to mend it
  idlewatt run --config idlewatt.toml        meter this box: no Kafka needed
  idlewatt collect --config idlewatt.toml    on every GPU node, into Kafka
  idlewatt process --config idlewatt.toml    beside the cluster, as many as you like
  idlewatt report --from 2026-11-01          what the month cost, brought and lost
  idlewatt whatif --help                     the same at another yield, price, PUE or tariff
  idlewatt tail ledger                       the newest rows of a topic
  idlewatt dashboards --out deploy           Grafana dashboards, Prometheus rules
"""


# those for which it is the usual end
_UNTIL_STOPPED: Final = ("run", "collect", "process", "demo")
_DNS_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
# of a host, or of an IPv6 address in brackets, and its port
_ADDRESS: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
# as shells count
_BY_SIGNAL: Final = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = _parser().parse_args(with_joined_percents(sys.argv[1:] if argv is None else argv))
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return int(_run(arguments))
    except IdlewattError as error:
        for line in str(error).splitlines():
            print(f"idlewatt: {line}", file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt as stop:
        if arguments.command in _UNTIL_STOPPED or getattr(arguments, "follow", False):
            return ExitCode.OK
        print("idlewatt: stopped before it was done", file=sys.stderr)
        return _BY_SIGNAL + (stop.args[0] if stop.args else signal.SIGINT)
    except BrokenPipeError:
        # the reader of a pipe went away
        silence_stdout()
        return ExitCode.OK
    except Exception:
        import structlog

        structlog.get_logger().exception("unexpected_error", command=arguments.command)
        return ExitCode.UNEXPECTED


def _run(arguments: argparse.Namespace) -> ExitCode:
    # a command loads what it needs and no more: `idlewatt config` needs no polars; and all of it here, where a stop is
    # seen to
    from idlewatt.cli.logs import configure_logs

    match arguments.command:
        case "config":
            from idlewatt.cli.config_sample import sample

            write_text(None, SAMPLE_BOOK if arguments.book else sample())
            return ExitCode.OK
        case "dashboards":
            from idlewatt.dashboards.writing import write_all

            configure_logs()
            write_all(arguments.out, arguments.target, arguments.collectors_dns)
            return ExitCode.OK
        case "demo":
            from idlewatt.cli.demo import demo

            # its outages are part of the show, and lines would tear the screen
            configure_logs(logging.ERROR)
            return demo(os.environ, arguments.seconds)
        case "doctor":
            from idlewatt.cli.doctor import examine

            return examine(arguments.config, os.environ)
        case "report":
            from idlewatt.cli.report import report

            configure_logs(logging.ERROR)
            return report(arguments, os.environ)
        case "whatif":
            from idlewatt.cli.whatif import whatif

            configure_logs(logging.ERROR)
            return whatif(arguments, os.environ)
        case "tail":
            from idlewatt.cli.tail import tail

            configure_logs(logging.ERROR)
            return tail(arguments, os.environ)
        case command:
            from idlewatt.cli.config import load_settings
            from idlewatt.cli.serving import serve

            configure_logs()
            settings = load_settings(arguments.config, os.environ)
            return serve(settings, collect=command != "process", process=command != "collect")


def _parser() -> argparse.ArgumentParser:
    codes = "exit codes:\n" + "\n".join(f"  {code}  {meaning}" for code, meaning in MEANINGS.items())
    codes += "\n  128 and a signal's number  stopped before it was done"
    parser = argparse.ArgumentParser(
        prog="idlewatt",
        description="The meter an AI factory is run by: tokens per watt, and the revenue lost to idle watts.",
        epilog=f"{_EXAMPLES}\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"idlewatt {importlib.metadata.version('idlewatt')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="show a simulated AI factory on this screen")
    demo.add_argument(
        "--seconds",
        type=_seconds,
        # argparse checks a default that is text like an argument
        default=os.environ.get("DEMO_SECONDS") or None,
        help="end by itself after so many seconds; DEMO_SECONDS if left out",
    )
    configured = [
        commands.add_parser("run", help="meter this box: collectors and processors in one process"),
        commands.add_parser("collect", help="read this node's GPUs and engines into the log"),
        commands.add_parser("process", help="turn what was read into figures on /metrics"),
        commands.add_parser("doctor", help="check every part and say what to do"),
    ]
    for command in configured:
        command.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="settings in TOML; IDLEWATT_CONFIG if left out, else defaults",
        )
    add_commands(commands)
    dashboards = commands.add_parser("dashboards", help="write Grafana dashboards and Prometheus rules")
    dashboards.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    dashboards.add_argument(
        "--target",
        action="append",
        type=_target,
        metavar="HOST:PORT",
        help="a process that Prometheus reads, instead of the services of compose.yaml; give it once for each",
    )
    dashboards.add_argument(
        "--collectors-dns",
        type=_dns_name,
        metavar="NAME",
        help="beside --target: a name of which every address is a collector that Prometheus reads, at port 9477",
    )
    config = commands.add_parser("config", help="print a settings file with every key, commented out")
    config.add_argument(
        "--book", action="store_true", help="print a sample book instead: prices, costs, budgets"
    )
    return parser


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 < seconds < 1e6:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; write it plainly, such as 40")


def _target(text: str) -> str:
    """As Prometheus takes it: it refuses the whole file over a URL, and asks port 80 where there is none."""
    address = _ADDRESS.fullmatch(text)
    if address and 0 < int(address[1]) < 1 << 16:
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is no HOST:PORT; write it without http:// and path and with its port, such as 127.0.0.1:9477"
    )


def _dns_name(text: str) -> str:
    if _DNS_NAME.fullmatch(text):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is no DNS name; write it without http://, port and path, such as collectors.example.com"
    )


def _stop(number: int, _: object) -> None:
    # the stop takes its few seconds in peace
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
