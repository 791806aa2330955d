import json

import pytest

RECIPE = {
    "task": "gsm_symbolic",
    "model": {
        "vocab_size": 320,
        "d_model": 16,
        "n_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "mlp_hidden_size": 32,
        "max_sequence_length": 64,
        "dtype": "float32",
    },
    "problems": {"drills": 60},
    "buckets": [
        {"task": "drills", "length": 32, "rows": 4, "weight": 2.0},
        {"task": "drills", "length": 40, "rows": 2, "weight": 1.0},
    ],
    "steps": 12,
    "warmup": 2,
    "decay": 4,
    "learning_rate": 0.01,
    "tokenizer_problems": 60,
    "block_length": 8,
    "save_every": 4,
}


@pytest.fixture
def recipe_file(tmp_path):
    def write(**changes):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(RECIPE | changes))
        return path

    return write
