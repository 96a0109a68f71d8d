import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import aepo.sampling.caches as caches
import aepo.sampling.hf as hf
from aepo.engines.positions import Room
from aepo.errors import InvalidValue
from aepo.sampling.draw import Cuts, draw_tokens
from aepo.sampling.hf import HFSampler
from aepo.sampling.static import Replay
from aepo.types import Completion, Prompt, Request

VOCAB, EOS, PAD = 11, 1, 0
SHORT, MIDDLE, LONG = (4,), (5, 2, 9), (3, 3, 8, 10, 6, 7, 2)


def tiny(kind: str = "qwen2", seed: int = 0, vocab: int = VOCAB, **more):
    """A random model whose next-token distributions are far from uniform and differ with every context."""
    configs = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
        "llama": (LlamaConfig, LlamaForCausalLM, {}),
        "qwen2-window": (
            Qwen2Config,
            Qwen2ForCausalLM,
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        ),
    }
    config, model, own = configs[kind]
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.4}
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return model(config(vocab_size=vocab, **sizes, **ids, **own, **more)).eval()


def request(tokens=MIDDLE, count: int = 1, temperature: float = 1.0, group: int = 0) -> Request:
    return Request(Prompt(str(tokens), tuple(tokens), {}), group, count, temperature)


def mixed(count: int = 3) -> list[Request]:
    """Prompts of three lengths, one of them twice, at four temperatures."""
    return [
        request(MIDDLE, count, 1.0, 0),
        request(SHORT, count, 1.5, 1),
        request(LONG, count, 0.67, 2),
        request(MIDDLE, count, 1.2, 3),
    ]


def run(model, requests, max_tokens: int = 12, seed: int = 0, eos=(EOS,), **options) -> list[Completion]:
    generator = torch.Generator().manual_seed(seed)
    sampler = HFSampler(model, eos_token_ids=eos, pad_token_id=PAD, **options)
    return sampler.sample(requests, max_tokens=max_tokens, generator=generator)


def assert_same(some: list[Completion], others: list[Completion]) -> None:
    """Equal but for the float noise of the log-probabilities."""
    assert [c.tokens for c in some] == [c.tokens for c in others]
    for one, other in zip(some, others, strict=True):
        assert (one.prompt, one.group, one.truncated) == (other.prompt, other.group, other.truncated)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def next_logprobs(model, tokens, temperature: float = 1.0) -> torch.Tensor:
    """log softmax(logits / T) after every position, from one forward pass without padding or cache."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].float()
    return torch.log_softmax(logits / temperature, -1)


class Forwards:
    """Counts the rows and columns of every forward pass."""

    def __init__(self, model) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._seen, with_kwargs=True)

    def _seen(self, module, args, kwargs) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))


# --- the distribution ---------------------------------------------------------------------------------------


def outcomes(model, prompt, temperature: float) -> dict[tuple[int, ...], float]:
    """Exact probability of every completion of at most two tokens."""
    exact: dict[tuple[int, ...], float] = {}
    for first, p in enumerate(next_logprobs(model, prompt, temperature)[-1].exp().tolist()):
        if first == EOS:
            exact[(first,)] = p
            continue
        after = next_logprobs(model, (*prompt, first), temperature)[-1].exp().tolist()
        exact |= {(first, second): p * q for second, q in enumerate(after)}
    return exact


def p_value(completions: list[Completion], exact: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-square; outcomes that are expected less than 5 times count as one."""
    seen = dict.fromkeys(exact, 0)
    for completion in completions:
        seen[completion.tokens] += 1
    expected = {outcome: len(completions) * p for outcome, p in exact.items()}
    cells = [(seen[o], e) for o, e in expected.items() if e >= 5]
    rest = [(seen[o], e) for o, e in expected.items() if e < 5]
    cells.append((sum(n for n, _ in rest), sum(e for _, e in rest) + 1e-9))
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    return torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), torch.tensor(statistic / 2)).item()


