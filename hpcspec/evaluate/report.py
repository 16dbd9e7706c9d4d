"""Results of a row: figures gathered over seeds and methods, and their tables in Markdown and JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcspec.atomic import write_json, write_text
from hpcspec.errors import UserError
from hpcspec.evaluate.metrics import over_seeds

GOAL = re.compile(r"(<=|>=)\s*([\d.eE+-]+)(\s+best)?|([\d.eE+-]+)\s*\.\.\s*([\d.eE+-]+)")
HIGHER = ("accuracy", "F1", "retrieval", "precision", "AUROC", "Rand", "purity")
RIGHT = re.compile(r"cover|bias|^chi2/pixel$|chance|one cluster|without|with the model's error")  # neither high nor low is good


@dataclass
class Result:
    """What one experiment found. figures: {(target, figure): {method: [value of each seed]}}; `models` are the methods that
    are runs of the model, the others are baselines."""

    name: str
    title: str
    goals: Mapping[str, str] = field(default_factory=dict)
    figures: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, target: str, method: str, figures: Mapping[str, float], n: int, model: bool = False) -> None:
        """One seed's figures of a method for a target, over n objects."""
        for name, value in figures.items():
            if math.isfinite(value):
                self.figures.setdefault((target, name), {}).setdefault(method, []).append(float(value))
                self.counts[target, method] = n
        if model and method not in self.models:
            self.models.append(method)

    def goal(self, target: str, figure: str) -> tuple[str, bool | None]:
        """The goal of a figure and whether the run that stands first in the experiment meets it; None where that isn't known."""
        text = self.goals.get(f"{target} {figure}", "")
        found = self.figures.get((target, figure), {})
        ours = [over_seeds(found[m])[0] for m in self.models[:1] if m in found]
        others = [over_seeds(v)[0] for m, v in found.items() if m not in self.models]
        match = GOAL.fullmatch(text.strip())
        if not text:
            return "", None
        if match is None:
            raise UserError(f"{self.name}: goal {text!r} of {target} {figure}: write <= x, >= x, x..y, or one of them × best")
        sign, bound, relative, low, high = match.groups()
        if not ours or (relative and not others):
            return text, None
        if low:
            return text, any(float(low) <= x <= float(high) for x in ours)
        limit = float(bound) * ((min if sign == "<=" else max)(others) if relative else 1.0)
        return text, any(x <= limit if sign == "<=" else x >= limit for x in ours)

    def as_json(self) -> dict[str, Any]:
        """Everything, for a machine."""
        lines = []
        for (target, figure), methods in self.figures.items():
            goal, met = self.goal(target, figure)
            for method, values in methods.items():
                mean, sd = over_seeds(values)
                lines.append({"target": target, "figure": figure, "method": method, "model": method in self.models, "mean": mean,
                              "sd": sd if math.isfinite(sd) else None, "values": values, "seeds": len(values),
                              "n": self.counts[target, method], "goal": goal or None, "goal_met": met})  # fmt: skip
        return {"experiment": self.name, "title": self.title, "figures": lines, "seconds": self.seconds,
                "not_measured": self.missing, "plots": self.plots, "notes": self.notes}  # fmt: skip

    def markdown(self) -> list[str]:
        """The lines of its section: a row for each figure, a column for each method, the best in bold."""
        lines = [f"## {self.title}", ""]
        methods = list(dict.fromkeys(m for found in self.figures.values() for m in found))
        methods = [m for m in methods if m in self.models] + [m for m in methods if m not in self.models]
        if methods:
            lines += [_line(["target", "figure", "n", *methods, "goal"]), _line(["---"] * (len(methods) + 4))]
        for (target, figure), found in self.figures.items():
            goal, met = self.goal(target, figure)
            best = _best(figure, found)
            cells = [("**{}**" if m == best else "{}").format(_shown(found[m])) if m in found else "–" for m in methods]
            n = sorted({self.counts[target, m] for m in found})
            said = goal + ("" if met is None else ": met" if met else ": **missed**")
            lines.append(_line([target, figure, "–".join(map(str, {n[0]: 0, n[-1]: 0})), *cells, said]))
        lines += [""] if methods else []
        for text in self.missing:
            lines += [f"not measured: {text}", ""]
        for text in self.notes:
            lines += [text, ""]
        if self.seconds:
            lines += ["Seconds: " + ", ".join(f"{m} {s:.0f}" for m, s in self.seconds.items()) + ".", ""]
        for name in self.plots:
            lines += [f"![{name}]({name})", ""]
        return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(values: Sequence[float]) -> str:
    mean, sd = over_seeds(values)
    return f"{mean:.4g}" + (f" ± {sd:.2g}" if math.isfinite(sd) else "")


