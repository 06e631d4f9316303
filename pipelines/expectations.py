"""Asks the expectations of data/schema.yaml of the images, with Great Expectations. The form is told in that file.

The context is ephemeral: nothing is kept but the results and the Data Docs, pages that people read.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from serving.contracts.sessions import LABELS
from serving.errors import OperatorError
from serving.settings import convert

KEYS = {"images": "image", "sessions": "session", "dataset": "dataset"}  # the column that names a row
_SEVERITIES = {"error": "critical", "warning": "warning"}  # ours -> Great Expectations'


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One expectation of data/schema.yaml."""

    says: Annotated[str, msgspec.Meta(min_length=1)]
    expect: Annotated[str, msgspec.Meta(pattern=r"^expect_[a-z0-9_]+$")]
    arguments: dict[str, Any] = msgspec.field(name="with", default_factory=dict)
    severity: Annotated[str, msgspec.Meta(pattern="^(error|warning)$")]


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """data/schema.yaml: expectations per table."""

    images: list[Expectation]
    sessions: list[Expectation] = []
    dataset: list[Expectation] = []


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one expectation. `failing` names rows also where few enough fail for it to hold (`mostly`)."""

    says: str
    table: Literal["images", "sessions", "dataset"]
    severity: str
    passed: bool
    expect: str
    arguments: dict[str, Any]
    observed: Any = None
    failing: list[str] = []


def load_schema(path: Path) -> Schema:
    """Reads data/schema.yaml.

    Raises:
        OperatorError: it cannot be read, or a key or value in it is not allowed.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise OperatorError(f"{path} cannot be read: {problem}; data.schema in params.yaml names it") from None
    except (YAMLError, ValueError) as problem:
        raise OperatorError(f"{path} is not valid YAML: {' '.join(str(problem).split())}") from None
    return convert(raw, Schema, str(path))


def tables(images: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The three tables that expectations may be about, made from the table of images."""
    counted = images.assign(**{label: images["label"] == label for label in LABELS})
    per_session = counted.groupby("session").agg(
        source=("source", "first"), images=("image", "size"), **{label: (label, "sum") for label in LABELS}
    )
    counts = {label: int(counted[label].sum()) for label in LABELS}
    dataset = {
        "dataset": "all images",
        "images": len(images),
        "sessions": images["session"].nunique(),
        "sources": images["source"].nunique(),
        "groups": images["group"].nunique(),
        **counts,
        "classes": sum(count > 0 for count in counts.values()),
        "blocked_share": counts["blocked"] / len(images),
    }
    sessions = per_session.reset_index()
    sessions["blocked_share"] = sessions["blocked"] / sessions["images"]
    return {"images": images, "sessions": sessions, "dataset": pd.DataFrame([dataset])}


def ask(schema: Schema, images: pd.DataFrame, docs: Path, source: str) -> list[Result]:
    """Asks all expectations and writes the Data Docs.

    Args:
        schema: what to ask.
        images: the table of images.
        docs: folder of the Data Docs; what is there is replaced.
        source: file name of the schema, for messages.

    Raises:
        OperatorError: Great Expectations does not know an expectation or its arguments, or cannot ask it.
    """
    # Before the import: it would otherwise send usage statistics.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)  # else it leaves a folder in /tmp each time
    context = gx.get_context(mode="ephemeral", project_config=DataContextConfig(store_backend_defaults=stores))
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    data_source = context.data_sources.add_pandas("jetloop")
    results: list[Result] = []
    with _docs_at(context, docs):
        for name, table in tables(images).items():
            expectations: list[Expectation] = getattr(schema, name)
            if not expectations:
                continue
            suite = context.suites.add(gx.ExpectationSuite(name=name))
            for expectation in expectations:
                suite.add_expectation(_to_gx(expectation, source))
            batch = data_source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
            definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
            validated = context.validation_definitions.add(definition).run(
                batch_parameters={"dataframe": table},
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [KEYS[name]]},
            )
            results += _results(name, expectations, validated, source)
    return results


@contextlib.contextmanager
def _docs_at(context: Any, docs: Path) -> Iterator[None]:
    shutil.rmtree(docs, ignore_errors=True)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    site = {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
    context.add_data_docs_site("docs", site)
    yield
    context.build_data_docs()


def _to_gx(expectation: Expectation, source: str) -> Any:
    from great_expectations.exceptions.exceptions import GreatExpectationsError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.metadata_types import FailureSeverity

    try:
        return ExpectationConfiguration(
            type=expectation.expect,
            kwargs=dict(expectation.arguments),
            description=expectation.says,
            severity=FailureSeverity(_SEVERITIES[expectation.severity]),
        ).to_domain_obj()
    except (GreatExpectationsError, ValueError, TypeError) as problem:
        why = " ".join(str(problem).split())
        raise OperatorError(f"{source}: `{expectation.says}`: {why}") from None


def _results(name: Any, expectations: list[Expectation], validated: Any, source: str) -> list[Result]:
    """Pairs what was asked with what came of it; Great Expectations may answer in another order."""
    results = []
    by_text = {(one.says, one.severity): one for one in expectations}
    for answer in validated.results:
        raw = answer.to_json_dict()
        config = raw["expectation_config"]
        severity = next(ours for ours, theirs in _SEVERITIES.items() if theirs == config["severity"])
        asked = by_text[(config["description"], severity)]
        if raw["exception_info"] and _exception(raw["exception_info"]):
            raise OperatorError(f"{source}: `{asked.says}` cannot be asked: {_exception(raw['exception_info'])}")
        outcome = raw["result"]
        failing = [str(row[KEYS[name]]) for row in outcome.get("unexpected_index_list") or []]
        results.append(
            Result(
                says=asked.says,
                table=name,
                severity=asked.severity,
                passed=bool(raw["success"]),
                expect=asked.expect,
                arguments=asked.arguments,
                observed=outcome.get("observed_value", _observed(outcome)),
                failing=failing,
            )
        )
    return results


def _observed(outcome: dict[str, Any]) -> Any:
    """What a failing expectation about single rows saw: the first values, enough to see what is wrong."""
    return outcome.get("partial_unexpected_list") or None


def _exception(info: dict[str, Any]) -> str:
    """The first line of an exception that Great Expectations caught; empty if there was none."""
    if "raised_exception" in info:
        infos = [info]
    else:
        infos = [one for one in info.values() if isinstance(one, dict)]
    for one in infos:
        if one.get("raised_exception"):
            return str(one.get("exception_message") or "unknown").strip().splitlines()[0]
    return ""
