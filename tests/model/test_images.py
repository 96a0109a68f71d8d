"""Models of images: tokens, positions, scoring and sampling are those of transformers' own `generate`."""

import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from aepo.config import PolicyConfig
from aepo.control.base import Needs, generator
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from aepo.sampling.check import check_sampler
from aepo.sampling.prompts import made_prompt
from aepo.tasks.base import Problem
from aepo.types import Completion, Prompt, Request, Rollout, Sample
from tests.tiny_models import make_model, stir
from tests.tiny_vision import FAMILIES, asked, make_vision_model, picture, sampler, vision_tokenizer

ANSWER = 6


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_vision_model(tmp_path_factory.mktemp("vision") / request.param, request.param)


@pytest.fixture(scope="module")
def policy(folder):
    """In float64, so that what is compared differs by less than any mistake would."""
    policy = Policy.load(folder)
    policy.model.double()
    policy._dtype = torch.float64
    return policy


def prompts(policy: Policy) -> list[Prompt]:
    """Two pictures of different size, two in one prompt, and a prompt of text."""
    small, large = picture(24, 16), picture(40, 32, seed=1)
    problems = [asked(small), asked(large, text="so <image>, or?"), asked(small, large), asked(text="why?")]
    return [made_prompt(policy, problem) for problem in problems]


def generated(policy: Policy, folder, prompt: Prompt) -> tuple[list[int], torch.Tensor]:
    """What transformers' `generate` draws greedily, and the log-probabilities of it; its images are ours."""
    model = AutoModelForImageTextToText.from_pretrained(folder).double()
    ids = torch.tensor([prompt.tokens])
    given = {}
    if prompt.images:
        pixels = [policy.images.pixels(digest) for digest in prompt.images]
        given["pixel_values"] = torch.cat([p.patches for p in pixels])
        given["image_grid_thw"] = torch.tensor([p.grid for p in pixels])
        given["mm_token_type_ids"] = (ids == policy.images.token).int()
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=ANSWER,
        min_new_tokens=ANSWER,
        do_sample=False,
        suppress_tokens=list(policy.images.places),
        output_logits=True,
        return_dict_in_generate=True,
        **given,
    )
    tokens = out.sequences[0, ids.shape[1] :].tolist()
    logits = torch.stack(out.logits)[:, 0].index_fill(-1, torch.tensor(policy.images.places), -torch.inf)
    return tokens, logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]


def test_the_models_are_tiny(folder):
    count = sum(p.numel() for p in Policy.load(folder).model.parameters())
    assert 65_000 < count < 86_000


def test_an_image_takes_as_many_tokens_as_its_merged_patches(policy):
    one, two, both, text = prompts(policy)
    counts = [prompt.tokens.count(policy.images.token) for prompt in (one, two, both, text)]
    assert counts == [6, 20, 26, 0]  # 24 x 16 and 40 x 32 pixels in squares of 8 x 8
    grids = [policy.images.pixels(digest).grid for digest in both.images]
    assert grids == [(1, 4, 6), (1, 8, 10)]
    assert len(one.images[0]) == 64 and one.images + two.images == both.images


def test_scoring_is_that_of_generate_for_pictures_of_different_size_in_one_batch(policy, folder):
    rows, expected = [], []
    for number, prompt in enumerate(prompts(policy)):
        tokens, logprobs = generated(policy, folder, prompt)
        completion = Completion(prompt, number, 1.0, tuple(tokens), (0.0,) * len(tokens), truncated=True)
        rows.append(Sample(Rollout(completion, 0.0), 0.0))
        expected.append(logprobs)
    scored = policy.score(policy.collate(rows), Needs()).logprobs
    assert (scored - torch.stack(expected)).abs().max() < 1e-6


def test_sampling_is_that_of_generate(policy, folder):
    requests = [Request(prompt, number, 1, 1e-4) for number, prompt in enumerate(prompts(policy))]
    drawn = sampler(policy).sample(requests, max_tokens=ANSWER, generator=generator(0, 0, "test"))
    for completion in drawn:
        tokens, _ = generated(policy, folder, completion.prompt)
        assert list(completion.tokens) == tokens[: len(completion.tokens)]


def test_the_sampler_knows_the_probability_of_what_it_draws(policy):
    requests = [Request(prompt, number, 3) for number, prompt in enumerate(prompts(policy))]
    drawn = sampler(policy).sample(requests, max_tokens=ANSWER, generator=generator(0, 0, "test"))
    assert mismatch_of(policy, drawn) < 1e-5


