"""The table of recorded decodes: plain data, in the text notation of the command line.

A `Case` is one batch. `policy`, `cache` and `temperature` may list several values: each of their combinations is a
decode, and has all prompts (or canvases) of the case as its rows. What is listed together differs in numbers alone, so
that one compiled program serves the batch; rows do not see each other, so they may as well be decoded apart.

Beyond the command line: the policy `replay` (the recorder that filters are fitted from), the filters `block` and
`local` of random weights, and `tau` and `keep` of the stopper `eotp`.
"""

import dataclasses
import itertools

from tests.golden.networks import MASK

PROMPTS = [[5, 6, 7], [9, 8, 30, 31, 32, 33], [40], [11, 12, 13, 14]]
CANVASES = [
    [5, 6, MASK, MASK, MASK, 9, 10, MASK, 12, MASK, 14, 15, MASK, MASK, 18, 19],
    [MASK, MASK, 7, MASK, MASK, MASK, MASK, MASK, 20, 21, 22, 23, 24, 25, 26, MASK],
    [40, 41, 42, 43, 44, 45, 46, 47, MASK, MASK, MASK, MASK, MASK, MASK, MASK, MASK],
    [MASK, 30, MASK, 32, MASK, 34, MASK, 36, MASK, 38, MASK, 40, MASK, 42, MASK, 44],
]
# A queue: prompts of two widths (one is longer than 32 tokens), and a canvas that is as long as what is generated.
QUEUE = [PROMPTS[0], PROMPTS[1], list(range(5, 45)), PROMPTS[2], list(range(50, 20, -1)), PROMPTS[3], [8, 8, 9]]
CANVAS_IN_QUEUE = (4, CANVASES[0])
SLOTS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """One batch.

    Attributes:
        way: `decode`, `infill` (of CANVASES), or `stream` (of QUEUE, with 3 slots; its rows are the requests).
        model: a name of `networks.CONFIGS`, or `shipped`: the model that ships, with test problems as prompts.
        block_length: None: the default, or the model's own.
    """

    name: str
    policy: str | tuple[str, ...] = "fixed"
    cache: str | tuple[str, ...] = "none"
    stop: str = "none"
    temperature: float | tuple[float, ...] = (0.0, 0.7)
    way: str = "decode"
    model: str = "llada"
    gen_length: int = 16
    block_length: int | None = 8
    cfg_scale: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    forbid_eos: bool = False
    defer_eos: bool = False

    @property
    def decodes(self) -> list[tuple[str, str, float]]:
        """(policy, cache, temperature) of each decode, in the order of the rows."""
        return list(itertools.product(*map(_listed, (self.policy, self.cache, self.temperature))))


def _listed(value):
    return value if isinstance(value, tuple) else (value,)


PREFIX = ("prefix", "prefix:refresh=2")
DUAL = ("dual", "dual:refresh=3")
CLEAN = ("frozen", "frozen:refresh=2")
COMMIT = ("frozen:freeze=commit", "frozen:freeze=commit,refresh=2")
PROMPT = ("frozen:freeze=prompt", "frozen:freeze=prompt,refresh=2")
SAFE = "eotp:way=safe,keep=4,tau=0.3"
OFFICIAL, BLOCK = "eotp:way=official", "eotp:way=block"
REPLAY = ("replay", "replay:tau=0.6")  # greedy: with sampled candidates it may go on for thousands of forwards
OWN = dict(gen_length=14, block_length=None)  # a model that attends in blocks
SHORT = OWN | dict(gen_length=8)
WHOLE = dict(block_length=16)  # one block

