"""The command line: `python -m datadream study`."""

import argparse
import sys

from .config import ConfigError


def main(arguments=None):
    """Parse the command line, call the package, and return the exit code: 0 if every run ended well, 1 if one failed, 2 on bad use."""
    parser = argparse.ArgumentParser(prog="python -m datadream", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study", help="execute the pending named runs of notebooks/study.yaml")
    study.add_argument("names", nargs="*", help="run only these (default: all of the group)")
    study.add_argument("--group", default="default", help="which group of runs (default: %(default)s)")
    study.add_argument("--smoke", action="store_true", help="shrink every run to the study file's tiny parameters, in a copy under _build/smoke")
    study.add_argument("--jobs", type=int, default=1, help="runs executed at once, the cores shared out (default: %(default)s)")
    options = parser.parse_args(arguments)
    from .study import run_study, smoke_home

    if options.smoke:
        smoke_home()
    try:
        table = run_study(options.names, options.group, options.smoke, jobs=max(1, options.jobs))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table.drop(columns="note").to_string(index=False))
    return int((table["status"] == "failed").any())


if __name__ == "__main__":
    sys.exit(main())