def mismatch_of(policy, drawn):
    rows = policy.collate([Sample(Rollout(c, 0.0), 0.0) for c in drawn])
    return ((policy.score(rows, Needs()).logprobs - rows.sampling_logprobs) * rows.mask).abs().max().item()


def test_prompts_with_equal_tokens_and_other_pixels_share_no_prefill(policy):
    one, other = (made_prompt(policy, asked(picture(24, 16, seed))) for seed in (0, 1))
    assert one.tokens == other.tokens and one.images != other.images
    requests = [Request(prompt, number, 2) for number, prompt in enumerate((one, other, one))]
    together = sampler(policy).sample(requests, max_tokens=ANSWER, generator=generator(0, 0, "test"))
    assert mismatch_of(policy, together) < 1e-5
    assert together[0].logprobs[0] != together[2].logprobs[0]


def test_tokens_of_images_are_no_part_of_the_distribution(folder):
    policy = Policy.load(folder)
    places = torch.tensor(policy.images.places)
    with torch.no_grad():  # a head that wants them above all
        policy._head.weight[places] = 100 * torch.randn(len(places), 32, generator=torch.Generator().manual_seed(0))
    requests = [Request(prompt, number, 8, temperature=5.0) for number, prompt in enumerate(prompts(policy))]
    drawn = sampler(policy).sample(requests, max_tokens=ANSWER, generator=generator(0, 0, "test"))
    assert set(policy.images.places).isdisjoint(token for c in drawn for token in c.tokens)
    batch = policy.collate([Sample(Rollout(c, 0.0), 0.0) for c in drawn])
    scored = policy.statistics(batch, Needs(temperatures=(5.0,), entropy_gradient=True))
    off = ((scored.tempered[5.0] - batch.sampling_logprobs) * batch.mask).abs().max()
    assert off < 1e-4
    (scored.logprobs.sum() + scored.entropy.sum()).backward()
    assert policy._head.weight.grad[places].abs().max() == 0
    assert all(p.grad.isfinite().all() for p in policy.model.parameters() if p.grad is not None)


def gradients(policy: Policy) -> dict[str, bool]:
    answers = [
        Completion(prompt, number, 1.0, (70, 71, 72), (0.0,) * 3, truncated=True)
        for number, prompt in enumerate(prompts(policy))
    ]
    stats = policy.statistics(policy.collate([Sample(Rollout(c, 0.0), 0.0) for c in answers]), Needs())
    stats.logprobs.sum().backward()
    return {name: p.grad is not None and bool(p.grad.abs().sum() > 0) for name, p in policy.model.named_parameters()}


def test_gradients_reach_all_weights_with_the_vision_tower(folder):
    reached = gradients(Policy.load(folder))
    assert all(reached.values()), [name for name, found in reached.items() if not found]


def test_activations_computed_again_give_the_same_gradients(folder):
    plain = Policy.load(folder)
    again = Policy.load(folder, settings=PolicyConfig(gradient_checkpointing=True))
    gradients(plain), gradients(again)
    for one, other in zip(plain.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_in_bfloat16_the_sampler_and_the_scoring_agree(folder):
    policy = Policy.load(folder, settings=PolicyConfig(dtype="bfloat16"))
    check_sampler(policy, sampler(policy))
    requests = [Request(prompt, number, 4) for number, prompt in enumerate(prompts(policy))]
    drawn = sampler(policy).sample(requests, max_tokens=ANSWER, generator=generator(0, 0, "test"))
    batch = policy.collate([Sample(Rollout(c, 0.0), 0.0) for c in drawn])
    off = (policy.score(batch, Needs()).logprobs - batch.sampling_logprobs).abs()[batch.mask.bool()]
    assert off.median() < 0.1
    assert set(policy.images.places).isdisjoint(token for c in drawn for token in c.tokens)


def test_without_pillow_a_model_of_images_is_refused_in_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InvalidValue, match=r"model: got .*; must be a model of text, or pip install 'aepo\[vision\]'"):
        Policy.load(folder)


def test_a_model_of_images_of_another_interface_is_refused_in_one_line(tmp_path):
    tokenizer = vision_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 2}
    sight = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
    }
    sight |= {"model_type": "clip_vision_model", "patch_size": 4}
    config = LlavaConfig(text_config=text, vision_config=sight, image_token_index=261)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(
        InvalidValue, match="LlavaForConditionalGeneration.*; must be a model of text, or one of images"
    ):
        Policy.load(tmp_path)


