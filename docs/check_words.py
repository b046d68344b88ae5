"""Fail on words that the glossary (docs/concepts/words.md) replaces by another, and on unclear English.

    python docs/check_words.py [--names] [--count] [FILE_OR_FOLDER ...]

Checks strings, comments and names of Python files, everything in documents, templates and pages, and the names of
files. Each failure is a line `FILE:LINE: 'word': write 'other word'`. `--names` also reports names that do not say what
a value holds; `--count` prints the number of failures per file instead.
"""

from __future__ import annotations

import argparse
import io
import keyword
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
GLOSSARY = REPOSITORY / "docs" / "concepts" / "words.md"
CHECKED = (
    "src",
    "tests",
    "docs",
    "benchmarks",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "pyproject.toml",
    "mkdocs.yml",
)
SUFFIXES = (".py", ".md", ".j2", ".toml", ".html", ".js", ".yml")
LISTS = ("check_words.py", "test_check_words.py")  # they contain what is ruled out
VAGUE_NAMES = {"found", "given", "own", "kept", "chosen", "wanted", "known", "place", "told", "made"}
UNIT = r"(second|minute|hour|query|image|item|step|epoch|batch|class|vector|candidate|core|thread)"
COUNTED = (
    r"(images|queries|vectors|bytes|seconds|milliseconds|ms|MB|GB|files|items|steps|epochs|searches|requests|hits|tokens|"
    r"once|one)"
)


@dataclass(frozen=True)
class Word:
    """A pattern that is ruled out.

    Attributes:
        pattern: regular expression; case is ignored.
        write: what to write instead.
        allow: regular expressions of contexts in which the word is right.

    """

    pattern: str
    write: str
    allow: tuple[str, ...] = ()


WORDS = (
    # the glossary: one word per concept
    Word(r"\bpictures?\b", "image"),
    Word(r"\bphotograph(s|ed|ic|y)?\b", "image"),
    Word(
        r"\bphotos?\b",
        "image",
        # the folder of the examples
        (
            r"photos(?=[-./\"'`])",
            r"(?<=[\"'`])photos\b",
            r"\b(lookalike|check)( +[\w./-]+)* +photos\b",
            r"photos +(?=--)",
            r"\bin photos\?",
            r"\| photos \|",
            r"(/|error: |query )photos\b",
            r"photos(?=</code>|: )",
        ),
    ),
    Word(r"\bengines?\b", "runtime", (r"search engines?",)),
    Word(
        r"\bmetrics?\b",
        "measure",
        (
            r"metric[-_ ]learning",
            r"log[ _]metrics?",
            r"define[ _]metric",
            r"metric[ _]history",
            r"metric inner product",
            r"metric type",
            r"metric=",
            r"/metrics",  # the address that Prometheus reads
            r"\"metrics\"",
            r"metric families",
        ),
    ),
    Word(r"\btrunks?\b", "backbone", (r"\"trunk\"", r"freeze trunk batchnorm")),  # names of pytorch-metric-learning
    Word(r"\bembedders?\b", "head", (r"\"embedder\"",)),
    Word(r"\bextractors?\b", "backbone"),
    Word(r"\bjoint models?\b", "ensemble"),
    Word(r"\bcorpus\b", "index"),
    Word(r"\bdescriptors?\b", "embeddings"),
    Word(r"\bmodel objects?\b", "encoder"),
    Word(r"\bdatabase\b", "index", (r"local database",)),
    Word(r"\b(training|validation|query|gallery|test) parts?\b", "split"),
    Word(r"\bas (it|they) (came|comes?)\b", "pretrained, frozen or default"),
    # plain English
    Word(r"\btold\b", "reported"),
    Word(r"\btell(s|ing)?\b", "report, show or say", (r"tells? [\w ]{0,30}apart",)),
    Word(r"\bstands?\b(?!-alone)", "appears, is"),
    Word(r"\bsittings?\b", "session"),
    Word(r"\banew\b", "again"),
    Word(r"\bbe had\b", "is available"),
    Word(r"\b(left|leaves?|leaving) ([\w ]{0,20} )?out\b", "skipped, excluded", (r"leave one out",)),
    Word(r"\bleft_out\b", "excluded"),
    Word(r"\bpass(ed|es|ing)? over\b", "skipped"),
    Word(r"\bso many\b", "this many, or the number"),
    Word(r"\b(goes|go|went|going|gone) on\b", "resume, continue"),
    Word(r"\b(is|are|was|were) no\b(?! longer\b)", "is not a", (r"there (is|are|was|were) no\b", r"None is no limit")),
    Word(r"\bfor want of\b", "because there is no"),
    Word(r"\bnought\b", "zero"),
    Word(rf"\b{COUNTED} an? {UNIT}\b", "per"),
    Word(r"\b(to better|betters|bettered|not better (its|the|on))\b", "improve"),
    Word(r"\basked for\b", "requested"),
    Word(r"\b(more|most|much) alike\b", "similar"),
    Word(r"\bregions?\b", "crop", (r"role=.?\"region.?\"",)),
    Word(r"\bwhat computes\b", "runtime"),
    Word(r"\bpost-?processing\b", "re-ranking"),
    Word(r"\bmend(s|ed|ing)?\b", "correct, fix"),
    Word(r"\balso (if|where)\b", "even if, even where"),
)


