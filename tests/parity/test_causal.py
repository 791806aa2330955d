"""Autoregressive families: the text of `transformers.generate`, one token a forward, cached or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdiff import Decoder, InputError, Inputs, Sampling, decode, infill, log_likelihood, make_mesh, pad_prompts
from jaxdiff import policies as p
from jaxdiff.caches import BlockCausal, Dual, NoCache, Prefix, Seeded
from jaxdiff.convert import from_tensors
from jaxdiff.decode.causal import check_causal
from jaxdiff.fills import Recap
from jaxdiff.serve import Refusal, Request, decode_stream
from jaxdiff.stoppers import BlockEotp, Eos, NoStop, SafeEotp
from jaxdiff.train.data import Batch
from jaxdiff.train.noises import View
from jaxdiff.train.objectives import Network, parse
from tests import small
from tests.parity.networks import EOS, network

strict = pytest.mark.usefixtures("strict")
PROMPTS, GEN, SHARP = small.PROMPTS, 12, 2.5


@functools.cache
def loaded(family):
    reference = network(family, sharpness=SHARP)
    return from_tensors(reference.config | {"dtype": "float32"}, reference.tensors())


@functools.cache
def generated(family):
    """What transformers' own greedy decode says after each prompt, its cache on, until the end of the text."""
    module, found = network(family, sharpness=SHARP).module, []
    for prompt in PROMPTS:
        options = dict(max_new_tokens=GEN, do_sample=False, pad_token_id=EOS, eos_token_id=EOS)
        with torch.no_grad():
            found.append(module.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist())
    assert any(len(text) < GEN for text in found) or family != "qwen2"
    return found


def run(family, cache, *, stop=None, order=range(4), mesh=None, **sampling):
    """Rows in that order, each with the key of its prompt."""
    model, params = loaded(family)
    ids, origin = pad_prompts(PROMPTS, fill=EOS)
    order = list(order)
    decoder = Decoder(cache=cache, stop=Eos() if stop is None else stop, sampling=Sampling(**sampling))
    key = small.keys(4)[jnp.asarray(order)]
    result = decode(model, params, ids[order], decoder, gen_length=GEN, origin=origin[order], key=key, mesh=mesh)
    return jax.device_get(result)


def text(result):
    answers = np.asarray(result.tokens)[:, -GEN:]
    return [row[:count].tolist() for row, count in zip(answers, result.lengths, strict=True)]


@strict
@pytest.mark.parametrize(("family", "cache"), [("llama", Seeded()), ("qwen2", NoCache()), ("qwen3", Seeded())])
def test_greedy_text_is_that_of_transformers(family, cache):
    """One token a forward; with the cache each token is fed once, and the last one never."""
    result = run(family, cache)
    assert text(result) == generated(family)
    np.testing.assert_array_equal(result.nfe, result.lengths)
    for prompt, steps, work in zip(PROMPTS, result.nfe, result.work, strict=True):
        canvas = len(prompt) + GEN
        fed = canvas * steps if isinstance(cache, NoCache) else len(prompt) + steps - 1
        assert work == pytest.approx(fed / canvas, rel=1e-5)


@strict
def test_slots_that_are_refilled_give_the_same_text():
    answers = decode_stream(*loaded("llama"), PROMPTS, Decoder(cache=Seeded(), stop=Eos()), slots=2, gen_length=GEN)
    found = {answer.request.number: answer.tokens[: answer.length].tolist() for answer in answers}
    assert [found[row] for row in range(len(PROMPTS))] == generated("llama")


@strict
def test_a_drawn_text_hangs_on_the_row_s_key_alone():
    """Not on the cache, the neighbours or the mesh; and each log_prob is that of the token where it was read."""
    home = run("llama", Seeded(), temperature=0.8, stop=NoStop())
    assert text(home) != generated("llama")
    order = (2, 0, 0, 3)
    for other, rows in (
        (run("llama", NoCache(), temperature=0.8, stop=NoStop()), range(4)),
        (run("llama", Seeded(), temperature=0.8, stop=NoStop(), order=order), order),
        (run("llama", Seeded(), temperature=0.8, stop=NoStop(), mesh=make_mesh(2, 2)), range(4)),
    ):
        for place, row in enumerate(rows):
            if home.near_ties[row] + other.near_ties[place] == 0:
                np.testing.assert_array_equal(other.tokens[place, -GEN:], home.tokens[row, -GEN:])
                np.testing.assert_allclose(other.log_prob[place], home.log_prob[row], atol=1e-4)
    answers = np.asarray(home.tokens)[:, -GEN:]
    ids, origin = pad_prompts(PROMPTS, fill=EOS)
    likely = log_likelihood(*loaded("llama"), ids, answers, origin=origin)
    for row, prompt in enumerate(PROMPTS):
        _, logits = network("llama", sharpness=SHARP).run([*prompt, *answers[row]])
        said = torch.log_softmax(torch.tensor(logits[len(prompt) :]), -1).numpy()
        expected = said[np.arange(GEN), answers[row]]
        np.testing.assert_allclose(home.log_prob[row], expected, atol=1e-4)
        assert likely.value[row] == pytest.approx(expected.sum(), abs=1e-3)
    assert (likely.error == 0).all()
    assert (likely.nfe == GEN + 1).all()
    lengths = np.asarray([len(prompt) for prompt in PROMPTS])
    np.testing.assert_allclose(likely.work, 1 + 2 * GEN / (lengths + GEN), rtol=1e-5)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"policy": p.Threshold(0.9)}, r"policy: found threshold .*\(Llama\), which decodes one token a forward"),
        ({"policy": p.Fixed(order="random")}, "policy: found fixed with an autoregressive model"),
        ({"policy": p.Oracle()}, "policy: found oracle"),
        ({"fill": Recap()}, "fill: found recap .* take fill parallel"),
        ({"cache": BlockCausal()}, "cache: found block .* take seeded"),
        ({"cache": Dual()}, "cache: found dual"),
        ({"cache": Prefix()}, "cache: found prefix"),
        ({"stop": SafeEotp()}, "stop: found eotp .* take stop eos"),
        ({"stop": BlockEotp()}, "stop: found eotp"),
        ({"sampling": Sampling(cfg_scale=1.0)}, "cfg_scale: found one with an autoregressive model"),
        ({"sampling": Sampling(defer_eos=True)}, "defer_eos: found it with an autoregressive model"),
        ({"length": "var"}, "length: found var with a model that attends in blocks of 1"),
        ({"block_length": 8}, "block_length: found 8"),
    ],
)
def test_what_an_autoregressive_model_does_not_have_is_refused(parts, words):
    ids, origin = pad_prompts(PROMPTS, fill=EOS)
    with pytest.raises(InputError, match=words) as caught:
        decode(*loaded("llama"), ids, Decoder(**parts), gen_length=GEN, origin=origin)
    assert "\n" not in str(caught.value)
    for model in (small.MODEL, small.DREAM, small.SDAR, small.FAST):
        check_causal(Decoder(**parts), model)


