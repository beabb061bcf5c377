"""Configurations from files: what is accepted, and how wrong keys are named."""

from pathlib import Path

import pytest

from vispeft.config import Config, dump_config, json_schema, load_config, parse_config, recipe_path
from vispeft.errors import ConfigError

LORA = {"peft": {"deltas": {"a.*.b": {"method": "lora", "rank": 4}}, "train": ["head.**"]}}


def test_load_config__file_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("# vispeft train run.yaml\ntrain:\n  lr: 1e-3\n  epochs: 3\ndata:\npeft:\n  train: ['head.**']\n")
    config = load_config(path, ["train.steps=10", "data.train.images=~/x", "model.image_size=256"])
    assert config.train.lr == 0.001
    assert (config.train.steps, config.train.epochs) == (10, None)
    assert config.peft.train == ("head.**",)
    assert config.data.train.images == Path.home() / "x"
    assert config.model.image_size == 256


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batchsize=4", "`train.batchsize` is not a configuration key. Did you mean `train.batch_size`?"),
        ("trian.steps=4", "`trian.steps` is not a configuration key. Did you mean `train.steps`?"),
        ("lr=4", "`lr` is not a configuration key. Did you mean `train.lr`?"),
        ("zzz=4", "`zzz` is not a configuration key."),
        ("train.steps=many", "`train.steps` must be a whole number, but is 'many' (text)."),
        ("train.steps=1.5", "`train.steps` must be a whole number, but is 1.5."),
        ("train.steps='8'", "`train.steps` must be a whole number, but is '8' (text)."),
        ("train.steps=0", "`train.steps` must be at least 1, but is 0."),
        ("train.seed=true", "`train.seed` must be a whole number, but is true."),
        ("train.lr=-1", "`train.lr` must be above 0, but is -1."),
        ("train.lr=.inf", "`train.lr` must be a finite number, but is inf."),
        ("train.schedule=cosin", "`train.schedule` must be 'cosine', 'step' or 'constant', but is 'cosin' (text)."),
        ("train=3", "`train` must be a mapping of keys, but is 3."),
        ("peft.train=head", "`peft.train` must be a list, but is 'head' (text)."),
        ("peft.train=[1]", "`peft.train.0` must be text, but is 1."),
        ("data.augment.scale=[0.5]", "`data.augment.scale.1` must be set."),
        ("model.activation_checkpointing=yes", "must be true or false, but is 'yes' (text)."),
        ("train.methods.lroa.lr=1", "`train.methods.lroa` is not a method. Did you mean `train.methods.lora`?"),
        ("train.methods.lora.lrr=1", "`train.methods.lora.lrr` is not a configuration key. Did you mean"),
    ],
)
def test_parse_config__names_key_got_and_expected(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({}, [override])
    assert message in str(error.value)


def test_parse_config__reports_every_wrong_key_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"train": {"lr": "x"}, "dta": {}})
    assert len(str(error.value).splitlines()) == 2


def test_parse_config__only_one_length() -> None:
    with pytest.raises(ConfigError, match=r"only one of `train\.steps` and `train\.epochs`"):
        parse_config({"train": {"steps": 3, "epochs": 2}})


def test_parse_config__refuses_a_value_that_contains_itself() -> None:
    options: dict[str, object] = {}
    options["again"] = options
    with pytest.raises(ConfigError, match="contains itself"):
        parse_config({"model": {"options": options}})


def test_load_config__names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {lr: x}")
    with pytest.raises(ConfigError, match=r"run\.yaml`: `train\.lr` must be a number, but is 'x'"):
        load_config(path)


def test_dump_config__reads_back_the_same(tmp_path: Path) -> None:
    config = parse_config(
        LORA, ["train.lr=1e-5", "train.clip=", "data.val.images=a/b", "model.options={num_queries: 7}"]
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_config__is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.lr = 1.0  # type: ignore[misc]


def test_json_schema__describes_every_section() -> None:
    assert set(json_schema()["properties"]) == {"task", "model", "peft", "data", "train", "loss", "eval"}


def test_load_config__finds_a_recipe_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = load_config(recipe_path("bundled_lora"))
    for name in ("bundled_lora", "bundled_lora.yaml", "configs/bundled_lora.yaml"):
        assert load_config(Path(name)) == expected
    Path("bundled_lora").write_text("train: {steps: 3}\n")
    assert load_config(Path("bundled_lora")).train.steps == 3
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(Path("elsewhere/bundled_lora.yaml"))


def test_recipe_path__names_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'bundled_lor', only .*bundled_lora"):
        recipe_path("bundled_lor")
