"""What the parts of a decode promise each other: models, policies, fills, their passes, caches and stoppers.

Whoever implements one needs no base class; the data that they exchange is in `jaxdiff.types`, with the shape letters.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.types import Belief, Inputs, KVCache, Params, PartState, Place, Progress, Proposal, Score, Span, Written


@runtime_checkable
class Definition(Protocol):
    """A static, hashable definition of parameters: a model's, or a drafter's."""

    @property
    def config(self) -> Any: ...

    def init(self, key: Key[Array, ""]) -> Params: ...


@runtime_checkable
class Model(Protocol):
    """A static, hashable definition whose methods are pure functions of a params pytree."""

    @property
    def config(self) -> Any: ...

    @property
    def attention_block(self) -> int | None:
        """Positions of a block that sees itself and what lies left of it; None: every position sees all."""
        ...

    @property
    def shifted(self) -> bool:
        """The network reads token i at position i - 1. `apply` undoes it: who feeds a part must feed one token more."""
        ...

    @property
    def tempered(self) -> bool:
        """The published sampler's confidences are those of softmax(logits / temperature), not of softmax(logits)."""
        ...

    @property
    def copies(self) -> int:
        """Forwards that one `apply` stands for, each with keys and values of its own: 2 under guidance, else 1."""
        ...

    def init(self, key: Key[Array, ""]) -> Params: ...

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """One pass: features after the last norm, whose row i predicts token i of those read; and the KV cache.

        Args:
            kv: keys and values of M >= L columns, and of more rows than are fed where `inputs.rows` says which; None:
                the tokens are the whole canvas, and nothing is kept.
            at: the columns of the tokens: None, the canvas from column 0 on (T = L); [B], a window of T columns from
                each row's column on (0 to M - T, not checked); [B T], any columns (fed twice, the same token). Those
                that stand beside the canvas, which is not for [B T], are not counted.
            read: the only tokens whose features are wanted; None is all of them.

        A shifted model predicts the token of a column from the column before: of a window's first token there is
        nothing to read unless it is position 0, and among [B T] columns the one before must be one of them.
        """
        ...

    def empty_kv(self, rows: int, columns: int) -> KVCache:
        """A KV cache of zeros for `rows` canvases of that many columns."""
        ...

    def embed(self, params: Params, tokens: Int[Array, "B C"]) -> Float[Array, "B C D"]:
        """What the first layer is given of these ids, in the config's dtype."""
        ...

    def head(self, params: Params) -> Float[Any, "D V"]: ...


def is_causal(model: Model) -> bool:
    """Whether a model is autoregressive: a token follows from those before it alone, and no position sees what lies
    right of it.
    """
    return model.shifted and model.attention_block == 1