def test_frequencies_of_two_tokens_are_the_exact_probabilities_at_every_temperature():
    model = tiny(vocab=6)
    prompts = {1.0: (4,), 1.5: (5, 2, 3), 0.67: (3, 3, 2, 5)}
    requests = [request(prompt, 6000, t, number) for number, (t, prompt) in enumerate(prompts.items())]
    completions = run(model, requests, max_tokens=2, seed=1)
    for number, (temperature, prompt) in enumerate(prompts.items()):
        own = [c for c in completions if c.group == number]
        assert len(own) == 6000
        assert p_value(own, outcomes(model, prompt, temperature)) > 0.01
        # The test would see a temperature that is 10 % off.
        assert p_value(own, outcomes(model, prompt, temperature * 1.1)) < 1e-4


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "qwen2-window"])
def test_logprobs_are_those_of_a_full_forward_pass(kind):
    model = tiny(kind)
    for completion in run(model, mixed()):
        prompt, tokens = completion.prompt.tokens, completion.tokens
        full = next_logprobs(model, (*prompt, *tokens), completion.temperature)
        expected = full[len(prompt) - 1 : -1].gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=2e-5)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "qwen2-window"])
def test_a_temperature_near_zero_takes_the_most_likely_token(kind):
    model = tiny(kind, seed=3)
    for completion in run(model, [request(p, temperature=0.01) for p in (SHORT, MIDDLE, LONG)]):
        tokens = list(completion.prompt.tokens)
        for token in completion.tokens:
            assert token == next_logprobs(model, tokens)[-1].argmax().item()
            tokens.append(token)


# --- one draw -----------------------------------------------------------------------------------------------

ALMOST_ONE = 1 - 2**-24


def drawn(probabilities, uniforms, *cuts) -> tuple[list[int], list[float]]:
    logits = torch.tensor(probabilities).log().expand(len(uniforms), -1)
    tokens, logprobs = draw_tokens(logits, torch.ones(len(uniforms)), torch.tensor(uniforms), Cuts(*cuts))
    return tokens.tolist(), logprobs.exp().tolist()


def test_a_draw_inverts_the_distribution_function():
    tokens, probabilities = drawn([0.5, 0.25, 0.25], [0.0, 0.49, 0.51, 0.74, 0.76, ALMOST_ONE])
    assert tokens == [0, 0, 1, 1, 2, 2]
    assert probabilities == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.25, 0.25])


def test_a_token_of_probability_zero_is_never_drawn():
    assert drawn([0.0, 0.0, 0.5, 0.5, 0.0], [0.0, 0.5, ALMOST_ONE])[0] == [2, 3, 3]
    # Sums of float32 that end below and above 1, as long as any vocabulary.
    generator = torch.Generator().manual_seed(0)
    logits = torch.cat([torch.randn(64, 50_000, generator=generator), torch.full((64, 9), -math.inf)], 1)
    tokens, logprobs = draw_tokens(logits, torch.linspace(0.3, 3, 64), torch.full((64,), ALMOST_ONE))
    assert tokens.max() < 50_000 and logprobs.isfinite().all()


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    uniforms = torch.linspace(0, ALMOST_ONE, 101).tolist()
    for top_p, nucleus in ((0.45, {2}), (0.55, {2, 0}), (0.85, {2, 0, 3}), (0.99, {2, 0, 3, 1})):
        tokens, probabilities = drawn([0.3, 0.05, 0.5, 0.15], uniforms, top_p)
        assert set(tokens) == nucleus
        total = sum({2: 0.5, 0: 0.3, 3: 0.15, 1: 0.05}[token] for token in nucleus)
        for token, probability in zip(tokens, probabilities, strict=True):
            assert probability == pytest.approx([0.3, 0.05, 0.5, 0.15][token] / total)


def test_golden_min_p_top_k_and_top_p_cut_in_this_order():
    """Probabilities 0.4, 0.3, 0.15, 0.1, 0.05; what is left is renormalised."""
    probs, uniforms = [0.3, 0.05, 0.4, 0.15, 0.1], [i / 100 for i in range(100)]
    for cuts, kept in {
        (1.0, 2, 0.0): {2: 4 / 7, 0: 3 / 7},
        (1.0, 9, 0.0): dict(enumerate(probs)),
        (1.0, None, 0.3): {2: 8 / 17, 0: 6 / 17, 3: 3 / 17},  # at least 0.12
        (1.0, 2, 0.3): {2: 4 / 7, 0: 3 / 7},
        # Of the three that top-k leaves, two reach 0.8 (0.7 / 0.85); of the whole vocabulary it takes three.
        (0.8, 3, 0.0): {2: 4 / 7, 0: 3 / 7},
        (0.8, None, 0.0): {2: 8 / 17, 0: 6 / 17, 3: 3 / 17},
    }.items():
        tokens, probabilities = drawn(probs, uniforms, *cuts)
        assert set(tokens) == set(kept), cuts
        assert probabilities == pytest.approx([kept[token] for token in tokens])


