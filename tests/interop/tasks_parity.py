"""`bitsmith eval --tasks` against lm-evaluation-harness with transformers on the CPU: item by item the same choice, and the same scores.

Usage: tasks_parity.py BITSMITH MODEL DATA [--limit N] [--tasks NAME...]
Needs lm-eval 0.4.13 or later, torch and transformers. MODEL is a checkpoint folder. DATA is a folder with arc_easy, arc_challenge, piqa, boolq (.jsonl with
`query`, `choices`, `gold`), hellaswag_*.jsonl, lambada_openai.jsonl (`context`, `continuation`), gsm8k_test.jsonl, TruthfulQA.csv and
mmlu/*.csv; tasks without a file there are made of the others' texts. Definitions are the installed package's own: only where the records
come from is replaced, by local files that both sides read. bitsmith reads DATA as it is besides, and must come to the same scores.
Choices may differ where the two best are closer than 1e-3. Exits 1 if anything else differs.
"""

import argparse
import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

MARGIN = 1e-3
LETTERS = "ABCDE"
# Name, examples, the split that the harness scores, the one it takes examples from.
TASKS = [
    ("hellaswag", 0, "validation", None),
    ("arc_easy", 0, "test", None),
    ("arc_challenge", 3, "test", "train"),
    ("piqa", 0, "validation", None),
    ("boolq", 0, "validation", None),
    ("lambada_openai", 0, "test", None),
    ("truthfulqa_mc1", 0, "validation", None),
    ("truthfulqa_mc2", 0, "validation", None),
    ("mmlu_abstract_algebra", 2, "test", "dev"),
    ("mmlu_formal_logic", 0, "test", None),
    ("winogrande", 0, "validation", None),
    ("openbookqa", 0, "test", None),
    ("commonsense_qa", 0, "validation", None),
    ("gsm8k", 0, "test", None),
]
# bitsmith reads these of DATA too, where they are in another form.
AS_THEY_ARE = ["hellaswag", "arc_easy", "piqa", "boolq", "lambada_openai", "truthfulqa_mc1", "truthfulqa_mc2", "mmlu_formal_logic"]


def lines(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def arc(rows):
    for row in rows:
        question = row["query"].removeprefix("Question: ").rstrip("\n")
        labels = list(LETTERS[: len(row["choices"])])
        choices = {"text": row["choices"], "label": labels}
        yield {"question": question, "choices": choices, "answerKey": labels[row["gold"]]}


def boolq(row):
    passage, question = row["query"].removeprefix("Passage: ").rsplit("\nQuestion: ", 1)
    return {"passage": passage, "question": question.strip().removesuffix("?"), "label": row["gold"]}


def truthful(row):
    close = lambda text: text.strip() + ("" if text.strip().endswith(".") else ".")
    answers = lambda cell: [close(a) for a in cell.split(";") if a.strip()]
    right, wrong = answers(row["Correct Answers"]), answers(row["Incorrect Answers"])
    one = {"choices": [close(row["Best Answer"])] + wrong, "labels": [1] + [0] * len(wrong)}
    many = {"choices": right + wrong, "labels": [1] * len(right) + [0] * len(wrong)}
    return {"question": row["Question"], "mc1_targets": one, "mc2_targets": many}


def gaps(passages):
    """Sentences with a gap for a word and for the last word of another passage."""
    for a, b in zip(passages, passages[1:]):
        words = a["context"].split()
        at = len(words) // 2
        yield {
            "sentence": " ".join(words[:at] + ["_"] + words[at + 1 :]),
            "option1": words[at],
            "option2": b["continuation"],
            "answer": "1",
        }


def records(data, name):
    """All records of a task, in the form that the harness's definition expects."""
    table = lambda path: list(csv.DictReader(open(path, encoding="utf-8-sig")))
    if name.startswith("arc"):
        return list(arc(lines(data / f"{name}.jsonl")))
    if name == "hellaswag":
        return lines(next(data.glob("hellaswag*.jsonl")))
    if name == "piqa":
        rows = lines(data / "piqa.jsonl")
        goal = lambda row: row["query"].removeprefix("Question: ").removesuffix("\n")
        return [{"goal": goal(r), "sol1": r["choices"][0], "sol2": r["choices"][1], "label": r["gold"]} for r in rows]
    if name == "boolq":
        return [boolq(row) for row in lines(data / "boolq.jsonl")]
    if name == "lambada_openai":
        return [{"text": f"{r['context']} {r['continuation']}"} for r in lines(data / "lambada_openai.jsonl")]
    if name.startswith("truthfulqa"):
        return [truthful(row) for row in table(data / "TruthfulQA.csv")]
    if name.startswith("mmlu"):
        rows = table(data / "mmlu" / f"{name.removeprefix('mmlu_')}.csv")
        return [{"question": r["question"], "choices": [r[k] for k in "ABCD"], "answer": int(r["answer"])} for r in rows]
    if name == "winogrande":
        return list(gaps(lines(data / "lambada_openai.jsonl")))
    if name == "openbookqa":
        rows = records(data, "arc_challenge")
        return [{"question_stem": r["question"], "choices": r["choices"], "answerKey": r["answerKey"]} for r in rows]
    if name == "commonsense_qa":
        rows = [r for r in records(data, "arc_easy") if len(r["choices"]["text"]) == 4]
        five = lambda r: {"text": r["choices"]["text"] + ["None of these."], "label": list(LETTERS)}
        return [{**r, "choices": five(r)} for r in rows]
    return lines(data / f"{name}_test.jsonl")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours(bitsmith, model, task, shots, folder, out, limit):
    command = [bitsmith, "--json", "-q", "eval", model, "--tasks", task, "--fewshot", str(shots), "--limit", str(limit)]
    command += ["--task-data", folder, "--results-dir", out] + (["--max-gen-tokens", "32"] if task == "gsm8k" else [])
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"{task}: exit code {done.returncode}"
    scores = {r["metric"]: r["value"] for r in json.loads(done.stdout)["tasks"] if r["task"] == task}
    samples = sorted(out.glob(f"*/samples_{task}_*.jsonl"))[-1]
    return scores, lines(samples)


def theirs(model, task, shots, split, from_split, files, limit):
    defined = load_yaml(TaskManager().task_index[task].yaml_path)
    override = {
        **defined,
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {s: str(f) for s, f in files.items()}},
        "training_split": from_split if from_split == "train" else None,
        "validation_split": split if split == "validation" else None,
        "test_split": split if split == "test" else None,
        "fewshot_split": from_split,
    }
    if task == "gsm8k":
        override["generation_kwargs"] = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "max_gen_toks": 32}
    arguments = {"pretrained": model, "dtype": "float32", "device": "cpu"}
    seen = lm_eval.simple_evaluate(
        model="hf", model_args=arguments, tasks=[override], num_fewshot=shots, batch_size=8, limit=limit, bootstrap_iters=0, log_samples=True
    )
    return seen["results"][task], seen["samples"][task]


