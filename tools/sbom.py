#!/usr/bin/env python3
"""A bill of materials of the program, as CycloneDX 1.5 JSON on standard output: every crate that the locked build of `bitsmith` links,
with version, licence and checksum. With `--check` nothing is printed, and licences and sources are held against deny.toml, as cargo-deny
does it, for machines that do not have that."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def metadata():
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", host()]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def host():
    lines = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout.splitlines()
    return next(line.split(": ")[1] for line in lines if line.startswith("host: "))


def linked(about):
    """Ids of all packages that the program is made of, without those that only build or test it."""
    nodes = {node["id"]: node for node in about["resolve"]["nodes"]}
    todo = [p["id"] for p in about["packages"] if p["name"] == "bitsmith" and p["source"] is None]
    seen = set()
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            kinds = lambda dep: any(kind["kind"] is None for kind in dep["dep_kinds"])
            todo += [dep["pkg"] for dep in nodes[current]["deps"] if kinds(dep)]
    return seen


def expression(package):
    return " ".join((package["license"] or "NOASSERTION").replace("/", " OR ").split())


def allowed(text, allow):
    """Whether licences of the list are enough for the expression."""
    word = lambda m: m[0].lower() if m[0] in ("AND", "OR") else str(m[0] in allow)
    return eval(re.sub(r"[A-Za-z0-9.+-]+( WITH [A-Za-z0-9.-]+)?", word, text))  # of True, False, and, or, and brackets


def check(packages):
    policy = tomllib.loads((ROOT / "deny.toml").read_text())
    wrong = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        if not allowed(expression(package), policy["licenses"]["allow"]):
            wrong.append(f"{name}: the licence {expression(package)} is not allowed")
        source = package["source"]
        if source is not None and source.removeprefix("registry+") not in policy["sources"]["allow-registry"]:
            wrong.append(f"{name}: comes from {source}")
        if package["name"] in [ban["crate"] for ban in policy["bans"]["deny"]]:
            wrong.append(f"{name}: is banned")
    return wrong


def component(package, checksums):
    found = {
        "type": "application" if package["name"] == "bitsmith" else "library",
        "bom-ref": f"pkg:cargo/{package['name']}@{package['version']}",
        "name": package["name"],
        "version": package["version"],
        "purl": f"pkg:cargo/{package['name']}@{package['version']}",
        "licenses": [{"expression": expression(package)}],
    }
    checksum = checksums.get((package["name"], package["version"]))
    if checksum:
        found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return found


def main():
    about = metadata()
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p["checksum"] for p in lock["package"] if "checksum" in p}
    ids = linked(about)
    if "--check" in sys.argv[1:]:
        wrong = check([p for p in about["packages"] if p["id"] in ids])
        print("\n".join(wrong) or f"{len(ids)} crates are as deny.toml asks")
        sys.exit(bool(wrong))
    components = [component(p, checksums) for p in about["packages"] if p["id"] in ids]
    components.sort(key=lambda c: (c["name"], c["version"]))
    program = next(c for c in components if c["name"] == "bitsmith")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": program},
        "components": [c for c in components if c is not program],
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
