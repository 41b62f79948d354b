"""Whatever stands in a configuration file: it is loaded as it says, or refused in one line; nothing else happens."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cetnet.benchmarks.study.definition import Study, runs_of
from cetnet.trainer.check_run import check_run
from cetnet.trainer.cli import main
from cetnet.trainer.config import RunConfig, load_config
from cetnet.trainer.data.dataset import read_schema
from cetnet.trainer.errors import UserError
from cetnet.trainer.strict_yaml import read_strict_yaml
from cetnet.trainer.yaml_files import save_yaml
from tests.data import make_schema, write_dataset
from tests.paths import ROOT

CONFIGS = [path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))]
STUDIES = [path.read_text() for path in sorted((ROOT / "benchmarks/studies").glob("*.yaml"))]
VARIANTS = [path.read_text() for path in sorted((ROOT / "benchmarks/studies/variants").glob("*.yaml"))]
SCHEMAS = [path.read_text() for path in sorted((ROOT / "benchmarks/studies/schemas").glob("*.yaml"))]

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
)
DEEP = "".join(f"a{i}: &a{i} {'[' * 40}{f'*a{i - 1}' if i else ''}{']' * 40}\n" for i in range(60))
NASTY = [
    b"",
    b"\0",
    b"\xff\xfe\x00\x80",
    b"null",
    b"[]",
    b"--- {}\n--- {}",
    LAUGHS.encode(),
    LAUGHS.encode() + b"data: *p\nmodel: *p\n",
    f"{DEEP}training: {{seed: *a59}}".encode(),
    b"<<: {run_dir: 1, run_dir: 2}",
    b"[" * 2000,
    b"{a: " * 2000,
    b"- " * 2000,
    b"&a [*a]",
    b"model: &m {components: *m}",
    b"<<: 1",
    b"? [a]\n: 1",
    b"1: 2",
    b"true: 2",
    b"!!python/object/apply:os.system [touch executed]",
    b"data: !!python/object/new:os.system [touch executed]",
    b"data: !!python/name:os.system",
    b"data: !!timestamp x",
    b"data: !!bool x",
    b"data: !!int ''",
    b"data: 2001-99-99",
    b"run_dir: " + b"9" * 5000,
    b"run_dir: 0x" + b"f" * 5000,
    b"x: '" + b"x" * 2_000_000 + b"'",
]

ODD: list[tuple[str, Any]] = [
    (
        "defs: {base: &base {lr: 1, eps: 2}, fast: &fast {<<: *base, lr: 3}}\nc: {<<: *fast}",
        {"defs": {"base": {"lr": 1, "eps": 2}, "fast": {"lr": 3, "eps": 2}}, "c": {"lr": 3, "eps": 2}},
    ),
    (  # a key of one letter is one object in all mappings
        "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b}",
        {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 2}},
    ),
    (
        "a: &a {x: 1, yy: 1}\nb: &b {x: 2, yy: 2, z: 2}\nc: {z: 3, <<: [*a, *b]}",
        {"a": {"x": 1, "yy": 1}, "b": {"x": 2, "yy": 2, "z": 2}, "c": {"x": 1, "yy": 1, "z": 3}},
    ),
    ("a: &a [1, &b {x: &c 2}]\nd: [*a, *b, *c]", {"a": [1, {"x": 2}], "d": [[1, {"x": 2}], {"x": 2}, 2]}),
    ("day: 2001-01-01\nnone: ~\nflag: 'off'", {"day": "2001-01-01", "none": None, "flag": "off"}),
]

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", ".", "..", "/", "a\0b", "a\nb", "\ud800", "é☃𝄞", "x" * 5000, "*", "[", "os.system", "1e-3"]
    ),
)
numbers = st.one_of(
    st.integers(-(10**40), 10**40),
    st.sampled_from([0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 10**9, 10**18]),
    st.floats(),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts, st.dates())
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(leaves, inner, max_size=3)),
    max_leaves=5,
)


@st.composite
def mutated(draw: st.DrawFn, bases: list[Any]) -> Any:
    """One of the trees with up to three changes: a key dropped, renamed or added, or a value replaced."""
    tree = copy.deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 2, 3]))):
        places = list(containers(tree))
        place = draw(st.sampled_from(places))
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        change = draw(st.sampled_from(["replace", "replace", "drop", "add", "rename"]))
        if change == "replace":
            place[key] = draw(st.one_of(like(place[key]), like(place[key]), values))
        elif isinstance(place, dict):
            value = place[key] if change == "add" else place.pop(key)
            if change != "drop":
                place[draw(leaves)] = value
        if not isinstance(tree, dict) or not tree:
            break
    return tree


def like(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same type, most of which are accepted: to get to what happens then."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.sampled_from([-1, 0, 1, 2, 3, 4, 8, 16, 1000, 2**16, 2**20, 2**24, 2**31, 2**40, 2**63 - 1])
    if isinstance(value, float):
        return st.sampled_from([0.0, 1e-300, 1e-30, 0.5, 1.0, 1e6, 1e30, 1e38, 1e300, -1.0])
    if isinstance(value, str):
        words = [
            "none",
            "mean",
            "concat",
            "adam",
            "cpu",
            "train",
            "test",
            "dcnv2",
            "din",
            "fm",
            "item",
            "sequence",
        ]
        return st.sampled_from([*words, "auc/dhen", "runs/a", "../data", "data", "*", "a b"])
    return st.just(value)


def containers(tree: Any) -> Any:
    if isinstance(tree, (dict, list)) and tree:
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(value)


def written(tree: Any) -> bytes:
    return yaml.dump(tree, sort_keys=False, allow_unicode=True).encode(errors="surrogatepass")


@st.composite
def garbled(draw: st.DrawFn, bases: list[str]) -> bytes:
    """The text of a file with up to three pieces cut out, doubled, or replaced by a piece of YAML or of bytes."""
    text = draw(st.sampled_from(bases)).encode()
    pieces = [
        b"&a ",
        b"*a",
        b"<<: *a\n",
        b"!!set ",
        b"!x ",
        b"[",
        b"}",
        b": ",
        b"\n  ",
        b"\t",
        b"- ",
        b"|",
        b"'",
        b"\0",
    ]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 40)))
        piece = draw(st.one_of(st.sampled_from(pieces), st.binary(max_size=4), st.just(text[start:stop] * 2)))
        text = text[:start] + piece + text[stop:]
    return text


def trees(texts: list[str]) -> list[Any]:
    return [yaml.safe_load(text) for text in texts]


def loaded(load: Callable[[], Any]) -> Any:
    """What was loaded, or None if it was refused in one line."""
    try:
        return load()
    except UserError as error:
        message = str(error)
        assert message
        assert len(message.splitlines()) == 1
        assert len(message) < 2000
        return None


def many(examples: int) -> Callable[[Any], Any]:
    return settings(
        derandomize=True,
        database=None,
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("fuzz")
    write_dataset(folder / "data", {"train": 64, "validation": 32, "test": 32})
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "benchmarks/studies").mkdir(parents=True)
    for name in ("variants", "schemas"):
        (folder / "benchmarks/studies" / name).symlink_to(ROOT / "benchmarks/studies" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    assert not (folder / "executed").exists()


def check_configuration(content: bytes, overrides: list[str] | None = None) -> RunConfig | None:
    file = Path("experiment.yaml")
    file.write_bytes(content)
    config = loaded(lambda: load_config(file, overrides))
    if config is not None:
        save_yaml(Path("saved.yaml"), config)
        assert load_config(Path("saved.yaml")) == config
        if not overrides:
            assert_names_known(read_strict_yaml(content.decode()), config.model_dump(mode="json"))
    return config


def assert_names_known(said: Any, understood: Any, above: str = "") -> None:
    """Every key that a file has is in what was made of it; of a component with copies, in the first."""
    if isinstance(said, dict) and isinstance(understood, dict):
        for key in said:
            if above == "components" and key not in understood:
                settings = {name: value for name, value in said[key].items() if name != "copies"}
                assert_names_known(settings, understood[f"{key}_1"])
            else:
                assert key in understood
                assert_names_known(said[key], understood[key], key)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("content", NASTY, ids=lambda content: repr(content[:40]))
def test_nasty_files(content: bytes) -> None:
    assert check_configuration(content) is None
    file = Path("nasty.yaml")
    file.write_bytes(content)
    assert loaded(lambda: Study.load(file)) is None
    assert loaded(lambda: read_schema(file)) is None
    text = content[:10_000].decode(errors="replace")
    assert check_configuration(CONFIGS[0].encode(), [f"data={text}"]) is None


@pytest.mark.parametrize(("text", "expected"), ODD)
def test_odd_files(text: str, expected: Any) -> None:
    assert read_strict_yaml(text) == expected


@pytest.mark.usefixtures("folder")
@many(100)
@given(st.one_of(mutated(trees(CONFIGS)).map(written), garbled(CONFIGS)))
def test_configuration_files(content: bytes) -> None:
    check_configuration(content)


@pytest.mark.usefixtures("folder")
@many(60)
@given(
    st.one_of(
        st.sampled_from(
            ["data", "model.components.x", "training.seed", "optimizer.dense.lr", "run_dir", "a.b", ""]
        ),
        texts,
    ),
    st.one_of(values.map(lambda value: yaml.dump(value, default_flow_style=True)), texts),
)
def test_overrides(key: str, value: str) -> None:
    check_configuration(CONFIGS[0].encode(), [f"{key}={value}"])


@pytest.mark.usefixtures("folder")
@many(60)
@given(st.one_of(mutated(trees(STUDIES)).map(written), garbled(STUDIES)))
def test_study_files(content: bytes) -> None:
    file = Path("benchmarks/studies/study.yaml")
    file.write_bytes(content)
    study = loaded(lambda: Study.load(file))
    if study is not None:
        loaded(lambda: runs_of(study, file))


@pytest.mark.usefixtures("folder")
@many(60)
@given(mutated(trees(VARIANTS)))
def test_files_of_variants(variants: Any) -> None:
    Path("variants.yaml").write_bytes(written(variants))
    baseline = next(iter(variants), "") if isinstance(variants, dict) else ""
    file = Path("benchmarks/studies/study.yaml")
    study = {"name": "s", "base": "../../configs/demo.yaml", "nproc": 1, "seeds": [1], "baseline": baseline}
    file.write_text(yaml.dump(study | {"variants": "../../variants.yaml"}), encoding="utf-8")
    loaded(lambda: runs_of(Study.load(file), file))


@pytest.mark.usefixtures("folder")
@many(80)
@given(st.one_of(mutated(trees(SCHEMAS)).map(written), garbled(SCHEMAS)))
def test_schemas(content: bytes) -> None:
    file = Path("schema.yaml")
    file.write_bytes(content)
    schema = loaded(lambda: read_schema(file))
    if schema is not None:
        save_yaml(Path("saved.yaml"), schema)
        assert read_schema(Path("saved.yaml")) == schema


SMALL = {
    "run_dir": "run",
    "data": {"path": "data", "batch_size": 16, "lanes": 4},
    "model": {
        "components": {
            "dcnv2": {"kind": "dcnv2", "embedding_dim": 4, "hidden_units": [8]},
            "dhen": {"kind": "dhen", "embedding_dim": 4, "num_layers": 1, "hidden_units": [8]},
        },
        "fusion": {"mode": "gate_sum", "hidden_units": [8], "dropout": 0.1},
        "collaboration": {"kind": "symmetric_kl", "weight": 0.5},
    },
    "optimizer": {"sparse": {"kind": "sgd", "lr": 0.1}, "clip_norm": 1.0, "warmup_steps": 2, "final_lr": 0.1},
    "training": {"device": "cpu", "max_steps": 2, "seed": 1, "ne_window_steps": 5},
    "evaluation": {"splits": ["test"], "every_steps": 2, "early_stopping": {"monitor": "auc/fused"}},
    "sharding": {
        "constraints": {"dcnv2__*": {"sharding_types": ["row_wise"]}},
        "dense_tables": ["dhen__tag"],
    },
    "checkpoint": {"path": "checkpoints", "every_minutes": 1, "keep": 1},
}


@pytest.mark.usefixtures("folder")
@many(150)
@given(mutated([SMALL]).map(written))
def test_what_is_checked_before_training(content: bytes) -> None:
    config = check_configuration(content)
    if config is not None:
        loaded(lambda: check_run(config, 1, resume=False))


@pytest.mark.usefixtures("folder")
@many(80)
@given(mutated([make_schema().model_dump(mode="json", exclude_none=True)]).map(written))
def test_the_schema_of_the_data_is_checked_before_training(content: bytes) -> None:
    Path("odd").mkdir(exist_ok=True)
    if not Path("odd/train").exists():
        Path("odd/train").symlink_to("../data/train")
    Path("odd/schema.yaml").write_bytes(content)
    settings = SMALL | {"data": {**SMALL["data"], "path": "odd"}, "evaluation": {"splits": []}}  # type: ignore[dict-item]
    loaded(lambda: check_run(RunConfig.model_validate(settings), 1, resume=False))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("arguments", [["train"], ["plan"], ["study", "--report-only"], ["study", "--smoke"]])
@pytest.mark.parametrize("content", NASTY[::6], ids=lambda content: repr(content[:40]))
def test_the_command_line(
    content: bytes, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("experiment.yaml").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["cetnet", arguments[0], "experiment.yaml", *arguments[1:]])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("cetnet: experiment.yaml: ")
