"""Studies, plans, and commands without files of a person's hand."""

from cetnet.benchmarks.fuzz.bases import SOURCES
from cetnet.benchmarks.fuzz.case import Case
from cetnet.benchmarks.fuzz.scenarios.training import harm_run


def report(case: Case) -> None:
    """A study whose runs are harmed, reported."""
    case.take("data", "train.yaml", "study.yaml", "study")
    if case.rng.random() < 0.4:
        case.harm_yaml(case.folder / "study.yaml")
    else:
        harm_run(case, "study")
    case.inputs, case.outputs = ["study.yaml"], []
    case.arguments = ["study", "study.yaml", "--report-only"]


def smoke(case: Case) -> None:
    """A study file harmed, smoked."""
    case.take("data", "train.yaml", "study.yaml")
    case.harm_yaml(case.folder / case.rng.choice(["study.yaml", "train.yaml", "data/schema.yaml"]))
    case.arguments = ["study", "study.yaml", "--smoke"]
    case.surroundings["new"] = True  # a fork of ours doesn't end with the server that its workers come from


def plan(case: Case) -> None:
    """A plan from harmed files."""
    case.take("data/schema.yaml", "train.yaml")
    if case.rng.random() < 0.7:
        case.harm_yaml(case.folder / case.rng.choice(["train.yaml", "data/schema.yaml"]))
    cluster = case.rng.choice(["1x1", "2x8:h100", "0x1", "1x", "train.yaml", "x", "1x1:zzz", "99999999x8"])
    case.inputs, case.outputs = ["train.yaml"], []
    case.arguments = ["plan", "train.yaml", "--cluster", cluster]
    if cluster not in ("1x1", "2x8:h100"):
        case.done.append("odd cluster")
    if case.rng.random() < 0.3:
        case.arguments += ["--json", case.rng.choice(["plan.json", "data", "no/such/plan.json", "/dev/full"])]
        case.done.append("--json")
    if case.rng.random() < 0.1:
        case.done.append("--sweep")
        case.arguments += ["--sweep", case.rng.choice(["1x1..2x1", "1x8..4x8", "4x8..1x8", "x..y", "1x1"])]


def other(case: Case) -> None:
    """Commands without files of a person's hand, with odd arguments."""
    rng = case.rng
    odd = [
        "",
        " ",
        "0",
        "-1",
        "nan",
        "x" * 300,
        "[/b]",
        "a\nb",
        "/",
        "é",
        "1e9",
        "--",
        "-h",
        "=",
        "a=b",
        "\udcff",
    ]
    case.take("train.yaml")
    words = rng.choice(
        [
            ["config", rng.choice(["dnn", "dhen", "os.path", "os.system", "a.b.C", *odd])],
            [
                "launch",
                "render",
                "slurm",
                "train.yaml",
                *rng.sample(
                    [
                        f"-j={rng.choice(odd)}",
                        "--out=job.sh",
                        f"--time={rng.choice(odd)}",
                        f"--mem={rng.choice(odd)}",
                        f"--env={rng.choice(odd)}",
                        f"--name={rng.choice(odd)}",
                    ],
                    2,
                ),
            ],
            [
                "launch",
                "render",
                "kubernetes",
                "train.yaml",
                f"--image={rng.choice(odd)}",
                f"--mount={rng.choice(odd)}",
            ],
            ["examples", rng.choice(["ex", "train.yaml", "a\nb", "é", "x" * 300, "/dev/null"])],
            [
                "generate",
                rng.choice(list(SOURCES)),
                f"--rows={rng.choice([0, 1, 2, 3, 10, 500])}",
                f"--out={rng.choice(['g', 'train.yaml', 'a[b]', 'x' * 256])}",
            ],
            [
                "prepare",
                "synthetic",
                f"--rows={rng.choice([1, 999, 1000, 1500])}",
                "--out=out",
                "--workers=1",
            ],
            ["prepare", "random", "--schema=train.yaml", "--rows=100", "--out=out"],
            [
                "train",
                "train.yaml",
                rng.choice(
                    [
                        "=",
                        "a",
                        "a=b",
                        "training=1",
                        "data.path=[",
                        "model.components={}",
                        "run_dir=/",
                        "run_dir=/dev/null",
                    ]
                ),
            ],
        ]
    )
    case.arguments = [str(word) for word in words]
    case.done.append("odd arguments")
