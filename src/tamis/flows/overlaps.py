"""Places of a run that must lie apart: nothing it reads may be replaced by what it writes."""

from pathlib import Path

from upath import UPath

from tamis.recipe import Recipe
from tamis.selectors.reference import references_of
from tamis.storage.corpus import Corpus
from tamis.storage.errors import UserError
from tamis.storage.ingest import SOURCE_SCHEMES
from tamis.storage.places import STORES, Place, absolute, is_remote, kind_of, place_of, shown


def _inside(place: Place, folder: Place) -> bool:
    """Whether a place is a folder or lies in it; on different stores it does not."""
    inner, outer = (
        str(absolute(p)).rstrip("/").replace("s3a://", "s3://").replace("gcs://", "gs://")
        for p in (place, folder)
    )
    return f"{inner}/".startswith(f"{outer}/")


def check_places(workspace: Place, output: Place | None) -> None:
    """Refuse folders that lie in one another: publishing would remove the workspace.

    Raises:
        UserError: naming them.
    """
    if output is not None and (_inside(workspace, output) or _inside(output, workspace)):
        raise UserError(
            "output and workspace lie in one another", where=shown(output), mend="separate them"
        )
    for place in (workspace, output):
        if isinstance(place, UPath) and is_remote(place) and place.protocol not in STORES:
            raise UserError(
                "a place that is read from only",
                where=shown(place),
                mend=f"write to a local folder or to {', '.join(f'{s}://' for s in STORES)}",
            )


def check_inputs(recipe: Recipe, corpus: Corpus) -> None:
    """Refuse a run that would replace its own input, or take its own output for input next time.

    Raises:
        UserError: naming the place.
    """
    places = {"workspace": recipe.workspace_path}
    if recipe.output is not None:
        places["output"] = place_of(recipe.output.path)
    searched = _searched(recipe.corpus.path)
    searched += [place_of(found.path) for found in corpus.inputs if Path(found.path).is_dir()]
    for name, place in places.items():
        for found in corpus.inputs:
            if _inside(place_of(found.path), place):
                raise UserError(
                    f"the corpus lies in the {name}, which the run would replace or clear",
                    where=found.path,
                    mend=f"name another {name}",
                )
        for folder in searched:
            if _inside(place, folder):
                raise UserError(
                    f"the {name} lies inside the corpus {shown(folder)}",
                    where=shown(place),
                    mend="put it elsewhere: the next run would take it for input",
                )


def _searched(path: str) -> list[Place]:
    """Folders that a path is looked for in."""
    if path.startswith(tuple(SOURCE_SCHEMES)):
        return []
    return [place_of(path), *([place_of(path.split("*")[0])] if "**" in path else [])]


def check_indices(recipe: Recipe) -> None:
    """Refuse an index where it would be read as input, or replaced with the dataset.

    Raises:
        UserError: naming it.
    """
    references = [found for stage in recipe.stages for found in references_of(stage)]
    folders = [("corpus", place) for place in _searched(recipe.corpus.path)]
    folders += [("reference", place) for one in references for place in _searched(one.path)]
    if recipe.output is not None:
        folders.append(("output", place_of(recipe.output.path)))
    for index in {one.index: None for one in references if one.index is not None}:
        for name, folder in folders:
            if _inside(place_of(index), folder):
                raise UserError(
                    f"the index of a reference lies in the {name} {shown(folder)}",
                    where=shown(index),
                    mend="name a folder of its own",
                )


def check_references(recipe: Recipe) -> None:
    """Refuse a reference that holds what the run writes: run again, it would drop its own rows.

    Raises:
        UserError: naming the reference.
    """
    if recipe.output is None:
        return
    output = place_of(recipe.output.path)
    for reference in (found for stage in recipe.stages for found in references_of(stage)):
        searched = place_of(reference.path)
        own = kind_of(searched) == "directory" and _inside(output, searched)
        if own or any(_inside(place_of(file), output) for file in reference.files):
            raise UserError(
                "the reference holds this run's own output",
                where=shown(reference.path),
                mend="write elsewhere, and move the dataset there once the run has ended",
            )
