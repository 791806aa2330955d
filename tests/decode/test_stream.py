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
    BlockCausal,
    Dual,
    EosStop,
    EotpStop,
    InputError,
    Meter,
    Refusal,
    Request,
    decode,
    decode_stream,
    infill,
    make_mesh,
    pad_prompts,
    policies,
)
from jaxdiff.decode import api, loop, slots
from jaxdiff.decode.many import bucket
from jaxdiff.decode.state import holes
from jaxdiff.policies.replay import Replay
from tests import small
from tests.conformance.table import POLICIES, random_filter

pytestmark = pytest.mark.usefixtures("strict")
OPTIONS = dict(gen_length=small.GEN, block_length=small.BLOCK)
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


def stream(requests, **options):
    """The answers by number, and the refusals."""
    options = OPTIONS | dict(policy=POLICY, stop=EosStop(), meter=METER) | options
    done = list(decode_stream(small.MODEL, small.params(), requests, **options))
    answers = {item.request.number: item for item in done if isinstance(item, Answer)}
    return answers, [item for item in done if isinstance(item, Refusal)]


def by_itself(number, **changes):
    """`decode` of one request of PROMPTS + LONG; all padded alike, so that one program serves them."""
    prompts, origin = pad_prompts([(PROMPTS + LONG)[number]], small.EOS, multiple=48)
    key = jax.random.fold_in(jax.random.key(0), number)[None]
    options = OPTIONS | dict(policy=POLICY, stop=EosStop(), key=key) | changes
    return decode(small.MODEL, small.params(), prompts, origin=origin, **options)


@functools.cache
def alone(number, temperature):
    return by_itself(number, temperature=temperature)


def assert_same(answer, result):
    np.testing.assert_array_equal(answer.tokens, result.tokens[0, -answer.tokens.size :])
    np.testing.assert_array_equal(answer.commit_step, result.commit_step[0])
    for field in ("nfe", "reason", "near_ties"):
        assert getattr(answer, field) == getattr(result, field)[0]
    assert answer.length == result.lengths[0]


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
    stop = EotpStop(tau=0.3, keep=4)
    answers, _ = stream(PROMPTS[:5], slots=3, stop=stop)
    for number, answer in answers.items():
        assert_same(answer, by_itself(number, stop=stop))


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
        options = dict(block_length=small.BLOCK, policy=POLICY, stop=EosStop(), key=key)
        assert_same(answers[number], infill(small.MODEL, small.params(), np.asarray([canvas]), **options))
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
    options = OPTIONS | dict(policy=POLICY, stop=EosStop(), meter=METER)
    first = list(itertools.islice(decode_stream(small.MODEL, small.params(), endless, slots=3, **options), 9))
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
        (dict(slots=0), "slots, free: found 0, 1, expected at least 1"),
        (dict(free=0), "slots, free: found 8, 0"),
        (dict(gen_length=12), "gen_length: found 12 with block_length 8"),
        (dict(temperature=-1.0), "temperature: found -1.0"),
        (dict(temperature=np.zeros(3)), "temperature: found a value for each row"),
        (dict(key=small.keys(2)), "key: found 2 of them, expected one"),
        (dict(cfg_scale=jnp.zeros(3)), "cfg_scale: found a value for each row"),
        (dict(policy=policies.any_of(policies.Fixed(), policies.Threshold([0.1, 0.2]))), "tau: found a value for each"),
        (dict(stop=EotpStop(keep=[1, 2])), "keep: found a value for each row"),
        (dict(policy=policies.Oracle(jnp.zeros((8, 48), jnp.int32))), "reference: found a value for each row"),
        (dict(policy=Replay()), "policy: keeps a state of the canvas' length"),
        (dict(policy=POLICIES["learned-block"][0](0.5), block_length=4), "block"),
        (dict(policy=policies.Fixed(schedule="dream")), "the schedule needs its number of steps"),
    ],
)
def test_what_serves_no_request_is_refused_before_compilation(changes, words):
    meter = Meter()
    with pytest.raises(InputError, match=words):
        decode_stream(small.MODEL, small.params(), PROMPTS, **(OPTIONS | dict(meter=meter) | changes))
    assert meter.programs == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_every_leaf_of_a_state_leads_with_its_rows(policy):
    """So that a slot is refilled whole, whatever the policy remembers."""
    build, numbers = POLICIES[policy]
    values = {name: 5 if name in ("steps", "k") else 0.5 for name in numbers}
    settings = slots_settings(build(**values))
    state = jax.eval_shape(lambda: slots.blank(small.MODEL, 5, 48, settings))
    assert all(leaf.shape[0] == 5 for leaf in jax.tree.leaves(state))


