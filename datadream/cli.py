"""The command line, `datadream` or `python -m datadream`.

Commands: study | adapt | plan | doctor | export | download | gc | keep | compare | submit |
check-submission | outcome | contents.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, signals
from .errors import ConfigError, DataError, ModelMissingError, did_you_mean
from .store.files import StoreError
from .store.gc import DAYS
from .store.open import open_store


def _program() -> str:
    """Return how this program was called, for its usage: as console script or as module."""
    return "datadream" if Path(sys.argv[0]).stem == "datadream" else "python -m datadream"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the command, and return the exit code.

    It is 0 if every run ended well, 1 if one failed, 2 on wrong usage, 128 + its number on a
    signal.
    """
    parser = argparse.ArgumentParser(prog=_program(), description=__doc__)
    parser.add_argument("--version", action="version", version=f"datadream {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_runs(commands)
    _add_cells(commands)
    _add_upkeep(commands)
    _add_committed(commands)
    _add_submissions(commands)
    options = parser.parse_args(arguments)
    if options.command in ("plan", "adapt"):
        _check_choice(options)
    try:
        return options.call(options)
    except (ConfigError, DataError, ModelMissingError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except signals.Stopped as error:
        print(error, file=sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        print(signals.Stopped(signal.SIGINT), file=sys.stderr)
        return 128 + signal.SIGINT


def _days(text):
    if not (text.replace(".", "", 1).isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days; give 0 or more")
    return float(text)


def _add_runs(commands):
    """Add the commands that run or fetch something."""
    study = commands.add_parser(
        "study", help="execute the pending named runs of notebooks/study.yaml"
    )
    study.add_argument("names", nargs="*", help="run only these (default: all of the group)")
    study.add_argument(
        "--group", default="default", help="which group of runs (default: %(default)s)"
    )
    study.add_argument(
        "--smoke",
        action="store_true",
        help="shrink every run to the study file's tiny parameters, in a copy under _build/smoke",
    )
    study.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs executed at once, the cores shared out (default: %(default)s)",
    )
    study.add_argument(
        "--engine",
        default="local",
        help="local; ray: the cells on this machine's cores and GPUs, or the cluster that "
        "RAY_ADDRESS names; ray:<address>, as ray:auto: on that cluster (default: %(default)s)",
    )
    study.set_defaults(call=_study)
    download = commands.add_parser(
        "download",
        help="fetch a model into the hub's cache, or a dataset's images through torchvision",
    )
    download.add_argument(
        "name", help="e.g. sd2.1-base, ViT-B-16-quickgelu/openai, a hub id, or dtd"
    )
    download.set_defaults(call=_download)


def _add_cells(commands):
    """Add the commands on the cells of named runs or of a profile's main table."""
    plan = commands.add_parser("plan", help="print what a set of runs needs before anything runs")
    plan.set_defaults(call=_plan)
    plan.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="[CARD=]PRICE",
        help="of an hour of one GPU, for what it costs by card: 2.5, or H100=2.5; may be repeated",
    )
    adapt = commands.add_parser(
        "adapt",
        help="make the dataset-wise adapters of a set of runs, each with all processes (GPUs) that "
        "`accelerate launch -m datadream adapt ...` starts",
    )
    adapt.set_defaults(call=_adapt)
    for command in (plan, adapt):
        command.add_argument(
            "names", nargs="*", help="runs of notebooks/study.yaml (default: all of the group)"
        )
        command.add_argument(
            "--group", default="default", help="which group of runs (default: %(default)s)"
        )
        command.add_argument(
            "--profile", help="instead of named runs: the main table in this profile, e.g. paper"
        )
        command.add_argument(
            "--dataset",
            action="append",
            help="with --profile: a dataset, may be repeated (default: the paper's ten)",
        )
        command.set_defaults(refuse=command.error)
        command.add_argument(
            "--seeds", type=int, help="with --profile: how many seeds (default: 1)"
        )


def _add_upkeep(commands):
    """Add the commands that check, keep or clear existing artifacts."""
    export = commands.add_parser(
        "export",
        help="write a synthetic dataset as an image folder, WebDataset shards and Parquet, with a "
        "card",
    )
    export.add_argument("key", help="its artifact, generate-..., as the dataset notebook names it")
    export.add_argument("target", help="the folder to write to")
    export.add_argument(
        "--format",
        action="append",
        help="imagefolder, webdataset or parquet; may be repeated (default: all)",
    )
    export.add_argument(
        "--licence",
        "--license",
        default="unknown",
        help="of the images, an identifier of the hub for the cards (default: %(default)s)",
    )
    export.set_defaults(call=_export)
    doctor = commands.add_parser(
        "doctor",
        help="check device, memory, disk, packages, models and datasets, and name each fix",
    )
    doctor.set_defaults(call=_doctor)
    collect = commands.add_parser(
        "gc",
        help="list the artifacts that no record in the store refers to, and ask whether to remove "
        "them",
    )
    collect.add_argument(
        "--older-than",
        type=_days,
        default=DAYS,
        metavar="DAYS",
        help="spare what was written in the last days; another machine's study may need it "
        "(default: %(default)s)",
    )
    collect.add_argument("--yes", action="store_true", help="remove them without a question")
    collect.set_defaults(call=_gc)
    outcome = commands.add_parser(
        "outcome",
        help="tell which named runs did not end well when they were last executed, and where "
        "their pages are",
    )
    outcome.set_defaults(call=_outcome)
    contents = commands.add_parser(
        "contents",
        help="write the book's contents with the pages in book/runs, and print the file for "
        "jupyter-book's --toc",
    )
    contents.set_defaults(call=_contents)


def _add_committed(commands):
    """Add the commands on the committed study."""
    kept = commands.add_parser(
        "keep",
        help="copy the executed pages of a group and their records to book/study, which git holds",
    )
    kept.add_argument("--group", default="full", help="which group of runs (default: %(default)s)")
    kept.set_defaults(call=_keep)
    compared = commands.add_parser(
        "compare",
        help="hold the store's records against the committed ones, cell by cell; the exit code is "
        "1 where they differ by more than is expected",
    )
    compared.add_argument("--brief", action="store_true", help="print the overall verdict alone")
    compared.set_defaults(call=_compare)


def _add_submissions(commands):
    """Add the commands for the leaderboard."""
    packed = commands.add_parser(
        "submit",
        help="pack the store's records of methods of one's own into contrib, for the leaderboard",
    )
    packed.add_argument("methods", nargs="+", help="their names, e.g. mine mine+real")
    packed.add_argument("--code", required=True, help="the web address of the method's code")
    packed.add_argument("--author", default="", help="who is named beside it")
    packed.add_argument(
        "--reason",
        action="append",
        default=[],
        metavar="SETTING=WHY",
        help="why a setting that all methods share differs, e.g. classify.steps=...",
    )
    packed.set_defaults(call=_submit)
    checked = commands.add_parser(
        "check-submission", help="check submissions, and tell what is wrong with each"
    )
    checked.add_argument("folders", nargs="*", help="folders of contrib (default: all)")
    checked.set_defaults(call=_check_submission)


def _study(options):
    from .study.papermill_runs import run_study, smoke_home

    if options.smoke:
        smoke_home()
    table = run_study(
        options.names,
        options.group,
        options.smoke,
        jobs=max(1, options.jobs),
        engine=options.engine,
    )
    print(table.drop(columns="note").to_string(index=False))
    return int("failed" in set(table["status"]))


def _outcome(options):
    from .study.outcome import failure_report, failures

    print(failure_report())
    return int(bool(failures()))


def _check_choice(options):
    if options.profile and options.names:
        options.refuse(
            f"--profile stands for the main table, and {options.names[0]!r} names a run of "
            "study.yaml; give one of the two"
        )
    if not options.profile and (options.dataset or options.seeds is not None):
        options.refuse(
            "--dataset and --seeds go with --profile; without it, runs of study.yaml are taken as "
            "they stand there"
        )
    if options.seeds is not None and options.seeds < 1:
        options.refuse(f"--seeds {options.seeds}: give 1 or more")


def _chosen_cells(options):
    from .study.plan import named_cells, profile_cells

    return (
        profile_cells(options.profile, options.dataset, options.seeds or 1)
        if options.profile
        else named_cells(options.names, options.group)
    )


def _plan(options):
    from .engines.roofline import counted
    from .study.gpu_hours import gpu_text, prices
    from .study.plan import overview

    recipes, by = _chosen_cells(options), prices(options.price)
    print(overview(recipes))
    if recipes and (by or all(map(counted, recipes))):
        print(f"\n{gpu_text(recipes, by=by)}")
    return 0


def _adapt(options):
    from .engines.on_accelerate import adapt_together
    from .training.distributed import accelerator, leads

    together, store = accelerator(), open_store()
    first, count = leads(together), together.num_processes
    with (
        signals.listening(signal.SIGTERM, signal.SIGINT),
        store.in_use() if first else contextlib.nullcontext(),
    ):
        for key in adapt_together(_chosen_cells(options), store, together):
            if first:
                print(f"{store.folder(key)}, {count} process{'es' * (count > 1)}", flush=True)
    return 0


def _doctor(options):
    from .doctor import examine, report

    checks = examine()
    print(report(checks))
    return int(any(check.state == "problem" for check in checks))


def _export(options):
    from .publish.export import export

    for folder in export(options.key, options.target, options.format, licence=options.licence):
        print(folder)
    return 0


def _gc(options):
    from .pipeline.stages import STAGES
    from .results.features import STAGE as FEATURES
    from .store.gc import clear, listing, unused

    stages = {FEATURES, *(stage.name for stage in STAGES)}
    store, asked = open_store(), sys.stdin.isatty() and not options.yes
    found = unused(store, options.older_than, stages)
    print(listing(store, found))
    if found and (
        options.yes
        or (asked and input(f"Remove these {len(found)}? [y/N] ").strip().lower() in ("y", "yes"))
    ):
        clear(store, found, options.older_than, stages)
        print(f"removed {len(found)}")
    elif found:
        print(
            "nothing was removed"
            if asked
            else "nothing was removed: no terminal to ask on; --yes removes them without a question"
        )
    if options.older_than:
        print(f"what is younger than {options.older_than:g} days was spared; see --older-than")
    return 0


def _keep(options):
    from .publish.freeze import freeze_study

    table = freeze_study(options.group)
    print(table.to_string(index=False, na_rep=""))
    return int("has not ended here" in set(table["status"]))


def _compare(options):
    from .paths import paths, relative_to_home
    from .publish.freeze import load_all_frozen
    from .results import agreement
    from .results.records import load_records

    found = agreement.compare(load_records(), load_all_frozen())
    if options.brief:
        print(agreement.verdict_line(found))
        if len(found.cells):
            print("The cells: `python -m datadream compare`, and the book's page on your own run")
    else:
        print(agreement.report(found, relative_to_home(paths()["store"])))
    return int(agreement.overall(found.cells)["verdict"] == agreement.OUTSIDE)


def _submit(options):
    from .publish.submission import submit

    parts = [text.partition("=") for text in options.reason]
    if wrong := [text for text in options.reason if "=" not in text]:
        raise ConfigError(f"--reason {wrong[0]!r}: give a setting, '=' and a sentence")
    reasons = {name: why for name, _, why in parts}
    print(submit(options.methods, options.code, author=options.author, reasons=reasons))
    return 0


def _check_submission(options):
    from .publish.submission import check, submissions

    failed = False
    for folder in map(Path, options.folders) if options.folders else submissions():
        found = check(folder)
        failed |= bool(found)
        print(f"{folder}: {'; '.join(found) or 'ok'}")
    return int(failed)


def _contents(options):
    from .publish.freeze import write_contents

    print(write_contents())
    return 0


def _download(options):
    from .data import paper_datasets
    from .models import catalog, download

    if options.name in paper_datasets.SOURCES:
        print(f"the images are in {paper_datasets.download(options.name)}")
        return 0
    known = [
        *catalog.GENERATORS,
        *catalog.CLASSIFIERS,
        *catalog.IP_ADAPTERS,
        *paper_datasets.SOURCES,
    ]
    if options.name not in known and "/" not in options.name:
        raise ConfigError(
            f"{options.name!r} is not a model or dataset to download; accepted: a hub id, or one "
            f"of {', '.join(known)}{did_you_mean(options.name, known)}"
        )
    print(f"downloading {options.name} into {download.cache()}, if it is not there", flush=True)
    download.download_model(options.name)
    print(f"{options.name} is on this machine")
    return 0
