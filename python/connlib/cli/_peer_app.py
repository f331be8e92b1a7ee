"""The options of `connlib init` and `connlib peer ...`."""

from __future__ import annotations

from typing import Annotated

import typer

peer = typer.Typer(help="Add peers to a gateway's TOML file, remove them, list them.")

File = Annotated[
    str | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="The gateway's TOML file.  [default: the only one in the current folder]",
    ),
]

AllowWorldReadable = Annotated[
    bool,
    typer.Option("--allow-world-readable", help="Accept files that every user of the machine can read."),
]


def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to make, such as office.toml.")],
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="HOST[:PORT]", help="Where peers reach the gateway: a host name or an address."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX",
            help="A network for the gateway and its peers, IPv4 or IPv6; may be repeated.  [default: 10.7.0.0/24]",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The UDP port to listen on.")] = 51820,
) -> None:
    """Make a gateway's TOML file, and beside it a file with a new private key.

    Nothing that is there already is written over.
    """
    from .init import run

    run(file, endpoint=endpoint, networks=network or ["10.7.0.0/24"], port=port)


@peer.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the peer is called.")],
    file: File = None,
    qr: Annotated[
        bool, typer.Option("--qr", help="Print the peer's configuration as a QR code, for a phone to scan.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the peer's configuration to this new file; as a QR code if it ends in .png or .svg.",
        ),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="An address of the peer's; may be repeated.  [default: a free one of each network of the gateway]",
        ),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="The peer's public key, if it has a key already; else one is made for it."
        ),
    ] = None,
    psk: Annotated[bool, typer.Option("--psk/--no-psk", help="Make a preshared key, too.")] = True,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[:PORT]", help="Where the peer reaches the gateway.  [default: what FILE says]"
        ),
    ] = None,
    dns: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="A DNS server for the peer to use; may be repeated."),
    ] = None,
    allowed_ips: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX",
            help="What the peer sends through the tunnel, such as 0.0.0.0/0; may be repeated.  "
            "[default: the networks of the gateway]",
        ),
    ] = None,
    keepalive: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Seconds between the peer's keepalives; 0 for none."),
    ] = 25,
    allow_world_readable: AllowWorldReadable = False,
) -> None:
    """Add a peer to a gateway's TOML file, and print the peer's own configuration: a wg-quick file.

    The peer's private key is kept nowhere but in what is printed.
    """
    from ._qr import picture_ending

    if public_key is not None and (qr or picture_ending(output) is not None):
        raise typer.BadParameter("there is no QR code with --public-key: the private key is not here")
    from .peer import NewPeer, add_peer

    wanted = NewPeer(
        name=name,
        public_key=public_key,
        with_preshared_key=psk,
        addresses=tuple(address or ()),
        endpoint=endpoint,
        dns=tuple(dns or ()),
        allowed_ips=tuple(allowed_ips or ()),
        keepalive=keepalive,
    )
    add_peer(wanted, file, qr=qr, output=output, allow_world_readable=allow_world_readable)


@peer.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The peer's name, or its public key.")],
    file: File = None,
) -> None:
    """Remove a peer from a gateway's TOML file, and the file with its preshared key if `peer add` made it."""
    from .peer import remove_peer

    remove_peer(name, file)


@peer.command("list")
def list_(file: File = None) -> None:
    """Print a line for each peer: its name, its public key and its addresses."""
    from .peer import list_peers

    list_peers(file)
