"""Runs a suite and writes its JSON.

    python -m benchmarks.run --suite rotary_attention --device cuda --out FILE.json

The file is whole after every case. Started again with the same options, a run goes on where the
last one stopped; cases that failed come last, after those that have not run. Exit code 0: all went
well, whatever was skipped; 1: something failed, is unfinished or was interrupted; 2: the run could
not start.
"""

import argparse
import fnmatch
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case, Suite, Unavailable
from benchmarks.earlier import DEFAULT, full_name
from benchmarks.environment import device_name, environment, load
from benchmarks.measure import DeviceLost, measure, round_figures
from benchmarks.result_file import ResultError, ResultFile, failed
from benchmarks.roofline import Ceilings, ceilings
from benchmarks.suites import SUITES, make_suite

SECONDS = {"cuda": 2.0, "cpu": 4.0}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        more = _suite_options(options)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    suite = make_suite(options.suite, options.device, quick=options.quick, **more)
    wanted = [case for case in suite.cases if _matches(case.name, options.only)]
    if options.list:
        for case in wanted:
            print(f"{case.name}  [{', '.join(case.peers)}]")
        return 0
    try:
        _require(options, suite, wanted)
        identity = {
            "suite": suite.name,
            "device": options.device,
            "quick": options.quick,
            "device_name": device_name(options.device),
            **more,
        }
        file = ResultFile(options.out, identity, fresh=options.fresh)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        return _run(suite, wanted, file, options)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--suite", choices=sorted(SUITES), required=True)
    add("--device", choices=("cpu", "cuda"), required=True)
    add("--out", type=Path, help="the JSON file; continued if it exists")
    add("--only", action="append", metavar="PATTERN", help="cases by name, * and ? allowed")
    add("--list", action="store_true", help="print the cases and their peers, measure nothing")
    add("--quick", action="store_true", help="tiny sizes: shows that everything runs")
    add("--fresh", action="store_true", help="start over instead of continuing the file")
    add(
        "--seconds",
        type=_positive,
        help="of timing for each case (default: 2 on a GPU, 4 on a CPU)",
    )
    add("--minutes", type=_positive, help="begin no case after this long; the next call goes on")
    add("--threads", type=_count, help="torch's threads on a CPU")
    add(
        "--before",
        metavar="COMMIT",
        help="suite evaluation: the commit to compare with (default: the last one before the "
        "kernels of rotary attention, skipped where git does not have it)",
    )
    return parser


def _suite_options(options: argparse.Namespace) -> dict[str, str]:
    """What the suite alone is asked for: its earlier commit."""
    if options.suite != "evaluation":
        if options.before is not None:
            raise ResultError(f"--before is for the suite evaluation, not {options.suite}")
        return {}
    if options.before is None:
        return {"before": DEFAULT}
    try:
        return {"before": full_name(options.before)}
    except Unavailable as error:
        raise ResultError(f"--before: {error}") from None


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text!r}")
    return number


