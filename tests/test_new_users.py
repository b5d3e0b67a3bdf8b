"""What new users met with the first version, and the tests by which it cannot happen any more: a table, held to exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

POINTS = {
    "no chat template in some commands, without a word": (
        "test_cli::test_every_command_that_draws_reads_through_the_template",
        "test_cli::test_a_chat_model_is_trained_measured_and_served_by_what_was_said_once",
        "test_prompting::test_trained_drawn_served_and_scored_prompts_have_the_very_same_ids",
    ),
    "a second begin token, where the template was put in by hand": (
        "test_prompting::test_a_conversation_is_what_transformers_makes_of_it_with_one_begin_token",
    ),
    "a scorer that puts the prompt into the template again": (
        "test_prompting::test_a_reward_model_reads_one_template_with_one_begin_token",
        "test_prompting::test_a_verifier_keeps_the_prompting_it_was_taught_with",
    ),
    "no prompt of several lines on standard input": (
        "test_cli::test_a_prompt_of_several_lines_comes_from_standard_input",
    ),
    "32 new tokens by default, all cut, and nothing says so": (
        "test_prompting::test_how_many_new_tokens_there_are_by_default",
        "test_cli::test_how_much_a_model_may_write_is_what_its_context_leaves",
    ),
    "`compare:` that leaves out how responses are drawn": (
        "test_cli::test_a_chat_model_is_trained_measured_and_served_by_what_was_said_once",
    ),
    "a run that learns nothing and ends without a warning": (
        "test_cli::test_a_run_that_learned_nothing_ends_with_the_cause",
        "test_diagnosis::test_a_run_warns_while_it_trains",
    ),
    "a strategy of one's own, saved by its address in memory": (
        "test_named::test_without_a_name_there_is_never_an_address",
        "test_named::test_named_objects_are_resumed_served_and_run_again_by_other_processes",
    ),
    "adapters on a tied head or embedding, saved as another model": (
        "test_adapters::test_trained_merged_and_loaded_agree",
    ),
    "a file without splits, divided without a word": (
        "test_cli::test_a_file_without_splits_is_divided_aloud_and_used_whole_by_one_option",
    ),
    "a bar alone on a terminal, which begins at 0 again": (
        "test_watching::test_on_a_terminal_there_is_a_bar_with_a_table",
    ),
    "nothing measured on held-out prompts while it trains": (
        "test_held_out::test_rows_are_those_of_the_policy_at_that_step",
    ),
    "`train` alone, and `--model ./mine` alone, that train on Countdown": (
        "test_cli::test_what_is_missing_is_a_question_of_usage",
    ),
    "a verifier turned round by its calibration": (
        "test_learned::test_starved_verifiers_are_never_turned_round",
        "test_learned::test_calibration_keeps_the_order_and_says_where_the_labels_speak_against_it",
    ),
    '"8 responses each" where there are not': (
        "test_headlines::test_values_say_on_how_many_prompts_they_rest",
    ),
    "graded rewards that are solved to 375 %": (
        "test_headlines::test_graded_rewards_are_not_solved_and_no_share",
    ),
    "a KL of 0 where none was measured": (
        "test_loop::test_every_kind_of_objective_trains",
        "test_headlines::test_a_kl_that_was_not_measured_is_not_shown",
    ),
    "advice of co-scaling that quotes another cell": (
        "test_headlines::test_advice_quotes_the_cell_that_it_names",
    ),
    "two different entropies of one name": ("test_headlines::test_one_name_for_one_quantity",),
}


@pytest.mark.parametrize("point", POINTS)
def test_its_tests_are_there(point: str) -> None:
    for name in POINTS[point]:
        module, _, function = name.partition("::")
        text = (Path(__file__).with_name(f"{module}.py")).read_text()
        assert re.search(rf"^def {function}\(", text, re.MULTILINE), name