def test_equal_probabilities_stay_together_at_the_edge_of_top_k():
    assert set(drawn([0.4, 0.2, 0.2, 0.2], [i / 50 for i in range(50)], 1.0, 2)[0]) == {0, 1, 2, 3}


def test_sampling_with_top_p_stays_in_the_nucleus_at_the_rows_own_temperature():
    model = tiny()
    for completion in run(model, mixed(20), top_p=0.6):
        prompt, tokens = completion.prompt.tokens, completion.tokens
        full = next_logprobs(model, (*prompt, *tokens), completion.temperature).exp()[len(prompt) - 1 : -1]
        for token, logprob, probs in zip(tokens, completion.logprobs, full, strict=True):
            more_likely = probs[probs > probs[token]].sum().item()
            assert more_likely < 0.6
            ranked = probs.sort(descending=True).values
            nucleus = ranked[: int((ranked.cumsum(0) < 0.6).sum()) + 1].sum().item()
            assert logprob == pytest.approx(math.log(probs[token].item() / nucleus), abs=1e-4)


# --- a row does not depend on the others --------------------------------------------------------------------


def test_the_generator_alone_decides():
    model = tiny()
    torch.manual_seed(1)
    first = run(model, mixed(), seed=5)
    torch.manual_seed(2)
    assert run(model, mixed(), seed=5) == first
    assert run(model, mixed(), seed=6) != first


def test_a_row_is_unchanged_when_others_are_added_after_it():
    model = tiny()
    assert_same(run(model, [*mixed(), request(LONG + LONG, 40, 2.0, 9)])[:12], run(model, mixed()))


@pytest.mark.parametrize("share", [hf.FINISHED_SHARE, 0.5])
def test_the_ended_leave_the_batch_and_change_no_other_row(share, monkeypatch):
    model, eos = tiny(), (1, 4, 6)
    forwards = Forwards(model)
    monkeypatch.setattr(hf, "FINISHED_SHARE", share)
    completions = run(model, mixed(10), eos=eos)
    sizes = [rows for rows, _ in forwards.shapes[1:]]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 3
    for step, rows in enumerate(sizes, start=1):  # less than the share of these rows has ended
        alive = sum(len(c.tokens) > step for c in completions)
        assert alive <= rows and rows - alive < share * rows
    monkeypatch.setattr(hf, "FINISHED_SHARE", 2.0)
    forwards.shapes.clear()
    assert_same(run(model, mixed(10), eos=eos), completions)
    assert {rows for rows, _ in forwards.shapes[1:]} == {40}


@pytest.mark.parametrize("kind", ["qwen2", "qwen2-window"])
def test_one_prefill_per_prompt_gives_what_separate_ones_give(kind):
    model = tiny(kind)
    forwards = Forwards(model)
    together = run(model, mixed())
    assert forwards.shapes[:2] == [(3, len(LONG)), (12, 1)]
    generator = torch.Generator().manual_seed(0)
    sampler = HFSampler(model, eos_token_ids=[EOS], pad_token_id=PAD)
    rows = [request(r.prompt.tokens, 1, r.temperature, r.group) for r in mixed() for _ in range(r.count)]
    apart = [sampler.sample([row], max_tokens=12, generator=generator)[0] for row in rows]
    assert_same(together, apart)


@pytest.mark.parametrize("max_rows", [1, 5, 12, 100])
def test_max_rows_bounds_the_batch_and_changes_nothing_else(max_rows):
    model = tiny()
    whole = run(model, mixed())
    forwards = Forwards(model)
    assert_same(run(model, mixed(), max_rows=max_rows), whole)
    assert max(rows for rows, _ in forwards.shapes) == min(max_rows, 12)


@pytest.mark.parametrize("decode", ["dynamic", "static"])
@pytest.mark.parametrize("max_rows", [None, 7])
def test_each_completion_is_told_once_and_the_short_ones_before_the_long(decode, max_rows, monkeypatch):
    monkeypatch.setattr(hf, "LOOK", 4)
    model, requests = tiny(), mixed(5)
    whole = run(model, requests, 40, decode=decode, max_rows=max_rows)
    sampler = HFSampler(model, eos_token_ids=(EOS,), pad_token_id=PAD, decode=decode, max_rows=max_rows)
    told: list[tuple[int, Completion]] = []
    at: list[int] = []
    forwards = Forwards(model)
    sampler.ended = lambda some: (told.extend(some.items()), at.append(len(forwards.shapes)))
    assert sampler.sample(requests, max_tokens=40, generator=torch.Generator().manual_seed(0)) == whole
    assert sorted(number for number, _ in told) == list(range(20)) and all(whole[n] == one for n, one in told)
    assert len(at) > 2 and at[0] < at[-1]
    lengths = [len(one.tokens) for _, one in told]
    assert max_rows is not None or lengths[0] < lengths[-1] == max(lengths)


