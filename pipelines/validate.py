"""Stage `validate`: measures every image and asks what data/schema.yaml expects of them.

Reads the sessions in place, data/labels.csv and data/schema.yaml, as the block `data` of params.yaml names them. Writes
build/validate/images.csv (pipelines/images_table.py), report.json, and docs/ (Great Expectations' Data Docs).
No side effects: the stage `train` logs what is written here to MLflow.
"""

from pathlib import Path
from typing import Any

import click
import msgspec
import pandas as pd

from pipelines.expectations import Result, ask, load_schema
from pipelines.images_table import build, read_corrections, write_text
from pipelines.params import DataParams, block
from serving.command_line import run
from serving.contracts.sessions import LABELS
from serving.errors import RejectedError

OUT = Path("build/validate")
SHOWN = 10  # failing rows named on the terminal; the report names all


def validate(params: DataParams, out: Path = OUT) -> list[Result]:
    """Builds the table, asks the expectations, writes both down.

    Raises:
        OperatorError: there is no session, or a file that params.yaml names cannot be read.
        RejectedError: a session is broken, or a correction is wrong. Failed expectations do not raise here.
    """
    schema = load_schema(Path(params.schema))  # before the long part
    images = build(params)
    write_text(out / "images.csv", images.to_csv(index=False))
    results = ask(schema, images, out / "docs", params.schema)
    write_text(out / "report.json", _report(images, results, params))
    return results


def _report(images: pd.DataFrame, results: list[Result], params: DataParams) -> str:
    report: dict[str, Any] = {
        "passed": not failed(results, "error"),
        "images": len(images),
        "classes": {label: int((images["label"] == label).sum()) for label in LABELS},
        "sessions": int(images["session"].nunique()),
        "sources": int(images["source"].nunique()),
        "groups": int(images["group"].nunique()),
        "corrected_labels": len(read_corrections(Path(params.labels))),
        "expectations": msgspec.to_builtins(results),
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def failed(results: list[Result], severity: str) -> list[Result]:
    return [one for one in results if not one.passed and one.severity == severity]


def describe(result: Result) -> str:
    """A failed expectation with the rows that fail it, the first ones and how many more."""
    lines = [f"{result.severity}: not so: {result.says}"]
    if result.table == "dataset":
        lines[0] += f" ({result.arguments.get('column', 'observed')}: {result.observed})"
        return lines[0]
    lines += [f"  {name}" for name in result.failing[:SHOWN]]
    if len(result.failing) > SHOWN:
        lines.append(f"  and {len(result.failing) - SHOWN} more")
    return "\n".join(lines)


@click.command()
def command() -> None:
    """Stage `validate`: measure every image, ask what data/schema.yaml expects of them.

    Errors stop the pipeline, warnings stay in build/validate/report.json. Open build/validate/docs/index.html to read
    the results in full.

    \b
    Example:
      dvc repro validate
    """
    params = block(DataParams)
    results = validate(params)
    for result in failed(results, "warning") + failed(results, "error"):
        click.echo(describe(result), err=True)
    errors = failed(results, "error")
    if errors:
        raise RejectedError(
            f"{len(errors)} of {len(results)} expectations in {params.schema} failed; all of it is in "
            f"{OUT / 'report.json'}; correct labels in {params.labels}, or withdraw a session (docs/data.md)"
        )
    holding = sum(one.passed for one in results)
    click.echo(f"{holding} of {len(results)} expectations hold, {len(results) - holding} warnings")


if __name__ == "__main__":
    run(command)
