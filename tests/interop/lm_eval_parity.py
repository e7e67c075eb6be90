"""lm-evaluation-harness against `bitsmith serve` and against transformers: item by item the same, for a multiple-choice and for a
generative task.

Usage: lm_eval_parity.py BITSMITH MODEL TEXT [--choice FILE.jsonl] [--generative FILE.jsonl] [--limit N] [--until TEXT...]
Needs lm-eval[api], torch and transformers. MODEL is a checkpoint folder. Without files the tasks are made of TEXT: which of four passages
goes on from the one before, and what its next word is. Files have `query`, `choices` and `gold`, or `question` and `answer`.
Exits 1 if an item differs.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import lm_eval
from lm_eval.tasks import TaskManager

# Of summation in f32, per item.
TOLERANCE = 2e-3
CHOICE = {
    "task": "parity_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
GENERATIVE = {
    "task": "parity_generative",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"do_sample": False, "temperature": 0, "max_gen_toks": 32, "until": None},
    # The first word is what counts in the tasks made of text; whole answers are compared besides.
    "filter_list": [{"name": "word", "filter": [{"function": "regex", "regex_pattern": r"(\w+)"}, {"function": "take_first"}]}],
    "metric_list": [{"metric": "exact_match"}],
}


def cloze(text, limit):
    """Rows for both tasks from running text."""
    words, rng = text.split(), random.Random(1)
    passages = [words[i : i + 30] for i in range(0, len(words) - 30, 30)][:limit]
    choice, generative = [], []
    for passage in passages:
        start, end = " ".join(passage[:20]), " ".join(passage[20:])
        others = [" ".join(p[20:]) for p in rng.sample([p for p in passages if p is not passage], 3)]
        gold = rng.randrange(4)
        others.insert(gold, end)
        choice.append({"query": start, "choices": others, "gold": gold})
        generative.append({"question": start, "answer": passage[20].strip(".,;:!?\"'()")})
    return choice, generative


def rows(path, limit):
    with open(path) as file:
        return [json.loads(line) for line, _ in zip(file, range(limit))]


def write_task(folder, task, data):
    path = folder / f"{task['task']}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
    # JSON is YAML.
    (folder / f"{task['task']}.yaml").write_text(json.dumps(task | source))


@contextlib.contextmanager
def serve(bitsmith, model):
    process = subprocess.Popen([bitsmith, "--json", "-q", "serve", model, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        assert process.wait(30) == 0, "the server did not stop cleanly"


def evaluate(folder, kind, arguments, batch):
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    names = [CHOICE["task"], GENERATIVE["task"]]
    return lm_eval.simple_evaluate(
        model=kind, model_args=arguments, tasks=names, task_manager=tasks, batch_size=batch, bootstrap_iters=0, log_samples=True
    )


def compare(task, theirs, ours):
    """Number of items that differ, and what was seen."""
    key = lambda s: s["doc_id"]
    theirs, ours = (sorted(r["samples"][task], key=key) for r in (theirs, ours))
    assert len(theirs) == len(ours) > 0
    metrics = ["acc", "acc_norm"] if task == CHOICE["task"] else ["exact_match"]
    different, most = 0, 0.0
    for t, o in zip(theirs, ours):
        same = all(t[m] == o[m] for m in metrics)
        if task == CHOICE["task"]:
            pairs = [(a[0], b[0]) for a, b in zip(t["resps"], o["resps"])]
            most = max([most] + [abs(float(a[0]) - float(b[0])) for a, b in pairs])
            same &= all(str(a[1]) == str(b[1]) for a, b in pairs)
        else:
            same &= t["resps"] == o["resps"]
        if not same:
            different += 1
            print("different:", t["doc_id"], t["resps"], o["resps"], sep="\n  ")
    mean = lambda samples: " ".join(f"{m} {sum(s[m] for s in samples) / len(samples):.4f}" for m in metrics)
    seen = f"{len(ours)} items, transformers: {mean(theirs)}; serve: {mean(ours)}; {different} differ"
    if task == CHOICE["task"]:
        seen += f"; log-likelihoods by {most:.2g} at most"
        different += most > TOLERANCE
    return different, seen


def main():
    parser = argparse.ArgumentParser()
    for name in ("bitsmith", "model", "text"):
        parser.add_argument(name)
    parser.add_argument("--choice")
    parser.add_argument("--generative")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--until", nargs="+", default=["\n\n", ". "])
    args = parser.parse_args()
    GENERATIVE["generation_kwargs"]["until"] = args.until
    choice, generative = cloze(pathlib.Path(args.text).read_text(), args.limit)
    choice = rows(args.choice, args.limit) if args.choice else choice
    generative = rows(args.generative, args.limit) if args.generative else generative
    length = json.loads((pathlib.Path(args.model) / "config.json").read_text())["max_position_embeddings"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_task(folder, CHOICE, choice)
        write_task(folder, GENERATIVE, generative)
        theirs = evaluate(folder, "hf", {"pretrained": args.model, "dtype": "float32", "device": "cpu"}, 1)
        with serve(args.bitsmith, args.model) as server:
            arguments = {
                "model": server["model"],
                "base_url": server["url"] + "/v1/completions",
                "tokenizer": args.model,
                "tokenizer_backend": "huggingface",
                "num_concurrent": 4,
                "max_length": length,
                "max_retries": 1,
            }
            ours = evaluate(folder, "local-completions", arguments, 4)
    failed = 0
    for task in (CHOICE["task"], GENERATIVE["task"]):
        different, seen = compare(task, theirs, ours)
        failed += different > 0
        print(task, "FAILED" if different else "ok", seen, sep="\t")
    sys.exit(failed > 0)


main()