def _matches(name: str, patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _require(options: argparse.Namespace, suite: Suite, wanted: list[Case]) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ResultError("--device cuda: torch sees no CUDA device here; use --device cpu")
    if not suite.cases:
        raise ResultError(f"suite {suite.name!r} has no cases for --device {options.device}")
    if not wanted:
        raise ResultError(f"--only {' '.join(options.only)}: no case matches; see --list")
    if options.out is None:
        raise ResultError("--out FILE.json is missing")


def _run(suite: Suite, wanted: list[Case], file: ResultFile, options: argparse.Namespace) -> int:
    began = time.perf_counter()
    done = file.results
    fresh = [case for case in wanted if case.name not in done]
    again = [case for case in wanted if case.name in done and failed(done[case.name])]
    pending = fresh + again
    print(f"{suite.name}: {len(pending)} of {len(suite.cases)} cases to run → {options.out}")
    lost = None
    if pending:
        measured, session = _begin(file, options)
        for number, case in enumerate(pending, 1):
            if options.minutes and time.perf_counter() - began > 60 * options.minutes:
                print(f"stopped after {options.minutes:g} minutes; the same command goes on")
                break
            print(f"[{number}/{len(pending)}] {case.name}", flush=True)
            lost = _one(case, suite, file, session, measured, options)
            if lost:
                break
    _conclude(suite, file)
    file.write()
    _report(file.content["goals"])
    return 0 if _finished(wanted, file) and not lost else 1


def _finished(cases: Iterable[Case], file: ResultFile) -> bool:
    results = file.results
    return all(case.name in results and not failed(results[case.name]) for case in cases)


def _conclude(suite: Suite, file: ResultFile) -> None:
    file.content["goals"] = suite.goals(file.results)
    file.content["complete"] = _finished(suite.cases, file)


def _begin(file: ResultFile, options: argparse.Namespace) -> tuple[Ceilings, int]:
    measured = ceilings(options.device, DTYPES[options.device], quick=options.quick)
    print(
        f"ceilings: copy {measured.copy_gb_s:.4g} GB/s, {measured.dtype} product "
        f"{measured.matmul_tflop_s:.4g} TFLOP/s"
    )
    ceiling = round_figures(measured._asdict())
    session = {**environment(options.device), "ceilings": ceiling, "seconds": 0.0}
    return measured, file.begin(session)


def _one(
    case: Case,
    suite: Suite,
    file: ResultFile,
    session: int,
    measured: Ceilings,
    options: argparse.Namespace,
) -> str | None:
    """Measures a case and writes its result; returns why the device is lost, if it is."""
    began, lost = time.perf_counter(), None
    seconds = options.seconds or (0.02 if options.quick else SECONDS[options.device])
    try:
        result = measure(
            case, suite.name, options.device, measured, seconds=seconds, quick=options.quick
        )
    except DeviceLost as error:
        lost = str(error)
        print(f"  the device is lost ({lost}); the same command goes on with the other cases")
        result = {
            "name": case.name,
            "kind": case.kind,
            "parameters": dict(case.parameters),
            "work": case.work._asdict(),
            "floor_ms": 0.0,
            "peers": {},
            "error": lost,
        }
    took = time.perf_counter() - began
    here = file.content["sessions"][session]
    here.update(seconds=round(here["seconds"] + took, 1), load_at_end=load())
    file.put({**result, "session": session})
    _conclude(suite, file)
    file.write()
    _print(result)
    return lost


def _print(result: dict[str, Any]) -> None:
    for word in ("error", "skipped"):
        if word in result:
            print(f"  {word}: {result[word]}")
    width = max(map(len, result["peers"]), default=0)
    for name, peer in result["peers"].items():
        line = f"  {name:{width}}  "
        if "error" in peer:
            line += f"FAILED: {peer['error']}"
        elif "skipped" in peer:
            line += f"skipped: {peer['skipped']}"
        elif "additional_mib" in peer:
            line += f"{peer['additional_mib']:10.1f} MiB more"
        else:
            line += (
                f"{peer['median_ms']:10.3f} ms ({peer['min_ms']:.3f} … {peer['max_ms']:.3f}, "
                f"{peer['runs']} runs)  {peer['tflop_s']:8.3f} TFLOP/s  {peer['gb_s']:7.1f} GB/s"
                f"  off by {peer['check']['error']:.1e}"
            )
        print(line, flush=True)


def _report(goals: list[dict[str, Any]]) -> None:
    for goal in goals:
        found, wanted = (
            "–" if goal[key] is None else f"{goal[key]:g}{goal['unit']}"
            for key in ("value", "target")
        )
        reason = f" ({goal['reason']})" if "reason" in goal else ""
        print(
            f"{goal['status']:>12}  {goal['name']}: {found}, wanted {goal['comparison']} "
            f"{wanted}{reason}"
        )


if __name__ == "__main__":
    sys.exit(main())