def main() -> int:
    """Print the failures and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[REPOSITORY / name for name in CHECKED])
    parser.add_argument("--names", action="store_true")
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()
    total = 0
    for path in files(arguments.paths):
        failures = list(check_file(path, names=arguments.names))
        total += len(failures)
        if failures and arguments.count:
            sys.stdout.write(f"{len(failures):5} {shown(path)}\n")
        elif failures:
            lines = [f"{shown(path)}:{line}: {text!r}: write {write!r}\n" for line, text, write in failures]
            sys.stdout.write("".join(lines))
    sys.stderr.write(f"{total} words to replace\n" if total else "no word to replace\n")
    return 1 if total else 0


def files(paths: list[Path]) -> Iterator[Path]:
    """Yield the files to check."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in SUFFIXES and file.name not in LISTS:
                yield file


def check_file(path: Path, *, names: bool = False) -> Iterator[tuple[int, str, str]]:
    """Yield line number, text and preferred word of every failure in a file."""
    text = path.read_text(encoding="utf-8")
    if path.resolve() == GLOSSARY:
        text = re.sub(r"(?m)^(\| .* \|)[^|]*\|$", r"\1", text)  # the last column is what not to write
    parts = [(1, re.sub(r"[-_.]", " ", path.name))]
    parts += python_parts(text) if path.suffix == ".py" else [(1, text)]
    failures = [failure for line, part in parts for failure in check_text(part, line)]
    if names and path.suffix == ".py":
        failures += vague_names(text)
    yield from sorted(failures)


def check_text(text: str, first_line: int = 1) -> Iterator[tuple[int, str, str]]:
    """Yield the failures in a text; a phrase may be broken over two lines."""
    flat = re.sub(r"\s", " ", text)
    for word in WORDS:
        allowed = [match.span() for pattern in word.allow for match in re.finditer(pattern, flat, re.IGNORECASE)]
        for match in re.finditer(word.pattern.replace(" ", r"[ #*]+"), flat, re.IGNORECASE):
            if not any(start <= match.start() and match.end() <= end for start, end in allowed):
                yield first_line + text.count("\n", 0, match.start()), re.sub(r"[ #*]+", " ", match.group()), word.write


def python_parts(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of every string, block of comments and name of a Python file.

    Names are split into words: `load_photo`, `LoadPhoto` are "load photo". Names imported from other
    libraries are skipped.
    """
    block: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            block.append(token.string)
            continue
        if token.type == tokenize.NL:
            continue
        if block:
            yield token.start[0] - len(block), "\n".join(block)
            block = []
        if token.type == tokenize.STRING or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            yield token.start[0], token.string
        elif (
            token.type == tokenize.NAME
            and not keyword.iskeyword(token.string)
            and not re.match(r"\s*from (?!lookalike\b)[\w.]+ import ", token.line)
        ):
            is_argument = re.match(r"=[^= ]", token.line[token.end[1] :])
            yield token.start[0], re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", token.string) + ("=" if is_argument else "")


def vague_names(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the names that do not say what the value holds."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string in VAGUE_NAMES and "@hypothesis.given" not in token.line:
            yield token.start[0], token.string, "what the value holds"


def shown(path: Path) -> Path:
    """Return the path relative to the repository."""
    return path.resolve().relative_to(REPOSITORY) if path.resolve().is_relative_to(REPOSITORY) else path


if __name__ == "__main__":
    sys.exit(main())
