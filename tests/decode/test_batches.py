"""Batches of one shape, keys that follow the request, and what `Timed` counts as compiling."""

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxdiff.decode import Timed, api
from jaxdiff.decode.batches import BUCKET, batches, pad_to_bucket, request_keys, widths_of
from tests import small


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (5, 2, [[0, 1], [2, 3], [4, 4]]),
        (7, 5, [[0, 1, 2, 3, 4], [5, 6, 5, 6, 5]]),
        (4, 2, [[0, 1], [2, 3]]),
        (2, 8, [[0, 1]]),
    ],
)
def test_batches_have_one_size(count, size, expected):
    assert [rows.tolist() for rows in batches(count, size)] == expected


def test_prompts_are_padded_to_a_bucket_unless_the_context_ends_first():
    short, origin = pad_to_bucket([[5], [6, 7]], small.EOS, room=40)
    assert (short.shape, origin.tolist()) == ((2, BUCKET), [31, 30])
    assert pad_to_bucket([[5] * 33], small.EOS, room=40)[0].shape == (1, 40)
    assert pad_to_bucket([[5] * 33], small.EOS, room=200)[0].shape == (1, 2 * BUCKET)


def test_keys_follow_the_request():
    together = request_keys(3, np.arange(4))
    assert (together[np.asarray([2, 0])] == request_keys(3, np.asarray([2, 0]))).all()
    assert not (together == request_keys(4, np.arange(4))).any()


@pytest.mark.parametrize(
    ("lengths", "widths"),
    [
        ([5], (32,)),
        ([5, 33, 60, 64], (64,)),  # of 4 x 128 columns a second width saves 32
        ([5] * 9 + [300], (32, 320)),
        ([5] * 9 + [300, 310, 490], (32, 490)),  # the room that is left, not a multiple
    ],
)
def test_widths_of_known_lengths(lengths, widths):
    assert widths_of(lengths, 64, 490) == widths


@pytest.fixture
def cache_hits(tmp_path):
    """A fresh persistent cache that keeps everything; the list of its hits."""
    wanted = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: jax.config.values[name] for name in wanted}
    hits: list[str] = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    for values in (wanted, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is wanted:
            yield hits
    jax.monitoring.unregister_event_listener(listen)


def test_timed_gives_the_loops_result_and_can_compile_past_the_persistent_cache(cache_hits):
    prompts, origin = small.batch()
    options = {"origin": origin, "gen_length": small.GEN, "key": small.keys(len(prompts))}
    calls = [
        api.prepare(small.MODEL, small.params(), prompts, small.decoder(**parts), **options)
        for parts in ({}, {"temperature": 0.0})
    ]
    plain = calls[0].run()
    compiled, cached, measured = Timed(), Timed(), Timed(persistent_cache=False)
    for timed, hits in ((compiled, 0), (cached, 1), (measured, 0)):
        cache_hits.clear()
        first = timed.run(calls[0])
        running = timed.seconds
        assert len(cache_hits) == hits
        assert timed.compile_seconds > 0
        again = timed.run(calls[1])
        assert timed.programs == 1  # a shape is compiled once
        assert timed.seconds > running > 0
        for result in (first, again):
            for got, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(plain), strict=True):
                np.testing.assert_array_equal(got, wanted)
