"""The commands and their options. What a command does is in the module of its name."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from ._peer_app import AllowWorldReadable, init, peer

HELP = """WireGuard tunnels from Python.

`init` makes a gateway's TOML file, and `peer add` adds a phone or a laptop to it; `up` runs a tunnel from that or
from a wg-quick file in the foreground; `show`, `explain`, `events` and `capture` tell how it is, and `apply` changes
it; `check`, `diff`, `schema` and `policy test` help to write files; `demo` shows the engine at work without root and
without a network; `crosscheck` compares it with pristine boringtun; `bench` tells what encrypts here, and how fast;
`genkey`, `pubkey` and `genpsk` make keys, byte for byte as `wg` does.
"""

app = typer.Typer(
    name="connlib",
    help=HELP,
    add_completion=False,
    # Tracebacks are handled by connlib.cli.main, which never shows the values of variables: they may hold keys.
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class LogLevel(str, enum.Enum):
    """How much `connlib up` says."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _print_version(wanted: bool) -> None:
    if wanted:
        import connlib

        typer.echo(f"connlib {connlib.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    pass


RunDir = Annotated[
    str,
    typer.Option(
        metavar="FOLDER",
        envvar="CONNLIB_RUN_DIR",
        help="Where running interfaces have their control sockets.",
    ),
]
RUN_DIR = "/run/connlib"
WHOLE_PACKETS = 65_535


@app.command()
def up(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A wg-quick file (wg0.conf), or a gateway's TOML file (wg0.toml)."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the device.  [default: what the file says, else the file's own name without its ending]"
        ),
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option(help="Say less, or more.", case_sensitive=False)
    ] = LogLevel.INFO,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Serve what is counted to Prometheus, at http://ADDRESS:PORT/metrics, and /readyz; "
            "ADDRESS is 127.0.0.1 if there is none. Port 0 is any.",
        ),
    ] = None,
    run_dir: RunDir = RUN_DIR,
    no_control: Annotated[
        bool, typer.Option("--no-control", help="Make no control socket: `show` does not find it then.")
    ] = False,
    flow_log: Annotated[
        str | None,
        typer.Option(
            metavar="FLOWS",
            help="Append a line of JSON to the file FLOWS for each flow that a peer's rules allow or deny, and when it "
            "ends; - is standard output. SIGHUP opens it anew.",
        ),
    ] = None,
    state_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where timestamps of handshakes are kept, so that no recorded one is answered after a restart.  "
            "[default: $STATE_DIRECTORY, else /var/lib/connlib]",
        ),
    ] = None,
    no_state: Annotated[bool, typer.Option("--no-state", help="Keep nothing when the tunnel ends.")] = False,
    user: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Become this user once the tunnel is up, and keep only what it takes to change it.  [default: stay]",
        ),
    ] = None,
    allow_world_readable: AllowWorldReadable = False,
) -> None:
    """Run the tunnel of FILE in the foreground, until SIGINT or SIGTERM.

    SIGHUP makes it read FILE again and change to what it says; a FILE with errors changes nothing. If SIGHUP comes
    because the terminal was closed, it stops.

    Needs the right to create a TUN device: root, or CAP_NET_ADMIN. All other rights are given up. As a service of
    systemd, it uses the sockets and the TUN device that it is given, and says how it is: docs/service.md.
    """
    from ._stop import stop_signals

    stop_signals.install()
    from .up import run

    run(
        file,
        stop_signals,
        name=name,
        level=log_level.value,
        allow_world_readable=allow_world_readable,
        run_dir=None if no_control else run_dir,
        metrics=metrics,
        flow_log=flow_log,
        state=state_dir,
        keeps_state=not no_state,
        user=user,
    )


app.command()(init)
app.add_typer(peer, name="peer")


