from lookalike.competition import costs
from lookalike.competition.costs import Costs, load_costs, save_costs

COSTS = {"small": Costs(12.5, 60.0, 1.5, 3.0), "onnx:file": Costs(12.5, None, 1.5, 3.0)}


def test_costs_are_read_again(tmp_path):
    assert load_costs(tmp_path / "costs.json") == {}
    save_costs(tmp_path / "costs.json", COSTS)

    assert load_costs(tmp_path / "costs.json") == COSTS


def test_costs_of_another_machine_do_not_count(tmp_path, monkeypatch):
    save_costs(tmp_path / "costs.json", COSTS)
    monkeypatch.setattr(costs, "machine_key", lambda: "another")

    assert load_costs(tmp_path / "costs.json") == {}
