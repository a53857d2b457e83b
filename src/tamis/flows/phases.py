"""The phases of a dataset that was drawn by a mixture of several, as a trainer reads them."""

from typing import Any

from tamis.flows.steps import Run
from tamis.selectors.mixture_draw import MixtureDraw
from tamis.storage.write import OutputFile


def schedule_of(run: Run, entries: list[OutputFile]) -> dict[str, Any] | None:
    """The schedule of a dataset, None if it has one phase only.

    For every phase its share of the training, the mixture that was asked, and

    - of rows that are repeated what was drawn of every domain, and by file the run of rows that
      belongs to it: ``first_row`` and ``rows``;
    - of rows that are weighed the weight of every domain's rows in this phase alone.
    """
    stage = run.recipe.stages[-1] if run.recipe.stages else None
    if not isinstance(stage, MixtureDraw):
        return None
    report = run.evaluated[stage.stage].report
    if "phases" not in report:
        return None
    phases = []
    for number, told in enumerate(report["phases"]):
        files = [
            {"name": entry.name, "first_row": sum(entry.phases[:number]), "rows": rows}
            for entry in entries
            if entry.phases is not None and (rows := entry.phases[number])
        ]
        phases.append({"phase": number, **told, **({} if "weights" in told else {"files": files})})
    return {
        "format": "tamis schedule 1",
        "write_as": stage.write_as,
        "unit": report["unit"],
        "column": stage.phase_as() or stage.weight_as(),
        "phases": phases,
    }
