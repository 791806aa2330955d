"""A queue through slots: each answer is that of `decode` alone, programs are few, a bad request harms nobody."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import (
    Answer,
    Decoder,
    InputError,
    Meter,
    Reason,
    Refusal,
    Request,
    decode,
    decode_stream,
    infill,
    make_mesh,
    pad_prompts,
    policies,
)
from jaxdiff.caches import BlockCausal, Dual
from jaxdiff.decode.batches import bucket
from jaxdiff.fills import Recap
from jaxdiff.policies.replay import Replay
from jaxdiff.serve import check_request
from jaxdiff.stoppers import Eos, SafeEotp
from jaxdiff.stoppers.strings import cut
from tests import small
from tests.conformance.table import POLICIES, random_filter

pytestmark = pytest.mark.usefixtures("strict")
POLICY = policies.any_of(policies.Threshold(0.6), policies.Fixed(order="random"))  # keys matter at temperature 0 too
DRAW = np.random.default_rng(0)
PROMPTS = [DRAW.integers(5, small.VOCAB, size=n).tolist() for n in (3, 32, 1, 17, 5, 9, 31, 2, 12, 7, 20, 4)]
LONG = [DRAW.integers(5, small.VOCAB, size=n).tolist() for n in (40, 33)]  # of the next bucket
METER = Meter()  # keeps what it compiled, for all tests of this file


@pytest.fixture
def compiled():
    """The programs that XLA is asked for from now on."""
    events = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def decoder(**parts):
    return small.decoder(**{"policy": POLICY, "stop": Eos(), **parts})


def stream(requests, *, slots=8, meter=METER, mesh=None, free=1, most=2**20, key=None, **parts):
    """The answers by number, and the refusals."""
    options = dict(slots=slots, meter=meter, mesh=mesh, free=free, most=most, key=key, gen_length=small.GEN)
    done = list(decode_stream(small.MODEL, small.params(), requests, decoder(**parts), **options))
    answers = {item.request.number: item for item in done if isinstance(item, Answer)}
    return answers, [item for item in done if isinstance(item, Refusal)]


def by_itself(number, *, key=None, gen_length=small.GEN, reference=None, **parts):
    """`decode` of one request of PROMPTS + LONG, in numpy; all padded alike, so that one program serves them."""
    prompts, origin = pad_prompts([(PROMPTS + LONG)[number]], small.EOS, multiple=48)
    key = jax.random.fold_in(jax.random.key(0), number) if key is None else key
    options = dict(origin=origin, key=key[None], gen_length=gen_length, reference=reference)
    return jax.device_get(decode(small.MODEL, small.params(), prompts, decoder(**parts), **options))


@functools.cache
def alone(number, temperature):
    return by_itself(number, temperature=temperature)


def assert_same(answer, result):
    np.testing.assert_array_equal(answer.tokens, result.tokens[0, -answer.tokens.size :])
    np.testing.assert_array_equal(answer.commit_step, result.commit_step[0])
    for field in ("nfe", "reason", "near_ties", "cheap", "work"):
        assert getattr(answer, field) == getattr(result, field)[0]
    assert answer.length == result.lengths[0]
    np.testing.assert_allclose(answer.log_prob, result.log_prob[0], atol=1e-4)


@pytest.mark.parametrize("rows", [2, 3, 8])
def test_answers_are_those_of_each_request_alone_and_nothing_compiles_twice(rows, compiled):
    lengths, before = set(), METER.programs
    for temperature, seed in ((0.0, 0), (0.7, 1)):
        order = np.random.default_rng(seed).permutation(len(PROMPTS))
        compiled.clear()
        queue = [Request(PROMPTS[i], id=f"r{i}", number=int(i)) for i in order]
        answers, _ = stream(queue, slots=rows, temperature=temperature)
        assert not (seed and compiled)  # a shape is compiled once
        assert sorted(answers) == list(range(len(PROMPTS)))
        for number, answer in answers.items():
            assert answer.request.id == f"r{number}"
            assert_same(answer, alone(number, temperature))
            lengths.add(answer.nfe)
    assert METER.programs == before + 2  # blank slots, and a turn
    assert len(lengths) > 3, "the rows end together: nothing is refilled in flight"


def test_a_canvas_is_widened_and_narrowed_in_flight(compiled):
    queue = [Request((PROMPTS + LONG)[i], number=i) for i in (0, 3, 12, 5, 4, 7, 8, 13, 9, 2)]
    assert [bucket(len(ids), 48) for ids in LONG] == [48, 48]
    for expected in (None, 0):
        compiled.clear()
        answers, _ = stream(queue, slots=3)
        assert expected is None or len(compiled) == expected
        for number, answer in answers.items():
            assert_same(answer, alone(number, 0.0))


def test_ends_that_are_foreseen_cut_the_forward_of_slots_too():
    stop = SafeEotp(tau=0.3, keep=4)
    answers, _ = stream(PROMPTS[:5], slots=3, stop=stop)
    for number, answer in answers.items():
        assert_same(answer, by_itself(number, stop=stop))


@pytest.mark.parametrize("part", [{"fill": Recap(slices=40)}, {"policy": policies.MultiBlock(size=32)}])
def test_a_block_that_is_not_given_is_each_requests_own(part):
    """A prompt's is 32 long, and a canvas' is all of it; nothing of it is known before."""
    canvas = [small.MASK] * 64
    queue = [Request(PROMPTS[0]), Request(canvas[:16], is_canvas=True)]
    stream = functools.partial(decode_stream, small.MODEL, small.params(), slots=1, gen_length=64)
    assert [type(answer) for answer in stream(queue, Decoder(**part))] == [Refusal] * 2
    check_request(small.MODEL, Request(canvas, number=0, is_canvas=True), 64, Decoder(**part))
    with pytest.raises(InputError, match=r"a window of 32|blocks of 32"):
        stream(queue, Decoder(**part, block_length=32))


def test_the_oracle_gets_each_requests_own_reference():
    answers, refusals = stream([*PROMPTS[:4], [small.MASK]], slots=3, policy=policies.Oracle())
    for number, answer in answers.items():
        assert_same(answer, by_itself(number, policy=policies.Oracle()))
    assert (len(answers), [row.number for row in refusals]) == (4, [4])


def test_canvases_share_the_slots_with_what_generates_as_much_and_wait_for_the_others():
    holes, short = [5, *[small.MASK] * 3] * 4, [small.MASK, 7, 8, small.MASK] * 2
    queue = [Request(PROMPTS[0]), *(Request(ids, is_canvas=True) for ids in (holes, short, holes[::-1]))]
    queue.insert(3, Request(PROMPTS[3]))
    answers, _ = stream(queue, slots=3)
    for number, canvas in ((1, holes), (2, short), (4, holes[::-1])):
        key = jax.random.fold_in(jax.random.key(0), number)[None]
        assert_same(answers[number], infill(small.MODEL, small.params(), np.asarray([canvas]), decoder(), key=key))
    for number in (0, 3):
        assert_same(answers[number], alone(number, 0.0))


def test_a_bad_request_is_refused_with_its_id_and_the_others_go_on():
    bad = {
        "masked": ([5, small.MASK], r"holds [MASK] (id 3) in column 1"),
        "outside": ([small.VOCAB], "found id 61, expected 0 to 60"),
        "empty": ([], "found no ids"),
        "long": ([5] * 49, "expected at most the context of 64"),
        "text": ("hello", "expected a list of whole numbers"),
        "nested": ([[5], [6, 7]], "expected a list of whole numbers"),
        "halves": ([0.5], "expected a list of whole numbers"),
    }
    queue = [Request(PROMPTS[0], number=0), Request(PROMPTS[1], id="negative", number=-2)]
    queue += [Request(ids, id=name) for name, (ids, _) in bad.items()]
    queue += [Request(PROMPTS[i], number=i) for i in (2, 4)]
    answers, refusals = stream(queue, slots=3)
    assert sorted(answers) == [0, 2, 4]
    assert [row.id for row in refusals] == ["negative", *bad]
    assert "number: found -2" in refusals[0].error
    for row, (_, words) in zip(refusals[1:], bad.values(), strict=True):
        assert words in row.error
    for number, answer in answers.items():
        assert_same(answer, alone(number, 0.0))


def test_queues_may_be_empty_short_or_endless():
    assert stream([]) == ({}, [])
    assert stream([[small.MASK]])[0] == {}
    answers, _ = stream(PROMPTS[:8], slots=10**6)  # eight slots are made, not a million
    assert len(answers) == 8
    read = []
    endless = (read.append(i) or PROMPTS[i % 12] for i in itertools.count())
    options = dict(slots=3, meter=METER, gen_length=small.GEN)
    first = list(itertools.islice(decode_stream(small.MODEL, small.params(), endless, decoder(), **options), 9))
    assert len(first) == 9
    assert len(read) <= 9 + 3


def test_what_the_meter_says():
    meter = METER.beside()
    answers, _ = stream(PROMPTS, slots=3, meter=meter)
    assert meter.busy == sum(answer.nfe for answer in answers.values())
    assert meter.slot_steps == 3 * meter.steps >= meter.busy
    assert 0.7 < meter.occupancy <= 1.0
    for answer in answers.values():
        assert 0.0 < answer.seconds <= meter.seconds
    waited, _ = stream(PROMPTS, slots=3, meter=meter, free=3)  # nobody enters before all three are done
    assert meter.busy == 2 * sum(answer.nfe for answer in answers.values())
    for number, answer in waited.items():
        assert_same(answer, alone(number, 0.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(slots=0), "slots, free, most: found 0, 1, .*, expected at least 1"),
        (dict(free=0), "slots, free, most: found 8, 0"),
        (dict(most=0), "slots, free, most: found 8, 1, 0"),
        (dict(gen_length=12), "gen_length: found 12 with block_length 8"),
        (dict(temperature=-1.0), "temperature: found -1.0"),
        (dict(temperature=np.zeros(3)), "temperature: found a value for each row"),
        (dict(key=small.keys(2)), "key: found 2 of them, expected one"),
        (dict(cfg_scale=jnp.zeros(3)), "cfg_scale: found a value for each row"),
        (dict(policy=policies.any_of(policies.Fixed(), policies.Threshold([0.1, 0.2]))), "tau: found a value for each"),
        (dict(stop=SafeEotp(keep=[1, 2])), "keep: found a value for each row"),
        (dict(policy=POLICIES["learned-block"][0](0.5), block_length=4), "block"),
        (dict(policy=lambda: policies.FixedDream()), "the schedule needs its number of steps"),
        (dict(fill=Recap(slices=9)), "fill recap slices: found 9 for blocks of 8 positions, expected at most 8"),
    ],
)
def test_what_serves_no_request_is_refused_before_compilation(changes, words):
    meter = Meter()
    options = dict(gen_length=small.GEN, meter=meter)
    options |= {name: changes[name] for name in ("slots", "free", "most", "gen_length", "key") if name in changes}

    def call():
        made = {name: value() if callable(value) else value for name, value in changes.items() if name not in options}
        decode_stream(small.MODEL, small.params(), PROMPTS, small.decoder(**made), **options)

    with pytest.raises(InputError, match=words):
        call()
    assert meter.programs == 0


OWN = dict(  # request number -> what it brings of its own
    zip(
        (0, 4, 7, 9, 2, 5),
        (
            {"key": jax.random.key(7)},
            {"max_tokens": small.BLOCK},
            {"decoder": (0.3, 0.9)},
            {"key": jax.random.key(8), "max_tokens": small.BLOCK, "decoder": (0.9, 0.0)},
            {},
            {"decoder": (0.6, 1.5)},
        ),
        strict=True,
    )
)


def own_parts(tau, temperature):
    return dict(
        policy=policies.any_of(policies.Threshold(tau), policies.Fixed(order="random")), temperature=temperature
    )


@pytest.mark.parametrize("cache", [{}, {"cache": Dual(refresh=3)}], ids=["none", "dual"])
def test_a_request_brings_its_own_key_length_and_numbers(cache):
    """Its answer is that of `decode` alone with these; whatever serves its neighbours, in the same programs."""

    def request(number, own):
        numbers = {"decoder": decoder(**own_parts(*own["decoder"]), **cache)} if "decoder" in own else {}
        return Request(PROMPTS[number], number=number, **own | numbers)

    before, queue = METER.programs, [request(number, own) for number, own in OWN.items()]
    answers, refusals = stream(queue, slots=2, **own_parts(0.6, 0.7), **cache)
    assert not refusals
    assert METER.programs - before <= 2
    for number, own in OWN.items():
        length = own.get("max_tokens", small.GEN)
        parts = own_parts(*own.get("decoder", (0.6, 0.7)))
        result = by_itself(number, key=own.get("key"), gen_length=length, **parts, **cache)
        answer = answers[number]
        np.testing.assert_array_equal(answer.tokens[:length], result.tokens[0, -length:])
        np.testing.assert_array_equal(answer.tokens[length:], small.EOS)
        np.testing.assert_array_equal(answer.commit_step[:length], result.commit_step[0])
        for field in ("nfe", "work", "reason"):
            assert getattr(answer, field) == getattr(result, field)[0]
        assert answer.length == result.lengths[0] <= length


def test_a_request_brings_its_own_stop_strings():
    """In place of the decoder's; they end it alone, and slots are refilled behind it, whatever those remember."""
    room = small.stop_strings(["zzz"])
    plain = {i: by_itself(i, temperature=0.7, stop_strings=room) for i in (0, 4, 7, 9, 2)}
    texts = {i: small.text(np.asarray(result.tokens)[0, -small.GEN :]) for i, result in plain.items()}
    own = {0: [texts[0][:2]], 4: None, 7: ["nowhere", texts[7][1:4]], 9: (), 2: [texts[2][3:5]]}
    queue = [Request(PROMPTS[i], number=i, stop_strings=strings) for i, strings in own.items()]
    queue.append(Request(PROMPTS[1], stop_strings=["x" * 40]))
    queue.append(Request(PROMPTS[1], decoder=decoder(temperature=0.7, stop_strings=small.stop_strings(["b"]))))
    answers, (long, other) = stream(queue, slots=2, temperature=0.7, stop_strings=room)
    assert "found 1, the longest of 40 bytes, expected at most 4 of 32" in long.error
    assert "decoder: found other weights, stop strings or constraint than those of the slots" in other.error
    ended = 0
    for number, strings in own.items():
        lines = dataclasses.replace(room, strings=room.lines(strings or ()))
        assert_same(answers[number], by_itself(number, temperature=0.7, stop_strings=lines))
        assert (answers[number].reason == Reason.STRING) == (cut(texts[number], strings or ()) != texts[number])
        ended += answers[number].reason == Reason.STRING
    assert ended > 1


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"max_tokens": 0}, "max_tokens: found 0, expected 1 to 16, what the slots generate"),
        ({"max_tokens": 17}, "max_tokens: found 17, expected 1 to 16"),
        ({"key": small.keys(2)}, "key: found shape (2,), expected () or (1,)"),
        ({"key": 7}, "key: found no typed key"),
        ({"key": jax.random.key(0, impl="rbg")}, "key: found one of key<rbg>, expected key<fry>, as the run's"),
        ({"decoder": small.decoder(policy=policies.Threshold(0.5))}, "decoder: found another than that of the slots"),
        ({"decoder": decoder(temperature=[0.1, 0.2])}, "temperature: found a value for each row"),
        ({"stop_strings": ["a"]}, "stop_strings: found 1, but the decoder has none"),
        ({"stop_strings": "a"}, "stop_strings: found str, expected a list"),
    ],
)
def test_what_is_its_own_and_cannot_share_the_slots_is_refused(own, words):
    answers, (refusal,) = stream([Request(PROMPTS[0]), Request(PROMPTS[1], id="own", **own), PROMPTS[2]], slots=3)
    assert sorted(answers) == [0, 2]
    assert refusal.id == "own"
    assert words in refusal.error
    for number, answer in answers.items():
        assert_same(answer, alone(number, 0.0))


