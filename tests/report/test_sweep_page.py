import json
import re

import pytest
import yaml

from vispeft.errors import DataError
from vispeft.report import write_report, write_sweep_report
from vispeft.report.configurations import configurations_of, front_of, short_names
from vispeft.report.parameter_charts import parameter_charts
from vispeft.report.sweep_charts import colours_of, curve_charts, front_charts
from vispeft.report.sweep_conclusion import conclusion, next_steps
from vispeft.report.sweep_contents import read_sweep


@pytest.fixture
def sweep_dir(make_sweep, tmp_path):
    return make_sweep(tmp_path / "sweep")


def test_write_sweep_report__contains_every_trial_without_scripts(sweep_dir):
    page = write_sweep_report(sweep_dir).read_text()
    body = re.sub(r"<(script|style|template).*?</\1>", "", page, flags=re.S)
    assert body.count('<span class="state complete">') == 8
    assert "out of &lt;memory&gt;" in body
    assert "stopped early by the asha pruner" in body
    assert "vispeft sweep" in body
    assert 'href="logs/0009.txt"' in body
    assert not re.search(r"https?://|url\(|@import|\bnan\b", page)


def test_write_sweep_report__links_to_the_pages_of_existing_runs(sweep_dir):
    assert 'href="trials/0003/report.html"' not in write_sweep_report(sweep_dir).read_text()
    write_report(sweep_dir / "trials" / "0003")
    assert 'href="trials/0003/report.html"' in write_sweep_report(sweep_dir).read_text()


def test_write_sweep_report__of_a_sweep_without_results(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"name": "new", "num_runs": 4, "trials": []}))
    page = write_sweep_report(tmp_path).read_text()
    assert "No trial is complete yet." in page
    assert "4 trials are left" in page


def test_write_sweep_report__needs_a_sweep(tmp_path):
    with pytest.raises(DataError, match=r"must be a sweep's directory, but has no results\.json"):
        write_sweep_report(tmp_path)


def test_write_sweep_report__grows_by_a_few_kilobytes_per_trial(make_sweep, tmp_path):
    small = write_sweep_report(make_sweep(tmp_path / "a", counts=range(5))).stat().st_size
    large = write_sweep_report(make_sweep(tmp_path / "b", counts=range(20))).stat().st_size
    assert (large - small) / 30 < 5000


def test_configurations_of__are_means_over_seeds(sweep_dir):
    configurations = configurations_of(read_sweep(sweep_dir))
    assert [configuration.title for configuration in configurations[:2]] == ["head only", "adapters, count 1"]
    assert configurations[1].ap == pytest.approx(0.315)
    assert (configurations[1].interval.low, configurations[1].interval.high) == pytest.approx((0.31, 0.32))
    assert configurations[-1].ap is None


def test_front_of__no_other_is_cheaper_and_better(sweep_dir):
    front = front_of(configurations_of(read_sweep(sweep_dir)), "trainable_params")
    assert [configuration.title for configuration in front] == ["head only", "adapters, count 1", "adapters, count 2"]


def test_front_charts__one_for_each_cost_that_is_known(sweep_dir):
    configurations = configurations_of(read_sweep(sweep_dir))
    choices = front_charts(configurations, colours_of(configurations), sweep_dir / "report.html")
    assert [choice.key for choice in choices] == ["trainable_params", "train_seconds", "adapter_bytes"]
    assert all(len(choice.chart.dots) == 4 for choice in choices)


def test_parameter_charts__a_configuration_without_deltas_has_no_adapters(sweep_dir):
    (choice,) = parameter_charts(configurations_of(read_sweep(sweep_dir)), sweep_dir / "report.html")
    assert choice.label == "adapters per block"
    assert sorted(placed["dot"].x for placed in choice.chart.dots) == [0, 1, 2, 3]
    assert len(choice.chart.lines) == 1


def test_parameter_charts__configurations_that_also_differ_otherwise_are_separate(sweep_dir):
    for number in ("0001", "0002"):
        path = sweep_dir / "trials" / number / "config.yaml"
        path.write_text(path.read_text() + "loss: {num_points: 7}\n")
    (choice,) = parameter_charts(configurations_of(read_sweep(sweep_dir)), sweep_dir / "report.html")
    assert sorted(placed["dot"].x for placed in choice.chart.dots) == [1, 2, 3]


