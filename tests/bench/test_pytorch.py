"""The published loops in PyTorch decode what jaxdiff decodes in the same setting; and the process that runs them."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.bench.measure import Work
from jaxdiff.bench.peers import ONE_ROW, PEERS, against_pytorch, decoders, parse_peers
from jaxdiff.bench.pytorch.client import check_pytorch, write_task
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


@pytest.mark.parametrize("name", PEERS)
def test_a_loop_decodes_the_tokens_of_jaxdiff(network, name):
    expected = small.decode(**decoders(LEARNED)[name])
    for rows in (1,) if name in ONE_ROW else (1, 3):
        prompts = small.PROMPTS[:rows]
        with torch.inference_mode():
            canvas, forwards = loops.loop(name, *network, loops.eager)(loops.Task.of(prompts, small.GEN, small.BLOCK))
        generated = canvas[:, max(map(len, prompts)) :].tolist()
        cut = [small.EOS] * (small.GEN - len(generated[0]))
        assert [row + cut for row in generated] == expected.tokens[:rows, -small.GEN :].tolist()
        nfe = expected.nfe[:rows].tolist()
        assert max(nfe) <= forwards <= sum(nfe)  # rows wait for each other in a block


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

    class Network(model.Llada):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.mask, self.eos = small.MASK, small.EOS

        def forward(self, tokens, columns, seen, join):
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


# As `loops.compiled`, without a C++ compiler: what cannot be captured whole fails. In a process without the type checks
# that tests have, which cannot be captured.
CAPTURED = """
import sys, torch
from pathlib import Path
from jaxdiff.bench.pytorch import loops, worker

torch.set_num_threads(1)
torch._dynamo.config.fail_on_recompile_limit_hit = True
loops.compiled = lambda step, dynamic: torch.compile(step, dynamic=dynamic, fullgraph=True, backend="eager")
made = worker.Worker(Path(sys.argv[1]))
for name in ("prefix", "dual", "eotp"):
    eager, captured = ({**made.answer({"loop": name, "compiled": way}), "seconds": 0} for way in (False, True))
    assert eager == captured, (name, eager, captured)
"""


def test_each_step_can_be_captured_whole(tmp_path):
    write_task(tmp_path, small.MODEL, small.params(), small.PROMPTS[:1], small.GEN, small.BLOCK, LEARNED)
    subprocess.run([sys.executable, "-c", CAPTURED, str(tmp_path)], check=True)


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
        check_pytorch(small.DREAM, {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pytorch: not installed; install torch"):
        check_pytorch(small.MODEL, {})
