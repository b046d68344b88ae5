"""Options outside what is allowed: one sentence that names them as they are typed, and exit code 2."""

from __future__ import annotations

import pytest

TRAIN = "train photos --backbone test_efficientnet --weights none --out new"
MEASURES = (
    "allowed are precision@k, hit@k, recall@k, map@k, map@r, mrr, ndcg@k, points@1,5,10, with a whole number from 1 "
    "in place of k, such as precision@3."
)
CASES = {
    "a command that there is not": (
        "serch photos.index cat.jpg",
        "no such command 'serch' (did you mean search?); see 'lookalike --help'.",
    ),
    "a command like no other": ("frobnicate", "no such command 'frobnicate'; see 'lookalike --help'."),
    "an option that there is not": (
        "train photos --bacbone resnet50 --out new",
        "no such option --bacbone (did you mean --backbone or --combine?); see 'lookalike train --help'.",
    ),
    "an option before the command": (
        "--versoin",
        "no such option --versoin (did you mean --version?); see 'lookalike --help'.",
    ),
    "no data": ("check", "missing argument 'DATA'; see 'lookalike check --help'."),
    "no --out": ("train photos", "missing option '--out'; see 'lookalike train --help'."),
    "no picture": ("search photos.index", "missing argument 'IMAGES...'; see 'lookalike search --help'."),
    "no shell": ("completion", "missing argument 'SHELL' (one of bash, zsh, fish); see 'lookalike completion --help'."),
    "too much": ("check photos model", "got unexpected extra argument (model); see 'lookalike check --help'."),
    "two precisions": (
        "export model --out new --int8 --precision float32",
        "--precision is given as int8 and float32; give one of them.",
    ),
    "no number": (
        "search photos.index cat.jpg -k ten",
        "invalid value for '-k': 'ten' is not a valid integer; see 'lookalike search --help'.",
    ),
    "an unknown optimizer": (
        f"{TRAIN} --optimizer lion",
        "invalid value for '--optimizer': 'lion' is not one of 'adamw', 'sgd'; see 'lookalike train --help'.",
    ),
    "an unknown backbone": (
        "train photos --backbone resnet5 --out new",
        "there is no backbone named 'resnet5'; did you mean resnet50 or … or …?",
    ),
    "an unknown backbone to benchmark": (
        "benchmark photos --backbone resnet50 --backbone vit_b16 --out new",
        "there is no backbone named 'vit_b16'; did you mean vit_b_16 or …?",
    ),
    "an unknown model": (
        "evaluate photos --model modell",
        "modell is neither a bundle nor a backbone's name: there is no backbone named 'modell'; ….",
    ),
    "a model that is a path to nothing": (
        "evaluate photos --model runs/best",
        "runs/best does not exist, and no backbone has such a name; give a bundle made by 'lookalike train'.",
    ),
    "a model that is a folder of something else": (
        "evaluate photos --model ./photos",
        "./photos is not a bundle: it has no bundle.json, and no backbone has such a name; give a bundle made by "
        "'lookalike train'.",
    ),
    "an index of images without a model": (
        "index photos --out new",
        "photos holds no embeddings, so a model is needed; give a bundle or a backbone's name.",
    ),
    "an unknown measure": (
        "evaluate photos --model model --measure precison@3",
        f"the measure 'precison@3' is not known; {MEASURES}",
    ),
    "an unknown measure to stop on": (
        f"{TRAIN} --stop-on accuracy",
        f"the measure 'accuracy' is not known; {MEASURES}",
    ),
    "an unknown measure to choose by": (
        "benchmark photos --bundle model --measure top3 --out new",
        f"the measure 'top3' is not known; {MEASURES}",
    ),
    "no hits": ("search photos.index photos/test/query/cat0.jpg -k 0", "-k must be at least 1, got 0."),
    "no hits to evaluate": ("evaluate photos --model model -k 3 -k 0", "-k must be at least 1, got 0."),
    "no hits to submit": ("submit photos --model model -k -1 --out s.csv", "-k must be at least 1, got -1."),
    "negative epochs": (f"{TRAIN} --epochs -1", "--epochs must be a whole number of at least 1, got -1."),
    "no minutes": (f"{TRAIN} --max-minutes 0", "--max-minutes must be above 0, got 0.0."),
    "a batch of one": (f"{TRAIN} --batch-size 1", "--batch-size must be a whole number of at least 2, got 1."),
    "a learning rate of nothing": (f"{TRAIN} --lr 0", "--lr must be above 0 and at most 10, got 0.0."),
    "a learning rate that is no number": (
        f"{TRAIN} --head-lr nan",
        "--head-lr must be above 0 and at most 10, got nan.",
    ),
    "smoothing everything": (
        f"{TRAIN} --label-smoothing 1",
        "--label-smoothing must be at least 0 and below 1, got 1.0.",
    ),
    "no patience": (f"{TRAIN} --patience 0", "--patience must be a whole number of at least 1, got 0."),
    "a negative seed": (f"{TRAIN} --seed -1", "--seed must be a whole number of at least 0, got -1."),
    "a recall above one": (
        "index photos.emb --min-recall 2 --out new",
        "--min-recall must be above 0 and at most 1, got 2.0.",
    ),
    "a budget of nothing": (
        "benchmark photos --bundle model --budget-ms 0 --out new",
        "the budget must be a number above 0 milliseconds an image, got 0.0.",
    ),
    "a benchmark of nothing": (
        "benchmark photos --out new",
        "a benchmark needs at least one --backbone or --bundle, got none.",
    ),
    "a backbone twice": (
        "benchmark photos --backbone resnet50 --backbone resnet50 --out new",
        "'resnet50' is given more than once; ….",
    ),
    "an ensemble to benchmark": (
        "benchmark photos --backbone resnet50+vit_b_16 --out new",
        "'resnet50+vit_b_16' is an ensemble; give its members one by one, every pair is measured anyway.",
    ),
    "random weights only": (
        "benchmark photos --backbone test_efficientnet --weights none --no-finetune --out new",
        "… random weights, and such a model is never chosen; ….",
    ),
    "a page that is a picture": (
        "search photos.index photos/test/query/cat0.jpg --html photos/test/query/cat1.jpg",
        "--html must be named .html, got photos/test/query/cat1.jpg; write for example found.html.",
    ),
    "a submission of another format": (
        "submit photos --model model --out submission.txt",
        "a submission must be a .json or .csv file, got 'submission.txt'.",
    ),
    "a clean manifest by another name": (
        "check photos --clean-manifest clean.csv",
        "a clean manifest must be named manifest.csv to be found in its folder, got clean.csv.",
    ),
    "a data set that there is not": (
        "demo --data MNISTY --out new",
        "MNISTY is neither a folder nor the name of a data set that can be downloaded; the names are ….",
    ),
    "a shell that there is not": (
        "completion tcsh",
        "invalid value for 'SHELL': 'tcsh' is not one of 'bash', 'zsh', 'fish'; see 'lookalike completion --help'.",
    ),
}


@pytest.mark.parametrize(("line", "sentence"), CASES.values(), ids=CASES)
def test_bad_options(line, sentence, refused):
    refused(line, sentence)


def test_a_budget_that_nothing_meets(refused, monkeypatch):
    from lookalike.benchmark.timing import time_members
    from lookalike.models.torch_bundle import load_bundle

    def here(bundles, ways, images, **how):  # as measured, but in this process
        return time_members(lambda _: [m for b in bundles for m in load_bundle(b).members], ways, images)

    monkeypatch.setattr("lookalike.benchmark.measuring.measure_timing", here)
    refused(
        "benchmark photos --bundle model --budget-ms 0.001 --out new",
        "no candidate takes at most 0.001 ms per image; the only one, model, takes … ms, so give --budget-ms … or "
        "more.",
        grows="new/",
    )
