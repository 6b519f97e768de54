#!/usr/bin/env python3
"""Writes the licences of all crates that a program for TARGET is made of: scripts/licenses.py TARGET [FLAG..] >FILE

FLAG: of cargo, as `--features python`. The texts are the files that each crate carries; a text that several crates share stands once. A crate without
files takes those of another crate of the same repository, or of the same owner's under the same licence; one
under MIT takes that text with its authors' names, and one without any is an error. `--self-test` holds these rules to examples.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LICENSE_FILE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)s?([-._].*)?", re.IGNORECASE)


def shipped(metadata):
    """The packages that are compiled into the program: what it needs, but to build or to test alone."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    seen, todo = set(), [root]
    while todo:
        for dependency in nodes[todo.pop()]["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                todo.append(dependency["pkg"])
    packages = [package for package in metadata["packages"] if package["id"] in seen - {root}]
    return sorted(packages, key=lambda package: (package["name"], package["version"]))


def texts(package):
    """The licence files of a package, by name."""
    folder = Path(package["manifest_path"]).parent
    files = {path for path in folder.iterdir() if path.is_file() and LICENSE_FILE.fullmatch(path.name)}
    if package["license_file"]:
        files.add(folder / package["license_file"])
    return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in sorted(files)}


def neighbourhoods(package):
    """Where other packages have the same files: a repository, an owner's repositories under one licence."""
    repository = package["repository"]
    return [repository, (repository.rpartition("/")[0], package["license"])] if repository else []


def standard(package):
    """MIT's text, which differs in the names alone of those who give it."""
    names = [author.split(" <")[0] for author in package.get("authors", [])]
    if package["license"] != "MIT" or not names:
        return {}
    ours = (ROOT / "LICENSE").read_text(encoding="utf-8")
    return {"LICENSE": re.sub(r"^Copyright .*$", f"Copyright (c) {', '.join(names)}", ours, count=1, flags=re.MULTILINE)}


def with_neighbours(packages, files_of):
    """The files of each package; for one that has none those of a neighbour."""
    files = {package["id"]: files_of(package) for package in packages}
    lenders = [package for package in packages if files[package["id"]]]
    lent = {place: files[package["id"]] for package in lenders for place in neighbourhoods(package)}
    for package in packages:
        if not files[package["id"]]:
            places = neighbourhoods(package)
            files[package["id"]] = next((lent[place] for place in places if place in lent), None) or standard(package)
    missing = [f"{package['name']} {package['version']}" for package in packages if not files[package["id"]]]
    if missing:
        sys.exit(f"no licence file: {', '.join(missing)}")
    return files


def render(packages, files):
    """One text: which package has which licence, then each distinct file under the packages that have it."""
    lines = ["The crates that this program contains, and their licences. Their texts follow.", ""]
    width = max(len(f"{package['name']} {package['version']}") for package in packages)
    by_text = {}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        lines.append(f"{name:{width}}  {package['license'] or 'see below'}")
        for file, text in files[package["id"]].items():
            # White space and line ends apart, most copies of a text are one.
            words = " ".join(text.split())
            by_text.setdefault(words, (file, text, []))[2].append(name)
    for file, text, names in by_text.values():
        body = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
        lines += ["", "=" * 80, f"{file} of {', '.join(names)}", "=" * 80, "", body]
    return "\n".join(lines) + "\n"


def self_test():
    def package(name, repository):
        return {"id": name, "name": name, "version": "1", "license": "MIT", "repository": repository}

    a, b, c = package("a", "here"), package("b", "here"), package("c", None)
    texts_of = {"a": {"LICENSE": "one\n  text"}, "b": {}, "c": {"COPYING": "one text\r\n"}}
    files = with_neighbours([a, b, c], lambda package: texts_of[package["id"]])
    assert files["b"] == files["a"]
    out = render([a, b, c], files)
    assert out.count("one\n") == 1 and "LICENSE of a 1, b 1, c 1" in out, out
    e, f = package("e", "site/owner/one"), package("f", "site/owner/two")
    assert with_neighbours([e, f], lambda package: {"LICENSE": "text"} if package is e else {})["f"]
    try:
        with_neighbours([e, f | {"license": "Zlib"}], lambda package: {"LICENSE": "text"} if package is e else {})
    except SystemExit as error:
        assert "f 1" in str(error)
    else:
        raise AssertionError("a licence was lent to another")
    try:
        with_neighbours([package("d", None)], lambda package: {})
    except SystemExit as error:
        assert "d 1" in str(error)
    else:
        raise AssertionError("a package without a licence went through")
    given = package("g", None) | {"authors": ["An Author <an@author>", "Another"]}
    text = with_neighbours([given], lambda package: {})["g"]["LICENSE"]
    assert "Copyright (c) An Author, Another\n" in text and "MIT License" in text, text
    names = ["LICENSE", "LICENSE-MIT", "license.md", "UNLICENSE", "COPYING", "NOTICES.md", "LICENCE.txt"]
    assert all(LICENSE_FILE.fullmatch(name) for name in names)
    assert not LICENSE_FILE.fullmatch("licensing.rs")

    def node(name, *dependencies):
        deps = [{"pkg": pkg, "dep_kinds": [{"kind": kind}]} for pkg, kind in dependencies]
        return {"id": name, "deps": deps}

    nodes = [node("root", ("a", None), ("b", "dev")), node("a", ("c", None), ("d", "build"))]
    nodes += [node("b"), node("c"), node("d")]
    packages = [package(node["id"], None) for node in nodes]
    graph = {"resolve": {"root": "root", "nodes": nodes}, "packages": packages}
    assert [package["name"] for package in shipped(graph)] == ["a", "c"]
    print("licenses.py: all rules hold")


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", *sys.argv[1:]]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    packages = shipped(metadata)
    sys.stdout.write(render(packages, with_neighbours(packages, texts)))


if __name__ == "__main__":
    main()
