"""Which keys and values a decode reuses: one file per cache."""

from jaxdiff.caches.block import BlockCausal
from jaxdiff.caches.dual import Dual
from jaxdiff.caches.encoded import Encoded
from jaxdiff.caches.frozen import Frozen, FrozenAtCommit, FrozenPrompt
from jaxdiff.caches.none import NoCache
from jaxdiff.caches.prefix import Prefix
from jaxdiff.caches.seeded import Seeded, SeededDual
from jaxdiff.registry import Modes, Registry

CACHES = Registry(
    "cache",
    {
        "none": NoCache,
        "prefix": Prefix,
        "dual": Dual,
        "frozen": Modes("freeze", "clean", {"clean": Frozen, "commit": FrozenAtCommit, "prompt": FrozenPrompt}),
        "block": BlockCausal,
        "seeded": Modes("inner", "none", {"none": Seeded, "dual": SeededDual}),
        "encoded": Encoded,
    },
)

__all__ = [
    "CACHES",
    "BlockCausal",
    "Dual",
    "Encoded",
    "Frozen",
    "FrozenAtCommit",
    "FrozenPrompt",
    "NoCache",
    "Prefix",
    "Seeded",
    "SeededDual",
]
