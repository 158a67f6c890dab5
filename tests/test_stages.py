import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillab.errors import ConfigError
from distillab.stages import CUSTOM, PLANS, Stage, find_plan, plan_options, stage_method


def stages_in_words(name: str) -> list[str]:
    return [f"{s.teacher}>{s.student}:{s.method}" for s in find_plan(name).stages]


def test_the_seven_plans_are_what_the_papers_say():
    assert list(PLANS) == ["st", "fitnet", "takd", "multi", "mbd-delta", "mbd-hard", "mbd-soft"]
    assert stages_in_words("st") == ["teacher>student:soft_target"]
    assert stages_in_words("fitnet") == ["teacher>student:hint", "teacher>student:soft_target"]
    assert stages_in_words("takd") == ["teacher>assistant:soft_target", "assistant>student:soft_target"]
    assert stages_in_words("multi") == [
        "teacher>assistant:hint",
        "teacher>assistant:soft_target",
        "assistant>student:hint",
        "assistant>student:soft_target",
    ]
    for variant in ("delta", "hard", "soft"):
        assert stages_in_words(f"mbd-{variant}") == ["teacher>student:merit_based"]
        assert find_plan(f"mbd-{variant}").stages[0].options == {"variant": variant}


@pytest.mark.parametrize("alias", ["soft_target", "kd"])
def test_aliases_lead_to_the_plan(alias):
    assert find_plan(alias).name == "st"


def test_an_unknown_plan_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'fitnet'"):
        find_plan("fitnets")


@given(epochs=st.integers(2, 500), name=st.sampled_from(sorted(PLANS)))
def test_stages_share_the_epochs_without_loss(epochs, name):
    plan = find_plan(name)
    for role in ("assistant", "student"):
        counts = plan.epochs_of(role, epochs, each=False)
        assert len(counts) == len(plan.stages_of(role))
        assert sum(counts) == (epochs if counts else 0)
        assert all(count >= 1 for count in counts)
        assert plan.epochs_of(role, epochs, each=True) == (epochs,) * len(counts)


def test_the_hint_stage_gets_a_quarter():
    assert find_plan("fitnet").epochs_of("student", 40, each=False) == (10, 30)


def test_fewer_epochs_than_stages_are_refused():
    with pytest.raises(ConfigError, match="2 stages, but there are 1 epochs"):
        find_plan("fitnet").epochs_of("student", 1, each=False)


def test_a_plan_of_ones_own_runs_its_stages():
    stages = (Stage(method="hint", share=0.5), Stage(method="merit_based", options={"variant": "soft"}))
    plan = find_plan(CUSTOM, stages)
    assert plan.epochs_of("student", 10, each=False) == (5, 5)
    assert "hint_weight" in plan_options(plan).model_fields
    assert "variant" not in plan_options(plan).model_fields
    assert stage_method(plan.stages[1], {"temperature": 2.0}).config.variant == "soft"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "needs stages"),
        ((Stage(method="hint", student="assistant"),), "no stage teaches the student"),
        ((Stage(method="soft_target", teacher="assistant"),), "nobody has taught it"),
        ((Stage(method="hint"), Stage(method="soft_target", student="assistant")), "learns after the student"),
        (
            (
                Stage(method="hint", student="assistant"),
                Stage(method="soft_target", teacher="assistant", student="assistant"),
                Stage(method="soft_target", teacher="assistant"),
            ),
            "nobody has taught it",
        ),
        ((Stage(method="hint", share=0.5), Stage(method="soft_target", share=0.5)), "leave nothing"),
        (
            (Stage(method="hint", share=0.5), Stage(method="merit_based", share=0.5), Stage(method="soft_target")),
            "leave nothing",
        ),
        (
            (Stage(method="soft_target", student="assistant", share=0.5), Stage(method="soft_target")),
            "shares of the assistant's stages leave nothing",
        ),
    ],
)
def test_impossible_plans_are_refused(stages, message):
    with pytest.raises(ConfigError, match=message):
        find_plan(CUSTOM, stages)


def test_stages_beside_a_named_plan_are_refused():
    with pytest.raises(ConfigError, match='set method = "custom"'):
        find_plan("st", (Stage(method="hint"),))


def test_a_plan_offers_the_settings_of_its_methods_less_what_it_fixes():
    assert set(plan_options(find_plan("st")).model_fields) >= {"temperature", "label_weight", "distill_weight"}
    assert set(plan_options(find_plan("fitnet")).model_fields) >= {"temperature", "hint_layer", "guided_layer"}
    assert "variant" not in plan_options(find_plan("mbd-hard")).model_fields


def test_bounds_travel_with_the_settings():
    with pytest.raises(ValueError, match="temperature"):
        plan_options(find_plan("multi"))(temperature=-1.0)


def test_a_fixed_option_that_the_method_does_not_have_is_refused():
    plan = find_plan(CUSTOM, (Stage(method="soft_target", options={"temprature": 2.0}),))
    with pytest.raises(ConfigError, match="temperature"):
        plan_options(plan)


def test_shares_are_those_of_each_learners_own_stages():
    to_assistant = (
        Stage(method="hint", student="assistant", share=0.6),
        Stage(method="soft_target", student="assistant"),
    )
    to_student = (Stage(method="hint", share=0.6), Stage(method="soft_target", teacher="assistant"))
    plan = find_plan(CUSTOM, (*to_assistant, *to_student))
    assert [plan.epochs_of(role, 10, each=False) for role in ("assistant", "student")] == [(6, 4), (6, 4)]


def test_a_stage_keeps_what_the_plan_fixes_where_another_stage_leaves_it_open():
    plan = find_plan(
        CUSTOM, (Stage(method="merit_based", options={"temperature": 1.0}, share=0.5), Stage(method="soft_target"))
    )
    assert "temperature" in plan_options(plan).model_fields
    assert [stage_method(stage, {"temperature": 8.0}).config.temperature for stage in plan.stages] == [1.0, 8.0]
