"""Edit a model and watch it, in a browser: facts, both answers side by side, health, the ledger.

The page is served to this machine alone, asks no other host, and needs the extra `live`. Without a ledger the edits are
a trial, which goes when the page ends.

$ tether live my-edits
$ tether live my-edits --model smollm2 --port 8800
$ tether live --model smollm2 --no-browser
"""

import secrets
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tether.cli.loading import load_model
from tether.cli.options import AnatomyFile, Answer, Device, Dtype, ModelOrRecorded, parse_option, say
from tether.cli.tables import count
from tether.editing.plan import EditPlan
from tether.editors import editor as editor_of
from tether.errors import MissingExtraError
from tether.ledger import Ledger

PANELS = {"Serving": ("host", "port", "no_browser", "token"), "A new ledger": ("method", "settings", "corpus")}
LEDGER = typer.Argument(help="Folder of a ledger, or of a new one; without it the edits are a trial.")
TOKEN = typer.Option(help="What the address must show; made where --host is not this machine alone.")
HOST = typer.Option(help="Another address than this machine's own lets others in, with the token.")


def live(
    ledger: Annotated[Path | None, LEDGER] = None,
    model: ModelOrRecorded = None,
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    token: Annotated[str | None, TOKEN] = None,
    method: Annotated[str | None, typer.Option(help="See `tether ls methods`.")] = None,
    settings: Annotated[Path | None, typer.Option(help="JSON file of settings over the bundled ones.")] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Text file for the moments, self (default) or self:TOKENS.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    anatomy: AnatomyFile = None,
) -> Answer:
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        remedy = "pip install 'tether[live]', or in a clone pip install -e '.[live]'"
        raise MissingExtraError(f"the live page needs starlette and uvicorn: {remedy}")
    from tether.web.door import is_loopback
    from tether.web.serve import serve
    from tether.web.studio import Studio

    header = Ledger.open(ledger).header if ledger is not None and (ledger / "ledger.json").exists() else None
    if header is None and model is None:
        raise typer.BadParameter("name the model of a new ledger", param_hint="--model")
    for option, value in (("--method", method), ("--settings", settings), ("--corpus", corpus)):
        if header is not None and value is not None:
            raise typer.BadParameter(f"{ledger} keeps its own", param_hint=option)
    if method is not None:
        parse_option("--method", editor_of, method)
    plan = EditPlan(method=method, settings=settings, corpus=corpus)
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(18)
    if header is not None:
        model, dtype, layout = model or header.model, dtype or header.dtype, anatomy or header.anatomy
    else:
        layout = anatomy
    loaded = load_model(str(model), dtype=dtype, device=device, anatomy=layout)
    with tempfile.TemporaryDirectory(prefix="tether-") as trial:
        path = Path(trial) / "trial" if ledger is None else ledger
        studio = Studio(loaded, path, plan, trial=ledger is None)
        try:
            serve(studio, host=host, port=port, token=token, browser=not no_browser, say=say)
        except KeyboardInterrupt:
            say("the live page ended")
        found = studio.ledger
    live_edits, head = (0, None) if found is None else (len(found.live()), found.head)
    where = "a trial" if ledger is None else str(ledger)
    document = {"ledger": None if ledger is None else where, "live_edits": live_edits, "head": head}
    return Answer(document, f"{where}: {count(live_edits, 'edit')}" + (f"\nhead {head}" if head else ""))
