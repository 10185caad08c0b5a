"""What `make bench-check` demands, and that it notices what falls short, is missing, or fails."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.check import Benchmark, CeilingsError, Limit, check, flattened, read_ceilings, run, short_of

RATIO = Limit({"what": "switch"}, "ratio", aim=2.0, bound=6.0, lower_is_better=True)
SHARE = Limit({"protocol": "http", "clients": 1}, "share", aim=0.85, bound=0.3, lower_is_better=False)
QUOTIENT = Limit({"what": "switch"}, "ours / raw", aim=2.0, bound=6.0, lower_is_better=True)


def row(**fields: Any) -> dict[str, Any]:
    return {"what": "switch", **fields}


@pytest.mark.parametrize(
    ("limit", "rows", "short"),
    [
        pytest.param(RATIO, [row(ratio=1.9)], "", id="within-the-aim"),
        pytest.param(RATIO, [row(ratio=5.9)], "", id="beyond-the-aim-and-within-the-ceiling"),
        pytest.param(RATIO, [row(ratio=6)], "", id="at-the-ceiling"),
        pytest.param(
            RATIO, [row(ratio=70.4)], "rollback: switch: ratio: aim 2, ceiling 6, seen 70.4", id="beyond-the-ceiling"
        ),
        pytest.param(SHARE, [{"protocol": "http", "clients": 1, "share": 0.31}], "", id="above-the-floor"),
        pytest.param(
            SHARE,
            [{"protocol": "http", "clients": 1, "share": 0.29}, {"protocol": "http", "clients": 8, "share": 0.9}],
            "rollback: http, 1: share: aim 0.85, floor 0.3, seen 0.29",
            id="below-the-floor",
        ),
        pytest.param(QUOTIENT, [row(ours=9.0, raw=3.0)], "", id="a-quotient"),
        pytest.param(
            QUOTIENT,
            [row(ours=9.0, raw=1.0)],
            "rollback: switch: ours / raw: aim 2, ceiling 6, seen 9",
            id="a-quotient-beyond-the-ceiling",
        ),
        pytest.param(QUOTIENT, [row(ours=9.0, raw=0.0)], "not measured", id="a-quotient-by-zero"),
        pytest.param(RATIO, [], "not measured", id="no-rows"),
        pytest.param(RATIO, [{"what": "another", "ratio": 1.0}], "not measured", id="no-such-row"),
        pytest.param(RATIO, [row(ratio=1.0), row(ratio=1.0)], "not measured", id="two-such-rows"),
        pytest.param(RATIO, [row()], "not measured", id="no-such-figure"),
        pytest.param(RATIO, [row(ratio=None)], "not measured", id="null"),
        pytest.param(RATIO, [row(ratio="1.0")], "not measured", id="text"),
        pytest.param(RATIO, [row(ratio=True)], "not measured", id="boolean"),
        pytest.param(RATIO, [row(ratio=float("nan"))], "seen nan", id="not-a-number"),
    ],
)
def test_a_figure_that_falls_short_is_named(limit: Limit, rows: Sequence[Mapping[str, Any]], short: str) -> None:
    found = short_of(Benchmark("rollback", (), (limit,)), rows)
    assert len(found) == bool(short)
    assert all(short in line for line in found), found


def test_a_benchmark_that_falls_short_runs_once_more() -> None:
    benchmark = Benchmark("rollback", (), (RATIO,))

    def checked(*seen: float) -> tuple[list[str], int, list[str]]:
        answers, said = iter(seen), list[str]()
        short = check([benchmark], lambda _: [row(ratio=next(answers))], said.append)
        return short, len(seen) - len(list(answers)), said

    assert checked(1.0, 70.0)[:2] == ([], 1)
    short, runs, said = checked(70.0, 1.0)
    assert (short, runs) == ([], 2)
    assert said[0] == "falls short, so the benchmark runs again: rollback: switch: ratio: aim 2, ceiling 6, seen 70"
    short, runs, said = checked(70.0, 71.0, 1.0)
    assert (short, runs) == (["rollback: switch: ratio: aim 2, ceiling 6, seen 71"], 2)
    assert said[-1] == "FALLS SHORT: rollback: switch: ratio: 71 (aim 2, ceiling 6)"


def test_a_benchmark_that_fails_has_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even those that an earlier run left."""
    monkeypatch.setattr("benchmarks.check.RESULTS", tmp_path)
    (tmp_path / "eviction.json").write_text('[{"what": "switch", "ratio": 1.0}]')
    assert run(Benchmark("eviction", ("--trace", "no-such-trace"), (RATIO,))) == []


def test_a_benchmark_that_runs_is_measured() -> None:
    (eviction,) = [one for one in read_ceilings() if one.name == "eviction"]
    small = Benchmark("eviction", (*eviction.arguments, "--requests", "20", "--models", "10"), eviction.limits)
    rows = run(small)
    assert [limit.name for limit in small.limits if limit.seen(rows) is None] == []


def test_tables_are_laid_out_as_rows() -> None:
    assert flattened([{"ratio": 1}]) == [{"ratio": 1}]
    assert flattened({"rows": [{"ratio": 1}], "cold_start": {"first_ratio": 2}}) == [
        {"ratio": 1},
        {"what": "cold_start", "first_ratio": 2},
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[no-such]\nrows = []", r"\[no-such\]: there is no benchmark 'no-such'"),
        ("[rollback]\nrows = []", r"\[rollback\] demands nothing"),
        ("[rollback]\nlimit = 1", "unknown key 'limit'"),
        ("[[rollback.rows]]\nrow = {}\nfigure = 'ratio'\naim = 1", "either ceiling or floor"),
        ("[[rollback.rows]]\nrow = {}\nfigure = 'ratio'\naim = 1\nceiling = 2\nfloor = 1", "either ceiling or floor"),
        ("[[rollback.rows]]\nrow = {}\nfigure = 'ratio'\nceiling = 2", "expected row, figure, aim"),
    ],
)
def test_what_is_demanded_wrongly_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "ceilings.toml").write_text(text)
    with pytest.raises(CeilingsError, match=why):
        read_ceilings(tmp_path / "ceilings.toml")


def test_every_headline_benchmark_has_an_aim_that_its_bound_allows() -> None:
    benchmarks = read_ceilings()
    names = {"rollback", "deploy", "reads", "gateway", "monitoring", "eviction", "scale"}
    assert {one.name for one in benchmarks} == names
    for benchmark in benchmarks:
        for limit in benchmark.limits:
            assert limit.row, f"{benchmark.name}: {limit.name} selects every row"
            assert not limit.falls_short(limit.aim), f"{benchmark.name}: {limit.name}"
