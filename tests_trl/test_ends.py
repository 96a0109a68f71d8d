"""A completion ends at every token that the model's own files name, in TRL's sampling, masks and counts."""

from __future__ import annotations

import pytest

from aepo.engines.stops import StopStrings
from aepo.integrations.trl import EntropyControlTrainer
from aepo.integrations.trl.rows import rollouts

from .tiny import END, config, even_start, model, prompts, tokenizer


def test_the_chat_templates_end_of_turn_ends_a_completion(tmp_path):
    words, seen = tokenizer(), []
    words.add_special_tokens({"additional_special_tokens": ["w3"]})
    words.chat_template = "{% for m in messages %}{{ m.content }} w3{% endfor %}"
    turn, end = words.convert_tokens_to_ids("w3"), words.convert_tokens_to_ids(END)

    def kept(completions, completion_ids, **columns):
        seen.extend(completion_ids)
        return even_start(completions)

    args = config(tmp_path, max_steps=1, max_completion_length=8)
    made = EntropyControlTrainer(model(), kept, args, prompts(), processing_class=words)
    if not hasattr(made, "eos_token_ids"):
        pytest.skip("this version of TRL knows one end of a completion")
    made.train()
    assert set(made.eos_token_ids) == {turn, end} and made._ends >= {turn, end}
    last = {ids[-1] for ids in seen if len(ids) < 8}
    assert last == {turn, end} and not any({turn, end} & set(ids[:-1]) for ids in seen)


def test_a_completion_that_a_stop_string_ended_is_not_truncated():
    words = tokenizer()
    texts = [([5], words(text)["input_ids"], ()) for text in ("w1 w2 w3", "w1 w3 w2", f"w1 {END}", "")]
    stops = StopStrings(("w2 w3",), words)
    made = rollouts(texts, [0.0] * 4, [0] * 4, 1.0, frozenset({words.eos_token_id}), stops)
    assert [rollout.completion.truncated for rollout in made] == [False, True, False, True]
    made = rollouts(texts, [0.0] * 4, [0] * 4, 1.0, frozenset({words.eos_token_id}))
    assert [rollout.completion.truncated for rollout in made] == [True, True, False, True]
