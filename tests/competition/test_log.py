from lookalike.competition.log import Log, LogEntry

ENTRY = LogEntry(12.5, "training", "kept", "better than before", 10.0, 812.5, "submissions/001.json")


def test_entries_survive(tmp_path):
    Log(tmp_path / "log.jsonl").add(ENTRY)

    assert Log(tmp_path / "log.jsonl").entries == [ENTRY]


def test_an_unfinished_line_spoils_no_other(tmp_path):
    path = tmp_path / "log.jsonl"
    Log(path).add(ENTRY)
    with path.open("ab") as file:
        file.write(b'{"seconds": 13.0, "step": "tra')  # a killed run

    log = Log(path)
    assert log.entries == [ENTRY]
    log.add(ENTRY)
    assert Log(path).entries == [ENTRY, ENTRY]