def test_holes_are_refused():
    model, params = loaded("llama")
    with pytest.raises(InputError, match=r"canvas: found one for an autoregressive model \(Llama\)"):
        infill(model, params, np.asarray([[5, 6, 7]]))
    with pytest.raises(InputError, match="found id 61, expected 0 to 60"):
        decode(model, params, np.asarray([[5, model.config.mask_token_id]]), gen_length=GEN)
    (refusal,) = decode_stream(model, params, [Request([5, 6], is_canvas=True)], Decoder(), gen_length=GEN)
    assert isinstance(refusal, Refusal)
    assert "canvas: found one for an autoregressive model" in refusal.error


def test_next_token_s_loss_and_gradient_equal_pytorch_s():
    """Masks are among what is read; what is learned are the clean tokens, those that are masked too."""
    reference, (model, params) = network("qwen3", sharpness=SHARP), loaded("qwen3")
    draws = np.random.default_rng(0)
    tokens = draws.integers(4, 61, (3, 10)).astype(np.int32)
    prompts, ends = np.asarray([2, 4, 1], np.int32), np.asarray([10, 9, 7])
    learn = (np.arange(10)[None] >= prompts[:, None]) & (np.arange(10)[None] < ends[:, None])
    seen = np.where(draws.random(tokens.shape) < 0.3, 3, tokens).astype(np.int32)
    assert (seen != tokens)[:, 1:][learn[:, 1:]].any()

    objective, _ = parse("next_token", "meap:masked=0.3")
    batch = Batch(tokens, learn, prompts, ends - prompts)
    view = View(jnp.asarray(seen), jnp.asarray(learn))
    found, gradient = jax.jit(
        jax.value_and_grad(lambda params: objective.loss(Network(params, model), batch, (view,), None))
    )(params)

    module = reference.at(torch.float32).module
    logits = module(input_ids=torch.as_tensor(seen).long()).logits
    expected = torch.stack(
        [
            torch.stack(
                [
                    torch.nn.functional.cross_entropy(logits[row, at - 1], torch.tensor(int(tokens[row, at])))
                    for at in np.flatnonzero(learn[row])
                ]
            ).mean()
            for row in range(3)
        ]
    ).mean()
    expected.backward()
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    for leaf, name, layer in (
        (gradient["wte"], "model.embed_tokens", None),
        (gradient["layers"]["q_proj"]["kernel"], "self_attn.q_proj", 0),
        (gradient["layers"]["ff_out"]["kernel"], "mlp.down_proj", 1),
    ):
        path = name if layer is None else f"model.layers.{layer}.{name}"
        theirs = module.get_parameter(f"{path}.weight").grad.numpy()
        ours = np.asarray(leaf if layer is None else leaf[layer].T)
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_who_trains_what():
    llama, (objective, noise) = loaded("llama")[0], parse("next_token", "meap:masked=0.1")
    objective.check_model(llama)
    parse("next_token", None)[1].check_model(llama)
    with pytest.raises(InputError, match=r"noise meap masked: found .* with a Llama without a \[MASK\]"):
        noise.check_model(llama)
    with pytest.raises(InputError, match="objective next_token: found a Llada, which sees what it is to learn"):
        objective.check_model(small.MODEL)
    with pytest.raises(InputError, match=r"model: found an autoregressive one \(Llama\) .* give objective next_token"):
        parse("denoise", None)[0].check_model(llama)


@strict
def test_a_token_does_not_see_what_lies_right_of_it():
    model, params = loaded("qwen2")
    apply = jax.jit(lambda tokens: model.apply(params, Inputs.whole(tokens))[0])
    tokens = np.random.default_rng(1).integers(4, 61, (1, 9)).astype(np.int32)
    changed = tokens.copy()
    changed[0, 5:] = model.config.mask_token_id  # as holes stand there
    before, after = apply(jnp.asarray(tokens)), apply(jnp.asarray(changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])  # that of position 5 is read at position 4
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 0.1
    assert np.isfinite(after).all()