@app.command()
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="An interface that runs; all if there is none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each interface.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=86_400, metavar="SECONDS", help="How often to look with --watch.")
    ] = 1.0,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Show how running interfaces and their peers are, and why.

    For root, and for the user that started them. Exit code 1 if none runs.
    """
    from .show import run_show

    raise typer.Exit(run_show(name, run_dir=run_dir, as_json=as_json, watch=watch, interval=interval))


@app.command()
def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An interface that runs.")],
    peers: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PEER]...", help="Peers, by name or public key; all if there is none."),
    ] = None,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Say in a sentence why each peer is up or down, what happens next, and when."""
    from .show import run_explain

    run_explain(name, peers or [], run_dir=run_dir)


@app.command()
def apply(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A wg-quick file, or a gateway's TOML file.")],
    name: Annotated[
        str | None,
        typer.Option(help="The interface to change.  [default: what FILE says, else FILE's own name]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change.")] = False,
    run_dir: RunDir = RUN_DIR,
    allow_world_readable: AllowWorldReadable = False,
) -> None:
    """Have a running interface change to what FILE says, all of it or nothing, and print what has changed.

    Sessions of peers that stay go on without a lost packet. A FILE with errors changes nothing. The next SIGHUP makes
    `connlib up` read its own file again.
    """
    from .apply import run

    run(file, name=name, run_dir=run_dir, dry_run=dry_run, allow_world_readable=allow_world_readable)


@app.command()
def events(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An interface that runs.")],
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each event.")] = False,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Print what happens on a running interface from now on, until it goes down or Ctrl-C comes."""
    from .events import run

    run(name, run_dir=run_dir, as_json=as_json)


@app.command()
def capture(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An interface that runs.")],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="A new file (mode 0600); - is standard output, for wireshark -ki -.",
        ),
    ],
    outer: Annotated[
        bool, typer.Option("--outer", help="The datagrams; this is the default without --inner.")
    ] = False,
    inner: Annotated[bool, typer.Option("--inner", help="The packets within the tunnels, in clear.")] = False,
    keys: Annotated[
        bool,
        typer.Option(
            "--keys",
            help="Put in the keys with which Wireshark decrypts the datagrams: FILE then holds the private key of "
            "NAME. For root.",
        ),
    ] = False,
    snaplen: Annotated[
        int, typer.Option(min=1, max=WHOLE_PACKETS, metavar="BYTES", help="How much of each packet is kept.")
    ] = WHOLE_PACKETS,
    run_dir: RunDir = RUN_DIR,
) -> None:
    """Write the packets of a running interface into a pcapng file, until Ctrl-C or until it goes down."""
    if keys and inner and not outer:
        raise typer.BadParameter("--keys are for what is encrypted: add --outer")
    if keys and snaplen != WHOLE_PACKETS:
        raise typer.BadParameter(
            "--keys are for whole packets, what is cut off cannot be decrypted: leave --snaplen out"
        )
    from .capture import run

    run(name, output, run_dir=run_dir, outer=outer or not inner, inner=inner, keys=keys, snaplen=snaplen)


@app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A wg-quick file, or a gateway's TOML file.")],
    allow_world_readable: AllowWorldReadable = False,
) -> None:
    """Say everything that is wrong with FILE, as FILE:LINE:COLUMN: what it is; what to do.

    Exit code 0 if nothing is, else 1.
    """
    from .check import run

    raise typer.Exit(run(file, allow_world_readable=allow_world_readable))


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A wg-quick file, or a gateway's TOML file.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Another one.")],
    allow_world_readable: AllowWorldReadable = False,
) -> None:
    """Show what a tunnel of the file OLD would change to become that of NEW."""
    from .diff import run

    run(old, new, allow_world_readable=allow_world_readable)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a gateway's TOML file."""
    from .schema import run

    run()


policy = typer.Typer(help="Look into what the peers of a gateway may reach.")
app.add_typer(policy, name="policy")