@runtime_checkable
class Autoregressive(Protocol):
    """What a causal model has besides: it says what follows each token that it is fed."""

    def ahead(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As `Model.apply`, but row i predicts what follows token i: so that of a tree of tokens each node says which
        of its children is right.
        """
        ...


@runtime_checkable
class Completes(Protocol):
    """What an insertion model has besides (`jaxdiff.models.insertion`): it predicts what is missing behind each token,
    and says when nothing is.
    """

    def whole(self, params: Params, features: Float[Array, "B D"]) -> Float[Array, " B"]:
        """From the features of each row's first token, the log-odds that the text is whole: nothing is to be inserted
        any more.
        """
        ...


def is_insertion(model: Any) -> bool:
    """Whether a model inserts tokens into a text, and so fills no masks."""
    return isinstance(model, Completes)


@runtime_checkable
class Encodes(Protocol):
    """What a model has besides whose visible tokens are encoded once, and whose masks alone are decoded
    (`jaxdiff.models.enat`): a token sees those that were revealed no later than itself (`Inputs.revealed`).
    """

    @property
    def encoder_share(self) -> float:
        """The share of the weights of the layers that a token meets when it is encoded; a mask meets the others."""
        ...

    def encode(
        self, params: Params, inputs: Inputs, kv: KVCache, at: Int[Array, " B"] | Int[Array, "B T"] | None
    ) -> KVCache:
        """The KV cache with what the model keeps of newly revealed tokens, those that are `fresh`; of what was revealed
        before it must hold that already. `at` as of `Model.apply`, which then decodes masks over it.
        """
        ...


def is_encoding(model: Any) -> bool:
    """Whether a model encodes visible tokens apart from masks."""
    return isinstance(model, Encodes)


@runtime_checkable
class Policy(Protocol):
    """Where: which positions commit, are edited or remasked. A frozen pytree: numbers are traced, the rest is static.

    Attributes:
        blind: which positions commit, and in which order, does not hang on the candidates that were drawn there (their
            probability, a margin to them ...), though it may on the belief (its entropy): what draws by rejection then
            weighs what it should. Such a policy takes nothing back.
        waits: a schedule that may leave a row untouched in a step; at most `budget` steps of a block.
        revises: may edit, remask or hold; then nothing of a block is settled before the row leaves it.
        needs: what `Score` must hold beyond the model's belief: REFERENCE, the answer of a finished decode; SHADOW,
            what the model says of each committed token without it (`alone`), for which the full pass is fed as many
            tokens more as the block has; GUIDE, what a guide says of the draft (`guide`), for which it reads the block
            in each step; GREEDY, that the candidates are not drawn, since tokens that the policy writes are not.
    """

    @property
    def blind(self) -> bool: ...

    @property
    def waits(self) -> bool: ...

    @property
    def revises(self) -> bool: ...

    @property
    def needs(self) -> frozenset[str]: ...

    def check(self, model: Model, params: Params) -> None:
        """Raises InputError for a model that the policy was not made for."""
        ...

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        """Steps of a block after which remask, edit, hold and waits are not heeded: the proof that a decode ends."""
        ...

    def init(self, rows: int, window: int) -> PartState:
        """The state before the first step. Raises InputError for a block length that the policy cannot serve."""
        ...

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        """One decision. `key` is the row's own, fresh for this step."""
        ...


@runtime_checkable
class Passes(Protocol):
    """The cheap passes that a fill may run between the full pass of a step and its commit.

    They read the KV cache of the full pass and leave it as it was. `draw`, from 2 on, tells the passes of one step
    apart, so that each draws its own noise. The belief is of the same positions, in the order given.

    A drafter's pass is the fill's own: it embeds tokens with `embed`, and has its features read by `believe`.
    """

    @property
    def inside(self) -> Bool[Array, "B W"]:
        """The positions of the block that the row attends to in this step: before its end, and no padding."""
        ...

    def embed(self, tokens: Int[Array, "B C"]) -> Float[Array, "B C D"]:
        """The model's embeddings, in its dtype."""
        ...

    def believe(
        self,
        hidden: Float[Array, "B C D"],
        columns: Int[Array, "B C"],
        draw: int | Int[Array, ""],
        *,
        within: tuple[Float[Array, "B C D"], Float[Array, " B"]] | None = None,
    ) -> Belief:
        """What the model's head says of features at these canvas columns. `within`: the features of the full pass
        there, and the log-mass of what was written since (`log_marginal`, summed): candidates are then drawn within
        the Frechet bounds of these marginals.
        """
        ...

    def log_marginal(
        self, hidden: Float[Array, "B C D"], columns: Int[Array, "B C"], token: Int[Array, "B C"]
    ) -> Float[Array, "B C"]:
        """The log-probability of tokens in what features say, at the temperature that is drawn at (1 where it is 0)."""
        ...

    def beside(self, tokens: Int[Array, " B"], weights: int) -> Float[Array, " B"]:
        """The work of so many tokens of each row through another network, of so many weights: by these in relation to
        those of the model's layers that a token meets.
        """
        ...

    def canvas(self, canvas: Int[Array, "B L"], draw: int | Int[Array, ""]) -> tuple[Belief, Float[Array, " B"]]:
        """The block's belief on another canvas, recomputed whole; and the work of each row."""
        ...

    def window(self, tokens: Int[Array, "B W"], draw: int | Int[Array, ""]) -> tuple[Belief, Float[Array, " B"]]:
        """The block's belief with these tokens in it, all else as the KV cache has it; and the work of each row."""
        ...

    def group(
        self, tokens: Int[Array, "B W"], among: Bool[Array, "B W"], draw: int | Int[Array, ""]
    ) -> tuple[Belief, Float[Array, " B"]]:
        """The belief at some positions of the block with these tokens there, all else as the KV cache has it, the rest
        of the block too; and the work of each row.

        A pass feeds no more of the block than the row with most positions `among` needs, rounded up to a compiled
        width. Of the others the belief says nothing; a row without any takes no part, and has no work.
        """
        ...


@runtime_checkable
class Fill(Protocol):
    """What: which tokens the chosen positions get together.

    `needs` (static): KV, if its passes read the keys and values of the full pass, which are then kept under any cache.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def check(self, model: Model, params: Params) -> None:
        """Raises InputError for a model that it does not go with; `params` may be shapes alone."""
        ...

    def init(self, rows: int, window: int) -> PartState: ...

    def write(
        self,
        state: PartState,
        score: Score,
        proposal: Proposal,
        commit: Bool[Array, "B W"],
        passes: Passes,
        key: Key[Array, " B"],
    ) -> tuple[Written, PartState]:
        """The tokens of `commit`, what the loop has resolved of the proposal."""
        ...


@runtime_checkable
class Cache(Protocol):
    """Which keys and values a decode reuses: which window a pass recomputes, and when everything is rebuilt.

    Attributes:
        window: `canvas` (nothing is reused), `suffix` (from `reach` to the end), `block` (a block from `reach` on) or
            `masks` (what is masked, wherever it stands, of models that encode the rest).
        keeps: a window's keys and values must be kept, because a later window will not reach them.
        block_causal: only for models that attend in blocks.
        seeds: a pass that stores reads the first position of the attention block that the row enters, which the loop
            commits, whatever the policy; so no window needs the column before it. Only for shifted models.
        narrows: a window may be the block alone where that is a part of what the model attends in.
    """

    window: ClassVar[str]
    keeps: ClassVar[bool]
    block_causal: ClassVar[bool]
    seeds: ClassVar[bool]
    narrows: ClassVar[bool]

    def due(self, place: Place) -> Bool[Array, " B"]:
        """Which rows rebuild the whole KV cache in this step (a refresh)."""
        ...

    def stores(self, place: Place) -> Bool[Array, " B"]:
        """Which rows spend this step on keys and values alone: it counts, and commits nothing but what it `seeds`."""
        ...

    def reach(self, place: Place) -> Int[Array, " B"]:
        """The first column of each row's window."""
        ...

    def width(self, place: Place) -> Int[Array, " B"]:
        """How many columns each row's window has, where it is a `block`."""
        ...

    def exact(self, *, block_causal: bool, prefix_lm: bool) -> bool:
        """Whether every pass, whatever the cache's numbers (these are traced), gives the belief that a pass over the
        whole canvas would; for a model whose attention is block-causal, whose prompt does not see the answer, or whose
        positions all see each other.
        """
        ...


@runtime_checkable
class Stopper(Protocol):
    """When a row's end moves left (it never moves right).

    `wants_tail` (static): ends of text are looked for at all open positions, so that `Progress.tail` is there. `cuts`
    (static): ends move left of masks, so that shorter forwards are worth compiling. `hides` (static): what lies past a
    row's end is shown to the policy with probability 0 and log-odds NEVER.
    """

    @property
    def wants_tail(self) -> bool: ...

    @property
    def cuts(self) -> bool: ...

    @property
    def hides(self) -> bool: ...

    def init(self, rows: int) -> PartState: ...

    def update(self, state: PartState, progress: Progress) -> tuple[Int[Array, " B"], PartState]:
        """The new end of each row, [B]; the loop takes the minimum of it and the old one."""
        ...


@runtime_checkable
class Automaton(Protocol):
    """A deterministic automaton over classes of tokens, in tables that are traced leaves.

    The states LOST, ENDED and BEGUN, and the classes NOWHERE and ENDS, are the same in each (`jaxdiff.types`).

    Attributes:
        of: the class of each id; the last entry is that of any id beyond.
        next: the state after a token of class k in state s. ENDS leads from a state that accepts to ENDED, which ENDS
            alone does not leave for LOST.
        accepts: the states in which a text may be over, ENDED among them.
        hole: 1 where some token but an end leads from a state to one that is not LOST, else 0.
        example: an id of each class.
    """

    @property
    def of(self) -> Int[Any, " n"]: ...

    @property
    def next(self) -> Int[Any, "K S"]: ...

    @property
    def accepts(self) -> Bool[Any, " S"]: ...

    @property
    def hole(self) -> Float[Any, "S S"]: ...

    @property
    def example(self) -> Int[Any, " K"]: ...


@runtime_checkable
class Predicate(Protocol):
    """What a token must pass to be written, asked about one at a time; a frozen pytree."""

    def check(self, model: Model) -> None:
        """Raises InputError for a model whose ids mean something else."""
        ...

    def fits(self, tokens: Int[Array, " G"], column: Int[Array, ""], candidate: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether some completion is allowed with `candidate` in this column: jittable, of one row alone.

        Args:
            tokens: what the row has of its answer, from the first token that is generated on (of a canvas, all of it):
                ids, HOLE where none is written yet, `candidate`'s own column too; end-of-text behind the row's end.
            column: of the candidate, among these.

        What it says of a finished text must hold with any of its tokens taken out: a text that is allowed is then
        never lost on the way. Where it can only tell of some texts that they cannot be completed, others end where no
        token fits, and weigh nothing.
        """
        ...


@runtime_checkable
class Constraint(Protocol):
    """Which texts an answer may be, and how a token among those that fit is found.

    Attributes:
        automaton: the texts that match, as tables; None: predicates alone say it.
        predicates: what a token must pass beside that.
        estimator (static): None: where the candidate does not fit, the best token that does; nothing is weighed, and
            there are no predicates. Else tokens are drawn by rejection, and weigh what this one of
            `constraints.awrs.ESTIMATORS` says.
    """

    @property
    def automaton(self) -> Automaton | None: ...

    @property
    def predicates(self) -> tuple[Predicate, ...]: ...

    @property
    def estimator(self) -> str | None: ...

    def check(self, model: Model) -> None:
        """Raises InputError for a model whose ids mean something else."""
        ...
