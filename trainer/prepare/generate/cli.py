"""`cetnet generate`: a command for each raw format that can be written.

Heavy libraries are imported inside the commands, so that `--help` and mistakes answer at once.
"""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Write raw click logs of any size: your own kind, day by day, or exactly the format of a public dataset.",
    no_args_is_help=True,
)

Rows = Annotated[int, typer.Option(min=1, help="Rows in all files together.")]
NewDirectory = Annotated[
    Path, typer.Option(resolve_path=True, help="Directory that receives the files; must not exist.")
]
Seed = Annotated[int, typer.Option(help="Seed of all that is drawn.")]
# what `cetnet generate` can write: the format, the module in this folder, and the help
FORMATS = (
    ("amazon_electronics_x1", "sequences", "AmazonElectronics_x1: reviews with histories, two CSV files."),
    ("amazon_reviews", "amazon", "Amazon: reviews_Electronics_5.json and meta_Electronics.json."),
    ("avazu", "avazu", "Avazu: the Kaggle train.csv."),
    ("avazu_x1", "avazu", "Avazu_x1: three CSV files of numbered ids."),
    ("avazu_x4", "avazu", "Avazu_x4: the Kaggle columns in three CSV files."),
    ("criteo", "criteo", "Criteo: the Kaggle train.txt."),
    ("criteo_1tb", "criteo", "Criteo's terabyte: day_0.gz to day_23.gz."),
    ("criteo_x1", "criteo", "Criteo_x1: three CSV files of scaled counts and numbered ids."),
    ("criteo_x4", "criteo", "Criteo_x4: the Kaggle columns in three CSV files."),
    ("kuaivideo", "kuaivideo", "KuaiVideo: dataset.pkl, visual64_select.npy and user_like.npy of ALPINE."),
    ("kuaivideo_x1", "sequences", "KuaiVideo_x1: clicks on short videos with histories, two CSV files."),
    ("movielens_x1", "movielens", "MovielensLatest_x1: tags of films, three CSV files."),
    ("taobao_ad", "taobao", "TaobaoAd: samples, ads, users, and 27 behaviours a sample, four CSV files."),
    ("taobao_ad_x1", "sequences", "TaobaoAd_x1: ads with profiles and histories, two CSV files."),
)


@app.command()
def clicks(
    rows: Rows,
    out: NewDirectory,
    days: Annotated[
        int, typer.Option(min=1, help="Files, one a day; on each a fifth of users and items are new.")
    ] = 2,
    format: Annotated[Literal["csv", "parquet"], typer.Option(help="Of the files.")] = "csv",
    seed: Seed = 1,
) -> None:
    """Clicks as of a site of your own, a file a day, and clicks.yaml, their schema.

    To try what comes after a log: prepare, train, score the next day. Ids are
    text of several alphabets, lists and numbers have gaps. The last column is
    the probability that the click was drawn from, so the best possible NE is
    known: it stands in clicks.yaml.
    """
    from cetnet.trainer.prepare.generate.clicks import generate_clicks

    for line in generate_clicks(out, rows, seed, days, format):
        typer.echo(line)
    typer.echo(f"{out}: ready; the schema is {out / 'clicks.yaml'}")


def _add_generator(name: str, module: str, description: str) -> None:
    @app.command(name, help=description)
    def generate(rows: Rows, out: NewDirectory, seed: Seed = 1) -> None:
        generators = import_module(f"cetnet.trainer.prepare.generate.{module}")
        getattr(generators, f"generate_{name}")(out, rows, seed)
        typer.echo(f"{out}: ready")


for _format in FORMATS:
    _add_generator(*_format)