def _best(figure: str, found: Mapping[str, list[float]]) -> str:
    """The method that is best; none for a share that has a right value, such as a coverage."""
    if RIGHT.search(figure) or len(found) < 2:
        return ""
    means = {m: over_seeds(v)[0] for m, v in found.items()}
    return (max if _higher(figure) else min)(means, key=lambda m: means[m])


def _higher(figure: str) -> bool:
    return any(word in figure for word in HIGHER)


def compared(results: Sequence[Result], run: str) -> list[dict[str, Any]]:
    """Each figure of a run beside the best of the model's other runs: better by this share of it (of its distance from 1, where
    1 is the most there can be), negative where worse; the sd of the difference of the means where both have several seeds."""
    lines = []
    for result in results:
        for (target, figure), found in result.figures.items():
            others = {m: v for m, v in found.items() if m in result.models and m.partition(",")[0] != run}
            mine = {m: v for m, v in found.items() if m in result.models and m.partition(",")[0] == run}
            for method, values in mine.items():
                alike = {m: v for m, v in others.items() if m.partition(",")[1:] == method.partition(",")[1:]}
                if not alike or RIGHT.search(figure):
                    continue
                higher, (ours, sd) = _higher(figure), over_seeds(values)
                best = (max if higher else min)(alike, key=lambda m: over_seeds(alike[m])[0])
                theirs, their_sd = over_seeds(alike[best])
                whole = abs(1 - theirs) if higher else abs(theirs)
                noise = math.hypot(sd / len(values) ** 0.5, their_sd / len(alike[best]) ** 0.5)
                lines.append({"experiment": result.name, "target": target, "figure": figure, "run": method, "value": ours,
                              "other": best, "other_value": theirs, "sd": noise if math.isfinite(noise) else None,
                              "better_by": (ours - theirs if higher else theirs - ours) / max(whole, 1e-9)})  # fmt: skip
    return lines


def comparison(lines: Sequence[Mapping[str, Any]], run: str) -> list[str]:
    """A section in Markdown of what `compared` found."""
    better, worse = (sum(sign * x["better_by"] > 0 for x in lines) for sign in (1, -1))
    out = [f"## {run} beside the best single-purpose run", "",
           f"Better in {better} of {len(lines)} figures, worse in {worse}, equal in {len(lines) - better - worse}. The share is "
           "of the error that the other run leaves.", ""]  # fmt: skip
    out += [_line(["experiment", "target", "figure", run, "other run", "its value", "better by"]), _line(["---"] * 7)]
    for x in lines:
        said = f"{100 * x['better_by']:+.1f} %"
        cells = [x["experiment"], x["target"], x["figure"], f"{x['value']:.4g}", x["other"], f"{x['other_value']:.4g}"]
        out.append(_line([*cells, said if x["better_by"] >= 0 else f"**{said}**"]))
    return [*out, ""]


def write(folder: Path, row: str, command: str, facts: Mapping[str, str], results: Sequence[Result],
          compare: str | None = None) -> None:  # fmt: skip
    """`<row>.md` and `<row>.json` in the folder; with the run to `compare`, how it stands beside the model's others."""
    lines = [f"# {row}", "", f"`{command}`", "", ". ".join(f"{k}: {v}" for k, v in facts.items()) + ".", "",
             "Means over the seeds ± sample standard deviation where there is more than one; MAD is 1.4826·MAD.", ""]  # fmt: skip
    beside = compared(results, compare) if compare else []
    if compare and beside:
        lines += comparison(beside, compare)
    for result in results:
        lines += result.markdown()
    write_text(folder / f"{row}.md", "\n".join(lines).rstrip() + "\n")
    write_json(folder / f"{row}.json", {"row": row, "command": command, **facts, "experiments": [r.as_json() for r in results],
                                          **({"comparison": beside} if compare else {})})  # fmt: skip