def test_the_cache_grows_when_its_room_is_used_up(monkeypatch):
    model = tiny()
    whole = run(model, mixed(), max_tokens=40, eos=(1,))
    monkeypatch.setattr(caches, "ROOM", 2)
    assert_same(run(model, mixed(), max_tokens=40, eos=(1,)), whole)
    assert max(len(c.tokens) for c in whole) > 20


# --- completions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("max_tokens", [1, 16, 40])
@pytest.mark.parametrize("eos", [(EOS,), ()])
def test_static_decoding_draws_the_same_tokens(kind, attention, max_tokens, eos, monkeypatch):
    """Frames of 8, 16, 32 and 40 columns, and fewer rows after a look at which half of them had ended."""
    monkeypatch.setattr(hf, "COLUMNS", 8)
    monkeypatch.setattr(hf, "LOOK", 3)
    model = tiny(kind, attn_implementation=attention)
    frames = []
    original = hf.fixed
    monkeypatch.setattr(hf, "fixed", lambda *a: frames.append((len(a[1]), a[2])) or original(*a))
    dynamic, static = (run(model, mixed(5), max_tokens, eos=eos, decode=way) for way in ("dynamic", "static"))
    rooms = {1: (1,), 16: (8, 16), 40: (8, 16, 32, 40)}[max_tokens]
    if eos:
        assert len({rows for rows, _ in frames}) > 1 or max_tokens == 1
    else:
        assert frames == [(20, len(LONG) + room) for room in rooms]
    for one, other in zip(static, dynamic, strict=True):
        assert one.tokens == other.tokens and one.truncated == other.truncated
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("options", [{"max_rows": 4}, {"top_k": 3, "top_p": 0.8}])
def test_static_decoding_knows_all_options(options, monkeypatch):
    monkeypatch.setattr(hf, "LOOK", 5)
    half = replace(request(LONG, 3, 1.0, 4), token_temperature=lambda entropy: 0.5 + entropy / 4)
    dynamic, static = (run(tiny(), [*mixed(), half], 20, decode=way, **options) for way in ("dynamic", "static"))
    assert [completion.tokens for completion in static] == [completion.tokens for completion in dynamic]


def test_static_decoding_ends_rows_at_the_last_position():
    room = Room(len(LONG) + 10, "cut")
    dynamic, static = (run(tiny(), mixed(), 30, eos=(), decode=way, room=room) for way in ("dynamic", "static"))
    assert {len(c.tokens) for c in static} == {10, 10 + len(LONG) - len(MIDDLE), 10 + len(LONG) - len(SHORT)}
    assert [completion.tokens for completion in static] == [completion.tokens for completion in dynamic]


def test_a_model_with_windows_is_decoded_with_a_growing_cache(monkeypatch):
    monkeypatch.setattr(HFSampler, "_decode_static", None)  # a call would fail
    dynamic, static = (run(tiny("qwen2-window"), mixed(), 20, decode=way) for way in ("dynamic", "static"))
    assert static == dynamic


def test_static_decoding_says_which_logits_are_not_finite():
    model, calls = tiny(), []

    def broken(module, inputs, logits):
        calls.append(1)
        return logits.index_fill(0, torch.tensor([1, 2]), math.nan) if len(calls) == 4 else logits

    model.lm_head.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="for 2 of 8 rows at new token 3;"):
        run(model, [request(MIDDLE, 8)], 30, eos=(), decode="static")


class FakeGraph:
    replays = 0

    def replay(self):
        FakeGraph.replays += 1