@pytest.mark.parametrize("most", [1, 3])
def test_a_bound_on_the_steps_of_a_serve_step_changes_no_answer(most):
    meter = METER.beside()
    answers, _ = stream(PROMPTS[:7], slots=3, most=most, meter=meter)
    assert meter.busy == sum(answer.nfe for answer in answers.values())
    for number, answer in answers.items():
        assert_same(answer, alone(number, 0.0))


def test_slots_of_a_policy_that_takes_back():
    """What it remembers of a block comes with the row."""
    parts = dict(policy=policies.Wino(0.2, 0.6), temperature=0.7)
    answers, _ = stream(PROMPTS[:5], slots=2, **parts)
    for number, answer in answers.items():
        assert_same(answer, by_itself(number, **parts))


def test_slots_of_a_fill_whose_number_is_each_requests_own():
    """One that the blocks cannot serve is refused with its request."""
    fills = {number: Recap(slices) for number, slices in enumerate((1, 2, 8, 9, 3))}
    parts = dict(policy=policies.Fixed(3), fill=fills[0])
    queue = [Request(PROMPTS[number], decoder=decoder(**parts | {"fill": fill})) for number, fill in fills.items()]
    answers, (refusal,) = stream(queue, slots=2, **parts)
    assert (refusal.id, "found 9 for blocks of 8 positions" in refusal.error) == (3, True)
    assert sorted(answers) == [0, 1, 2, 4]
    for number, answer in answers.items():
        assert_same(answer, by_itself(number, **parts | {"fill": fills[number]}))


