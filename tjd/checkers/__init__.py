"""Rule constraints: IFEval, IFBench, IFTrain and Multi-IF decided by code of our own.

`check` gives a verdict or raises; `verdict` gives a verdict or null with a reason; `strict_and_loose` gives both
modes at once. Importing this package loads no language models: those come with the first checker that needs one.
"""

from tjd.checkers.arguments import Checker
from tjd.checkers.own import load_checkers
from tjd.checkers.verdicts import SUITES, Mode, Suite, Verdict, check, strict_and_loose, validate, verdict

__all__ = [
    "SUITES",
    "Checker",
    "Mode",
    "Suite",
    "Verdict",
    "check",
    "load_checkers",
    "strict_and_loose",
    "validate",
    "verdict",
]
