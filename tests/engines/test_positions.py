import pytest
from transformers import (
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OpenAIGPTConfig,
    Phi3Config,
    Qwen2Config,
)

from aepo.engines.positions import Room, positions
from aepo.errors import InvalidValue

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100, "rope_theta": 1e4}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
LLAMA3 |= {"original_max_position_embeddings": 100}


@pytest.mark.parametrize(
    ("config", "right"),
    [
        (LlamaConfig(max_position_embeddings=77), 77),
        (GPT2Config(n_positions=55), 55),
        (GPTJConfig(n_positions=33), 33),
        (OpenAIGPTConfig(n_positions=44), 44),
        (MptConfig(max_seq_len=66), 66),
        (BloomConfig(), None),
        (MambaConfig(), None),
        (Gemma3Config(text_config={"max_position_embeddings": 99}), 99),
        # A factor of the rotary positions counts where the number beside it is that of pretraining.
        (Qwen2Config(max_position_embeddings=100, rope_parameters=YARN), 400),
        (Qwen2Config(max_position_embeddings=400, rope_parameters=YARN), 400),
        (
            LlamaConfig(max_position_embeddings=50, rope_parameters=LINEAR),
            100,
        ),
        (
            LlamaConfig(max_position_embeddings=800, rope_parameters=LLAMA3),
            800,
        ),
        (Phi3Config(max_position_embeddings=60, pad_token_id=0), 60),
    ],
)
def test_each_family_names_its_positions(config, right):
    assert positions(config) == right


def test_a_room_refuses_or_cuts():
    refuse, cut = Room(20), Room(20, "cut")
    assert refuse.limit(8, 12) == cut.limit(8, 12) == 12
    assert cut.limit(9, 12) == 11 and cut.limit(19, 12) == 1
    with pytest.raises(InvalidValue, match=r"^prompt and completion: got '9 \+ 12 tokens'; must be .* model's 20 "):
        refuse.limit(9, 12)
    for prompt in (20, 21):
        with pytest.raises(InvalidValue, match="^prompt: got .* shorter than the model's 20 positions"):
            cut.limit(prompt, 12)
    assert Room().limit(10**6, 10**6) == 10**6
