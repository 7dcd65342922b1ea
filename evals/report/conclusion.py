"""One sentence that says what a run found, computed from its figures.

Only cells with all their samples count, and a difference counts only where its 95 % confidence
interval, paired by document, leaves out zero: everything else is called a tie. What is missing and
what is not finite is said after the sentence.
"""

from collections.abc import Sequence
from math import isfinite

from ropewalk.evals.report.statistics import mean
from ropewalk.evals.report.summary import Loss, Summary

# A loss counts as having risen or fallen when it moves by more than this share.
NOTICEABLE = 0.005
# Losses are shown with three decimals; closer ones are equal to the reader.
SHOWN = 0.0005
# More names than this in one enumeration are counted instead.
MOST_NAMES = 3


def conclusion(summary: Summary) -> str:
    """What came out: the first variant against the best one at the longest length.

    Only what is in the run is said; a run without results gives a sentence that says so.
    """
    if summary.measured == 0:
        return "This run has no results yet."
    parts = [
        part
        for part in (_loss_part(summary), _passkey_part(summary), _contexts_part(summary))
        if part
    ]
    sentences = []
    if parts:
        text = "; ".join(parts) + "."
        sentences.append(text[0].upper() + text[1:])
    sentences += [text for text in (_not_finite(summary), incompleteness(summary)) if text]
    return " ".join(sentences) or "This run allows no conclusion."


def incompleteness(summary: Summary) -> str:
    """Says how much of a run is missing; empty for a complete one."""
    if summary.complete:
        return ""
    return f"Not complete: {summary.measured} of {summary.planned_samples} samples."


def _not_finite(summary: Summary) -> str:
    """Says where losses were infinite or not a number, which keeps them out of all comparisons."""
    places = []
    for variant in summary.variants:
        lengths = [
            str(length)
            for length in summary.lengths
            if (variant, length) in summary.losses
            and not isfinite(summary.losses[variant, length].bits_per_byte.value)
        ]
        if lengths:
            places.append(f"of {variant} at {_listed(lengths)} tokens")
    return f"The loss {_listed(places)} is not finite." if places else ""


def _loss_part(summary: Summary) -> str:
    if not summary.losses:
        return ""
    first, longest = summary.lengths[0], summary.lengths[-1]
    cells = {
        key: loss
        for key, loss in summary.losses.items()
        if isfinite(loss.bits_per_byte.value) and summary.is_whole("perplexity", loss.nats.count)
    }
    ranked = sorted(
        (variant for variant in summary.variants if (variant, longest) in cells),
        key=lambda variant: cells[variant, longest].bits_per_byte.value,
    )
    if not ranked:
        return ""
    baseline = summary.variants[0]
    level = [
        variant for variant in ranked if _tied(cells[ranked[0], longest], cells[variant, longest])
    ]
    best = baseline if baseline in level else ranked[0]
    others = [variant for variant in level if variant != best]

    def course(variant: str) -> str:
        end = cells[variant, longest].bits_per_byte.value
        if first == longest or (variant, first) not in cells:
            return f"is {end:.3f} bits per byte at {longest} tokens"
        start = cells[variant, first].bits_per_byte.value
        if abs(end / start - 1) <= NOTICEABLE:
            return f"stays at {end:.3f} bits per byte from {first} to {longest} tokens"
        verb = "falls" if end < start else "rises"
        change = cells[variant, longest].change
        unsure = abs(change.value) <= change.half_width
        return (
            f"{verb} from {start:.3f} bits per byte at {first} tokens to {end:.3f} at {longest}"
            f"{' (inside the confidence interval)' if unsure else ''}"
        )

    if len(ranked) == 1:
        rank = ""
    elif others:
        rank = f", tied with {_named(others)} for the lowest of {len(ranked)},"
    else:
        rank = f", the lowest of {len(ranked)},"
    if best == baseline or baseline not in ranked:
        return f"The loss of {best}{rank} {course(best)}"
    return f"The loss of {baseline} {course(baseline)}, that of {best}{rank} {course(best)}"


def _tied(best: Loss, other: Loss) -> bool:
    """Whether the losses on the same documents differ by no more than chance explains."""
    if abs(best.bits_per_byte.value - other.bits_per_byte.value) < SHOWN:
        return True
    shared = best.by_sample.keys() & other.by_sample.keys()
    if len(shared) < 2:
        return False
    difference = mean([other.by_sample[key] - best.by_sample[key] for key in sorted(shared)])
    return abs(difference.value) <= difference.half_width


def _passkey_part(summary: Summary) -> str:
    if not summary.retrieval_by_length:
        return ""
    longest = summary.lengths[-1]
    cells = {
        variant: summary.retrieval_by_length[variant, longest]
        for variant in summary.variants
        if (variant, longest) in summary.retrieval_by_length
        and summary.is_whole("passkey", summary.retrieval_by_length[variant, longest].count)
    }
    if not cells:
        return ""
    shares = {variant: cell.value for variant, cell in cells.items()}
    top = max(shares.values())
    best = [variant for variant, share in shares.items() if share == top]
    baseline = summary.variants[0]
    text = f"at {longest} tokens "
    if top == 0.0:
        return text + "no variant finds the pass key"
    # Shares inside the interval of the best one could be as high.
    low = cells[best[0]].low
    close = [variant for variant, share in shares.items() if low <= share < top]
    if baseline in best and len(best) == 1:
        text += f"{baseline} finds the most pass keys, {top:.0%}"
        return text + (f" (its confidence interval includes {_named(close)})" if close else "")
    if baseline in best:
        return text + f"{baseline} finds {top:.0%} of the pass keys and no variant finds more"
    found = f"{shares[baseline]:.0%}" if baseline in shares else "–"
    unsure = " (inside the confidence interval)" if baseline in close else ""
    return text + f"{baseline} finds {found} of the pass keys, {_listed(best)} {top:.0%}{unsure}"


def _contexts_part(summary: Summary) -> str:
    """NBCE against the concatenation, for the first variant, in the most contexts."""
    contexts = summary.contexts
    if contexts is None:
        return ""
    count = contexts.counts[-1]
    cells = {
        (variant, reader): contexts.shares[variant, reader, count]
        for variant, reader in contexts.rows
        if (variant, reader, count) in contexts.shares
        and summary.is_whole("nbce", contexts.shares[variant, reader, count].count)
    }
    baseline = summary.variants[0]
    merged, joined = (cells.get((baseline, name)) for name in ("min_entropy", "concatenation"))
    if merged is None or joined is None:
        return ""
    several = "contexts" if count > 1 else "context"
    text = (
        f"in {count} {several} of {contexts.context_length} tokens {baseline} finds "
        f"{merged.value:.0%} of the pass keys by NBCE with least entropy and {joined.value:.0%} in "
        "their concatenation"
    )
    others = {
        variant: cells[variant, "concatenation"].value
        for variant in summary.variants[1:]
        if (variant, "concatenation") in cells
    }
    if len(others) > MOST_NAMES:
        low, high = min(others.values()), max(others.values())
        return f"{text} ({len(others)} others {low:.0%} to {high:.0%})"
    named = [f"{variant} {share:.0%}" for variant, share in others.items()]
    return f"{text} ({_listed(named)})" if named else text


def _named(names: Sequence[str]) -> str:
    """Names, or how many there are where an enumeration would be long."""
    return _listed(names) if len(names) <= MOST_NAMES else f"{len(names)} others"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