CASES = [
    # Never stopped: each policy alone, or nearly so.
    Case("fixed"),
    Case("oracle", "oracle"),
    Case("replay", REPLAY, temperature=0.0),
    Case("oracle-dual", "oracle", DUAL),
    Case("fixed-random-commit", "fixed:order=random,steps=5", COMMIT),
    Case("threshold", ("threshold:tau=0.4", "threshold:tau=0.8"), top_p=0.9, top_k=12),
    Case("factor-dual-guided", "factor:f=1.5", DUAL, cfg_scale=1.5),
    Case("margin-prompt", ("margin:tau=0.3", "margin:tau=0.6"), "frozen:freeze=prompt", model="prefix_lm"),
    Case("entropy-prefix", "entropy:tau=1.0", PREFIX),
    Case("entropy_bounded", ("entropy_bounded:gamma=0.5", "entropy_bounded:gamma=3"), model="dream"),
    Case("above_mean", "above_mean", forbid_eos=True),
    Case("learned-block", "any_of(learned:name=block,tau=0.5 + fixed)"),
    Case("learned-local", "learned:name=local,tau=0.5", model="dream", cache="dual"),
    Case("all_of", "all_of(threshold:tau=0.3 + above_mean)", model="llada_moe"),
    Case("cap-block", ("cap(2 + factor:f=2)", "cap(3 + factor:f=3)"), "block", model="sdar", **OWN),
    # End-of-text as it comes.
    Case("fixed-eos", stop="eos"),
    Case("oracle-eos", "any_of(oracle + fixed:order=random)", stop="eos"),
    Case("replay-eos", REPLAY, temperature=0.0, stop="eos"),
    Case("fixed-entropy-clean-eos", "fixed:order=entropy,steps=4", CLEAN, "eos"),
    Case("threshold-block-eos", ("threshold:tau=0.3", "threshold:tau=0.6"), "block", "eos", model="llada2", **OWN),
    Case("margin-guided-eos", "margin:tau=0.5", stop="eos", cfg_scale=1.5),
    Case(
        "any_of-prefix-eos",
        "any_of(entropy:tau=0.5 + entropy_bounded:gamma=0.5)",
        "prefix",
        "eos",
        model="dream",
        defer_eos=True,
    ),
    Case("all_of-eos", "all_of(factor:f=2 + learned:name=local,tau=0.4)", "none", "eos", model="llada_moe"),
    Case("cap-dual-eos", "cap(3 + any_of(above_mean + learned:name=block,tau=0.5))", "dual", "eos"),
    # End-of-text foreseen, the safe way.
    Case("fixed-safe", stop=SAFE, **WHOLE),
    Case("oracle-safe", "oracle", stop=SAFE, **WHOLE),
    Case("replay-safe", REPLAY, temperature=0.0, stop=SAFE, **WHOLE),
    Case("dream-margin-safe", "fixed:order=margin,schedule=dream,steps=6", "none", SAFE, defer_eos=True),
    Case("any_of-safe", "any_of(threshold:tau=0.6 + margin:tau=0.5 + entropy:tau=0.3)", PREFIX, SAFE, **WHOLE),
    Case(
        "all_of-safe",
        "all_of(factor:f=3 + entropy_bounded:gamma=4)",
        "none",
        SAFE,
        model="sdar",
        **SHORT,
    ),
    Case("cap-safe", "cap(4 + any_of(learned:name=local,tau=0.5 + above_mean))", PROMPT, SAFE, **WHOLE),
    # The official way.
    Case("fixed-official", stop=OFFICIAL, **WHOLE),
    Case("oracle-official", "oracle", stop=OFFICIAL, **WHOLE),
    Case("replay-official", REPLAY, temperature=0.0, stop=OFFICIAL, **WHOLE),
    Case("dream-official", "fixed:schedule=dream,steps=6,alg_temp=0.3", stop=OFFICIAL, model="dream", **WHOLE),
    Case("any_of-official", "any_of(learned:name=block,tau=0.5 + fixed:order=entropy)", stop=OFFICIAL, **WHOLE),
    Case("all_of-official", "all_of(threshold:tau=0.3 + margin:tau=0.2)", "prefix", OFFICIAL, **WHOLE),
    Case("factor-official", "any_of(factor:f=1.5 + entropy:tau=0.5)", COMMIT, OFFICIAL),
    Case("cap-official", "cap(3 + any_of(entropy_bounded:gamma=1 + above_mean))", stop=OFFICIAL, **WHOLE),
    # The way of the published caches.
    Case("fixed-way-block", stop=BLOCK),
    Case("oracle-way-block", "oracle", stop=BLOCK),
    Case("replay-way-block", REPLAY, temperature=0.0, stop=BLOCK),
    Case("dream-random-prefix", "fixed:order=random,schedule=dream,steps=6", PREFIX, BLOCK, **WHOLE),
    Case("alg_temp-clean", "fixed:order=margin,alg_temp=0.2,steps=6", CLEAN, BLOCK, **WHOLE),
    Case("any_of-way-block", "any_of(threshold:tau=0.6 + factor:f=1)", "block", BLOCK, model="sdar", **OWN),
    Case("all_of-way-block", "all_of(margin:tau=0.2 + entropy:tau=2)", DUAL, BLOCK, **WHOLE),
    Case("cap-way-block", "cap(3 + entropy_bounded:gamma=2)", "none", BLOCK, model="llada2", **SHORT),
    Case("learned-way-block", "all_of(above_mean + learned:name=local,tau=0.4)", "none", BLOCK, **WHOLE),
    # Holes in a canvas.
    Case("infill", ("threshold:tau=0.3", "threshold:tau=0.7"), way="infill", block_length=None),
    Case("infill-blocks", "fixed:steps=2", PREFIX, way="infill"),
    Case("infill-sdar", "above_mean", "none", "eos", way="infill", model="sdar", block_length=None),
    # Queues.
    Case("stream", "any_of(threshold:tau=0.6 + fixed:order=random)", "none", "eos", way="stream"),
    Case("stream-dual", "entropy:tau=0.8", "dual", BLOCK, way="stream"),
    # The model that ships.
    Case("shipped-fixed", "fixed:steps=8", "none", "eos", model="shipped", gen_length=64, block_length=None),
    Case("shipped-threshold", "threshold", "dual", "eos", model="shipped", gen_length=64, block_length=None),
    Case("shipped-official", "learned:name=official", "none", "eos", model="shipped", gen_length=64, block_length=None),
    Case("shipped-local", "learned", "none", "eos", model="shipped", gen_length=64, block_length=None),
]
