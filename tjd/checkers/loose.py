"""The eight readings of a response under IFEval's loose mode."""

from functools import lru_cache

from tjd.checkers.text import is_blank


@lru_cache(maxsize=16)
def loose_variants(response: str) -> tuple[str, ...]:
    """List the response, then without its first line, its last, and both; each as it is and without asterisks.

    Returns:
        The distinct variants that are not blank, the response itself first.
    """
    first, last = response.find("\n"), response.rfind("\n")
    variants = [response]
    if first >= 0:
        inner = response[first + 1 : last] if first < last else ""
        variants += [response[first + 1 :].strip(), response[:last].strip(), inner.strip()]
    variants += [variant.replace("*", "") for variant in variants]
    return tuple(variant for variant in dict.fromkeys(variants) if not is_blank(variant))
