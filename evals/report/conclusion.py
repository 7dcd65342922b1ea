"""One sentence that says what a run found, computed from its figures."""

from math import isfinite

from ropewalk.evals.report.summary import Summary

# A loss counts as having risen or fallen when it moves by more than this share.
NOTICEABLE = 0.005


def conclusion(summary: Summary) -> str:
    """What came out: the first variant against the best one at the longest length.

    Only what is in the run is said; a run without results gives a sentence that says so.
    """
    parts = [part for part in (_loss_part(summary), _passkey_part(summary)) if part]
    if not parts:
        return "This run has no results yet."
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _loss_part(summary: Summary) -> str:
    first, longest = summary.lengths[0], summary.lengths[-1]
    values = {
        (variant, length): summary.losses[variant, length].bits_per_byte.value
        for variant in summary.variants
        for length in (first, longest)
        if (variant, length) in summary.losses
        and isfinite(summary.losses[variant, length].bits_per_byte.value)
    }
    ranked = sorted(
        (variant for variant in summary.variants if (variant, longest) in values),
        key=lambda variant: values[variant, longest],
    )
    if not ranked:
        return ""
    best = ranked[0]
    baseline = summary.variants[0]

    def course(variant: str) -> str:
        start, end = values.get((variant, first)), values[variant, longest]
        if start is None or first == longest:
            return f"is {end:.3f} bits per byte at {longest} tokens"
        change = end / start - 1
        if abs(change) <= NOTICEABLE:
            return f"stays at {end:.3f} bits per byte from {first} to {longest} tokens"
        verb = "falls" if change < 0 else "rises"
        return f"{verb} from {start:.3f} bits per byte at {first} tokens to {end:.3f} at {longest}"

    rank = f", the lowest of {len(ranked)}," if len(ranked) > 1 else ""
    if best == baseline or baseline not in ranked:
        return f"The loss of {best}{rank} {course(best)}"
    return f"The loss of {baseline} {course(baseline)}, that of {best}{rank} {course(best)}"


def _passkey_part(summary: Summary) -> str:
    longest = summary.lengths[-1]
    shares = {
        variant: summary.retrieval_by_length[variant, longest].value
        for variant in summary.variants
        if (variant, longest) in summary.retrieval_by_length
    }
    if not shares:
        return ""
    top = max(shares.values())
    best = [variant for variant, share in shares.items() if share == top]
    baseline = summary.variants[0]
    text = f"at {longest} tokens "
    if top == 0.0:
        return text + "no variant finds the pass key"
    if baseline in best and len(best) == 1:
        return text + f"{baseline} finds the most pass keys, {top:.0%}"
    if baseline in best:
        return text + f"{baseline} finds {top:.0%} of the pass keys and no variant finds more"
    named = ", ".join(best[:-1]) + " and " + best[-1] if len(best) > 1 else best[0]
    found = f"{shares[baseline]:.0%}" if baseline in shares else "–"
    return text + f"{baseline} finds {found} of the pass keys, {named} {top:.0%}"