def test_parameter_charts__a_delta_more_is_not_on_the_line_of_the_others(sweep_dir):
    for path in sorted((sweep_dir / "trials").glob("*/config.yaml"))[-2:]:
        config = yaml.safe_load(path.read_text())
        config["peft"]["deltas"]["@encoder.qkv"] = {"method": "lora", "rank": 8}
        path.write_text(yaml.safe_dump(config))
    (choice,) = parameter_charts(configurations_of(read_sweep(sweep_dir)), sweep_dir / "report.html")
    assert [name for name, _ in choice.chart.legend] == ["adapters per block", "method lora, rank 8"]


def test_configurations_of__many_variants_are_grouped_by_method(make_sweep, tmp_path):
    path = make_sweep(tmp_path / "many", counts=range(10), lost=False)
    results = json.loads((path / "results.json").read_text())
    for trial in results["trials"]:
        trial["variant"], trial["parameters"] = f"variant {(trial['trial'] - 1) // 2}", {}
    (path / "results.json").write_text(json.dumps(results))
    configurations = configurations_of(read_sweep(path))
    assert [configuration.group for configuration in configurations] == ["variant 0", *["adapter"] * 9]


def test_curve_charts__are_means_over_seeds(sweep_dir):
    metrics = sweep_dir / "trials" / "0002" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('{"step": 4, "split": "val"', '{"step": 5, "split": "val"'))
    sweep = read_sweep(sweep_dir)
    configurations = configurations_of(sweep)
    scores, losses = curve_charts(sweep, configurations, colours_of(configurations))
    assert [line["name"] for line in scores.lines] == ["mean of 2 seeds"] * 4
    # the steps that both seeds have
    assert [len(line["points"].split()) for line in scores.lines] == [1, 2, 2, 2]
    assert scores.lines[1]["last"] == "0.315"
    assert [len(line["points"].split()) for line in losses.lines] == [4] * 4


def test_curve_charts__a_single_evaluation_has_no_curve(sweep_dir):
    for path in (sweep_dir / "trials").glob("*/metrics.jsonl"):
        path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if '"step": 8' not in line))
    sweep = read_sweep(sweep_dir)
    configurations = configurations_of(sweep)
    assert [chart.title for chart in curve_charts(sweep, configurations, colours_of(configurations))] == [
        "Training loss"
    ]


def test_conclusion__over_seeds_names_the_equals_and_the_cheapest(sweep_dir):
    sweep = read_sweep(sweep_dir)
    text = " ".join(conclusion(sweep, configurations_of(sweep)))
    assert "Highest so far: adapters, count 2, mask AP 0.415 (mean over 2 seeds)" in text
    assert "head only" not in text


def test_conclusion__one_seed_gives_no_significance(make_sweep, tmp_path):
    sweep = read_sweep(make_sweep(tmp_path / "one", seeds=(1,)))
    assert "no difference can be called significant" in " ".join(conclusion(sweep, configurations_of(sweep)))


def test_conclusion__is_that_of_the_comparison_of_the_same_trials(sweep_dir):
    numbers = [[1, 2], [3, 4], [5, 6], [7, 8]]
    estimate = {"value": 0.4, "low": 0.3, "high": 0.5, "resampled_mean": 0.4}
    results = [
        {
            "name": f"n{i}",
            "trials": pair,
            "estimate": estimate,
            "difference": None if i == 2 else estimate,
            "corrected_p": 0.5,
        }
        for i, pair in enumerate(numbers)
    ]
    content = {"complete": list(range(1, 9)), "sentence": "n2 is best.", "notes": [], "level": 0.95, "num_images": 2}
    content |= {"num_resamples": 1000, "results": results, "best": "n2", "equals": ["n2", "n1"], "cheapest": "n1"}
    (sweep_dir / "comparison.json").write_text(json.dumps(content))
    sweep = read_sweep(sweep_dir)
    configurations = configurations_of(sweep)
    assert conclusion(sweep, configurations) == ["n2 is best."]
    assert (configurations[2].interval.low, configurations[2].is_over_seeds) == (0.3, False)
    assert "trials/0003" in next_steps(sweep, configurations)[1].command
    (sweep_dir / "comparison.json").write_text(json.dumps(content | {"complete": [1]}))
    assert read_sweep(sweep_dir).comparison is None


def test_next_steps__of_a_sweep_with_failures_begin_with_them(sweep_dir):
    sweep = read_sweep(sweep_dir)
    assert "--retry-failed" in next_steps(sweep, configurations_of(sweep))[0].command


def test_short_names__are_unique():
    assert short_names(["train.lr", 'peft.deltas."@a.b".count']) == {
        "train.lr": "lr",
        'peft.deltas."@a.b".count': "count",
    }
    names = short_names(['peft.deltas."@a".rank', 'peft.deltas."@b".rank'])
    assert list(names.values()) == ['"@a".rank', '"@b".rank']