@policy.command("test")
def policy_test(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A gateway's TOML file.")],
    peer: Annotated[str, typer.Option(help="The peer's name, or its public key.")],
    to: Annotated[
        list[str],
        typer.Option(
            metavar="DESTINATION",
            help="Such as 10.0.0.5:443/tcp, [fd00::5]:53/udp, 10.0.0.5/icmp (an echo request), 10.0.0.5/icmp:13 "
            "(that type of message) or 10.0.0.5/47.",
        ),
    ],
    from_gateway: Annotated[
        bool,
        typer.Option(
            "--from-gateway", help="Ask about flows to the peer's own addresses that start on this side."
        ),
    ] = False,
) -> None:
    """Say what would become of flows that a peer starts, and which rule decides. Reads no key file.

    Exit code 0 if all are allowed, 1 if one is denied or a hook would be asked, and 2 for what is no such file, peer or
    destination.
    """
    from connlib._policy import Flow

    from .policy import run

    try:
        flows = [Flow.parse(destination) for destination in to]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(run(file, peer, flows, towards=from_gateway))


@app.command()
def genkey() -> None:
    """Print a new private key, as `wg genkey` does."""
    from .keys import genkey as run

    run()


@app.command()
def pubkey() -> None:
    """Read a private key on standard input and print its public key, as `wg pubkey` does."""
    from .keys import pubkey as run

    run()


@app.command()
def genpsk() -> None:
    """Print a new preshared key, as `wg genpsk` does."""
    from .keys import genpsk as run

    run()


@app.command()
def demo(
    tun: Annotated[
        bool, typer.Option("--tun", help="Two real TUN devices in two network namespaces (Linux, root).")
    ] = False,
) -> None:
    """Show a gateway and a client at work: handshake, pings, a bulk transfer, a long sleep.

    Both run in this process, over real UDP sockets on 127.0.0.1. Nothing is installed or changed.
    """
    if tun:
        from .demo_tun import run as run_tun

        run_tun()
    else:
        from .demo import run

        run()


@app.command()
def bench(
    seconds: Annotated[
        float, typer.Option(min=0, max=60, help="How long each size is measured with each backend.")
    ] = 0.2,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Tell what seals and opens packets on this machine, why, and how many nanoseconds a packet takes.

    `encryption` in a file of an interface chooses otherwise.
    """
    from .bench import run

    run(seconds=seconds, as_json=as_json)


@app.command()
def crosscheck(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCENARIO]...", help="Numbers of scenarios (docs/engine.md); all if there is none."
        ),
    ] = None,
    lines: Annotated[
        int,
        typer.Option(
            min=0, help="How much of the two traces to show side by side, from the first difference on."
        ),
    ] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random but upstream's own keys.")] = 1,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the table between its two marks in FILE anew.")
    ] = None,
    draw: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Draw each run as a sequence diagram (SVG) into FOLDER."),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Run the wg-quick file that is given in place of SCENARIO, as `up` does, and write what comes in to "
            "FILE: times, kinds and sizes; no payload, no address, no key.",
        ),
    ] = None,
    replay: Annotated[
        str | None, typer.Option(metavar="FILE", help="Run what `--record` wrote, on both engines.")
    ] = None,
) -> None:
    """Run the same scenarios on pristine boringtun and on connlib's engine, and show what differs.

    In virtual time: nothing is sent. `--record` and `--replay` do it with what a live interface was given.
    """
    names = scenarios or []
    if record is not None:
        if len(names) != 1 or replay or markdown or draw:
            raise typer.BadParameter("--record takes one wg-quick file, and nothing else")
        from ._stop import stop_signals

        stop_signals.install()
        from .up import run as run_up

        run_up(
            names[0],
            stop_signals,
            name=None,
            level="info",
            allow_world_readable=False,
            run_dir=RUN_DIR,
            record=record,
        )
        return
    from . import crosscheck as command

    if replay is not None:
        if names or markdown or draw:
            raise typer.BadParameter("--replay takes its file, and nothing else")
        command.replay(replay, lines=lines, seed=seed)
    else:
        command.run(names, lines=lines, seed=seed, markdown=markdown, draw=draw)
