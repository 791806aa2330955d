"""The options that `generate` and `eval` share, and what they mean to `decode`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import jaxdiff
from jaxdiff import drafts, fills
from jaxdiff.bench.shapes import abstract_params, shaped
from jaxdiff.caches import CACHES
from jaxdiff.checkpoint import adapter_folder, model_folder
from jaxdiff.cli.show import note
from jaxdiff.constraints import Named, letters_of
from jaxdiff.convert.prompts import Tokenizer
from jaxdiff.decode.causal import check_masks
from jaxdiff.decode.checks import block_of, check_blocks, check_cache, check_length, check_reference, whole_block
from jaxdiff.decode.compatible import check_constraint, check_weighed
from jaxdiff.decode.decoder import BLOCK_LENGTH, LENGTHS
from jaxdiff.decode.guide import check_asked
from jaxdiff.drafters import drafted_fill, unfitted
from jaxdiff.filters import learned_policy
from jaxdiff.hub import origin_of
from jaxdiff.insertion import WAYS
from jaxdiff.judges import named_judge
from jaxdiff.models import family_name
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.policies import parse
from jaxdiff.protocols import is_causal, is_encoding
from jaxdiff.pytree import numbers_of
from jaxdiff.stoppers import STOPPERS
from jaxdiff.stoppers.strings import encoded
from jaxdiff.types import InputError
from jaxdiff.weights import WEIGHTS, check_weights

DTYPES = ("float32", "bfloat16")
TOLD = (  # what a row's tokens hang on beside the decoder's parts, and a reader would want to know
    *(
        "model",
        "adapter",
        "guide",
        "draft",
        "weights",
        "steps",
        "stop_string",
        "constraint",
        "temperature",
        "top_p",
        "top_k",
        "cfg_scale",
    ),
    *("forbid_eos", "defer_eos", "length", "end_think", "end_think_boost", "end_think_power"),
)

MODEL = "A model folder, the name of a model that ships, or org/name[@revision] of the Hugging Face hub."
Model = Annotated[str, typer.Option("--model", help=MODEL)]
Policy = Annotated[
    str,
    typer.Option(
        "--policy",
        metavar="NAME[:K=V,...]",
        help="Which masks commit at a step: fixed:order=margin, threshold:tau=0.9, any_of(A + B), cap(K + A) ...",
    ),
]
Fill = Annotated[
    str,
    typer.Option(
        "--fill",
        metavar="NAME[:K=V,...]",
        help="Which tokens the chosen positions get together: parallel, recap:slices=2,order=left, "
        "adjust:name=,k=,stop=,clip=, head:name=,k= (these two with a drafter from jaxdiff fit; none ships yet) ...",
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="NAME[:K=V,...]",
        help="Which keys and values are reused: none, prefix, dual:refresh=8, frozen:freeze=clean, block, seeded, "
        "encoded. Default none; of an autoregressive model seeded, of an ENAT encoded, which are exact.",
    ),
]
Stop = Annotated[
    str,
    typer.Option(
        "--stop", help="When a row ends: none (at the canvas' end), eos, eotp:way=official|block|safe,tau=0.9,keep=128."
    ),
]
GenerateStop = Annotated[
    str | None,
    typer.Option(
        "--stop",
        metavar="NAME[:K=V,...]",
        help="When a row ends: none (at the canvas' end), eos, eotp:way=official|block|safe,tau=0.9,keep=128. Default "
        "eos, of which the text is that of none; on a canvas none.",
    ),
]
StopString = Annotated[
    list[str] | None,
    typer.Option(
        "--stop-string",
        metavar="TEXT",
        help="The text ends before it, and the row as soon as that is certain; may be given more than once.",
    ),
]
Constraint = Annotated[
    str | None,
    typer.Option(
        "--constraint",
        metavar="regex:PATTERN|json:SCHEMA|PART+...",
        help="The answer, or what fills a canvas from its first hole to its last, matches this regular expression, or "
        "is JSON of this schema (its text, or the file that holds it), which need outlines-core. awrs+regex:PATTERN, "
        "not_empty+no_repeat:n=3 ...: tokens are drawn by rejection, and weighed.",
    ),
]
GenLength = Annotated[int, typer.Option("--gen-length", min=1, help="Tokens to generate.")]
BlockLength = Annotated[
    int | None,
    typer.Option(
        "--block-length",
        min=1,
        help=f"Default the model's own, of which it may be a divisor, else {BLOCK_LENGTH}; a canvas is one block.",
    ),
]
Length = Annotated[
    str,
    typer.Option(
        "--length",
        metavar="|".join(LENGTHS),
        help="fixed: a block sees the masks of all blocks right of it; var: it sees nothing right of it, so that an "
        "answer grows block by block (iLLaDA's var_generate).",
    ),
]
EndThink = Annotated[
    str | None,
    typer.Option(
        "--end-think",
        metavar="TEXT",
        help="Push towards this text, such as </think>, the harder the more was generated; ids with commas for a model "
        "without a tokenizer.",
    ),
]
EndThinkBoost = Annotated[
    float | None, typer.Option("--end-think-boost", min=0.0, help="What the push adds to a logit at most. Default 100.")
]
EndThinkPower = Annotated[
    float | None,
    typer.Option("--end-think-power", min=0.0, help="Of the share that was generated, times the boost. Default 2."),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", min=1, help="All steps of a policy with a schedule, a multiple of the blocks. Default one a token."
    ),
]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
TopP = Annotated[
    float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Sample among the likeliest that reach this mass.")
]
TopK = Annotated[int | None, typer.Option("--top-k", min=1, help="Sample among this many of the likeliest.")]
CfgScale = Annotated[
    float | None, typer.Option("--cfg-scale", min=0.0, help="Classifier-free guidance; each forward then costs 2 NFE.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of all randomness.")]
Mesh = Annotated[
    str, typer.Option("--mesh", metavar="DxM", help="Data x model devices, such as 4x2: rows over D, weights over M.")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help=f"{' or '.join(DTYPES)}. Default float32 on CPU, else the config's.")
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help=f"{' or '.join(WEIGHTS)}: half of bfloat16's bytes (needs qwix). Default none."),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="NAME|DIR",
        help="A LoRA adapter: of the model's folder by its name, or as peft saves it, a folder or of the hub.",
    ),
]
Guide = Annotated[
    str | None,
    typer.Option(
        "--guide",
        metavar="NAME|DIR",
        help="An autoregressive model of the same tokenizer, which reads each step's draft, for --policy agree.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="NAME[:K=V,...]",
        help="Of an autoregressive model: what guesses its next tokens, so that a pass gives several; the text stays "
        "the same: recycling:nodes=32, ngram:nodes=16, denoiser:model=NAME,tokens=32.",
    ),
]
IgnoreConfig = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-config",
        metavar="KEY",
        help="Load a model whose config.json has this unknown key; may be given more than once.",
    ),
]
ForbidEos = Annotated[bool, typer.Option("--forbid-eos", help="Never predict end-of-text.")]
DeferEos = Annotated[bool, typer.Option("--defer-eos", help="Commit end-of-text last in its block.")]
Insert = Annotated[
    str | None,
    typer.Option(
        "--insert",
        metavar="NAME[:K=V,...]",
        help="Of an insertion model: into how many gaps a forward inserts, and when it stops: one:stop=0.5, "
        "parallel:tau=0.5,stop=0.5. Default one.",
    ),
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write a page on which the decode is played.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; all else goes to stderr.")]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="Several hosts share the rows of --in; the same command on each.")
]
Coordinator = Annotated[
    str | None,
    typer.Option("--coordinator", metavar="HOST:PORT", help="Of process 0, where the cluster does not say it."),
]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="How many, with --coordinator.")]
ProcessId = Annotated[int | None, typer.Option("--process-id", min=0, help="This one's, with --coordinator.")]


def pinned(model: str) -> str:
    """A model's name as it was given; that of the hub's with the commit it stands for now, which is told on stderr.

    A command asks the hub once for it, so that all that it reads is of one commit. Raises InputError as `model_folder`.
    """
    return _at_commit(model, model_folder(model, weights=False))


def pinned_adapter(adapter: str | None, model: str) -> str | None:
    """As `pinned`, of a model's adapter, which is fetched whole. Raises InputError as `adapter_folder`."""
    folder = adapter_folder(adapter, model=model)
    return None if adapter is None or folder is None else _at_commit(adapter, folder)


