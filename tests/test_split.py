"""The stage `split`: by session or by near-duplicate group, never by image."""

from pathlib import Path
from random import Random
from typing import List, Tuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.images_table import read_images
from pipelines.params import SplitParams
from pipelines.split import PARTS, assign, split
from serving.errors import OperatorError, RejectedError


def params(by: str = "auto", seed: int = 1) -> SplitParams:
    return SplitParams(by=by, validation=0.15, test=0.2, seed=seed)  # type: ignore[arg-type]


def table(rows: List[Tuple[int, int, str]]) -> pd.DataFrame:
    """An images.csv of (session, group, label)."""
    return pd.DataFrame(
        {
            "image": [f"s{session}/{label}/{i:04}.jpg" for i, (session, _, label) in enumerate(rows)],
            "label": [label for *_, label in rows],
            "session": [f"s{session}" for session, *_ in rows],
            "source": [f"s{session}" for session, *_ in rows],
            "group": [group for _, group, _ in rows],
            "readable": True,
            "simulated": False,
        }
    )


def sessions(count: int, images: int = 20) -> pd.DataFrame:
    """Sessions of equal size with both classes and no near-duplicates."""
    rows = [(s, s * images + i, "blocked" if i % 2 else "free") for s in range(count) for i in range(images)]
    return table(rows)


def test_simulated_images_beside_real_ones_are_all_learned_from() -> None:
    """How a robot does in a real room is measured in real rooms; the shares are of the real images."""
    images = sessions(20)
    images["simulated"] = images["session"].isin([f"s{number}" for number in range(10)])
    got, report = split(images, params())
    assert set(got[got["simulated"]]["part"]) == {"train"}
    assert report["simulated_beside_real"] == 200
    shares = got[~got["simulated"]]["part"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.06)
    alone, _ = split(images.assign(simulated=True), params())
    assert set(alone["part"]) == set(PARTS)


def test_whole_sessions_go_to_a_part_where_that_is_possible() -> None:
    """With many sessions, test images come from drives that training has not seen, and the shares are about right."""
    got, report = split(sessions(20), params())
    assert report["by"] == "session"
    assert (got.groupby("session")["part"].nunique() == 1).all()
    shares = got["part"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.65, abs=0.03)
    assert shares["validation"] == pytest.approx(0.15, abs=0.03)
    assert shares["test"] == pytest.approx(0.2, abs=0.03)


def test_auto_falls_back_to_groups_and_says_so() -> None:
    """Two sessions cannot fill three parts; the report says what that costs."""
    got, report = split(sessions(2), params())
    assert report["by"] == "group"
    assert report["asked"] == "auto"
    assert "not by session, because part" in report["why"]
    assert "drives that training has seen" in report["why"]
    assert set(got["part"]) == set(PARTS)


def test_auto_does_not_take_a_lopsided_split_by_session() -> None:
    """Three equal sessions would give each part a third: too far from the shares that were asked for."""
    _, report = split(sessions(3), params())
    assert report["by"] == "group"
    assert "of the images instead of" in report["why"]


def test_a_group_that_spans_sessions_keeps_them_together() -> None:
    """Two sessions that show one same view are one unit, by session as by group."""
    images = sessions(8)
    images.loc[images["image"].isin([images["image"][0], images["image"][20]]), "group"] = 9999
    for seed in range(5):
        got, _ = split(images, params("session", seed))
        assert got[got["session"].isin(["s0", "s1"])]["part"].nunique() == 1


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("session", "blocked in 2 and free in 2 sessions without shared views"),
        ("group", "blocked in 2 and free in 40 different views"),
        ("auto", "collect more images of different views"),
    ],
)
def test_a_part_without_a_class_is_an_error_that_says_what_to_do(by: str, says: str) -> None:
    """Two units cannot serve three parts."""
    images = table([(s, i, "free") for s in range(2) for i in range(s * 20, s * 20 + 20)])
    more = table([(s, 100 + s, "blocked") for s in range(2) for _ in range(5)])
    with pytest.raises(RejectedError, match=says):
        split(pd.concat([images, more], ignore_index=True), params(by))


def test_unreadable_images_are_in_no_part() -> None:
    """A schema may let them pass; training could not read them, and the report counts them."""
    images = sessions(10)
    images.loc[3, "readable"] = False
    got, report = split(images, params())
    assert images["image"][3] not in set(got["image"])
    assert report["unreadable_left_out"] == 1


def test_ten_thousand_groups_are_quick_and_near_their_shares() -> None:
    """The search scales: both classes within one percent of what was asked."""
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 6, (10_000, 2))
    shares = (0.65, 0.15, 0.2)
    part = assign(counts, shares, seed=1)
    for index, share in enumerate(shares):
        assert counts[part == index].sum(axis=0) / counts.sum(axis=0) == pytest.approx(share, abs=0.01)


def test_without_the_table_it_says_what_to_run(tmp_path: Path) -> None:
    """The stage before has not run."""
    with pytest.raises(OperatorError, match="dvc repro validate"):
        read_images(tmp_path / "images.csv")


rows = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 40), st.sampled_from(["blocked", "free"])), min_size=1, max_size=120
)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from(["auto", "session", "group"]), st.integers(0, 1000), st.randoms())
def test_properties_of_every_split(drawn: List[Tuple[int, int, str]], by: str, seed: int, shuffler: Random) -> None:
    """Every image exactly once, no group in two parts, by session no session in two, all classes in all parts, and the
    same whatever the order of the rows."""
    images = table(drawn)
    try:
        got, report = split(images, params(by, seed))
    except RejectedError:
        return
    assert sorted(got["image"]) == sorted(images["image"])
    assert (got.groupby("group")["part"].nunique() == 1).all()
    if report["by"] == "session":
        assert (got.groupby("session")["part"].nunique() == 1).all()
    assert got.groupby("part")["label"].nunique().to_dict() == dict.fromkeys(PARTS, 2)
    order = list(range(len(images)))
    shuffler.shuffle(order)
    again, _ = split(images.iloc[order].reset_index(drop=True), params(by, seed))
    pd.testing.assert_frame_equal(got, again)
