"""The accuracy tables of the pages: what a comparison's file says, and nothing else."""

import accuracy_tables
import numpy as np
import pytest


def row(accuracies: list[float], **others: object) -> dict[str, object]:
    values = {"ece": 0.0126, "seconds": 43.29, "images_synthesized": 19200, **others}
    mean, std = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    return {"test_accuracy": accuracies, "mean": mean, "std": std, **values}


COMPARISON = {
    "seeds": [0, 1, 2],
    "verdict": "Did the pseudo data help? It did.",
    "methods": {
        "scratch": row([0.90, 0.92, 0.91], images_synthesized=0),
        "logit-matching": row([0.93, 0.93, 0.93]),
        "soft-target": row([0.92, 0.92, 0.92]),
        "pp": row([0.9301, 0.9299, 0.93]),
        "pp+p-ssl": row([0.95, 0.94, 0.96]),
        "of my own": row([0.5, 0.5, 0.5]),
    },
}


def test_a_method_is_a_row_in_the_files_order() -> None:
    lines = accuracy_tables.table(COMPARISON).splitlines()
    assert lines[2] == "| training from scratch | `scratch` | 91.00 ± 1.00 | 0.013 | 43 | 0 |"
    assert lines[6].endswith("| **95.00 ± 1.00** | 0.013 | 43 | 19,200 |")
    assert lines[7].startswith("| of my own | `of my own` |")
    assert lines[-1].startswith("Mean ± standard deviation over 3 seeds")
    assert lines[-1].endswith(COMPARISON["verdict"])


def test_differences_are_paired_by_seed_and_against_the_better_baseline() -> None:
    text = accuracy_tables.differences(COMPARISON)
    points = 100 * (np.array([0.95, 0.94, 0.96]) - np.array([0.90, 0.92, 0.91]))
    error = points.std(ddof=1) / np.sqrt(3)
    assert f"| `pp+p-ssl` | `scratch` | {points.mean():+.1f} ± {error:.1f} |" in text
    assert "`logit-matching`" in text
    assert "`soft-target`" not in text
    assert "uda" not in text  # not compared


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [([0.9], [0.8], "+10.0"), ([0.9, 0.8], [0.9, 0.8001], "+0.0 ± 0.0")],
    ids=["one seed", "no negative zero"],
)
def test_a_difference_is_said_plainly(ours: list[float], theirs: list[float], said: str) -> None:
    assert accuracy_tables.paired(ours, theirs) == said
