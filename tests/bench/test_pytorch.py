"""The published loops in PyTorch decode what jaxdiff decodes in the same setting; and the process that runs them."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.bench.measure import Work
from jaxdiff.bench.peers import ONE_ROW, PEERS, against_pytorch, decoders, parse_peers
from jaxdiff.bench.pytorch.client import check_pytorch
from jaxdiff.policies import Learned
from jaxdiff.policies.filters import BlockFilter, init_layers
from tests import small

torch = pytest.importorskip("torch", reason="PyTorch is not installed: there is nothing to compare with")

from jaxdiff.bench.pytorch import loops, model  # noqa: E402  (need PyTorch)

# Scaled so that the filter accepts some of the small model's candidates and not others.
LEARNED = Learned(BlockFilter(init_layers(jax.random.key(1), (small.BLOCK, small.BLOCK, small.BLOCK))), tau=0.5)


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(1)
    weights = {
        jax.tree_util.keystr(path, simple=True, separator="/"): torch.from_numpy(np.array(leaf))
        for path, leaf in jax.tree.leaves_with_path(small.params())
    }
    for index, layer in enumerate(LEARNED.filter.layers):
        weights |= {f"filter/{index}/{name}": torch.from_numpy(np.array(leaf)) for name, leaf in vars(layer).items()}
    return model.Llada(dataclasses.asdict(small.CONFIG), weights), model.Filter(weights, float(LEARNED.tau))


def traced(step, *, dynamic):
    """As `loops.compiled`, without a C++ compiler: what cannot be captured whole, or only for one shape, fails."""
    return torch.compile(step, dynamic=dynamic, fullgraph=True, backend="eager")


def decoded(network, name, prompts, compile_):
    with torch.inference_mode():
        canvas, forwards = loops.loop(name, *network, compile_)(loops.Task.of(prompts, small.GEN, small.BLOCK))
    generated = canvas[:, max(map(len, prompts)) :]
    cut = small.GEN - generated.shape[1]
    return np.pad(generated.numpy(), ((0, 0), (0, cut)), constant_values=small.EOS), forwards


CASES = [*((name, 1) for name in PEERS), *((name, 3) for name in PEERS if name not in ONE_ROW)]


@pytest.mark.parametrize(("name", "rows"), CASES)
def test_a_loop_decodes_the_tokens_of_jaxdiff(network, name, rows):
    expected = small.decode(order=range(rows), **decoders(LEARNED)[name])
    tokens, forwards = decoded(network, name, small.PROMPTS[:rows], loops.eager)
    np.testing.assert_array_equal(tokens, np.asarray(expected.tokens)[:, -small.GEN :])
    assert max(expected.nfe) <= forwards <= sum(expected.nfe)  # rows wait for each other in a block
    if rows == 1:
        assert forwards == expected.nfe[0]
        np.testing.assert_array_equal(decoded(network, name, small.PROMPTS[:1], traced)[0], tokens)


@pytest.mark.parametrize(
    ("beliefs", "accepts", "expected", "lengths"),
    [
        # Two ends that tie: the first counts. It is cut off in the next block and still to be decoded.
        ([(5, 0.5), (6, 0.7), (small.EOS, 0.6), (small.EOS, 0.6)], False, [9, 5, 6, small.EOS], [5, 4, 4]),
        # The most confident one counts, not the leftmost.
        ([(5, 0.5), (small.EOS, 0.4), (6, 0.7), (small.EOS, 0.6)], False, [9, 5, small.EOS, 6, small.EOS], [5] * 4),
        # One that the filter accepts counts more than a surer one behind it.
        ([(5, 0.5), (small.EOS, 0.4), (6, 0.7), (small.EOS, 0.9)], True, [9, 5, small.EOS], [5]),
    ],
)
def test_the_canvas_is_cut_behind_the_end_that_is_foreseen(beliefs, accepts, expected, lengths):
    fed = []

    class Network:
        mask, eos = small.MASK, small.EOS

        def __call__(self, tokens, columns, seen, join):
            fed.append(tokens.shape[1])
            probs = torch.full((1, 5, small.VOCAB), 1e-6)
            for column, (token, prob) in enumerate(beliefs, start=1):
                probs[0, column, token] = prob
            return probs[:, columns].log(), []

    choose = loops.Accepted(lambda confidence: torch.full_like(confidence, accepts, dtype=torch.bool))
    canvas, forwards = loops.Predicted(Network(), choose, loops.eager)(loops.Task.of([[9]], 4, 2))
    assert canvas[0].tolist() == expected
    assert fed == lengths
    assert forwards == len(lengths)


def test_the_filter_is_fed_zeros_behind_a_block_that_was_cut(network):
    judge, confidence = network[1], torch.rand(1, small.BLOCK, generator=torch.Generator().manual_seed(0))
    confidence[:, 5:] = 0.0
    assert torch.equal(judge(confidence[:, :5]), judge(confidence)[:, :5])


def test_a_process_of_its_own_is_compared_round_by_round(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    prompts, origin = small.batch(small.PROMPTS[:2], multiple=8)
    work = Work(
        model=small.MODEL,
        params=small.params(),
        prompts=prompts,
        origin=origin,
        decoder=small.decoder(),
        gen_length=small.GEN,
        block_length=small.BLOCK,
        rounds=2,
    )
    told = []
    found = against_pytorch(work, ["dual"], progress=told.append)["dual"]
    assert told == [1, 2]
    assert found["eager"]["same_tokens"] == 1.0
    assert found["eager"]["ratio"]["rounds"] == 2
    assert found["eager"]["forwards"] >= found["jaxdiff"]["forwards"]
    assert found["compiled"] is None
    assert "no-such-compiler" in found["not_compiled"]
    assert found["jaxdiff"]["warm_compile_seconds"] > 0


def test_what_cannot_be_compared_is_refused(monkeypatch):
    with pytest.raises(InputError, match="found 'dream', expected standard, threshold"):
        parse_peers("standard,dream", 1)
    with pytest.raises(InputError, match="eotp with --batch-size 8, but it is published for one row"):
        parse_peers("dual, eotp", 8)
    assert parse_peers("dual, prefix", 8) == ("dual", "prefix")
    with pytest.raises(InputError, match="found Dream, expected Llada"):
        check_pytorch(small.DREAM)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pytorch: not installed; install torch"):
        check_pytorch(small.MODEL)