def test_a_recorder_shares_the_slots():
    """Its state does not hang on the canvas' length: the answers are those of a recorded decode alone."""
    policy = Replay(blocks=small.GEN // small.BLOCK)
    answers, _ = stream([(PROMPTS + LONG)[number] for number in (0, 1, 2)], slots=2, policy=policy, stop=Eos())
    for number, answer in answers.items():
        assert_same(answer, by_itself(number, policy=policy))


def test_slots_share_a_cache():
    """The KV cache is repadded with the canvas, and what a row left in it harms nobody who comes after.

    One token a step: most forwards of a block read it.
    """
    queue = [Request((PROMPTS + LONG)[i], number=i) for i in (0, 4, 7, 12, 9, 2, 13, 5)]
    options = dict(policy=policies.Fixed(), cache=Dual())
    answers, _ = stream(queue, slots=2, **options)
    for number in (0, 4, 7, 9, 12, 13):
        assert_same(answers[number], by_itself(number, **options))


def test_slots_of_a_model_that_attends_in_blocks():
    """Its blocks count from a row's first token, so that the last one overhangs what is generated."""
    model, params = small.SDAR, small.params(0, small.SDAR)
    causal = small.decoder(policy=policies.Threshold(0.02), cache=BlockCausal(), block_length=None)
    options = dict(gen_length=10, key=jax.random.key(0))
    for answer in decode_stream(model, params, PROMPTS[:5], causal, slots=2, **options):
        prompts, origin = pad_prompts([PROMPTS[answer.request.number]], small.EOS, multiple=32)
        own = dict(options, key=jax.random.fold_in(options["key"], answer.request.number)[None])
        assert_same(answer, decode(model, params, prompts, causal, origin=origin, **own))


def test_slots_on_a_mesh():
    """Each shard of slots leaves its loop on its own; K/V lie with their rows; a filter comes from the first device."""
    policy = jax.device_put(policies.Learned(random_filter("local"), 0.5), jax.devices()[0])
    queue = [Request(PROMPTS[i], number=i) for i in (0, 4, 7, 9, 2)]
    answers, _ = stream(queue, slots=3, mesh=make_mesh(2, 1), cache=Dual(), policy=policy)
    assert len(answers) == 5
    for number in (0, 7, 9):
        assert_same(answers[number], by_itself(number, cache=Dual(), policy=policy))
