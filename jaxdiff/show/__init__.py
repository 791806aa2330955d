"""A decode to look at: one HTML page, step by step, several decoders side by side.

rows = [show.row_of(result, 0, checkpoint.tokenizer, {"policy": name}, prompt_text=text) for name, result in ...]
Path("page.html").write_text(show.page(rows), encoding="utf-8")
"""

from jaxdiff.show.page import page
from jaxdiff.show.rows import decode_of, pieces_of, row_of

__all__ = ["decode_of", "page", "pieces_of", "row_of"]