def test_a_frozen_tower_gets_no_gradient(folder):
    reached = gradients(Policy.load(folder, settings=PolicyConfig(vision_tower="frozen")))
    assert all(found == ("visual" not in name) for name, found in reached.items())


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
@pytest.mark.parametrize("tower", ["auto", "trained"])
def test_adapters_are_on_the_vision_tower_only_if_asked_for(folder, targets, tower):
    policy = Policy.load(folder, settings=PolicyConfig(lora_rank=2, lora_targets=targets, vision_tower=tower))
    names = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    on_tower = [name for name in names if "visual" in name]
    assert any("language_model" in name for name in names) and all("lora" in name for name in names)
    has_such_layers = targets == "all-linear" or any(
        name.endswith("down_proj") for name, _ in policy.model.model.visual.named_modules()
    )
    assert bool(on_tower) == (tower == "trained" and has_such_layers)


@pytest.mark.parametrize("settings", [PolicyConfig(), PolicyConfig(lora_rank=2, max_pixels=256)])
def test_a_saved_policy_scores_the_same_bits(folder, settings, tmp_path):
    policy = stir(Policy.load(folder, settings=settings))
    policy.save(tmp_path)
    again = Policy.load(tmp_path, settings=settings)
    answers = [
        Completion(made_prompt(p, asked(picture(40, 32))), 0, 1.0, (70, 71), (0.0,) * 2, True) for p in (policy, again)
    ]
    assert answers[0].prompt == answers[1].prompt
    one, other = (
        p.score(p.collate([Sample(Rollout(answer, 0.0), 0.0)]), Needs()).logprobs
        for p, answer in zip((policy, again), answers, strict=True)
    )
    assert torch.equal(one, other)


def test_pixels_are_limited_by_the_settings(folder):
    many = Policy.load(folder)
    few = Policy.load(folder, settings=PolicyConfig(max_pixels=256))
    large = picture(40, 32, seed=1)
    assert many.images.count(large) == 20 and few.images.count(large) <= 4
    assert few.images.pixels(few.images.remember([large])[0]).patches.shape[0] == 4 * few.images.count(large)
    with pytest.raises(InvalidValue, match=r"policy.min_pixels: got 5000; must be at most policy.max_pixels \(4096\)"):
        Policy.load(folder, settings=PolicyConfig(min_pixels=5000))


def test_a_text_that_spells_the_token_of_an_image_is_refused(policy):
    with pytest.raises(InvalidValue, match="does not spell <|image_pad|>"):
        made_prompt(policy, asked(picture(), text="<image> and <|image_pad|>"))
    with pytest.raises(InvalidValue, match="does not spell"):
        made_prompt(policy, asked(text="what is <|video_pad|>?"))


def test_models_of_text_refuse_images_and_their_settings(tmp_path):
    text = make_model(tmp_path / "text")
    policy = Policy.load(text)
    with pytest.raises(InvalidValue, match="p: got .1 images.; must be a problem of text"):
        policy.encoding.prompt(asked(picture()))
    for name, value in {"min_pixels": 4, "max_pixels": 9, "vision_tower": "frozen"}.items():
        with pytest.raises(InvalidValue, match=f"policy.{name}: got .?{value}.?; must be .*of text"):
            Policy.load(text, settings=PolicyConfig(**{name: value}))


def test_dropout_inside_nested_configurations_is_silenced(folder):
    config = json.loads((folder / "config.json").read_text())
    noisy = folder.with_name("noisy")
    shutil.copytree(folder, noisy, dirs_exist_ok=True)
    config["text_config"]["attention_dropout"] = 0.5
    (noisy / "config.json").write_text(json.dumps(config))
    policy = Policy.load(noisy)
    assert policy.model.config.text_config.attention_dropout == 0.0


def test_a_plain_prompt_holds_the_tokens_that_enclose_an_image(policy):
    problem = Problem("p", "see <image>:", {}, images=(picture(),))
    shown = policy.tokenizer.decode(policy.encoding.prompt(problem))
    assert shown == "see <|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>:"
    assert policy.decode_prompts([made_prompt(policy, problem)]) == ["see <|vision_start|><|image_pad|><|vision_end|>:"]
