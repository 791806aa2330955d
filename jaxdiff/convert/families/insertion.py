"""An insertion model's tensors: LLaDA's, and the stop head. Nobody publishes one: the names are ours."""

from jaxdiff.convert.families import llada
from jaxdiff.convert.table import same

TABLE = (*llada.TABLE, same("stop.weight", "stop/weight"))
