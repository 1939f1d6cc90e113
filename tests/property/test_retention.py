"""Which versions stay: what the policy names, and nothing that it does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from storage.versions.manifest import Record, Stage
from storage.versions.retention import Policy, is_pinned, kept_by_number, retained

STAGES: tuple[Stage, ...] = ("none", "candidate", "production", "archived")
policies = st.builds(Policy, st.integers(1, 8), st.integers(0, 5))
latest_versions = st.integers(-1, 40)
records = st.lists(
    st.builds(
        lambda version, stage, tags: Record(
            run_id="r", version=version, sha256="0a" * 32, stage=stage, tags=tags
        ),
        st.integers(0, 50),
        st.sampled_from(STAGES),
        st.lists(st.sampled_from(["best", "old"]), unique=True),
    ),
    max_size=10,
    unique_by=lambda record: record.version,
)


@given(policy=policies, latest=latest_versions, known=records)
def test_a_version_stays_for_one_of_four_reasons(
    policy: Policy, latest: int, known: list[Record]
) -> None:
    tagged = {record.version for record in known if record.tags}
    staged = {record.version for record in known if record.stage != "none"}
    stays = retained(policy, latest, known)
    for version in range(60):
        is_late = latest - policy.keep < version <= latest
        is_nth = policy.keep_every > 0 and version % policy.keep_every == 0 and version <= latest
        expected = is_late or is_nth or version in tagged or version in staged
        assert (version in stays) == expected
    assert min(stays, default=0) >= 0
    assert max(stays, default=0) < 60


@given(policy=policies, latest=latest_versions, known=records, more=records)
def test_more_tags_and_stages_never_take_a_version_away(
    policy: Policy, latest: int, known: list[Record], more: list[Record]
) -> None:
    others = [record for record in more if record.version not in {r.version for r in known}]
    assert retained(policy, latest, known) <= retained(policy, latest, [*known, *others])


@given(policy=policies, latest=st.integers(0, 40))
def test_what_was_let_go_never_has_to_come_back(policy: Policy, latest: int) -> None:
    kept = kept_by_number(policy, latest)
    assert kept_by_number(policy, latest + 1) <= kept | {latest + 1}


@given(policy=policies, latest=st.integers(0, 40), known=records)
def test_the_latest_always_stays(policy: Policy, latest: int, known: list[Record]) -> None:
    assert latest in retained(policy, latest, known)


def test_a_tag_or_a_stage_holds() -> None:
    plain = Record(run_id="r", version=1, sha256="0a" * 32)
    assert not is_pinned(plain)
    assert is_pinned(plain.model_copy(update={"tags": ["best"]}))
    assert [is_pinned(plain.model_copy(update={"stage": stage})) for stage in STAGES] == [
        False,
        True,
        True,
        True,
    ]
    assert not is_pinned(plain.model_copy(update={"promotions": [1], "metrics": {"loss": 1.0}}))
