"""`--json`: what a file of answers holds."""

import hashlib
import json
from pathlib import Path

import torch

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.evals.ask.answering import Asking
from ropewalk.evals.ask.contexts import read_contexts
from ropewalk.evals.ask.request import AskRequest
from ropewalk.evals.environment import versions
from ropewalk.evals.models import open_model
from ropewalk.llm import NBCE


def test_json_holds_what_the_library_says(command, tmp_path, write_pairs):
    files = write_pairs(tmp_path / "files", 3, seed=3)
    key, value = next(iter(files[1].items()))
    options = ("--context", "files", "--question", f"{key} = ", "--stop", r"\n")
    code, out, _ = command(*options, "--json", "-", "--prior", "1,2,1", "--beta", "0.5")
    assert code == 0
    content = json.loads(out)
    code, shown, _ = command(*options, "--prior", "1,2,1", "--beta", "0.5", "--json", "new/a.json")
    assert (code, shown) == (0, f"[1.txt] {value}\n")
    assert json.loads(Path("new/a.json").read_text()) == content
    assert content["model"] == "default"
    assert content["merge"] == {"beta": 0.5, "eta": 0.1, "top_p": 0.95, "pooling": "min_entropy"}
    texts = read_contexts([Path("files")]).texts
    assert content["contexts"] == [
        {
            "name": name,
            "tokens": len(text),
            "sha256": hashlib.sha256(Path("files", name).read_bytes()).hexdigest(),
        }
        for name, text in texts.items()
    ]
    asking = Asking(AskRequest([Path("files")], [f"{key} = "]))
    model = asking._source.load(dtype=torch.float32, device=torch.device("cpu"))
    reader = NBCE(model, asking.tokenizer, ContextMerge(beta=0.5))
    answer = reader.ask(f"{key} = ", texts, prior=[1, 2, 1], stop="\n")
    (written,) = content["answers"]
    assert written["text"] == answer.text == value
    assert written["spans"] == [{"text": value, "context": 1, "name": "1.txt"}]
    assert written["tokens"] == answer.tokens
    assert written["chosen"] == answer.trace.chosen.tolist()
    torch.testing.assert_close(torch.tensor(written["entropies"]), answer.trace.entropies)


def test_json_holds_all_that_decided_the_answers(command, tmp_path, write_pairs):
    write_pairs(tmp_path / "files", 2, seed=12)
    options = ("--context", "files", "--question", "def ", "--json", "-", "--max-new-tokens", "3")
    code, out, _ = command(*options, "--device", "cpu")
    assert code == 0
    content = json.loads(out)
    assert content.pop("versions") == versions()
    assert content.pop("fingerprint") == open_model("default").fingerprint
    for name in ("merge", "contexts", "answers"):
        del content[name]
    defaults = {
        "model": "default",
        "variant": {},
        "max_length": 512,
        "dtype": "float32",
        "device": "cpu",
        "prefix": "",
        "separator": "\n\n",
        "chat": False,
        "split": False,
        "stop": [],
        "max_new_tokens": 3,
        "sample": False,
        "temperature": None,
        "seed": None,
        "prior": None,
    }
    assert content == defaults
    given = ("--prefix", "Look:", "--separator", r"\n", "--stop", "x", "--stop", r"\n", "--sample")
    given += ("--seed", "3", "--prior", "1,2", "--variant", "log-n", "--dtype", "bfloat16")
    code, out, _ = command(*options, *given, "--device", "cpu", "--max-length", "600")
    assert code == 0
    changed = {
        "variant": {"log_n": {"name": "log-n", "length": 512, "clamp": True}},
        "max_length": 600,
        "dtype": "bfloat16",
        "prefix": "Look:",
        "separator": "\n",
        "stop": ["x", "\n"],
        "sample": True,
        "temperature": 1.0,
        "seed": 3,
        "prior": [1.0, 2.0],
    }
    content = json.loads(out)
    assert {name: content[name] for name in defaults} == defaults | changed
