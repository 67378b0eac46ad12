"""AXI4-Lite and AXI4-Stream interfaces, with the standard signal names."""

from amaranth import Value
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

OKAY = 0
"""The response of every access."""


class AXI4Lite(wiring.Signature):
    """AXI4-Lite with 32-bit data, as the manager sees it; a subordinate's port is In(AXI4Lite(...)).

    `awprot` and `arprot` are left out: the register file would ignore them.
    """

    def __init__(self, address_bits: int) -> None:
        super().__init__({
            "awaddr": Out(address_bits),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(32),
            "wstrb": Out(4),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "araddr": Out(address_bits),
            "arvalid": Out(1),
            "arready": In(1),
            "rdata": In(32),
            "rresp": In(2),
            "rvalid": In(1),
            "rready": Out(1),
        })


class AXI4Stream(wiring.Signature):
    """AXI4-Stream of 32-bit beats, as the source sees it; every byte of a beat counts (no `tkeep`)."""

    def __init__(self) -> None:
        super().__init__({"tdata": Out(32), "tvalid": Out(1), "tready": In(1), "tlast": Out(1)})


def verilog_ports(component: wiring.Component) -> dict[str, tuple[Value, PortDirection]]:
    """The ports of a component, AXI under its own names: member `s_axil` gives s_axil_awaddr, not s_axil__awaddr.

    For `amaranth.back.verilog.convert(component, ports=verilog_ports(component))`.
    """
    members = component.signature.members
    axi = {name for name in members if members[name].is_signature and isinstance(members[name].signature, _SIGNATURES)}
    ports: dict[str, tuple[Value, PortDirection]] = {}
    for path, member, value in component.signature.flatten(component):
        direction = PortDirection.Input if member.flow == In else PortDirection.Output
        separator = "_" if path[0] in axi else "__"
        ports[separator.join(map(str, path))] = (Value.cast(value), direction)
    return ports


_SIGNATURES = (AXI4Lite, AXI4Stream)
