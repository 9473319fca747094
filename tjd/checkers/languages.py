"""The language of a text, told by langdetect with seed 0.

langdetect draws its n-grams at random; unseeded, as the official checkers run it, short texts change language from
run to run. Each call has its own generator with the same seed, so a text has one language in every thread and
process.
"""

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from tjd.checkers.optional import import_extra

SEED = 0


@cache
def _factory() -> Any:
    package = import_extra("langdetect.detector_factory")
    files = sorted(Path(package.PROFILES_DIRECTORY).iterdir())
    factory = package.DetectorFactory()
    factory.seed = SEED
    factory.load_json_profile([file.read_text(encoding="utf-8") for file in files if not file.name.startswith(".")])
    return factory


@lru_cache(maxsize=1024)
def detect(text: str) -> str | None:
    """Tell the most likely language, in langdetect's codes ("en", "zh-cn"); None for a text without a letter to go by.

    Raises:
        MissingExtraError: langdetect is not installed.
    """
    problem = import_extra("langdetect.lang_detect_exception").LangDetectException
    detector = _factory().create()
    detector.append(text)
    try:
        return detector.detect()
    except problem:
        return None