@pytest.mark.parametrize("works", [True, False])
def test_a_step_is_captured_after_it_ran_once_and_then_replayed(works, monkeypatch):
    calls = []

    @contextmanager
    def capture(graph):
        yield
        if not works:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(FakeGraph, "replays", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    step = Replay(lambda: calls.append(1), capture=True)
    for _ in range(5):
        step()
    if works:
        assert len(calls) == 2 and FakeGraph.replays == 4 and not step.failed  # one call, one capture
    else:
        assert len(calls) == 6 and FakeGraph.replays == 0 and step.failed.endswith("is capturing")


def test_completions_come_in_the_order_of_the_requests():
    requests = [request(LONG, 2, 0.5, 7), request(SHORT, 0, 1.0, 8), request(MIDDLE, 3, 2.0, 9)]
    completions = run(tiny(), requests)
    assert [c.group for c in completions] == [7, 7, 9, 9, 9]
    assert [c.prompt.tokens for c in completions] == [LONG] * 2 + [MIDDLE] * 3
    assert [c.temperature for c in completions] == [0.5] * 2 + [2.0] * 3
    assert run(tiny(), []) == run(tiny(), [request(count=0)]) == []


def test_a_completion_ends_with_the_first_end_token_or_is_truncated():
    completions = run(tiny(), mixed(30), max_tokens=6, eos=(1, 4))
    for completion in completions:
        ends = [token in (1, 4) for token in completion.tokens]
        assert not any(ends[:-1])
        assert completion.truncated is not ends[-1]
        assert len(completion.tokens) == len(completion.logprobs) <= 6
        assert len(completion.tokens) == 6 or not completion.truncated
    # An end token in the last place allowed is an end.
    assert any(len(c.tokens) == 6 and not c.truncated for c in completions)
    assert any(c.truncated for c in completions)


def test_without_end_tokens_every_completion_is_truncated():
    for completion in run(tiny(), mixed(), max_tokens=7, eos=()):
        assert len(completion.tokens) == 7 and completion.truncated


# --- the model ----------------------------------------------------------------------------------------------


def test_dropout_is_off_while_sampling_and_every_module_gets_its_mode_back():
    model = tiny(attention_dropout=0.5)
    expected = run(model, mixed())
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert run(model, mixed()) == expected
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(RuntimeError):
        run(model, mixed())
    assert [module.training for module in model.modules()] == modes


def spoil_logits(model, where, value: float) -> None:
    def spoil(module, args, output) -> None:
        output.logits[where] = value

    model.register_forward_hook(spoil)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_that_says_so(value):
    model = tiny()
    spoil_logits(model, (-1, -1, slice(3, 5)), value)
    for top_p in (1.0, 0.9):
        with pytest.raises(RuntimeError, match=r"Qwen2ForCausalLM gave logits that are not finite .* new token 0"):
            run(model, mixed(), top_p=top_p)


def test_a_logit_of_minus_infinity_is_a_token_that_is_never_drawn():
    model = tiny()
    spoil_logits(model, (..., slice(5, None)), -math.inf)
    assert {token for c in run(model, mixed(20)) for token in c.tokens} == {0, 1, 2, 3, 4}


def test_half_precision_models_and_autocast():
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = run(model, mixed())
    for completions in (under_autocast, run(model.to(torch.bfloat16), mixed())):
        for completion in completions:
            prompt, tokens = completion.prompt.tokens, completion.tokens
            full = next_logprobs(model, (*prompt, *tokens), completion.temperature)[len(prompt) - 1 : -1]
            expected = full.gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)
            assert completion.logprobs == pytest.approx(expected.tolist(), abs=0.3)


@pytest.mark.parametrize(
    ("requests", "more", "message"),
    [
        ([request(temperature=0.0)], {}, r"temperature: got 0.0; must be"),
        ([request(), request(temperature=-1.0)], {}, r"temperature: got -1.0; must be"),
        ([request(temperature=math.nan)], {}, r"temperature: got nan; must be"),
        ([request(temperature=math.inf)], {}, r"temperature: got inf; must be"),
        ([request(count=-1)], {}, r"count: got -1; must be"),
        ([request(())], {}, r"prompt '\(\)' tokens: got \(\); must be"),
        ([request()], {"max_tokens": 0}, r"max_tokens: got 0; must be"),
        ([request()], {"top_p": 0.0}, r"top_p: got 0.0; must be"),
        ([request()], {"top_p": 1.1}, r"top_p: got 1.1; must be"),
        ([request()], {"top_p": math.nan}, r"top_p: got nan; must be"),
        ([request()], {"top_k": 0}, r"top_k: got 0; must be at least 1"),
        ([request()], {"min_p": 1.0}, r"min_p: got 1.0; must be in"),
        ([request()], {"max_rows": 0}, r"max_rows: got 0; must be"),
    ],
)
def test_bad_values_are_named_in_one_line(requests, more, message):
    with pytest.raises(InvalidValue, match=message) as error:
        run(tiny(), requests, **more)
    assert "\n" not in str(error.value)
