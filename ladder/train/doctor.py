"""Which layers are dead, said while training, with the lever to pull.

`diagnose` is a pure function of what metrics.jsonl holds, so that a report, a test and a resumed
run come to the same findings. A layer is dead when all its units together have a KL under 0.1
nats: it says nothing beyond the layers above. Its active units do not count for it, because the
posterior mean of a layer that only passes on what its neighbours drew varies too; nor does the
number of units with some KL, because a sampled KL has noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

from ladder.config import ObjectiveConfig, Schedule
from ladder.train.schemes import Scheme, annealing_at, layer_schemes
from ladder.train.step import padded

Record = dict[str, Any]
Lever = Literal["annealing", "free_bits", "kl_target", "learning_rate"]

DEAD = 0.1  # nats of a layer; a seventh of a bit
SETTLED = 1000  # steps before which no layer is judged
PATIENCE = 3  # evaluations in a row that must agree
SHORT = 0.1  # of all steps: an annealing that ends before is short
SPIKE = 10.0  # times the median before it: a gradient norm, or a layer's KL, that explodes
HUGE = 100.0  # nats below which no KL explodes
RECENT = 50  # evaluations that are looked at
WINDOWS = (10, 50)  # logged windows that a median needs, and takes at most

KL = "val/kl_z"
KEPT = ("step", KL, "train/grad_norm", "train/lr")


class Finding(NamedTuple):
    """Something wrong with a layer.

    Attributes:
        kind: `dead`, or `exploding`: a KL ten times what it was.
        layer: Such as `z2`.
        step: Step of the evaluation that shows it.
        lever: What to pull.
        change: The same as a word for the command line of a new run.
        sentence: All of it, for a person.
    """

    kind: Literal["dead", "exploding"]
    layer: str
    step: int
    lever: Lever
    change: str
    sentence: str


def diagnose(
    history: Sequence[Record], objective: ObjectiveConfig, total_steps: int | None = None
) -> list[Finding]:
    """Find the dead and the exploding layers at the end of a history.

    A layer is judged only after 1,000 steps, by the last three evaluations at which its KL weighed
    at least half of what it will in the end, and not while its KL still doubles.

    Args:
        history: Lines of metrics.jsonl, in order.
        objective: What was optimised.
        total_steps: Steps of the whole run; `None` takes the last one seen.

    Returns:
        Findings, the data's side first; none before there is enough to judge by.

    Raises:
        UserError: If the objective names a layer that the history does not know.
    """
    evaluations = _evaluations(history)
    if not evaluations:
        return []
    total = total_steps or evaluations[-1]["step"]
    schemes = _schemes(evaluations, objective)
    findings = []
    for name, layer in _judged(evaluations, schemes).items():
        scheme = schemes[name]
        if _dead(layer):
            findings.append(_dead_finding(name, layer, _lever(history, name, scheme, total)))
        elif _exploding(layer):
            findings.append(_exploding_finding(name, layer, _lower_lr(history)))
    return findings


def verdict(
    history: Sequence[Record], objective: ObjectiveConfig, total_steps: int | None = None
) -> str:
    """What `diagnose` comes to, in words."""
    findings = diagnose(history, objective, total_steps)
    if findings:
        return "; ".join(f.sentence for f in findings)
    evaluations = _evaluations(history)
    judged = _judged(evaluations, _schemes(evaluations, objective)) if evaluations else {}
    if min(map(len, judged.values()), default=0) < PATIENCE:
        return (
            f"too early to judge: that needs {PATIENCE} evaluations from step {SETTLED:,} on, "
            "with the KL at half its final weight or more"
        )
    return "no layer is dead and no KL exploded"


class Doctor:
    """Follows a run and says each finding once.

    Args:
        objective: What is optimised.
        total_steps: Steps of the whole run.
        history: Lines of metrics.jsonl so far; what they say was found is not said again.
    """

    def __init__(
        self, objective: ObjectiveConfig, total_steps: int, history: Sequence[Record] = ()
    ) -> None:
        self.objective, self.total_steps = objective, total_steps
        self.history: list[Record] = []
        self.said: set[tuple[str, str]] = set()
        for record in history:
            self.note(record)

    def note(self, record: Record) -> None:
        """Take up a line of metrics.jsonl."""
        self.history.append({k: v for k, v in record.items() if k.startswith(KEPT)})
        self.said |= {(f["kind"], f["layer"]) for f in record.get("doctor", ())}

    def news(self) -> list[Finding]:
        """Findings that were not said before."""
        found = diagnose(self.history, self.objective, self.total_steps)
        fresh = [f for f in found if (f.kind, f.layer) not in self.said]
        self.said |= {(f.kind, f.layer) for f in fresh}
        return fresh


class _Point(NamedTuple):
    """A layer at an evaluation that may judge it."""

    step: int
    kl: float


Advice = tuple[Lever, str, str]  # lever, word for the command line, clause


def _evaluations(history: Sequence[Record]) -> list[Record]:
    return [r for r in history if any(key.startswith(KL) for key in r)][-RECENT:]


def _schemes(evaluations: Sequence[Record], objective: ObjectiveConfig) -> dict[str, Scheme]:
    """What the objective says about each layer, z1 first."""
    numbers = sorted(int(k.removeprefix(KL)) for k in evaluations[-1] if k.startswith(KL))
    return layer_schemes(objective, [f"z{i}" for i in numbers])


def _judged(
    evaluations: Sequence[Record], schemes: Mapping[str, Scheme]
) -> dict[str, list[_Point]]:
    """Each layer wherever it may be judged: after the beginning, where its KL weighs enough."""
    late = [r for r in evaluations if r["step"] >= SETTLED]
    weighing = {
        schedule: [r for r in late if _weighs(schedule, r["step"] - 1)]
        for schedule in {scheme.kl_annealing for scheme in schemes.values()}
    }
    return {
        # A KL that costs nothing collapses nothing.
        name: [
            _Point(r["step"], r[f"val/kl_{padded(name)}"])
            for r in (weighing[scheme.kl_annealing] if scheme.beta else [])
        ]
        for name, scheme in schemes.items()
    }


def _weighs(schedule: Schedule, step: int) -> bool:
    final = schedule.value if schedule.kind == "constant" else schedule.end
    return final > 0.0 and annealing_at(schedule, step).item() >= 0.5 * final


def _dead(layer: Sequence[_Point]) -> bool:
    last = layer[-PATIENCE:]
    if len(last) < PATIENCE or any(abs(point.kl) >= DEAD for point in last):
        return False
    first, now = abs(last[0].kl), abs(last[-1].kl)
    return not (now > 0.5 * DEAD and now > 2.0 * first)


def _exploding(layer: Sequence[_Point]) -> bool:
    if len(layer) <= PATIENCE:
        return False
    return layer[-1].kl > max(HUGE, SPIKE * abs(median(point.kl for point in layer[:-1])))


def _dead_finding(name: str, layer: Sequence[_Point], advice: Advice) -> Finding:
    lever, change, clause = advice
    sentence = (
        f"layer {name} is dead: from step {layer[-PATIENCE].step:,} to {layer[-1].step:,} its KL "
        f"on held-out data is under {DEAD} nats ({layer[-1].kl:.2g}); {clause}"
    )
    return Finding("dead", name, layer[-1].step, lever, change, sentence)


def _exploding_finding(name: str, layer: Sequence[_Point], advice: Advice) -> Finding:
    lever, change, clause = advice
    before = median(point.kl for point in layer[:-1])
    sentence = (
        f"the KL of layer {name} exploded: {layer[-1].kl:.3g} nats on held-out data at "
        f"step {layer[-1].step:,}, usually {before:.3g} before; {clause}"
    )
    return Finding("exploding", name, layer[-1].step, lever, change, sentence)


def _lever(history: Sequence[Record], name: str, scheme: Scheme, total: int) -> Advice:
    """The first lever that was not pulled."""
    spike = _spike(history)
    if spike is not None:
        lever, change, clause = _lower_lr(history)
        return lever, change, f"the gradient norm exploded at step {spike:,}, so {clause}"
    schedule = scheme.kl_annealing
    change = f"objective.kl_annealing={{kind: linear, steps: {max(SETTLED, total // 5)}}}"
    if schedule.kind == "constant":
        return "annealing", change, f"anneal the KL: {change}"
    if schedule.kind in ("linear", "cosine") and schedule.steps < SHORT * total:
        return "annealing", change, f"anneal for more than {schedule.steps:,} steps: {change}"
    if scheme.free_bits is None and scheme.kl_target is None:
        change = f"objective.layers={{{name}: {{free_bits: {{nats: 1.0}}}}}}"
        return "free_bits", change, f"give it free bits: {change}"
    if scheme.kl_target is None:
        change = f"objective.layers={{{name}: {{free_bits: null, kl_target: 1.0}}}}"
        return "kl_target", change, f"hold its KL at a target: {change}"
    return _lower_lr(history)


def _lower_lr(history: Sequence[Record]) -> Advice:
    lr = next((r["train/lr"] for r in reversed(history) if "train/lr" in r), 1e-3)
    change = f"train.lr={lr / 3:.2g}"
    return "learning_rate", change, f"lower the learning rate: {change}"


def _spike(history: Sequence[Record]) -> int | None:
    """Step of the last window whose gradient norm was far above those before, if there is one."""
    least, most = WINDOWS
    norms = [(r["step"], r["train/grad_norm"]) for r in history if "train/grad_norm" in r]
    for i in range(len(norms) - 1, least - 1, -1):
        if norms[i][1] > SPIKE * median(norm for _, norm in norms[max(0, i - most) : i]):
            step: int = norms[i][0]
            return step
    return None