def slots_settings(policy):
    from jaxdiff.decode import api

    shape = dict(rows=1, first=32, generated=small.GEN, block=small.BLOCK)
    return api._settings(small.MODEL, policy, EosStop(), None, 0.0, None, False, False, **shape)


def test_a_turn_is_one_while_loop_without_a_callback():
    settings = slots_settings(POLICY)
    state = jax.eval_shape(lambda: slots.blank(small.MODEL, 3, 48, settings))
    rows = jnp.zeros((3,), jnp.int32)
    incoming = slots.Incoming(rows == 0, jnp.zeros((3, 48), jnp.int32), rows, rows)
    traced = jax.make_jaxpr(functools.partial(slots.turn, small.MODEL))(
        small.params(), settings, state, incoming, jax.random.key(0), jnp.int32(1)
    )
    assert [eqn.primitive.name for eqn in traced.jaxpr.eqns].count("while") == 1
    assert "callback" not in str(traced)


def test_slots_share_a_cache():
    """Memory is widened with the canvas, and what a row left in it harms nobody who comes after.

    One token a step: most forwards of a block read the memory.
    """
    queue = [Request((PROMPTS + LONG)[i], number=i) for i in (0, 4, 7, 12, 9, 2, 13, 5)]
    options = dict(policy=policies.Fixed(), cache=Dual())
    answers, _ = stream(queue, slots=2, **options)
    for number in (0, 4, 7, 9, 12, 13):
        assert_same(answers[number], by_itself(number, **options))


def test_a_state_goes_on_on_a_wider_canvas_with_its_memory():
    """In the middle of a block, where what is left to do reads the memory; misplaced by a column, it would show."""
    prompts, origin = small.batch()
    by, first, params = 8, prompts.shape[1], small.params()

    def numbers(first):
        size = dict(rows=4, first=first, generated=small.GEN, block=small.BLOCK)
        return api._settings(small.MODEL, policies.Fixed(), EosStop(), Dual(), 0.0, None, False, False, **size)

    @jax.jit
    def once(state, numbers):
        return loop.step(small.MODEL, params, numbers, state)

    def to_the_end(state, numbers):
        while bool(holes(small.MODEL, state).any()):
            state = once(state, numbers)
        return np.asarray(loop.finish(small.MODEL, numbers, state).tokens)

    masks = jnp.full((4, small.GEN), small.MASK, jnp.int32)
    canvas = jnp.concatenate([jnp.asarray(prompts), masks], axis=1)
    state = loop.begin(small.MODEL, canvas, jnp.asarray(origin), small.keys(4), numbers(first))
    for _ in range(3):
        state = once(state, numbers(first))
    narrow, wide = to_the_end(state, numbers(first)), slots.widened(small.MODEL, by, state)
    np.testing.assert_array_equal(to_the_end(wide, numbers(first + by))[:, by:], narrow)
    moved = dataclasses.replace(wide, memory=jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=3), wide.memory))
    assert (to_the_end(moved, numbers(first + by))[:, by:] != narrow).any()


def test_slots_of_a_model_that_attends_in_blocks():
    """Its blocks count from a row's first token, so that the last one overhangs what is generated."""
    model, params = small.SDAR, small.params(0, small.SDAR)
    options = dict(gen_length=10, policy=policies.Threshold(0.02), cache=BlockCausal(), key=jax.random.key(0))
    done = decode_stream(model, params, PROMPTS[:5], slots=2, **options)
    for answer in done:
        prompts, origin = pad_prompts([PROMPTS[answer.request.number]], small.EOS, multiple=32)
        assert_same(answer, decode(model, params, prompts, origin=origin, **options))


def test_slots_on_a_mesh():
    """Each shard of slots leaves its loop on its own; K/V lie with their rows; a filter comes from the first device."""
    policy = jax.device_put(policies.Learned(random_filter("local"), 0.5), jax.devices()[0])
    queue = [Request(PROMPTS[i], number=i) for i in (0, 4, 7, 9, 2)]
    answers, _ = stream(queue, slots=3, mesh=make_mesh(2, 1), cache=Dual(), policy=policy)
    assert len(answers) == 5
    for number in (0, 7, 9):
        assert_same(answers[number], by_itself(number, cache=Dual(), policy=policy))