def best(values):
    """The first largest value's place, and by how much it is larger than the next."""
    at = max(range(len(values)), key=lambda i: values[i])
    rest = [v for i, v in enumerate(values) if i != at]
    return at, values[at] - max(rest) if rest else float("inf")


def compare(task, their_samples, our_samples):
    """Items, items that differ, and the largest difference of log-likelihoods."""
    by = lambda samples: sorted(samples, key=lambda s: (s["filter"], s["doc_id"]))
    theirs, ours = by(their_samples), by(our_samples)
    assert [(s["filter"], s["doc_id"]) for s in theirs] == [(s["filter"], s["doc_id"]) for s in ours], task
    different, close, most = 0, 0, 0.0
    for t, o in zip(theirs, ours):
        asked = [[str(a) for a in t["arguments"][k]] if isinstance(t["arguments"], dict) else list(map(str, t["arguments"][k])) for k in ([] if task == "gsm8k" else range(len(t["arguments"])))]
        mine = [list(a.values()) for a in o["arguments"].values()]
        same = task == "gsm8k" or asked == mine
        if task == "gsm8k":
            same &= t["arguments"][0][0] == o["arguments"]["gen_args_0"]["arg_0"] and t["resps"] == o["resps"]
            same &= t["exact_match"] == o["exact_match"]
        else:
            a, b = ([float(r[0][0]) for r in s["resps"]] for s in (t, o))
            most = max([most] + [abs(x - y) for x, y in zip(a, b)])
            lengths = [len(c) for c in choices(o)]
            for scale in ([1] * len(a), lengths):
                (i, gap), (j, _) = (best([x / n for x, n in zip(v, scale)]) for v in (a, b))
                same &= i == j or gap <= MARGIN
                close += gap <= MARGIN
        if not same:
            different += 1
            print("different:", task, t["doc_id"], t["arguments"], t["resps"], o["arguments"], o["resps"], sep="\n  ")
    return len(ours), different, close, most


def choices(sample):
    return [re.sub("^ ", "", a["arg_1"]) or " " for a in sample["arguments"].values()]


def main():
    parser = argparse.ArgumentParser()
    for name in ("bitsmith", "model", "data"):
        parser.add_argument(name)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--tasks", nargs="+", default=[t[0] for t in TASKS])
    args = parser.parse_args()
    data = pathlib.Path(args.data)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for task, shots, split, from_split in TASKS:
            if task not in args.tasks:
                continue
            limit = min(args.limit, 20) if task == "gsm8k" else args.limit
            rows = records(data, task)
            n = len(rows) if from_split is None else len(rows) - 30
            files = {split: folder / f"{task}.jsonl"}
            write(files[split], rows[:n])
            if from_split:
                files[from_split] = folder / f"{task}_{from_split}.jsonl"
                write(files[from_split], rows[n:])
            scores, mine = ours(args.bitsmith, args.model, task, shots, folder, folder / "out", limit)
            results, others = theirs(args.model, task, shots, split, from_split, files, limit)
            items, different, close, most = compare(task, others, mine)
            pairs = [(m, scores[m], results[",".join([m, "none"] if "," not in m else [m])]) for m in scores]
            tolerance = lambda m, value: 1e-3 * value if m == "perplexity" else 1e-4 if task == "truthfulqa_mc2" else 1e-9 + close / items
            wrong = [m for m, a, b in pairs if abs(a - b) > tolerance(m, b)]
            if task in AS_THEY_ARE:
                again, _ = ours(args.bitsmith, args.model, task, shots, data, folder / "again", limit)
                wrong += [f"{m} from {data}" for m in scores if again[m] != scores[m]]
            shown = " ".join(f"{m} {a:.4f} ({b:.4f})" for m, a, b in pairs)
            ok = not different and not wrong
            failed += not ok
            print(task, "ok" if ok else f"FAILED {' '.join(wrong)}", f"{items - different} of {items} agree", f"{close} margins below {MARGIN}",
                  f"log-likelihoods within {most:.2g}", shown, sep="\t", flush=True)
    sys.exit(failed > 0)


main()