def _at_commit(name: str, folder: Path) -> str:
    """A name that led to a folder, with its commit if it is of the hub; that is told where the name did not say it."""
    origin = origin_of(folder, name)
    if origin is None:
        return name
    if name != str(origin):
        note(f"{origin.repo}: revision {origin.revision}")
    return str(origin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to decode, as the command line says it; checked when it is made, before any model is read.

    Raises InputError, in one line, for a policy, fill, cache, stopper, mesh, dtype or weights that are not known.
    """

    model: str
    policy: str = "fixed"
    fill: str = "parallel"
    cache: str | None = None  # None: the exact one of autoregressive models, or of those that encode, else none
    stop: str | None = "none"  # None: eos after a prompt, none on a canvas, whose holes are all to be filled
    stop_string: tuple[str, ...] = ()
    constraint: str | None = None
    steps: int | None = None
    gen_length: int = 256
    block_length: int | None = None
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    cfg_scale: float | None = None
    forbid_eos: bool = False
    defer_eos: bool = False
    length: str = "fixed"
    end_think: str | None = None
    end_think_boost: float | None = None
    end_think_power: float | None = None
    mesh: str = "1x1"
    dtype: str | None = None
    weights: str | None = None
    ignore_config: tuple[str, ...] = ()
    adapter: str | None = None
    guide: str | None = None
    draft: str | None = None
    insert: str | None = None  # of an insertion model; None: one token a forward
    shape: str | None = None  # of `bench`: a model of random weights, and so is a fill's drafter

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Decoding:
        """From a command's arguments (its `locals()`): those of the names above; the rest is the command's own."""
        values = {field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given}
        if values.get("gen_length", 0) is None:  # the task's own, which hangs on the task
            del values["gen_length"]
        several: dict[str, Any] = {name: tuple(given.get(name) or ()) for name in ("ignore_config", "stop_string")}
        return cls(**values | several)

    def __post_init__(self) -> None:
        if self.dtype not in (None, *DTYPES):
            raise InputError(f"dtype: found {self.dtype!r}, expected {' or '.join(DTYPES)}")
        check_weights(self.weights)
        if self.insert is not None:
            WAYS.parse(self.insert)
        if self.draft is not None:
            drafts.model_of(self.draft)
        encoded(self.stop_string)
        cache = CACHES.parse(self.cache or "none")
        check_cache(cache, self.stopper())
        if self.named is not None:
            check_constraint(self.stopper(), bool(self.stop_string))
            if self.named.pattern is not None:
                letters_of(self.named.pattern)
        if self.length not in LENGTHS:
            raise InputError(f"length: found {self.length!r}, expected one of {', '.join(LENGTHS)}")
        check_length(self.length, cache)
        if self.end_think is None and (self.end_think_boost, self.end_think_power) != (None, None):
            raise InputError("--end-think-boost and --end-think-power say how hard to push; give --end-think TEXT too")
        check_asked(self.parse(self.steps), self.guide is not None)
        check_reference(self.parse(self.steps), self.filled)
        if self.steps is not None and numbers_of(self.parse(1)) == numbers_of(self.parse(2)):
            raise InputError(
                f"steps: found {self.steps}, but policy {self.policy} takes no number of steps from it; leave it out, "
                "or take a policy with a schedule, such as fixed, that does not say its own"
            )
        parse_mesh(self.mesh)  # last: it asks JAX for devices

    @functools.cached_property
    def named(self) -> Named | None:
        """What `--constraint` says. Raises InputError as `Named.parse`."""
        return None if self.constraint is None else Named.parse(self.constraint)

    @property
    def weighs(self) -> bool:
        """Whether tokens are drawn by rejection, so that rows weigh something."""
        return self.named is not None and self.named.estimator is not None

    @functools.cached_property
    def pinned(self) -> str:
        """The model as `pinned` names it. Raises as that."""
        return pinned(self.model)

    @functools.cached_property
    def pinned_adapter(self) -> str | None:
        """The adapter as `pinned_adapter` names it. Raises as that."""
        return pinned_adapter(self.adapter, self.pinned)

    @functools.cached_property
    def pinned_guide(self) -> str | None:
        """The guide as `pinned` names it. Raises as that."""
        return None if self.guide is None else pinned(self.guide)

    @functools.cached_property
    def pinned_denoiser(self) -> str | None:
        """The draft's denoiser as `pinned` names it; None where it has none. Raises as that."""
        name = None if self.draft is None else drafts.model_of(self.draft)
        return None if name is None else pinned(name)

    @functools.cached_property
    def denoiser(self) -> jaxdiff.Checkpoint | None:
        """The draft's denoiser, read once. Raises as `jaxdiff.load`."""
        if self.pinned_denoiser is None:
            return None
        return jaxdiff.load(self.pinned_denoiser, dtype=self.dtype, weights=self.weights, ignore=self.ignore_config)

    def beside(self, checkpoint: jaxdiff.Checkpoint) -> jaxdiff.Guide | None:
        """The guide, for this denoiser; None where none is asked for. Raises as `jaxdiff.load` and `guide_of`."""
        if self.pinned_guide is None:
            return None
        loaded = jaxdiff.load(self.pinned_guide, dtype=self.dtype, weights=self.weights, ignore=self.ignore_config)
        return jaxdiff.guide_of(loaded, checkpoint)

    def parse(self, steps: int | None) -> jaxdiff.Policy:
        """The policy, for `steps` in a block; a learned one is looked for with the adapter, then with the model."""

        def learned(name: str | None, tau: float | None) -> jaxdiff.Policy:
            return learned_policy(self.pinned, name, tau, adapter=self.pinned_adapter)

        def judge(name: str | None) -> tuple[jaxdiff.policies.Judge, float]:
            return named_judge(self.pinned, name, adapter=self.pinned_adapter)

        return parse(self.policy, learned=learned, judge=judge, steps=steps)

    @functools.cached_property
    def filled(self) -> jaxdiff.Fill:
        """The fill; read once; a drafter is looked for with the adapter, then with the model."""
        if self.shape is not None:
            made = shaped(self.shape)
            return fills.parse(self.fill, drafted=lambda kind, _: unfitted(kind, made, abstract_params))

        def drafted(kind: str, name: str | None) -> jaxdiff.Fill:
            return drafted_fill(self.pinned, kind, name, adapter=self.pinned_adapter)

        return fills.parse(self.fill, drafted=drafted)

    def stopper(self, *, canvas: bool = False) -> jaxdiff.Stopper:
        return STOPPERS.parse(self._stop(canvas))

    def _stop(self, canvas: bool) -> str:
        return self.stop or ("none" if canvas else "eos")

    def cache_of(self, model: jaxdiff.Model) -> str:
        """The cache that a decode of this model has."""
        if self.cache is not None:
            return self.cache
        encoded = is_encoding(model) and self.length == "fixed"
        return "seeded" if is_causal(model) else "encoded" if encoded else "none"

    def told(self, model: jaxdiff.Model, *, canvas: int = 0) -> dict[str, Any]:
        """How a row is decoded, in words and numbers: its parts and blocks, and of all else what is not the default.

        `canvas`: the length of a canvas; 0 after a prompt.
        """
        parts: dict[str, Any] = {name: getattr(self, name) for name in ("policy", "fill")}
        parts["cache"], parts["stop"] = self.cache_of(model), self._stop(bool(canvas))
        parts["block_length"] = block_of(model, self.block_length, default=canvas or BLOCK_LENGTH)
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return parts | {name: getattr(self, name) for name in TOLD if getattr(self, name) != defaults[name]}

    def load(self) -> jaxdiff.Checkpoint:
        """The model, laid over the mesh; it is told of an autoregressive one. Raises as `jaxdiff.load`."""
        loaded = jaxdiff.load(
            self.pinned,
            dtype=self.dtype,
            mesh=parse_mesh(self.mesh),
            weights=self.weights,
            ignore=self.ignore_config,
            adapter=self.pinned_adapter,
        )
        if is_causal(loaded.model):
            family, cache = family_name(loaded.model), self.cache_of(loaded.model)
            pace = "one token a forward" if self.draft is None else f"draft {self.draft}"
            note(f"{family} is autoregressive: {pace}, in order, cache {cache}")
        return loaded

    def push(self, tokenizer: Tokenizer | None) -> jaxdiff.EndThink | None:
        """Of `--end-think`: the ids of its text. Raises InputError for a text without a tokenizer, or without ids."""
        if self.end_think is None:
            return None
        words = self.end_think.split(",")
        if tokenizer is not None:
            ids = tokenizer.encode(self.end_think)
        elif all(word.strip().isdecimal() for word in words):
            ids = [int(word) for word in words]
        else:
            raise InputError(
                f"end-think: found {self.end_think!r} for a model without a tokenizer, expected ids with commas: 12,13"
            )
        boost, power = self.end_think_boost, self.end_think_power
        return jaxdiff.EndThink(tuple(ids), 100.0 if boost is None else boost, 2.0 if power is None else power)

    def constrained(self, tokenizer: Tokenizer | None) -> jaxdiff.Constraint | None:
        """Of `--constraint`. Raises InputError for a model without a tokenizer, and as `Tokenizer.constraint`."""
        if self.named is None:
            return None
        if tokenizer is None:
            raise InputError(f"constraint: {self.model} has no tokenizer, and the constraint is of text; leave it out")
        return tokenizer.constraint(self.named)

    def decoder(
        self, model: jaxdiff.Model, length: int, *, canvas: bool = False, tokenizer: Tokenizer | None = None
    ) -> jaxdiff.Decoder:
        """The decoder, for `length` positions after a prompt or of a canvas; `tokenizer`: the model's, for
        `--end-think` and `--constraint`.

        Raises InputError for a model that fills no masks, where the blocks do not fit it or divide the length, or the
        steps do not spread evenly over them; and as `push`, `constrained` and `check_weighed`.
        """
        check_masks(model)
        block = block_of(model, self.block_length, default=length if canvas else BLOCK_LENGTH)
        if canvas or model.attention_block is None:
            check_blocks(length, whole_block(model, block))
        blocks = -(-length // block)
        if self.steps is not None and self.steps % blocks:
            raise InputError(
                f"steps: found {self.steps} for {blocks} blocks ({length} / {block}), expected a multiple of the "
                f"blocks; try --steps {-(-self.steps // blocks) * blocks}"
            )
        made = jaxdiff.Decoder(
            policy=self.parse(None if self.steps is None else self.steps // blocks),
            fill=self.filled,
            cache=CACHES.parse(self.cache_of(model)),
            stop=self.stopper(canvas=canvas),
            sampling=jaxdiff.Sampling(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                cfg_scale=self.cfg_scale,
                forbid_eos=self.forbid_eos,
                defer_eos=self.defer_eos,
                end_think=self.push(tokenizer),
            ),
            block_length=block,
            length=self.length,
            constraint=self.constrained(tokenizer),
        )
        check_weighed(made, block)
        return made
